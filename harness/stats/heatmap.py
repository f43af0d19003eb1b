"""Heatmaps: is the surface flat, which cells may be its peak (protocol, Statistics, heatmap).

K cells of S runs on the same N users. Names as in the protocol: c = variance of the K means; v, e
averaged over cells; r = cell x user mean square of the seed averages; D = variance of a cell mean.
Axes: cell, user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import special

from harness.stats.marks import clearly_apart
from harness.stats.order import Judgement
from harness.stats.variance import LEVEL, ROUNDING, Moments


@dataclass(frozen=True)
class Plateau:
    """The test of a flat surface, and the cells that may be its peak."""

    means: tuple[float, ...]
    c: float
    v: float
    e: float | None
    """None with one run a cell, like r."""
    r: float | None
    D: float
    df: float
    F: float
    """c / D; infinite when D = 0 and the means differ."""
    F_critical: float
    flat: bool
    """"Flat" stands; it falls when F > F_critical."""
    plateau: tuple[int, ...]
    """Places of the cells that may be the peak."""

    def peak_at(self, cell: int) -> Judgement:
        """The claim "peak at this cell": alone in the plateau, outside it, or neither."""
        if cell not in self.plateau:
            return Judgement.CONTRADICTED
        return Judgement.SUPPORTED if len(self.plateau) == 1 else Judgement.UNDECIDED


def heatmap(cells: Sequence[Moments]) -> Plateau:
    """Judge a heatmap with two runs or more a cell.

    Raises ValueError for fewer than two cells, one run a cell, or unequal runs or users.
    """
    runs, users, count = cells[0].runs, cells[0].users, len(cells)
    if count < 2 or runs < 2 or any((cell.runs, cell.users) != (runs, users) for cell in cells):
        raise ValueError(
            "a heatmap has two cells or more, of two runs or more, all the same runs and users"
        )
    means = np.array([cell.mean for cell in cells])
    v = float(np.mean([cell.v for cell in cells]))
    e = float(np.mean([cell.e for cell in cells]))
    averages = np.stack([cell.user_means for cell in cells])
    averages -= means[:, None]
    averages -= averages.mean(axis=0)
    r = float(np.square(averages).sum()) / ((count - 1) * (users - 1))
    B, A = v / runs, r / users
    D = B + max(0.0, A - e / (users * runs))
    bottom = B**2 / (count * (runs - 1)) + A**2 / ((count - 1) * (users - 1))
    df = D**2 / bottom if D else users - 1.0
    return _judge(means, v, e, r, D, df)


def heatmap_one_run(means: Float[ndarray, " cell"], reference: Moments) -> Plateau:
    """Judge a heatmap with one run a cell by the run variance of its reference setting's n runs.

    Raises ValueError for fewer than two cells, or for a reference with one run.
    """
    if reference.runs < 2:
        raise ValueError("one run a cell needs a reference setting with two runs or more")
    return _judge(means, reference.v, None, None, reference.v, reference.runs - 1.0)


def _judge(
    means: Float[ndarray, " cell"], v: float, e: float | None, r: float | None, D: float, df: float
) -> Plateau:
    count = len(means)
    if count < 2:
        raise ValueError("a heatmap has two cells or more")
    c = float(means.var(ddof=1))
    c = c if c > ROUNDING**2 else 0.0  # equal means, but for rounding
    F = c / D if D else (float("inf") if c else 0.0)
    critical = float(special.fdtri(count - 1, df, 1 - LEVEL))
    top = means.max()
    plateau = tuple(
        i for i, mean in enumerate(means) if not clearly_apart(float(top - mean), 2 * D, df, count)
    )
    return Plateau(tuple(means.tolist()), c, v, e, r, D, df, F, critical, critical >= F, plateau)
