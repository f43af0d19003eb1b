"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018).

Axes: batch = users or windows, length = slots of a left-padded history, read = the last slots whose
output is wanted, place = places of a window that have a target, negative = negatives of a place,
cand = candidate items, item_row = items + 1 (row 0 is padding), d = hidden width.

Symbols: E item table, P position table, m = 1 at events and 0 at padding, LN layer norm, S attention
logits, A attention weights, L = `Catalogue.length`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.interface import (
    Batch,
    Catalogue,
    History,
    Interactions,
    Losses,
    ModelConfig,
    Recommender,
    Samples,
)
from models.layers import READINGS, Behaviors, Dropout
from models.negatives import TrainingNegatives
from models.softmax import catalogue_cross_entropy

MASKED = -(2.0**32) + 1
"""Attention logit of a key that may not be seen: finite, so that a row without keys is no NaN."""


class Loss(Enum):
    """S1: one negative a place as in the authors' code; softmax over all items; several negatives.

    `ce` is another, stronger model ("SASRec (CE)" in a table): see Klenitskiy & Vasilev, RecSys 2023.
    """

    bce1 = "bce1"
    ce = "ce"
    bce_k = "bce_k"


class Norm(Enum):
    """S2: where the norms and residuals stand.

    `code`: queries alone are normalised, and the residual is the normalised value (authors' code).
    `pre`: x + g(LN(x)), as the paper writes it. `post`: LN(x + g(x)).
    """

    code = "code"
    pre = "pre"
    post = "post"


@dataclass
class SASRecConfig(ModelConfig):
    """Settings of SASRec; defaults from the authors' code, except the width (theirs: 50)."""

    blocks: int = 2
    """Attention blocks, at least 1."""
    heads: int = 1
    """Heads of each; they divide `hidden`."""
    dropout: float = 0.5
    """Of the input, the attention weights and both feed-forward layers (paper: 0.2 on MovieLens-1M)."""
    l2_emb: float = 0.0
    """Weight of half the squared entries of both tables, as stored."""
    loss: Loss = Loss.bce1
    """S1."""
    negatives: int = 100
    """Negatives a place under `bce_k`; our choice, the authors have one."""
    norm: Norm = Norm.code
    """S2."""
    behaviors: Behaviors = Behaviors.merged
    """S3: `merged` ignores the tags; `favor_only` reads the favors and still predicts every target."""

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "dropout": (0.2, 0.5),
        "heads": (1, 2),
        "blocks": (1, 2),
    }


@dataclass
class SASRecCEConfig(SASRecConfig):
    """The reference row "SASRec (CE)": the same model, its loss the softmax over all items (S1)."""

    loss: Loss = Loss.ce


Inner = Callable[
    [Float[Tensor, "batch read d"], Float[Tensor, "batch length d"]], Float[Tensor, "batch read d"]
]
"""A sub-layer without norm and residual: from queries and the whole sequence."""
Around = Callable[[nn.LayerNorm, Inner, Tensor, int], Tensor]
"""Norm and residual around a sub-layer, of the last so many slots."""


def around_as_in_code(
    norm: nn.LayerNorm, inner: Inner, x: Float[Tensor, "batch length d"], read: int
) -> Float[Tensor, "batch read d"]:
    """LN(x) + g(LN(x), x): the sequence reaches g un-normalised, x itself is not in the residual."""
    query: Tensor = norm(x[:, -read:])
    return query + inner(query, x)


def around_pre(
    norm: nn.LayerNorm, inner: Inner, x: Float[Tensor, "batch length d"], read: int
) -> Float[Tensor, "batch read d"]:
    """The paper's x + g(LN(x), LN(x))."""
    normed = norm(x)
    return x[:, -read:] + inner(normed[:, -read:], normed)


def around_post(
    norm: nn.LayerNorm, inner: Inner, x: Float[Tensor, "batch length d"], read: int
) -> Float[Tensor, "batch read d"]:
    """LN(x + g(x, x))."""
    query = x[:, -read:]
    normed: Tensor = norm(query + inner(query, x))
    return normed


AROUND: dict[Norm, Around] = {
    Norm.code: around_as_in_code,
    Norm.pre: around_pre,
    Norm.post: around_post,
}


class Attention(nn.Module):
    """A V with A = Dropout(softmax(Q K^T / sqrt(d / heads))); no output projection."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (hidden // heads) ** -0.5
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        query: Float[Tensor, "batch read d"],
        memory: Float[Tensor, "batch length d"],
        blocked: Bool[Tensor, "batch read length"],
    ) -> Float[Tensor, "batch read d"]:
        """What each query gathers from the memory.

        Args:
            query: The slots that ask.
            memory: The whole sequence.
            blocked: True where a query may not see a slot: padding, or later than itself.
        """

        def split(x: Float[Tensor, "batch slot d"]) -> Float[Tensor, "batch head slot width"]:
            return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

        q, k, v = split(self.query(query)), split(self.key(memory)), split(self.value(memory))
        logits = (q @ k.mT).mul_(self.scale).masked_fill_(blocked.unsqueeze(1), MASKED)
        gathered: Tensor = self.dropout(logits.softmax(-1)) @ v
        return gathered.transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    """Dropout(W_2 Dropout(relu(W_1 x + b_1)) + b_2), both of width d."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden, hidden)
        self.outer = nn.Linear(hidden, hidden)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch read d"]) -> Float[Tensor, "batch read d"]:
        """Slot by slot."""
        out: Tensor = self.dropout(self.outer(self.dropout(self.inner(x).relu_())))
        return out


class Block(nn.Module):
    """One block: attention, then feed-forward, each with its norm and residual."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.around = AROUND[config.norm]
        self.attention_norm = nn.LayerNorm(config.hidden, eps=1e-8)
        self.attention = Attention(config.hidden, config.heads, config.dropout)
        self.feed_forward_norm = nn.LayerNorm(config.hidden, eps=1e-8)
        self.feed_forward = FeedForward(config.hidden, config.dropout)

    def after_attention(
        self,
        x: Float[Tensor, "batch length d"],
        blocked: Bool[Tensor, "batch length length"],
        read: int,
    ) -> Float[Tensor, "batch read d"]:
        """The last `read` slots after the attention sub-layer."""
        blocked = blocked[:, -read:]
        return self.around(
            self.attention_norm,
            lambda query, memory: self.attention(query, memory, blocked),
            x,
            read,
        )

    def after_feed_forward(self, a: Float[Tensor, "batch read d"]) -> Float[Tensor, "batch read d"]:
        """The same slots after the feed-forward sub-layer, padding not yet wiped."""
        return self.around(
            self.feed_forward_norm, lambda query, _: self.feed_forward(query), a, a.shape[1]
        )

    def forward(
        self,
        x: Float[Tensor, "batch length d"],
        blocked: Bool[Tensor, "batch length length"],
        real: Float[Tensor, "batch length 1"],
        read: int,
    ) -> Float[Tensor, "batch read d"]:
        """The last `read` slots after the block, zero at padding."""
        return self.after_feed_forward(self.after_attention(x, blocked, read)) * real[:, -read:]


class PlaceLoss(nn.Module, ABC):
    """S1: what a place with a target costs."""

    def prepare(self, train: Interactions) -> None:
        """What the draws need to know."""

    @abstractmethod
    def forward(
        self,
        query: Float[Tensor, "place d"],
        table: Float[Tensor, "item_row d"],
        target: Int[Tensor, " place"],
        user: Int[Tensor, " place"],
        generator: torch.Generator,
    ) -> Float[Tensor, " place"]:
        """One number a place."""


class BinaryLoss(PlaceLoss):
    """-log sigmoid(s_p) - sum over the negatives of log(1 - sigmoid(s_j))."""

    def __init__(self, negatives: int, catalogue: Catalogue) -> None:
        super().__init__()
        self.count = negatives
        self.negatives = TrainingNegatives(catalogue)

    def prepare(self, train: Interactions) -> None:
        """Note what each user touched."""
        self.negatives.prepare(train)

    def forward(
        self,
        query: Float[Tensor, "place d"],
        table: Float[Tensor, "item_row d"],
        target: Int[Tensor, " place"],
        user: Int[Tensor, " place"],
        generator: torch.Generator,
    ) -> Float[Tensor, " place"]:
        """Fresh negatives at each call."""
        negatives = self.negatives(user, self.count, generator)
        items = torch.cat([target.unsqueeze(1), negatives], 1)
        logits = (functional.embedding(items, table) @ query.unsqueeze(2)).squeeze(2)
        return -functional.logsigmoid(logits[:, 0]) - functional.logsigmoid(-logits[:, 1:]).sum(1)


class SoftmaxLoss(PlaceLoss):
    """Minus the log-softmax of the target among all items ("SASRec (CE)")."""

    def forward(
        self,
        query: Float[Tensor, "place d"],
        table: Float[Tensor, "item_row d"],
        target: Int[Tensor, " place"],
        user: Int[Tensor, " place"],  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> Float[Tensor, " place"]:
        """Exact, without draws; row 0 is in no denominator."""
        return catalogue_cross_entropy(query, table, None, target)


def place_loss(config: SASRecConfig, catalogue: Catalogue) -> PlaceLoss:
    """The part of S1."""
    if config.loss is Loss.ce:
        return SoftmaxLoss()
    return BinaryLoss(1 if config.loss is Loss.bce1 else config.negatives, catalogue)


class SASRec(Recommender):
    """Self-attention over the latest items, trained at every place of a window.

    Paper: Wang-Cheng Kang and Julian McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018,
    doi 10.1109/ICDM.2018.00035. Authors' code: github.com/kang205/SASRec, commit e373896, whose choices
    are the defaults where it disagrees with the paper (the paper's residual is x, the code's LN(x)).

    x = Dropout(sqrt(d) E[ids] + P) m, then the blocks, then y = LN(x); score(i) = y[last] . E[i].

    Differences from the authors' code:
      - The loss counts a place as often as the events it stands for (`Batch.weights`); with one event
        a place it is theirs. They add 1e-24 inside the logarithms, here is logsigmoid.
      - Batches come from the harness: each user's window once an epoch, not users with replacement.
      - Their "query mask" wipes rows that the padding mask wipes anyway, and is left out.

    Two well-known re-implementations are other models: github.com/pmixer/SASRec.pytorch has an output
    projection in the attention and no key-padding mask, RecBole's SASRec is an encoder like BERT's.

    Raises:
        ValueError: `hidden` is no multiple of `heads`, or there is no block.
    """

    Config: ClassVar[type[ModelConfig]] = SASRecConfig
    samples: ClassVar[Samples] = Samples.window
    config: SASRecConfig

    def __init__(self, config: SASRecConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        if config.heads < 1 or config.hidden % config.heads:
            raise ValueError(f"hidden {config.hidden} is no multiple of heads {config.heads}")
        if config.blocks < 1:
            raise ValueError(f"blocks is {config.blocks}; at least 1 is needed")
        self.item_table = nn.Parameter(torch.empty(catalogue.items + 1, config.hidden))
        self.position_table = nn.Parameter(torch.empty(catalogue.length, config.hidden))
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.last_norm = nn.LayerNorm(config.hidden, eps=1e-8)
        self.reading = READINGS[config.behaviors]()
        self.place_loss = place_loss(config, catalogue)
        self.penalty = TablePenalty(config.l2_emb) if config.l2_emb else no_penalty
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def prepare(self, train: Interactions) -> None:
        """Note what each user touched: no negative may be among it."""
        self.place_loss.prepare(train)

    def inputs(
        self, items: Int[Tensor, "batch length"], real: Float[Tensor, "batch length 1"]
    ) -> Float[Tensor, "batch length d"]:
        """Dropout(sqrt(d) E[ids] + P) m; the last slot always has the last position."""
        scaled = functional.embedding(items, self.item_table) * math.sqrt(self.config.hidden)
        dropped: Tensor = self.dropout(scaled + self.position_table[-items.shape[1] :])
        return dropped * real

    def states(self, history: History, read: int) -> Float[Tensor, "batch read d"]:
        """The last `read` slots after all blocks, before the last norm."""
        length = history.items.shape[1]
        real = history.real.to(self.item_table.dtype).unsqueeze(2)
        blocked = blocked_keys(history.real)
        x = self.inputs(history.items, real)
        for block in self.blocks[:-1]:
            x = block(x, blocked, real, length)
        y: Tensor = self.blocks[-1](x, blocked, real, read)
        return y

    def loss(self, batch: Batch) -> Losses:
        """Mean over target events of the place loss, and the tables' penalty.

        The penalty counts row 0 of the item table, which is stored but read as zeros.
        """
        history = self.reading.history(batch.history)
        width = history.items.shape[1]
        slots = self.reading.slots(batch.history, width)
        row, place = ((batch.targets > 0) & (slots >= 0)).nonzero(as_tuple=True)
        slot = slots[row, place]
        read = (
            1 if bool((slot == width - 1).all()) else width
        )  # one target a row: a batch of prefixes
        query = self.last_norm(self.states(history, read)[row, slot - (width - read)])
        target, user = batch.targets[row, place], history.user[row]
        costs = self.place_loss(query, self.item_table, target, user, batch.generator)
        weights = batch.weights[row, place].to(costs.dtype)
        mean = (weights * costs).sum() / weights.sum().clamp(min=1)
        return {"next_item": mean, **self.penalty(self.item_table, self.position_table)}

    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """The vector y at the last slot; the norm's bias for a user without history."""
        history = self.reading.history(history)
        history = history.padded(min(history.items.shape[1], self.catalogue.length))
        y: Tensor = self.last_norm(self.states(history, 1).squeeze(1))
        return y

    def score(
        self, state: Float[Tensor, "batch d"], items: Int[Tensor, "batch cand"]
    ) -> Float[Tensor, "batch cand"]:
        """The product y . E[i]: tied table, no bias, no factor sqrt(d); padding scores 0."""
        scores = functional.embedding(items, self.item_table) @ state.unsqueeze(2)
        return scores.squeeze(2) * (items > 0)

    def score_all(self, state: Float[Tensor, "batch d"]) -> Float[Tensor, "batch item_row"]:
        """The same for every item, as one matrix product."""
        scores = state @ self.item_table.T
        scores[:, 0] = 0
        return scores

    def optimiser(self) -> torch.optim.Optimizer:
        """Adam with the authors' betas 0.9, 0.98."""
        return torch.optim.Adam(
            self.parameters(),
            lr=self.config.learning_rate,
            betas=(0.9, 0.98),
            eps=1e-8,
            weight_decay=self.config.weight_decay,
            fused=True,
        )


def blocked_keys(real: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch length length"]:
    """True where the query (second axis) may not see the key (third): padding, or a later slot."""
    length = real.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=real.device).triu(1)
    return later | ~real.unsqueeze(1)


@dataclass(frozen=True)
class TablePenalty:
    """l2_emb / 2 (|E|^2 + |P|^2), over the tables as stored."""

    weight: float

    def __call__(self, *tables: Tensor) -> Losses:
        """One term."""
        squares = torch.stack([table.square().sum() for table in tables]).sum()
        return {"l2_emb": self.weight / 2 * squares}


def no_penalty(*_: Tensor) -> Losses:
    """No term: the tables' gradients stay as sparse as the batch."""
    return {}
