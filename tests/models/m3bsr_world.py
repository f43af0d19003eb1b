"""A small world for M3BSR: eight users with every kind of history, weights all away from 0."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any

import torch

from models.interface import Batch, Behaviour, Catalogue, History
from models.m3bsr import M3BSR, M3BSRConfig, PassNoise
from tests.models.reference_m3bsr import Items, Reference, User
from tests.parity.adapters.m3bsr import named, put

ITEMS, LENGTH = 15, 7
EVENTS: list[tuple[list[int], list[int]]] = [
    ([3, 7, 1, 12], [7, 2]),
    ([5], [9, 9, 4, 1, 15]),
    ([], [6, 2, 3]),
    ([8, 8, 10, 2, 14], []),
    ([], []),
    ([1, 2], [11]),
    ([13, 6, 4], [13, 6, 4]),
    ([15], [15]),
]
"""Clicks and favors of each user."""


def catalogue() -> Catalogue:
    rng = torch.Generator().manual_seed(5)
    number = torch.arange(ITEMS + 1)
    return Catalogue(
        users=len(EVENTS),
        items=ITEMS,
        length=LENGTH,
        image=torch.randn(ITEMS + 1, 6, generator=rng),
        image_present=(number > 0) & (number % 4 != 0),
        text=torch.randn(ITEMS + 1, 5, generator=rng),
        text_present=(number > 0) & (number % 5 != 0),
        fields={"brand": number % 4},
        drops_own_events=True,
    )


def history(events: list[tuple[list[int], list[int]]], padding: int = 0) -> History:
    """Clicks and favors of each user, taken in turns."""
    rows = []
    for clicks, favors in events:
        row: list[tuple[int, int]] = []
        for i in range(max(len(clicks), len(favors))):
            row += [(item, int(Behaviour.CLICK)) for item in clicks[i : i + 1]]
            row += [(item, int(Behaviour.FAVOR)) for item in favors[i : i + 1]]
        rows.append(row)
    length = max(1, *(len(row) for row in rows)) + padding
    table = torch.zeros(len(rows), length, 2, dtype=torch.int64)
    for i, row in enumerate(rows):
        if row:
            table[i, -len(row) :] = torch.tensor(row)
    return History(torch.arange(len(rows)), table[:, :, 0], table[:, :, 1])


def batch(seed: int = 0) -> Batch:
    users = len(EVENTS)
    return Batch(
        history=history(EVENTS),
        targets=torch.arange(1, users + 1).unsqueeze(1),
        clicks=torch.zeros(users, 1),
        favors=torch.ones(users, 1),
        generator=torch.Generator().manual_seed(seed),
    )


def small(**overrides: Any) -> M3BSRConfig:
    """d 8, two heads, T 4, no dropout; overrides with dots as double underscores."""
    config = M3BSRConfig(hidden=8, heads=2)
    config.diffusion.steps = 4
    config.expert.dropout = 0.0
    for path, value in overrides.items():
        put(config, path.replace("__", "."), value)
    return config


def shaken(config: M3BSRConfig, seed: int = 1) -> M3BSR:
    """The model in float64 with every weight drawn anew: no zeros or ones hide a mistake."""
    torch.manual_seed(seed)
    model = M3BSR(config, catalogue()).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            gain = 1.0 if name.endswith("final.weight") else gain
            scale = 0.35 if parameter.dim() > 2 else 0.2
            parameter.normal_(std=scale).add_(gain)
    return model


def options(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its path, an Enum by its name."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            found |= options(value, f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = value.name if isinstance(value, Enum) else value
    return found


def reference(model: M3BSR) -> Reference:
    """The slow model with the same weights and readings."""
    weights = {
        name: torch.cat([view(parameter) for parameter, view in parts]).detach().numpy().copy()
        for name, parts in named(model).items()
    }
    world = catalogue()
    items = Items(
        [values.numpy() for values in world.fields.values()],
        {"im": world.image.double().numpy(), "te": world.text.double().numpy()},
        {"im": world.image_present.numpy(), "te": world.text_present.numpy()},
    )
    return Reference(weights, options(model.config), items, ["item", "brand", "user"])


def users(noise: PassNoise | None = None) -> list[User]:
    """The same users for the slow model, with the noise of a training pass."""
    found = []
    for i, (clicks, favors) in enumerate(EVENTS):
        user = User(i, {"cl": clicks, "fa": favors}, target=i + 1)
        if noise is not None:
            parts = (
                ("m", "cl", noise.click), ("m", "fa", noise.favor), ("b", "cl", noise.behavior)
            )  # fmt: skip
            for stage, behaviour, part in parts:
                if part is not None:
                    take(user, stage, behaviour, part.draws[:, :, i])
                    user.step[stage] = int(part.step[i])
        found.append(user)
    return found


def take(user: User, stage: str, behaviour: str, draws: torch.Tensor) -> None:
    """Noise of a user's own slots; draws [draw, feature, slot, d]."""
    slots = max(1, len(user.events[behaviour]))
    for feature, modality in enumerate(("im", "te", "id")[: draws.shape[1]]):
        user.noise[stage, behaviour, modality] = draws[:, feature, -slots:].numpy()
