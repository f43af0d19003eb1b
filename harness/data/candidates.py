"""99 negatives a user, drawn once a data set from items that the user never touched (protocol, P5).

User number u has its own streams, `neg_test{u}` and `neg_val{u}`: numbers x in [0, 1) are drawn one by
one, each names an item, touched and taken items are skipped, until there are 99. Under `uniform` the
item is 1 + floor(items x). Under `popularity` (streams `neg_test_popularity{u}`, ...) its chance is
proportional to its clicks + favors among all recorded events of the kept users, whatever the split:
so candidates do not depend on the readings P2 to P4, and no method reads these counts.

Axes: user, event = entries of the ragged list of touched items, draw, negatives = 99.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from harness.errors import InputError
from harness.seeding import stream

NEGATIVES = 99
KINDS = ("test", "val")
MOST_DRAWS = 2**21
"""Draws held at once."""


@dataclass(frozen=True)
class Touched:
    """The distinct items of each user, ascending, ids from 1."""

    offsets: Int[ndarray, " user_plus_one"]
    items: Int[ndarray, " event"]


def touched_items(
    user: Int[ndarray, " event"], item: Int[ndarray, " event"], users: int, items: int
) -> Touched:
    """The distinct items (ids from 1) of each user."""
    key = np.unique(user.astype(np.int64) * (items + 1) + item)
    offsets = np.searchsorted(key, np.arange(users + 1, dtype=np.int64) * (items + 1))
    return Touched(offsets.astype(np.int64), (key % (items + 1)).astype(np.int32))


def draw(
    seed: int,
    kind: str,
    numbers: Int[ndarray, " user"],
    touched: Touched,
    items: int,
    counts: Int[ndarray, " item_row"] | None = None,
) -> Int[ndarray, "user negatives"]:
    """Negatives of every user, in the order drawn.

    Args:
        seed: Seed of the data set.
        kind: "test" or "val".
        numbers: Raw user numbers, which name the streams.
        touched: What each user must not be asked about.
        items: Items of the catalogue.
        counts: Events of each item (row 0 unused) for `popularity`; None is `uniform`.

    Raises:
        InputError: a user has fewer than 99 items left.
    """
    _require_enough(numbers, touched, items, counts)
    heights = None if counts is None else np.cumsum(counts[1:].astype(np.float64))
    name = f"neg_{kind}" if counts is None else f"neg_{kind}_popularity"

    def numbers_of(rows: Int[ndarray, " user"], draws: int) -> Float[ndarray, "user draw"]:
        return np.stack([stream(seed, f"{name}{numbers[row]}").random(draws) for row in rows])

    return _chosen(numbers_of, touched, items, heights)


def redraw(seed: int, number: int, touched: Touched, items: int) -> Int[ndarray, "user negatives"]:
    """Other uniform negatives of every user, to see how far a number depends on which were drawn.

    One stream a redraw and length, `redraw{number}_{draws}`. Every user must have 99 items left, as
    `draw` makes sure.
    """
    users = len(touched.offsets) - 1
    blocks: dict[int, Float[ndarray, "user draw"]] = {}

    def numbers_of(rows: Int[ndarray, " user"], draws: int) -> Float[ndarray, "user draw"]:
        if draws not in blocks:
            blocks.clear()
            name = f"redraw{number}_{draws}"
            blocks[draws] = stream(seed, name).random((users, draws))
        return np.asarray(blocks[draws][rows])

    return _chosen(numbers_of, touched, items, None)


def _chosen(
    numbers_of: Callable[[Int[ndarray, " user"], int], Float[ndarray, "user draw"]],
    touched: Touched,
    items: int,
    heights: Float[ndarray, " item"] | None,
) -> Int[ndarray, "user negatives"]:
    """The first 99 good items that each user's numbers name; more numbers where they do not suffice."""
    users = len(touched.offsets) - 1
    chosen = np.empty((users, NEGATIVES), dtype=np.int32)
    waiting, draws = np.arange(users), NEGATIVES + 29
    while len(waiting):
        failed = []
        size = max(1, MOST_DRAWS // draws)
        for start in range(0, len(waiting), size):
            rows = waiting[start : start + size]
            item = _items(numbers_of(rows, draws), items, heights)
            good = ~_touched(rows, item, touched, items) & _first(item)
            rank = np.cumsum(good, axis=1)
            enough = rank[:, -1] >= NEGATIVES
            wanted = good[enough] & (rank[enough] <= NEGATIVES)
            chosen[rows[enough]] = item[enough][wanted].reshape(-1, NEGATIVES)
            failed.append(rows[~enough])
        waiting = np.concatenate(failed)
        draws *= 2  # from the start: a user's own stream gives the same first numbers again
    return chosen


def _items(
    x: Float[ndarray, "user draw"], items: int, heights: Float[ndarray, " item"] | None
) -> Int[ndarray, "user draw"]:
    """The item id that each number names."""
    if heights is None:
        return np.asarray(np.floor(items * x) + 1, dtype=np.int64)
    place = np.searchsorted(heights, x * heights[-1], side="right")
    return np.asarray(np.minimum(place, items - 1) + 1)


def _touched(
    rows: Int[ndarray, " user"], item: Int[ndarray, "user draw"], touched: Touched, items: int
) -> Bool[ndarray, "user draw"]:
    """Which drawn items their users, given in ascending order, touched."""
    size = np.diff(touched.offsets)[rows]
    place = np.arange(size.sum()) + np.repeat(touched.offsets[rows] - (size.cumsum() - size), size)
    key = np.repeat(np.arange(len(rows)), size) * (items + 1) + touched.items[place]
    return _among(np.arange(len(rows))[:, None] * (items + 1) + item, key)


def _among(
    key: Int[ndarray, "user draw"], ascending: Int[ndarray, " event"]
) -> Bool[ndarray, "user draw"]:
    """Which keys occur in an ascending list."""
    if not len(ascending):
        return np.zeros(key.shape, dtype=bool)
    place = np.searchsorted(ascending, key)
    return np.asarray(ascending[np.minimum(place, len(ascending) - 1)] == key)


def _first(item: Int[ndarray, "user draw"]) -> Bool[ndarray, "user draw"]:
    """True where an item occurs for the first time in its row."""
    order = np.argsort(item, axis=1, kind="stable")
    by_item = np.take_along_axis(item, order, axis=1)
    new = np.ones_like(by_item, dtype=bool)
    new[:, 1:] = by_item[:, 1:] != by_item[:, :-1]
    first = np.empty_like(new)
    np.put_along_axis(first, order, new, axis=1)
    return first


def _require_enough(
    numbers: Int[ndarray, " user"],
    touched: Touched,
    items: int,
    counts: Int[ndarray, " item_row"] | None,
) -> None:
    """InputError when a user has fewer than 99 items to be drawn from."""
    if counts is None:
        left = items - np.diff(touched.offsets)
    else:
        possible = counts > 0
        possible[0] = False
        taken = np.concatenate([[0], np.cumsum(possible[touched.items])])
        left = possible.sum() - (taken[touched.offsets[1:]] - taken[touched.offsets[:-1]])
    short = np.nonzero(left < NEGATIVES)[0]
    if len(short):
        worst = short[np.argmin(left[short])]
        raise InputError(
            f"fewer than {NEGATIVES} possible negatives for {len(short)} of {len(numbers)} users "
            f"(user number {numbers[worst]}: {left[worst]} of {items} items never touched); "
            "add items with --items, or leave out users who touched nearly everything"
        )


def checksum(test: Int[ndarray, "user negatives"], val: Int[ndarray, "user negatives"]) -> str:
    """SHA-256 of the test negatives, then the validation negatives, as little-endian int32."""
    digest = hashlib.sha256()
    for array in (test, val):
        digest.update(np.ascontiguousarray(array, dtype="<i4").data)
    return digest.hexdigest()
