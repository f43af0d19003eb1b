"""What two or more methods share.

Axes: batch, length = slots of a left-padded history, place = places of a window at which a target is
read, cand = candidate items, item_row = items + 1 (row 0 is padding), d = hidden width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.interface import Behaviour, History, Recommender
from models.softmax import catalogue_cross_entropy


class DotProduct(Recommender):
    """A method whose score is a dot product of a user vector and an item vector, plus a bias."""

    @abstractmethod
    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """User vectors."""

    @abstractmethod
    def item_vectors(self) -> Float[Tensor, "item_row d"]:
        """One vector an item; row 0 (padding) is never a candidate."""

    def item_bias(self) -> Float[Tensor, " item_row"] | None:
        """One bias an item, or none."""
        return None

    def score(
        self, state: Float[Tensor, "batch d"], items: Int[Tensor, "batch cand"]
    ) -> Float[Tensor, "batch cand"]:
        """Dot products with the candidates' rows."""
        scores = (self.item_vectors()[items] @ state.unsqueeze(-1)).squeeze(-1)
        bias = self.item_bias()
        return scores if bias is None else scores + bias[items]

    def score_all(self, state: Float[Tensor, "batch d"]) -> Float[Tensor, "batch item_row"]:
        """Dot products with every row, as one matrix product."""
        scores = state @ self.item_vectors().T
        bias = self.item_bias()
        return scores if bias is None else scores + bias


class Dropout(nn.Module):
    """Dropout whose mask comes from 16 random bits a value: a tenth of the time of torch's on a CPU.

    A value is dropped with the multiple of 1/65536 nearest to `rate`, and the rest are scaled by
    exactly that. Draws from torch's global generator, as `nn.Dropout` does.
    """

    __call__: Callable[..., Tensor]  # nn.Module leaves it Any

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"dropout {rate} is not a probability from 0 to below 1")
        self.rate = rate
        self.dropped = min(round(rate * 65536), 65535)
        # a multiple of 1/256 (0.5, 0.25) needs 8 bits only
        self.bits, values = (torch.int8, 256) if self.dropped % 256 == 0 else (torch.int16, 65536)
        self.threshold = self.dropped * values // 65536 - values // 2

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drops in training mode; otherwise hands `x` on."""
        if not self.training or self.dropped == 0:
            return x
        size = -(-x.numel() * self.bits.itemsize // 8)
        words = torch.empty(size, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        bits = words.view(self.bits)[: x.numel()].view(x.shape)
        keep = torch.empty_like(x, requires_grad=False)
        torch.ge(bits, self.threshold, out=keep)  # twice as fast as a mask of bools, converted
        return x * keep.mul_(65536 / (65536 - self.dropped))

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"


def fixed_padding_cross_entropy(
    query: Float[Tensor, "batch d"],
    table: Float[Tensor, "item_row d"],
    target: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Minus the log-softmax of each target over all rows of a tied table, row 0 a fixed class.

    Row 0 (padding) stands in the denominator, as in code that takes the whole table for its classes,
    but is never trained: log(sum over items + exp(query . row 0)) - query . target row. (A padding
    index keeps look-ups from moving the row; left to autograd, the tied scores would still move it.)
    """
    hit = (query * nn.functional.embedding(target, table)).sum(1)
    items = catalogue_cross_entropy(query, table, None, target) + hit
    return torch.logaddexp(items, query @ table[0].detach()) - hit


def from_the_left(
    items: Int[Tensor, "batch length"], events: Int[Tensor, " batch"]
) -> Int[Tensor, "batch length"]:
    """The same sequences, first event in slot 0: a state that starts at zero must not see padding."""
    length = items.shape[1]
    slot = torch.arange(length, device=items.device)
    source = (slot + (length - events).unsqueeze(1)).clamp(max=length - 1)
    return items.gather(1, source) * (slot < events.unsqueeze(1))


class Behaviors(Enum):
    """What a method that knows no behaviours reads: both in time order, or favors alone."""

    merged = "merged"
    favor_only = "favor_only"


class Reading(ABC):
    """Which events of a history a method reads, and where a window's targets then stand."""

    @abstractmethod
    def history(self, history: History) -> History:
        """The events that are read, latest in the last slot."""

    @abstractmethod
    def slots(self, history: History, width: int) -> Int[Tensor, "batch length"]:
        """Slot of `self.history(history)` that holds the latest event read up to each slot.

        Args:
            history: As it was before `self.history`.
            width: Slots of `self.history(history)`.

        Returns:
            Slots; negative where nothing has been read yet.
        """


class ReadMerged(Reading):
    """All events in time order."""

    def history(self, history: History) -> History:
        """The same history."""
        return history

    def slots(self, history: History, width: int) -> Int[Tensor, "batch length"]:
        """Each slot stands for itself."""
        slot = torch.arange(width, device=history.items.device)
        return torch.where(history.real, slot, -1)


class ReadFavors(Reading):
    """Favors alone, re-packed: a target that follows a click is read at the last favor before it."""

    def history(self, history: History) -> History:
        """The favors."""
        return history.only(Behaviour.FAVOR)

    def slots(self, history: History, width: int) -> Int[Tensor, "batch length"]:
        """The last favors stand in the last slots."""
        read = ((history.behaviours == int(Behaviour.FAVOR)) & history.real).cumsum(1)
        return torch.where(read > 0, width - 1 - (read[:, -1:] - read), -1)


READINGS: dict[Behaviors, type[Reading]] = {
    Behaviors.merged: ReadMerged,
    Behaviors.favor_only: ReadFavors,
}


class Reads(Enum):
    """What a method reads that may know behaviours: as Behaviors, or merged and told apart."""

    merged = "merged"
    favor_only = "favor_only"
    typed = "typed"
    """Merged, with a learned vector a behaviour."""


class Untyped(nn.Module):
    """An event does not say of which behaviour it is."""

    def forward(self, x: Tensor, behaviours: Tensor) -> Tensor:  # noqa: ARG002
        """Nothing added."""
        return x


class Typed(nn.Module):
    """A learned vector a behaviour, normal(0, 0.02); padding has zeros."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(len(Behaviour), d, padding_idx=int(Behaviour.PADDING))
        nn.init.normal_(self.vectors.weight[1:].detach(), std=0.02)

    def forward(
        self, x: Float[Tensor, "*lead length d"], behaviours: Int[Tensor, "*tags length"]
    ) -> Float[Tensor, "*lead length d"]:
        """The vector of each event's behaviour added; axes before the slots may be broadcast."""
        typed: Tensor = x + self.vectors(behaviours)
        return typed


def typing(reads: Reads, d: int) -> Untyped | Typed:
    """The part of `typed`."""
    return Typed(d) if reads is Reads.typed else Untyped()
