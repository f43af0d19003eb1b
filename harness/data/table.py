"""Anyone's own data: a parquet or csv file of interactions, if wanted with items and their vectors.

Axes: event = rows of the interactions, item = rows of the items file.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy import ndarray

from harness.data.files import NAME
from harness.data.raw import CLICK, FAVOR, Raw, sha256_file
from harness.errors import InputError

EXACT = 2.0**53
"""From here on different whole numbers read the same as floating-point numbers."""
LONGEST = 2**63 - 1
"""The largest time that is stored as a whole number; larger ones stay floating-point."""
SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


@dataclass(frozen=True)
class TableOptions:
    """How to read a table: which values of the behaviour column mean what, and which columns are what."""

    click: Sequence[str] = ("click",)
    """Behaviours read as a click."""
    favor: Sequence[str] = ("favor",)
    """Behaviours read as a favor."""
    ignore: Sequence[str] = ()
    """Behaviours left out, and counted in the manifest; any other is an error."""
    user: str = "user"
    item: str = "item"
    behavior: str = "behavior"
    timestamp: str = "timestamp"
    title: str = "title"
    picture: str = "picture"
    category: str = "category"
    """Columns; title, picture and category belong to the items file and may be missing."""
    fields: Sequence[str] = field(default=())
    """Columns of the items file that methods read as id fields."""


def read_table(
    interactions: Path,
    items: Path | None = None,
    image: Path | None = None,
    text: Path | None = None,
    options: TableOptions | None = None,
) -> Raw:
    """A log of one row an interaction, in file order.

    Args:
        interactions: parquet, csv or tsv with user, item, behavior, timestamp (a number, or a date
            that ISO 8601 allows).
        items: One row an item, in the order of the vectors; without it the items are those in the log.
        image: .npy [items, width]; all-zero rows are missing. Needs `items`.
        text: The same for text.
        options: Names of columns and behaviours.

    Raises:
        InputError: a file cannot be read, a column is missing, a value cannot be understood.
    """
    options = options or TableOptions()
    wanted = {name: getattr(options, name) for name in ("user", "item", "behavior", "timestamp")}
    require_one_meaning(options)
    frame = read_frame(interactions, texts=(options.user, options.item, options.behavior))
    require_columns(frame, interactions, wanted)
    behaviour, ignored = behaviours(frame[options.behavior], interactions, options)
    frame = frame[behaviour > 0]
    user, user_ids = numbered(ids(frame[options.user], interactions))
    timestamp = timestamps(frame[options.timestamp], frame[options.user], interactions)
    files = {interactions.name: sha256_file(interactions)}
    known: dict[str, Any] = {}
    if items is None:
        if image or text:
            raise InputError(
                "vectors need --items F, the file that says which item each row belongs to"
            )
        if options.fields:
            raise InputError(
                f"--fields {','.join(options.fields)} needs --items F, the file with these columns"
            )
        item, item_ids = numbered(ids(frame[options.item], interactions))
    else:
        known, item_ids = _read_items(items, options)
        files[items.name] = sha256_file(items)
        item = _places(ids(frame[options.item], interactions), item_ids, interactions, items)
    for mode, path in (("image", image), ("text", text)):
        if path is not None:
            known[mode] = read_vectors(path, len(item_ids))
            files[path.name] = sha256_file(path)
    return Raw(
        source="table",
        user=user,
        item=item,
        behaviour=behaviour[behaviour > 0],
        timestamp=timestamp,
        user_ids=user_ids,
        item_ids=item_ids,
        keep_items=items is not None,
        ignored=ignored,
        files=files,
        **known,
    )


def _read_items(path: Path, options: TableOptions) -> tuple[dict[str, Any], list[str]]:
    """What the items file says beside the vectors, and the raw ids in its order."""
    frame = read_frame(path, texts=(options.item,))
    require_columns(frame, path, {"item": options.item})
    item_ids = listed_once(ids(frame[options.item], path), path)
    for name in options.fields:
        require_columns(frame, path, {"fields": name})
        if not NAME.fullmatch(name):
            raise InputError(
                f"column '{name}' of {path.name} cannot name an id field; rename it with letters, "
                "digits, '_', '-' and '.'"
            )
    return {
        "title": optional_text(frame, options.title),
        "picture": optional_text(frame, options.picture),
        "category": optional_text(frame, options.category),
        "fields": {name: optional_text(frame, name) for name in options.fields},
    }, item_ids


def _places(
    raw_ids: ndarray, item_ids: list[str], log: Path, items: Path
) -> Int[ndarray, " event"]:
    """Where each event's item stands in the items file."""
    place = pd.Index(item_ids).get_indexer(pd.Index(raw_ids))
    if (place < 0).any():
        stranger = np.argmax(place < 0)
        first = f" (its first is '{item_ids[0]}')" if item_ids else ""
        raise InputError(
            f"{log.name} names item '{raw_ids[stranger]}', which {items.name}{first} does not list "
            f"({(place < 0).sum()} such rows); add it there, or leave --items out"
        )
    return place.astype(np.int64)


def read_frame(path: Path, texts: Sequence[str] = (), separator: str | None = None) -> pd.DataFrame:
    """A table as pandas reads it; the columns named in `texts` as text in csv files.

    Raises:
        InputError: the file is missing, of another kind, or damaged.
    """
    separator = separator or SEPARATORS.get(path.suffix.lower())
    if separator is None and path.suffix.lower() not in (".parquet", ".pq"):
        raise InputError(
            f"'{path}' is neither parquet nor csv (by its ending .parquet, .csv, .tsv)"
        )
    if path.is_dir():
        raise InputError(f"'{path}' is a folder; name a file in it")
    try:
        if separator is None:
            return pd.read_parquet(path)
        return pd.read_csv(
            path, sep=separator, dtype=dict.fromkeys(texts, "object"), keep_default_na=False,
            na_values=[""], encoding="utf-8-sig", low_memory=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise InputError(f"no file '{path}'") from None
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"cannot read '{path}': {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


def require_columns(
    frame: pd.DataFrame, path: Path, wanted: dict[str, str], *, options: bool = True
) -> None:
    """InputError unless the columns are there; the nearest one is named.

    Args:
        frame: The table.
        path: Its file.
        wanted: Column name by the part of the option that sets it (`--user-column`).
        options: There are such options for this source.
    """
    names = [str(name) for name in frame.columns]
    free = [name for name in names if name not in wanted.values()]
    for role, column in wanted.items():
        if column not in names:
            near = difflib.get_close_matches(column.lower(), [n.lower() for n in free], 1, 0.4)
            found = next((name for name in free if near and name.lower() == near[0]), None)
            hint = f"; nearest is '{found}'" if found else ""
            option = "--fields" if role == "fields" else f"--{role}-column"
            use = f" (use it with {option} {found or 'NAME'})" if options else ""
            raise InputError(
                f"{path.name} has no column '{column}'{hint}{use}. Its columns: {', '.join(names)}"
            )


def ids(column: pd.Series, path: Path) -> ndarray:
    """A column of ids as text; whole numbers without a decimal point.

    Raises:
        InputError: an id is missing, or a floating-point number of so many digits that other ids
            may read the same; its row is named (rows count from 1).
    """
    missing = column.isna().to_numpy()
    if missing.any():
        row = column.index[int(np.argmax(missing))] + 1
        raise InputError(f"{path.name} has no {column.name} in row {row}; leave such rows out")
    if column.dtype.kind == "f" and (column % 1 == 0).all():
        blurred = (column.abs() >= EXACT).to_numpy()
        if blurred.any():
            first = int(np.argmax(blurred))
            raise InputError(
                f"{path.name}: {column.name} {column.iloc[first]} in row {column.index[first] + 1} is "
                "a floating-point number that has lost digits; store ids as text or whole numbers"
            )
        column = column.astype(np.int64)
    return column.astype(str).to_numpy(dtype=object)


def listed_once(item_ids: ndarray, path: Path) -> list[str]:
    """The ids of an items file. Raises InputError when one is there twice."""
    twice = pd.Series(item_ids).duplicated().to_numpy()
    if twice.any():
        raise InputError(f"{path.name} lists item '{item_ids[int(np.argmax(twice))]}' twice")
    return list(item_ids.tolist())


def numbered(ids: ndarray) -> tuple[Int[ndarray, " event"], list[str]]:
    """Numbers for ids, ascending: by value when all are whole numbers, else by code point.

    Returns the number of each entry and the distinct ids in the order of their numbers.
    """
    codes, distinct = pd.factorize(ids)
    names = np.asarray(distinct).astype(str)
    keys: ndarray = names
    try:
        values = names.astype(np.int64)
        if (values.astype(str) == names).all():
            keys = values
    except (ValueError, OverflowError):
        pass
    order = np.argsort(keys, kind="stable")
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order))
    return number[codes], names[order].tolist()


def optional_text(frame: pd.DataFrame, column: str) -> list[str] | None:
    """A column as text, empty where nothing is known; None when there is no such column."""
    if column not in frame.columns:
        return None
    values = frame[column]
    if values.dtype.kind == "f" and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")
    return values.astype("object").where(values.notna(), "").astype(str).tolist()


def timestamps(
    column: pd.Series, user: pd.Series, path: Path
) -> Int[ndarray, " event"] | Float[ndarray, " event"]:
    """Times as numbers: as they are, or seconds since 1970 for dates. Whole ones as integers.

    Raises:
        InputError: a time is NaN, infinite or not a time; its user and row are named.
    """

    def seconds(dates: pd.Series) -> ndarray:
        whole = dates if dates.dt.tz is None else dates.dt.tz_convert(None)
        since: ndarray = (whole - pd.Timestamp(0)).dt.total_seconds().to_numpy(dtype=np.float64)
        return since

    if column.dtype.kind == "M" or isinstance(column.dtype, pd.DatetimeTZDtype):
        values = seconds(column)
    elif column.dtype.kind in "iu" and column.notna().all() and (column <= LONGEST).all():
        return column.to_numpy().astype(np.int64)
    else:
        numbers = pd.to_numeric(column, errors="coerce")
        values = numbers.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
        texts = np.isnan(values) & column.notna().to_numpy()
        if texts.any():
            dates = pd.to_datetime(column[texts], errors="coerce", format="ISO8601", utc=True)
            values[texts] = seconds(dates)
    bad = ~np.isfinite(values)
    if bad.any():
        first = int(np.argmax(bad))
        value = column.iloc[first]
        shown = "missing" if pd.isna(value) else f"'{value}'"
        raise InputError(
            f"{path.name}: the timestamp of user '{user.iloc[first]}' in row {column.index[first] + 1} "
            f"is {shown} ({int(bad.sum())} such rows); give a number or a date like 2016-03-14T08:15:59"
        )
    whole = (values % 1 == 0).all() and (np.abs(values) < LONGEST).all()
    return values.astype(np.int64) if whole else values


def behaviours(
    column: pd.Series, path: Path, options: TableOptions
) -> tuple[Int[ndarray, " event"], dict[str, int]]:
    """Behaviour codes, 0 for what is left out, and how many rows of each kind that is.

    Raises:
        InputError: a behaviour is missing, or neither named as click or favor nor left out.
    """
    codes = dict.fromkeys(options.ignore, 0)
    codes |= dict.fromkeys(options.click, CLICK) | dict.fromkeys(options.favor, FAVOR)
    number, distinct = pd.factorize(column.astype("object").where(column.notna(), ""))
    names = [str(name).strip() for name in distinct]
    for place, name in enumerate(names):
        if name not in codes:
            row = int(np.argmax(number == place)) + 1
            if not name:
                raise InputError(
                    f"{path.name} has no {column.name} in row {row}; leave such rows out"
                )
            near = difflib.get_close_matches(name.lower(), list(codes), 1, 0.5)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise InputError(
                f"{path.name}: behavior '{name}' in row {row} is not known{hint} "
                f"Click is {', '.join(options.click)}; favor is {', '.join(options.favor)}. "
                f"Add it with --click {name} or --favor {name}, or leave it out with --ignore {name}"
            )
    code = np.array([codes[name] for name in names], dtype=np.int64)
    rows = np.bincount(number, minlength=len(names))
    ignored = {name: int(rows[place]) for place, name in enumerate(names) if code[place] == 0}
    return code[number] if len(code) else np.zeros(0, dtype=np.int64), ignored


def require_one_meaning(options: TableOptions) -> None:
    """InputError for a behaviour or a column that is given two meanings."""
    kinds = {"click": options.click, "favor": options.favor, "ignore": options.ignore}
    meaning: dict[str, str] = {}
    for kind, names in kinds.items():
        for name in names:
            if meaning.setdefault(name, kind) != kind:
                raise InputError(
                    f"behavior '{name}' is named as {meaning[name]} and as {kind}; name it once"
                )
    roles: dict[str, str] = {}
    for role in ("user", "item", "behavior", "timestamp"):
        column = getattr(options, role)
        if column in roles:
            raise InputError(
                f"column '{column}' is named as {roles[column]} and as {role}; give each its own "
                f"(--{roles[column]}-column, --{role}-column)"
            )
        roles[column] = role


def read_vectors(path: Path, items: int) -> Float[ndarray, "item width"]:
    """A .npy file of one row an item, memory-mapped.

    Raises:
        InputError: the file cannot be read, or has another shape.
    """
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"no file '{path}'") from None
    except (OSError, ValueError, EOFError) as error:
        why = "it is no .npy file" if "pickled" in str(error) else first_line(error)
        raise InputError(f"cannot read '{path}': {why}") from error
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise InputError(f"'{path}' does not hold a table of floating-point numbers, a row an item")
    if vectors.shape[1] == 0:
        raise InputError(f"the vectors of '{path}' have no numbers: its shape is {vectors.shape}")
    if len(vectors) != items:
        raise InputError(
            f"{path.name} has {len(vectors)} rows, but there are {items} items; "
            "give one row an item, in the order of the items file"
        )
    return vectors
