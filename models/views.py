"""What a trained model shows of its items for figures: means over the events of some items.

Axes: batch, slot = slots of a history, feature = features side by side, item = chosen items, d.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.interface import History

VIEWED = 2000
"""Items that `item_views` shows at most."""


def frequent_items(histories: Sequence[History], rows: int) -> Int[Tensor, " item"]:
    """The most frequent items of some histories, at most VIEWED; ties by id."""
    counts = torch.zeros(rows, dtype=torch.int64)
    for history in histories:
        counts += torch.bincount(history.items.flatten().cpu(), minlength=rows)
    counts[0] = 0  # padding
    order = counts.argsort(descending=True, stable=True)[:VIEWED]
    return order[counts[order] > 0]


class ItemMeans:
    """Means over the events of chosen items, by name, summed in float64."""

    def __init__(
        self,
        names: Sequence[str],
        items: Int[Tensor, " item"],
        rows: int,
        like: Float[Tensor, " d"],
    ) -> None:
        self.row = torch.full((rows,), -1, device=like.device)
        self.row[items] = torch.arange(len(items), device=like.device)
        zeros = like.new_zeros(len(items), len(like), dtype=torch.float64)
        self.sums = {name: zeros.clone() for name in names}
        self.counts = {name: zeros.new_zeros(len(items), 1) for name in names}

    def add(
        self,
        names: Sequence[str],
        items: Int[Tensor, "batch slot"],
        x: Float[Tensor, "feature batch slot d"],
    ) -> None:
        """Add one feature a name; slots of padding and of other items are passed over."""
        row = self.row[items].flatten()
        kept = row.ge(0).nonzero().squeeze(1)
        row, one = row[kept], x.new_ones(len(kept), 1, dtype=torch.float64)
        for name, feature in zip(names, x.flatten(1, 2), strict=True):
            self.sums[name].index_add_(0, row, feature[kept].double())
            self.counts[name].index_add_(0, row, one)

    def all(self) -> dict[str, Float[Tensor, "item d"]]:
        """The means; NaN for an item without such events."""
        return {name: (total / self.counts[name]).float() for name, total in self.sums.items()}
