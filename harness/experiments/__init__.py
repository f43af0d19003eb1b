"""One file per artefact of the paper: which cells it needs, and how it is printed from records."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from harness.config import Cell
    from harness.execution.plan import Plan
    from harness.experiments.common import Request


class Artefact(Protocol):
    """What a module of this package offers."""

    def cells(self, request: Request) -> Sequence[Cell]:
        """The runs that it needs."""

    def publish(self, request: Request, planned: Plan, failed: dict[str, str]) -> str:
        """Write the artefact's files from stored records; returns what to print."""


def artefact(target: str) -> Artefact:
    """The module of a target (`harness/experiments/TARGET.py`)."""
    return cast("Artefact", importlib.import_module(f"harness.experiments.{target}"))
