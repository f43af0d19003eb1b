"""The paper's sentences as hypotheses: `results/paper/claims.yaml`, typed and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from harness.audit.published import DEFAULT as PUBLISHED
from harness.audit.published import load_yaml
from harness.errors import InputError, unknown
from harness.evaluation.metrics import METRICS
from harness.zoo import PAPER_ROWS, Group
from models.variants import VARIANTS

DEFAULT = PUBLISHED.with_name("claims.yaml")
LABELS = (*(row.label for row in PAPER_ROWS), *(name for name in VARIANTS if name[:4] == "w/o "))
"""What a hypothesis may compare: the rows of Table 2, and the removals of Figure 3."""


class Sheet(Enum):
    """Where the means of a comparison stand."""

    table2 = "table2"
    figure3 = "figure3"
    table3 = "table3"
    """Table 2's runs on cold-start users."""


class Panel(Enum):
    """Of Figure 4; each has two settings."""

    behaviour = "behaviour"
    modality = "modality"
    contrastive = "contrastive"


Choice = TypeVar("Choice", bound=Enum)


@dataclass(frozen=True)
class Compare:
    """Each of `better` above each of `than`, in every metric and on every data set."""

    sheet: Sheet
    better: tuple[str, ...]
    than: tuple[str, ...]
    metrics: tuple[str, ...]
    apart: bool = False
    """Every data set is a hypothesis of its own."""
    readings: Mapping[str, str] = field(default_factory=dict)
    """Where the paper names a data set, by its name."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What is claimed to be above what."""
        return [(a, b) for a in self.better for b in self.than if a != b]


@dataclass(frozen=True)
class Peak:
    """A setting alone in its heatmap's plateau."""

    panel: Panel
    at: tuple[Decimal, Decimal]
    """Steps and loss weight, or temperature and loss weight."""

    @property
    def said(self) -> str:
        """`10 / 0.02`."""
        return f"{self.at[0]} / {self.at[1]}"


@dataclass(frozen=True)
class Elsewhere:
    """Another artefact's numbers, without a test here."""

    target: str


@dataclass(frozen=True)
class Untestable:
    """No run can answer it."""

    why: str


@dataclass(frozen=True)
class Hypothesis:
    """One sentence of the paper."""

    id: str
    section: str
    short: str
    """Its name in a figure."""
    says: str
    """Its meaning in our words."""
    must: str
    """What has to be true."""
    test: Compare | Peak | Elsewhere | Untestable


def read(path: Path | None = None) -> tuple[Hypothesis, ...]:
    """The hypotheses, in the paper's order.

    Raises:
        InputError: the file cannot be read, has another shape, or names what there is not.
    """
    path = DEFAULT if path is None else path
    content = load_yaml(path)
    name = "the file"
    try:
        made = []
        for name, entry in content["hypotheses"].items():
            test = _test(entry["test"])
            words = {key: str(entry[key]) for key in ("section", "short", "says", "must")}
            made.append(Hypothesis(name, test=test, **words))
    except InputError as error:
        raise InputError(f"'{path}': {name}: {error}") from error
    except (AttributeError, InvalidOperation, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"'{path}': {name} has not the shape of results/paper/claims.yaml ({error})"
        ) from error
    return tuple(made)


def _test(entry: Mapping[str, Any]) -> Compare | Peak | Elsewhere | Untestable:
    if "compare" in entry:
        metrics = tuple(entry["metrics"])
        for metric in metrics:
            if metric not in METRICS:
                raise unknown("metric", metric, METRICS)
        return Compare(
            _named(Sheet, "sheet", entry["compare"]),
            _labels(entry["better"]),
            _labels(entry["than"]),
            metrics,
            apart=entry.get("apart") == "data",
            readings=dict(entry.get("readings", {})),
        )
    if "peak" in entry:
        first, second = map(Decimal, entry["at"])
        return Peak(_named(Panel, "panel", entry["peak"]), (first, second))
    if "elsewhere" in entry:
        return Elsewhere(entry["elsewhere"])
    return Untestable(entry["none"])


def _named(choices: type[Choice], what: str, name: str) -> Choice:
    try:
        return choices[name]
    except KeyError:
        raise unknown(what, name, [choice.name for choice in choices]) from None


def _labels(names: Sequence[str]) -> tuple[str, ...]:
    """Labels, groups resolved into theirs."""
    found: list[str] = []
    for name in names:
        if name in Group.__members__:
            found += [row.label for row in PAPER_ROWS if row.group is Group[name]]
        elif name in LABELS:
            found.append(name)
        else:
            raise unknown("row", name, [*LABELS, *Group.__members__])
    return tuple(found)
