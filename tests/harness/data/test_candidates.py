"""99 negatives: the rule told number by number, its promises, and what is stored."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import Negatives, ProtocolConfig
from harness.data import candidates
from harness.data.dataset import Dataset
from harness.data.prepare import prepare
from harness.errors import InputError
from harness.seeding import stream
from tests.harness.data.logs import FAVOR, clicks, dataset, raw_log

UNIFORM = ProtocolConfig()
POPULAR = ProtocolConfig(negatives=Negatives.popularity)


def one_by_one(seed: int, name: str, touched: set[int], items: int) -> list[int]:
    """The rule as it is written: floor(M x), touched and taken items skipped, until 99 (ids from 1)."""
    numbers, taken = stream(seed, name), []
    while len(taken) < 99:
        item = int(np.floor(items * numbers.random())) + 1
        if item not in touched and item not in taken:
            taken.append(item)
    return taken


def ragged(rows: list[set[int]]) -> candidates.Touched:
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    return candidates.Touched(offsets, np.array([i for row in rows for i in sorted(row)], np.int32))


@given(
    seed=st.integers(0, 2**32),
    items=st.integers(101, 160),
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_candidates_are_the_rule_drawn_one_by_one(seed: int, items: int, sizes: list[int]) -> None:
    order = np.random.default_rng(seed).permutation(items) + 1
    rows = [set(order[: min(size, items - 99)].tolist()) for size in sizes]
    numbers = np.arange(len(rows)) * 7 + 3
    for kind in candidates.KINDS:
        drawn = candidates.draw(seed, kind, numbers, ragged(rows), items)
        for row, (number, touched) in enumerate(zip(numbers, rows, strict=True)):
            assert drawn[row].tolist() == one_by_one(seed, f"neg_{kind}{number}", touched, items)


def test_a_user_with_exactly_99_items_left_gets_them_all() -> None:
    drawn = candidates.draw(5, "test", np.array([0]), ragged([set(range(1, 52))]), 150)
    assert sorted(drawn[0].tolist()) == list(range(52, 151))


def test_fewer_than_99_possible_negatives_names_the_user_and_the_number(tmp_path: Path) -> None:
    user = [*clicks(*range(1, 40)), (40, FAVOR)]
    with pytest.raises(
        InputError, match=r"fewer than 99 .* 1 of 2 users \(user number 1: 90 of 130"
    ):
        prepare(raw_log([[*clicks(1, 2, 3, 4), (5, FAVOR)], user]), tmp_path / "data", "small")
    assert not (tmp_path / "data").exists()


def test_popularity_draws_untouched_items_by_their_events() -> None:
    items, users = 300, 400
    counts = np.zeros(items + 1, dtype=np.int64)
    counts[1:201] = np.arange(1, 201)  # 100 items have no event and are never drawn
    rows = [{1, 200, 250}] * users
    drawn = candidates.draw(1, "test", np.arange(users), ragged(rows), items, counts)
    assert all(len(set(row)) == 99 for row in drawn.tolist())
    assert set(np.unique(drawn)) <= set(range(2, 200))
    first = np.bincount(drawn[:, 0], minlength=items + 1)[1:201]
    heavy, light = first[150:].sum() / users, first[:50].sum() / users
    assert heavy == pytest.approx(175.5 * 50 / 20_100, abs=0.08)
    assert light == pytest.approx(25.5 * 50 / 20_100, abs=0.05)


def test_popularity_needs_99_items_that_somebody_touched(tmp_path: Path) -> None:
    data = dataset(tmp_path, [[*clicks(1, 2, 3, 4), (5, FAVOR)]])
    with pytest.raises(InputError, match=r"fewer than 99 possible negatives"):
        data.split(POPULAR)


def wide(folder: Path) -> Dataset:
    """Users who together touch every item."""
    users = [[*clicks(*range(1 + n, 30 + n)), (30 + n, FAVOR)] for n in range(0, 101, 20)]
    return dataset(folder, users)


def test_uniform_candidates_are_stored_with_their_checksum(tmp_path: Path) -> None:
    data = wide(tmp_path)
    stored = [data.array(f"negatives_{kind}") for kind in candidates.KINDS]
    wanted = hashlib.sha256(b"".join(array.astype("<i4").tobytes() for array in stored)).hexdigest()
    assert data.candidates_sha256(UNIFORM) == wanted
    split = data.split(UNIFORM)
    np.testing.assert_array_equal(split.test.candidates, stored[0])
    assert not (stored[0] == stored[1]).all()


def test_popularity_is_drawn_once_stored_and_drawn_the_same_when_the_file_is_damaged(
    tmp_path: Path,
) -> None:
    data = wide(tmp_path)
    first = data.candidates_sha256(POPULAR)
    assert first != data.candidates_sha256(UNIFORM)
    path = data.folder / "negatives_popularity.npz"
    content = path.read_bytes()
    assert Dataset.open(tmp_path, "small").candidates_sha256(POPULAR) == first
    path.write_bytes(content[:500])
    assert Dataset.open(tmp_path, "small").candidates_sha256(POPULAR) == first
    assert path.read_bytes() == content
    split = data.split(POPULAR)
    for row, user in enumerate(split.test.user.tolist()):
        start, end = split.touched_offsets[user : user + 2].tolist()
        own = set(split.touched_items[start:end].tolist())
        assert own.isdisjoint(split.test.candidates[row].tolist())


def test_popularity_drawn_by_many_at_once_is_one_draw(tmp_path: Path) -> None:
    wide(tmp_path)

    def checksum(_: int) -> str:
        return Dataset.open(tmp_path, "small").candidates_sha256(POPULAR)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(checksum, range(8)))) == 1
    assert [path.name for path in (tmp_path / "small").glob("*popularity*")] == [
        "negatives_popularity.npz"
    ]


def test_a_data_folder_that_cannot_be_written_still_gives_popularity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = wide(tmp_path)
    wanted = data.candidates_sha256(POPULAR)
    (data.folder / "negatives_popularity.npz").unlink()

    def refuse(path: Path, arrays: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("harness.data.dataset.write_archive", refuse)
    assert data.candidates_sha256(POPULAR) == wanted


def test_candidates_do_not_depend_on_the_readings_of_histories_or_on_other_users(
    tmp_path: Path,
) -> None:
    users = [[*clicks(1, 2, 3, 4), (5, FAVOR)], [*clicks(6, 7, 8, 9), (10, FAVOR)]]
    both = dataset(tmp_path / "both", users).split(UNIFORM)
    prepare(replace(raw_log([[], users[1]])), tmp_path / "one", "small")
    alone = Dataset.open(tmp_path / "one", "small").split(UNIFORM)
    assert alone.test.candidates[0].equal(both.test.candidates[1])


def test_redraws_are_other_untouched_items_the_same_each_time() -> None:
    user = np.repeat([0, 1], [40, 201])
    item = np.concatenate([np.arange(1, 41), np.arange(100, 301)])
    touched = candidates.touched_items(user, item, 2, 300)  # user 1 has exactly 99 left
    first, again, other = (candidates.redraw(7, k, touched, 300) for k in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], other[0])
    assert first.min() >= 1
    assert first.max() <= 300
    assert [len(set(row.tolist())) for row in first] == [99, 99]
    assert not set(first[0].tolist()) & set(range(1, 41))
    assert sorted(first[1].tolist()) == list(range(1, 100))
