"""A cell of a table as typed data: what it computes, and nothing about where it runs.

The key of a cell is the SHA-256 of its whole resolved config, so a changed default is a new run.
Enums are matched by name on the command line (`protocol.same_item_history=keep`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from models.interface import ModelConfig


class Scope(Enum):
    """P1: the most recent 50 of the user over both behaviours, or 50 of each behaviour."""

    user = "user"
    behavior = "behavior"


class SameItemHistory(Enum):
    """P2: what happens to a target's own earlier events (protocol, "people open, then favor")."""

    drop = "drop"
    keep = "keep"
    novel_only = "novel_only"


class TrainTargets(Enum):
    """P3: every earlier interaction is a training target, or favors alone."""

    all = "all"
    favor = "favor"


class Cutoff(Enum):
    """P4: training ends per user, or also at one date for everyone."""

    per_user = "per_user"
    global_time = "global_time"


class Negatives(Enum):
    """P5: how the 99 candidates are drawn from the items that a user never touched."""

    uniform = "uniform"
    popularity = "popularity"


class Windows(Enum):
    """Windows of a method trained at all places: a user's last one, or all, end to end."""

    last = "last"
    tiled = "tiled"


@dataclass
class ProtocolConfig:
    """Readings P1 to P5 of the protocol, default first."""

    scope: Scope = Scope.user
    same_item_history: SameItemHistory = SameItemHistory.drop
    train_targets: TrainTargets = TrainTargets.all
    cutoff: Cutoff = Cutoff.per_user
    negatives: Negatives = Negatives.uniform
    max_history: int = 50
    """Most recent interactions that a method may read (section 5.1.1)."""


class Numerics(Enum):
    """What training may give up to be faster on a GPU; each step includes those before it.

    Losses and gradients alone: evaluation is exact (harness/training/numerics.py).
    """

    exact = "exact"
    """Full float32, deterministic kernels."""
    tf32 = "tf32"
    """Products of float32 matrices with 10 bits of fraction; nothing on a CPU."""
    bf16 = "bf16"
    """Losses under torch's autocast to bfloat16."""
    compiled = "compiled"
    """Losses through torch.compile, whose random numbers are others."""
    graphs = "graphs"
    """Compiled losses recorded as CUDA graphs."""

    def includes(self, step: Numerics) -> bool:
        """Whether this is `step` or one after it."""
        steps = list(Numerics)
        return steps.index(self) >= steps.index(step)


@dataclass
class TrainConfig:
    """How long and in which portions; the method's own settings are in its config."""

    epochs: int = 1000
    """Most epochs; early stopping usually ends a run before."""
    patience: int = 10
    """Epochs without a better validation NDCG@10 after which a run ends (section 5.1.3)."""
    batch_size: int = 1024
    """Samples (prefixes or windows) a step (section 5.1.3)."""
    samples: int = 0
    """Training samples drawn, without repetition, for one epoch; 0 is all of them."""
    passes: int = 1
    """Times that the samples are gone through in one epoch (budget quick: more where they are few)."""
    windows: Windows = Windows.last
    """For methods trained at all places."""
    evaluation_batch: int = 512
    """Users encoded at once in validation and test; changes speed, not scores."""
    numerics: Numerics = Numerics.exact
    """What training may give up to be faster on a GPU."""


class Task(Enum):
    """What is done with a method."""

    score = "score"
    """Train it until early stopping, and rank (every table but Table 4)."""
    time = "time"
    """Measure the seconds of its epochs and predictions, alone on the machine (Table 4)."""


@dataclass
class Cell:
    """One run: a method, on a data set, with a seed."""

    method: str = ""
    data: str = ""
    seed: int = 0
    task: Task = Task.score
    users: int = 0
    """At most this many users of the data, the first ones; 0 is all (budget smoke: 200)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)


def plain(config: Any) -> Any:
    """A config as JSON's types: dataclasses become objects, enums their names."""
    return plain_value(asdict(config))


def plain_value(item: Any) -> Any:
    """A setting as JSON's types: an enum becomes its name, a tuple a list."""
    if isinstance(item, Enum):
        return item.name
    if isinstance(item, dict):
        return {key: plain_value(inner) for key, inner in item.items()}
    if isinstance(item, list | tuple):
        return [plain_value(inner) for inner in item]
    return item


def digest(content: Any) -> str:
    """SHA-256 of JSON's types, keys sorted."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def cell_key(cell: Cell) -> str:
    """The name of a run: SHA-256 of its whole resolved config.

    A run with exact numerics has the name that it had when there were no others.
    """
    named = plain(cell)
    if cell.train.numerics is Numerics.exact:
        del named["train"]["numerics"]
    return digest(named)
