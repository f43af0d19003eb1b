"""From a raw log to a prepared set: order, filter, renumber, draw candidates, write with checksums.

One format for every source, data/NAME/ (row 0 of everything about items is padding):
    event_item event_behaviour event_time offsets   the events, users ascending, in time order
    touched_items touched_offsets                   the distinct items each user ever touched
    negatives_test negatives_val                    99 item ids a user, reading P5 uniform
    image image_present text text_present           frozen vectors as float32, zero where missing
    field_NAME                                      an id field's codes; 0 is unknown
    users.parquet items.parquet                     raw ids; title, picture, category (reports)
    manifest.json                                   counts, Table 1 row, seeds, checksums

Axes: event, raw_event = before the filter, user, item, kept_item = items that stay, item_row = those + 1.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from harness.data import candidates
from harness.data.files import FORMAT, describe_files, whole_folder, write_array, write_manifest
from harness.data.raw import CLICK, FAVOR, Raw
from harness.errors import InputError

MIN_EVENTS = 5
"""Recorded events a user needs (protocol, Data)."""
EVENTS_AT_ONCE = 1 << 20
"""Events looked at together; a user with more is one block."""
VECTOR_BYTES_AT_ONCE = 32 << 20
"""Vectors checked and converted together."""


@dataclass(frozen=True)
class Events:
    """The events of some kept users, one after the other, each user's in time order."""

    user: Int[ndarray, " event"]
    """Renumbered from 0 among the kept."""
    item: Int[ndarray, " event"]
    """Places in `Raw.item_ids`."""
    behaviour: Int[ndarray, " event"]
    time: ndarray


@dataclass(frozen=True)
class Kept:
    """Who stays and where their events are; a source in order is neither sorted nor copied."""

    raw: Raw
    order: Int[ndarray, " raw_event"] | None
    """Places of all events by user, then time; None where the source is in that order."""
    numbers: Int[ndarray, " user"]
    """Raw user number of each kept user, ascending."""
    first: Int[ndarray, " user"]
    """Where each kept user's events begin in that order."""
    offsets: Int[ndarray, " user_plus_one"]
    """Where they begin among the kept events."""

    def blocks(self) -> Iterator[Events]:
        """The kept events in their final order, whole users, some million events at a time."""
        raw, users, begin = self.raw, len(self.numbers), 0
        while begin < users:
            limit = self.offsets[begin] + EVENTS_AT_ONCE
            end = max(begin + 1, int(np.searchsorted(self.offsets, limit, side="right")) - 1)
            count = np.diff(self.offsets[begin : end + 1])
            place = np.arange(self.offsets[begin], self.offsets[end])
            place += np.repeat(self.first[begin:end] - self.offsets[begin:end], count)
            if self.order is not None:
                place = self.order[place]
            yield Events(
                user=np.repeat(np.arange(begin, end), count),
                item=np.asarray(raw.item[place]),
                behaviour=np.asarray(raw.behaviour[place]),
                time=np.asarray(raw.timestamp[place]),
            )
            for array in (raw.item, raw.behaviour, raw.timestamp):
                release(array)
            begin = end


def kept_events(raw: Raw) -> Kept:
    """Users with at least 5 recorded events and a last favor with something before it, in order.

    The order is by user, then time; equal times keep their order in the file.

    Raises:
        InputError: nobody is left.
    """
    order = None if _in_order(raw) else np.lexsort((raw.timestamp, raw.user))
    numbers, first, count, last = _users(raw, order)
    kept = (count >= MIN_EVENTS) & (last > first)
    if not kept.any():
        raise InputError(
            f"no user of '{raw.source}' is left: of {len(numbers)} users, "
            f"{int((count >= MIN_EVENTS).sum())} have at least {MIN_EVENTS} clicks and favors and "
            f"{int((last > first).sum())} a last favor with an event before it; "
            "check which behaviours are read as click and favor"
        )
    offsets = np.concatenate([[0], np.cumsum(count[kept])]).astype(np.int64)
    return Kept(raw, order, numbers[kept], first[kept], offsets)


def _in_order(raw: Raw) -> bool:
    """Whether the events stand by user, then time."""
    for start in range(0, len(raw.user) - 1, EVENTS_AT_ONCE):
        part = slice(start, start + EVENTS_AT_ONCE + 1)  # the next block's first event, too
        user, time = np.asarray(raw.user[part]), np.asarray(raw.timestamp[part])
        later = (user[:-1] == user[1:]) & (time[:-1] <= time[1:])
        if not (later | (user[:-1] < user[1:])).all():
            return False
        release(raw.user)
        release(raw.timestamp)
    return True


def _users(
    raw: Raw, order: Int[ndarray, " raw_event"] | None
) -> tuple[ndarray, Int[ndarray, " user"], Int[ndarray, " user"], Int[ndarray, " user"]]:
    """Every user's number, first event, count of events and last favor (-1: none), ascending."""
    events = len(raw.user)
    numbers, first, favors = [], [], []
    before = None
    for start in range(0, events, EVENTS_AT_ONCE):
        part: Any = slice(start, start + EVENTS_AT_ONCE)
        part = part if order is None else order[part]
        user = np.asarray(raw.user[part])
        new = np.ones(len(user), dtype=bool)
        new[1:] = user[1:] != user[:-1]
        new[0] = user[0] != before
        before = user[-1]
        numbers.append(user[new])
        first.append(start + np.flatnonzero(new))
        favors.append(_last_of_runs(user, start, np.asarray(raw.behaviour[part]) == FAVOR))
        release(raw.user)
        release(raw.behaviour)
    if not events:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, empty, empty
    begin = np.concatenate(first)
    last = np.full(len(begin), -1)
    favor = np.concatenate(favors)
    # Ascending; a user whose events lie in two blocks has two entries, and the later one counts.
    np.maximum.at(last, np.searchsorted(begin, favor, side="right") - 1, favor)
    return np.concatenate(numbers), begin, np.diff(np.append(begin, events)), last


def _last_of_runs(
    user: ndarray, start: int, marked: Bool[ndarray, " event"]
) -> Int[ndarray, " user"]:
    """Place of the last marked event of each user that has one; places count from `start`."""
    place = np.flatnonzero(marked)
    owner = user[place]
    last = np.ones(len(place), dtype=bool)
    last[:-1] = owner[1:] != owner[:-1]
    return start + place[last]


def release(array: ndarray) -> None:
    """Hand the pages of a file that is mapped read-only back to the system, which can read them again."""
    file: Any = array.base
    if isinstance(array, np.memmap) and isinstance(file, mmap.mmap) and array.mode == "r":
        with suppress(AttributeError, OSError):  # not every system can
            file.madvise(mmap.MADV_DONTNEED)


@dataclass
class Written:
    """What the kept events say once they are written, their items numbered from 1."""

    items: Int[ndarray, " item"]
    """Places in `Raw.item_ids` of the items that stay, ascending."""
    touched: candidates.Touched
    favors: Int[ndarray, " user"]
    clicks: int
    items_touched: int


def _write_events(folder: Path, kept: Kept) -> Written:
    """event_item, event_behaviour and event_time, and what else one pass over the events tells."""
    raw, users = kept.raw, len(kept.numbers)
    used = np.zeros(len(raw.item_ids), dtype=bool)
    for block in kept.blocks():
        used[block.item] = True
    items = np.arange(len(used)) if raw.keep_items else np.flatnonzero(used)
    row_of = np.zeros(len(used), dtype=np.int64)
    row_of[items] = np.arange(1, len(items) + 1)
    favors = np.zeros(users, dtype=np.int64)
    clicks = 0
    sizes, touched = [np.zeros(1, dtype=np.int64)], []
    shape = (int(kept.offsets[-1]),)
    with (
        array_file(folder / "event_item.npy", np.dtype("<i4"), shape) as item_file,
        array_file(folder / "event_behaviour.npy", np.dtype("i1"), shape) as behaviour_file,
        array_file(folder / "event_time.npy", raw.timestamp.dtype, shape) as time_file,
    ):
        for block in kept.blocks():
            item = row_of[block.item]
            item_file(item)
            behaviour_file(block.behaviour)
            time_file(block.time)
            begin, end = int(block.user[0]), int(block.user[-1]) + 1
            user = block.user - begin
            favors[begin:end] = np.bincount(user[block.behaviour == FAVOR], minlength=end - begin)
            clicks += int((block.behaviour == CLICK).sum())
            part = candidates.touched_items(user, item, end - begin, len(items))
            sizes.append(np.diff(part.offsets))
            touched.append(part.items)
    return Written(
        items=items,
        touched=candidates.Touched(np.cumsum(np.concatenate(sizes)), np.concatenate(touched)),
        favors=favors,
        clicks=clicks,
        items_touched=int(used.sum()),
    )


@contextmanager
def array_file(
    path: Path, kind: np.dtype[Any], shape: tuple[int, ...]
) -> Iterator[Callable[[ndarray], None]]:
    """A .npy file of this type and shape, written part after part by what is handed out; made durable."""
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda part: part.astype(kind, copy=False).tofile(file)
        file.flush()
        os.fsync(file.fileno())


def prepare(raw: Raw, root: Path, name: str, *, replace: bool = True) -> dict[str, Any]:
    """Write a prepared set and give back its manifest.

    Events and vectors pass in blocks, so that memory-mapped ones need not fit into memory; what stays
    there is numbers of users and items, and each user's distinct items. Events that are not in order
    are sorted, which needs 8 bytes for each and as much again.

    Args:
        raw: The source, read.
        root: The data folder.
        name: What the set will be called.
        replace: An older set of this name gives way.

    Raises:
        InputError: nobody is left, too few negatives, bad vectors, or the folder cannot be written.
    """
    modes = {"image": raw.image, "text": raw.text}
    for mode, rows in modes.items():
        _check_vectors(mode, rows, len(raw.item_ids))
    kept = kept_events(raw)
    with whole_folder(root, name, replace=replace) as folder:
        written = _write_events(folder, kept)
        items, touched = len(written.items), written.touched
        test, val = (
            candidates.draw(raw.seed, kind, kept.numbers, touched, items)
            for kind in candidates.KINDS
        )
        arrays = {
            "offsets": kept.offsets,
            "user_number": kept.numbers.astype(np.int64),
            "touched_items": touched.items,
            "touched_offsets": touched.offsets,
            "negatives_test": test,
            "negatives_val": val,
        }
        fields = {key: _codes(values, written.items) for key, values in raw.fields.items()}
        for key, codes in fields.items():
            arrays[f"field_{key}"] = codes
        for key, array in arrays.items():
            write_array(folder / f"{key}.npy", array)
        vectors = {
            mode: _write_vectors(folder, mode, rows, written.items) for mode, rows in modes.items()
        }
        _write_names(folder, raw, kept.numbers, written.items)
        files = describe_files(folder)
        own = {key: entry["sha256"] for key, entry in files.items()
               if key.endswith(".npy") and not key.startswith("negatives")}  # fmt: skip
        manifest = {
            "format": FORMAT,
            "name": name,
            "source": raw.source,
            "demo": raw.demo,
            **_numbers(kept, written),
            "protocol": {
                "min_events": MIN_EVENTS,
                "filter": "a last favor with an event before it",
                "order": "time, ties in file order",
                "negatives": candidates.NEGATIVES,
            },
            "seed": raw.seed,
            "vectors": vectors,
            "fields": {key: int(codes.max()) for key, codes in fields.items()},
            **raw.facts,
            "files": files,
            "raw_files": dict(raw.files),
            "data_sha256": hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest(),
            "candidates_sha256": {"uniform": candidates.checksum(test, val)},
        }
        write_manifest(folder, manifest)
    return manifest


def _write_vectors(
    folder: Path,
    mode: str,
    vectors: Float[ndarray, "item width"] | None,
    kept: Int[ndarray, " kept_item"],
) -> dict[str, int]:
    """Write the kept items' vectors as float32 below a row of padding, and which of them are there.

    A set without vectors gets width 1 and none present. All-zero rows are missing. Never more than
    some rows in memory.

    Raises:
        InputError: a vector holds NaN or infinity.
    """
    width = 1 if vectors is None else vectors.shape[1]
    present = np.zeros(len(kept) + 1, dtype=bool)
    kind = np.dtype("<f4")
    at_once = max(1, VECTOR_BYTES_AT_ONCE // (width * kind.itemsize))
    with array_file(folder / f"{mode}.npy", kind, (len(kept) + 1, width)) as write:
        write(np.zeros(width))
        for start in range(0, len(kept), at_once):
            part = kept[start : start + at_once]
            rows = np.zeros((len(part), width), kind)
            if vectors is not None:
                with np.errstate(over="ignore"):
                    rows[:] = vectors[part]
                release(vectors)
            bad = ~np.isfinite(rows).all(axis=1)
            if bad.any():
                raise InputError(
                    f"{mode} vectors hold NaN or infinity in row {part[np.argmax(bad)]} (rows count "
                    "from 0); mark a missing vector by an all-zero row"
                )
            present[start + 1 : start + 1 + len(part)] = rows.any(axis=1)
            write(rows)
    write_array(folder / f"{mode}_present.npy", present)
    return {"width": width, "present": int(present.sum())}


def _check_vectors(mode: str, vectors: ndarray | None, items: int) -> None:
    """InputError unless there is one vector an item."""
    if vectors is not None and (vectors.ndim != 2 or len(vectors) != items):
        raise InputError(
            f"{mode} vectors have shape {list(vectors.shape)}, but there are {items} items; "
            "give one row an item, in the order of the items file"
        )


def _codes(values: Sequence[str], kept: Int[ndarray, " item"]) -> Int[ndarray, " item_row"]:
    """Codes of an id field, ascending by value from 1; 0 is padding or unknown (empty text)."""
    names = [values[place] for place in kept.tolist()]
    code = {"": 0}
    for name in sorted(set(names) - {""}):
        code[name] = len(code)
    return np.array([0, *(code[name] for name in names)], dtype=np.int32)


def _write_names(
    folder: Path, raw: Raw, numbers: Int[ndarray, " user"], kept: Int[ndarray, " item"]
) -> None:
    """users.parquet and items.parquet: what reports need and no method sees."""
    places = kept.tolist()

    def column(values: Sequence[str] | None) -> Any:
        chosen = [None] * len(kept) if values is None else [values[place] for place in places]
        return pa.array(chosen, type=pa.string())

    users = [raw.user_ids[number] for number in numbers.tolist()]
    pq.write_table(pa.table({"user": pa.array(users, pa.string())}), folder / "users.parquet")
    table = {
        "item": column(raw.item_ids),
        "title": column(raw.title),
        "picture": column(raw.picture),
        "category": column(raw.category),
    }
    pq.write_table(pa.table(table), folder / "items.parquet")


def _numbers(kept: Kept, written: Written) -> dict[str, Any]:
    """The manifest's counts, Table 1 row and shape."""
    raw, favors = kept.raw, written.favors
    users, items = len(kept.numbers), len(written.items)
    lengths = np.diff(kept.offsets)
    return {
        "table1": {
            "users": users,
            "items": items,
            "interactions": int(kept.offsets[-1]),
            "clicks_per_user": written.clicks / users,
            "favors_per_user": float(favors.sum()) / users,
        },
        "counts": {
            "users": users,
            "items": items,
            "items_touched": written.items_touched,
            "interactions": int(kept.offsets[-1]),
            "clicks": written.clicks,
            "favors": int(favors.sum()),
            "users_with_two_favors": int((favors >= 2).sum()),
            "raw_users": len(raw.user_ids),
            "raw_items": len(raw.item_ids),
            "raw_events": len(raw.item),
            "rows_ignored": dict(raw.ignored),
        },
        "shape": {
            "length_median": float(np.median(lengths)),
            "length_90": float(np.quantile(lengths, 0.9)),
            "length_max": int(lengths.max()),
            "share_length_at_most_10": float((lengths <= 10).mean()),
            "share_length_above_50": float((lengths > 50).mean()),
            "share_one_favor": float((favors == 1).mean()),
            "share_two_favors": float((favors == 2).mean()),
        },
    }
