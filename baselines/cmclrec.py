"""CMCLRec (Xu et al., SIGIR 2024), a reconstruction: simulated behaviours for cold users.

No public code and no readable full text of the paper exists (see `CMCLRec`); C0 to C5 number the
parts of this reconstruction in order, X1 to X7 its readings, default first.

C0 backbone, C1 feature tower f, C2 interaction tower g, C3 contrastive loss, C4 simulation, C5 the
backbone reads simulated items before the real ones.

Axes: batch, length = slots of a left-padded history, simulated = items simulated a user, row = rows
that are searched, event = training events, cand = candidate items, item_row = items + 1 (row 0 is
padding), d = hidden width, feature = width D of a profile.

Symbols: x_u profile, S_u sequence, h_u the backbone's user vector of S_u, E its item table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from baselines.mmmlp import MMMLP, MMMLPConfig
from baselines.sasrec import SASRec, SASRecConfig
from models.interface import (
    Batch,
    Behaviour,
    Catalogue,
    History,
    Interactions,
    Losses,
    ModelConfig,
    Recommender,
    Samples,
)
from models.layers import Dropout, ReadFavors, Reading, ReadMerged
from models.softmax import BLOCK


class Backbone(Enum):
    """X1: the sequential model that is wrapped."""

    sasrec = "sasrec"
    mmmlp = "mmmlp"


class Training(Enum):
    """X2: the towers after the backbone, which is frozen then, or both together."""

    two_stage = "two_stage"
    joint = "joint"


class Simulate(Enum):
    """X3: the items most similar to the profile, or the latest items of the most similar warm user."""

    items = "items"
    neighbour = "neighbour"


class Profile(Enum):
    """X5: clicked items (favored ones where there is no click), all items, or the first and a count."""

    clicks = "clicks"
    all = "all"
    clicks_count = "clicks_count"


class Sequence(Enum):
    """X6: what a warm user's interaction side is: both behaviours in time order, or favors alone."""

    merged = "merged"
    favor = "favor"


@dataclass
class CMCLRecConfig(ModelConfig):
    """Settings of the towers and of the simulation; none of them is known from the paper.

    `hidden`, `learning_rate` and `weight_decay` are the backbone's, in place of those that its own
    settings hold.
    """

    backbone: Backbone = Backbone.sasrec
    sasrec: SASRecConfig = field(default_factory=SASRecConfig)
    """Settings of this backbone."""
    mmmlp: MMMLPConfig = field(default_factory=MMMLPConfig)
    """Settings of this one."""
    training: Training = Training.two_stage
    joint_weight: float = 0.1
    """Of the contrastive loss under `joint`."""
    simulate: Simulate = Simulate.items
    simulated: int = 10
    """X4: n_sim, items a cold user, at least 1."""
    profile: Profile = Profile.clicks
    interactions: Sequence = Sequence.merged
    cold_max: int = 10
    """X7: a user with at most so many events in the history is cold."""
    warm_min: int = 3
    """A user with at least so many training events is warm: one of the towers' examples."""
    temperature: float = 0.07
    """tau."""
    tower_dropout: float = 0.1
    """Inside the feature tower."""
    tower_learning_rate: float = 1e-3
    """Of Adam."""
    tower_batch: int = 1024
    """Warm users a batch, under `two_stage`."""
    tower_epochs: int = 20
    """Passes over the warm users, at most, under `two_stage`."""

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "simulated": (10, 5, 20),
        "cold_max": (10, 5, 2),
    }


BACKBONES: dict[Backbone, Callable[[CMCLRecConfig, Catalogue], SASRec | MMMLP]] = {
    Backbone.sasrec: lambda config, catalogue: SASRec(shared(config, config.sasrec), catalogue),
    Backbone.mmmlp: lambda config, catalogue: MMMLP(shared(config, config.mmmlp), catalogue),
}


def shared(config: CMCLRecConfig, own: Any) -> Any:
    """A backbone's settings with the width and the rates of this method's."""
    return replace(
        own,
        hidden=config.hidden,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )


def item_table(backbone: SASRec | MMMLP) -> Float[Tensor, "item_row d"]:
    """E of either backbone."""
    return backbone.item_table if isinstance(backbone, SASRec) else backbone.items.weight


SEQUENCES: dict[Sequence, tuple[Reading, Behaviour]] = {
    Sequence.merged: (ReadMerged(), Behaviour.CLICK),
    Sequence.favor: (ReadFavors(), Behaviour.FAVOR),
}
"""What is read of a history, and the tag of simulated items for a backbone that reads tags."""


# Profiles ---------------------------------------------------------------------------------------


def clicks_or_favors(history: History) -> Bool[Tensor, "batch length"]:
    """True at clicks; in a row without one, at favors."""
    clicks = history.real & (history.behaviours == int(Behaviour.CLICK))
    return torch.where(clicks.any(1, keepdim=True), clicks, history.real)


class ProfileOf(nn.Module):
    """x_u = [mean image vector ; mean text vector] of items of the history, each half of length 1.

    An event counts once, so an item clicked twice counts twice. The vectors of missing images and
    texts are zeros and so left out; a half without any vector is zeros. (The sum has the direction of
    the mean.)
    """

    image: Tensor
    text: Tensor

    def __init__(
        self, catalogue: Catalogue, chosen: Callable[[History], Bool[Tensor, "batch length"]]
    ) -> None:
        super().__init__()
        self.register_buffer("image", catalogue.image, persistent=False)
        self.register_buffer("text", catalogue.text, persistent=False)
        self.width = catalogue.image.shape[1] + catalogue.text.shape[1]
        self.chosen = chosen

    def forward(self, history: History) -> Float[Tensor, "batch feature"]:
        """One profile a row, of nothing but this history."""
        weights = self.chosen(history).to(self.image.dtype)
        halves = [
            functional.embedding_bag(history.items, vectors, per_sample_weights=weights, mode="sum")
            for vectors in (self.image, self.text)
        ]
        return torch.cat([functional.normalize(half, dim=1) for half in halves], 1)


class ProfileAndCount(ProfileOf):
    """X5 `clicks_count`: the same and log(1 + events that it is made of)."""

    def __init__(
        self, catalogue: Catalogue, chosen: Callable[[History], Bool[Tensor, "batch length"]]
    ) -> None:
        super().__init__(catalogue, chosen)
        self.width += 1

    def forward(self, history: History) -> Float[Tensor, "batch feature"]:
        """One profile a row."""
        count = self.chosen(history).sum(1, keepdim=True).to(self.image.dtype)
        return torch.cat([super().forward(history), count.log1p()], 1)


PROFILES: dict[Profile, Callable[[Catalogue], ProfileOf]] = {
    Profile.clicks: lambda catalogue: ProfileOf(catalogue, clicks_or_favors),
    Profile.all: lambda catalogue: ProfileOf(catalogue, lambda history: history.real),
    Profile.clicks_count: lambda catalogue: ProfileAndCount(catalogue, clicks_or_favors),
}


# Towers -----------------------------------------------------------------------------------------


class Towers(nn.Module):
    """C1 to C3: both sides as unit vectors of one space."""

    def __init__(self, features: int, hidden: int, dropout: float, temperature: float) -> None:
        super().__init__()
        self.inner = nn.Linear(features, hidden)
        self.dropout = Dropout(dropout)
        self.outer = nn.Linear(hidden, hidden)
        self.sequence = nn.Linear(hidden, hidden)
        self.temperature = temperature
        for linear in (self.inner, self.outer, self.sequence):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def of_features(self, x: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch d"]:
        """C1: f = L2norm(Linear(Dropout(ReLU(Linear(x)))))."""
        out: Tensor = self.outer(self.dropout(self.inner(x).relu()))
        return functional.normalize(out, dim=1)

    def of_sequences(self, h: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """C2: g = L2norm(W h + b), of user vectors and, with the same W and b, of items' E_i."""
        out: Tensor = self.sequence(h)
        return functional.normalize(out, dim=1)

    def similarities(
        self, x: Float[Tensor, "batch feature"], h: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch batch"]:
        """C3: A = f g^T / tau."""
        return self.of_features(x) @ self.of_sequences(h).T / self.temperature


def contrast(
    similarities: Float[Tensor, "batch batch"], user: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """C3: cross-entropy of the diagonal in the rows (features to sequences) and in the columns.

    Another sample of the same user is no negative. Of no sample the loss is 0.
    """
    place = torch.arange(len(user), device=user.device)
    again = (user.unsqueeze(1) == user) & (place.unsqueeze(1) != place)
    logits = similarities.masked_fill(again, -torch.inf)
    count = max(1, len(user))
    rows, columns = (
        functional.cross_entropy(each, place, reduction="sum") / count
        for each in (logits, logits.T)
    )
    return rows, columns


# Simulation -------------------------------------------------------------------------------------


def nearest(
    query: Float[Tensor, "batch d"], table: Float[Tensor, "row d"], count: int
) -> Int[Tensor, "batch simulated"]:
    """The `count` rows of the largest products, the largest first; of equal ones the smaller row.

    A block of rows at a time: never batch x rows. (topk alone may return any of several equals.)
    """
    best = query.new_empty(len(query), 0)
    found = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
    block = max(BLOCK // max(len(query), 1), count)
    for start in range(0, len(table), block):
        products = query @ table[start : start + block].T
        rows = torch.arange(start, start + products.shape[1], device=query.device)
        best = torch.cat([best, products], 1)
        found = torch.cat([found, rows.expand_as(products)], 1)
        kept = min(count, best.shape[1])
        last = best.topk(kept, dim=1).values[:, -1:]
        above, equal = best > last, best == last
        missing = kept - above.sum(1, keepdim=True)
        chosen = above | (equal & (equal.cumsum(1) <= missing))
        best = best[chosen].view(len(query), kept)
        found = found[chosen].view(len(query), kept)
        # earlier blocks hold smaller rows, and a stable sort keeps them before their equals
        order = best.argsort(dim=1, descending=True, stable=True)
        best, found = best.gather(1, order), found.gather(1, order)
    return found


class WarmUsers(nn.Module):
    """C3: training users with enough events, and the sequences of their training records."""

    item: Tensor
    behaviour: Tensor
    user: Tensor
    start: Tensor
    end: Tensor

    def __init__(self, least: int, length: int) -> None:
        super().__init__()
        self.least, self.length = least, length
        for name in ("item", "behaviour", "user", "start", "end"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64), persistent=False)

    def prepare(self, train: Interactions, wanted: Bool[Tensor, " event"]) -> None:
        """Note all events, and who is warm: enough events, a wanted one among the latest of them."""
        before = functional.pad(wanted.cumsum(0), (1, 0))
        start, end = train.offsets[:-1], train.offsets[1:]
        some = before[end] > before[torch.maximum(start, end - self.length)]
        user = ((end - start >= self.least) & some).nonzero().squeeze(1)
        noted = (train.item, train.behaviour, user, start[user], end[user])
        for name, value in zip(("item", "behaviour", "user", "start", "end"), noted, strict=True):
            setattr(self, name, value.to(self.item.device))

    def __len__(self) -> int:
        """How many they are."""
        return len(self.user)

    def history(self, rows: Int[Tensor, " row"], length: int) -> History:
        """Their last training events, both behaviours."""
        slots = torch.arange(length, 0, -1, device=rows.device)
        event = self.end[rows].unsqueeze(1) - slots
        real = event >= self.start[rows].unsqueeze(1)
        event = event.clamp(min=0)
        items, behaviours = self.item[event] * real, self.behaviour[event] * real
        return History(self.user[rows], items, behaviours)


def similar_items(
    model: CMCLRec,
    query: Float[Tensor, "batch d"],
    user: Int[Tensor, " batch"],  # noqa: ARG001
) -> Int[Tensor, "batch simulated"]:
    """X3 `items`: the real items of the largest q . g(i), those of the real history among them."""
    vectors = model.once("items", lambda: model.towers.of_sequences(item_table(model.backbone)))
    return nearest(query, vectors[1:], model.config.simulated).flip(1) + 1


def similar_user(
    model: CMCLRec, query: Float[Tensor, "batch d"], user: Int[Tensor, " batch"]
) -> Int[Tensor, "batch simulated"]:
    """X3 `neighbour`: the latest training items of the warm user of the largest q . g(S_v).

    Somebody else, that is: copying a user's own items would simulate nothing. Without anybody, none.
    """
    count = model.config.simulated
    if not len(model.warm):
        return torch.zeros(len(query), count, dtype=torch.int64, device=query.device)
    vectors = model.once("warm", lambda: model.towers.of_sequences(model.warm_states()))
    found = nearest(query, vectors, 2)
    other = model.warm.user[found] != user.unsqueeze(1)
    chosen = torch.where(other[:, 0], found[:, 0], found[:, -1])
    return model.warm.history(chosen, count).items * other.any(1, keepdim=True)


SIMULATIONS = {Simulate.items: similar_items, Simulate.neighbour: similar_user}


def composed(
    simulated: Int[Tensor, "batch simulated"], history: History, tag: Behaviour
) -> History:
    """C5: the simulated items before the real history, which stays the more recent.

    Args:
        simulated: Item ids, 0 where there is none.
        history: What follows them.
        tag: Behaviour that a backbone with behaviours takes the simulated items for.
    """
    return replace(
        history,
        items=torch.cat([simulated, history.items], 1),
        behaviours=torch.cat([(simulated > 0) * int(tag), history.behaviours], 1),
    ).keep(torch.cat([simulated > 0, history.real], 1))


# The model --------------------------------------------------------------------------------------

BACKBONE, TOWERS, JOINT = range(3)
"""Values of the buffer `stage`."""


class CMCLRec(Recommender):
    """RECONSTRUCTION: every row of this model is to be printed as "CMCLRec (reconstruction)".

    Paper: Xu et al., "CMCLRec: Cross-modal Contrastive Learning for User Cold-start Sequential
    Recommendation", SIGIR 2024, doi 10.1145/3626772.3657839. Of it we know the abstract: contrastive
    learning between user FEATURES and user-item INTERACTIONS of warm users (not between image and
    text) gives a map from one to the other, by which a behaviour sequence is simulated for each cold
    user and handed to any sequential recommender. All else is ours, the readings X1 to X7 above all,
    so a difference from the published row says nothing about either side.

    Stage 1 trains the backbone as its own file says, with early stopping. Stage 2 trains both towers
    on the frozen backbone's vectors: only cold users' scores move in it, so the validation NDCG@10 of
    all users chooses the epoch that the cold users' own would.

    Substitutes: the data have no user features. x_u is a profile of the images and texts of the
    history before the target, and of nothing else (a training sample's: of its own history). The
    paper's cold users have no event at all, here they have 1 to 10 (X7), and none in rare cases.

    The towers of warm users whose interaction side is empty (X6 `favor`, no favor) are not trained.
    Simulated items carry the tag of a click (X6 `favor`: of a favor) for a backbone that reads tags.

    Raises:
        ValueError: A count that is too small, or settings that the backbone refuses.
    """

    Config: ClassVar[type[ModelConfig]] = CMCLRecConfig
    samples: ClassVar[Samples] = SASRec.samples
    config: CMCLRecConfig
    stage: Tensor
    states: Tensor

    def __init__(self, config: CMCLRecConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        for name, least in (("simulated", 1), ("warm_min", 1), ("cold_max", 0), ("tower_batch", 2)):
            if (value := getattr(config, name)) < least:
                raise ValueError(f"{name} is {value}; at least {least} is needed")
        self.backbone = BACKBONES[config.backbone](config, catalogue)
        self.samples = self.backbone.samples  # type: ignore[misc]  # the backbone decides it
        self.profile = PROFILES[config.profile](catalogue)
        self.towers = Towers(
            self.profile.width, config.hidden, config.tower_dropout, config.temperature
        )
        self.reading, self.tag = SEQUENCES[config.interactions]
        self.warm = WarmUsers(config.warm_min, catalogue.length)
        self.simulate = SIMULATIONS[config.simulate]
        first = JOINT if config.training is Training.joint else BACKBONE
        self.register_buffer("stage", torch.tensor(first))
        self.register_buffer("states", torch.zeros(0), persistent=False)

    def prepare(self, train: Interactions) -> None:
        """Note who is warm, and what the backbone notes."""
        self.backbone.prepare(train)
        favors = train.behaviour == int(Behaviour.FAVOR)
        wanted = favors if self.tag is Behaviour.FAVOR else torch.ones_like(favors)
        self.warm.prepare(train, wanted)
        self.states = self.states[:0]
        self._remembered.clear()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights, and forget what older ones have made, here and in the backbone."""
        found = super().load_state_dict(*args, **kwargs)
        self.states = self.states[:0]
        self.train(self.training)
        return found

    # Training

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """A frozen backbone drops nothing; its vectors of the warm users are made once."""
        self.backbone.begin_epoch(epoch, generator)
        if int(self.stage) == TOWERS:
            self.backbone.eval()
            self.states = self.warm_states()
            order = torch.randperm(len(self.warm), generator=generator, device=generator.device)
            self.tower_batches = iter(order.to(self.device).split(self.config.tower_batch))

    def stage_ended(self, epochs: int, generator: torch.Generator) -> bool:  # noqa: ARG002
        """The towers have their number of epochs."""
        return int(self.stage) == TOWERS and epochs >= self.config.tower_epochs

    def next_stage(self) -> bool:
        """From the backbone to the towers, unless nobody is warm."""
        if int(self.stage) != BACKBONE or not len(self.warm):
            return False
        self.stage.fill_(TOWERS)
        return True

    def optimiser(self) -> torch.optim.Optimizer:
        """The backbone's own; Adam for the towers alone; under `joint` the towers join the backbone's."""
        rate = self.config.tower_learning_rate
        towers = {"params": list(self.towers.parameters()), "lr": rate, "weight_decay": 0.0}
        if int(self.stage) == TOWERS:
            return torch.optim.Adam([towers], fused=True)
        own = self.backbone.optimiser()
        if int(self.stage) == JOINT:
            own.add_param_group(towers)
        return own

    def passes(self, batch: Batch) -> Iterator[Losses]:
        """As the backbone's; for the towers all batches of the epoch, of warm users instead."""
        if int(self.stage) == BACKBONE:
            yield from self.backbone.passes(batch)
        elif int(self.stage) == JOINT:
            yield self.loss(batch)
        else:
            for rows in self.tower_batches:
                x = self.profile(self.warm.history(rows, self.catalogue.length))
                yield self.contrast(x, self.states[rows], self.warm.user[rows])

    def loss(self, batch: Batch) -> Losses:
        """The backbone's; that of the towers (on the batch's histories); or both, the latter weighted."""
        if int(self.stage) == BACKBONE:
            return self.backbone.loss(batch)
        history, side = batch.history, self.reading.history(batch.history)
        warm = (history.real.sum(1) >= self.config.warm_min) & side.real.any(1)
        with torch.set_grad_enabled(int(self.stage) == JOINT):
            h = self.backbone.encode(side)
        losses = self.contrast(self.profile(history)[warm], h[warm], history.user[warm])
        if int(self.stage) == TOWERS:
            return losses
        weight = self.config.joint_weight
        weighted = {name: weight * term for name, term in losses.items()}
        return {**self.backbone.loss(batch), **weighted}

    def contrast(
        self,
        x: Float[Tensor, "batch feature"],
        h: Float[Tensor, "batch d"],
        user: Int[Tensor, " batch"],
    ) -> Losses:
        """C3: half the cross-entropy of either direction."""
        rows, columns = contrast(self.towers.similarities(x, h), user)
        return {"to_sequences": rows / 2, "to_features": columns / 2}

    @torch.no_grad()
    def warm_states(self) -> Float[Tensor, "row d"]:
        """h_u of all warm users; those of a frozen backbone are kept, so they are made once."""
        if len(self.states) == len(self.warm):
            return self.states
        by_length = torch.argsort(self.warm.end - self.warm.start, stable=True)
        made = []
        for rows in by_length.split(1024):
            history = self.reading.history(self.warm.history(rows, self.catalogue.length))
            made.append(self.backbone.encode(history.keep(history.real)))  # to the longest row
        return torch.cat(made)[by_length.argsort()]

    # Evaluation

    def completed(self, history: History) -> History:
        """C5: cold users' histories with simulated items before them, at most L slots; others' alone."""
        cold = history.real.sum(1) <= self.config.cold_max
        rows = of_rows(history, cold)
        query = self.towers.of_features(self.profile(rows))
        found = self.simulate(self, query, rows.user)
        simulated = found.new_zeros(len(cold), found.shape[1])
        simulated[cold] = found
        whole = composed(simulated, history, self.tag)
        return whole.padded(min(whole.items.shape[1], self.catalogue.length))

    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """The backbone's user vector; while the backbone alone is trained, of the real history."""
        if int(self.stage) != BACKBONE:
            history = self.completed(history)
        return self.backbone.encode(history)

    def score(
        self, state: Float[Tensor, "batch d"], items: Int[Tensor, "batch cand"]
    ) -> Float[Tensor, "batch cand"]:
        """The backbone's."""
        return self.backbone.score(state, items)

    def score_all(self, state: Float[Tensor, "batch d"]) -> Float[Tensor, "batch item_row"]:
        """The backbone's."""
        return self.backbone.score_all(state)


def of_rows(history: History, mask: Bool[Tensor, " batch"]) -> History:
    """The users where `mask` is true."""
    return History(history.user[mask], history.items[mask], history.behaviours[mask])
