"""Tiny worlds with a planted truth, one for each kind of mechanism, and how a method does in them.

order    a user walks a ring of items up or down: the latest item alone does not tell the next
content  a user's taste is a cluster of image and text vectors; the positives are items without records
past     as content, but the items without records are the histories; the positives have records
cascade  clicks are many and tell the taste; favors are few and fall on half of the taste's items
noise    as cascade, but a share of the clicks are accidents

Axes: user = test users, cand = the positive (column 0) and its negatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from baselines.reference import MostPopular, ReferenceConfig
from harness.config import ProtocolConfig, TrainConfig
from harness.data.batches import TrainingSamples
from harness.evaluation.metrics import hit_rate, ndcg
from harness.evaluation.ranks import above_and_tied
from harness.seeding import stream
from harness.training.loop import Trainer
from models.interface import Behaviour, Catalogue, History, Interactions, Recommender
from tests import worlds
from tests.worlds import Event

LENGTH = 12
NEGATIVES = 20
WIDTH = 16
"""Of image and text vectors."""
SEEDS = (0, 1, 2)
"""Every claim of strength holds in the mean over these."""


@dataclass(frozen=True)
class World:
    """What is trained on, and what is asked afterwards."""

    catalogue: Catalogue
    train: Interactions
    history: History
    candidates: Int[Tensor, "user cand"]


def _world(
    train: list[list[Event]],
    positives: list[int],
    draws: np.random.Generator,
    vectors: tuple[np.ndarray, np.ndarray],
    past: list[list[Event]] | None = None,
) -> World:
    """Negatives are uniform among the items that the user has nowhere."""
    items = len(vectors[0]) - 1
    candidates = []
    for events, positive in zip(past or train, positives, strict=True):
        others = sorted(set(range(1, items + 1)) - {item for item, _ in events} - {positive})
        candidates.append([positive, *draws.choice(others, NEGATIVES, replace=False).tolist()])
    image, text = (torch.from_numpy(one).float() for one in vectors)
    present = torch.arange(items + 1) > 0
    catalogue = Catalogue(
        users=len(train), items=items, length=LENGTH, image=image, image_present=present,
        text=text, text_present=present, fields={}, drops_own_events=True,
    )  # fmt: skip
    last = [events[-LENGTH:] for events in past or train]
    return World(catalogue, worlds.interactions(train), worlds.history(last),
                 torch.tensor(candidates))  # fmt: skip


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Unit rows; row 0 (padding) zero."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[0] = 0
    return vectors


def _clusters(
    group: np.ndarray, draws: np.random.Generator, spread: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Image and text vectors around a centre a group; `group[0]` belongs to padding."""
    found = []
    for _ in range(2):
        centres = _unit(draws.standard_normal((int(group.max()) + 2, WIDTH)))[1:]
        noise = draws.standard_normal((len(group), WIDTH)) * spread / np.sqrt(WIDTH)
        found.append(_unit(centres[group] + noise))
    return found[0], found[1]


def order(seed: int, users: int = 300, items: int = 40, jump: float = 0.05) -> World:
    """A ring walked up or down, with rare jumps: order tells the next item, popularity nothing."""
    draws = stream(seed, "order world")
    train, positives = [], []
    for _ in range(users):
        direction = int(draws.choice([-1, 1]))
        steps = np.where(draws.random(8) < jump, draws.integers(0, items), direction)
        walk = (draws.integers(0, items) + np.concatenate([[0], steps.cumsum()])) % items
        favor = draws.random(len(walk)) < 0.3
        train.append([(int(item) + 1, 1 + int(tag)) for item, tag in zip(walk, favor, strict=True)])
        positives.append(int(walk[-1] + direction) % items + 1)
    return _world(train, positives, draws, _clusters(np.arange(items + 1), draws))


def content(seed: int, users: int = 300, groups: int = 6, size: int = 20, cold: int = 8) -> World:
    """`cold` items of each group have no record: only their vectors tell whose taste they are."""
    draws = stream(seed, "content world")
    group = np.concatenate([[0], np.repeat(np.arange(groups), size)])
    train, positives = [], []
    for _ in range(users):
        taste = int(draws.integers(groups))
        first = 1 + taste * size
        warm = draws.permutation(np.arange(first + cold, first + size))[:7]
        favor = draws.random(len(warm)) < 0.4
        train.append([(int(item), 1 + int(tag)) for item, tag in zip(warm, favor, strict=True)])
        positives.append(first + int(draws.integers(cold)))
    return _world(train, positives, draws, _clusters(group, draws))


def past(seed: int, users: int = 300, groups: int = 6, size: int = 20, cold: int = 8) -> World:
    """The content world turned: what is asked about is warm, but histories are of `cold` items only.

    For a method that reads vectors in histories and scores candidates by their ids.
    """
    world = content(seed, users, groups, size, cold)
    draws = stream(seed, "past world")
    histories, candidates = [], []
    for number in range(users):
        first = int(world.train.item[world.train.offsets[number]] - 1) // size * size + 1
        new = draws.permutation(np.arange(first, first + cold))[:5]
        positive = int(draws.integers(first + cold, first + size))
        others = sorted(set(range(1, groups * size + 1)) - {positive, *new.tolist()})
        histories.append([(int(item), int(Behaviour.CLICK)) for item in new])
        candidates.append([positive, *draws.choice(others, NEGATIVES, replace=False).tolist()])
    return replace(world, history=worlds.history(histories), candidates=torch.tensor(candidates))


def cascade(seed: int, users: int = 300, accidents: float = 0.0, favors: int = 1) -> World:
    """Clicks in the taste's whole group, few favors, always in its first half.

    Seven users in ten have `favors` of them (1 to 5); who sees favors alone needs 2 to train on any.
    """
    groups, size = 8, 12
    draws = stream(seed, "cascade world")
    group = np.concatenate([[0], np.repeat(np.arange(groups), size)])
    train, positives = [], []
    for _ in range(users):
        first = 1 + int(draws.integers(groups)) * size
        liked = draws.permutation(np.arange(first, first + size // 2))
        clicks = draws.permutation(np.arange(first, first + size))[:7]
        by_accident = draws.random(len(clicks)) < accidents
        clicks = np.where(by_accident, draws.integers(1, groups * size + 1, len(clicks)), clicks)
        events = [(int(item), int(Behaviour.CLICK)) for item in clicks if item != liked[0]]
        if draws.random() < 0.7:
            for item in liked[1 : 1 + favors]:
                place = int(draws.integers(1, len(events) + 1))
                events.insert(place, (int(item), int(Behaviour.FAVOR)))
        train.append(events)
        positives.append(int(liked[0]))
    return _world(train, positives, draws, _clusters(group, draws))


def noise(seed: int, users: int = 300) -> World:
    """The cascade world with half of the clicks by accident."""
    return cascade(seed, users, accidents=0.5)


def without_content(world: World) -> World:
    """The same records, but no item has an image or a text."""
    nothing = torch.zeros(world.catalogue.items + 1, dtype=torch.bool)
    catalogue = replace(
        world.catalogue,
        image=torch.zeros_like(world.catalogue.image), image_present=nothing,
        text=torch.zeros_like(world.catalogue.text), text_present=nothing,
    )  # fmt: skip
    return replace(world, catalogue=catalogue)


def without_clicks(world: World) -> World:
    """The same world to somebody who sees favors alone."""
    kept = world.train.behaviour == int(Behaviour.FAVOR)
    before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
    train = Interactions(
        world.train.user[kept], world.train.item[kept], world.train.behaviour[kept],
        world.train.target[kept], before[world.train.offsets],
    )  # fmt: skip
    return replace(world, train=train, history=world.history.only(Behaviour.FAVOR))


def shuffled(world: World, seed: int = 0) -> World:
    """The same world without its order: every user's events in a random one."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(len(world.train.user), generator=generator).double() + world.train.user
    mixed = torch.argsort(place)
    train = replace(
        world.train, item=world.train.item[mixed], behaviour=world.train.behaviour[mixed]
    )
    chance = torch.rand(world.history.items.shape, generator=generator)
    slots = torch.where(world.history.real, chance, -1.0).argsort(1)
    history = replace(
        world.history,
        items=world.history.items.gather(1, slots),
        behaviours=world.history.behaviours.gather(1, slots),
    )
    return replace(world, train=train, history=history)


def trained(
    make: Callable[[Catalogue], Recommender],
    world: World,
    seed: int,
    epochs: int = 20,
    batch_size: int = 64,
) -> Recommender:
    """A model made, prepared and trained as the harness does it, `epochs` a stage; no validation."""
    torch.manual_seed(seed)
    model = make(world.catalogue)
    model.prepare(world.train)
    samples = TrainingSamples(
        worlds.split(world.train), model.samples, ProtocolConfig(max_history=LENGTH),
        TrainConfig(batch_size=batch_size),
    )  # fmt: skip
    trainer, epoch, more = Trainer(model, samples, seed), 0, model.trained
    while more:
        for age in range(1, epochs + 1):
            trainer.epoch(epoch, lambda: False)
            epoch += 1
            if model.stage_ended(age, trainer.draws):
                break
        more = model.next_stage()
        trainer.renew()
    return model.eval()


@torch.no_grad()
def _counts(model: Recommender, world: World) -> tuple[np.ndarray, np.ndarray]:
    model.eval()
    scores = model.score(model.encode(world.history), world.candidates)
    above, tied = above_and_tied(scores[:, 1:], scores[:, 0])
    return above.numpy(), tied.numpy()


def ndcg_at_10(model: Recommender, world: World) -> float:
    """Mean NDCG@10 of the positives among their NEGATIVES; a constant scorer has about 0.22."""
    return float(ndcg(*_counts(model, world), 10).mean())


def hits_at_1(model: Recommender, world: World) -> float:
    """Share of users whose positive comes first."""
    return float(hit_rate(*_counts(model, world), 1).mean())


def most_popular(world: World) -> float:
    """NDCG@10 of MostPopular."""
    model = MostPopular(ReferenceConfig(), world.catalogue)
    model.prepare(world.train)
    return ndcg_at_10(model, world)
