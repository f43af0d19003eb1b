"""Preparing a large source: in blocks, without sorting or copying what is in order already."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data import candidates
from harness.data.prepare import prepare, release
from harness.data.raw import Raw

USERS, ITEMS, WIDTH = 60, 400, 3


def in_order(time_type: str = "<i4") -> Raw:
    """A log by user, then time, with ties, users that leave, and items without vectors."""
    random = np.random.default_rng(5)
    user = np.repeat(np.arange(USERS), random.integers(1, 40, USERS))
    time = random.integers(0, 9, len(user))
    time = time[np.lexsort((time, user))]
    image = random.normal(size=(ITEMS, WIDTH)).astype(np.float32)
    image[::7] = 0
    return Raw(
        source="table",
        user=user,
        item=random.integers(0, ITEMS, len(user)),
        behaviour=random.choice([1, 2], len(user), p=[0.8, 0.2]),
        timestamp=time.astype(time_type),
        user_ids=[f"u{user}" for user in range(USERS)],
        item_ids=[f"i{item}" for item in range(ITEMS)],
        fields={"brand": [("", "b", "a", "é")[item % 4] for item in range(ITEMS)]},
        image=image,
    )


def mapped(raw: Raw, folder: Path) -> Raw:
    """The same with its arrays memory-mapped, read-only, as a staged log has them."""

    def moved(name: str) -> np.ndarray:
        np.save(folder / f"{name}.npy", getattr(raw, name))
        array: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r")
        return array

    names = ("user", "item", "behaviour", "timestamp", "image")
    return replace(raw, **{name: moved(name) for name in names})


def mixed(raw: Raw) -> Raw:
    """The same events with the users' rows among each other, each user's in their order."""
    place = np.argsort(np.random.default_rng(6).permutation(raw.user), kind="stable")
    order = np.empty(len(place), dtype=np.int64)
    order[place] = np.arange(len(place))  # users in a random order, each one's rows ascending
    return replace(
        raw,
        user=raw.user[order],
        item=raw.item[order],
        behaviour=raw.behaviour[order],
        timestamp=raw.timestamp[order],
    )


def prepared(raw: Raw, folder: Path) -> dict[str, Any]:
    """The manifest, which holds the SHA-256 of every file."""
    return prepare(raw, folder, "set")


def small_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("harness.data.prepare.EVENTS_AT_ONCE", 16)
    patch.setattr("harness.data.prepare.VECTOR_BYTES_AT_ONCE", 5 * WIDTH * 4)
    patch.setattr("harness.data.candidates.MOST_DRAWS", 1000)


@pytest.mark.parametrize("time_type", ["<i4", "<i8", "<f8"])
def test_a_mapped_source_in_order_gives_the_set_of_a_mixed_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time_type: str
) -> None:
    raw = in_order(time_type)
    shuffled = mixed(raw)
    assert (np.diff(shuffled.user) < 0).any()
    expected = prepared(shuffled, tmp_path / "mixed")
    small_blocks(monkeypatch)
    assert prepared(shuffled, tmp_path / "mixed in blocks") == expected

    def sorted_again(*_: object) -> None:
        pytest.fail("a source in order was sorted")

    monkeypatch.setattr("numpy.lexsort", sorted_again)
    found = prepared(mapped(raw, tmp_path), tmp_path / "mapped")
    assert found == expected
    assert 0 < found["counts"]["users"] < USERS
    assert found["table1"]["items"] < ITEMS  # some left with their users, so rows were renumbered


def test_only_equal_numbers_of_a_user_need_their_times_in_order(tmp_path: Path) -> None:
    raw = in_order()
    late = raw.timestamp.copy()
    late[raw.user == 3] = late[raw.user == 3][::-1]
    out_of_order = replace(raw, timestamp=late)
    by_time = np.lexsort((late, raw.user))
    ordered = replace(
        out_of_order,
        **{name: getattr(out_of_order, name)[by_time]
           for name in ("user", "item", "behaviour", "timestamp")},
    )  # fmt: skip
    assert prepared(out_of_order, tmp_path / "a") == prepared(ordered, tmp_path / "b")


class Counted(np.ndarray):
    """An array that knows how many rows were asked of it at once."""

    most = 0

    def __getitem__(self, key: Any) -> Any:
        found = np.asarray(super().__getitem__(key))
        Counted.most = max(Counted.most, len(found) if found.ndim else 1)
        return found


@pytest.mark.parametrize(
    ("name", "at_once"), [("image", 5), ("item", 16), ("behaviour", 16), ("timestamp", 17)]
)
def test_no_column_and_no_vectors_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at_once: int
) -> None:
    small_blocks(monkeypatch)
    monkeypatch.setattr(Counted, "most", 0)
    raw = in_order()
    longest = int(np.bincount(raw.user).max())
    assert longest > 17  # a user with more events than a block is one block
    prepared(replace(raw, **{name: getattr(raw, name).view(Counted)}), tmp_path)
    assert 0 < Counted.most <= (at_once if name == "image" else max(at_once, longest))


def test_draws_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    user, item = np.repeat(np.arange(40), 60), random.integers(1, 170, 2400)
    touched = candidates.touched_items(user, item, 40, 170)

    def drawn() -> list[np.ndarray]:
        counts = np.bincount(item, minlength=171) + 1
        numbers = np.arange(100, 140)
        return [
            candidates.draw(1, "test", numbers, touched, 170),
            candidates.draw(1, "val", numbers, touched, 170, counts),
            candidates.redraw(1, 3, touched, 170),
        ]

    expected = drawn()
    monkeypatch.setattr("harness.data.candidates.MOST_DRAWS", 300)
    for one, other in zip(drawn(), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    own = [
        set(touched.items[a:b]) for a, b in zip(touched.offsets, touched.offsets[1:], strict=False)
    ]
    for drawn_of in expected:
        assert all(not own[row] & set(drawn_of[row]) for row in range(40))


@pytest.mark.parametrize("open_as", [np.asarray, lambda array: array[3:]])
def test_releasing_loses_nothing(
    tmp_path: Path, open_as: Callable[[np.ndarray], np.ndarray]
) -> None:
    np.save(tmp_path / "a.npy", np.arange(10_000))
    array = open_as(np.load(tmp_path / "a.npy", mmap_mode="r"))
    expected = array.copy()
    release(array)
    np.testing.assert_array_equal(array, expected)
    changed = np.load(tmp_path / "a.npy", mmap_mode="c")
    changed[5] = 7
    release(changed)  # its changes are nowhere but in memory
    assert changed[5] == 7


def test_the_manifest_counts_what_the_blocks_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    raw = in_order()
    made = prepared(raw, tmp_path)
    users = [int(name[1:]) for name in _column(tmp_path / "set" / "users.parquet")]
    kept = np.isin(raw.user, users)
    counts = made["counts"]
    assert counts["interactions"] == kept.sum()
    assert counts["clicks"] == (raw.behaviour[kept] == 1).sum()
    assert counts["favors"] == (raw.behaviour[kept] == 2).sum()
    assert counts["items_touched"] == len(np.unique(raw.item[kept]))
    stored = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert stored["counts"] == counts


def _column(path: Path) -> list[str]:
    import pyarrow.parquet as pq  # noqa: PLC0415

    return [str(value) for value in pq.read_table(path).column(0).to_pylist()]
