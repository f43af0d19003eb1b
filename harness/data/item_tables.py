"""Tables of items in .csv files whose quoted fields may hold commas and line ends (captions).

Such a file cannot be cut at line ends, so Python's csv reader goes through it once, in bounded memory.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from numpy import ndarray

from harness.data.features import read_features
from harness.data.labels import Column
from harness.data.texts import Reading, Text
from harness.errors import InputError

LONGEST_FIELD = 1 << 20
"""Characters of a field above which a quotation mark was not closed."""
RECORDS_AT_ONCE = 1 << 15
UNKNOWN = frozenset({"", "UNKNOWN", "NULL", "NAN", "-124", "-124.0"})
"""What stands for no value in the releases of Kuaishou (upper case)."""


class _Stream(io.RawIOBase):
    """A text being read, as a raw stream for Python's own readers."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self.reading.up_to(len(buffer))
        buffer[: len(part)] = part
        return len(part)


def vectors_of(folder: Path | None, items: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Vectors of a features folder for a source without pictures of its own, and what made them.

    All items stay, also those without a picture: there are none to be dead.

    Args:
        folder: The folder (`python -m harness.prepare features`), or None.
        items: Raw ids of the source's items.

    Raises:
        InputError: it is no features folder, or knows none of the items.
    """
    if folder is None:
        return {}, {}
    found = read_features(folder, items)
    vectors = {
        name: rows
        for name, rows in (("image", found.image), ("text", found.text))
        if rows is not None
    }
    return vectors, {"features": {"folder": folder.name, "made_by": dict(found.manifest)}}


@contextmanager
def csv_records(
    text: Text, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[Iterator[list[str]]]:
    """The records of a comma-separated text with a header, each cut down to the named columns.

    A record with fewer fields has empty ones at its end; those of an optional column that the header
    lacks are empty.

    Raises:
        InputError: a column is missing, or the text cannot be read.
    """
    csv.field_size_limit(LONGEST_FIELD)
    with text.open() as reading:
        stream = io.TextIOWrapper(
            io.BufferedReader(_Stream(reading), 1 << 20), "utf-8-sig", errors="replace", newline=""
        )
        records = csv.reader(stream)
        header = [name.strip().lower() for name in next(records, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            raise InputError(
                f"'{text.name}' has no column '{missing[0]}'; its header is {', '.join(header)}"
            )
        wanted = [*columns, *optional]
        places = [header.index(name) if name in header else -1 for name in wanted]

        def cut() -> Iterator[list[str]]:
            try:
                for record in records:
                    yield [record[at] if 0 <= at < len(record) else "" for at in places]
            except csv.Error as error:
                raise InputError(
                    f"'{text.name}' cannot be read as .csv near its record {records.line_num}: {error}"
                ) from error

        yield cut()


def columns_of_items(
    text: Text,
    item: str,
    columns: Sequence[str],
    numbers: Int[ndarray, " item"],
    path: Path,
    optional: Sequence[str] = (),
) -> tuple[dict[str, Column], dict[str, int]]:
    """Columns of a table of items, an entry for each of these items; empty where nothing is known.

    Of an item that is listed twice the first record counts. A record whose item is no number (the rest
    of a caption with a line end outside quotation marks) is counted and left out.

    Args:
        text: The table.
        item: The column of item numbers.
        columns: Those wanted.
        numbers: Raw numbers of the items, ascending.
        path: File for the texts, which is mapped and must stay as long as the columns.
        optional: Further columns, which the table need not have.

    Raises:
        InputError: a column is missing, or the text cannot be read.
    """
    names = [*columns, *optional]
    schema = pa.schema([(name, pa.string()) for name in names])
    order = np.full(len(numbers), -1, dtype=np.int64)
    counts = {"records": 0, "of the items": 0, "listed twice": 0, "without an item number": 0}
    kept = 0
    with (
        csv_records(text, [item, *columns], optional) as records,
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        while batch := list(islice(records, RECORDS_AT_ONCE)):
            number = np.array([item_number(record[0]) for record in batch], dtype=np.int64)
            place = np.minimum(np.searchsorted(numbers, number), len(numbers) - 1)
            counts["records"] += len(batch)
            counts["without an item number"] += int((number < 0).sum())
            taken = []
            for line in np.nonzero(numbers[place] == number)[0].tolist():
                if order[place[line]] >= 0:
                    counts["listed twice"] += 1
                    continue
                order[place[line]] = kept
                kept += 1
                taken.append([known(value) for value in batch[line][1:]])
            parts = [pa.array(values, pa.string()) for values in zip(*taken, strict=True)]
            if parts:
                writer.write_batch(pa.record_batch(parts, schema=schema))
    counts["of the items"] = kept
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return {name: Column(table[name], order) for name in names}, counts


def item_number(text: str) -> int:
    """12 of "12" and "12.0"; -1 for anything else."""
    digits = text.strip().removesuffix(".0")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else -1


def known(value: str) -> str:
    """A text on one line; empty where a release says that it knows none."""
    clean = " ".join(value.split())
    return "" if clean.upper() in UNKNOWN else clean
