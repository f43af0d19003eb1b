"""What features are made of: items from a table or a prepared set, and vectors that are ready-made."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy import ndarray

from harness.data.extraction import Items, plain_url
from harness.data.features import gather
from harness.data.table import (
    first_line,
    ids,
    listed_once,
    optional_text,
    read_frame,
    read_vectors,
    require_columns,
)
from harness.errors import InputError


def read_input(options: argparse.Namespace) -> tuple[Items, dict[str, ndarray]]:
    """The items, and ready-made vectors in their order.

    Raises:
        InputError: a file cannot be read, or names nothing that another one has.
    """
    rows = _ids(options.ids) if options.ids is not None else None
    items = read_items(options, rows)
    ready: dict[str, Any] = {}
    for mode in ("image", "text"):
        path: Path | None = getattr(options, mode)
        if path is None:
            continue
        vectors = read_vectors(path, len(rows if rows is not None else items.ids))
        if rows is not None:
            place = pd.Index(rows).get_indexer(pd.Index(items.ids)).astype(np.int64)
            if len(place) and not (place >= 0).any():
                raise InputError(
                    f"none of the {len(items.ids)} items (the first is '{items.ids[0]}') is in "
                    f"{options.ids.name} (its first is '{rows[0]}')"
                )
            vectors = gather(vectors, place)
        ready[mode] = vectors
    return items, ready


def _ids(path: Path) -> list[str]:
    """A text file of ids, one a line, each once."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read '{path}': {getattr(error, 'strerror', None) or error}"
        ) from error
    found = [line.strip() for line in lines]
    while found and not found[-1]:
        found.pop()
    if "" in found:
        raise InputError(
            f"line {found.index('') + 1} of {path.name} is empty; it takes one id a line"
        )
    if not found:
        raise InputError(f"{path.name} has no ids; it takes one a line")
    if len(set(found)) < len(found):
        twice = Counter(found).most_common(1)[0][0]
        raise InputError(f"{path.name} lists '{twice}' twice")
    return found


def read_items(options: argparse.Namespace, rows: list[str] | None) -> Items:
    """Ids, titles and addresses, in the order of their file.

    Args:
        options: The command line.
        rows: Ids of ready-made vectors, which are the items when there is no other list.

    Raises:
        InputError: the file cannot be read, lacks a column that was named, or lists an item twice.
    """
    if options.items is None and options.data is None:
        assert rows is not None
        return Items(rows, [""] * len(rows), [""] * len(rows))
    if options.data is not None:
        path = options.data_dir / options.data / "items.parquet"
        if not path.is_file():
            raise InputError(
                f"no prepared set '{options.data}' in '{options.data_dir}'; "
                "make it first with `python -m harness.prepare`, or name a table with --items F"
            )
        names = {"item": "item", "title": "title", "picture": "picture"}
    else:
        path = options.items
        names = {role: getattr(options, f"{role}_column") for role in ("item", "title", "picture")}
    frame = _columns(path, tuple(names.values()))
    needed = {"item": names["item"]}
    needed |= {role: name for role, name in names.items() if name != role}
    require_columns(frame, path, needed)
    if not len(frame):
        raise InputError(f"{path.name} has no rows")
    item_ids = listed_once(ids(frame[names["item"]], path), path)
    empty = [""] * len(item_ids)
    titles = optional_text(frame, names["title"]) or empty
    addresses = optional_text(frame, names["picture"]) or empty
    return Items(item_ids, titles, [plain_url(text) for text in addresses])


def _columns(path: Path, names: tuple[str, ...]) -> Any:
    """These columns of a table, those that it has; of parquet no others are read."""
    if path.suffix.lower() not in (".parquet", ".pq") or not path.is_file():
        return read_frame(path, texts=names)
    try:
        there = pq.read_schema(path).names
        chosen = [name for name in names if name in there]
        return pq.read_table(path, columns=chosen or None).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read '{path}': {first_line(error)}") from error
