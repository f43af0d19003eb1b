"""How far apart means lie that are all equal: the range of n standard normal draws.

Readers compare a table's highest with its lowest number; that range grows with the number of rows
though nothing differs (protocol, Statistics, heatmap: 25 equal cells spread 3.9 standard deviations
of a cell mean, 95 %: 5.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import optimize, special

from harness.stats.variance import LEVEL

EDGE = 9.0
"""Standard deviations beyond which a normal density counts as 0."""


@dataclass(frozen=True)
class EqualSpread:
    """The range of equal means, in standard deviations of one of them."""

    expected: float
    high: float
    """95 % of ranges are below."""


@cache
def equal_spread(count: int) -> EqualSpread:
    """The range of `count` independent standard normal draws, by quadrature.

    Raises ValueError for fewer than two.
    """
    if count < 2:
        raise ValueError("a range needs two means or more")
    z = np.linspace(-EDGE, EDGE, 4001)
    below = special.ndtr(z)
    expected = np.trapezoid(1 - below**count - (1 - below) ** count, z)

    def share(width: float) -> float:
        """P(range <= width): the lowest at z, the others within `width` above it."""
        inside = special.ndtr(z + width) - below
        return float(np.trapezoid(count * _density(z) * inside ** (count - 1), z))

    high = optimize.brentq(lambda width: share(width) - (1 - LEVEL), 0.1, 2 * EDGE)
    return EqualSpread(float(expected), float(high))


def _density(z: Float[ndarray, " point"]) -> Float[ndarray, " point"]:
    return np.asarray(np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi))
