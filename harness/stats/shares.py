"""Where the noise of a score and of a printed mean comes from: users, runs, user x run, candidates.

Axes: user = test users (any selection of users and runs); a = how many of the drawn negatives score
above the positive, t = how many tie with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import special

from harness.stats.variance import Moments

DRAWN = 99
"""Negatives a user."""
MOST_TERMS = 2**21
"""Terms of the sums held at once."""


@dataclass(frozen=True)
class Parts:
    """Three parts of one variance; as shares they sum to 1 (or are all 0)."""

    users: float
    runs: float
    user_run: float

    def shares(self) -> Parts:
        """The parts divided by their sum."""
        total = (self.users + self.runs + self.user_run) or 1.0
        return Parts(self.users / total, self.runs / total, self.user_run / total)


@dataclass(frozen=True)
class Shares:
    """Parts of the variance of one score, and their shares in a score and in the printed mean."""

    parts: Parts
    score: Parts
    mean: Parts


def shares(method: Moments) -> Shares | None:
    """Users max(0, w - e/S), runs max(0, v - e/N), user x run e; None with one run.

    Of the printed mean: these over N, S, NS.
    """
    S, N = method.runs, method.users
    if S == 1:
        return None
    parts = Parts(max(0.0, method.w - method.e / S), max(0.0, method.v - method.e / N), method.e)
    of_mean = Parts(parts.users / N, parts.runs / S, parts.user_run / (N * S))
    return Shares(parts, parts.shares(), of_mean.shares())


@dataclass(frozen=True, eq=False)
class Drawn:
    """Mean and variance of each user's metric over draws of the 99 candidates."""

    mean: Float[ndarray, " user"]
    variance: Float[ndarray, " user"]

    @property
    def mean_variance(self) -> float:
        """The metric's variance by candidates: a mean over users and runs."""
        return float(self.variance.mean())

    def sd_of_mean(self, users: int) -> float:
        """Standard deviation of one run's mean over redraws of every user's candidates."""
        return math.sqrt(self.mean_variance / users)


def drawn(
    metric: Callable[[ndarray, ndarray], ndarray],
    untouched: Int[ndarray, " user"],
    above_full: Int[ndarray, " user"],
    tied_full: Int[ndarray, " user"],
) -> Drawn:
    """Exact moments of a metric over uniform draws of 99 of a user's untouched items.

    above ~ hypergeom(untouched, above_full, 99); tied ~ hypergeom(untouched - above_full, tied_full,
    99 - above). Pass `ravel()`ed runs x users for a mean over both.
    Raises ValueError where fewer than 99 items are untouched or the counts exceed them.
    """
    if (untouched < DRAWN).any() or (above_full + tied_full > untouched).any():
        raise ValueError("99 negatives are drawn from the untouched items, which hold the counts")
    value = _table(metric)
    triples, place = np.unique(
        np.stack([untouched, above_full, tied_full]), axis=1, return_inverse=True
    )
    logs = special.gammaln(np.arange(int(untouched.max(initial=0)) + 1) + 1.0)
    tied = triples[2] > 0
    first, second = np.zeros(triples.shape[1]), np.zeros(triples.shape[1])
    for some, most in ((~tied, 1), (tied, DRAWN + 1)):
        rows = np.flatnonzero(some)
        step = max(1, MOST_TERMS // (len(value) * most))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            chance = _chances(triples[:, part], len(value), most, logs)
            first[part] = np.einsum("uat,at->u", chance, value[:, :most])
            second[part] = np.einsum("uat,at->u", chance, value[:, :most] ** 2)
    variance = np.maximum(second - first**2, 0.0)
    place = place.reshape(-1)
    return Drawn(first[place], variance[place])


def _table(metric: Callable[[ndarray, ndarray], ndarray]) -> Float[ndarray, "a t"]:
    """The metric at every (above, tied), down to the last row that is not all 0."""
    a, t = np.meshgrid(np.arange(DRAWN + 1), np.arange(DRAWN + 1), indexing="ij")
    value = np.where(a + t <= DRAWN, metric(a, t), 0.0)
    rows = np.flatnonzero(value.any(axis=1))
    return value[: rows[-1] + 1 if len(rows) else 1]


def _chances(
    triples: Int[ndarray, "three user"], most_a: int, most_t: int, logs: Float[ndarray, " upto"]
) -> Float[ndarray, "user a t"]:
    """Chance of every (above, tied), by log factorials `logs`."""
    untouched, above, tied = (row[:, None, None] for row in triples)
    a = np.arange(most_a)[None, :, None]
    t = np.arange(most_t)[None, None, :]
    rest = untouched - above
    first, first_possible = _log_hypergeometric(untouched, above, DRAWN, a, logs)
    second, second_possible = _log_hypergeometric(rest, tied, DRAWN - a, t, logs)
    return np.where(first_possible & second_possible, np.exp(first + second), 0.0)


def _log_hypergeometric(
    total: ndarray, marked: ndarray, draws: ndarray | int, hits: ndarray, logs: ndarray
) -> tuple[ndarray, ndarray]:
    """Log chance of `hits` marked ones among `draws` of `total`, and where that is possible."""

    def choose(n: ndarray, k: ndarray) -> ndarray:
        n, k = np.maximum(n, 0), np.maximum(k, 0)
        log: ndarray = logs[n] - logs[np.minimum(k, n)] - logs[np.maximum(n - k, 0)]
        return log

    draws = np.asarray(draws)
    misses = draws - hits
    possible = (hits <= marked) & (misses >= 0) & (misses <= total - marked) & (draws <= total)
    log = choose(marked, hits) + choose(total - marked, misses) - choose(total, draws)
    return log, possible
