"""LightGCN's propagation over a bipartite graph of users and items.

Axes: user_row = users, item_row = items + 1 (row 0 is padding, never an end of an edge), edge = pairs of
a user and an item, in the order handed in, d = width of the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from models.precision import in_float32


def distinct_pairs(
    user: Int[Tensor, " event"], item: Int[Tensor, " event"], item_rows: int
) -> tuple[Int[Tensor, " edge"], Int[Tensor, " edge"]]:
    """Each pair of a user and an item once, users ascending, items ascending inside a user."""
    keys = torch.unique(user * item_rows + item)
    return keys // item_rows, keys % item_rows


@dataclass(frozen=True)
class Rows:
    """A sparse matrix by rows, without its values: which entries stand in each row.

    Entries are the edges, sorted by row; `edge` says which one each is.
    """

    starts: Int[Tensor, " rows_plus_one"]
    column: Int[Tensor, " edge"]
    edge: Int[Tensor, " edge"]

    @classmethod
    def of(cls, row: Int[Tensor, " edge"], column: Int[Tensor, " edge"], rows: int) -> Rows:
        """Sort the edges by row."""
        edge = torch.argsort(row, stable=True)
        starts = functional.pad(torch.bincount(row, minlength=rows).cumsum(0), (1, 0))
        return cls(starts, column[edge], edge)


class Bipartite:
    """The edges between users and items, sorted both ways once; any number of graphs share them.

    A pair that is handed in twice is two edges (see `distinct_pairs`).

    Raises:
        ValueError: A user or an item that has no row, or the padding item.
    """

    def __init__(
        self, user: Int[Tensor, " edge"], item: Int[Tensor, " edge"], users: int, item_rows: int
    ) -> None:
        for name, ends, first, rows in (("user", user, 0, users), ("item", item, 1, item_rows)):
            if ends.numel() and not first <= int(ends.min()) <= int(ends.max()) < rows:
                raise ValueError(f"{name}s {int(ends.min())} to {int(ends.max())} of the edges "
                                 f"are not all rows from {first} to {rows - 1}")  # fmt: skip
        self.user, self.item = user, item
        self.users, self.item_rows = users, item_rows
        self.of_users: Rows = Rows.of(user, item, users)
        self.of_items: Rows = Rows.of(item, user, item_rows)

    def normalised(self, weights: Float[Tensor, " edge"] | None = None) -> Graph:
        """D^-1/2 A D^-1/2 without self loops; a node without edges has a row of zeros.

        Args:
            weights: Entries of A, not negative, in the order of the edges; a zero leaves the edge out (and
                out of the degrees, so a kept subset is a graph of its own). None: all 1.
        """
        if weights is None:
            weights = torch.ones(len(self.user), device=self.user.device)
        scale = torch.ones_like(weights)
        for ends, rows in ((self.user, self.users), (self.item, self.item_rows)):
            degree = weights.new_zeros(rows).index_add_(0, ends, weights)
            scale *= torch.where(degree > 0, degree.rsqrt(), 0.0)[ends]
        return Graph(self, weights * scale)


class Graph:
    """A weighting of the edges: the symmetric matrix [[0, B], [B^T, 0]], users first."""

    def __init__(self, edges: Bipartite, values: Float[Tensor, " edge"]) -> None:
        self.edges, self.values = edges, values
        self._by_user = values[edges.of_users.edge]
        self._by_item = values[edges.of_items.edge]

    def times(self, factors: Float[Tensor, " edge"]) -> Graph:
        """The same graph with each edge times a factor, NOT normalised again (edge dropout, say)."""
        return Graph(self.edges, self.values * factors)

    def to_users(self, items: Float[Tensor, "item_row d"]) -> Float[Tensor, "user_row d"]:
        """B items: what each user gathers."""
        gathered: Tensor = _Gather.apply(items, self, False)  # type: ignore[no-untyped-call]
        return gathered

    def to_items(self, users: Float[Tensor, "user_row d"]) -> Float[Tensor, "item_row d"]:
        """B^T users: what each item gathers."""
        gathered: Tensor = _Gather.apply(users, self, True)  # type: ignore[no-untyped-call]
        return gathered

    def gather(self, table: Float[Tensor, "row d"], into_items: bool) -> Float[Tensor, "other d"]:
        """B^T table (into the items) or B table, outside autograd.

        A weighted sum of bags is many times faster than a product with torch's sparse matrices.
        """
        rows = self.edges.of_items if into_items else self.edges.of_users
        values = self._by_item if into_items else self._by_user
        return functional.embedding_bag(
            rows.column, table, rows.starts, mode="sum",
            per_sample_weights=values.to(table.dtype), include_last_offset=True,
        )  # fmt: skip


class _Gather(torch.autograd.Function):
    """A product with B or B^T whose gradient is a product with the other: any order of derivative.

    The graph is constant; no gradient reaches its values.
    """

    @staticmethod
    @in_float32
    def forward(ctx: Any, table: Tensor, graph: Graph, into_items: bool) -> Tensor:
        """One product."""
        ctx.graph, ctx.into_items = graph, into_items
        return graph.gather(table.detach().contiguous(), into_items)

    @staticmethod
    @in_float32
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The transposed product, itself differentiable."""
        back = _Gather.apply(gradient, ctx.graph, not ctx.into_items)  # type: ignore[no-untyped-call]
        return back, None, None


def light_gcn(
    users: Float[Tensor, "user_row d"],
    items: Float[Tensor, "item_row d"],
    graph: Graph,
    layers: int,
) -> tuple[Float[Tensor, "user_row d"], Float[Tensor, "item_row d"]]:
    """Mean of levels 0 to `layers` of E_k = A E_(k-1): no weights, no self loops, no activation.

    He et al., "LightGCN", SIGIR 2020, Eq. 3 and 4 with the uniform mean. Differentiable in both tables
    to any order; the tables may be non-leaf tensors (look-ahead steps). A node without edges keeps its
    level 0 over `layers` + 1; so does row 0 of the items.

    Args:
        users: Level 0 of the users.
        items: Level 0 of the items.
        graph: A.
        layers: K, at least 0; 0 is matrix factorisation.
    """
    user, item = users, items
    user_sum, item_sum = users, items
    for _ in range(layers):
        user, item = graph.to_users(item), graph.to_items(user)
        user_sum, item_sum = user_sum + user, item_sum + item
    return user_sum / (layers + 1), item_sum / (layers + 1)
