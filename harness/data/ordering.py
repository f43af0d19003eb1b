"""A bucket's records in their final order, each once, and what a selection takes of them.

Everything works on columns: a structure of 13 bytes costs several times more to move than its parts.

Axes: row = records of a bucket, kept = events of the kept users in their final order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from harness.data.raw import CLICK, FAVOR

MOST_MARKS = 1 << 28
"""Numbers below this are marked in an array that grows with them."""
PARTS = 256
"""Ranges of users that rows are cut in, at most, before they are sorted as one number."""


@dataclass(frozen=True)
class Selection:
    """Which events and which users of a log are wanted, and what is a click and a favor."""

    click: tuple[int, ...] = (1,)
    """Kinds that are a click. A row whose kind is also a favor is two events, the click first."""
    favor: tuple[int, ...] = (2,)
    times: tuple[tuple[int, int], ...] = ()
    """Half-open ranges of the log's clock; none is all of it."""
    items: Bool[ndarray, " raw_item"] | None = None
    """Wanted raw item numbers; beyond its end none is."""
    items_rule: str = ""
    """What `items` are, for the ledger."""
    minimum_events: int = 5
    """Events of a kept user (protocol, Data)."""
    favor_share: tuple[float, float] = (0.0, 1.0)
    """Least and largest share of favors among the events of a kept user."""
    name: str = "all"
    """For the survey's table."""

    def facts(self) -> dict[str, Any]:
        """What the manifest says of it."""
        own = (
            None
            if self.items is None
            else hashlib.sha256(np.packbits(self.items).tobytes()).hexdigest()
        )
        return {
            "click": list(self.click), "favor": list(self.favor),
            "times": [list(pair) for pair in self.times], "items": self.items_rule,
            "items_sha256": own, "minimum_events": self.minimum_events,
            "favor_share": list(self.favor_share),
        }  # fmt: skip


Columns = dict[str, ndarray]
"""user, item, time, kind and perhaps extra, an entry a row."""


def in_order(records: ndarray, selections: Sequence[Selection]) -> tuple[Columns, int]:
    """Records of a bucket by user, time and place in the file, each once; and how many came again.

    Kinds that no selection wants are left out first.
    """
    wanted = np.zeros(256, dtype=bool)
    for selection in selections:
        wanted[[*selection.click, *selection.favor]] = True
    columns = {name: np.ascontiguousarray(records[name]) for name in records.dtype.names or ()}
    columns = _some(columns, wanted[columns["kind"]])
    if not len(columns["user"]):
        return columns, 0
    user, time = (columns[name].astype(np.int64) for name in ("user", "time"))
    columns = _some(columns, places_in_order(user - user.min(), time - time.min()))
    user, time = columns["user"], columns["time"]
    same = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    if not same.any():
        return columns, 0
    tied = np.nonzero(np.concatenate([[False], same]) | np.concatenate([same, [False]]))[0]
    among = [columns[name][tied] for name in ("kind", "item", "time", "user")]
    by_value = np.lexsort(among)  # stable: the first of equal records stays the first
    again = np.ones(len(tied) - 1, dtype=bool)
    for column in among:
        ordered = column[by_value]
        again &= ordered[1:] == ordered[:-1]
    if not again.any():
        return columns, 0
    keep = np.ones(len(user), dtype=bool)
    keep[tied[by_value[1:][again]]] = False
    return _some(columns, keep), int(again.sum())


def _some(columns: Columns, rows: ndarray) -> Columns:
    """Some rows: marks, or places."""
    if rows.dtype == bool and rows.all():
        return columns
    return {name: column[rows] for name, column in columns.items()}


def places_in_order(user: Int[ndarray, " row"], time: Int[ndarray, " row"]) -> Int[ndarray, " row"]:
    """Places by user, then time, then place; users and times count from 0.

    Where the three fit in 63 bits they are sorted as one number, which is several times faster than a
    stable sort by two keys; where they do not, rows are first cut in ranges of users, which have both
    fewer users and fewer rows.
    """
    bits = [len(user).bit_length(), int(time.max()).bit_length(), int(user.max()).bit_length()]
    if sum(bits) <= 63:
        key = user << (bits[0] + bits[1])
        key |= time << bits[0]
        key |= np.arange(len(user))
        key.sort()
        key &= (1 << bits[0]) - 1
        return key
    low = int(user.min())
    if low == int(user.max()) or len(user) < 1_000:
        return np.lexsort((time, user))
    width = -(-(int(user.max()) - low + 1) // PARTS)
    part = ((user - low) // width).astype(np.uint8)
    order = np.argsort(part, kind="stable")
    ends = np.cumsum(np.bincount(part, minlength=PARTS))
    for begin, end in zip(ends - np.bincount(part, minlength=PARTS), ends, strict=True):
        if end > begin:
            rows = order[begin:end]
            own = user[rows]
            order[begin:end] = rows[places_in_order(own - own.min(), time[rows])]
    return order


@dataclass(frozen=True)
class Chosen:
    """What a selection takes from a bucket."""

    user: Int[ndarray, " kept"]
    """Rank among `users`."""
    item: Int[ndarray, " kept"]
    behaviour: Int[ndarray, " kept"]
    time: Int[ndarray, " kept"]
    extra: Int[ndarray, " kept"] | None
    users: Int[ndarray, " user"]
    """Raw numbers of all users with an event, ascending, kept or not."""
    kept_users: int
    ledger: Mapping[str, int]

    def counts(self) -> tuple[dict[str, int], Int[ndarray, " kept"]]:
        """What a survey needs: users, clicks, favors, source_users, and the items."""
        clicks = int((self.behaviour == CLICK).sum())
        numbers = {"users": self.kept_users, "clicks": clicks, "favors": len(self.user) - clicks,
                   "source_users": len(self.users)}  # fmt: skip
        return numbers, self.item


def choose(columns: Columns, duplicates: int, selection: Selection) -> Chosen:
    """Rows and users of an ordered bucket that a selection wants; see `harness.data.prepare` for the rule."""
    is_click, is_favor = np.zeros(256, dtype=bool), np.zeros(256, dtype=bool)
    is_click[list(selection.click)] = True
    is_favor[list(selection.favor)] = True
    ledger = {"duplicates": duplicates}
    rows = (is_click | is_favor)[columns["kind"]]
    ledger["another behaviour"] = int((~rows).sum())
    if selection.times:
        inside = np.zeros(len(rows), dtype=bool)
        for begin, end in selection.times:
            inside |= (columns["time"] >= begin) & (columns["time"] < end)
        ledger["outside the time range"] = int((rows & ~inside).sum())
        rows &= inside
    if selection.items is not None:
        item = columns["item"]
        beyond = np.append(selection.items, False)
        alive = beyond[np.minimum(item, len(selection.items))]
        ledger[selection.items_rule or "another item"] = int((rows & ~alive).sum())
        rows &= alive
    columns = _some(columns, rows)
    kind, user = columns["kind"], columns["user"]
    click, favor = is_click[kind], is_favor[kind]
    first = np.nonzero(np.concatenate([np.ones(min(1, len(user)), bool), user[1:] != user[:-1]]))[0]
    count = np.diff(first, append=len(user))
    clicks, favors, last = _counts(click, favor, first)
    ends_well = (last > first) | ((last == first) & click[np.minimum(first, len(user) - 1)])
    enough = clicks + favors >= selection.minimum_events
    low, high = selection.favor_share
    share = favors / np.maximum(1, clicks + favors)
    good_share = (share >= low) & (share <= high)
    kept = enough & ends_well & good_share
    ledger["users"] = len(first)
    ledger["users with too few events"] = int((~enough).sum())
    ledger["users without a last favor that has an event before it"] = int(
        (enough & ~ends_well).sum()
    )
    ledger["users with another share of favors"] = int((enough & ends_well & ~good_share).sum())
    chosen = np.repeat(kept, count)
    rank = np.repeat(np.nonzero(kept)[0], count[kept])
    users = user[first].astype(np.int64)
    columns, click, favor = _some(columns, chosen), click[chosen], favor[chosen]
    event = np.repeat(np.arange(len(rank)), click.astype(np.int64) + favor)
    second = np.zeros(len(event), dtype=bool)
    second[1:] = event[1:] == event[:-1]
    behaviour = np.where(click[event] & ~second, CLICK, FAVOR).astype(np.int8)
    extra = columns["extra"][event] if "extra" in columns else None
    return Chosen(
        rank[event], columns["item"][event], behaviour, columns["time"][event], extra, users,
        int(kept.sum()), ledger,
    )  # fmt: skip


def _counts(
    click: Bool[ndarray, " row"], favor: Bool[ndarray, " row"], first: Int[ndarray, " user"]
) -> tuple[Int[ndarray, " user"], Int[ndarray, " user"], Int[ndarray, " user"]]:
    """Clicks, favors and the place of the last favor (-1 for none) of each user."""
    if not len(first):
        return first, first, first
    ends = np.append(first[1:], len(click))
    clicks, favors = (
        np.diff(np.concatenate([[0], np.cumsum(flag)])[np.append(first, len(flag))])
        for flag in (click, favor)
    )
    places = np.nonzero(favor)[0]
    if not len(places):
        return clicks, favors, np.full(len(first), -1)
    before = np.searchsorted(places, ends) - 1
    last = np.where(favors > 0, places[np.maximum(before, 0)], -1)
    return clicks, favors, last


class Touched:
    """The distinct numbers among many, in a bounded way: marks where they are small, else a sorted list."""

    def __init__(self) -> None:
        self.marks = np.zeros(0, dtype=bool)
        self.large = np.zeros(0, dtype=np.int64)

    def add(self, numbers: Int[ndarray, " number"]) -> None:
        """Numbers from 0 on."""
        if not len(numbers):
            return
        top = int(numbers.max()) + 1
        if top > MOST_MARKS:
            self.large = np.union1d(self.large, numbers[numbers >= MOST_MARKS].astype(np.int64))
            numbers = numbers[numbers < MOST_MARKS]
            top = int(numbers.max(initial=-1)) + 1
        if top > len(self.marks):
            more = min(MOST_MARKS, max(top, 2 * len(self.marks))) - len(self.marks)
            self.marks = np.concatenate([self.marks, np.zeros(more, dtype=bool)])
        self.marks[numbers] = True

    def numbers(self) -> Int[ndarray, " distinct"]:
        """The distinct numbers, ascending."""
        return np.concatenate([np.nonzero(self.marks)[0], self.large])

    def places(self) -> Callable[[Int[ndarray, " number"]], Int[ndarray, " number"]]:
        """A function from numbers that were added to their places among the distinct ones.

        Marked numbers are looked up in a table: among millions that is ten times quicker than a search.
        """
        table = np.cumsum(self.marks, dtype=np.int32) - np.int32(1)
        marked, large = int(self.marks.sum()), self.large

        def place(numbers: Int[ndarray, " number"]) -> Int[ndarray, " number"]:
            if not len(large):
                return np.asarray(table[numbers])
            return np.where(
                numbers < len(table),
                np.append(table, 0)[np.minimum(numbers, len(table))],
                marked + np.searchsorted(large, numbers),
            )

        return place
