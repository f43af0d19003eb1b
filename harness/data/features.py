"""A features folder: an image and a text vector an item, which pictures were living, and how it was made.

    items.parquet     item: raw ids as text, in the order of the rows below
    image.npy         float32 [item, image_width]; an all-zero row is missing
    text.npy          float32 [item, text_width]; the same. One of the two may be absent
    ledger.parquet    item, url, status, reason, tries, bytes: what became of every picture
    manifest.json     models, checksums, counts, settings, versions

Axes: item = the wanted items, image_width, text_width.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from harness.data.files import MANIFEST, describe_files, whole_folder, write_manifest
from harness.errors import InputError

FORMAT = 1
KIND = "features"
MODES = ("image", "text")
LIVING = frozenset({"ok", "ready"})
"""Statuses of an item whose picture was there (`ok`), or whose vector came ready-made (`ready`)."""
LEDGER_SCHEMA = pa.schema([
    ("item", pa.string()), ("url", pa.string()), ("status", pa.string()),
    ("reason", pa.string()), ("tries", pa.int32()), ("bytes", pa.int64()),
])  # fmt: skip
IN_MEMORY = 2**29
"""Bytes up to which chosen rows are gathered in memory; larger ones go to a temporary file."""
ROWS_AT_ONCE = 16384


@dataclass(frozen=True)
class Features:
    """Vectors in the order of the items that were asked for."""

    image: Float[ndarray, "item image_width"] | None
    """All-zero rows are missing; None when the folder has no image vectors."""
    text: Float[ndarray, "item text_width"] | None
    living: Bool[ndarray, " item"]
    """The item's picture was there. False for items that the folder does not know."""
    manifest: Mapping[str, Any]


def read_features(folder: Path, item_ids: Sequence[str]) -> Features:
    """A features folder, aligned to `item_ids`; items that it does not know get zero rows.

    Large results are memory-mapped: the file itself when the order is the same, else a temporary file
    that vanishes with the arrays.

    Raises:
        InputError: no features folder, a damaged one, or one that knows none of the items.
    """
    manifest = read_manifest(folder)
    known = pq.read_table(folder / "items.parquet", columns=["item"])["item"].to_pandas()
    place = pd.Index(known).get_indexer(pd.Index(item_ids)).astype(np.int64)
    if len(item_ids) and not (place >= 0).any():
        first = f"'{known.iloc[0]}'" if len(known) else "nothing"
        raise InputError(
            f"'{folder}' has features of none of the {len(item_ids)} items: they are called like "
            f"'{item_ids[0]}' here and like {first} there; make features of this source's items"
        )
    status = pq.read_table(folder / "ledger.parquet", columns=["status"])["status"].to_pandas()
    there = status.isin(LIVING).to_numpy()
    living = np.zeros(len(item_ids), dtype=bool)
    living[place >= 0] = there[place[place >= 0]]
    vectors = {mode: _aligned(folder / f"{mode}.npy", place) for mode in MODES}
    return Features(vectors["image"], vectors["text"], living, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a features folder whose files have the sizes that it names.

    Raises:
        InputError: it is not one, or a file is missing or cut.
    """
    path = folder / MANIFEST
    advice = "make it with `python -m harness.prepare features --items F --out DIR`"
    if not path.is_file():
        raise InputError(f"'{folder}' is no features folder (it has no {MANIFEST}); {advice}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise InputError(f"'{path}' is damaged ({error}); {advice}") from error
    if manifest.get("kind") != KIND or manifest.get("format") != FORMAT:
        raise InputError(f"'{folder}' holds no features of format {FORMAT}; {advice}")
    for name, entry in manifest["files"].items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else -1
        if found != entry["bytes"]:
            what = "is missing" if found < 0 else f"has {found} bytes, not {entry['bytes']}"
            raise InputError(
                f"'{folder / name}' {what}: the folder is damaged; copy or make it again"
            )
    return manifest


def _aligned(path: Path, place: Int[ndarray, " item"]) -> Float[ndarray, "item width"] | None:
    """Rows of a file at these places; None without the file."""
    if not path.is_file():
        return None
    return gather(np.load(path, mmap_mode="r", allow_pickle=False), place)


def gather(
    stored: Float[ndarray, "row width"], place: Int[ndarray, " item"]
) -> Float[ndarray, "item width"]:
    """Rows at these places, zeros for place -1; `stored` itself where that is the same.

    Large results lie in a temporary file that vanishes with the array.
    """
    if len(place) == len(stored) and (place == np.arange(len(stored))).all():
        return stored
    shape = (len(place), stored.shape[1])
    made: ndarray
    if shape[0] * shape[1] * 4 <= IN_MEMORY:
        made = np.zeros(shape, dtype=np.float32)
    else:
        with tempfile.TemporaryFile() as file:  # the map keeps it alive
            made = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
    for start in range(0, len(place), ROWS_AT_ONCE):
        part = place[start : start + ROWS_AT_ONCE]
        known = part >= 0
        made[start : start + len(part)][known] = stored[part[known]]
    return made


def write_features(
    folder: Path,
    item_ids: Sequence[str],
    vectors: Mapping[str, tuple[int, Callable[[], Iterable[ndarray]]]],
    ledger: Iterable[Mapping[str, Sequence[Any]]],
    manifest: Callable[[], Mapping[str, Any]],
) -> dict[str, Any]:
    """Write a features folder whole or not at all, an older one of the name giving way.

    Args:
        folder: Where.
        item_ids: Distinct raw ids.
        vectors: For image, text or both: the width, and blocks of float32 rows in the items' order.
        ledger: Blocks of the ledger's columns, in the items' order.
        manifest: What else the manifest says, asked last.

    Returns:
        The manifest.

    Raises:
        InputError: rows and items disagree, a vector holds NaN or infinity, or nothing can be written.
    """
    try:
        with whole_folder(folder.parent, folder.name, replace=True) as scratch:
            pq.write_table(
                pa.table({"item": pa.array(item_ids, pa.string())}), scratch / "items.parquet"
            )
            rows = 0
            with pq.ParquetWriter(scratch / "ledger.parquet", LEDGER_SCHEMA) as writer:
                for block in ledger:
                    table = pa.table(dict(block), schema=LEDGER_SCHEMA)
                    rows += len(table)
                    writer.write_table(table)
            _agree("ledger", rows, len(item_ids))
            present = {
                mode: {"width": width, "present": _write_rows(scratch / f"{mode}.npy", len(item_ids), width, blocks())}
                for mode, (width, blocks) in vectors.items()
            }  # fmt: skip
            said = dict(manifest())
            for mode, facts in present.items():
                said[mode] = {**said.get(mode, {}), **facts}
            whole = {"format": FORMAT, "kind": KIND, "items": len(item_ids), **said,
                     "files": describe_files(scratch)}  # fmt: skip
            write_manifest(scratch, whole)
    except InputError as error:
        if isinstance(error.__cause__, OSError):
            reason = error.__cause__.strerror or str(error.__cause__)
            raise InputError(f"cannot write '{folder}' ({reason}); choose another --out") from error
        raise
    return whole


def _agree(what: str, rows: int, items: int) -> None:
    if rows != items:
        raise InputError(f"the {what} has {rows} rows, but there are {items} items")


def _write_rows(path: Path, items: int, width: int, blocks: Iterable[ndarray]) -> int:
    """Write blocks of rows as one .npy file; how many are not all zero."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (items, width)}
    rows = present = 0
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            part = np.ascontiguousarray(block, dtype="<f4")
            bad = ~np.isfinite(part).all(axis=1)
            if bad.any():
                raise InputError(
                    f"{path.stem} vectors hold NaN or infinity in row {rows + int(np.argmax(bad))} "
                    "(rows count from 0); mark a missing vector by an all-zero row"
                )
            part.tofile(file)
            rows += len(part)
            present += int(part.any(axis=1).sum())
    _agree(f"{path.stem} part", rows, items)
    return present


def blocks_of(array: ndarray, rows: int = ROWS_AT_ONCE) -> Iterator[ndarray]:
    """An array a few rows at a time."""
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
