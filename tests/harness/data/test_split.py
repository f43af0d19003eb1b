"""The split against the protocol's sentences, told once more user by user and event by event."""

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from harness.config import (
    Cutoff,
    ProtocolConfig,
    SameItemHistory,
    Scope,
    TrainTargets,
)
from harness.data.dataset import DATE_QUANTILE, Dataset, Split, Targets
from harness.data.prepare import prepare
from harness.errors import InputError
from tests.harness.data.logs import CLICK, FAVOR, ITEMS, Event, clicks, dataset, raw_log

READINGS = [
    ProtocolConfig(same_item_history=same, train_targets=targets, cutoff=cutoff)
    for same, targets, cutoff in itertools.product(SameItemHistory, TrainTargets, Cutoff)
]
DROP = ProtocolConfig()
KEEP = ProtocolConfig(same_item_history=SameItemHistory.keep)
NOVEL = ProtocolConfig(same_item_history=SameItemHistory.novel_only)

events = st.lists(
    st.tuples(st.integers(1, 7), st.sampled_from([CLICK, CLICK, FAVOR])), min_size=1, max_size=14
)
logs = st.lists(events, min_size=1, max_size=12)
several = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def kept(user: list[Event]) -> bool:
    """At least 5 events and a last favor with a non-empty history before it."""
    favors = [place for place, (_, behaviour) in enumerate(user) if behaviour == FAVOR]
    return len(user) >= 5 and bool(favors) and favors[-1] > 0


def opened(folder: Path, users: list[list[Event]]) -> tuple[Dataset, list[list[Event]]]:
    """The prepared log and the users it keeps."""
    keep = [user for user in users if kept(user)]
    assume(keep)
    return dataset(folder, users), keep


def data_has_tests(data: Dataset, protocol: ProtocolConfig) -> bool:
    """False when a reading leaves nobody to test."""
    try:
        data.split(protocol)
    except InputError:
        return False
    return True


def readings_with_a_test(data: Dataset) -> list[ProtocolConfig]:
    return [protocol for protocol in READINGS if data_has_tests(data, protocol)]


def history(split: Split, targets: Targets, row: int) -> list[Event]:
    """What a method may read before a target, uncut."""
    start = int(split.events.offsets[targets.user[row]])
    end = int(targets.position[row])
    left_out = set(targets.left_out[row].tolist())
    items, behaviours = split.events.item[start:end], split.events.behaviour[start:end]
    rows = zip(items.tolist(), behaviours.tolist(), strict=True)
    return [(item, behaviour) for item, behaviour in rows if item not in left_out]


def record(split: Split, user: int) -> list[Event]:
    """A user's training events."""
    start, end = split.train.offsets[user : user + 2].tolist()
    items, behaviours = split.train.item[start:end], split.train.behaviour[start:end]
    return list(zip(items.tolist(), behaviours.tolist(), strict=True))


def targets_of(split: Split, kind: str) -> dict[int, tuple[int, list[Event]]]:
    """Item and history by user."""
    targets: Targets = getattr(split, kind)
    return {
        user: (item, history(split, targets, row))
        for row, (user, item) in enumerate(
            zip(targets.user.tolist(), targets.item.tolist(), strict=True)
        )
    }


@dataclass
class Told:
    """The protocol's split of one user, told step by step."""

    test: tuple[int, list[Event]] | None = None
    validation: tuple[int, list[Event]] | None = None
    record: list[Event] = field(default_factory=list)
    target: list[bool] = field(default_factory=list)


def tell(user: list[Event], protocol: ProtocolConfig, date: float | None) -> Told:
    """One user's split; event number p has time p."""
    told = Told()
    drop = protocol.same_item_history is SameItemHistory.drop
    novel = [item not in [i for i, _ in user[:p]] for p, (item, _) in enumerate(user)]
    can = [b == FAVOR and (novel[p] or protocol.same_item_history is not SameItemHistory.novel_only)
           for p, (_, b) in enumerate(user)]  # fmt: skip
    favors = [p for p, possible in enumerate(can) if possible]
    test = favors[-1] if favors and favors[-1] > 0 else None
    validation = None
    if test is not None and len(favors) > 1 and favors[-2] > 0:
        validation = favors[-2] if user[favors[-2]][0] != user[test][0] else None
    cut = validation if validation is not None else test if test is not None else len(user)
    own = {user[p][0] for p in (test, validation) if p is not None} if drop else set()
    for p, (item, behaviour) in enumerate(user[:cut]):
        if item in own or (date is not None and p >= date):
            continue
        told.record.append((item, behaviour))
        wanted = protocol.train_targets is TrainTargets.all or behaviour == FAVOR
        if protocol.same_item_history is SameItemHistory.novel_only:
            wanted = wanted and novel[p]
        told.target.append(wanted)
    if test is not None and (date is None or test >= date):
        item = user[test][0]
        told.test = item, [e for e in user[:test] if not (drop and e[0] == item)]
    if validation is not None and (date is None or validation < date):
        told.validation = user[validation][0], [e for e in user[:validation] if e[0] not in own]
    return told


@given(users=logs, protocol=st.sampled_from(READINGS))
@settings(several, max_examples=100)
def test_every_reading_follows_the_protocols_sentences(
    users: list[list[Event]], protocol: ProtocolConfig, tmp_path: Path
) -> None:
    data, keep = opened(tmp_path, users)
    if not data_has_tests(data, protocol):
        assert not any(tell(events, protocol, None).test for events in keep) or (
            protocol.cutoff is Cutoff.global_time
        )
        return
    split = data.split(protocol)
    assert (split.date is None) == (protocol.cutoff is Cutoff.per_user)
    for user, events in enumerate(keep):
        told = tell(events, protocol, split.date)
        start, end = split.train.offsets[user : user + 2].tolist()
        assert record(split, user) == told.record
        assert split.train.target[start:end].tolist() == told.target
        assert targets_of(split, "test").get(user) == told.test
        assert targets_of(split, "validation").get(user) == told.validation


@given(users=logs)
@several
def test_no_event_at_or_after_a_target_is_in_its_history(
    users: list[list[Event]], tmp_path: Path
) -> None:
    data, keep = opened(tmp_path, users)
    for protocol in readings_with_a_test(data):
        split = data.split(protocol)
        for kind in ("test", "validation"):
            targets: Targets = getattr(split, kind)
            for row, user in enumerate(targets.user.tolist()):
                place = int(targets.position[row] - split.events.offsets[user])
                assert keep[user][place] == (int(targets.item[row]), FAVOR)
                read = history(split, targets, row)
                assert len(read) <= place
                remaining = iter(keep[user][:place])
                assert all(event in remaining for event in read)  # in this order, nothing later


@given(users=logs, seed=st.integers(0, 2**16))
@several
def test_a_permuted_future_changes_no_history(
    users: list[list[Event]], seed: int, tmp_path: Path
) -> None:
    data, keep = opened(tmp_path, users)
    shuffle = np.random.default_rng(seed).permutation

    def with_future_shuffled(events: list[Event], after: int, fixed: int) -> list[Event]:
        places = [p for p in range(after + 1, len(events)) if p != fixed]
        moved = dict(zip(places, shuffle(places).tolist(), strict=True))
        return [events[moved.get(p, p)] for p in range(len(events))]

    for protocol in (DROP, KEEP):
        before = data.split(protocol)
        last = {u: int(p - before.events.offsets[u]) for u, p in
                zip(before.test.user.tolist(), before.test.position.tolist(), strict=True)}  # fmt: skip
        held = {u: int(p - before.events.offsets[u]) for u, p in
                zip(before.validation.user.tolist(), before.validation.position.tolist(), strict=True)}  # fmt: skip
        changed = [with_future_shuffled(events, last[u], -1) for u, events in enumerate(keep)]
        after = dataset(tmp_path, changed).split(protocol)
        assert targets_of(after, "test") == targets_of(before, "test")
        assert targets_of(after, "validation") == targets_of(before, "validation")
        changed = [
            with_future_shuffled(events, held.get(u, last[u]), last[u])
            for u, events in enumerate(keep)
        ]
        after = dataset(tmp_path, changed).split(protocol)
        assert targets_of(after, "validation") == targets_of(before, "validation")
        for user in range(len(keep)):
            assert record(after, user) == record(before, user)


@given(users=logs)
@several
def test_drop_removes_every_own_event(users: list[list[Event]], tmp_path: Path) -> None:
    data, keep = opened(tmp_path, users)
    split = data.split(DROP)
    test, validation = targets_of(split, "test"), targets_of(split, "validation")
    for user in range(len(keep)):
        trained = {item for item, _ in record(split, user)}
        item, read = test[user]
        assert item not in trained
        assert item not in {i for i, _ in read}
        if user in validation:
            own, before = validation[user]
            assert own not in trained
            assert {item, own}.isdisjoint({i for i, _ in before})


@given(users=logs, count=st.integers(1, 6))
@several
def test_fewer_users_are_the_first_tested_ones_renumbered(
    users: list[list[Event]], count: int, tmp_path: Path
) -> None:
    data, _ = opened(tmp_path, users)
    for protocol in readings_with_a_test(data):
        whole, part = data.split(protocol), data.split(protocol, count)
        chosen = whole.test.user.tolist()[:count]
        assert part.test.user.tolist() == list(range(len(chosen)))
        assert len(part.events.offsets) == len(chosen) + 1
        for kind in ("test", "validation"):
            everyone, few = targets_of(whole, kind), targets_of(part, kind)
            assert few == {new: everyone[u] for new, u in enumerate(chosen) if u in everyone}
            rows = {u: r for r, u in enumerate(getattr(whole, kind).user.tolist())}
            for row, user in enumerate(getattr(part, kind).user.tolist()):
                wanted = getattr(whole, kind).candidates[rows[chosen[user]]]
                assert getattr(part, kind).candidates[row].equal(wanted)
        for new, old in enumerate(chosen):
            assert record(part, new) == record(whole, old)
            assert touched(part, new) == touched(whole, old)


def touched(split: Split, user: int) -> list[int]:
    start, end = split.touched_offsets[user : user + 2].tolist()
    return split.touched_items[start:end].tolist()


@given(users=logs)
@several
def test_touched_items_are_all_of_a_users_events_whatever_the_reading(
    users: list[list[Event]], tmp_path: Path
) -> None:
    data, keep = opened(tmp_path, users)
    for protocol in readings_with_a_test(data):
        split = data.split(protocol)
        for user, events in enumerate(keep):
            assert touched(split, user) == sorted({item for item, _ in events})


def test_a_history_that_drop_empties_stays_in_the_test(tmp_path: Path) -> None:
    split = dataset(tmp_path, [[*clicks(3, 3, 3, 3), (3, FAVOR)]]).split(DROP)
    assert targets_of(split, "test") == {0: (3, [])}
    assert len(split.train.item) == 0


@pytest.mark.parametrize(
    ("why", "user"),
    [
        ("missing", [*clicks(1, 2, 3, 4), (5, FAVOR)]),
        ("nothing before it", [(1, FAVOR), *clicks(2, 3, 4), (5, FAVOR)]),
        ("on the test item", [*clicks(1, 2, 3), (5, FAVOR), *clicks(4), (5, FAVOR)]),
    ],
)
@pytest.mark.parametrize("protocol", [DROP, KEEP], ids=["drop", "keep"])
def test_no_validation_when_the_earlier_favor_is(
    why: str, user: list[Event], protocol: ProtocolConfig, tmp_path: Path
) -> None:
    split = dataset(tmp_path, [user]).split(protocol)
    assert why
    assert len(split.validation.user) == 0
    own = {5} if protocol is DROP else set()
    assert record(split, 0) == [event for event in user[:-1] if event[0] not in own]


def test_clicks_between_validation_and_test_are_history_and_never_trained_on(
    tmp_path: Path,
) -> None:
    user = [*clicks(1, 2), (3, FAVOR), *clicks(4, 5), (6, FAVOR), *clicks(7)]
    split = dataset(tmp_path, [user]).split(DROP)
    assert targets_of(split, "test") == {0: (6, user[:5])}
    assert targets_of(split, "validation") == {0: (3, user[:2])}
    assert record(split, 0) == user[:2]


def test_drop_leaves_out_the_test_item_everywhere_and_the_validation_item_before_it(
    tmp_path: Path,
) -> None:
    user = [*clicks(9, 8, 1), (1, FAVOR), *clicks(8), (8, FAVOR), *clicks(9, 2, 8), (9, FAVOR)]
    split = dataset(tmp_path, [user]).split(DROP)
    assert split.test.left_out.tolist() == [[9, 0]]
    assert split.validation.left_out.tolist() == [[9, 8]]
    assert targets_of(split, "validation") == {0: (8, [(1, CLICK), (1, FAVOR)])}
    # the validation item's events stay in the test history
    assert targets_of(split, "test")[0][1] == [event for event in user[:-1] if event[0] != 9]
    assert record(split, 0) == [(1, CLICK), (1, FAVOR)]


def test_novel_only_takes_favors_of_untouched_items(tmp_path: Path) -> None:
    user = [*clicks(1), (2, FAVOR), *clicks(2, 3), (4, FAVOR), *clicks(1), (3, FAVOR)]
    split = dataset(tmp_path, [user, [*clicks(1, 2, 3, 4), (4, FAVOR)]]).split(NOVEL)
    assert targets_of(split, "test") == {0: (4, user[:4])}
    assert targets_of(split, "validation") == {0: (2, user[:1])}
    assert record(split, 0) == user[:1]
    # a user whose every favor was opened before is trained on and not tested
    assert record(split, 1) == [*clicks(1, 2, 3, 4), (4, FAVOR)]
    start, end = split.train.offsets[1:3].tolist()
    assert split.train.target[start:end].tolist() == [True, True, True, True, False]


def test_a_reading_that_leaves_nobody_to_test_is_one_line(tmp_path: Path) -> None:
    data = dataset(tmp_path, [[*clicks(1, 2, 3, 4), (4, FAVOR)]])
    with pytest.raises(InputError, match=r"'small' .* protocol.same_item_history=novel_only"):
        data.split(NOVEL)


def test_global_time_trains_and_validates_before_its_date_and_tests_after_it(
    tmp_path: Path,
) -> None:
    def user(start: int) -> tuple[list[Event], list[int]]:
        events = [*clicks(1, 2), (3, FAVOR), *clicks(4), (5, FAVOR)]
        return events, list(range(start, start + 5))

    users, times = zip(*(user(start) for start in (0, 20, 40, 60, 80)), strict=True)
    data = dataset(tmp_path, list(users), times=list(times))
    split = data.split(replace(KEEP, cutoff=Cutoff.global_time))
    everything = np.array(times).ravel()
    assert (everything < split.date).mean() >= DATE_QUANTILE
    assert split.date in everything
    assert split.test.user.tolist() == [u for u in range(5) if times[u][4] >= split.date]
    assert split.validation.user.tolist() == [u for u in range(5) if times[u][2] < split.date]
    trained = np.bincount(split.train.user.numpy(), minlength=5)
    assert trained.tolist() == [sum(t < split.date for t in times[u][:2]) for u in range(5)]


def test_equal_times_keep_their_order_in_the_file(tmp_path: Path) -> None:
    users = [[*clicks(4, 3, 2, 1), (5, FAVOR), *clicks(6)]]
    split = dataset(tmp_path, users, times=[[7, 7, 3, 7, 9, 9]]).split(DROP)
    assert split.events.item.tolist() == [2, 4, 3, 1, 5, 6]


def test_unsorted_files_are_sorted_by_time(tmp_path: Path) -> None:
    user = [(5, FAVOR), *clicks(4, 3, 2, 1)]
    split = dataset(tmp_path, [user], times=[[9, 8, 7, 6, 5]]).split(DROP)
    assert split.events.item.tolist() == [1, 2, 3, 4, 5]


def test_the_filter_counts_recorded_events_and_wants_something_before_the_last_favor(
    tmp_path: Path,
) -> None:
    users = [
        [*clicks(1, 2, 3), (4, FAVOR)],  # four events
        [*clicks(1, 2, 3, 4, 5)],  # no favor
        [(1, FAVOR), *clicks(2, 3, 4, 5)],  # nothing before its last favor
        [*clicks(1, 1, 1, 1), (1, FAVOR)],  # kept, though drop will empty it
    ]
    data = dataset(tmp_path, users)
    assert data.users == 1
    assert data.array("user_number").tolist() == [3]


def test_nobody_left_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="no user of 'table' is left: of 1 users, 0 have at least 5"
    ):
        prepare(raw_log([clicks(1, 2)]), tmp_path / "data", "small")
    assert not (tmp_path / "data").exists()


def test_scope_doubles_the_longest_history_and_keep_tells_methods_so(tmp_path: Path) -> None:
    data = dataset(tmp_path, [[*clicks(1, 2, 3, 4), (5, FAVOR)]])
    assert data.catalogue(DROP).length == 50
    assert data.catalogue(replace(DROP, scope=Scope.behavior)).length == 100
    drops = [data.catalogue(protocol).drops_own_events for protocol in (DROP, KEEP, NOVEL)]
    assert drops == [True, False, True]


def test_a_set_without_vectors_has_width_one_and_nothing_present(tmp_path: Path) -> None:
    catalogue = dataset(tmp_path, [[*clicks(1, 2, 3, 4), (5, FAVOR)]]).catalogue(DROP)
    assert catalogue.users == 1
    assert catalogue.items == ITEMS
    for vectors, present in (
        (catalogue.image, catalogue.image_present),
        (catalogue.text, catalogue.text_present),
    ):
        assert vectors.shape == (ITEMS + 1, 1)
        assert not vectors.any()
        assert not present.any()
