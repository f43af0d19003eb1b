"""NMTR, Neural Multi-Task Recommendation (Gao et al., ICDE and TKDE 2019).

"Learning to Recommend with Multiple Cascading Behaviors", doi 10.1109/TKDE.2019.2958808, arXiv
1809.08161. Facts from the authors' code, github.com/tsinghua-fib-lab/NMTR at commit 2feb863 (MIT, TensorFlow 1);
numbers in brackets are its parts in order: [1] embedding, [2] interaction functions, [3] cascade,
[4] sampling, [5] loss.

A matrix model, not a sequential one: a user is a row of a table, and the order of events is not read,
nor are images and texts. Behaviours r = 1..n_b form a cascade, click before favor.

Axes: batch = users, cand = items asked of a user, pair = (user, item) pairs, r = behaviours, d = width
of an embedding (the paper's E), item_row = items + 1 (row 0 is padding, zero, never trained).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
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
from models.negatives import TrainingNegatives

MOST_HIDDEN = 1 << 22
"""Values of a tower's widest layer held at once when all items are scored (16 MiB of float32)."""

log = logging.getLogger(__name__)


class Variant(Enum):
    """The interaction function [2]; the authors' classes Multi_NCF, Multi_GMF, Multi_MLP."""

    ncf = "ncf"
    gmf = "gmf"
    mlp = "mlp"


class CascadeForm(Enum):
    """How a behaviour's logit takes in the one before it [3]."""

    halved = "halved"
    """(f_r + o_{r-1}) / 2 + b: the authors' code."""
    plain = "plain"
    """f_r + o_{r-1} + b: as the paper describes it, without halving."""


class Optimiser(Enum):
    """Adam, as all methods here are tuned with, or the authors' default."""

    adam = "adam"
    adagrad = "adagrad"


@dataclass
class NMTRConfig(ModelConfig):
    """The authors' settings; the 30 epochs and batches of 2,048 are the harness's to set."""

    learning_rate: float = 0.01
    variant: Variant = Variant.ncf
    layers: int = 2
    """Of a tower (ncf, mlp), each half as wide as the one before; gmf always has its one."""
    cascade: CascadeForm = CascadeForm.halved
    optimiser: Optimiser = Optimiser.adam
    click_weight: float = 0.5
    """lambda of the click task; that of the favor task is 1 less it."""
    negatives: int = 4
    """Items drawn for each observed pair."""
    reg_user: float = 0.0
    """L2 of the user table and of the towers' weights: times plain sums of squares."""
    reg_item: float = 0.0
    """L2 of the item table."""

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {"click_weight": (1 / 3, 1 / 2, 2 / 3)}


class Interaction(nn.Module, ABC):
    """[2] f_r: features of p and q, a tower of Linear and ReLU, and h_r^T of its last layer.

    The first layer is applied to each feature by itself and summed, which is the layer of the features
    side by side: what depends on the user alone, or the item alone, is computed once for it.
    """

    bias: ClassVar[bool] = True

    def __init__(self, config: NMTRConfig) -> None:
        super().__init__()
        widths = self.widths(config)
        if min(widths) < 1:
            raise ValueError(f"a tower of widths {widths} ends in nothing; use fewer layers")
        self.first = nn.Linear(widths[0], widths[1], bias=self.bias)
        self.rest = nn.ModuleList(
            nn.Linear(inner, outer, bias=self.bias) for inner, outer in pairwise(widths[1:])
        )
        self.h = nn.Linear(widths[-1], 1, bias=False)
        for linear in self.modules():
            if isinstance(linear, nn.Linear):
                limit = (3 / linear.in_features) ** 0.5
                nn.init.uniform_(linear.weight, -limit, limit)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    @staticmethod
    @abstractmethod
    def widths(config: NMTRConfig) -> list[int]:
        """Of the tower, input first."""

    @staticmethod
    @abstractmethod
    def features(
        p: Float[Tensor, "#batch #cand d"], q: Float[Tensor, "#batch #cand d"]
    ) -> list[Float[Tensor, "#batch #cand d"]]:
        """What the tower reads, in the order of its first layer's columns."""

    def forward(
        self, features: list[Float[Tensor, "#batch #cand d"]]
    ) -> Float[Tensor, "#batch #cand"]:
        """f_r of each pair."""
        columns = self.first.weight.split(features[0].shape[2], dim=1)
        x = functional.linear(features[0], columns[0], self.first.bias)
        for feature, weight in zip(features[1:], columns[1:], strict=True):
            x = x + functional.linear(feature, weight)
        x = x.relu()
        for layer in self.rest:
            x = layer(x).relu()
        f: Tensor = self.h(x).squeeze(2)
        return f


class GMF(Interaction):
    """h^T ReLU((p * q) W), W square and without a bias: the authors' class always has this layer."""

    bias = False

    @staticmethod
    def widths(config: NMTRConfig) -> list[int]:
        """One square layer, whatever `layers` is."""
        return [config.hidden, config.hidden]

    @staticmethod
    def features(
        p: Float[Tensor, "#batch #cand d"], q: Float[Tensor, "#batch #cand d"]
    ) -> list[Float[Tensor, "#batch #cand d"]]:
        """The elementwise product."""
        return [p * q]


class MLP(Interaction):
    """A halving tower on [p; q]."""

    @staticmethod
    def widths(config: NMTRConfig) -> list[int]:
        """2d, d, d/2, ..."""
        return halving(2 * config.hidden, config.layers)

    @staticmethod
    def features(
        p: Float[Tensor, "#batch #cand d"], q: Float[Tensor, "#batch #cand d"]
    ) -> list[Float[Tensor, "#batch #cand d"]]:
        """User and item."""
        return [p, q]


class NCF(Interaction):
    """A halving tower on [p; q; p * q]: unlike NeuMF, GMF's and MLP's parts share their embeddings."""

    @staticmethod
    def widths(config: NMTRConfig) -> list[int]:
        """3d, 3d/2, 3d/4, ..."""
        return halving(3 * config.hidden, config.layers)

    @staticmethod
    def features(
        p: Float[Tensor, "#batch #cand d"], q: Float[Tensor, "#batch #cand d"]
    ) -> list[Float[Tensor, "#batch #cand d"]]:
        """User, item and their product."""
        return [p, q, p * q]


INTERACTIONS: dict[Variant, type[Interaction]] = {
    Variant.ncf: NCF,
    Variant.gmf: GMF,
    Variant.mlp: MLP,
}


def halving(width: int, layers: int) -> list[int]:
    """Widths of a tower; a half is rounded down, as the authors do."""
    if layers < 1:
        raise ValueError(f"layers is {layers}; a tower has at least 1")
    return [width // 2**layer for layer in range(layers + 1)]


def halved(f: Float[Tensor, "batch cand"], before: Float[Tensor, "batch cand"]) -> Tensor:
    """The mean of a behaviour's own value and the logit before it."""
    return (f + before) / 2


def plain(f: Float[Tensor, "batch cand"], before: Float[Tensor, "batch cand"]) -> Tensor:
    """Their sum."""
    return f + before


CASCADES: dict[CascadeForm, Callable[[Tensor, Tensor], Tensor]] = {
    CascadeForm.halved: halved,
    CascadeForm.plain: plain,
}


def log_loss(
    logit: Float[Tensor, "batch cand"], label: Bool[Tensor, "batch cand"]
) -> Float[Tensor, ""]:
    """[5] Mean binary cross-entropy of a probability, 1e-7 inside both logarithms."""
    y = logit.sigmoid()
    return -(torch.where(label, y, 1 - y) + 1e-7).log().mean()


@dataclass(frozen=True)
class Penalty:
    """[5] Plain sums of squares, no factor 1/2, of whole tables and the towers; biases and h apart."""

    user: float
    """Weight of the user table, and of the towers."""
    item: float

    def __call__(
        self, P: Float[Tensor, "user d"], Q: Float[Tensor, "item_row d"], towers: nn.Module
    ) -> Losses:
        """The one term."""
        W = [w for name, w in towers.named_parameters() if w.ndim == 2 and ".h." not in name]
        users = torch.stack([w.square().sum() for w in (P, *W)]).sum()
        return {"l2": self.user * users + self.item * Q.square().sum()}


def no_penalty(*_: object) -> Losses:
    """Nothing to add."""
    return {}


class NMTR(Recommender):
    """Shared embeddings and item bias, one interaction function a behaviour, logits in a cascade.

        o_1 = f_1(u, i) + b_i,    o_r = (f_r(u, i) + o_{r-1}) / 2 + b_i,    y_r = sigmoid(o_r)

    It is the logit, with its bias, that goes on, and the same bias is added at every behaviour. Items
    are ranked by the logit of the last behaviour, which orders them as its probability does.

    A sample is an observed pair (deepest behaviour counts: a favored item is also labelled clicked)
    with `negatives` items that the user never touched, labels all 0. Pairs stay together with their
    negatives in a batch of pairs x (1 + negatives), and the last, smaller batch is trained too; the
    authors shuffle them apart and drop it. Clicks are labels even where the protocol trains on favors
    alone: they are this model's inputs. A user without a training pair keeps the initial vector.
    """

    Config = NMTRConfig
    config: NMTRConfig
    samples = Samples.pair
    behaviours: ClassVar[int] = 2
    """n_b: click, then favor."""

    def __init__(self, config: NMTRConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        if not 0 <= config.click_weight <= 1:
            raise ValueError(f"click_weight is {config.click_weight}; it is a share, 0 to 1")
        if config.negatives < 1:
            raise ValueError(f"negatives is {config.negatives}; each pair needs at least 1")
        d = config.hidden
        self.P = nn.Parameter(_truncated_normal(catalogue.users, d))
        self.Q = nn.Parameter(_truncated_normal(catalogue.items + 1, d))
        self.Q.detach()[0] = 0
        self.b = nn.Parameter(torch.zeros(catalogue.items + 1))
        make = INTERACTIONS[config.variant]
        self.interactions = nn.ModuleList(make(config) for _ in range(self.behaviours))
        self.features = make.features
        self.widest = max(make.widths(config)[1:])
        self.take_in = CASCADES[config.cascade]
        self.shares = [config.click_weight, 1 - config.click_weight]
        penalised = config.reg_user or config.reg_item
        self.penalty = Penalty(config.reg_user, config.reg_item) if penalised else no_penalty
        self.negatives = TrainingNegatives(catalogue)
        self.count = config.negatives

    def prepare(self, train: Interactions) -> None:
        """What each user touched, for the negatives; says how many users have nothing to learn from."""
        self.negatives.prepare(train)
        alone = int((train.offsets.diff() == 0).sum())
        log.info("%d of %d users have no training pair", alone, self.catalogue.users)

    def loss(self, batch: Batch) -> Losses:
        """[4] Observed pairs and their negatives, labels nested."""
        drawn = self.negatives(batch.history.user, self.count, batch.generator)
        items = torch.cat([batch.targets, drawn], dim=1)
        deepest = functional.pad(batch.target_behaviour.unsqueeze(1), (0, self.count))
        return self.objective(batch.history.user, items, deepest)

    def objective(
        self,
        user: Int[Tensor, " batch"],
        items: Int[Tensor, "batch cand"],
        deepest: Int[Tensor, "batch cand"],
    ) -> Losses:
        """[5] sum_r lambda_r BCE_r and the L2 of whole tables, biases and h apart.

        Args:
            user: Users.
            items: Items of each.
            deepest: Deepest behaviour of each pair, 0 for none; it implies all before it.
        """
        logits = self.logits(self.P[user].unsqueeze(1), items)
        losses = {
            f"behaviour_{r}": share * log_loss(o, deepest >= r)
            for r, (share, o) in enumerate(zip(self.shares, logits, strict=True), start=1)
        }
        return {**losses, **self.penalty(self.P, self.Q, self.interactions)}

    def logits(
        self, p: Float[Tensor, "#batch 1 d"], items: Int[Tensor, "#batch cand"]
    ) -> list[Float[Tensor, "batch cand"]]:
        """[3] o_1 .. o_{n_b} of users and items; one row of items stands for all users."""
        features = self.features(p, functional.embedding(items, self.Q, padding_idx=0))
        b = functional.embedding(items, self.b.unsqueeze(1), padding_idx=0).squeeze(2)
        first, *deeper = self.interactions
        logits = [first(features) + b]
        for f in deeper:
            logits.append(self.take_in(f(features), logits[-1]) + b)
        return logits

    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """Rows of the user table; the history itself is not read."""
        return self.P[history.user]

    def score(
        self, state: Float[Tensor, "batch d"], items: Int[Tensor, "batch cand"]
    ) -> Float[Tensor, "batch cand"]:
        """Logits of the last behaviour."""
        return self.logits(state.unsqueeze(1), items)[-1]

    def score_all(self, state: Float[Tensor, "batch d"]) -> Float[Tensor, "batch item_row"]:
        """The same for every item, block by block."""
        rows = torch.arange(self.catalogue.items + 1, device=state.device)
        block = max(1, MOST_HIDDEN // (max(len(state), 1) * self.widest))
        p = state.unsqueeze(1)
        return torch.cat([self.logits(p, part.unsqueeze(0))[-1] for part in rows.split(block)], 1)

    def optimiser(self) -> torch.optim.Optimizer:
        """Adam, or Adagrad with the authors' initial accumulator (TensorFlow's has no epsilon)."""
        if self.config.optimiser is Optimiser.adam:
            return super().optimiser()
        return torch.optim.Adagrad(
            self.parameters(), lr=self.config.learning_rate, eps=0.0,
            initial_accumulator_value=1e-8, weight_decay=self.config.weight_decay,
        )  # fmt: skip


def _truncated_normal(rows: int, d: int) -> Float[Tensor, "rows d"]:
    """Normal(0, 0.01), nothing beyond two standard deviations."""
    return nn.init.trunc_normal_(torch.empty(rows, d), std=0.01, a=-0.02, b=0.02)
