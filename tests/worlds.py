"""Small hand-made worlds that tests of methods share: a catalogue, records, histories, batches."""

from __future__ import annotations

import itertools

import torch

from harness.config import ProtocolConfig, SameItemHistory, TrainConfig
from harness.data.batches import TrainingSamples
from harness.data.dataset import Split, Targets
from harness.seeding import stream, torch_stream
from models.interface import Batch, Behaviour, Catalogue, History, Interactions, Samples

Event = tuple[int, int]
"""Item (1..items), behaviour (1 click, 2 favor)."""

USERS, ITEMS, LENGTH = 12, 25, 8
IMAGE_WIDTH, TEXT_WIDTH = 7, 5
NEITHER = (4, 9)
"""Items without image and without text."""


def catalogue(users: int = USERS, items: int = ITEMS, length: int = LENGTH) -> Catalogue:
    """Unit vectors with gaps (image of every 5th item, text of every 7th, both of NEITHER), brands."""
    generator = torch.Generator().manual_seed(3)
    number = torch.arange(items + 1)
    neither = (number == NEITHER[0]) | (number == NEITHER[1]) | (number == 0)
    present = {"image": (number % 5 != 0) & ~neither, "text": (number % 7 != 0) & ~neither}
    vectors = {}
    for name, width in (("image", IMAGE_WIDTH), ("text", TEXT_WIDTH)):
        drawn = torch.randn(items + 1, width, generator=generator)
        vectors[name] = torch.nn.functional.normalize(drawn) * present[name].unsqueeze(1)
    return Catalogue(
        users=users,
        items=items,
        length=length,
        image=vectors["image"],
        image_present=present["image"],
        text=vectors["text"],
        text_present=present["text"],
        fields={"brand": torch.where(number % 6 == 0, 0, number % 4 + 1)},
        drops_own_events=True,
    )


def interactions(users: list[list[Event]]) -> Interactions:
    """Everyone's events, in time order; all of them are training targets."""
    rows = [(user, *event) for user, events in enumerate(users) for event in events]
    columns = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
    return Interactions(
        user=columns[:, 0],
        item=columns[:, 1],
        behaviour=columns[:, 2],
        target=torch.ones(len(rows), dtype=torch.bool),
        offsets=torch.tensor([0, *itertools.accumulate(len(events) for events in users)]),
    )


def random_events(
    seed: int, users: int = USERS, most: int = 12, items: int = ITEMS
) -> list[list[Event]]:
    """0 to `most` events a user, low item ids more often; a third of them favors."""
    draws = stream(seed, "events")
    return [
        [
            (1 + int(items * draws.random() ** 2), 1 + int(draws.random() < 1 / 3))
            for _ in range(int(draws.integers(0, most + 1)))
        ]
        for _ in range(users)
    ]


def history(
    rows: list[list[Event]], length: int | None = None, user: list[int] | None = None
) -> History:
    """These events, left-padded to the longest row (at least 1) or to `length` slots."""
    width = max([1, *map(len, rows)]) if length is None else length
    padded = [[(0, 0)] * (width - len(events)) + events for events in rows]
    slots = torch.tensor(padded, dtype=torch.int64).reshape(len(rows), width, 2)
    users = torch.tensor(list(range(len(rows))) if user is None else user, dtype=torch.int64)
    return History(user=users, items=slots[:, :, 0], behaviours=slots[:, :, 1])


def split(train: Interactions, events: Interactions | None = None) -> Split:
    """A split that trains on these events and tests nobody."""
    none = torch.zeros(0, dtype=torch.int64)
    nobody = Targets(none, none, none, none.reshape(0, 2), none.reshape(0, 99))
    untouched = torch.zeros(len(train.offsets), dtype=torch.int64)
    return Split(train if events is None else events, train, nobody, nobody, untouched, none)


def batches(
    train: Interactions, kind: Samples, size: int = 1024, length: int = LENGTH, seed: int = 0
) -> list[Batch]:
    """One epoch as the harness makes it, own events dropped."""
    protocol = ProtocolConfig(same_item_history=SameItemHistory.drop, max_history=length)
    samples = TrainingSamples(split(train), kind, protocol, TrainConfig(batch_size=size))
    return list(samples.epoch(torch_stream(seed, "order"), torch_stream(seed, "draws")))


def clicks(items: list[int]) -> list[Event]:
    """These items, clicked."""
    return [(item, int(Behaviour.CLICK)) for item in items]


def favors(items: list[int]) -> list[Event]:
    """These items, favored."""
    return [(item, int(Behaviour.FAVOR)) for item in items]


CASES: dict[str, list[Event]] = {
    "empty": [],
    "single": favors([3]),
    "constant": clicks([6, 6, 6]) + favors([6]),
    "no favor": clicks([2, 8, 5, 2]),
    "no click": favors([7, 1, 11]),
    "no vectors": clicks([*NEITHER]) + favors([NEITHER[0]]),
    "plain": clicks([1, 2]) + favors([2]) + clicks([13, 5]),
    "long": clicks([5, 10, 3, 12]) + favors([12]) + clicks([14, 1]) + favors([3]),
}
"""Histories that a method must stand, one a user: user 0 has none, and so on."""


def records() -> Interactions:
    """Events of USERS users: those of CASES first, then random ones."""
    drawn = random_events(seed=1, most=LENGTH + 4)
    return interactions([*CASES.values(), *drawn[len(CASES) :]])


def case_history(length: int | None = None) -> History:
    """The histories of CASES."""
    return history(list(CASES.values()), length)


def case_batch(kind: Samples, seed: int = 0) -> Batch:
    """CASES as training samples; a prefix or pair target a user, window targets at every event."""
    read = case_history()
    if kind is Samples.pair:
        read = history([[]] * len(CASES))
    users, slots = read.items.shape
    places = slots if kind is Samples.window else 1
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(15, ITEMS + 1, (users, places), generator=generator)  # unlike any read
    favor = torch.randint(0, 2, (users, places), generator=generator).float()
    if kind is Samples.window:
        target, favor = target * read.real, favor * read.real
    return Batch(read, target, (1 - favor) * (target > 0), favor, generator)


def one_target_each(kind: Samples, seed: int = 0) -> tuple[Batch, Interactions]:
    """One sample a user, told apart by its history (pairs: by the user): read after all of it.

    Returns:
        The batch, and records in which each user's target follows the history.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(USERS, ITEMS, generator=generator).argsort(1) + 1
    past = [clicks(row[:3]) + favors(row[3:5]) for row in order.tolist()]
    target = order[:, 5]
    read = history([[]] * USERS if kind is Samples.pair else past)
    places = read.items.shape[1] if kind is Samples.window else 1
    targets = torch.zeros(USERS, places, dtype=torch.int64)
    targets[:, -1] = target
    favor = (targets > 0).float()
    batch = Batch(read, targets, torch.zeros_like(favor), favor, generator)
    followed = [
        [*events, *favors([item])] for events, item in zip(past, target.tolist(), strict=True)
    ]
    return batch, interactions(followed)
