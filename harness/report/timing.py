"""Table 4 from timing records: medians with their spread, and ratios, which carry over; seconds do not.

Nothing is tested here: repeats on one machine are no sample of machines. The paper's claim is put
beside the ratios and left to the reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from harness.audit import Published, published
from harness.config import Cell, cell_key, plain
from harness.errors import InputError
from harness.report.content import CHAMPION
from harness.report.gather import TableData
from harness.store import Record
from harness.training.timing import (
    Machine,
    described,
    same_machine,
)
from harness.zoo import Method, find

TITLE = "Table 4: time of a training epoch and of a prediction"
PAPERS_DATA = "kuaishou"
"""Whose times the paper prints."""
PAPERS_BATCH = 128
ELSEWHERE = "timed on another machine"
CLAIM = (
    "Its inference time is comparable to complex baselines, making it practical for online "
    "recommendation"
)
"""Section 5.7."""


@dataclass(frozen=True)
class Measure:
    """Something that is timed."""

    name: str
    """In `Record.measured`."""
    heading: str
    factor: float
    """From seconds to what is printed."""
    ratio_heading: str
    published: str = ""
    """Field of the paper's row."""


EPOCH = Measure("epoch", "s an epoch", 1.0, "epoch", "training_seconds")
BATCH = Measure("predict_batch", "ms a batch", 1e3, "batch", "inference_seconds")
ONE = Measure("predict_one", "ms one user", 1e3, "one user")
COLD = Measure("predict_cold", "ms a first batch", 1e3, "first batch")
SHOWN = (EPOCH, BATCH, ONE)
MEASURES = (*SHOWN, COLD)


@dataclass(frozen=True)
class Spread:
    """Repeats in five numbers, in seconds (or without unit: a ratio's range has no least and most)."""

    middle: float
    """Median."""
    lower: float
    """Quartile."""
    upper: float
    least: float
    most: float
    repeats: int


def spread(values: Sequence[float]) -> Spread:
    """Median, quartiles and extremes. Raises InputError without repeats, or for no positive seconds."""
    if not values or min(values) <= 0:
        raise InputError(f"{len(values)} repeats, the least {min(values, default=0)} s: no timing")
    least, lower, middle, upper, most = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return Spread(middle, lower, upper, least, most, len(values))


@dataclass(frozen=True)
class Ratio:
    """A median over another one; from the one's lower over the other's upper quartile, and reverse."""

    value: float
    low: float
    high: float


def ratio(one: Spread, other: Spread) -> Ratio:
    """`one` over `other`."""
    return Ratio(one.middle / other.middle, one.lower / other.upper, one.upper / other.lower)


def printed_ratio(one: Decimal, other: Decimal) -> Ratio:
    """Of two printed numbers: what they are rounded from may lie anywhere in the range."""
    half_one, half_other = (
        Decimal(1).scaleb(int(number.as_tuple().exponent)) / 2 for number in (one, other)
    )
    low, high = (one - half_one) / (other + half_other), (one + half_one) / (other - half_other)
    return Ratio(float(one / other), float(low), float(high))


@dataclass(frozen=True)
class Timed:
    """A method on a data set."""

    method: Method
    dataset: str
    record: Record | None
    why: str = ""
    """Why there is no record."""

    def measured(self, name: str) -> list[float]:
        """What the record says under a name; nothing without one."""
        return [] if self.record is None else (self.record.measured or {}).get(name, [])

    def number(self, name: str) -> float | None:
        """The same, of what has no repeats."""
        return next(iter(self.measured(name)), None)

    def spread(self, measure: Measure) -> Spread | None:
        """Seconds of a measure."""
        return None if self.record is None else spread(self.measured(measure.name))


@dataclass(frozen=True)
class Timing:
    """Table 4, complete."""

    data: tuple[TableData, ...]
    methods: tuple[Method, ...]
    rows: Mapping[tuple[str, str], Timed]
    """By method's label and data set."""
    machine: Machine | None
    """That everything here was timed on; None where nothing was."""
    batch: int
    """Batch size of training and of predictions."""
    users_limit: int
    protocol: Mapping[str, Any]
    paper: Published
    overrides: tuple[str, ...]

    def ratio(self, label: str, dataset: str, measure: Measure) -> Ratio | None:
        """A method's time over the champion's; None where either is missing."""
        one, ours = (
            row.spread(measure) if (row := self.rows.get((name, dataset))) else None
            for name in (label, CHAMPION)
        )
        return ratio(one, ours) if one and ours else None

    def published(self, label: str, measure: Measure) -> Decimal | None:
        """The paper's seconds."""
        found = (row for row in self.paper.table4 if row.label == label and measure.published)
        return next((getattr(row, measure.published) for row in found), None)

    def published_ratio(self, label: str, measure: Measure, over: str = CHAMPION) -> Ratio | None:
        """The paper's seconds over those of another of its rows."""
        one, other = self.published(label, measure), self.published(over, measure)
        return None if one is None or other is None else printed_ratio(one, other)


def build_timing(
    records: Iterable[Record],
    wanted: Sequence[Cell],
    datasets: Sequence[TableData],
    *,
    failed: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
) -> Timing:
    """Sort timing records into rows.

    Args:
        records: Of wanted cells. They stand in one table only where they are of one machine
            (`same_machine`): the one with most of them, M3BSR's when there are as many of another;
            the rest are gaps that say so.
        wanted: A cell a method and data set.
        datasets: The data sets, in order.
        failed: Why a cell has no record, by key.
        overrides: The user's `key=value`; printed.

    Raises:
        InputError: A record that nobody asked for, or that measured nothing.
    """
    cells = {cell_key(cell): cell for cell in wanted}
    found: dict[str, Record] = {}
    for record in records:
        if record.key not in cells or record.measured is None:
            raise InputError(f"record {record.key[:12]} ({record.label} on {record.data}) is no timing "
                             "of this table; leave it out")  # fmt: skip
        found[record.key] = record
    machine = _machine(list(found.values()))
    rows = {}
    for key, cell in cells.items():
        method, made, why = find(cell.method), found.get(key), "not run"
        if key in (failed or {}):
            why = f"failed: {' '.join((failed or {})[key].split())}"
        if made is not None and not same_machine(described(made.host), machine):
            why = f"{ELSEWHERE} ({say_machine(described(made.host))})"
            made = None
        rows[method.label, cell.data] = Timed(method, cell.data, made, "" if made else why)
    return Timing(
        data=tuple(datasets),
        methods=tuple({cell.method: find(cell.method) for cell in wanted}.values()),
        rows=rows,
        machine=machine,
        batch=wanted[0].train.batch_size,
        users_limit=wanted[0].users,
        protocol=dict(plain(wanted[0].protocol)),
        paper=published(),
        overrides=tuple(overrides),
    )


def _machine(records: Sequence[Record]) -> Machine | None:
    """The machine that most records are of; the champion's where two have as many."""
    ours_first = sorted(records, key=lambda record: record.label != CHAMPION)
    machines = [one for record in ours_first if (one := described(record.host)) is not None]
    counts = [sum(same_machine(one, other) for other in machines) for one in machines]
    return machines[counts.index(max(counts))] if machines else None


def say_machine(machine: Machine | None) -> str:
    """A machine in a line."""
    if machine is None:
        return "a machine that the record does not name"
    many = "s" * (machine.processors > 1)
    threads = f"{machine.threads} thread{'s' * (machine.threads > 1)} of torch {machine.torch}"
    return (
        f"{machine.processor}, {machine.processors} processor{many}, {threads}, {machine.memory_gib:g} GiB "
        f"of memory, {machine.gpu or 'no GPU'}"
    )
