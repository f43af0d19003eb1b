"""Random, MostPopular, LastClick, Markov, ItemKNN: the floor under every table.

They count and have no parameters. `record` is a user's part of the interactions given to `prepare`,
`h` is the history (after the protocol's `drop` and cut), `pop` the number of events of an item in
the records. All arithmetic is float64. `score` and `score_all` run the same sums in the same order,
so that they agree to the bit and no score depends on the other users of a batch.

Axes: batch = users, length = slots of a left-padded history, cand = candidate items, item_row =
items + 1 (row 0 is padding), event = interactions, row = some item rows, ascending.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.interface import (
    Batch,
    Catalogue,
    History,
    Interactions,
    Losses,
    ModelConfig,
    Recommender,
)

NO_PAIR = torch.iinfo(torch.int64).max


@dataclass
class ReferenceConfig(ModelConfig):
    """Nothing to set: the rows are the same in every table, and no weight is tuned."""


class Reference(Recommender):
    """A row that counts the records once; its state is the history's items."""

    Config: ClassVar[type[ModelConfig]] = ReferenceConfig
    trained: ClassVar[bool] = False
    popularity: Float[Tensor, " item_row"]

    def __init__(self, config: ModelConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        zeros = torch.zeros(catalogue.items + 1, dtype=torch.float64)
        self.register_buffer("popularity", zeros, persistent=False)

    def prepare(self, train: Interactions) -> None:
        """Count the events of each item, of either behaviour."""
        count = torch.bincount(train.item, minlength=self.catalogue.items + 1)
        self.popularity = count.to(self.device, torch.float64)

    def loss(self, batch: Batch) -> Losses:
        """Never called by the training loop (`trained` is False).

        Raises:
            TypeError: always.
        """
        del batch
        raise TypeError(f"{type(self).__name__} is a reference row: prepare() is all its training")

    def encode(self, history: History) -> Int[Tensor, "batch length"]:
        """The items of the history."""
        return history.items


class Random(Reference):
    """The same score for every item: every order is as likely, so ranks have their exact chance.

    1 + 99 candidates: HR@10 = 0.10, NDCG@10 = 0.0454 (protocol, Metrics).
    """

    def score(
        self, state: Int[Tensor, "batch length"], items: Int[Tensor, "batch cand"]
    ) -> Float[Tensor, "batch cand"]:
        """Zeros."""
        del state
        return torch.zeros(items.shape, dtype=torch.float64, device=items.device)


class MostPopular(Reference):
    """pop: how many events an item has in the records."""

    def score(
        self, state: Int[Tensor, "batch length"], items: Int[Tensor, "batch cand"]
    ) -> Float[Tensor, "batch cand"]:
        """Counts of the candidates."""
        del state
        return self.popularity[items]


class LastClick(Reference):
    """1 + last place in h (places from 0), 0 outside h; + 1e-6 pop: latest first, then popularity.

    It shows how much of a table is people who open, then favor (protocol, P2).
    """

    def score(
        self, state: Int[Tensor, "batch length"], items: Int[Tensor, "batch cand"]
    ) -> Float[Tensor, "batch cand"]:
        """Places by comparing each candidate with each slot."""
        same = items.unsqueeze(2) == state.unsqueeze(1)
        place = (same * self._places(state).unsqueeze(1)).amax(2)
        return place + 1e-6 * self.popularity[items]

    def score_all(self, state: Int[Tensor, "batch length"]) -> Float[Tensor, "batch item_row"]:
        """Places by writing each slot into its item's column."""
        place = self.popularity.new_zeros(state.shape[0], self.catalogue.items + 1)
        place.scatter_reduce_(1, state, self._places(state), "amax")
        return place + 1e-6 * self.popularity

    def _places(self, state: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length"]:
        """1 for a user's first event, 2 for the second, ...; 0 at padding."""
        real = state > 0
        return (real.cumsum(1) * real).to(torch.float64)


class Markov(Reference):
    """T[h_-1] + 0.6 T[h_-2] + 0.3 T[h_-3] + 1e-4 pop; T_ab = how often b follows a != b at once.

    T is kept as its sorted pairs: at most one an event, however many items there are.
    """

    DECAY: ClassVar[tuple[float, ...]] = (1.0, 0.6, 0.3)
    """Weight of the last event, the one before it, ..."""
    pair: Int[Tensor, " pair"]
    """first item * item_row + next item, ascending, each once; then one that no pair equals."""
    follows: Float[Tensor, " pair"]
    """How often this pair was seen; 0 for the last."""
    start: Int[Tensor, " item_row_plus_one"]
    """Pairs of first item a are start[a] : start[a + 1]."""

    def __init__(self, config: ModelConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        self.rows = catalogue.items + 1
        self.register_buffer("pair", torch.tensor([NO_PAIR]), persistent=False)
        self.register_buffer("follows", torch.zeros(1, dtype=torch.float64), persistent=False)
        start = torch.zeros(self.rows + 1, dtype=torch.int64)
        self.register_buffer("start", start, persistent=False)

    def prepare(self, train: Interactions) -> None:
        """Count neighbours of different items inside each record."""
        super().prepare(train)
        first, second = train.item[:-1], train.item[1:]
        counted = (train.user[:-1] == train.user[1:]) & (first != second)
        pair, count = torch.unique(
            (first * self.rows + second)[counted].to(self.device), return_counts=True
        )
        self.pair = torch.cat([pair, pair.new_tensor([NO_PAIR])])
        self.follows = torch.cat([count, count.new_zeros(1)]).to(torch.float64)
        edges = torch.arange(self.rows + 1, device=self.device) * self.rows
        self.start = torch.searchsorted(pair, edges)

    def score(
        self, state: Int[Tensor, "batch length"], items: Int[Tensor, "batch cand"]
    ) -> Float[Tensor, "batch cand"]:
        """Pairs (event, candidate) looked up among the sorted ones."""
        score = torch.zeros(items.shape, dtype=torch.float64, device=items.device)
        for last, weight in self._recent(state):
            wanted = last.unsqueeze(1) * self.rows + items
            place = torch.searchsorted(self.pair, wanted.contiguous())
            score = score + weight * torch.where(
                self.pair[place] == wanted, self.follows[place], 0.0
            )
        return score + 1e-4 * self.popularity[items]

    def score_all(self, state: Int[Tensor, "batch length"]) -> Float[Tensor, "batch item_row"]:
        """Every pair of the events, added at its second item."""
        score = self.popularity.new_zeros(state.shape[0], self.rows)
        for last, weight in self._recent(state):
            begin = self.start[last]
            owner, place = _expand(begin, self.start[last + 1] - begin)
            column = self.pair[place] % self.rows
            # (owner, column) occurs once, so this adds exactly one product to a score.
            score.index_put_((owner, column), weight * self.follows[place], accumulate=True)
        return score + 1e-4 * self.popularity

    def _recent(
        self, state: Int[Tensor, "batch length"]
    ) -> list[tuple[Int[Tensor, " batch"], float]]:
        """The last events, latest first, each with its weight; 0 (which no pair starts with) if none."""
        held = min(len(self.DECAY), state.shape[1])
        return [(state[:, -1 - back], self.DECAY[back]) for back in range(held)]


class ItemKNN(Reference):
    """sum over h of C_ab / sqrt((pop_a + 3)(pop_b + 3)), + 1e-7 pop_b.

    C_ab = sum over the records with both a and b of 1 / sqrt(their distinct items), C_aa = 0. With the
    binary matrix R [record, item], the sum over h is two sparse products: records weighted by the
    history, then items by the records; what an item of h gives itself (C_aa) is taken off again. So
    no items x items matrix is held.
    """

    record: Int[Tensor, " cell"]
    """User of each non-zero cell of R, in the order of `item`."""
    item: Int[Tensor, " cell"]
    """Item of each non-zero cell of R, ascending, users ascending inside an item."""
    start: Int[Tensor, " item_row_plus_one"]
    """Cells of item a are start[a] : start[a + 1]."""
    damped: Float[Tensor, " record"]
    """1 / sqrt(distinct items of a record)."""
    norm: Float[Tensor, " item_row"]
    """1 / sqrt(pop + 3)."""
    diagonal: Float[Tensor, " item_row"]
    """C_aa as the products give it."""

    def __init__(self, config: ModelConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        rows = catalogue.items + 1
        for name in ("record", "item"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("start", torch.zeros(rows + 1, dtype=torch.int64), persistent=False)
        for name, size in (("damped", catalogue.users), ("norm", rows), ("diagonal", rows)):
            zeros = torch.zeros(size, dtype=torch.float64)
            self.register_buffer(name, zeros, persistent=False)

    def prepare(self, train: Interactions) -> None:
        """R and its sums."""
        super().prepare(train)
        rows, users = self.catalogue.items + 1, self.catalogue.users
        cell = torch.unique((train.item * users + train.user).to(self.device))
        self.item, self.record = cell // users, cell % users
        self.start = torch.searchsorted(self.item, torch.arange(rows + 1, device=self.device))
        distinct = torch.bincount(self.record, minlength=users)
        self.damped = distinct.clamp(min=1).to(torch.float64).rsqrt()
        self.norm = (self.popularity + 3).rsqrt()
        self.diagonal = torch.zeros_like(self.norm).index_add_(
            0, self.item, self.damped[self.record]
        )

    def score(
        self, state: Int[Tensor, "batch length"], items: Int[Tensor, "batch cand"]
    ) -> Float[Tensor, "batch cand"]:
        """Sums at the candidates' rows."""
        # The history's own rows are needed to take C_aa off.
        rows = torch.unique(torch.cat([items.flatten(), state.flatten()]))
        return self._sums(state, rows).gather(1, torch.searchsorted(rows, items.contiguous()))

    def score_all(self, state: Int[Tensor, "batch length"]) -> Float[Tensor, "batch item_row"]:
        """Sums at every row."""
        return self._sums(state, torch.arange(self.catalogue.items + 1, device=self.device))

    def _sums(
        self, state: Int[Tensor, "batch length"], rows: Int[Tensor, " row"]
    ) -> Float[Tensor, "batch row"]:
        """Scores at some rows, all of the history's among them."""
        read, place = torch.unique(state, return_inverse=True)
        times = torch.zeros(state.shape[0], len(read), dtype=torch.float64, device=state.device)
        times.scatter_add_(1, place, torch.ones_like(state, dtype=torch.float64))
        # Padding is an item without cells: it weighs no record.
        weighed = self._cells(read).T @ (times * self.norm[read]).T
        sums = (self._cells(rows) @ (weighed * self.damped.unsqueeze(1))).T

        column = torch.searchsorted(rows, state.contiguous())
        own = times.gather(1, place) * self.norm[state] * self.diagonal[state]
        others = sums.gather(1, column) - own
        # Rounding of the difference must not pass for company: that would break exact ties.
        others = torch.where(others > 1e-12 * own, others, 0.0)
        sums = sums.scatter(1, column, others)
        return sums * self.norm[rows] + 1e-7 * self.popularity[rows]

    def _cells(self, rows: Int[Tensor, " row"]) -> Tensor:
        """Some rows of R's transpose, a sparse matrix [row, record] of ones."""
        begin = self.start[rows]
        owner, place = _expand(begin, self.start[rows + 1] - begin)
        return torch.sparse_coo_tensor(
            torch.stack([owner, self.record[place]]),
            torch.ones(len(place), dtype=torch.float64, device=place.device),
            (len(rows), self.catalogue.users),
            is_coalesced=True,
            check_invariants=False,
        )


def _expand(
    begin: Int[Tensor, " range"], size: Int[Tensor, " range"]
) -> tuple[Int[Tensor, " element"], Int[Tensor, " element"]]:
    """All elements of the ranges begin : begin + size: the range of each, and the element."""
    owner = torch.repeat_interleave(size)
    before = size.cumsum(0) - size
    inside = torch.arange(len(owner), device=size.device) - before[owner]
    return owner, begin[owner] + inside
