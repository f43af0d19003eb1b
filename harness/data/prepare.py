"""From a raw log to a prepared set: order, filter, renumber, draw candidates, write with checksums.

One format for every source, data/NAME/ (row 0 of everything about items is padding):
    event_item event_behaviour event_time offsets   the events, users ascending, in time order
    touched_items touched_offsets                   the distinct items each user ever touched
    negatives_test negatives_val                    99 item ids a user, reading P5 uniform
    image image_present text text_present           frozen vectors as float32, zero where missing
    field_NAME                                      an id field's codes; 0 is unknown
    users.parquet items.parquet                     raw ids; title, picture, category (reports)
    manifest.json                                   counts, Table 1 row, seeds, checksums

Axes: event, user, item, item_row = items + 1.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int
from numpy import ndarray

from harness.data import candidates
from harness.data.files import FORMAT, describe_files, whole_folder, write_array, write_manifest
from harness.data.raw import CLICK, FAVOR, Raw
from harness.errors import InputError

MIN_EVENTS = 5
"""Recorded events a user needs (protocol, Data)."""
ROWS_AT_ONCE = 65_536
"""Rows of vectors checked and converted at once."""


@dataclass(frozen=True)
class Events:
    """The kept events, sorted by user (renumbered from 0), then time; items still raw numbers."""

    user: Int[ndarray, " event"]
    item: Int[ndarray, " event"]
    behaviour: Int[ndarray, " event"]
    time: ndarray
    offsets: Int[ndarray, " user_plus_one"]
    numbers: Int[ndarray, " user"]
    """Raw user number of each kept user, ascending."""


def kept_events(raw: Raw) -> Events:
    """Users with at least 5 recorded events and a last favor with something before it, in order.

    The order is by user, then time; equal times keep their order in the file.

    Raises:
        InputError: nobody is left.
    """
    order = np.lexsort((raw.timestamp, raw.user))
    user, behaviour = raw.user[order], raw.behaviour[order]
    numbers, first, count = np.unique(user, return_index=True, return_counts=True)
    favors = np.nonzero(behaviour == FAVOR)[0]
    before_end = np.searchsorted(favors, first + count)
    has_favor = before_end > np.searchsorted(favors, first)
    last = np.full(len(numbers), -1)
    last[has_favor] = favors[before_end[has_favor] - 1]
    kept = (count >= MIN_EVENTS) & (last > first)
    if not kept.any():
        raise InputError(
            f"no user of '{raw.source}' is left: of {len(numbers)} users, "
            f"{int((count >= MIN_EVENTS).sum())} have at least {MIN_EVENTS} clicks and favors and "
            f"{int((last > first).sum())} a last favor with an event before it; "
            "check which behaviours are read as click and favor"
        )
    order = order[np.repeat(kept, count)]
    offsets = np.concatenate([[0], np.cumsum(count[kept])]).astype(np.int64)
    return Events(
        user=np.repeat(np.arange(int(kept.sum())), count[kept]),
        item=raw.item[order],
        behaviour=raw.behaviour[order],
        time=raw.timestamp[order],
        offsets=offsets,
        numbers=numbers[kept],
    )


def prepare(raw: Raw, root: Path, name: str, *, replace: bool = True) -> dict[str, Any]:
    """Write a prepared set and give back its manifest.

    Args:
        raw: The source, read.
        root: The data folder.
        name: What the set will be called.
        replace: An older set of this name gives way.

    Raises:
        InputError: nobody is left, too few negatives, bad vectors, or the folder cannot be written.
    """
    events = kept_events(raw)
    kept_items = np.arange(len(raw.item_ids))
    if not raw.keep_items:
        kept_items = np.unique(events.item)
    row_of = np.zeros(len(raw.item_ids), dtype=np.int64)
    row_of[kept_items] = np.arange(1, len(kept_items) + 1)
    item = row_of[events.item]
    users, items = len(events.numbers), len(kept_items)
    touched = candidates.touched_items(events.user, item, users, items)
    test, val = (
        candidates.draw(raw.seed, kind, events.numbers, touched, items) for kind in candidates.KINDS
    )
    modes = {"image": raw.image, "text": raw.text}
    for mode, rows in modes.items():
        _check_vectors(mode, rows, len(raw.item_ids))
    fields = {key: _codes(values, kept_items) for key, values in raw.fields.items()}
    with whole_folder(root, name, replace=replace) as folder:
        arrays = {
            "event_item": item.astype(np.int32),
            "event_behaviour": events.behaviour.astype(np.int8),
            "event_time": events.time,
            "offsets": events.offsets,
            "user_number": events.numbers.astype(np.int64),
            "touched_items": touched.items,
            "touched_offsets": touched.offsets,
            "negatives_test": test,
            "negatives_val": val,
        }
        for key, codes in fields.items():
            arrays[f"field_{key}"] = codes
        for key, array in arrays.items():
            write_array(folder / f"{key}.npy", array)
        vectors = {
            mode: _write_vectors(folder, mode, rows, kept_items) for mode, rows in modes.items()
        }
        _write_names(folder, raw, events, kept_items)
        files = describe_files(folder)
        own = {key: entry["sha256"] for key, entry in files.items()
               if key.endswith(".npy") and not key.startswith("negatives")}  # fmt: skip
        manifest = {
            "format": FORMAT,
            "name": name,
            "source": raw.source,
            "demo": raw.demo,
            **_numbers(raw, events, item, items, touched),
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
    kept: Int[ndarray, " item"],
) -> dict[str, int]:
    """Write the kept items' vectors as float32 below a row of padding, and which of them are there.

    A set without vectors gets width 1 and none present. All-zero rows are missing. Never more than
    some rows in memory.

    Raises:
        InputError: a vector holds NaN or infinity.
    """
    width = 1 if vectors is None else vectors.shape[1]
    present = np.zeros(len(kept) + 1, dtype=bool)
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(kept) + 1, width)}
    with (folder / f"{mode}.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        np.zeros(width, "<f4").tofile(file)
        for start in range(0, len(kept), ROWS_AT_ONCE):
            part = kept[start : start + ROWS_AT_ONCE]
            rows = np.zeros((len(part), width), "<f4")
            if vectors is not None:
                with np.errstate(over="ignore"):
                    rows[:] = vectors[part]
            bad = ~np.isfinite(rows).all(axis=1)
            if bad.any():
                raise InputError(
                    f"{mode} vectors hold NaN or infinity in row {part[np.argmax(bad)]} (rows count "
                    "from 0); mark a missing vector by an all-zero row"
                )
            present[start + 1 : start + 1 + len(part)] = rows.any(axis=1)
            rows.tofile(file)
        file.flush()
        os.fsync(file.fileno())
    write_array(folder / f"{mode}_present.npy", present)
    return {"width": width, "present": int(present.sum())}


def _check_vectors(mode: str, vectors: ndarray | None, items: int) -> None:
    """InputError unless there is one vector an item."""
    if vectors is not None and (vectors.ndim != 2 or len(vectors) != items):
        raise InputError(
            f"{mode} vectors have shape {list(vectors.shape)}, but there are {items} items; "
            "give one row an item, in the order of the items file"
        )


def _codes(values: list[str], kept: Int[ndarray, " item"]) -> Int[ndarray, " item_row"]:
    """Codes of an id field, ascending by value from 1; 0 is padding or unknown (empty text)."""
    names = np.asarray(values, dtype=str)[kept]
    distinct, code = np.unique(names, return_inverse=True)
    code = code + (0 if len(distinct) and distinct[0] == "" else 1)
    return np.concatenate([[0], code]).astype(np.int32)


def _write_names(folder: Path, raw: Raw, events: Events, kept: Int[ndarray, " item"]) -> None:
    """users.parquet and items.parquet: what reports need and no method sees."""

    def column(values: list[str] | None) -> Any:
        chosen = [None] * len(kept) if values is None else [values[place] for place in kept]
        return pa.array(chosen, type=pa.string())

    users = [raw.user_ids[number] for number in events.numbers]
    pq.write_table(pa.table({"user": pa.array(users, pa.string())}), folder / "users.parquet")
    table = {
        "item": column(raw.item_ids),
        "title": column(raw.title),
        "picture": column(raw.picture),
        "category": column(raw.category),
    }
    pq.write_table(pa.table(table), folder / "items.parquet")


def _numbers(
    raw: Raw,
    events: Events,
    item: Int[ndarray, " event"],
    items: int,
    touched: candidates.Touched,
) -> dict[str, Any]:
    """The manifest's counts, Table 1 row and shape."""
    users = len(events.numbers)
    lengths = np.diff(events.offsets)
    favors = np.bincount(events.user, weights=events.behaviour == FAVOR, minlength=users)
    clicks = int((events.behaviour == CLICK).sum())
    return {
        "table1": {
            "users": users,
            "items": items,
            "interactions": len(item),
            "clicks_per_user": clicks / users,
            "favors_per_user": float(favors.sum()) / users,
        },
        "counts": {
            "users": users,
            "items": items,
            "items_touched": len(np.unique(touched.items)),
            "interactions": len(item),
            "clicks": clicks,
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
