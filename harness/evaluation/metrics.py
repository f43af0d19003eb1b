"""Every metric as a function of two counts a test user, exact in expectation over tie orders.

`above` = candidates scoring strictly above the positive, `tied` = other candidates scoring exactly
as it (protocol, Metrics). The positive's rank is then equally likely to be each of
above + 1 .. above + tied + 1. Axes: any shape, the same for both counts (run, user; or user).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray


def hit_rate(
    above: Int[ndarray, "*shape"], tied: Int[ndarray, "*shape"], k: int
) -> Float[ndarray, "*shape"]:
    """HR@k: the share of tie orders in which the positive is among the first k, in [0, 1].

    Raises ValueError for counts that are no counts.
    """
    _check(above, tied)
    found: ndarray = np.clip(k - above, 0, tied + 1) / (tied + 1)
    return found


def ndcg(
    above: Int[ndarray, "*shape"], tied: Int[ndarray, "*shape"], k: int
) -> Float[ndarray, "*shape"]:
    """NDCG@k with one positive: the mean over tie orders of 1[rank <= k] / log2(rank + 1).

    Raises ValueError for counts that are no counts.
    """
    _check(above, tied)
    gain = np.append(1 / np.log2(np.arange(2, k + 2)), 0.0)  # by rank - 1; 0 from rank k + 1 on
    total = np.append(0.0, np.cumsum(gain[:k]))  # total[r]: gains of the ranks 1 .. r
    first = np.minimum(above, k)
    last = np.minimum(above + tied + 1, k)
    values: ndarray = (total[last] - total[first]) / (tied + 1)
    # without a tie the gain itself, not a difference of two sums: exact to the last digit
    return np.where(tied == 0, gain[first], values)


def _check(above: ndarray, tied: ndarray) -> None:
    """Raise ValueError unless both are non-negative integers (NaN and inf are refused with them)."""
    for name, counts in (("above", above), ("tied", tied)):
        if counts.dtype.kind not in "iu" or (counts.size and counts.min() < 0):
            raise ValueError(f"'{name}' counts candidates: integers of 0 or more")


@dataclass(frozen=True)
class Metric:
    """One row of METRICS; call it with (above, tied)."""

    label: str
    """As the paper prints it."""
    function: Callable[[ndarray, ndarray, int], ndarray]
    k: int

    def __call__(
        self, above: Int[ndarray, "*shape"], tied: Int[ndarray, "*shape"]
    ) -> Float[ndarray, "*shape"]:
        """The metric of every user, in expectation over tie orders."""
        return self.function(above, tied, self.k)

    def ends(
        self, above: Int[ndarray, "*shape"], tied: Int[ndarray, "*shape"]
    ) -> tuple[Float[ndarray, "*shape"], Float[ndarray, "*shape"]]:
        """The tie ledger: (optimistic, pessimistic), the positive first or last among its ties."""
        none = np.zeros_like(tied)
        return self(above, none), self(above + tied, none)


METRICS: dict[str, Metric] = {
    metric.label: metric
    for metric in (
        Metric("HR@10", hit_rate, 10),
        Metric("NDCG@10", ndcg, 10),
        Metric("HR@20", hit_rate, 20),
        Metric("NDCG@20", ndcg, 20),
    )
}
"""One row a metric, in the paper's order. A new one is a function of (above, tied, k) and a row here."""


def degenerate(
    above: Int[ndarray, " user"], tied: Int[ndarray, " user"], width: float = 0.01
) -> bool:
    """Whether a run is to be marked "degenerate scores": its HR@10 bracket is wider than `width`.

    The bracket is the mean at the optimistic end minus the mean at the pessimistic end.
    """
    optimistic, pessimistic = METRICS["HR@10"].ends(above, tied)
    return bool((optimistic - pessimistic).mean() > width)
