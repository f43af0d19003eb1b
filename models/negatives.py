"""Uniform negatives that avoid what a user touched in training.

Axes: place = draws asked for at once, negative = items drawn a place.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor, nn

from models.interface import Catalogue, Interactions


class TrainingNegatives(nn.Module):
    """Uniform draws over the items that a user has nowhere in the training sequence.

    The authors' code draws again until an item is new; here the r-th untouched item is found by binary
    search, which has the same distribution and no last round. For a user who touched every item, all
    items are possible.
    """

    below: Tensor
    offsets: Tensor
    untouched: Tensor

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__()
        self.items = catalogue.items
        nobody = torch.zeros(0, dtype=torch.int64)
        self.register_buffer("below", nobody, persistent=False)
        self.register_buffer("offsets", torch.zeros(catalogue.users, dtype=torch.int64), False)
        self.register_buffer("untouched", torch.full((catalogue.users,), self.items), False)

    def prepare(self, train: Interactions) -> None:
        """Sort each user's distinct items: `below` keeps, by user, the untouched items before each."""
        users, device = len(train.offsets) - 1, self.below.device
        pairs = torch.unique(train.user * (self.items + 1) + train.item)
        user = pairs // (self.items + 1)
        touched = torch.bincount(user, minlength=users)
        offsets = touched.cumsum(0) - touched
        number = torch.arange(len(pairs), device=pairs.device) - offsets[user]
        below = user * (self.items + 1) + pairs % (self.items + 1) - 1 - number
        self.below, self.offsets = below.to(device), offsets.to(device)
        self.untouched = (self.items - touched).to(device)

    def forward(
        self, user: Int[Tensor, " place"], count: int, generator: torch.Generator
    ) -> Int[Tensor, "place negative"]:
        """`count` items a place, drawn independently.

        Args:
            user: Whose training sequence is avoided.
            count: Negatives a place.
            generator: Stream of the draws.
        """
        chance = torch.rand(
            len(user), count, dtype=torch.float64, generator=generator, device=generator.device
        ).to(user.device)
        choices = self.untouched[user].unsqueeze(1)
        rank = (chance * torch.where(choices > 0, choices, self.items)).long()
        key = user.unsqueeze(1) * (self.items + 1) + rank
        passed = torch.searchsorted(self.below, key, right=True) - self.offsets[user].unsqueeze(1)
        return rank + 1 + torch.where(choices > 0, passed, 0)
