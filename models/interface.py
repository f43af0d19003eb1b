"""What every method is: what it is told about the items, what it reads, what it must answer.

Axes: batch = users or samples, length = slots of a left-padded history, place = places of a
window at which a target is read, cand = candidate items, event = interactions in time order,
item_row = items + 1 (row 0 is padding), d = hidden width.

Item ids are 1..items and 0 is padding; user ids are 0..users-1 and have no padding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Losses = dict[str, Tensor]
"""Named scalar terms, already weighted; their sum is trained."""

T = TypeVar("T")

State = Any
"""What `encode` hands to `score`: everything that does not depend on the candidates."""


class Behaviour(IntEnum):
    """The two behaviours of the paper (section 3.1); favor is the target behaviour."""

    PADDING = 0
    CLICK = 1
    FAVOR = 2


class Samples(Enum):
    """What a method is trained on: see `Batch`."""

    prefix = "prefix"
    window = "window"
    pair = "pair"


@dataclass(frozen=True)
class Catalogue:
    """What a method may know of users and items before it sees an interaction."""

    users: int
    items: int
    length: int
    """Longest history that `encode` or `loss` will be handed, in slots (50; 100 under
    `protocol.scope=behavior`)."""
    image: Float[Tensor, "item_row image_width"]
    """Frozen image vectors, as stored; rows of padding and of missing images are zero."""
    image_present: Bool[Tensor, " item_row"]
    text: Float[Tensor, "item_row text_width"]
    text_present: Bool[Tensor, " item_row"]
    fields: Mapping[str, Int[Tensor, " item_row"]]
    """Id fields of an item beside its id (brand, seller, category); 0 is padding or unknown."""
    drops_own_events: bool
    """True under `protocol.same_item_history=drop` (and `novel_only`): a target's own earlier
    events must not help to predict it. Prefix batches already leave them out; a method that
    builds its own samples from a window has to do the same."""


@dataclass(frozen=True)
class Interactions:
    """The training events of all users, users ascending, time order inside a user."""

    user: Int[Tensor, " event"]
    item: Int[Tensor, " event"]
    behaviour: Int[Tensor, " event"]
    target: Bool[Tensor, " event"]
    """Which events are training targets (readings P2 to P4 of the protocol); all True elsewhere."""
    offsets: Int[Tensor, " users_plus_one"]
    """Events of user u are offsets[u] : offsets[u + 1]."""


@dataclass(frozen=True)
class History:
    """One merged sequence a row, left-padded; the latest event stands in the last slot.

    `length` is the longest row of the batch (at least 1), not always `Catalogue.length`.
    """

    user: Int[Tensor, " batch"]
    items: Int[Tensor, "batch length"]
    behaviours: Int[Tensor, "batch length"]

    @property
    def real(self) -> Bool[Tensor, "batch length"]:
        """True where a slot holds an event."""
        return self.items > 0

    def only(self, behaviour: Behaviour) -> History:
        """Clicks alone or favors alone, re-packed to the right, order kept."""
        return self.keep(self.behaviours == behaviour)

    def keep(self, mask: Bool[Tensor, "batch length"]) -> History:
        """The events where `mask` is true, re-packed to the right and trimmed to the longest row."""
        mask = mask & self.real
        order = torch.argsort(mask.to(torch.int8), dim=1, stable=True)
        longest = max(1, int(mask.sum(1).max())) if mask.numel() else 1
        order = order[:, -longest:]
        kept = mask.gather(1, order)
        return replace(
            self,
            items=self.items.gather(1, order) * kept,
            behaviours=self.behaviours.gather(1, order) * kept,
        )

    def padded(self, length: int) -> History:
        """The same history with exactly `length` slots (more padding, or the latest events)."""
        missing = length - self.items.shape[1]
        pad = nn.functional.pad
        return replace(
            self,
            items=pad(self.items, (missing, 0)),
            behaviours=pad(self.behaviours, (missing, 0)),
        )

    def to(self, device: torch.device) -> History:
        """The same history on another device."""
        return History(self.user.to(device), self.items.to(device), self.behaviours.to(device))


@dataclass(frozen=True)
class Batch:
    """Training samples.

    `Samples.prefix`: one target a row, read after the whole history (place = 1).
    `Samples.window`: one row a user; `targets[:, p]` is read at slot p, from the events up to and
    including slot p (place = length). A target whose item occurs earlier stands at the slot before
    the item's first touch, so nothing leaks; `clicks` and `favors` count the events it stands for.

    `Samples.pair`: one row a distinct pair of a user and an item among the training records, whether
    its events are targets or not, for methods that read no order (place = 1). The history is one slot
    of padding; `clicks` and `favors` count the pair's events.
    """

    history: History
    targets: Int[Tensor, "batch place"]
    """Item id to predict at each place; 0 where there is none."""
    clicks: Float[Tensor, "batch place"]
    """Click events of the target that are trained at this place (0 or 1 for a prefix)."""
    favors: Float[Tensor, "batch place"]
    """Favor events of the target that are trained at this place (0 or 1 for a prefix)."""
    generator: torch.Generator
    """Every draw of a training pass (negatives, masks, diffusion noise); dropout aside."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; the generator is left where it is."""
        return replace(
            self,
            history=self.history.to(device),
            targets=self.targets.to(device),
            clicks=self.clicks.to(device),
            favors=self.favors.to(device),
        )

    @property
    def target(self) -> Int[Tensor, " batch"]:
        """The target of a prefix or pair batch."""
        return self.targets[:, -1]

    @property
    def target_behaviour(self) -> Int[Tensor, " batch"]:
        """Deepest behaviour of a prefix or pair batch's target: Behaviour.CLICK or Behaviour.FAVOR."""
        return torch.where(self.favors[:, -1] > 0, int(Behaviour.FAVOR), int(Behaviour.CLICK))

    @property
    def weights(self) -> Float[Tensor, "batch place"]:
        """Events, of either behaviour, that each place stands for."""
        return self.clicks + self.favors


@dataclass
class ModelConfig:
    """Settings that every method has; a method's own follow in its file."""

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Own options that are tuned beside the grid that all methods share (protocol, Tuning): the option,
    dotted below `model.`, and its values; at most 12 combinations."""

    hidden: int = 64
    """Width d; the paper's grid is 64, 128, 256, 512 (section 5.1.3)."""
    learning_rate: float = 1e-3
    """The paper's grid is 1e-5, 1e-4, 1e-3 (section 5.1.3)."""
    weight_decay: float = 0.0
    """L2 added to the gradient, as torch.optim.Adam does it."""


class Recommender(nn.Module, ABC):
    """One method. Parts are chosen in `__init__`, once; `loss` and `encode` have no `if config.`.

    Stages. A method is trained in one stage unless `next_stage` says otherwise. A stage ends when early
    stopping has used up its patience, when `stage_ended` says so, or after `train.epochs` epochs; it
    hands on the weights of its best validation epoch, or of its last one where `selects` is False.
    Then `next_stage` is asked for another. Only the last stage's epochs compete for the final weights.
    Which stage it is, and everything else that `loss`, `encode` and `score` depend on, has to be in
    `state_dict` (a buffer): a run may be killed and taken up after any epoch.
    """

    Config: ClassVar[type[ModelConfig]] = ModelConfig
    samples: ClassVar[Samples] = Samples.prefix
    """Which kind of `Batch` `loss` wants; an attribute of the model where a setting decides it."""
    trained: ClassVar[bool] = True
    """False for a reference row: `prepare` is all of its training, `loss` is never called."""

    def __init__(self, config: ModelConfig, catalogue: Catalogue) -> None:
        super().__init__()
        self.config = config
        self.catalogue = catalogue
        self._remembered: dict[str, Any] = {}

    def prepare(self, train: Interactions) -> None:
        """Graphs, counts, memories: called once, before training and after loading."""

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Curricula and refreshed samples: called before each epoch (from 0, through all stages)."""

    @property
    def selects(self) -> bool:
        """False in a stage whose epochs validation must not choose among (pre-training, say)."""
        return True

    def stage_ended(self, epochs: int, generator: torch.Generator) -> bool:  # noqa: ARG002
        """Whether the method's own rule ends the stage, `epochs` old: asked once after each epoch."""
        return False

    def next_stage(self) -> bool:
        """Enter the stage that follows (True), or say that there is none (False).

        A new optimiser and schedule are made for it.
        """
        return False

    def before_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Called between the gradients and the optimiser's step: clipping, rates of a phase."""

    @abstractmethod
    def loss(self, batch: Batch) -> Losses:
        """Terms of the training loss, weighted, each a scalar."""

    def passes(self, batch: Batch) -> Iterator[Losses]:
        """The losses of a batch, one after the other, with an update after each: one, by default.

        A method whose authors update more often than once a batch yields as often (GRU4Rec does so
        after every step of its session-parallel lanes).
        """
        yield self.loss(batch)

    @abstractmethod
    def encode(self, history: History) -> State:
        """Everything about the users that does not depend on the candidates. Empty rows are legal."""

    @abstractmethod
    def score(self, state: State, items: Int[Tensor, "batch cand"]) -> Float[Tensor, "batch cand"]:
        """Scores of some items a user; larger is better. A tie must be exact."""

    def score_all(self, state: State) -> Float[Tensor, "batch item_row"]:
        """Scores of every item; column 0 (padding) means nothing."""
        rows = torch.arange(self.catalogue.items + 1, device=self.device)
        batch = state.shape[0] if isinstance(state, Tensor) else state[0].shape[0]
        return self.score(state, rows.expand(batch, -1))

    def optimiser(self) -> torch.optim.Optimizer:
        """The method's optimiser; Adam (the paper's, section 5.1.3) unless its authors have another."""
        return torch.optim.Adam(
            self.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    def schedule(
        self,
        optimiser: torch.optim.Optimizer,  # noqa: ARG002
        steps: int,  # noqa: ARG002
    ) -> torch.optim.lr_scheduler.LRScheduler | None:
        """Learning-rate schedule, stepped after each batch; `steps` are the batches of one epoch."""
        return None

    def item_views(self, histories: Iterable[History]) -> dict[str, Tensor]:  # noqa: ARG002
        """What figures read of a trained model, by name; called in evaluation mode. Default: nothing.

        `histories` are those of the test users, in batches. Stored beside the record, so small.
        """
        return {}

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """`compute()`, remembered under `name` while nothing can change it.

        That is in evaluation mode and without gradients, until the mode is set again or weights are
        loaded. For what all users share and is dear: a graph's propagation, vectors of all items.
        """
        if self.training or torch.is_grad_enabled():
            return compute()
        if name not in self._remembered:
            self._remembered[name] = compute()
        found: T = self._remembered[name]
        return found

    def train(self, mode: bool = True) -> Any:  # itself, as torch's
        """Set the mode, and forget what `once` remembers."""
        self._remembered.clear()
        return super().train(mode)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights, and forget what `once` remembers."""
        self._remembered.clear()
        return super().load_state_dict(*args, **kwargs)

    @property
    def device(self) -> torch.device:
        """Where the model lives (the CPU when it has no tensor)."""
        tensor = next(self.parameters(), next(self.buffers(), None))
        return torch.device("cpu") if tensor is None else tensor.device
