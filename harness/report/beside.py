"""The paper's numbers beside ours: prediction bands, verdicts, order, effect ratios.

Nothing of ours is changed by a published number, and no published number is changed at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cache
from pathlib import Path

from harness import stats
from harness.audit import PRINTED_NAMES, Verdict, judge
from harness.audit import Published as Paper
from harness.audit import published as read_paper
from harness.report.gather import TableData
from harness.stats import Column, EffectRatio, Order

UNDECIDED = "undecided: one run"
"""Where a band would need the spread of runs, and there is one run."""


@dataclass(frozen=True)
class Beside:
    """One published number, and what our runs say of it."""

    published: Decimal
    """As printed, digit for digit."""
    possible: bool
    """False: arithmetic alone rules it out (harness.audit); it is struck through."""
    verdict: str | None = None
    """inside, inside only as best of 10, outside, UNDECIDED; None on other data than the paper's."""
    low: float | None = None
    """The 95 % band of one published run (other users, unless ours are the published ones)."""
    high: float | None = None
    best_of_5: tuple[float, float] | None = None
    """The same for the best of five runs; the paper does not say how many its numbers are of."""
    best_of_10: tuple[float, float] | None = None


@dataclass(frozen=True)
class Against:
    """A published lead of one method over another, and ours."""

    champion: str
    other: str
    published_gain: float
    ratio: EffectRatio


@dataclass(frozen=True)
class Published:
    """A published table (Table 2, unless said) with arithmetic's judgement of every cell."""

    paper: Paper
    verdicts: tuple[Verdict, ...]
    shares: Mapping[str, float] = field(default_factory=dict)
    """Share of its users that the table is about, by our data set's name, where that is not 1. The
    paper does not print how many those are: ours stands in."""

    @classmethod
    def read(cls, path: Path | None = None) -> Published:
        """The paper's own numbers, or those of a file of the same shape (InputError)."""
        return _read(path)

    @classmethod
    def cold_start(cls, shares: Mapping[str, float]) -> Published:
        """The published Table 3, beside either data set: its caption names one, its text the other.

        `shares`: our share of cold users, by data set.
        """
        whole = _read(None)
        rows = [replace(row, dataset=name) for name in PRINTED_NAMES for row in whole.paper.table3]
        return cls(whole.paper, tuple(judge(rows)), shares)

    def column(self, data: TableData) -> str | None:
        """Whose published numbers stand beside a data set: its own, or those of a demo's twin."""
        name = data.name.removeprefix("demo_") if data.demo else data.name
        return name if name in PRINTED_NAMES else None

    def comparable(self, data: TableData) -> bool:
        """True when a verdict makes sense: the paper's data set, not a made-up twin."""
        return not data.demo and self.column(data) is not None

    def cells(self, data: TableData, metric: str) -> Iterator[tuple[str, Decimal, Decimal, bool]]:
        """label, number, half a unit of its last digit, possible: of one column."""
        for verdict in self.verdicts:
            value = verdict.row.values.get(metric)
            if verdict.row.dataset == self.column(data) and value is not None:
                half = verdict.units[metric] / 2
                yield verdict.row.label, value, half, metric not in verdict.struck

    def users(self, data: TableData) -> int:
        """Users of the published numbers (Table 1)."""
        everyone = self.paper.table1[str(self.column(data))].users
        return max(1, round(everyone * self.shares.get(data.name, 1.0)))

    def impossible_rows(self) -> tuple[int, int]:
        """Impossible rows of the published table, and all of them; each printed row once."""
        rows = {
            (verdict.row.label, *verdict.row.values.items()): verdict.impossible
            for verdict in self.verdicts
        }
        return sum(rows.values()), len(rows)


@cache
def _read(path: Path | None) -> Published:
    paper = read_paper(path)
    return Published(paper, tuple(judge(paper.table2)))


def beside(column: Column, data: TableData, metric: str, published: Published) -> dict[str, Beside]:
    """Every published number of a column, judged by our runs where the data are the paper's."""
    cells = {
        label: (value, half, possible)
        for label, value, half, possible in published.cells(data, metric)
    }
    bands = {}
    if published.comparable(data):
        half_units = {label: float(half) for label, (_, half, _) in cells.items()}
        bands = stats.published_bands(column.methods, published.users(data), half_units)
    found = {}
    for label, (value, _, possible) in cells.items():
        found[label] = Beside(value, possible)
        if label in bands:
            band = bands[label]
            chosen = band.same_users if data.published_users else band.other_users
            five, ten = chosen.best_of[5], chosen.best_of[10]
            verdict = stats.verdict(float(value), band, same_users=data.published_users)
            found[label] = Beside(
                published=value,
                possible=possible,
                verdict=verdict.value,
                low=chosen.one_run.low,
                high=chosen.one_run.high,
                best_of_5=(five.low, five.high),
                best_of_10=(ten.low, ten.high),
            )
        elif published.comparable(data) and label in column.methods:
            found[label] = Beside(value, possible, UNDECIDED)
    return found


def published_order(
    column: Column, data: TableData, metric: str, published: Published
) -> Order | None:
    """Kendall's tau of our order with the published one; None on other data, or of one method."""
    if not published.comparable(data) or len(column.methods) < 2:
        return None
    means = {label: float(value) for label, value, *_ in published.cells(data, metric)}
    return stats.order(column, means)


def effect_ratio(
    column: Column, data: TableData, metric: str, published: Published, champion: str
) -> Against | None:
    """Our lead of the champion over the published one, on the strongest published rival that we ran.

    None on other data than the paper's, or where we ran only one of the two.
    """
    means = {
        label: float(value)
        for label, value, *_ in published.cells(data, metric)
        if label in column.methods
    }
    if not published.comparable(data) or champion not in means or len(means) < 2:
        return None
    rival = max((label for label in means if label != champion), key=means.__getitem__)
    gain = means[champion] - means[rival]
    a, b = column.methods[champion], column.methods[rival]
    pair = column.compare(champion, rival)
    return Against(champion, rival, gain, stats.effect_ratio(a, b, pair, gain))


def lines(
    columns: dict[tuple[str, str], tuple[Order | None, Against | None]],
) -> list[str]:
    """The order and the effect ratio of every column in words, by data set and metric."""
    said = []
    for (dataset, metric), (order, against) in columns.items():
        parts = []
        if order is not None and order.tau is not None:
            interval = (
                f" [{order.low:.2f}, {order.high:.2f}]"
                if order.low is not None and order.high is not None
                else ""
            )
            unordered = f"{order.open} of {order.pairs} pairs our runs do not order"
            parts.append(
                f"Kendall's tau with the published order {order.tau:.2f}{interval}, {unordered}"
            )
        if against is not None:
            parts.append(_ratio(against))
        if parts:
            said.append(f"{dataset} {metric}: {'; '.join(parts)}.")
    return said


def _ratio(against: Against) -> str:
    ratio = against.ratio
    lead = (
        f"published lead of {against.champion} over {against.other} {against.published_gain:+.4f}"
    )
    if ratio.ratio is None:
        return f"{lead}: no effect ratio"
    interval = (
        f"[{ratio.low:.2f}, {ratio.high:.2f}]"
        if ratio.low is not None and ratio.high is not None
        else "(interval not determined)"
    )
    return f"{lead}; ours is {ratio.ratio:.2f} times that {interval}"
