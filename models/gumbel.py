"""Draws by Gumbel noise with straight-through gradients, from two classes or from a whole catalogue.

An index is drawn with the probability softmax(scores) where scores + noise is largest (Gumbel-max).
The temperature changes gradients only.

Axes: batch = queries, option = what is drawn from, item_row = items + 1, d = width.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.softmax import BLOCK


@runtime_checkable
class Noise(Protocol):
    """Gumbel(0, 1) noise of one pass, asked for part by part."""

    def __call__(
        self, part: Enum, scores: Float[Tensor, "*shape"], first: int = 0
    ) -> Float[Tensor, "*shape"]:
        """Noise for scores, whose columns begin at column `first` of the part."""


@dataclass(frozen=True)
class Gumbel:
    """Fresh noise from a stream, whatever the part."""

    generator: torch.Generator

    def __call__(
        self,
        part: Enum,  # noqa: ARG002
        scores: Float[Tensor, "*shape"],
        first: int = 0,  # noqa: ARG002
    ) -> Float[Tensor, "*shape"]:
        """Minus the logarithm of an exponential draw."""
        device = self.generator.device
        draws = torch.empty(scores.shape, dtype=scores.dtype, device=device)
        draws.exponential_(generator=self.generator)
        return draws.log_().neg_().to(scores.device)


def straight_through(
    scores: Float[Tensor, "*rows option"], noise: Float[Tensor, "*rows option"], tau: float
) -> Float[Tensor, "*rows option"]:
    """One-hot of argmax(scores + noise), with the gradient of softmax((scores + noise) / tau)."""
    noisy = scores + noise
    soft = (noisy / tau).softmax(-1)
    hard = torch.zeros_like(soft).scatter_(-1, noisy.argmax(-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())


class Choice(nn.Module):
    """A row of a table a query, drawn by their product; row 0 is a row like the others."""

    def forward(
        self,
        query: Float[Tensor, "batch d"],
        table: Float[Tensor, "item_row d"],
        noise: Noise,
        part: Enum,
        tau: float,
    ) -> tuple[Int[Tensor, " batch"], Float[Tensor, "batch d"]]:
        """Row numbers, and the rows with the gradient of the draw.

        Args:
            query: What is looked for.
            table: What is drawn from.
            noise: Of this pass.
            part: Name of this draw.
            tau: Temperature.
        """
        scores = query @ table.T
        pick = straight_through(scores, noise(part, scores), tau)
        return pick.argmax(1), pick @ table


class LargeChoice(Choice):
    """The same sample, a block of the table at a time, with the gradient of the likeliest rows alone.

    Beside the table it holds a block of scores and `kept` rows a query.
    """

    def __init__(self, kept: int) -> None:
        super().__init__()
        self.kept = kept

    def forward(
        self,
        query: Float[Tensor, "batch d"],
        table: Float[Tensor, "item_row d"],
        noise: Noise,
        part: Enum,
        tau: float,
    ) -> tuple[Int[Tensor, " batch"], Float[Tensor, "batch d"]]:
        """Running best of score + noise; then a softmax over the best."""
        best, row = query.new_zeros(len(query), 0), query.new_zeros(len(query), 0).long()
        chunk = max(BLOCK // max(len(query), 1), self.kept)
        with torch.no_grad():
            for first in range(0, len(table), chunk):
                scores = query @ table[first : first + chunk].T
                scores += noise(part, scores, first)
                top, place = scores.topk(min(self.kept, scores.shape[1]), dim=1)
                best, row = torch.cat([best, top], 1), torch.cat([row, place + first], 1)
                best, place = best.topk(min(self.kept, best.shape[1]), dim=1)
                row = row.gather(1, place)
        vectors = functional.embedding(row, table)
        scores = (vectors @ query.unsqueeze(2)).squeeze(2)
        pick = straight_through(scores, (best - scores).detach(), tau)
        return row[:, 0], (pick.unsqueeze(1) @ vectors).squeeze(1)


class SampledChoice(Choice):
    """The draw among some rows only: a uniform sample without repetition, one for all queries."""

    def __init__(self, size: int, part: Enum) -> None:
        super().__init__()
        self.size, self.part = size, part

    def forward(
        self,
        query: Float[Tensor, "batch d"],
        table: Float[Tensor, "item_row d"],
        noise: Noise,
        part: Enum,
        tau: float,
    ) -> tuple[Int[Tensor, " batch"], Float[Tensor, "batch d"]]:
        """Rows with equal scores and the largest noise are a uniform sample."""
        lots = noise(self.part, table.new_zeros(1, len(table)))[0]
        row = lots.topk(min(self.size, len(table))).indices
        place, vector = super().forward(query, functional.embedding(row, table), noise, part, tau)
        return row[place], vector
