"""One file per artefact of the paper: which cells it needs, and how it is printed from records."""

from __future__ import annotations

import importlib
from types import ModuleType


def artefact(target: str) -> ModuleType:
    """The module of a target, `harness/experiments/TARGET.py`. It offers two functions.

    `cells(request) -> Sequence[Cell]`: the runs that it needs.
    `publish(request, planned, failed) -> str`: write its files from stored records; what to print.
    """
    return importlib.import_module(f"harness.experiments.{target}")
