"""What the paper's text leaves open in M3BSR: R1-R23 as one table, and a config read another way.

Where the text is silent, ambiguous or contradicts itself, an option stands beside the part that it
changes (models/diffusion.py, experts.py, m3bsr.py). Here they stand side by side, in the order of
their numbers. The values come from the options' own types, so a value added there is one here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from models.m3bsr import M3BSRConfig, repaired

Config = TypeVar("Config")


@dataclass(frozen=True)
class Option:
    """One thing that the text leaves open."""

    id: str
    """R1 to R23 of the model; P1 to P5 of the protocol have the same form."""
    path: str
    """Where it stands in its config, dotted."""
    values: tuple[Any, ...]
    """Every reading, the default first."""
    why: str
    """Why the text does not settle it."""

    def of(self, config: object) -> Any:
        """The reading that a config takes."""
        value: Any = config
        for name in self.path.split("."):
            value = getattr(value, name)
        return value

    def taken(self, config: Config, value: object) -> Config:
        """A copy of a config with this reading. Raises AttributeError for a config without it."""
        changed = copy.deepcopy(config)
        *path, last = self.path.split(".")
        owner: Any = changed
        for name in path:
            owner = getattr(owner, name)
        getattr(owner, last)
        setattr(owner, last, value)
        return changed

    def others(self, config: object) -> tuple[Any, ...]:
        """The readings that a config does not take."""
        own = self.of(config)
        return tuple(value for value in self.values if value != own)


def value_name(value: object) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, Enum):
        return value.name
    return str(value).lower() if isinstance(value, bool) else str(value)


def option(config: object, id_: str, path: str, why: str, *numbers: int) -> Option:
    """An option whose values are all that its type has, the default first.

    Args:
        config: A default config that has the option.
        id_: Its number.
        path: Where it stands.
        why: Why it is open.
        numbers: The readings of a number, which has no type that lists them.

    Raises TypeError for an option without a list of its values.
    """
    default = Option(id_, path, (), why).of(config)
    if isinstance(default, Enum):
        values: tuple[Any, ...] = tuple(type(default))
    elif isinstance(default, bool):
        values = (True, False)
    elif numbers:
        values = numbers
    else:
        raise TypeError(f"{id_} {path}: nothing lists its values")
    return Option(id_, path, (default, *(value for value in values if value != default)), why)


def _options() -> Iterator[Option]:
    paper = M3BSRConfig()
    for id_, path, why, *numbers in (
        ("R1", "schedule.noise", "the range 0.001 to 0.1 is given to alpha, where the usual one is beta's"),
        ("R2", "schedule.mean", "Eq. 1 and 6 print the mean (1 - beta) h, Eq. 7 and 11 sqrt(alpha) h"),
        ("R3", "denoiser.time_embedding", "Eq. 9 does not read the step t"),
        ("R4", "sampling.eval_start", "where the reverse chain starts in evaluation is not said"),
        ("R5", "behavior.condition", "the formula's condition is the favors' image, the prose's all their features"),
        ("R6", "diffusion.loss", "Eq. 10 and 13 print a distance along the chain; the work cited trains on noise"),
        ("R7", "concat", "along which axis Eq. 14-16 concatenate is not said"),
        ("R8", "pooling", "how a sequence becomes one vector is not said"),
        ("R9", "disent.loss", "Eq. 20 as printed does not separate, which its own sentence says it does"),
        ("R10", "routing.gate", "Eq. 22 adds a vector of width d and one of width 6d"),
        ("R11", "diffusion.steps", "T is 10 in section 5.4 and 15 in section 5.1.3", 10, 15),
        ("R12", "reverse.input", "Eq. 8 steps back from the noisy features, Eq. 12 from the denoised"),
        ("R13", "forward.noise", "Eq. 7 is called a closed form and prints one step of a chain"),
        ("R14", "denoiser.block", "Eq. 9 names cross-attention alone; an author's extension wraps it in norms"),
        ("R15", "denoiser.sharing", "Eq. 9 and 12 carry no index of what shares a predictor"),
        ("R16", "input.norm", "no norm of the input is mentioned; without one the noise drowns it"),
        ("R17", "input.id_mlp", "the depth of Eq. 3's MLP is not given"),
        ("R18", "expert.positions", "position embeddings of the experts are not mentioned"),
        ("R19", "diffusion.reduction", "Eq. 10 prints a sum over the width; an author's extension takes a mean"),
        ("R20", "chain.gradient", "whether the gradient runs through all T predictions is not said"),
        ("R21", "expert.norm", "whether the encoders norm after or before each part is not said"),
        ("R22", "output.layer", "Eq. 23 has a matrix of its own; an author's extension ties it to the items"),
        ("R23", "init.denoiser_out", "no initialisation is printed"),
    ):  # fmt: skip
        yield option(paper, id_, path, why, *numbers)


OPTIONS: tuple[Option, ...] = tuple(_options())
"""R1 to R23."""

SETS: dict[str, tuple[Callable[[M3BSRConfig], M3BSRConfig], str]] = {
    "repaired": (
        repaired,
        "R6 noise and R9 separate together: what the prose says that both losses are for",
    ),
}
"""Several readings at once, each with what it is."""
