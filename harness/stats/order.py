"""Orders of methods and claims about them: tau with its bounds, flips, one Holm family of claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations

import numpy as np
from scipy import stats

from harness.stats.marks import holm
from harness.stats.variance import LEVEL, Column, Comparison, Power


@dataclass(frozen=True)
class Order:
    """Kendall's tau between our order and the published one, over the methods of both."""

    tau: float | None
    """tau-b; None when one side is a single tie."""
    low: float | None
    """(agree - disagree -+ open) / sqrt(pairs (pairs - tied)); None with one run, like high."""
    high: float | None
    agree: int
    disagree: int
    open: int
    """Pairs that our V-test does not order (p >= 0.05); with one run, all of them."""
    tied: int
    """Pairs tied in the published, in none of the three."""
    pairs: int
    power: Power


def order(column: Column, published: Mapping[str, float]) -> Order:
    """Our order of a column against the published means; only methods that have both count."""
    names = [name for name in column.methods if name in published]
    agree = disagree = open_pairs = tied = pairs = 0
    for a, b in combinations(names, 2):
        pairs += 1
        theirs = published[a] - published[b]
        ours = column.compare(a, b)
        if theirs == 0:
            tied += 1
        elif ours.p is None or ours.p >= LEVEL:
            open_pairs += 1
        elif (ours.difference > 0) == (theirs > 0):
            agree += 1
        else:
            disagree += 1
    low = high = None
    power = Power.of(min((column.methods[name].runs for name in names), default=1))
    if power.tests and pairs > tied:
        scale = math.sqrt(pairs * (pairs - tied))
        low = (agree - disagree - open_pairs) / scale
        high = (agree - disagree + open_pairs) / scale
    means = [column.methods[name].mean for name in names]
    tau = kendall(means, [published[name] for name in names])
    return Order(tau, low, high, agree, disagree, open_pairs, tied, pairs, power)


def kendall(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Kendall's tau-b (scipy) of two lists of means, ours rounded to 12 digits; None where it has no value."""
    if len(ours) < 2:
        return None
    tau = float(stats.kendalltau(np.round(ours, 12), theirs).statistic)
    return None if math.isnan(tau) else tau


@dataclass(frozen=True)
class Flips:
    """Whether metrics among sampled candidates and over all items order the methods alike."""

    tau: float | None
    flipped: tuple[tuple[str, str], ...]
    """(a, b): a leads among the sampled candidates, b over all items."""
    pairs: int


def flips(sampled: Mapping[str, float], full: Mapping[str, float]) -> Flips:
    """Compare the order by sampled means with the order by full-catalogue means (by method)."""
    names = [name for name in sampled if name in full]
    ours = dict(zip(names, np.round([sampled[name] for name in names], 12), strict=True))
    whole = dict(zip(names, np.round([full[name] for name in names], 12), strict=True))
    flipped = []
    for a, b in combinations(names, 2):
        if (ours[a] - ours[b]) * (whole[a] - whole[b]) < 0:
            flipped.append((a, b) if ours[a] > ours[b] else (b, a))
    tau = kendall(list(ours.values()), list(whole.values()))
    return Flips(tau, tuple(flipped), math.comb(len(names), 2))


class Judgement(Enum):
    """What our runs say of a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Claim:
    """A claim's two entries in the Holm family, and the judgement."""

    support_p: float | None
    """Largest one-sided p of its parts; None with one run, like the others."""
    reverse_p: float | None
    """Smallest 1 - p of its parts, times the parts, at most 1."""
    support_holm: float | None
    reverse_holm: float | None
    judgement: Judgement
    parts: int
    power: Power


def claims(parts: Mapping[str, Sequence[Comparison]]) -> dict[str, Claim]:
    """Judge claims together: one Holm family, two entries a claim.

    Args:
        parts: By claim, what it says: each comparison's a is claimed to be better than its b
            ("best on 8 columns" has 128 parts).

    A claim with one-run parts has no p, is not in the family and stays undecided; with two-run
    parts it has its p but no judgement either.
    """
    support: dict[str, float] = {}
    reverse: dict[str, float] = {}
    for name, comparisons in parts.items():
        p = [part.p_greater for part in comparisons if part.p_greater is not None]
        if p and len(p) == len(comparisons):
            support[name] = max(p)
            reverse[name] = min(1.0, min(1 - value for value in p) * len(p))
    corrected = holm([*support.values(), *reverse.values()])
    support_holm = dict(zip(support, corrected[: len(support)], strict=True))
    reverse_holm = dict(zip(reverse, corrected[len(support) :], strict=True))
    return {
        name: _claim(
            comparisons,
            support.get(name),
            reverse.get(name),
            support_holm.get(name),
            reverse_holm.get(name),
        )
        for name, comparisons in parts.items()
    }


def _claim(
    comparisons: Sequence[Comparison],
    support_p: float | None,
    reverse_p: float | None,
    support_holm: float | None,
    reverse_holm: float | None,
) -> Claim:
    order_of_powers = list(Power)
    power = min((part.power for part in comparisons), key=order_of_powers.index, default=Power.ONE)
    judgement = Judgement.UNDECIDED
    if power.marks and support_holm is not None and reverse_holm is not None:
        if support_holm < LEVEL:
            judgement = Judgement.SUPPORTED
        elif reverse_holm < LEVEL:
            judgement = Judgement.CONTRADICTED
    return Claim(
        support_p,
        reverse_p,
        support_holm,
        reverse_holm,
        judgement,
        len(comparisons),
        power,
    )
