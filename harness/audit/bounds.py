"""What numbers of a ranking table can be together: bounds, and a linear programme over rank shares.

Protocol, "Consistency audit of published tables". With one positive per user, a table's HR@K and
NDCG@K are linear in the shares p_r of users whose positive stands at rank r, whatever the model:
HR@K = sum of p_r over r <= K, NDCG@K = sum of p_r / log2(r + 1) over r <= K. Nothing here knows
where a table came from.

Axes: cell = numbers of one row; rank = ranks 1, 2, ... of the positive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from itertools import combinations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

CANDIDATES = 100
"""The paper's ranking: one positive among 99 negatives."""
ROUNDING = 0.5
"""A rounded number lies within this many units of its last digit."""
TOLERANCE = 1e-6
"""Units above ROUNDING that are forgiven to the solver."""
SLACK = 1e-9
"""Absolute excess over a bound that is forgiven to floating point."""
SMALLEST_UNIT = Decimal("1e-6")
"""Longer numbers (computed, not printed) are judged to six decimals, which the solver can resolve."""


@dataclass(frozen=True, order=True)
class Metric:
    """HR@K or NDCG@K; ordered by cutoff, then HR before NDCG, as in the paper's tables."""

    cutoff: int
    name: str
    """HR or NDCG."""

    def __str__(self) -> str:
        return f"{self.name}@{self.cutoff}"

    @classmethod
    def of(cls, text: str) -> Metric:
        """`HR@10` as a Metric; the reader of foreign headers is `harness.audit.cells.metric_in`."""
        name, cutoff = text.split("@")
        return cls(int(cutoff), name)


@dataclass(frozen=True)
class Row:
    """A printed row: numbers as fractions of one, with the digits they were printed with."""

    label: str
    """The method, without its year."""
    values: Mapping[str, Decimal]
    """By metric ("HR@10")."""
    dataset: str = ""
    group: str = ""
    """Heading of the rows it stands among."""
    year: int | None = None


class Law(Enum):
    """Which of the protocol's bounds."""

    level = "level"
    """NDCG@K in [HR@K / log2(K + 1), HR@K]."""
    hits = "hits"
    """HR@L - HR@K >= 0."""
    gain = "gain"
    """NDCG@L - NDCG@K in [dHR / log2(L + 1), dHR / log2(K + 2)], dHR = HR@L - HR@K."""
    rise = "rise"
    """NDCG@L - NDCG@K >= 0: what is left of `gain` where a table prints no HR."""


@dataclass(frozen=True)
class Bound:
    """One bound on one row, with the value found."""

    law: Law
    cells: tuple[str, ...]
    """Metrics it is about."""
    expression: str
    """What is bounded, in words of the table: "NDCG@20 - NDCG@10"."""
    value: float
    low: float
    high: float | None
    """None: no upper bound."""
    slack_low: float
    """Excess that rounding explains: sum of |coefficients| x half a unit, + 1e-9."""
    slack_high: float

    @property
    def margin(self) -> float:
        """Distance to the nearer end, negative outside; the same scale as `value`."""
        below = self.value - self.low
        return below if self.high is None else min(below, self.high - self.value)

    @property
    def too_low(self) -> bool:
        """Below the lower end by more than rounding explains."""
        return self.low - self.value > self.slack_low

    @property
    def too_high(self) -> bool:
        """Above the upper end by more than rounding explains."""
        return self.high is not None and self.value - self.high > self.slack_high

    @property
    def broken(self) -> bool:
        """Outside by more than rounding explains."""
        return self.too_low or self.too_high


@dataclass(frozen=True)
class Verdict:
    """What arithmetic says about one row."""

    row: Row
    units: Mapping[str, Decimal]
    """Last digit of the longest number of each metric's column."""
    bounds: tuple[Bound, ...]
    repair: float
    """Smallest repair: least t such that some ranking is within t units of every number."""
    below_chance: tuple[str, ...] = ()
    """Metrics below what a random ranking reaches: a warning, not an impossibility."""
    struck: frozenset[str] = field(init=False)
    """Metrics to strike through: those of every broken bound, or all where none breaks alone."""

    def __post_init__(self) -> None:
        cells = {name for bound in self.bounds if bound.broken for name in bound.cells}
        chosen = (cells or set(self.row.values)) if self.impossible else set()
        object.__setattr__(self, "struck", frozenset(chosen))

    @property
    def impossible(self) -> bool:
        """No ranking gives these numbers, rounded."""
        return self.repair > ROUNDING + TOLERANCE

    @property
    def worst(self) -> Bound | None:
        """The bound missed by most, or met most narrowly."""
        return min(self.bounds, key=lambda bound: bound.margin, default=None)


def decimals(value: Decimal) -> int:
    """Digits after the point, trailing zeros included as far as they were kept."""
    exponent = value.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def units(rows: Sequence[Row]) -> dict[tuple[str, str], Decimal]:
    """Last digit of the longest number of each column, by (data set, metric).

    Parsers drop trailing zeros, so the longest number tells how a column was printed.
    """
    digits: dict[tuple[str, str], int] = {}
    for row in rows:
        for name, value in row.values.items():
            column = (row.dataset, name)
            digits[column] = max(digits.get(column, 0), decimals(value))
    return {
        column: max(Decimal(1).scaleb(-length), SMALLEST_UNIT) for column, length in digits.items()
    }


def bounds(values: Mapping[str, Decimal], unit: Mapping[str, Decimal]) -> tuple[Bound, ...]:
    """The protocol's bounds on one row, as far as its metrics allow: every pair of cutoffs."""
    have = {Metric.of(name) for name in values}
    cutoffs = sorted({metric.cutoff for metric in have})

    def bound(
        law: Law,
        value: dict[Metric, float],
        low: dict[Metric, float],
        high: dict[Metric, float] | None,
    ) -> Bound:
        """A bound between linear forms of the row's numbers."""

        def total(form: dict[Metric, float]) -> float:
            return math.fsum(weight * float(values[str(cell)]) for cell, weight in form.items())

        def slack(form: dict[Metric, float]) -> float:
            cells = value.keys() | form.keys()
            half = (
                abs(value.get(cell, 0.0) - form.get(cell, 0.0)) * float(unit[str(cell)]) / 2
                for cell in cells
            )
            return math.fsum(half) + SLACK

        cells = sorted(value.keys() | low.keys() | (high or {}).keys())
        terms = sorted(value.items(), key=lambda term: -term[1])
        return Bound(
            law=law,
            cells=tuple(str(cell) for cell in cells),
            expression=" - ".join(str(cell) for cell, _ in terms),
            value=total(value),
            low=total(low),
            high=None if high is None else total(high),
            slack_low=slack(low),
            slack_high=0.0 if high is None else slack(high),
        )

    found = []
    for K in cutoffs:
        hit, ndcg = Metric(K, "HR"), Metric(K, "NDCG")
        if {hit, ndcg} <= have:
            found.append(bound(Law.level, {ndcg: 1.0}, {hit: 1 / math.log2(K + 1)}, {hit: 1.0}))
    for K, L in combinations(cutoffs, 2):
        hits = {Metric(L, "HR"): 1.0, Metric(K, "HR"): -1.0}
        gain = {Metric(L, "NDCG"): 1.0, Metric(K, "NDCG"): -1.0}
        if hits.keys() <= have:
            found.append(bound(Law.hits, hits, {}, None))
        if gain.keys() <= have and hits.keys() <= have:
            low = {cell: sign / math.log2(L + 1) for cell, sign in hits.items()}
            high = {cell: sign / math.log2(K + 2) for cell, sign in hits.items()}
            found.append(bound(Law.gain, gain, low, high))
        elif gain.keys() <= have:
            found.append(bound(Law.rise, gain, {}, None))
    return tuple(found)


def gains(metrics: Sequence[Metric], ranks: int) -> Float[ndarray, "cell rank"]:
    """Contribution of a user at rank 1 .. `ranks` to each metric."""
    rank = np.arange(1, ranks + 1)
    discount = 1 / np.log2(rank + 1)
    rows = [
        np.where(rank <= metric.cutoff, 1.0 if metric.name == "HR" else discount, 0.0)
        for metric in metrics
    ]
    return np.asarray(rows, dtype=np.float64)


def smallest_repair(
    values: Mapping[str, Decimal],
    unit: Mapping[str, Decimal],
    candidates: int | None = CANDIDATES,
) -> float:
    """Least t for which some rank shares are within t units of every number (0 for no numbers).

    Minimise t subject to |sum_r gain_r p_r - value| <= t unit for each number, p >= 0, sum p = 1,
    by HiGHS. Ranks beyond the largest cutoff all contribute nothing, so that 100 ranks (or one more
    than the largest cutoff) stand for any longer ranking; `candidates=None` is one of any length.
    Shares are counted in units, which keeps the solver's tolerances far below one.
    """
    if not values:
        return 0.0
    from scipy.optimize import linprog  # noqa: PLC0415 - only a judgement needs the solver

    metrics = [Metric.of(name) for name in values]
    enough = max(CANDIDATES, 1 + max(metric.cutoff for metric in metrics))
    ranks = enough if candidates is None else min(candidates, enough)
    smallest = float(min(unit[name] for name in values))
    target = np.array([float(value) for value in values.values()]) / smallest
    width = np.array([[float(unit[name]) / smallest] for name in values])
    gain = gains(metrics, ranks)
    result = linprog(
        c=np.r_[np.zeros(ranks), 1.0],
        A_ub=np.block([[gain, -width], [-gain, -width]]),
        b_ub=np.r_[target, -target],
        A_eq=np.r_[np.ones(ranks), 0.0][None],
        b_eq=[1 / smallest],
        method="highs",
    )
    if (
        result.status != 0 or result.fun is None
    ):  # feasible and bounded for every finite row: only our mistake comes here
        raise RuntimeError(f"linear programme failed on {dict(values)}: {result.message}")
    return float(result.fun)


def judge(rows: Sequence[Row], candidates: int | None = CANDIDATES) -> list[Verdict]:
    """A verdict for each row of one table, in order.

    Args:
        rows: all rows of the table (a column's longest number sets its unit).
        candidates: items ranked a user, the positive among them; None: unknown or a whole
            catalogue, with no chance level to warn about.
    """
    unit = units(rows)
    verdicts = []
    for row in rows:
        own = {name: unit[row.dataset, name] for name in row.values}
        low = tuple(
            name
            for name, value in row.values.items()
            if candidates and name.startswith("HR@") and value * candidates < Metric.of(name).cutoff
        )
        repair = smallest_repair(row.values, own, candidates)
        verdicts.append(Verdict(row, own, bounds(row.values, own), repair, low))
    return verdicts


@dataclass(frozen=True)
class Sizes:
    """A row of a table of data sets: counts, and clicks and favors a user."""

    users: int
    items: int
    interactions: int
    avg_clicks: Decimal
    avg_favors: Decimal

    @property
    def summed(self) -> Decimal:
        """Interactions a user by its averages."""
        return self.avg_clicks + self.avg_favors

    @property
    def divided(self) -> float:
        """Interactions a user by its counts."""
        return self.interactions / self.users

    @property
    def adds_up(self) -> bool:
        """The two agree within the rounding of the averages."""
        half = math.fsum(
            10.0 ** -decimals(average) / 2 for average in (self.avg_clicks, self.avg_favors)
        )
        return abs(float(self.summed) - self.divided) <= half + SLACK
