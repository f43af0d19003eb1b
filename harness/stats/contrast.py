"""A weighted sum of methods' means, in one world or several, by the protocol's variance.

sum_k c_k mean_k: a gain (c = 1, -1), whether a gain grows with a knob (c of a straight line times 1,
-1), or one world's mean minus another's. As in `variance`: runs are not paired, users are. A user of
several worlds counts once: with n_k users in world k and m = seed-averaged scores,
z_u = sum of c_k (m_ku - mean_k) / n_k over the worlds that u is in; N = users of any world;
A = N/(N-1) sum z_u^2; B = sum c_k^2 v_k/S_k; C = sum c_k^2 e_k/(n_k S_k); V = max(A + B - C, A, B);
df = V^2 / (A^2/(N-1) + sum c_k^4 v_k^2/(S_k^2 (S_k - 1))). For two methods of one world with c = 1, -1
this is `compare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from harness.stats.variance import (
    ROUNDING,
    Comparison,
    Moments,
    Power,
    tested,
)


@dataclass(frozen=True, eq=False)
class Term:
    """One mean of the sum."""

    weight: float
    method: Moments
    users: Int[ndarray, " user"]
    """Who the users of `method` are, ascending: the same number is the same person in every term."""


def contrast(terms: Sequence[Term]) -> Comparison:
    """The weighted sum of the terms' means with its interval and p (None with one run in any term).

    Raises ValueError where a term's users and its scores differ in number.
    """
    for term in terms:
        if len(term.users) != term.method.users:
            raise ValueError(f"{len(term.users)} users with scores of {term.method.users}")
    everyone = np.unique(np.concatenate([term.users for term in terms]))
    z = np.zeros(len(everyone))
    for term in terms:
        off = term.weight * (term.method.user_means - term.method.mean) / term.method.users
        np.add.at(z, np.searchsorted(everyone, term.users), off)
    users = len(everyone)
    A = float(np.square(z).sum()) * users / (users - 1)
    A = A if A * users > ROUNDING**2 else 0.0
    power = Power.of(min(term.method.runs for term in terms))
    total = sum(term.weight * term.method.mean for term in terms)
    if not power.tests:
        return tested(total, A * users, (A, 0.0, 0.0), (A, users - 1.0), power, None)
    spreads = [(t.weight**2 * t.method.v / t.method.runs, t.method.runs - 1) for t in terms]
    B = sum(spread for spread, _ in spreads)
    C = sum(t.weight**2 * t.method.e / (t.method.users * t.method.runs) for t in terms)
    V = max(A + B - C, A, B)
    runs = sum(spread**2 / free for spread, free in spreads)
    df = V**2 / (A**2 / (users - 1) + runs) if V > 0 else users - 1.0
    welch = B**2 / runs if runs > 0 else users - 1.0
    return tested(total, A * users, (A, B, C), (V, df), power, (users - 1.0, welch))


def line_weights(x: Sequence[float]) -> Float[ndarray, " point"]:
    """Weights c with sum c_k y_k = rise of the least-squares line through (x, y) from least to greatest x.

    Raises ValueError unless there are two different x.
    """
    points = np.asarray(x, dtype=np.float64)
    off = points - points.mean()
    if not len(points) or np.ptp(points) == 0:
        raise ValueError("a line needs two different points")
    return np.asarray(off / np.square(off).sum() * np.ptp(points))
