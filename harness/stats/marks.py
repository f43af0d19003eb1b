"""Marks in a column: the dagger on the best, M3BSR against each of the others, the best set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.stats.variance import LEVEL, ROUNDING, Column, Comparison, Power, t_point


@dataclass(frozen=True)
class Dagger:
    """Whether the best method beats every other."""

    best: str
    largest_p: float | None
    """Of the best against every other; None with one run."""
    dagger: bool
    """p < 0.05 against EVERY other; no correction is due. Never with fewer than 3 runs."""
    power: Power


def dagger(column: Column) -> Dagger:
    """The dagger of a column: the best's largest p, two-sided."""
    best = column.best
    p = [column.compare(best, other).p for other in column.methods if other != best]
    known = [value for value in p if value is not None]
    largest = max(known) if known and len(known) == len(p) else None
    earned = largest is not None and largest < LEVEL and column.power.marks
    return Dagger(best, largest, earned, column.power)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's corrected p values, in the order given: what statsmodels' multipletests returns.

    The i-th smallest of m times m - i + 1, never below an earlier one, at most 1. Not by that
    function, which collects garbage at every call: half a second a column once torch is loaded.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in corrected]


@dataclass(frozen=True)
class Against:
    """One method named in advance against one other."""

    comparison: Comparison
    p_holm: float | None
    """None with one run."""
    mark: bool
    """p_holm < 0.05, in either direction (see comparison.difference); never below 3 runs."""


@dataclass(frozen=True)
class Family:
    """One method named in advance against each of the others, Holm over the family."""

    method: str
    against: dict[str, Against]
    comparisons: int
    """How many p values Holm corrected for."""
    power: Power


def family(column: Column, method: str = "M3BSR") -> Family:
    """Mark (2): `method` against each of the others of its column.

    A pair with one run in it has no p and is not counted. Raises KeyError for an unknown method.
    """
    if method not in column.methods:
        raise KeyError(method)
    pairs = {other: column.compare(method, other) for other in column.methods if other != method}
    tested = {other: pair.p for other, pair in pairs.items() if pair.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    against = {
        other: Against(
            pair,
            corrected.get(other),
            mark=pair.power.marks and corrected[other] < LEVEL,
        )
        for other, pair in pairs.items()
    }
    return Family(method, against, len(tested), column.power)


@dataclass(frozen=True)
class BestSet:
    """The methods that may be the best; holds the true best in 95 % of tables."""

    methods: tuple[str, ...] | None
    """In the column's order; None with fewer than 3 runs."""
    power: Power


def best_set(column: Column) -> BestSet:
    """Method i leaves when for some j (mean_j - mean_i) / sqrt V_ij > t(1 - 0.05/(M-1), df_ij).

    With V_ij = 0: when the difference is positive.
    """
    if not column.power.marks:
        return BestSet(None, column.power)
    count = len(column.methods)
    stays = dict.fromkeys(column.methods, True)
    for (a, b), pair in column.pairs.items():
        if clearly_apart(pair.difference, pair.V, pair.df, count):
            stays[b if pair.difference > 0 else a] = False
    return BestSet(tuple(name for name, in_set in stays.items() if in_set), column.power)


def clearly_apart(difference: float, V: float, df: float, count: int) -> bool:
    """Whether the lower of two among `count` means leaves the best set."""
    if V == 0:
        return abs(difference) > ROUNDING
    return bool(abs(difference) / math.sqrt(V) > t_point(1 - LEVEL / (count - 1), df))
