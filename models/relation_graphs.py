"""Relations between items and between users, read off training sequences: sparse graphs.

SSDRec builds them once, from every user's window. Counts and weights are those of the authors'
`graph_data/data_process0706.py` (github.com/zc-97/SSDRec, commit 299421e), which holds dense matrices
of users x users and items x items and loops over all pairs of users. Here every matrix is sparse and
every product is made some rows at a time; with `Rules.neighbours` and `Rules.most_users` None and the
padding counted the graphs are theirs.

Axes: user = rows of the windows, length = slots of a right-padded window, item_row = items + 1 (row 0
is padding), row and column = of any matrix, d = width of a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.precision import in_float32

Matrix = sparse.csr_array

ROWS = 128
"""Rows of a product that are made at once, before their best neighbours are picked."""


@dataclass(frozen=True)
class Rules:
    """What becomes an edge."""

    min_count: int
    """Items are related when one followed the other more often than this; for incompatible items the
    bridges are, in either order."""
    neighbours: int | None = 50
    """Heaviest edges kept in a row; None keeps all."""
    most_users: int | None = 1000
    """An item with more users than this makes no two of them similar; None skips no item."""
    rare_items: float = 0.8
    """Share of the items, the least frequent, that are incompatible with none."""
    idle_users: float = 0.9
    """Share of the users, the shortest windows, that are dissimilar to none."""
    count_padding: bool = False
    """Whether a user is tied to the padding item, as often as the window has empty slots."""


@dataclass(frozen=True)
class RelationGraphs:
    """The relations; all but `user_item` have rows that sum to 1, or are empty."""

    user_item: Matrix
    """How often an item stands in a user's window."""
    item_in: Matrix
    """Of an item: what came before it."""
    item_out: Matrix
    """Of an item: what came after it."""
    item_incompatible: Matrix
    """Frequent items that never share a window though they share companions."""
    user_similar: Matrix
    """Users with items in common, and each user itself."""
    user_dissimilar: Matrix
    """Active users without an item in common though they have similar users in common."""

    @property
    def edges(self) -> dict[str, int]:
        """How many edges each graph has."""
        return {field.name: int(getattr(self, field.name).nnz) for field in fields(self)}


def windows(
    user: Int[Tensor, " event"], item: Int[Tensor, " event"], users: int, length: int
) -> Int[Tensor, "user length"]:
    """Each user's last `length` events, right-padded with 0; events are sorted by user, then time."""
    end = torch.bincount(user, minlength=users).cumsum(0)
    number = torch.bincount(user, minlength=users).clamp(max=length)
    slot = torch.arange(length, device=user.device)
    place = (end - number).unsqueeze(1) + slot
    padded = functional.pad(item, (0, 1))
    return torch.where(slot < number.unsqueeze(1), padded[place.clamp(max=len(item))], 0)


def relation_graphs(
    sequences: Int[Tensor, "user length"],
    item_rows: int,
    rules: Rules,
    rare: Int[Tensor, " rare"] | None = None,
    idle: Int[Tensor, " idle"] | None = None,
) -> RelationGraphs:
    """Build all relations.

    Args:
        sequences: Right-padded windows, a row a user.
        item_rows: Items + 1.
        rules: Thresholds.
        rare: Items that are incompatible with none; None: the least frequent, ties by id.
        idle: Users that are dissimilar to none; None: those with the shortest windows, ties by id.
    """
    items, keep = sequences.cpu().numpy(), rules.neighbours
    length = (items > 0).sum(1)

    weight, count = _follows(items, length, item_rows)
    often = _where(count, count.data > rules.min_count)
    follows = weight.multiply(_ones(often)).tocsr()

    together = _off_diagonal((count + count.T).tocsr())
    bridges = _heaviest(_where(together, together.data > rules.min_count), keep)
    frequency = np.bincount(items[items > 0], minlength=item_rows)[1:]
    seldom = 1 + _least(frequency, rules.rare_items * (item_rows - 1))
    frequent = np.setdiff1d(np.arange(1, item_rows), seldom if rare is None else rare.numpy())
    incompatible = _strangers(bridges, frequent, lambda some: together[some], keep)

    user_item = _touches(items, length, item_rows, count_padding=False)
    shared = _Shared(user_item, length, rules.most_users)
    everybody = np.arange(len(items))
    similar = sparse.vstack(
        [_heaviest(shared.similarity(some), keep) for some in _blocks(everybody)], format="csr"
    )
    short = _least(length, rules.idle_users * (len(items) - 1))
    active = np.setdiff1d(everybody, short if idle is None else idle.numpy())
    dissimilar = _strangers(similar, active, shared.similarity, keep)

    return RelationGraphs(
        user_item=_touches(items, length, item_rows, rules.count_padding),
        item_in=_to_one(_heaviest(follows.T.tocsr(), keep)),
        item_out=_to_one(_heaviest(follows, keep)),
        item_incompatible=_to_one(incompatible),
        user_similar=_to_one((similar + sparse.eye_array(len(items))).tocsr()),
        user_dissimilar=_to_one(dissimilar),
    )


def _touches(items: Any, length: Any, item_rows: int, count_padding: bool) -> Matrix:
    """How often each item stands in each window, padding too if asked for (not of an empty window)."""
    user, slot = np.nonzero((items > 0) | (count_padding & (length[:, None] > 0)))
    ones = np.ones(len(user))
    return sparse.coo_array((ones, (user, items[user, slot])), (len(length), item_rows)).tocsr()


def _follows(items: Any, length: Any, item_rows: int) -> tuple[Matrix, Matrix]:
    """A and its counts: i before j at distance s in a window of n events adds (n - s) / n, and 1."""
    shape = (item_rows, item_rows)
    weight, count = sparse.csr_array(shape), sparse.csr_array(shape)
    for some in _blocks(np.arange(len(items))):
        before, after, gains = [], [], []
        for s in range(1, items.shape[1]):
            user = some[length[some] > s]
            slot = np.arange(items.shape[1] - s)
            row, column = np.nonzero(slot < (length[user] - s)[:, None])
            before.append(items[user[row], column])
            after.append(items[user[row], column + s])
            gains.append(1 - s / length[user[row]])
        place = (
            np.concatenate([*before, []]).astype(int),
            np.concatenate([*after, []]).astype(int),
        )
        gain = np.concatenate([*gains, []])
        weight = weight + sparse.coo_array((gain, place), shape).tocsr()
        count = count + sparse.coo_array((np.ones_like(gain), place), shape).tocsr()
    return weight, count


class _Shared:
    """Similarity of users: (items of u found in v + items of v found in u) / (n_u + n_v)."""

    def __init__(self, touched: Matrix, length: Any, most_users: int | None) -> None:
        """Leave out the items with too many users; the lengths n stay whole."""
        if most_users is not None:
            users = np.bincount(touched.indices, minlength=touched.shape[1])
            touched = _where(touched, users[touched.indices] <= most_users)
        self.touched, self.length = touched, length
        self.found = _ones(touched)

    def similarity(self, some: Any) -> Matrix:
        """Some users' rows, their own column empty."""
        shared = self.touched[some] @ self.found.T + self.found[some] @ self.touched.T
        shared = shared.tocsr()
        shared.data = shared.data / (self.length[some][_row(shared)] + self.length[shared.indices])
        return _off_diagonal(shared, some)


def _strangers(
    bridges: Matrix, chosen: Any, direct: Callable[[Any], Matrix], keep: int | None
) -> Matrix:
    """Chosen rows that are not directly related but share neighbours.

    Their weight is the sum over shared neighbours k of what k has for the one and for the other. A row
    k of `bridges` joins only the neighbours that it has kept, so there are at most rows x keep^2 paths.

    Args:
        bridges: Symmetric but for the entries that each row has not kept.
        chosen: Rows that may be ends of an edge.
        direct: Some rows of the direct relation; an entry of it rules the edge out.
        keep: Heaviest edges kept in a row.
    """
    ends = bridges[:, chosen]
    at_ends, near = _ones(ends), ends.T.tocsr()
    there, parts = _ones(near), []
    for place in _blocks(np.arange(len(chosen))):
        weight = (near[place] @ at_ends + there[place] @ ends).tocsr()
        related = _ones(direct(chosen[place])[:, chosen])
        weight = sparse.csr_array(weight - weight.multiply(related))
        weight.eliminate_zeros()
        parts.append(_heaviest(_off_diagonal(weight, place), keep))
    if not parts:
        return sparse.csr_array(bridges.shape)
    found = sparse.vstack(parts, format="coo")
    edge = (chosen[found.row], chosen[found.col])
    return sparse.coo_array((found.data, edge), bridges.shape).tocsr()


def _blocks(rows: Any) -> Iterator[Any]:
    """`ROWS` of these at a time."""
    for first in range(0, len(rows), ROWS):
        yield rows[first : first + ROWS]


def _row(matrix: Matrix) -> Any:
    """Row of each entry."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def _ones(matrix: Matrix) -> Matrix:
    """1 at every entry."""
    return sparse.csr_array(
        (np.ones_like(matrix.data), matrix.indices, matrix.indptr), matrix.shape
    )


def _where(matrix: Matrix, mask: Any) -> Matrix:
    """The entries where `mask` is true, order kept."""
    place = (matrix.indices[mask], np.pad(np.cumsum(mask), (1, 0))[matrix.indptr])
    return sparse.csr_array((matrix.data[mask], *place), matrix.shape)


def _off_diagonal(matrix: Matrix, rows: Any = None) -> Matrix:
    """Without the entries whose column is the row itself (row r stands for `rows[r]`)."""
    row = _row(matrix)
    return _where(matrix, matrix.indices != (row if rows is None else rows[row]))


def _heaviest(matrix: Matrix, keep: int | None) -> Matrix:
    """The `keep` heaviest entries of each row; of equals the first columns."""
    if keep is None or matrix.nnz == 0:
        return matrix
    row = _row(matrix)
    order = np.lexsort((matrix.indices, -matrix.data, row))
    place = np.arange(len(row)) - matrix.indptr[row]
    mask = np.zeros(len(row), dtype=bool)
    mask[order[place < keep]] = True
    return _where(matrix, mask)


def _least(count: Any, number: float) -> Any:
    """Places of the ceil(number) smallest counts; of equals the first."""
    return np.argsort(count, kind="stable")[: math.ceil(number)]


def _to_one(matrix: Matrix) -> Matrix:
    """Rows divided by their sums; empty rows stay empty."""
    row = _row(matrix)
    sums = np.bincount(row, matrix.data, matrix.shape[0])
    return sparse.csr_array((matrix.data / sums[row], matrix.indices, matrix.indptr), matrix.shape)


class Relation(nn.Module):
    """A constant sparse matrix M whose `forward` is the product M x, differentiable in x.

    Rows are weighted sums of bags, many times faster than torch's sparse product; the transpose is
    kept beside it for the gradient. Nothing of it is in `state_dict`: `fill` it from the records.
    """

    rows: Tensor
    column: Tensor
    value: Tensor
    back_rows: Tensor
    back_column: Tensor
    back_value: Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.shape = (rows, columns)
        for side, lines in (("", rows), ("back_", columns)):
            nothing = torch.zeros(0, dtype=torch.int32)
            starts = torch.zeros(lines + 1, dtype=torch.int32)
            self.register_buffer(f"{side}rows", starts, persistent=False)
            self.register_buffer(f"{side}column", nothing, persistent=False)
            self.register_buffer(f"{side}value", torch.zeros(0), persistent=False)

    def fill(self, matrix: Matrix) -> None:
        """Take these entries."""
        if matrix.shape != self.shape:
            raise ValueError(f"a matrix of {matrix.shape} is not one of {self.shape}")
        for side, one in (("", matrix), ("back_", matrix.T.tocsr())):
            device, dtype = self.value.device, self.value.dtype
            index = (torch.from_numpy(part.astype(np.int32)) for part in (one.indptr, one.indices))
            starts, column = (part.to(device) for part in index)
            setattr(self, f"{side}rows", starts)
            setattr(self, f"{side}column", column)
            setattr(self, f"{side}value", torch.from_numpy(one.data).to(device, dtype))

    def transposed(self) -> Relation:
        """M^T, sharing the entries."""
        other = Relation(*reversed(self.shape))
        for name in ("rows", "column", "value"):
            setattr(other, name, getattr(self, f"back_{name}"))
            setattr(other, f"back_{name}", getattr(self, name))
        return other

    def forward(self, table: Float[Tensor, "column d"]) -> Float[Tensor, "row d"]:
        """M x."""
        product: Tensor = _Product.apply(table, self)  # type: ignore[no-untyped-call]
        return product


class _Product(torch.autograd.Function):
    """M x forward, M^T g backward."""

    @staticmethod
    @in_float32
    def forward(ctx: Any, table: Tensor, relation: Relation) -> Tensor:
        """Bags of rows."""
        ctx.relation = relation
        return _bags(relation.rows, relation.column, relation.value, table)

    @staticmethod
    @once_differentiable
    @in_float32
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Bags of columns."""
        of = ctx.relation
        return _bags(of.back_rows, of.back_column, of.back_value, gradient.contiguous()), None


def _bags(starts: Tensor, column: Tensor, value: Tensor, table: Tensor) -> Tensor:
    """Weighted sums of table rows, one a bag."""
    return functional.embedding_bag(
        column, table, starts, mode="sum", per_sample_weights=value, include_last_offset=True
    )
