"""SGDL: self-guided learning to denoise (Gao et al., SIGIR 2022), on a LightGCN.

Axes: batch = training pairs of a step, clean = memorised pairs of a step, end = a triplet's user, positive
and negative, table = the users' and the items', pair = distinct pairs of the training records, slot =
epochs that the memory looks back, user_row = users, item_row = items + 1 (row 0 is padding), value =
losses, component = of a mixture, cand = candidate items, d = width.

Symbols: theta the two tables, theta' and theta~ the tables after a look-ahead step, l losses, w weights,
P the propagation (mean of A^0 to A^K, symmetric): final vectors are P theta.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.graphs import Bipartite, Graph, distinct_pairs, light_gcn
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
from models.layers import DotProduct
from models.negatives import TrainingNegatives

LOG = logging.getLogger(__name__)
PAIRS = 1 << 18
"""Pairs scored at once (64 MiB a side at d = 64)."""
COLUMN_NUMBERS = 1 << 24
"""Entries of P's columns held at once (64 MiB in float32)."""
PHASE_ONE_SHARE = 0.2
"""The tables' rate during memorisation, in parts of `learning_rate`."""
TINY = 1e-20
"""What the authors add inside the logarithms of the selection."""


class Input(Enum):
    """Which pairs are the one matrix that is denoised."""

    union = "union"
    favor = "favor"
    union_favor_clean = "union_favor_clean"


class Backbone(Enum):
    """What turns the tables into final vectors: LightGCN, or nothing (matrix factorisation, K = 0)."""

    lightgcn = "lightgcn"
    mf = "mf"


class Selecting(Enum):
    """How the scheduler's choice of clean triplets is trained."""

    gumbel = "gumbel"
    reinforce = "reinforce"


class Phase(IntEnum):
    """Where training is: phase I, phase II, or plain training because nothing was memorised."""

    MEMORISATION = 0
    SELF_GUIDED = 1
    FALLBACK = 2


@dataclass
class SGDLConfig(ModelConfig):
    """Settings of SGDL; defaults from the authors' code."""

    learning_rate: float = 5e-4
    """Of the tables in phase II, and of the look-ahead steps; a fifth of it in phase I."""
    sgdl_input: Input = Input.union
    """`union_favor_clean` adds all favors to the memorised set of phase II."""
    backbone: Backbone = Backbone.lightgcn
    """`mf` is cheaper."""
    layers: int = 3
    """K of LightGCN, at least 1."""
    meta_rate: float = 5e-4
    """Of the weight network."""
    schedule_rate: float = 5e-3
    """Of the scheduler."""
    weight_hidden: int = 100
    """Hidden units of the weight network."""
    selecting: Selecting = Selecting.gumbel
    """4d."""
    tau: float = 1.0
    """Temperature of the Gumbel softmax."""
    persist_scheduler: bool = True
    """S1: False makes a new scheduler and new optimiser states every epoch, as the authors' code does."""
    memory_epochs: int = 10
    """H: slots of the memory; a pair is memorised when it was so in half of them."""
    max_phase1_epochs: int = 50
    """Epochs after which phase I ends without a memorisation point."""
    cosine_batch: int = 128
    """Clean triplets of a step (theirs: the training batch's size), which cost two gradients each; 16 for
    very large graphs."""

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "layers": (1, 2, 3),
        "meta_rate": (5e-4, 5e-3),
    }


@dataclass(frozen=True)
class Reading:
    """Which pairs are denoised, and whether a favored one is clean by itself."""

    favors_only: bool
    favors_are_clean: bool

    def wanted(self, favored: Bool[Tensor, " event"]) -> Bool[Tensor, " event"]:
        """The pairs or events that belong to the matrix."""
        return favored if self.favors_only else torch.ones_like(favored)


READINGS: dict[Input, Reading] = {
    Input.union: Reading(favors_only=False, favors_are_clean=False),
    Input.favor: Reading(favors_only=True, favors_are_clean=False),
    Input.union_favor_clean: Reading(favors_only=False, favors_are_clean=True),
}


class Vectors(NamedTuple):
    """A row a user and a row an item: the tables, or the final vectors made of them."""

    users: Float[Tensor, "user_row d"]
    items: Float[Tensor, "item_row d"]


class Triplets(NamedTuple):
    """Pairs, with an item each that is no pair of the user's."""

    user: Int[Tensor, " batch"]
    positive: Int[Tensor, " batch"]
    negative: Int[Tensor, " batch"]

    def ends(self, vectors: Vectors) -> Float[Tensor, "batch end d"]:
        """Their vectors."""
        items = torch.stack([self.positive, self.negative], 1)
        users = functional.embedding(self.user, vectors.users).unsqueeze(1)
        return torch.cat([users, functional.embedding(items, vectors.items)], 1)


# Base loss (section 2) --------------------------------------------------------------------------


def behind(ends: Float[Tensor, "batch end d"]) -> Float[Tensor, " batch"]:
    """How far the positive's score stays behind the negative's: s_uj - s_ui."""
    return (ends[:, 0] * (ends[:, 2] - ends[:, 1])).sum(1)


def bpr(ends: Float[Tensor, "batch end d"]) -> Float[Tensor, " batch"]:
    """The loss l(u, i, j) = softplus(s_uj - s_ui); no L2."""
    return functional.softplus(behind(ends))


def bpr_gradient(ends: Float[Tensor, "batch end d"]) -> Float[Tensor, "batch end d"]:
    """Of each triplet's loss in its own three final vectors."""
    user, positive, negative = ends.unbind(1)
    slope = behind(ends).sigmoid().unsqueeze(1)
    return torch.stack([slope * (negative - positive), -slope * user, slope * user], 1)


# Phase I: how clean the pairs seem, and which are memorised (section 3) ---------------------------


class Mixture(NamedTuple):
    """Two Gaussians in one dimension."""

    weights: Float[Tensor, " component"]
    means: Float[Tensor, " component"]
    variances: Float[Tensor, " component"]

    @classmethod
    def of(
        cls, values: Float[Tensor, " value"], responsibilities: Float[Tensor, "value component"]
    ) -> Mixture:
        """M-step; 5e-4 is added to each variance."""
        counts = responsibilities.sum(0) + 10 * torch.finfo(values.dtype).eps
        means = (responsibilities * values.unsqueeze(1)).sum(0) / counts
        squares = (values.unsqueeze(1) - means).square()
        variances = (responsibilities * squares).sum(0) / counts + 5e-4
        return cls(counts / counts.sum(), means, variances)

    def expectation(
        self, values: Float[Tensor, " value"]
    ) -> tuple[Float[Tensor, "value component"], float]:
        """E-step: posteriors, and the mean log-likelihood of a value."""
        squares = (values.unsqueeze(1) - self.means).square() / self.variances
        joint = self.weights.log() - (squares + (2 * math.pi * self.variances).log()) / 2
        total = joint.logsumexp(1, keepdim=True)
        return (joint - total).exp(), float(total.mean())


def two_means(values: Float[Tensor, " value"]) -> Float[Tensor, "value component"]:
    """One-hot clusters of the best 2-means clustering: in one dimension a cut between sorted values."""
    ordered = values.sort().values
    below = torch.arange(1, len(ordered), device=values.device, dtype=values.dtype)
    sums = ordered.cumsum(0)
    between = sums[:-1].square() / below + (sums[-1] - sums[:-1]).square() / (len(values) - below)
    if not len(between):
        return functional.one_hot(torch.zeros_like(values, dtype=torch.int64), 2).to(values.dtype)
    cut = ordered[between.argmax()]
    return functional.one_hot((values > cut).long(), 2).to(values.dtype)


def mixture(values: Float[Tensor, " value"]) -> Mixture:
    """Two Gaussians by EM, until the mean log-likelihood moves by less than 1e-2.

    That is a loose tolerance: start and tolerance decide the outcome, so both are those of
    scikit-learn's `GaussianMixture(2, max_iter=100, tol=1e-2, reg_covar=5e-4)`.
    """
    found, last = Mixture.of(values, two_means(values)), -math.inf
    for _ in range(100):
        responsibilities, likelihood = found.expectation(values)
        found = Mixture.of(values, responsibilities)
        if abs(likelihood - last) < 1e-2:
            break
        last = likelihood
    return found


def estimated_clean_ratio(values: Float[Tensor, " value"]) -> float:
    """1 - mean posterior of the component with the larger mean (the noisy one)."""
    found = mixture(values)
    posteriors, _ = found.expectation(values)
    return 1 - float(posteriors[:, found.means.argmax()].mean())


def scaled_by_user(
    losses: Float[Tensor, " pair"], user: Int[Tensor, " pair"], users: int
) -> Float[Tensor, " pair"]:
    """Each user's losses stretched to [0, 1]; a user's only loss stays raw, equal ones become 0."""
    ends = {
        kind: losses.new_zeros(users).scatter_reduce_(0, user, losses, kind, include_self=False)
        for kind in ("amin", "amax")
    }
    span = (ends["amax"] - ends["amin"])[user]
    scaled = torch.where(span > 0, (losses - ends["amin"][user]) / span, 0.0)
    return torch.where(torch.bincount(user, minlength=users)[user] > 1, scaled, losses)


def among_best(
    scores: Float[Tensor, " cand"], user: Int[Tensor, " cand"], places: Int[Tensor, " user_row"]
) -> Bool[Tensor, " cand"]:
    """Which candidates (users ascending) are among the `places[u]` best of their user."""
    order = scores.argsort(descending=True, stable=True)
    order = order[user[order].argsort(stable=True)]
    count = torch.bincount(user, minlength=len(places))
    rank = torch.arange(len(user), device=user.device) - (count.cumsum(0) - count)[user]
    found = torch.zeros_like(user, dtype=torch.bool)
    found[order] = rank < places[user]
    return found


class Memory(nn.Module):
    """Which pairs were memorised in each of the last epochs: a ring of H slots.

    A slot that is not filled yet counts as not memorised, so H / 2 epochs are needed at least.
    """

    ring: Tensor
    epochs: Tensor

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.register_buffer("ring", torch.zeros(slots, 0, dtype=torch.bool))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    def prepare(self, pairs: int) -> None:
        """Make room, unless this is a memory of as many pairs already (it was loaded)."""
        if self.ring.shape[1] != pairs:
            self.ring = self.ring.new_zeros(self.slots, pairs)
            self.epochs.zero_()

    def record(self, memorised: Bool[Tensor, " pair"]) -> None:
        """Another epoch."""
        self.ring[int(self.epochs) % self.slots] = memorised
        self.epochs += 1

    @property
    def memorised(self) -> Bool[Tensor, " pair"]:
        """In at least half of the slots."""
        return 2 * self.ring.sum(0) >= self.slots

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take over the number of pairs: weights may be loaded before `prepare`."""
        if (stored := state_dict.get(f"{prefix}ring")) is not None:
            self.prepare(stored.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


# Phase II: weights, gradients, scheduler, selection (section 4) -----------------------------------


class WeightNetwork(nn.Module):
    """w(l) = sigmoid(W_2 relu(W_1 l + b_1) + b_2): one weight a loss (4a)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(1, hidden)
        self.outer = nn.Linear(hidden, 1)

    def forward(self, losses: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """No gradient reaches the losses."""
        hidden = self.inner(losses.detach().unsqueeze(1)).relu()
        weights: Tensor = self.outer(hidden).squeeze(1).sigmoid()
        return weights


def columns(
    graph: Graph, ids: Int[Tensor, " clean"], of_items: bool, layers: int, dtype: torch.dtype
) -> Vectors:
    """Columns of P, one an id, cut into the users' rows and the items'.

    The graph is bipartite, so a level stands on one side alone: half of a propagation's work.
    """
    sides = [graph.edges.users, graph.edges.item_rows]
    totals = [torch.zeros(rows, len(ids), dtype=dtype, device=ids.device) for rows in sides]
    level = totals[of_items]
    level[ids, torch.arange(len(ids), device=ids.device)] = 1
    for number in range(1, layers + 1):
        side = of_items ^ (number % 2 == 1)
        level = graph.gather(level, into_items=side)
        totals[side] = totals[side] + level
    return Vectors(*(total / (layers + 1) for total in totals))


def column_products(
    graph: Graph, triplets: Triplets, layers: int, dtype: torch.dtype
) -> Float[Tensor, "table clean end end"]:
    """Inner products of P's three columns of each triplet, over the users' rows and the items'."""
    parts = [columns(graph, ids, number > 0, layers, dtype) for number, ids in enumerate(triplets)]
    products = torch.empty(2, len(triplets.user), 3, 3, dtype=dtype, device=triplets.user.device)
    for table, ends in enumerate(zip(*parts, strict=True)):
        for one in range(3):
            for other in range(one + 1):
                found = (ends[one] * ends[other]).sum(0)
                products[table, :, one, other] = products[table, :, other, one] = found
    return products


def gradient_cosines(
    graph: Graph,
    layers: int,
    triplets: Triplets,
    before: Float[Tensor, "clean end d"],
    after: Float[Tensor, "clean end d"],
) -> Float[Tensor, "clean table"]:
    """Cosine, a table, of each triplet's gradient in it, before and after a look-ahead step (4c).

    Such a gradient is P m where m has three rows, those of `bpr_gradient`; so no gradient is ever made:
    inner products of three columns of P and of three rows of each m are enough.

    Args:
        graph: A.
        layers: K.
        triplets: The clean ones.
        before: Their final vectors at theta.
        after: Their final vectors at theta~.
    """
    size = max(1, COLUMN_NUMBERS // (3 * (graph.edges.users + graph.edges.item_rows)))
    of_graph = torch.cat(
        [
            column_products(graph, Triplets(*part), layers, before.dtype)
            for part in zip(*(ids.split(size) for ids in triplets), strict=True)
        ],
        1,
    )
    m, m_ahead = bpr_gradient(before), bpr_gradient(after)

    def inner(
        one: Float[Tensor, "clean end d"], other: Float[Tensor, "clean end d"]
    ) -> Float[Tensor, "clean table"]:
        return (of_graph * (one @ other.mT)).sum((2, 3)).T

    lengths = [inner(one, one).clamp(min=0).sqrt().clamp(min=1e-8) for one in (m, m_ahead)]
    return inner(m, m_ahead) / (lengths[0] * lengths[1])


class Scheduler(nn.Module):
    """Logits of the clean triplets from their gradient cosines and losses (4c).

    The triplets lie on the batch axis of two bidirectional LSTMs whose sequences have length one, as in
    the authors' code: the recurrent weights never act.
    """

    def __init__(self) -> None:
        super().__init__()
        self.grad_lstm = nn.LSTM(2, 10, bidirectional=True)
        self.loss_lstm = nn.LSTM(1, 10, bidirectional=True)
        self.fc1 = nn.Linear(40, 20)
        self.fc2 = nn.Linear(20, 1)

    def forward(
        self, losses: Float[Tensor, " clean"], cosines: Float[Tensor, "clean table"]
    ) -> Float[Tensor, " clean"]:
        """One logit a triplet."""
        from_cosines, _ = self.grad_lstm(cosines.unsqueeze(0))
        from_losses, _ = self.loss_lstm(losses.view(1, -1, 1))
        states = torch.cat([from_cosines, from_losses], 2).squeeze(0)
        logits: Tensor = self.fc2(self.fc1(states).tanh()).squeeze(1)
        return logits

    def reset(self) -> None:
        """A new scheduler."""
        for part in self.children():
            part.reset_parameters()  # type: ignore[operator]


class Selection(ABC):
    """How triplets are drawn by the scheduler's probabilities, and what the draw trains (4d)."""

    @abstractmethod
    def losses(
        self,
        probability: Float[Tensor, " clean"],
        ends: Float[Tensor, "clean end d"],
        generator: torch.Generator,
    ) -> Losses:
        """The meta loss, from the clean triplets' final vectors at theta'."""


class GumbelSelection(Selection):
    """As many straight-through draws with replacement as there are triplets."""

    def __init__(self, tau: float) -> None:
        self.tau = tau

    def uniform(self, size: int, generator: torch.Generator) -> Float[Tensor, "draw clean"]:
        """What the noise is made of."""
        return torch.rand(size, size, generator=generator, device=generator.device)

    def choose(
        self, probability: Float[Tensor, " clean"], uniform: Float[Tensor, "draw clean"]
    ) -> Float[Tensor, "draw clean"]:
        """One-hot rows with the gradient of softmax((log probability + g) / tau), g Gumbel noise."""
        noise = -(-(uniform + TINY).log() + TINY).log()
        soft = (((probability + TINY).log() + noise) / self.tau).softmax(1)
        hard = functional.one_hot(soft.argmax(1), len(probability)).to(soft.dtype)
        return (hard - soft).detach() + soft

    def losses(
        self,
        probability: Float[Tensor, " clean"],
        ends: Float[Tensor, "clean end d"],
        generator: torch.Generator,
    ) -> Losses:
        """Mean loss of the drawn triplets: trains the weight network and the scheduler at once."""
        uniform = self.uniform(len(probability), generator).to(probability)
        drawn = self.choose(probability, uniform) @ ends.flatten(1)
        return {"meta": bpr(drawn.view_as(ends)).mean()}


class ReinforceSelection(Selection):
    """Drawn indices; the scheduler's loss is their log probability TIMES the meta loss.

    With a plus sign, in an objective that is minimised: as in the authors' code.
    """

    def losses(
        self,
        probability: Float[Tensor, " clean"],
        ends: Float[Tensor, "clean end d"],
        generator: torch.Generator,
    ) -> Losses:
        """Two terms: one trains the weight network, the other the scheduler."""
        chances = probability.detach().to(generator.device)
        drawn = torch.multinomial(chances, len(chances), replacement=True, generator=generator)
        drawn = drawn.to(probability.device)
        meta = bpr(ends[drawn]).mean()
        return {"meta": meta, "scheduler": probability[drawn].log().sum() * meta.detach()}


def selection(config: SGDLConfig) -> Selection:
    """The part of 4d."""
    reinforces = config.selecting is Selecting.reinforce
    return ReinforceSelection() if reinforces else GumbelSelection(config.tau)


# The method ---------------------------------------------------------------------------------------


class SGDL(DotProduct):
    """A LightGCN whose losses are reweighted, guided by what it memorised first.

    Paper: Yunjun Gao, Yuntao Du, Yujia Hu, Lu Chen, Xinjun Zhu, Ziquan Fang and Baihua Zheng,
    "Self-Guided Learning to Denoise for Robust Recommendation", SIGIR 2022, doi
    10.1145/3477495.3532059. Authors' code: github.com/zealscott/SGDL, commit 718ced9, whose choices are
    the defaults. A training recipe around a scoring model; theirs is LightGCN.

    Phase I trains with BPR at a fifth of the rate, until the share of pairs that the model memorised
    reaches the share that a mixture of two Gaussians over the losses calls clean. Phase II weights each
    loss; the weights are learned by what one look-ahead step does to MEMORISED pairs, and a scheduler
    learns which of these to look at. All pairs stay in the graph throughout.

    SUBSTITUTE: the method knows one behaviour. Its matrix is the union of click and favor pairs of the
    training records (`sgdl_input`), so the target behaviour is not represented; it reads no order, images
    or texts, and no history at scoring time. `union_favor_clean` puts the favors into the memorised set
    once phase II begins; the memory ratio does not count them.

    Differences from the authors' code:
      - The scheduler and the optimisers' states live through phase II (`persist_scheduler`).
      - The clean batch has a size of its own (`cosine_batch`), theirs is the training batch's.
      - Cosines of gradients come from inner products of columns of P, the look-ahead step from P's
        symmetry: equal to rounding, without a gradient table a triplet.
      - Weight network and scheduler take their gradients from one backward pass. Theirs goes back twice
        with a step between, which today's PyTorch refuses; the gradients are the same.
      - A user whose losses are all equal gets 0 for each (theirs divides by zero).
      - Phase I ends after `max_phase1_epochs` or `train.epochs` at the latest, and the log says so; see
        `next_stage` for when nothing is memorised. Validation is the harness's: NDCG@10 after each epoch
        of phase II.
      - Sorted keys instead of a dense matrix of users and items; only the 2n candidates are scored.
    `ratios` keeps memory and clean ratio of each epoch of phase I; the log tells them too.

    Parameters: (users + items + 1) d, 3 weight_hidden + 1 of the weight network (301), 3,001 of the
    scheduler.

    Raises:
        ValueError: A count below 1, or a temperature that is not positive.
    """

    Config: ClassVar[type[ModelConfig]] = SGDLConfig
    samples: ClassVar[Samples] = Samples.pair
    config: SGDLConfig
    phase: Tensor
    ratios: Tensor

    def __init__(self, config: SGDLConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        for name in (
            "layers",
            "memory_epochs",
            "max_phase1_epochs",
            "cosine_batch",
            "weight_hidden",
        ):
            if getattr(config, name) < 1:
                raise ValueError(f"{name} is {getattr(config, name)}; at least 1 is needed")
        if config.tau <= 0:
            raise ValueError(f"tau is {config.tau}; a temperature is above 0")
        self.user_table = nn.Parameter(torch.empty(catalogue.users, config.hidden))
        self.item_table = nn.Parameter(torch.empty(catalogue.items + 1, config.hidden))
        for table in (self.user_table, self.item_table):
            nn.init.normal_(table, std=0.1)
        self.item_table.detach()[0] = 0
        self.layers = 0 if config.backbone is Backbone.mf else config.layers
        self.reading = READINGS[config.sgdl_input]
        self.weight_network = WeightNetwork(config.weight_hidden)
        self.scheduler = Scheduler()
        self.selection = selection(config)
        self.memory = Memory(config.memory_epochs)
        self.negatives = TrainingNegatives(catalogue)
        self.unmemorised = TrainingNegatives(catalogue)
        self.register_buffer("phase", torch.tensor(int(Phase.MEMORISATION)))
        self.register_buffer("ratios", torch.zeros(config.max_phase1_epochs, 2))
        self.cursor, self.states_are_old = 0, False

    def prepare(self, train: Interactions) -> None:
        """The pairs of the matrix, their graph, and room to remember them; training records alone."""
        rows, device = self.catalogue.items + 1, self.device
        favored = train.behaviour == int(Behaviour.FAVOR)
        wanted = self.reading.wanted(favored)
        user, item = distinct_pairs(train.user[wanted], train.item[wanted], rows)
        favored_keys = (train.user * rows + train.item)[favored]
        self.favored = torch.isin(user * rows + item, favored_keys).to(device)
        self.user, self.item = user.to(device), item.to(device)
        self.counts = torch.bincount(self.user, minlength=self.catalogue.users)
        ones = torch.ones(len(user), dtype=self.user_table.dtype, device=device)
        self.graph = Bipartite(self.user, self.item, self.catalogue.users, rows).normalised(ones)
        self.negatives.prepare(as_records(self.user, self.item, self.catalogue.users))
        self.memory.prepare(len(user))
        self._remembered.clear()

    # Vectors and the base loss ------------------------------------------------------------------

    def final(self, tables: Vectors) -> Vectors:
        """P theta."""
        return Vectors(*light_gcn(*tables, self.graph, self.layers))

    def vectors(self) -> Vectors:
        """Final vectors of everybody at theta."""
        return self.once("vectors", lambda: self.final(Vectors(self.user_table, self.item_table)))

    def triplets(self, batch: Batch) -> Triplets:
        """The batch's pairs that belong to the matrix, with a fresh negative each (section 2)."""
        wanted = self.reading.wanted(batch.favors[:, -1] > 0)
        user, item = batch.history.user[wanted], batch.target[wanted]
        return Triplets(user, item, self.negatives(user, 1, batch.generator).squeeze(1))

    def update(self, vectors: Vectors, triplets: Triplets) -> Losses:
        """What moves the tables: the mean loss, weighted in phase II (section 3; 4e)."""
        losses = bpr(triplets.ends(vectors))
        if self.phase == Phase.SELF_GUIDED:
            with torch.no_grad():
                weights = self.weight_network(losses)
            losses = weights * losses
        return {"bpr": losses.sum() / max(1, len(losses))}

    def loss(self, batch: Batch) -> Losses:
        """The tables' loss alone."""
        return self.update(self.vectors(), self.triplets(batch))

    def passes(self, batch: Batch) -> Iterator[Losses]:
        """In phase II the meta loss comes first, then the tables' loss with the new weights."""
        triplets, vectors = self.triplets(batch), self.vectors()
        if not len(triplets.user):
            return
        if self.phase == Phase.SELF_GUIDED:
            yield self.meta(Vectors(*(one.detach() for one in vectors)), triplets, batch.generator)
        yield self.update(vectors, triplets)

    # Phase II -----------------------------------------------------------------------------------

    def look_ahead(self, vectors: Vectors, triplets: Triplets) -> Vectors:
        """Tables theta - lr grad mean(w(l) l), a function of the weight network alone (4b).

        P is symmetric, so the gradient in the tables is P times the gradient in the final vectors; the
        latter is linear in the weights, which makes the second-order graph a plain one.

        Args:
            vectors: Final vectors at theta, detached.
            triplets: Whose losses step.
        """
        ends = triplets.ends(vectors)
        weights = self.weight_network(bpr(ends)) / len(ends)
        slopes = weights.view(-1, 1, 1) * bpr_gradient(ends)
        users = torch.zeros_like(vectors.users).index_add(0, triplets.user, slopes[:, 0])
        items = torch.zeros_like(vectors.items).index_add(
            0, torch.stack([triplets.positive, triplets.negative], 1).flatten(),
            slopes[:, 1:].flatten(0, 1),
        )  # fmt: skip
        steps = self.final(Vectors(users, items))
        tables = Vectors(self.user_table.detach(), self.item_table.detach())
        rate = self.config.learning_rate
        return Vectors(*(table - rate * step for table, step in zip(tables, steps, strict=True)))

    @torch.no_grad()
    def features(
        self, vectors: Vectors, clean: Triplets
    ) -> tuple[Float[Tensor, " clean"], Float[Tensor, "clean table"]]:
        """What the scheduler reads of the clean triplets: losses and gradient cosines (4c).

        The cosines are with the gradients after a look-ahead step on the clean triplets themselves.
        """
        before = clean.ends(vectors)
        after = clean.ends(self.final(self.look_ahead(vectors, clean)))
        return bpr(before), gradient_cosines(self.graph, self.layers, clean, before, after)

    def meta(self, vectors: Vectors, triplets: Triplets, generator: torch.Generator) -> Losses:
        """L_meta: loss at theta' of clean triplets that the scheduler draws (4b to 4d).

        Args:
            vectors: Final vectors at theta, detached.
            triplets: The training batch, which theta' steps on.
            generator: Stream of the selection.
        """
        clean = self.next_clean()
        probability = self.scheduler(*self.features(vectors, clean)).softmax(0)
        ahead = self.final(self.look_ahead(vectors, triplets))
        return self.selection.losses(probability, clean.ends(ahead), generator)

    def next_clean(self) -> Triplets:
        """The next clean triplets, from the start again after the last ones."""
        start = self.cursor
        self.cursor += self.config.cosine_batch
        if self.cursor >= len(self.clean.user):
            self.cursor = 0
        return Triplets(*(ids[start : start + self.config.cosine_batch] for ids in self.clean))

    # Epochs and stages --------------------------------------------------------------------------

    @property
    def memorised(self) -> Bool[Tensor, " pair"]:
        """The clean set of phase II."""
        return self.memory.memorised | (self.favored & self.reading.favors_are_clean)

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:  # noqa: ARG002
        """Phase II: shuffle the memorised pairs and draw a negative each, outside the MEMORISED ones.

        So an interaction that is not memorised can be a negative here, as in the authors' code.
        """
        if self.phase != Phase.SELF_GUIDED:
            return
        user, item = self.user[self.memorised], self.item[self.memorised]
        self.unmemorised.prepare(as_records(user, item, self.catalogue.users))
        order = torch.randperm(len(user), generator=generator, device=generator.device)
        order = order.to(user.device)
        negative = self.unmemorised(user[order], 1, generator).squeeze(1)
        self.clean, self.cursor = Triplets(user[order], item[order], negative), 0
        if not self.config.persist_scheduler:
            self.scheduler.reset()
            self.states_are_old = True

    def before_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Without `persist_scheduler` an epoch's first step finds no optimiser state."""
        if self.states_are_old:
            optimiser.state.clear()
            self.states_are_old = False

    @property
    def selects(self) -> bool:
        """Phase I ends by its own rule."""
        return bool(self.phase != Phase.MEMORISATION)

    @torch.no_grad()
    def stage_ended(self, epochs: int, generator: torch.Generator) -> bool:  # noqa: ARG002
        """Phase I: note what is memorised; end once that is as much as seems clean (section 3)."""
        if self.phase != Phase.MEMORISATION:
            return False
        clean = self.clean_ratio(generator)
        self.memory.record(self.memorised_now(generator))
        memory = float(self.memory.memorised.double().mean())
        epoch, cap = int(self.memory.epochs), self.config.max_phase1_epochs
        self.ratios[min(epoch, cap) - 1] = self.ratios.new_tensor([memory, clean])
        LOG.info("SGDL, epoch %d of phase I: memory ratio %.3f, clean ratio %.3f",
                 epoch, memory, clean)  # fmt: skip
        return memory >= clean or epoch >= cap

    def next_stage(self) -> bool:
        """Phase II follows phase I; a warning says when no memorisation point was reached.

        While nothing at all is memorised, phase I goes on (`train.epochs` was shorter than it), up to
        `max_phase1_epochs`; then the tables train on as in phase I, and validation chooses the epoch.
        """
        if self.phase != Phase.MEMORISATION:
            return False
        epochs, cap = int(self.memory.epochs), self.config.max_phase1_epochs
        if self.memorised.any():
            self.phase.fill_(int(Phase.SELF_GUIDED))
        elif epochs >= cap:
            self.phase.fill_(int(Phase.FALLBACK))
        memory, clean = self.ratios[min(epochs, cap) - 1].tolist()
        if memory < clean:
            LOG.warning("SGDL: no memorisation point in %d epochs of phase I (max_phase1_epochs %d): "
                        "memory ratio %.3f, clean ratio %.3f", epochs, cap, memory, clean)  # fmt: skip
        return True

    def clean_ratio(self, generator: torch.Generator) -> float:
        """Estimated share of clean pairs, from the losses of all with fresh negatives (3a)."""
        negative = self.negatives(self.user, 1, generator).squeeze(1)
        gap = self.scores(self.user, negative) - self.scores(self.user, self.item)
        losses = functional.softplus(gap).double()
        return estimated_clean_ratio(scaled_by_user(losses, self.user, self.catalogue.users))

    def memorised_now(self, generator: torch.Generator) -> Bool[Tensor, " pair"]:
        """Which of a user's n pairs are among the n best beside n drawn negatives (3b).

        A negative that is drawn twice is one candidate.
        """
        rows = self.catalogue.items + 1
        pairs = self.user * rows + self.item
        negatives = self.user * rows + self.negatives(self.user, 1, generator).squeeze(1)
        candidates = torch.unique(torch.cat([pairs, negatives]))
        user = candidates // rows
        found = among_best(self.scores(user, candidates % rows), user, self.counts)
        return found[torch.searchsorted(candidates, pairs)]

    def scores(
        self, user: Int[Tensor, " pair"], item: Int[Tensor, " pair"]
    ) -> Float[Tensor, " pair"]:
        """Inner products of final vectors, some at a time."""
        users, items = self.vectors()
        parts = zip(user.split(PAIRS), item.split(PAIRS), strict=True)
        return torch.cat([(users[one] * items[other]).sum(1) for one, other in parts])

    def optimiser(self) -> torch.optim.Optimizer:
        """Adam with a rate each for tables, weight network and scheduler.

        The meta loss reaches no table and the tables' loss nothing else, so a step moves only what its
        loss is for: Adam leaves alone what has no gradient.
        """
        share = 1.0 if self.phase == Phase.SELF_GUIDED else PHASE_ONE_SHARE
        tables = {
            "params": [self.user_table, self.item_table],
            "lr": share * self.config.learning_rate,
            "weight_decay": self.config.weight_decay,
        }
        networks = [
            {"params": list(self.weight_network.parameters()), "lr": self.config.meta_rate},
            {"params": list(self.scheduler.parameters()), "lr": self.config.schedule_rate},
        ]
        return torch.optim.Adam([tables, *networks], fused=True)

    # Scoring ------------------------------------------------------------------------------------

    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """The users' final vectors; their histories are not read."""
        return self.vectors().users[history.user]

    def item_vectors(self) -> Float[Tensor, "item_row d"]:
        """The items' final vectors."""
        return self.vectors().items


def as_records(user: Int[Tensor, " pair"], item: Int[Tensor, " pair"], users: int) -> Interactions:
    """Pairs (users ascending) as training records, for the draws that avoid them."""
    offsets = functional.pad(torch.bincount(user, minlength=users).cumsum(0), (1, 0))
    click = torch.full_like(item, int(Behaviour.CLICK))
    return Interactions(user, item, click, torch.ones_like(item, dtype=torch.bool), offsets)
