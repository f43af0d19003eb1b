"""Batches against loops that follow the protocol's words, one sample at a time."""

from __future__ import annotations

import itertools

import pytest
import torch

from harness.config import ProtocolConfig, SameItemHistory, Scope, TrainConfig, Windows
from harness.data.batches import EvaluationHistories, TrainingSamples, place_targets
from harness.data.dataset import Split, Targets
from harness.seeding import stream, torch_stream
from models.interface import Batch, Behaviour, History, Interactions, Samples

READINGS = [
    ProtocolConfig(scope=scope, same_item_history=same, max_history=5)
    for scope, same in itertools.product(Scope, SameItemHistory)
]
Event = tuple[int, int]  # item, behaviour


def interactions(users: list[list[Event]], target: list[bool] | None = None) -> Interactions:
    events = [(user, item, tag) for user, row in enumerate(users) for item, tag in row]
    offsets = torch.tensor([0, *itertools.accumulate(len(row) for row in users)])
    columns = torch.tensor(events).reshape(-1, 3)
    marks = torch.ones(len(events), dtype=torch.bool) if target is None else torch.tensor(target)
    return Interactions(columns[:, 0], columns[:, 1], columns[:, 2], marks, offsets)


def random_users(seed: int, users: int = 12, most: int = 14, items: int = 6) -> list[list[Event]]:
    draws = stream(seed, "users")
    return [
        [(int(draws.integers(1, items + 1)), int(draws.integers(1, 3))) for _ in range(int(length))]
        for length in draws.integers(0, most, users)
    ]


def cut(events: list[Event], protocol: ProtocolConfig) -> list[Event]:
    """The most recent 5 over both behaviours, or 5 of each, in time order."""
    if protocol.scope is Scope.user:
        return events[-protocol.max_history :]
    kept: list[int] = []
    for behaviour in (1, 2):
        places = [place for place, event in enumerate(events) if event[1] == behaviour]
        kept += places[-protocol.max_history :]
    return [events[place] for place in sorted(kept)]


def split_of(train: Interactions) -> Split:
    nobody = Targets(*(torch.zeros(0, dtype=torch.int64),) * 3, torch.zeros(0, 2, dtype=torch.int64),
                     torch.zeros(0, 99, dtype=torch.int64))  # fmt: skip
    users = len(train.offsets)
    return Split(train, train, nobody, nobody, torch.zeros(users, dtype=torch.int64),
                 torch.zeros(0, dtype=torch.int64))  # fmt: skip


def rows_of(history: History) -> list[tuple[int, list[Event]]]:
    rows = []
    for user, items, tags in zip(
        history.user.tolist(), history.items.tolist(), history.behaviours.tolist(), strict=True
    ):
        events = list(zip(items, tags, strict=True))
        real = [event for event in events if event[0]]
        assert events == [(0, 0)] * (len(events) - len(real)) + real, "left-padded"
        rows.append((user, real))
    return rows


def samples(
    train: Interactions, kind: Samples, protocol: ProtocolConfig, **settings: object
) -> list[Batch]:
    made = TrainingSamples(split_of(train), kind, protocol, TrainConfig(batch_size=7, **settings))  # type: ignore[arg-type]
    return list(made.epoch(torch_stream(1, "order"), torch_stream(1, "draws")))


@pytest.mark.parametrize("protocol", READINGS, ids=str)
def test_prefixes_hold_what_stands_strictly_before_their_target(protocol: ProtocolConfig) -> None:
    users = random_users(3)
    marks = [bool(mark) for mark in stream(3, "marks").random(sum(map(len, users))) < 0.8]
    expected, number = [], 0
    for user, events in enumerate(users):
        for place, (item, tag) in enumerate(events):
            before = [
                event for event in events[:place]
                if protocol.same_item_history is SameItemHistory.keep or event[0] != item
            ]  # fmt: skip
            if before and marks[number]:
                expected.append((user, cut(before, protocol), item, tag))
            number += 1
    found = []
    for batch in samples(interactions(users, marks), Samples.prefix, protocol):
        for (user, events), item, tag in zip(
            rows_of(batch.history),
            batch.target.tolist(),
            batch.target_behaviour.tolist(),
            strict=True,
        ):
            found.append((user, events, item, tag))
    assert sorted(found) == sorted(expected)
    assert len(found) > 30


@pytest.mark.parametrize("windows", Windows, ids=str)
@pytest.mark.parametrize("same", SameItemHistory, ids=str)
def test_windows_read_each_target_before_its_first_touch(
    same: SameItemHistory, windows: Windows
) -> None:
    protocol = ProtocolConfig(same_item_history=same, max_history=5)
    users = random_users(4)
    expected: dict[tuple[int, int, int], list[int]] = {}
    for user, events in enumerate(users):
        for place, (item, tag) in enumerate(events):
            first = place
            if same is not SameItemHistory.keep:
                first = [event[0] for event in events].index(item)
            if first > 0:
                counts = expected.setdefault((user, first - 1, item), [0, 0])
                counts[tag - 1] += 1
    if windows is Windows.last:
        expected = {
            (user, place, item): counts
            for (user, place, item), counts in expected.items()
            if place >= len(users[user]) - 1 - 5
        }
    found = {}
    for batch in samples(interactions(users), Samples.window, protocol, windows=windows):
        for row, (user, events) in enumerate(rows_of(batch.history)):
            length = batch.targets.shape[1]
            starts = [
                start for start in range(len(users[user]))
                if users[user][start : start + len(events)] == events
                and (len(users[user]) - 1 - start - len(events)) % 5 == 0
            ]  # fmt: skip
            for slot in range(length):
                item = int(batch.targets[row, slot])
                place = slot - (length - len(events))
                if place < 0:
                    assert item == 0
                elif item:
                    counts = [int(batch.clicks[row, slot]), int(batch.favors[row, slot])]
                    fitting = [
                        (user, start + place, item) for start in starts
                        if expected.get((user, start + place, item)) == counts
                    ]  # fmt: skip
                    assert fitting, (user, events, slot, item, counts)
                    found[fitting[0]] = counts
    assert found == expected


def test_a_target_touched_before_is_read_before_the_first_touch_under_drop() -> None:
    click, favor = int(Behaviour.CLICK), int(Behaviour.FAVOR)
    train = interactions([[(1, click), (2, click), (3, click), (2, favor)]])
    target, clicks, favors = place_targets(train, drops=True)
    assert target.tolist() == [2, 3, 0, 0]
    assert clicks.tolist() == [1, 1, 0, 0]
    assert favors.tolist() == [1, 0, 0, 0]
    target, clicks, favors = place_targets(train, drops=False)
    assert target.tolist() == [2, 3, 2, 0]
    assert favors.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("protocol", READINGS, ids=str)
def test_evaluation_histories_leave_items_out_then_cut(protocol: ProtocolConfig) -> None:
    users = [row for row in random_users(5, users=20) if len(row) > 1]
    events = interactions(users)
    own = [row[-1][0] for row in users]
    other = [row[0][0] if number % 2 else 0 for number, row in enumerate(users)]
    count = torch.arange(len(users))
    targets = Targets(
        user=count,
        item=torch.tensor(own),
        position=events.offsets[1:] - 1,
        left_out=torch.tensor([own, other]).T.contiguous(),
        candidates=torch.ones(len(users), 99, dtype=torch.int64),
    )
    histories = EvaluationHistories(split_of(events), targets, protocol)
    seen = 0
    for rows, history in histories.batches(4):
        for row, (user, kept) in zip(rows.tolist(), rows_of(history), strict=True):
            assert user == row
            wanted = [e for e in users[row][:-1] if e[0] not in (own[row], other[row])]
            assert kept == cut(wanted, protocol)
            seen += 1
    assert seen == len(users)


def test_an_epoch_has_every_sample_once_and_a_cap_takes_other_ones_each_time() -> None:
    train = interactions(random_users(6, users=30))
    split, protocol = split_of(train), ProtocolConfig()
    order, draws = torch_stream(1, "order"), torch_stream(1, "draws")
    everything = TrainingSamples(split, Samples.prefix, protocol, TrainConfig(batch_size=16))
    seen = sum(len(batch.history.user) for batch in everything.epoch(order, draws))
    assert seen == len(everything)
    capped = TrainingSamples(
        split, Samples.prefix, protocol, TrainConfig(batch_size=16, samples=20)
    )
    epochs = [
        sorted(
            (user, str(events), item)
            for batch in capped.epoch(order, draws)
            for (user, events), item in zip(
                rows_of(batch.history), batch.target.tolist(), strict=True
            )
        )
        for _ in range(2)
    ]
    assert len(capped) == len(epochs[0]) == 20
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("kind", Samples, ids=str)
@pytest.mark.parametrize("passes", [1, 3])
def test_the_number_of_batches_of_an_epoch_is_known_before_it(kind: Samples, passes: int) -> None:
    train = interactions(random_users(8, users=90))
    config = TrainConfig(batch_size=3, passes=passes)
    made = TrainingSamples(split_of(train), kind, ProtocolConfig(), config)
    sizes = [len(b.history.user) for b in made.epoch(torch_stream(1, "a"), torch_stream(1, "b"))]
    assert len(sizes) == made.batches
    assert sum(sizes) == passes * len(made)


def test_pairs_are_distinct_and_count_their_events_targets_or_not() -> None:
    train = interactions(
        [[(3, 1), (2, 2), (3, 2), (3, 1)], [], [(1, 1)]], [False, True, True, False, False]
    )
    (batch,) = samples(train, Samples.pair, ProtocolConfig())
    found = {
        (user, item): (clicks, favors)
        for user, item, clicks, favors in zip(
            batch.history.user.tolist(),
            batch.target.tolist(),
            batch.clicks.flatten().tolist(),
            batch.favors.flatten().tolist(),
            strict=True,
        )
    }
    assert found == {(0, 2): (0, 1), (0, 3): (2, 1), (2, 1): (1, 0)}
    assert not batch.history.real.any()
    deepest = dict(zip(batch.target.tolist(), batch.target_behaviour.tolist(), strict=True))
    assert deepest == {1: 1, 2: 2, 3: 2}
