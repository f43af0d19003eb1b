"""MB-STR, Multi-Behavior Sequential Transformer (Yuan et al., SIGIR 2022, doi 10.1145/3477495.3532023).

Facts from the authors' code, github.com/yuanenming/mb-str at commit 6ead831; numbers in brackets are
its parts in order: [1] embedding, [2a] to [2d] block, [3] head, [4] loss and data, [5] scoring.

A masked-item transformer that reads both directions. Behaviours enter through attention, the
feed-forward networks and the head, order through a relative bias, never through the input.

Here: the mask token takes one slot, so L = `Catalogue.length` + 1 and all events of a history are
seen at scoring (in the authors' code it pushes one out). Padding is not computed at all: in the
authors' code its states attend uniformly to every slot, and nothing ever reads them; the parameters
that belong to padding (row 0 of every table) are kept and never get a gradient.

Axes: batch, length = slots of a left-padded history, place = slots of a left-padded window, event =
real places of a batch, those of behaviour 1 first, then those of 2 (time order inside a row), read =
the events that are predicted or go on, pair = (query behaviour, key behaviour), n_b^2, head, x and
y = d / heads, d = hidden width, item_row = items + 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.interface import (
    Batch,
    Behaviour,
    Catalogue,
    History,
    Interactions,
    Losses,
    ModelConfig,
    Samples,
)
from models.layers import DotProduct, Dropout, fixed_padding_cross_entropy

BLOCKED = -1e30
"""Added to the score of a pair with padding: it absorbs the score, so all such pairs are equal."""


@dataclass
class MBSTRConfig(ModelConfig):
    """The authors' configs of three data sets, where they agree."""

    hidden: int = 16
    """Width d."""
    weight_decay: float = 1e-6
    heads: int = 2
    blocks: int = 2
    expansion: int = 4
    """Hidden width of a feed-forward network, in units of d."""
    dropout: float = 0.2
    """Of the embedding, attention weights, both sub-layers and each block's output."""
    mask_probability: float = 0.2
    """Of each event of a window; 0.3 in the authors' largest data set."""
    last_window_probability: float = 0.8
    """With it a longer record gives its last L events, otherwise a uniformly drawn window of L."""
    shared_experts: int = 3
    specific_experts: int = 1
    """Experts of each behaviour alone."""
    buckets: int = 32
    """Of relative positions, half of them for keys after the query."""
    max_distance: int = 40
    """From here on all distances share a bucket."""

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "dropout": (0.1, 0.2),
        "mask_probability": (0.2, 0.3),
        "blocks": (1, 2),
    }


def relative_bucket(
    offset: Int[Tensor, "*shape"], buckets: int, max_distance: int
) -> Int[Tensor, "*shape"]:
    """[2b] Bucket of `offset` = key place minus query place, T5's bidirectional rule.

    The first half of the buckets is for keys at or before the query, the second for keys after it;
    in each half the first half counts single steps, the rest grow with the logarithm.
    """
    half = buckets // 2
    exact = half // 2
    distance = offset.abs()
    growth = (distance.clamp(min=1).double() / exact).log() / math.log(max_distance / exact)
    far = (exact + (growth * (half - exact)).floor().long()).clamp(max=half - 1)
    return half * (offset > 0) + torch.where(distance < exact, distance, far)


@dataclass(frozen=True)
class Read:
    """Some events of a batch, by behaviour, whose states are wanted."""

    event: Int[Tensor, " read"]
    """Their numbers among all events, ascending."""
    place: Int[Tensor, " read"]
    """Their places in the flattened windows: row x places + place."""
    counts: list[int]
    """How many belong to each behaviour 1..n_b."""
    slot: Int[Tensor, " read_head"]
    """Row of each (event, head) in attention's (head, batch, place, query behaviour) order."""


class Layout:
    """Where the events of a batch of windows stand, for attention and, packed, for all the rest."""

    def __init__(
        self,
        behaviours: Int[Tensor, "batch place"],
        bucket: Int[Tensor, "place place"],
        sizes: tuple[int, int, int],
    ) -> None:
        """Sort the events by behaviour.

        Args:
            behaviours: 1..n_b, and 0 at padding.
            bucket: Relative-position bucket of (query place, key place).
            sizes: n_b, heads, buckets.
        """
        self.behaviours = behaviours
        self.n_b, self.heads, self.buckets = sizes
        self.bucket = bucket
        self.rows, self.places = behaviours.shape
        flat = behaviours.flatten()
        order = torch.argsort(flat, stable=True)
        padding = len(flat) - int(behaviours.count_nonzero())
        self.place = order[padding:]
        self.behaviour = flat[self.place]
        head = torch.arange(self.heads, device=flat.device) * self.rows * self.places
        self.line = (self.place.unsqueeze(1) + head).flatten()
        """Row of each (event, head) in attention's (head, batch, place) order."""
        self.everything = self.read(torch.ones_like(self.place, dtype=torch.bool))

    def read(self, wanted: Bool[Tensor, " event"]) -> Read:
        """Some of the events."""
        event = wanted.nonzero().squeeze(1)
        behaviour = self.behaviour[event]
        counts: list[int] = torch.bincount(behaviour, minlength=self.n_b + 1)[1:].tolist()
        line = self.line.view(-1, self.heads)[event]
        slot = (line * self.n_b + behaviour.unsqueeze(1) - 1).flatten()
        return Read(event, self.place[event], counts, slot)

    def read_places(self, wanted: Bool[Tensor, "batch place"]) -> Read:
        """The events at some places (padding is never among them)."""
        return self.read(wanted.flatten()[self.place])

    def pairs(self) -> Int[Tensor, "batch place place"]:
        """[2a] c(i, j) = (b_i - 1) n_b + b_j where query i and key j are both real, else 0."""
        query, key = self.behaviours.unsqueeze(2), self.behaviours.unsqueeze(1)
        return ((query - 1) * self.n_b + key) * ((query > 0) & (key > 0))

    def bias_rows(self) -> Int[Tensor, " batch_place_place"]:
        """Row of each (query, key) in a table of (pair, bucket)."""
        return (self.pairs() * self.buckets + self.bucket).flatten()


class Attention(nn.Module):
    """[2b, 2c] Mutual attention: one bilinear form, one value map and one bias a behaviour pair.

        score_ij = q_i^T M1_c k_j / sqrt(d / heads) + bias_c(j - i),   out_i = sum_j p_ij v_j M2_c

    with c = c(i, j), M_c a softmax mixture of n_b basis matrices, and q, k, v from matrices of the
    place's own behaviour. No causal mask, no output projection, no bias in any map.

    The pair's matrix is applied to keys and values once for each query behaviour, before attention
    (in the authors' code to every pair of places and all n_b^2 + 1 kinds). Each event then has n_b
    keys side by side, and a query is zero but in its own behaviour's part, which picks the key.
    """

    def __init__(self, config: MBSTRConfig, n_b: int) -> None:
        super().__init__()
        d, heads = config.hidden, config.heads
        if d % heads:
            raise ValueError(f"hidden is {d}, which {heads} heads do not divide")
        self.n_b, self.heads, self.width = n_b, heads, d // heads
        kinds = n_b**2 + 1
        self.projection = nn.Parameter(0.02 * torch.randn(3, n_b + 1, d, heads, self.width))
        self.W1 = nn.Parameter(torch.randn(n_b, heads, self.width, self.width))
        self.W2 = nn.Parameter(torch.randn(n_b, heads, self.width, self.width))
        self.alpha1 = nn.Parameter(torch.randn(kinds, n_b, heads))
        self.alpha2 = nn.Parameter(torch.randn(kinds, n_b, heads))
        self.relative = nn.Parameter(torch.randn(kinds, config.buckets, heads))
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "event d"],
        layout: Layout,
        bias_rows: Int[Tensor, " batch_place_place"],
        read: Read,
    ) -> Float[Tensor, "read d"]:
        """New states of the events in `read`, made from all events."""
        d, wide = self.heads * self.width, self.n_b * self.width
        lines = self.heads * layout.rows * layout.places
        parts = torch.split(x, layout.everything.counts)
        projected = torch.cat([part @ w for part, w in zip(parts, self.maps(), strict=True)])
        query, key, value = torch.split(projected, [d, d * self.n_b, d * self.n_b], dim=1)

        own = layout.everything.slot
        Q = _scatter(own, query.reshape(-1, self.width), lines * self.n_b)
        Q = Q.view(-1, layout.places, wide)
        K = _scatter(layout.line, key.reshape(-1, wide), lines).view_as(Q)
        V = _scatter(layout.line, value.reshape(-1, wide), lines).view_as(Q)

        bias = self.bias(bias_rows).view(-1, layout.places, layout.places)
        score = torch.bmm(Q, K.transpose(1, 2)) + bias  # faster than baddbmm
        out = torch.bmm(self.dropout(score.softmax(dim=2)), V)
        return out.view(-1, self.width).index_select(0, read.slot).view(-1, d)

    def maps(self) -> Float[Tensor, "n_b d outputs"]:
        """For each behaviour of an event: x to its scaled query and its n_b keys and values."""
        query, key, value = self.projection[:, 1:].unbind(0)
        query = query * self.width**-0.5
        M1, M2 = self.pair_matrices(self.alpha1, self.W1), self.pair_matrices(self.alpha2, self.W2)
        keys = torch.einsum("bdhy,abhxy->bdhax", key, M1)
        values = torch.einsum("bdhx,abhxy->bdhay", value, M2)
        return torch.cat([part.flatten(2) for part in (query, keys, values)], dim=2)

    def pair_matrices(
        self, alpha: Float[Tensor, "kinds basis head"], basis: Float[Tensor, "basis head x x"]
    ) -> Float[Tensor, "n_b n_b head x x"]:
        """M_c = sum_e softmax_e(alpha[c]) basis[e] for (query behaviour, key behaviour) = c."""
        mixed = torch.einsum("ceh,ehxy->chxy", alpha[1:].softmax(dim=1), basis)
        return mixed.view(self.n_b, self.n_b, *mixed.shape[1:])

    def bias(
        self, rows: Int[Tensor, " batch_place_place"]
    ) -> Float[Tensor, "head batch_place_place"]:
        """Bias of each (query, key); BLOCKED where one of them is padding (kind 0)."""
        blocked = torch.full_like(self.relative[:1], BLOCKED)
        table = torch.cat([blocked, self.relative[1:]]).flatten(0, 1)
        return torch.stack([column.index_select(0, rows) for column in table.unbind(1)])


class FeedForward(nn.Module):
    """[2d] Linear, ReLU, Dropout, Linear; one network a behaviour, each event through its own."""

    def __init__(self, config: MBSTRConfig, n_b: int) -> None:
        super().__init__()
        d, inner = config.hidden, config.expansion * config.hidden
        self.inner = nn.ModuleList(nn.Linear(d, inner) for _ in range(n_b))
        self.outer = nn.ModuleList(nn.Linear(inner, d) for _ in range(n_b))
        for linear in (*self.inner, *self.outer):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "event d"], counts: list[int]) -> Float[Tensor, "event d"]:
        """Events by behaviour, `counts` of each."""
        networks = zip(torch.split(x, counts), self.inner, self.outer, strict=True)
        return torch.cat(
            [outer(self.dropout(inner(part).relu())) for part, inner, outer in networks]
        )


class Block(nn.Module):
    """[2] Post-norm: both norms stand behind a residual sum and are shared by all behaviours."""

    def __init__(self, config: MBSTRConfig, n_b: int) -> None:
        super().__init__()
        self.attention = Attention(config, n_b)
        self.attention_norm = nn.LayerNorm(config.hidden)
        self.feed_forward = FeedForward(config, n_b)
        self.feed_forward_norm = nn.LayerNorm(config.hidden)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "event d"],
        layout: Layout,
        bias_rows: Int[Tensor, " batch_place_place"],
        read: Read,
    ) -> Float[Tensor, "read d"]:
        """States of the events in `read`: the last block makes only those that the head reads."""
        attended = self.dropout(self.attention(x, layout, bias_rows, read))
        x = self.attention_norm(x.index_select(0, read.event) + attended)
        x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x, read.counts)))
        out: Tensor = self.dropout(x)
        return out


class Head(nn.Module):
    """[3] x + LN(mixture of experts); an expert is one linear map, the gate its behaviour's own."""

    def __init__(self, config: MBSTRConfig, n_b: int) -> None:
        super().__init__()
        d, shared, specific = config.hidden, config.shared_experts, config.specific_experts
        self.gates = nn.Parameter(torch.randn(n_b, d, shared + specific))
        self.shared = nn.Linear(d, shared * d)
        self.specific = nn.ModuleList(nn.Linear(d, specific * d) for _ in range(n_b))
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Float[Tensor, "read d"], counts: list[int]) -> Float[Tensor, "read d"]:
        """Events by behaviour, `counts` of each; shared experts first, as in the gates."""
        mixtures = []
        for part, gate, specific in zip(
            torch.split(x, counts), self.gates, self.specific, strict=True
        ):
            experts = torch.cat([self.shared(part), specific(part)], dim=1)
            shares = (part @ gate).softmax(dim=1).unsqueeze(2)
            mixtures.append((shares * experts.view(*shares.shape[:2], x.shape[1])).sum(1))
        out: Tensor = x + self.norm(torch.cat(mixtures))
        return out


@dataclass(frozen=True)
class Windows:
    """Training samples: one left-padded window of each user's record, some events masked."""

    ids: Int[Tensor, "batch place"]
    """Item, or the mask id."""
    behaviours: Int[Tensor, "batch place"]
    """Visible at masked places too."""
    labels: Int[Tensor, "batch place"]
    """The true item where masked, else 0."""


def keep_own_events(
    items: Int[Tensor, "batch place"],
    masked: Bool[Tensor, "batch place"],  # noqa: ARG001
) -> Bool[Tensor, "batch place"]:
    """Every event stays."""
    return items > 0


def drop_own_events(
    items: Int[Tensor, "batch place"], masked: Bool[Tensor, "batch place"]
) -> Bool[Tensor, "batch place"]:
    """The events that stay when a visible event must not name an item that is masked in its row."""
    same = items.unsqueeze(2) == items.unsqueeze(1)
    named = (same & masked.unsqueeze(1)).any(2)
    return (items > 0) & (masked | ~named)


class MBSTR(DotProduct):
    """Embedding, blocks, head; scores are dot products with the tied table, without a bias.

    Trained on whole records of users, so `prepare` keeps the training events; a batch only says
    which users. Under `Catalogue.drops_own_events` an event whose item is masked elsewhere in its
    window leaves the window, and the rest closes up, as it does in the histories that are scored.
    """

    Config = MBSTRConfig
    samples = Samples.window
    behaviours: ClassVar[int] = 2
    """n_b: click and favor."""

    bucket: Tensor
    train_item: Tensor
    train_behaviour: Tensor
    train_target: Tensor
    train_offsets: Tensor

    def __init__(self, config: MBSTRConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        self.n_b = self.behaviours
        self.length = catalogue.length + 1
        self.mask_id = catalogue.items + 1
        # One table: padding, items, mask, and n_b - 1 rows that the authors never use.
        self.items = nn.Embedding(catalogue.items + 1 + self.n_b, config.hidden, padding_idx=0)
        nn.init.normal_(self.items.weight[1:].detach(), std=0.02)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, self.n_b) for _ in range(config.blocks))
        self.head = Head(config, self.n_b)

        self.mask_probability = config.mask_probability
        self.last_window_probability = config.last_window_probability
        self.stays: Callable[[Tensor, Tensor], Tensor] = (
            drop_own_events if catalogue.drops_own_events else keep_own_events
        )
        self.sizes = (self.n_b, config.heads, config.buckets)
        place = torch.arange(self.length)
        bucket = relative_bucket(place - place.unsqueeze(1), config.buckets, config.max_distance)
        self.register_buffer("bucket", bucket, persistent=False)

    def prepare(self, train: Interactions) -> None:
        """Keep the training events; they are not part of the saved state."""
        kept = {
            "train_item": train.item,
            "train_behaviour": train.behaviour,
            "train_target": train.target,
            "train_offsets": train.offsets,
        }
        for name, events in kept.items():
            self.register_buffer(name, events.to(self.device), persistent=False)

    def loss(self, batch: Batch) -> Losses:
        """[4] Mean cross-entropy over masked events, all rows 0..items in the denominator."""
        windows = self.draw_windows(batch.history.user, batch.generator)
        return {"cross_entropy": self.masked_loss(windows)}

    def masked_loss(self, windows: Windows) -> Float[Tensor, ""]:
        """Of given samples; 0 when nothing at all is masked (a mean of nothing would be NaN)."""
        layout = self.layout(windows.behaviours)
        read = layout.read_places(windows.labels > 0)
        user = self.predict(windows.ids, layout, read)
        target = windows.labels.flatten()[read.place]
        return fixed_padding_cross_entropy(user, self.item_vectors(), target).sum() / max(
            len(target), 1
        )

    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """[5] The head's output at a mask of the target behaviour, appended to the history."""
        history = history.keep(history.real)
        latest = self.length - 1
        pad = functional.pad
        ids = pad(history.items[:, -latest:], (0, 1), value=self.mask_id)
        behaviours = pad(history.behaviours[:, -latest:], (0, 1), value=int(Behaviour.FAVOR))
        last = torch.zeros_like(ids, dtype=torch.bool)
        last[:, -1] = True
        layout = self.layout(behaviours)
        return self.predict(ids, layout, layout.read_places(last))

    def item_vectors(self) -> Float[Tensor, "item_row d"]:
        """The table without its mask row and the rows behind it."""
        return self.items.weight[: self.mask_id]

    def layout(self, behaviours: Int[Tensor, "batch place"]) -> Layout:
        """Where the events of these windows stand."""
        places = behaviours.shape[1]
        return Layout(behaviours, self.bucket[:places, :places], self.sizes)

    def predict(
        self, ids: Int[Tensor, "batch place"], layout: Layout, read: Read
    ) -> Float[Tensor, "read d"]:
        """[1] to [3] at the events in `read`."""
        x = self.embed(ids, layout)
        bias_rows = layout.bias_rows()
        for number, block in enumerate(self.blocks, start=1):
            wanted = read if number == len(self.blocks) else layout.everything
            x = block(x, layout, bias_rows, wanted)
        out: Tensor = self.head(x, read.counts)
        return out

    def embed(self, ids: Int[Tensor, "batch place"], layout: Layout) -> Float[Tensor, "event d"]:
        """[1] Rows of the table, and nothing added: no position, no behaviour, no scale, no norm."""
        rows = self.items.weight.index_select(0, ids.flatten()[layout.place])
        out: Tensor = self.dropout(rows)
        return out

    def draw_windows(self, user: Int[Tensor, " batch"], generator: torch.Generator) -> Windows:
        """[4] One window of each user's record, masked; at least one event where one is a target."""

        def uniform(*shape: int) -> Tensor:
            draw = torch.rand(*shape, generator=generator, device=generator.device)
            return draw.to(self.device)

        start, end = self.train_offsets[user], self.train_offsets[user + 1]
        longer = (end - start - self.length).clamp(min=0)
        first = torch.minimum((uniform(len(user)) * (longer + 1)).long(), longer)
        first = start + torch.where(
            uniform(len(user)) < self.last_window_probability, longer, first
        )
        end = torch.minimum(first + self.length, end)

        event = end.unsqueeze(1) - torch.arange(
            max(1, int((end - first).max())), 0, -1, device=self.device
        )
        real = event >= first.unsqueeze(1)
        event = event.clamp(min=0)
        items, behaviours = self.train_item[event] * real, self.train_behaviour[event] * real
        target = self.train_target[event] & real

        chance = torch.where(target, uniform(*event.shape), 2.0)
        lowest = chance.amin(1, keepdim=True)  # uniform among the targets: masked where none was
        masked = target & ((chance < self.mask_probability) | (chance == lowest))
        stays = self.stays(items, masked)

        order = torch.argsort(stays.to(torch.int8), dim=1, stable=True)
        order = order[:, -max(1, int(stays.sum(1).max())) :]
        masked, stays = masked.gather(1, order), stays.gather(1, order)
        items = items.gather(1, order) * stays
        return Windows(
            ids=torch.where(masked, self.mask_id, items),
            behaviours=behaviours.gather(1, order) * stays,
            labels=items * masked,
        )


def _scatter(
    row: Int[Tensor, " some"], x: Float[Tensor, "some width"], rows: int
) -> Float[Tensor, "rows width"]:
    """The lines of x in some (different) rows, zeros in the others."""
    return x.new_zeros(rows, x.shape[1]).index_copy_(0, row, x)
