"""How far apart means lie that are all equal: the range of n standard normal draws.

Readers compare a table's highest with its lowest number; that range grows with the number of rows
though nothing differs (protocol, Statistics, heatmap: 25 equal cells spread 3.9 standard deviations
of a cell mean, 95 %: 5.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from harness.stats.variance import LEVEL

EDGE = 9.0
"""Standard deviations beyond which a normal density counts as 0."""
KNOWN = 1e6
"""Degrees of freedom from which on a standard deviation counts as known."""


@dataclass(frozen=True)
class EqualSpread:
    """The range of equal means, in standard deviations of one of them."""

    expected: float
    high: float
    """95 % of ranges are below."""


def equal_spread(count: int, df: float = math.inf) -> EqualSpread:
    """The range of `count` equal means: the expected one by quadrature, then Tukey's studentised range.

    Args:
        count: Means.
        df: Degrees of freedom of the standard deviation that the range is divided by; infinite where
            it is known.

    Raises ValueError for fewer than two means.
    """
    if count < 2:
        raise ValueError("a range needs two means or more")
    z = np.linspace(-EDGE, EDGE, 4001)
    below = special.ndtr(z)
    expected = np.trapezoid(1 - below**count - (1 - below) ** count, z)
    high = stats.studentized_range.ppf(1 - LEVEL, count, min(df, KNOWN))
    return EqualSpread(float(expected), float(high))
