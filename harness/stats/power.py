"""What a test could have found: the smallest true difference that it finds with a given chance.

An undecided claim says nothing until one knows this. V and df are those of the comparison (protocol,
Statistics), taken as true; T is then noncentral t with shift difference / sqrt V, and the difference is
found when T lies above t(1 - level, df).
"""

from __future__ import annotations

import math

from scipy import optimize, special

from harness.stats.variance import t_point

CHANCE = 0.8


def detectable(V: float, df: float, level: float, chance: float = CHANCE) -> float:
    """The true difference that a one-sided test at `level` finds with probability `chance`.

    0 where V is 0: any difference is found.
    """
    if V == 0:
        return 0.0
    critical = t_point(1 - level, df)

    def lacking(shift: float) -> float:
        """How much of the chance a true difference of `shift` sqrt V still lacks."""
        return chance - (1.0 - float(special.nctdtr(df, shift, critical)))

    high = critical + 2.0
    while lacking(high) > 0:
        high *= 2
    return math.sqrt(V) * float(optimize.brentq(lacking, 0.0, high))
