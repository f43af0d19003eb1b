"""BERT4Rec: a bidirectional transformer trained by a Cloze (Sun et al., CIKM 2019).

Facts from the authors' code, github.com/FeiSun/BERT4Rec at commit 615eaf2: the network is modeling.py
and run.py, the samples gen_data_fin.py and vocab.py, the updates optimization.py.

Axes: batch = users or samples, length = slots of a left-padded window, read = slots of a row whose
states are wanted, place = masked slots of all rows, cand = candidate items, token = rows of the table
(padding 0, items 1..I, [MASK] = I + 1, two rows that the authors never use), item_row = items + 1,
d = hidden width.

Symbols: E item table, P position table, LN layer norm, L = `Catalogue.length`, V = I + 4, n_w =
targets of a window, rho = masked share of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

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
from models.layers import READINGS, Behaviors, DotProduct, Dropout
from models.softmax import catalogue_cross_entropy

PADDED = -10000.0
"""Added to the attention logit of a padded key (modeling.py)."""
BETAS, EPSILON, CLIP = (0.9, 0.999), 1e-6, 5.0
"""Of the authors' Adam, and the norm that their gradients are clipped to."""


class Masking(Enum):
    """B1: a window has a fixed number of masks, made once, as in the authors' files; or fresh ones."""

    static = "static"
    dynamic = "dynamic"


class Align(Enum):
    """B4: position 0 is the oldest event that is kept (the authors'), or L - 1 is the newest."""

    left = "left"
    right = "right"


class Optimiser(Enum):
    """B5: the authors' optimiser and schedule, or Adam at a constant rate."""

    code = "code"
    adam = "adam"


class Softmax(Enum):
    """B6: over all V tokens, or an estimate of it from uniform draws."""

    exact = "exact"
    sampled = "sampled"


@dataclass
class BERT4RecConfig(ModelConfig):
    """Settings of BERT4Rec; defaults from the authors' Beauty, whose histories are short too."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    """L2 of `adam` alone; the authors' optimiser has `decay`."""
    layers: int = 2
    heads: int = 0
    """0: one for each 32 of `hidden`, as in the authors' files."""
    inner: int = 0
    """Width inside a feed-forward network; 0: four times `hidden` (one of the authors' files: twice)."""
    hidden_dropout: float = 0.5
    """Of the embedding and of both sub-layers (ML-1M 0.2, Steam 0.1)."""
    attention_dropout: float = 0.2
    """Of the attention weights (Steam 0.1)."""
    rho: float = 0.6
    """Share of a window's targets that is masked, at least one (ML-1M 0.2, Steam 0.4)."""
    window_step: float = 0.1
    """Distance of a long sequence's windows, in units of L (ML-1M and Steam 0.5)."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights, cut at twice; called so in the authors' files."""
    masking: Masking = Masking.static
    """B1."""
    copies: int = 10
    """Fixed masks of a window under `static`."""
    last_share: float = 1 / 11
    """B2: share of samples in which the last target alone is masked (the authors: one beside ten)."""
    samples_a_row: int = 11
    """Samples drawn, and updates made, for a row of a batch: the authors' files have 11 a window."""
    behaviors: Behaviors = Behaviors.merged
    """B3: `merged` ignores the tags; `favor_only` reads and masks favors alone."""
    align: Align = Align.left
    """B4."""
    optimiser: Optimiser = Optimiser.code
    """B5."""
    decay: float = 0.01
    """Decoupled weight decay of `code`; not of biases and norms."""
    warm_up: int = 100
    """Steps in which the rate of `code` rises from 0."""
    steps: int = 400_000
    """Steps after which the rate of `code` has fallen to 0 and training ends (Steam: 800,000)."""
    softmax: Softmax = Softmax.exact
    """B6."""
    negatives: int = 1000
    """Tokens drawn for a batch under `sampled`; our choice."""

    GRID: ClassVar[dict[str, tuple[float, ...]]] = {
        "rho": (0.2, 0.4, 0.6),
        "hidden_dropout": (0.2, 0.5),
    }


# The network (modeling.py) ----------------------------------------------------------------------


class Attention(nn.Module):
    """A V of every head, A = Dropout(softmax(Q K^T / sqrt(d / heads) - 10000 [key is padding]))."""

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
        asks: Float[Tensor, "batch read d"],
        memory: Float[Tensor, "batch length d"],
        padded: Float[Tensor, "batch 1 1 length"],
    ) -> Float[Tensor, "batch read d"]:
        """What each asking slot gathers from the whole window, before and after it."""

        def split(x: Float[Tensor, "batch slot d"]) -> Float[Tensor, "batch head slot width"]:
            return x.view(*x.shape[:2], self.heads, x.shape[2] // self.heads).transpose(1, 2)

        q, k, v = split(self.query(asks)), split(self.key(memory)), split(self.value(memory))
        logits = (q @ k.mT).mul_(self.scale).add_(padded)
        gathered: Tensor = self.dropout(logits.softmax(-1)) @ v
        return gathered.transpose(1, 2).flatten(2)


class Layer(nn.Module):
    """One encoder layer, norms behind the residual sums; no dropout inside the feed-forward network."""

    def __init__(self, config: BERT4RecConfig, heads: int) -> None:
        super().__init__()
        d, inner = config.hidden, config.inner or 4 * config.hidden
        self.attention = Attention(d, heads, config.attention_dropout)
        self.project = nn.Linear(d, d)
        self.attention_norm = nn.LayerNorm(d, eps=1e-12)
        self.inner = nn.Linear(d, inner)
        self.outer = nn.Linear(inner, d)
        self.feed_forward_norm = nn.LayerNorm(d, eps=1e-12)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(
        self,
        asks: Float[Tensor, "batch read d"],
        memory: Float[Tensor, "batch length d"],
        padded: Float[Tensor, "batch 1 1 length"],
    ) -> Float[Tensor, "batch read d"]:
        """New states of the asking slots; the gelu is the exact one, with erf."""
        gathered = self.project(self.attention(asks, memory, padded))
        x = self.attention_norm(asks + self.dropout(gathered))
        out = self.outer(functional.gelu(self.inner(x)))
        y: Tensor = self.feed_forward_norm(x + self.dropout(out))
        return y


class Head(nn.Module):
    """g = LN(gelu(Linear(x))) before the tied product: no dropout (run.py)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)

    def forward(self, x: Float[Tensor, "*place d"]) -> Float[Tensor, "*place d"]:
        """Slot by slot."""
        g: Tensor = self.norm(functional.gelu(self.dense(x)))
        return g


def left_positions(real: Bool[Tensor, "batch length"], length: int) -> Int[Tensor, "batch length"]:  # noqa: ARG001
    """Age order: 0 at the oldest event, also where a short row is padded on its left."""
    return (real.cumsum(1) - 1).clamp(min=0)


def right_positions(real: Bool[Tensor, "batch length"], length: int) -> Int[Tensor, "batch length"]:
    """The last slot has position `length` - 1."""
    width = real.shape[1]
    return torch.arange(length - width, length, device=real.device).expand_as(real)


POSITIONS = {Align.left: left_positions, Align.right: right_positions}


# The loss (run.py) ------------------------------------------------------------------------------

PlaceLoss = Callable[
    [
        Float[Tensor, "place d"],
        Float[Tensor, "token d"],
        Float[Tensor, " token"],
        Int[Tensor, " place"],
        torch.Generator,
    ],
    Float[Tensor, " place"],
]
"""B6: from g, the table, its biases, the true tokens and a stream to a cost a masked slot."""


def exact_softmax(
    g: Float[Tensor, "place d"],
    table: Float[Tensor, "token d"],
    bias: Float[Tensor, " token"],
    label: Int[Tensor, " place"],
    generator: torch.Generator,  # noqa: ARG001
) -> Float[Tensor, " place"]:
    """Minus log-softmax over all V tokens, the special ones included."""
    return catalogue_cross_entropy(g, table, bias, label, padding=True)


@dataclass(frozen=True)
class SampledSoftmax:
    """The same with the sum over the other tokens estimated from `count` uniform draws a batch."""

    count: int

    def __call__(
        self,
        g: Float[Tensor, "place d"],
        table: Float[Tensor, "token d"],
        bias: Float[Tensor, " token"],
        label: Int[Tensor, " place"],
        generator: torch.Generator,
    ) -> Float[Tensor, " place"]:
        """A draw that is the label itself is no other token and does not count."""
        tokens = len(table)
        drawn = torch.randint(tokens, (self.count,), generator=generator, device=generator.device)
        drawn = drawn.to(g.device)
        itself = drawn == label.unsqueeze(1)
        logits = torch.addmm(bias[drawn], g, functional.embedding(drawn, table).T)
        others = (tokens - 1) / (self.count - itself.sum(1)).clamp(min=1).to(g.dtype)
        rest = logits.masked_fill(itself, -1e30).logsumexp(1) + others.log()
        hit = (g * functional.embedding(label, table)).sum(1) + bias[label]
        return torch.logaddexp(hit, rest) - hit


# The samples (gen_data_fin.py) ------------------------------------------------------------------


@dataclass(frozen=True)
class Cloze:
    """Training samples: windows of user sequences in which some events are [MASK]."""

    ids: Int[Tensor, "batch length"]
    """Left-padded tokens."""
    slots: Int[Tensor, "batch read"]
    """The masked slots of each row; any slot where a row has fewer."""
    labels: Int[Tensor, "batch read"]
    """The true items; 0 where a row has fewer."""

    def split(self, rows: int) -> Iterator[Cloze]:
        """So many samples at a time."""
        parts = (part.split(rows) for part in (self.ids, self.slots, self.labels))
        return (Cloze(*part) for part in zip(*parts, strict=True))


class Masks(ABC):
    """B1: in which order the slots of a window are masked."""

    @abstractmethod
    def keys(
        self,
        window: Int[Tensor, " batch"],
        number: Int[Tensor, "batch length"],
        generator: torch.Generator,
    ) -> Float[Tensor, "batch length"]:
        """Numbers from 0 to below 1, each slot's own; the lowest are masked.

        Args:
            window: The window's number among all windows.
            number: The event's number in its window; at padding it means nothing.
            generator: Stream of the draws.
        """


@dataclass(frozen=True)
class StaticMasks(Masks):
    """One of `copies` masks that a window has for good, whatever the run: a hash, nothing stored."""

    copies: int
    length: int

    def keys(
        self,
        window: Int[Tensor, " batch"],
        number: Int[Tensor, "batch length"],
        generator: torch.Generator,
    ) -> Float[Tensor, "batch length"]:
        """Draws which copy it is; its keys follow from (window, copy, number)."""
        copy = (uniform(generator, window.device, len(window)) * self.copies).long()
        sample = (window * self.copies + copy).unsqueeze(1)
        return hashed(sample * self.length + number.clamp(min=0))


class DynamicMasks(Masks):
    """A fresh mask each time."""

    def keys(
        self,
        window: Int[Tensor, " batch"],  # noqa: ARG002
        number: Int[Tensor, "batch length"],
        generator: torch.Generator,
    ) -> Float[Tensor, "batch length"]:
        """Uniform draws."""
        return uniform(generator, number.device, *number.shape)


def uniform(
    generator: torch.Generator, device: torch.device, *shape: int
) -> Float[Tensor, "*shape"]:
    """Draws from 0 to below 1."""
    drawn = torch.rand(*shape, dtype=torch.float64, generator=generator, device=generator.device)
    return drawn.to(device)


def hashed(number: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """A number from 0 to below 1 for each integer below 2^32, each another (a 32-bit mixing)."""
    x = number & 0xFFFFFFFF
    for factor, shift in ((0x7FEB352D, 16), (0x846CA68B, 15)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return (x ^ (x >> 16)).double() / 2**32


class OwnEvents(ABC):
    """P2 of the protocol: whether a visible event may name an item that is masked in its window."""

    @abstractmethod
    def other(
        self, items: Int[Tensor, "batch length"], item: Int[Tensor, "batch 1"]
    ) -> Bool[Tensor, "batch length"]:
        """Events that may stand beside a masked `item`."""

    @abstractmethod
    def apply(
        self,
        items: Int[Tensor, "batch length"],
        masked: Bool[Tensor, "batch length"],
        shown: Bool[Tensor, "batch length"],
    ) -> tuple[Bool[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
        """Of the masked and the shown events, those that remain so."""


class KeepOwn(OwnEvents):
    """As the authors: every event stays."""

    def other(
        self,
        items: Int[Tensor, "batch length"],
        item: Int[Tensor, "batch 1"],  # noqa: ARG002
    ) -> Bool[Tensor, "batch length"]:
        """All of them."""
        return items > 0

    def apply(
        self,
        items: Int[Tensor, "batch length"],  # noqa: ARG002
        masked: Bool[Tensor, "batch length"],
        shown: Bool[Tensor, "batch length"],
    ) -> tuple[Bool[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
        """As they are."""
        return masked, shown


class DropOwn(OwnEvents):
    """An item is masked in its latest chosen slot only, and all its other events leave the sample."""

    def other(
        self, items: Int[Tensor, "batch length"], item: Int[Tensor, "batch 1"]
    ) -> Bool[Tensor, "batch length"]:
        """Events of other items."""
        return (items > 0) & (items != item)

    def apply(
        self,
        items: Int[Tensor, "batch length"],
        masked: Bool[Tensor, "batch length"],
        shown: Bool[Tensor, "batch length"],
    ) -> tuple[Bool[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
        """Compares every two events of a window."""
        named = (items.unsqueeze(2) == items.unsqueeze(1)) & masked.unsqueeze(1)
        masked = masked & ~named.triu(1).any(2)
        return masked, shown & (masked | ~named.any(2))


def everything(train: Interactions) -> Interactions:
    """The same records."""
    return train


def favors(train: Interactions) -> Interactions:
    """The favors alone."""
    kept = train.behaviour == int(Behaviour.FAVOR)
    before = functional.pad(kept.cumsum(0), (1, 0))
    return Interactions(
        train.user[kept],
        train.item[kept],
        train.behaviour[kept],
        train.target[kept],
        before[train.offsets],
    )


RECORDS = {Behaviors.merged: everything, Behaviors.favor_only: favors}
"""B3: the records that windows are cut from."""


class Windows(nn.Module):
    """All windows of the training sequences that hold a target, and the samples made of them.

    A sequence of at most L events is one window. Of a longer one, windows of L events start at its
    length - L and step back by floor(`window_step` L), the last of them at 0.
    """

    item: Tensor
    target: Tensor
    start: Tensor
    end: Tensor
    offsets: Tensor

    def __init__(self, config: BERT4RecConfig, catalogue: Catalogue) -> None:
        super().__init__()
        self.length = catalogue.length
        self.mask_id = catalogue.items + 1
        self.step = max(1, int(config.window_step * catalogue.length))
        self.rho = config.rho
        self.most = max(1, round(config.rho * catalogue.length))
        self.last_share = config.last_share
        self.masks: Masks = {
            Masking.static: lambda: StaticMasks(config.copies, catalogue.length),
            Masking.dynamic: DynamicMasks,
        }[config.masking]()
        self.own: OwnEvents = DropOwn() if catalogue.drops_own_events else KeepOwn()
        for name in ("item", "target", "start", "end"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64), persistent=False)
        nothing = torch.zeros(catalogue.users + 1, dtype=torch.int64)
        self.register_buffer("offsets", nothing, persistent=False)

    def prepare(self, train: Interactions) -> None:
        """Cut the sequences."""
        events = train.offsets.diff()
        longer = (events - self.length).clamp(min=0)
        count = (events > 0).long() + (longer + self.step - 1) // self.step
        user = torch.repeat_interleave(torch.arange(len(events), device=count.device), count)
        number = torch.arange(len(user), device=count.device) - (count.cumsum(0) - count)[user]
        start = train.offsets[user] + (longer[user] - number * self.step).clamp(min=0)
        end = torch.minimum(start + self.length, train.offsets[user + 1])
        targets = functional.pad(train.target.cumsum(0), (1, 0))
        useful = targets[end] > targets[start]
        windows = torch.bincount(user[useful], minlength=len(events))
        device = self.offsets.device
        self.item, self.target = train.item.to(device), train.target.to(device)
        self.start, self.end = start[useful].to(device), end[useful].to(device)
        self.offsets = functional.pad(windows.cumsum(0), (1, 0)).to(device)

    def draw(self, user: Int[Tensor, " batch"], generator: torch.Generator) -> Cloze:
        """A sample of one uniformly drawn window a user; users without a window give none."""
        user = user[self.offsets[user + 1] > self.offsets[user]]
        device, rows = self.offsets.device, len(user)
        count = self.offsets[user + 1] - self.offsets[user]
        window = self.offsets[user] + (uniform(generator, device, rows) * count).long()
        start, end = self.start[window].unsqueeze(1), self.end[window].unsqueeze(1)
        width = int(functional.pad((end - start).flatten(), (1, 0), value=1).max())
        event = end - torch.arange(width, 0, -1, device=device)
        real = event >= start
        number, event = event - start, event.clamp(min=0)
        items = self.item[event] * real
        target = self.target[event] & real

        # ordinary samples: the share rho of the targets, halves rounded up as in Python 2
        wanted = (self.rho * target.sum(1, keepdim=True).double() + 0.5).floor()
        wanted = wanted.clamp(1, self.most)
        keys = self.masks.keys(window, number, generator).masked_fill(~target, 2.0)
        masked = target & (keys.argsort(1).argsort(1) < wanted)

        # last-item samples, where something stands before the last target
        final = target & (target.flip(1).cumsum(1).flip(1) == 1)
        before = number < (number * final).sum(1, keepdim=True)
        other = self.own.other(items, (items * final).sum(1, keepdim=True)) & before
        last = (uniform(generator, device, rows) < self.last_share).unsqueeze(1)
        last = last & other.any(1, keepdim=True)
        masked = torch.where(last, final, masked)
        masked, shown = self.own.apply(items, masked, real & (before | final | ~last))
        return self.packed(items, masked, shown)

    def packed(
        self,
        items: Int[Tensor, "batch length"],
        masked: Bool[Tensor, "batch length"],
        shown: Bool[Tensor, "batch length"],
    ) -> Cloze:
        """The events that are shown, closed up to the right."""
        order = torch.argsort(shown.to(torch.int8), dim=1, stable=True)
        width = int(functional.pad(shown.sum(1), (1, 0), value=1).max())
        order = order[:, -width:]
        items, masked, shown = (x.gather(1, order) for x in (items, masked, shown))
        most = int(functional.pad(masked.sum(1), (1, 0), value=1).max())
        slots = torch.argsort(masked.to(torch.int8), dim=1, descending=True, stable=True)[:, :most]
        ids = torch.where(masked, self.mask_id, items * shown)
        return Cloze(ids, slots, (items * masked).gather(1, slots))


# The updates (optimization.py) ------------------------------------------------------------------


class Updates(ABC):
    """B5: the optimiser, what happens before each of its steps, and when training is over."""

    @abstractmethod
    def optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """A new one."""

    @abstractmethod
    def before_step(self, optimiser: torch.optim.Optimizer, step: int) -> None:
        """What is done to gradients and rates before step number `step` (from 0)."""

    @abstractmethod
    def ended(self, step: int) -> bool:
        """Whether `step` steps are all there are."""


@dataclass(frozen=True)
class AuthorsUpdates(Updates):
    """Adam without bias correction, decoupled decay, warm-up, linear decay, clipped gradients.

        parameter -= rate (m / (sqrt(v) + 1e-6) + decay parameter)

    Done by torch's AdamW, which corrects m and v: at step t from 1, with a = 1 - beta_1^t and
    b = sqrt(1 - beta_2^t), its rate, epsilon and decay are set to rate a / b, epsilon / b, decay b / a.
    """

    rate: float
    decay: float
    warm_up: int
    steps: int

    def optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Tables and matrices are decayed; biases and norms are not."""
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "decay": self.decay},
            {"params": [p for p in parameters if p.ndim == 1], "decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.rate, betas=BETAS, eps=EPSILON, fused=True)

    def rate_at(self, step: int) -> float:
        """Rate of step number `step`, from 0: the first one moves nothing, as in the authors' code."""
        if step < self.warm_up:
            return self.rate * step / self.warm_up
        return self.rate * max(0.0, 1 - step / self.steps)

    def before_step(self, optimiser: torch.optim.Optimizer, step: int) -> None:
        """Clip all gradients to a common norm; set the rates of this step."""
        groups = optimiser.param_groups
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], CLIP)
        a, b = 1 - BETAS[0] ** (step + 1), math.sqrt(1 - BETAS[1] ** (step + 1))
        for group in groups:
            group["lr"] = self.rate_at(step) * a / b
            group["eps"] = EPSILON / b
            group["weight_decay"] = group["decay"] * b / a

    def ended(self, step: int) -> bool:
        """The rate is 0 from then on."""
        return step >= self.steps


@dataclass(frozen=True)
class PlainAdam(Updates):
    """Adam as the other methods have it: a constant rate, L2 in the gradient, nothing clipped."""

    rate: float
    weight_decay: float

    def optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Over all parameters."""
        return torch.optim.Adam(
            parameters, lr=self.rate, weight_decay=self.weight_decay, fused=True
        )

    def before_step(self, optimiser: torch.optim.Optimizer, step: int) -> None:
        """Nothing."""

    def ended(self, step: int) -> bool:  # noqa: ARG002
        """Never: patience or the epochs end it."""
        return False


def updates(config: BERT4RecConfig) -> Updates:
    """The part of B5."""
    if config.optimiser is Optimiser.adam:
        return PlainAdam(config.learning_rate, config.weight_decay)
    return AuthorsUpdates(config.learning_rate, config.decay, config.warm_up, config.steps)


# The model --------------------------------------------------------------------------------------


class BERT4Rec(DotProduct):
    """Masked items are told from both sides of a window; a [MASK] behind a history asks for the next.

    Paper: Fei Sun et al., "BERT4Rec: Sequential Recommendation with Bidirectional Encoder
    Representations from Transformer", CIKM 2019, doi 10.1145/3357384.3357895. Authors' code:
    github.com/FeiSun/BERT4Rec, commit 615eaf2 (TensorFlow 1), whose choices are the defaults.

    x = Dropout(LN(E[ids] + segment + P)), then the layers, then at a masked slot g = LN(gelu(Linear(x)))
    and logits g E^T + b_out. A window of training and a history with its [MASK] have L tokens at most,
    so the newest L - 1 events are read.

    Under-training is this method's known failure (Petrov & Macdonald, RecSys 2022, arXiv 2207.07483:
    the published numbers need up to 30 times the training of common defaults). So an epoch makes
    `samples_a_row` updates of each batch, and `step` counts them; the authors make 400,000.

    Differences from the authors' code:
      - It reads windows of the records itself; a batch only says whose. Each sample's window and copy
        are drawn, where the authors go through a file of 11 samples a window; a user counts as often as
        the batches name it, not in proportion to its windows.
      - The validation item is not trained on, as the protocol demands.
      - Only training targets are masked (all events, or favors under `protocol.train_targets=favor`):
        a share rho of the targets of the window, and the last-item sample ends with the last target.
        A last-item sample in which nothing would stand before [MASK] becomes an ordinary one (the
        authors' generator stops there).
      - Under `Catalogue.drops_own_events` an item is masked once and its other events leave the
        sample, as they leave the histories that are scored.
      - Rows are padded on the left in memory; positions, which are all that order is, are those of the
        authors' right-padded rows.
      - [MASK] is row I + 1; in the authors' code it depends on the hash seed of the process.

    Other implementations leave out the head's transform, the biases or the last-item samples
    (RecBole's had none of the three before 1.2): those are other models.

    Raises:
        ValueError: a width, a share or a count that is not possible, or `weight_decay` with `code`.
    """

    Config: ClassVar[type[ModelConfig]] = BERT4RecConfig
    samples: ClassVar[Samples] = Samples.window
    config: BERT4RecConfig
    step: Tensor

    def __init__(self, config: BERT4RecConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        heads = config.heads or max(1, config.hidden // 32)
        check(config, heads)
        d, items = config.hidden, catalogue.items
        self.token_table = nn.Parameter(torch.empty(items + 4, d))
        self.segment_table = nn.Parameter(torch.empty(2, d))
        self.position_table = nn.Parameter(torch.empty(catalogue.length, d))
        self.norm = nn.LayerNorm(d, eps=1e-12)
        self.dropout = Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(Layer(config, heads) for _ in range(config.layers))
        self.head = Head(d)
        self.output_bias = nn.Parameter(torch.zeros(items + 4))
        spread = config.initializer_range
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=spread, a=-2 * spread, b=2 * spread)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

        self.reading = READINGS[config.behaviors]()
        self.records = RECORDS[config.behaviors]
        self.positions = POSITIONS[config.align]
        self.windows = Windows(config, catalogue)
        self.place_loss: PlaceLoss = (
            exact_softmax if config.softmax is Softmax.exact else SampledSoftmax(config.negatives)
        )
        self.updates = updates(config)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def prepare(self, train: Interactions) -> None:
        """Cut the records into windows."""
        self.windows.prepare(self.records(train))

    def embed(
        self, ids: Int[Tensor, "batch length"], position: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length d"]:
        """Dropout(LN(E[ids] + segment + P)): one segment for all slots; row 0 is a row like others."""
        x = functional.embedding(ids, self.token_table)
        x = x + functional.embedding(position, self.position_table + self.segment_table[0])
        out: Tensor = self.dropout(self.norm(x))
        return out

    def states(
        self, ids: Int[Tensor, "batch length"], slots: Int[Tensor, "batch read"]
    ) -> Float[Tensor, "batch read d"]:
        """States of some slots; the last layer makes no others."""
        real = ids > 0
        padded = ((~real).to(self.token_table.dtype) * PADDED)[:, None, None]
        x = self.embed(ids, self.positions(real, self.catalogue.length))
        for layer in self.layers[:-1]:
            x = layer(x, x, padded)
        asks = x.gather(1, slots.unsqueeze(2).expand(-1, -1, x.shape[2]))
        y: Tensor = self.layers[-1](asks, x, padded)
        return y

    def passes(self, batch: Batch) -> Iterator[Losses]:
        """`samples_a_row` losses, an update after each; their samples are drawn together."""
        user = batch.history.user
        drawn = self.windows.draw(user.repeat(self.config.samples_a_row), batch.generator)
        for cloze in drawn.split(max(1, len(drawn.ids) // self.config.samples_a_row)):
            yield {"masked_item": self.cloze_loss(cloze, batch.generator)}

    def loss(self, batch: Batch) -> Losses:
        """Mean over the masked slots of a fresh sample a row."""
        cloze = self.windows.draw(batch.history.user, batch.generator)
        return {"masked_item": self.cloze_loss(cloze, batch.generator)}

    def cloze_loss(self, cloze: Cloze, generator: torch.Generator) -> Float[Tensor, ""]:
        """Sum over the masked slots of the batch, divided by their number + 1e-5."""
        g = self.head(self.states(cloze.ids, cloze.slots)[cloze.labels > 0])
        label = cloze.labels[cloze.labels > 0]
        costs = self.place_loss(g, self.token_table, self.output_bias, label, generator)
        return costs.sum() / (len(label) + 1e-5)

    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """The vector g at a [MASK] behind the newest L - 1 events."""
        history = self.reading.history(history)
        history = history.padded(min(history.items.shape[1], self.catalogue.length - 1))
        ids = functional.pad(history.items, (0, 1), value=self.catalogue.items + 1)
        last = torch.full_like(ids[:, :1], ids.shape[1] - 1)
        g: Tensor = self.head(self.states(ids, last).squeeze(1))
        return g

    def item_vectors(self) -> Float[Tensor, "item_row d"]:
        """E without the special rows."""
        return self.token_table[: self.catalogue.items + 1]

    def item_bias(self) -> Float[Tensor, " item_row"]:
        """b_out of the same rows."""
        return self.output_bias[: self.catalogue.items + 1]

    def optimiser(self) -> torch.optim.Optimizer:
        """B5."""
        return self.updates.optimiser(list(self.parameters()))

    def before_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Clipping and the step's rate (B5); counts the step."""
        self.updates.before_step(optimiser, int(self.step))
        self.step += 1

    def stage_ended(self, epochs: int, generator: torch.Generator) -> bool:  # noqa: ARG002
        """True when the steps of the authors' schedule are done."""
        return self.updates.ended(int(self.step))


def check(config: BERT4RecConfig, heads: int) -> None:
    """Refuse what is impossible.

    Raises:
        ValueError: one line on the setting.
    """
    if heads < 1 or config.hidden % heads:
        raise ValueError(f"hidden {config.hidden} is no multiple of heads {heads}")
    for name in ("layers", "copies", "samples_a_row", "steps", "negatives"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; at least 1 is needed")
    for name in ("rho", "window_step"):
        if not 0 < getattr(config, name) <= 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it is a share above 0, at most 1")
    if not 0 <= config.last_share <= 1:
        raise ValueError(f"last_share is {config.last_share}; it is a share from 0 to 1")
    if config.optimiser is Optimiser.code and config.weight_decay:
        raise ValueError("weight_decay is for optimiser=adam; optimiser=code has decay")
