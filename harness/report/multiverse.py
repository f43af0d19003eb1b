"""The multiverse from stored records: every reading of the text, M3BSR against one rival.

Two questions of each reading: does M3BSR beat the rival under it, and does M3BSR itself change? Both
are V-tests (protocol, Statistics). Readings of the model share one test with the reading they start
from; a reading of the protocol is a test of its own, so that only M3BSR minus the rival is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from harness import stats
from harness.config import Cell, cell_key, plain
from harness.report.content import CHAMPION
from harness.report.gather import Gathered, TableData, gather
from harness.stats import Comparison, Moments, Plateau
from harness.stats.spread import EqualSpread, equal_spread
from harness.stats.variance import LEVEL
from harness.store import Record
from harness.zoo import Method, find
from models.readings import Option

BASE = "default"
"""The reading that the others start from: the paper's set, or the user's overrides of it."""
METRICS = ("HR@10", "NDCG@10")
DECIDES = "NDCG@10"
"""The verdict's metric: the one that chose epochs, settings and the rival."""
TITLE = f"Multiverse. Does {CHAMPION} win however the text is read?"
DIVERGED = ("TrainingDivergedError", "BadScoresError")
"""Failures that are results: the reading does not train."""
NO_TRAINING = "does not train"
DROWNED = 1000
"""A loss so many times its part that ranks items is said to drown it."""


class Kind(Enum):
    """Groups of readings, as headed."""

    BASE = "What the others start from"
    MODEL = "Readings of the model, one at a time"
    SET = "Sets of readings"
    PROTOCOL = "Readings of the protocol, one at a time (the rival is run under them too)"


class Verdict(Enum):
    """M3BSR against the rival under one reading."""

    WINS = "wins"
    OPEN = "cannot be told"
    LOSES = "loses"


@dataclass(frozen=True)
class Specification:
    """One reading on one data set, with the cells that it needs."""

    id: str
    """R1 to R23, P1 to P5, the name of a set, or BASE."""
    kind: Kind
    option: str
    """Its key below `model.` or `protocol.`; empty for a set and for BASE."""
    value: str
    usual: str
    """What BASE has there."""
    why: str
    turned: tuple[str, ...]
    """`R6 noise` of every option that differs from BASE."""
    cells: tuple[Cell, ...]
    """M3BSR's; none for a reading that leaves nothing to train on or to test."""
    rival: tuple[Cell, ...]
    """The rival's under the same reading of the protocol."""
    data: TableData
    """With the candidates of this reading."""
    unusable: str = ""
    """Why there can be no runs."""

    @property
    def label(self) -> str:
        """`R6 diffusion.loss=noise`, `repaired`."""
        return f"{self.id} {self.option}={self.value}" if self.option else self.id

    @property
    def short(self) -> str:
        """`R6 noise`."""
        return f"{self.id} {self.value}" if self.option else self.id


@dataclass(frozen=True)
class Panel:
    """A data set: its rival and its readings, BASE first."""

    data: TableData
    rival: Method
    why_rival: str
    specifications: tuple[Specification, ...]


@dataclass(frozen=True)
class Outcome:
    """One reading in one metric; None where runs are missing."""

    moments: Moments | None = None
    rival: Moments | None = None
    against_rival: Comparison | None = None
    """M3BSR minus the rival."""
    rival_holm: float | None = None
    """Holm over all readings of the data set and metric."""
    against_base: Comparison | None = None
    """M3BSR under this reading minus M3BSR under BASE; only where both have one test."""
    base_holm: float | None = None

    @property
    def verdict(self) -> Verdict | None:
        """By p < 0.05 for this reading alone, as a paper with this reading would have it."""
        return None if self.against_rival is None else _verdict(self.against_rival)

    @property
    def changes(self) -> bool:
        """Whether the reading is called different from BASE."""
        pair = self.against_base
        return bool(
            pair and pair.power.marks and self.base_holm is not None and self.base_holm < LEVEL
        )


def _verdict(pair: Comparison) -> Verdict:
    if not pair.power.marks or pair.p is None or pair.p >= LEVEL:
        return Verdict.OPEN
    return Verdict.WINS if pair.difference > 0 else Verdict.LOSES


@dataclass(frozen=True)
class Reading:
    """A reading and what its runs say."""

    specification: Specification
    outcomes: Mapping[str, Outcome]
    """By metric."""
    runs: tuple[str, ...]
    """Keys of M3BSR's records."""
    rival_runs: tuple[str, ...]
    users: int | None
    """Test users; a reading of the protocol may have others than BASE."""
    gaps: tuple[str, ...]
    """Why runs are missing, M3BSR's and the rival's."""
    remark: str
    """Where M3BSR's own losses drown the one that ranks items."""
    status: str
    """Instead of numbers where M3BSR has no runs: `does not train`, `failed`, `not run`, ..."""

    @property
    def verdict(self) -> Verdict | None:
        """By the metric that decides."""
        return self.outcomes[DECIDES].verdict


@dataclass(frozen=True)
class Spread:
    """How far the readings that share one test lie apart, beside what equal ones would."""

    metric: str
    lowest: tuple[str, float]
    highest: tuple[str, float]
    count: int
    runs: int
    """Of each reading."""
    left_out: tuple[str, ...]
    """Readings with fewer runs than that."""
    test: Plateau | None
    """Of all being equal; None with one run a reading."""
    equal: EqualSpread

    @property
    def range(self) -> float:
        """Highest minus lowest mean."""
        return self.highest[1] - self.lowest[1]


@dataclass(frozen=True)
class World:
    """A data set's readings."""

    panel: Panel
    readings: tuple[Reading, ...]
    spreads: tuple[Spread, ...]
    seconds: float
    """Of all runs, M3BSR's and the rival's."""

    def compared(self, metric: str) -> list[Reading]:
        """Readings with a difference to the rival."""
        return [row for row in self.readings if row.outcomes[metric].against_rival is not None]


@dataclass(frozen=True)
class Multiverse:
    """Everything that the page says."""

    worlds: tuple[World, ...]
    protocol: Mapping[str, Any]
    seeds: int
    budget_name: str
    overrides: tuple[str, ...]
    options: tuple[Option, ...]


# ----------------------------------------------------------------------------------- from records


def diverged(reason: str) -> bool:
    """Whether a failure says that the method does not train under its settings."""
    return reason.startswith(DIVERGED)


def build_multiverse(
    stored: Mapping[str, Record],
    panels: Iterable[Panel],
    *,
    failed: Mapping[str, str],
    seeds: int,
    options: Sequence[Option],
    budget_name: str = "",
    overrides: Sequence[str] = (),
) -> Multiverse:
    """Read the records of every reading.

    Args:
        stored: Finished runs by key.
        panels: The data sets with their readings.
        failed: Why a cell has no record, by key.
        seeds: Runs asked for.
        options: All options that the text leaves open, for counting their combinations.
        budget_name: Printed, like `overrides`.
        overrides: The user's `key=value`.

    Raises:
        InputError: Two records that may not stand in one table.
    """
    worlds = tuple(_world(stored, panel, failed) for panel in panels)
    base = worlds[0].panel.specifications[0].cells[0]
    protocol = dict(plain(base.protocol))
    return Multiverse(worlds, protocol, seeds, budget_name, tuple(overrides), tuple(options))


def _world(stored: Mapping[str, Record], panel: Panel, failed: Mapping[str, str]) -> World:
    rows = panel.specifications
    shared = [row for row in rows if row.kind is not Kind.PROTOCOL]
    tests = [shared, *([row] for row in rows if row.kind is Kind.PROTOCOL and row.cells)]
    found: dict[str, Gathered] = {}
    for group in tests:
        made = _gather(stored, group, panel.rival, failed)
        found |= dict.fromkeys((row.label for row in group), made)
    seen = {run.key: run for made in found.values() for one in made.runs.values() for run in one.records}  # fmt: skip
    moments = {
        metric: {
            label: stats.moments(made.runs[label, panel.data.name].scores(metric))
            for label, made in found.items()
            if (label, panel.data.name) in made.runs
        }
        for metric in METRICS
    }
    outcomes = {metric: _outcomes(panel, found, moments[metric], metric) for metric in METRICS}
    readings = tuple(
        _reading(row, panel, found.get(row.label), {m: outcomes[m][row.label] for m in METRICS})
        for row in rows
    )
    spreads = [
        _spread(metric, {row.label: (row.short, moments[metric].get(row.label)) for row in shared})
        for metric in METRICS
    ]
    return World(
        panel=panel,
        readings=readings,
        spreads=tuple(spread for spread in spreads if spread is not None),
        seconds=sum((run.seconds["total"] for run in seen.values()), 0.0),
    )


def _gather(
    stored: Mapping[str, Record],
    group: Sequence[Specification],
    rival: Method,
    failed: Mapping[str, str],
) -> Gathered:
    """The runs of readings that share one test, and the rival's."""
    champion = find("m3bsr")
    wanted: dict[str, Cell] = {}
    methods: dict[str, Method] = {}
    for row in group:
        mine = Method(**{**vars(champion), "label": row.label})
        for method, cells in ((mine, row.cells), (rival, row.rival)):
            for cell in cells:
                key = cell_key(cell)
                wanted[key], methods[key] = cell, method
    records = [stored[key] for key in wanted if key in stored]
    return gather(records, list(wanted.values()), [group[0].data], failed, methods)


def _outcomes(
    panel: Panel, found: Mapping[str, Gathered], mine: Mapping[str, Moments], metric: str
) -> dict[str, Outcome]:
    """A metric's comparisons, each family corrected by Holm."""
    theirs = {
        label: stats.moments(made.runs[panel.rival.label, panel.data.name].scores(metric))
        for label, made in found.items()
        if (panel.rival.label, panel.data.name) in made.runs
    }
    rival = {label: stats.compare(own, theirs[label]) for label, own in mine.items() if label in theirs}  # fmt: skip
    base = {
        row.label: stats.compare(mine[row.label], mine[BASE])
        for row in panel.specifications
        if row.kind in {Kind.MODEL, Kind.SET} and row.label in mine and BASE in mine
    }
    rival_holm, base_holm = _holm(rival), _holm(base)
    return {
        row.label: Outcome(
            moments=mine.get(row.label),
            rival=theirs.get(row.label),
            against_rival=rival.get(row.label),
            rival_holm=rival_holm.get(row.label),
            against_base=base.get(row.label),
            base_holm=base_holm.get(row.label),
        )
        for row in panel.specifications
    }


def _holm(pairs: Mapping[str, Comparison]) -> dict[str, float]:
    """Corrected p values; pairs with one run have none."""
    tested = {label: pair.p for label, pair in pairs.items() if pair.p is not None}
    return dict(zip(tested, stats.holm(list(tested.values())), strict=True))


def _reading(
    row: Specification,
    panel: Panel,
    found: Gathered | None,
    outcomes: Mapping[str, Outcome],
) -> Reading:
    name = panel.data.name
    if found is None:
        return Reading(row, outcomes, (), (), None, (row.unusable,), "", "not possible here")
    mine, theirs = found.runs.get((row.label, name)), found.runs.get((panel.rival.label, name))
    missing = found.missing.get((row.label, name), ())
    of_rival = found.missing.get((panel.rival.label, name), ())
    gaps = _by_reason(CHAMPION, missing)
    if row.kind in {Kind.BASE, Kind.PROTOCOL}:  # the others share BASE's runs of the rival
        gaps += _by_reason(panel.rival.label, of_rival)
    status = ""
    if mine is None:
        reasons = [reason.partition(": ")[2] for reason in missing]
        failures = [reason.removeprefix("failed: ") for reason in reasons if reason != "not run"]
        status = "failed" if failures else "not run"
        if failures and all(map(diverged, failures)):
            status = NO_TRAINING
    return Reading(
        specification=row,
        outcomes=outcomes,
        runs=tuple(record.key for record in mine.records) if mine else (),
        rival_runs=tuple(record.key for record in theirs.records) if theirs else (),
        users=mine.above.shape[1] if mine else None,
        gaps=tuple(gaps),
        remark=_drowned(mine.records) if mine else "",
        status=status,
    )  # fmt: skip


def _drowned(records: Sequence[Record]) -> str:
    """A sentence on runs whose last epoch's loss is more than DROWNED times the part that ranks items."""
    last = [record.curve[-1] for record in records if record.curve and "main" in record.curve[-1]]
    large = [row for row in last if row["loss"] > DROWNED * row["main"]]
    if not large:
        return ""
    worst = max(large, key=lambda row: float(row["loss"]))
    return (
        f"trains on a loss of {worst['loss']:.1e}, of which the part that ranks items is {worst['main']:.2f} "
        f"({len(large)} of {len(records)} runs)"
    )


def _by_reason(who: str, missing: Sequence[str]) -> list[str]:
    """`M3BSR seeds 1, 2: not run`."""
    seeds: dict[str, list[str]] = {}
    for gap in missing:
        seed, _, reason = gap.removeprefix("seed ").partition(": ")
        seeds.setdefault(reason, []).append(seed)
    return [
        f"{who} seed{'s' * (len(numbers) > 1)} {', '.join(numbers)}: {reason}"
        for reason, numbers in seeds.items()
    ]


def _spread(metric: str, rows: Mapping[str, tuple[str, Moments | None]]) -> Spread | None:
    """Of the readings that share one test and have the most runs; None for fewer than two."""
    there = {short: own for short, own in rows.values() if own is not None}
    if not there:
        return None
    runs = max(own.runs for own in there.values())
    cells = {short: own for short, own in there.items() if own.runs == runs}
    if len(cells) < 2:
        return None
    means = {short: own.mean for short, own in cells.items()}
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    test = stats.heatmap(list(cells.values())) if runs > 1 else None
    return Spread(
        metric=metric,
        lowest=(low, means[low]),
        highest=(high, means[high]),
        count=len(cells),
        runs=runs,
        left_out=tuple(short for short in there if short not in cells),
        test=test,
        equal=equal_spread(len(cells), test.df) if test else equal_spread(len(cells)),
    )
