"""A block of raw text into columns: pyarrow's CSV parser, two blocks at a time on two cores.

pyarrow was chosen by measuring (benchmarks/raw_readers.py). The plan of each column is tried on the whole
block first; only a block that holds a value against the plan is read again as text, and its bad values
become nulls, which the caller counts. No value is guessed.

Axes: row = lines of the block with the right number of fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int
from numpy import ndarray
from pyarrow import csv

from harness.data.texts import Text
from harness.errors import InputError

MUCH = 1 << 22
"""Bytes of a text with a header that are looked at for its encoding."""
FIELDS = "wrong number of fields"
BLANK = "blank line"
"""Reasons in the ledger."""
MISSING = np.iinfo(np.int64).min
"""Stands for a value that could not be read."""


@dataclass(frozen=True)
class Layout:
    """How a text is laid out, read off its first line."""

    separator: bytes
    columns: tuple[str, ...]
    """In the order of the file."""
    header: bool = False
    quoted: bool = False
    """Fields may stand in double quotes."""
    encoding: str = "utf8"


def layout_of(
    text: Text,
    columns: Sequence[str],
    separators: Sequence[bytes] = (b"\x01", b"\t", b","),
    *,
    quoted_csv: bool = False,
    lines: int = 1,
) -> Layout:
    """Separator, header and encoding of a text.

    The separator is the first that gives the names of a header, or that cuts one of the first lines in as
    many fields as there are columns. A header may name the columns in another order and have more of them.
    Text with a header that is not UTF-8 is GB18030, which holds GBK.

    Args:
        text: The text.
        columns: Names in the order of a file without header.
        separators: Those that may be.
        quoted_csv: Fields of a comma-separated file with a header may stand in double quotes.
        lines: First lines looked at where there is no header: a first line that is too short then
            decides nothing.

    Raises:
        InputError: the first line has another number of fields, or a header lacks a column.
    """
    head = text.head()
    some = [line.rstrip(b"\r") for line in head.removeprefix(b"\xef\xbb\xbf").split(b"\n")[:lines]]
    for separator in separators:
        names = [_name(part) for part in some[0].split(separator)]
        if len(set(columns) & set(names)) >= min(2, len(columns)):
            missing = [name for name in columns if name not in names]
            if missing:
                raise InputError(
                    f"'{text.name}' has no column '{missing[0]}'; its header is {', '.join(names)}"
                )
            return Layout(separator, tuple(names), header=True,
                          quoted=quoted_csv and separator == b",", encoding=encoding_of(text.head(MUCH)))  # fmt: skip
    for separator in separators:
        if any(len(line.split(separator)) == len(columns) for line in some):
            return Layout(separator, tuple(columns))
    raise InputError(
        f"the first line of '{text.name}' has not the {len(columns)} fields {', '.join(columns)}: "
        f"{some[0][:80]!r}"
    )


def _name(part: bytes) -> str:
    return part.decode("latin-1").strip().strip('"').lower()


def encoding_of(head: bytes) -> str:
    """Name of the encoding: utf8, or gb18030 for bytes that are not; a cut character at the end is fine."""
    try:
        head.decode("utf8")
    except UnicodeDecodeError as error:
        return "utf8" if error.end >= len(head) and len(head) - error.start < 4 else "gb18030"
    return "utf8"


@dataclass
class Rows:
    """The columns of a block and what could not be read."""

    table: pa.Table
    lines: int
    """Lines of the block, its header not among them."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Lines by the reason for which they are not in the table."""
    replaced: int = 0
    """Characters that are not in the encoding and were replaced by U+FFFD."""

    def numbers(self, name: str, prefix: str = "") -> Int[ndarray, " row"]:
        """Whole numbers of a column, MISSING where there is none; each may follow the prefix.

        The number is what the digits say: "u0042" and "42" are the same.
        """
        return whole_numbers(self.table[name], prefix)

    def codes(self, name: str) -> tuple[Int[ndarray, " row"], list[str]]:
        """Places of a column's values in a list of its distinct values, in the order they come."""
        column = self.table[name].combine_chunks()
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        return column.indices.to_numpy(), [str(value) for value in column.dictionary.to_pylist()]

    def seconds(self, name: str) -> Int[ndarray, " row"]:
        """Seconds since 1970 of dates without zone, MISSING where there is none; see `seconds`."""
        return seconds(self.table[name])


def read_rows(
    block: bytes, layout: Layout, types: Mapping[str, Any], *, first: bool = False
) -> Rows:
    r"""The wanted columns of a block of whole lines.

    Lines with another number of fields than the layout are counted, never filled up. Only line ends end
    a line (not \x1c to \x1e, \x85), and without `layout.quoted` a quotation mark is a letter.

    Args:
        block: Whole lines.
        layout: How they are laid out.
        types: pyarrow type of each wanted column; a column that does not fit its type is text.
        first: The block begins the text: byte order mark and header are skipped.
    """
    block, replaced = _clean(block, layout.encoding)
    skip = int(first and layout.header)
    lines = block.count(b"\n") + (not block.endswith(b"\n")) - skip
    bad = 0

    def count(_: Any) -> str:
        nonlocal bad
        bad += 1
        return "skip"

    def parse(wanted: Mapping[str, Any]) -> pa.Table:
        nonlocal bad
        bad = 0
        return csv.read_csv(
            pa.BufferReader(block),
            read_options=csv.ReadOptions(
                column_names=list(layout.columns), skip_rows=skip, block_size=len(block) + 1,
                use_threads=False,
            ),
            parse_options=csv.ParseOptions(
                delimiter=layout.separator.decode(), quote_char='"' if layout.quoted else False,
                invalid_row_handler=count,
            ),
            convert_options=csv.ConvertOptions(
                include_columns=list(types), column_types=dict(wanted), check_utf8=False,
                strings_can_be_null=False, null_values=[],
            ),
        )  # fmt: skip

    if lines <= 0:
        table = pa.table({name: pa.array([], pa.string()) for name in types})
    else:
        try:
            table = parse(types)
        except pa.ArrowInvalid as error:
            if not str(error).startswith("In CSV column"):
                raise
            table = parse(dict.fromkeys(types, pa.string()))
    dropped = {FIELDS: bad, BLANK: max(0, lines) - len(table) - bad}
    return Rows(
        table, max(0, lines), {key: rows for key, rows in dropped.items() if rows}, replaced
    )


def _clean(block: bytes, encoding: str) -> tuple[bytes, int]:
    """The block as valid UTF-8 with line ends of one byte, and how many characters were replaced.

    A carriage return that ends no line is a blank: to the parser it would be a line end.
    """
    replaced = 0
    if not block.isascii():
        try:
            text = block.decode(encoding)
        except UnicodeDecodeError:
            text = block.decode(encoding, errors="replace")
            replaced = text.count("\ufffd")
            block = text.encode("utf8")
        else:
            block = block if encoding == "utf8" else text.encode("utf8")
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    return block, replaced


DATE = (
    r"^\s*(?P<year>\d{4})[-/](?P<month>\d{1,2})[-/](?P<day>\d{1,2})"
    r"(?:[ T](?P<hour>\d{1,2})(?::?(?P<minute>\d{2})(?::?(?P<second>\d{2}))?)?)?\s*$"
)
"""2014-05-03 08:15:59 and 2014/5/3 8:15; what is left out is zero."""


def whole_numbers(column: Any, prefix: str = "") -> Int[ndarray, " row"]:
    """Numbers from 0 on, MISSING for anything else; each may follow the prefix."""
    column = _one(column)
    if pa.types.is_integer(column.type):
        numbers = column.to_numpy(zero_copy_only=False).astype(np.int64)
        return np.where(numbers < 0, MISSING, numbers)
    if prefix:
        with_prefix = pc.starts_with(column, prefix)
        if pc.all(with_prefix).as_py():
            with suppress(pa.ArrowInvalid):
                rest = pc.utf8_slice_codeunits(column, len(prefix))
                numbers = rest.cast(pa.int64()).to_numpy(zero_copy_only=False)
                return np.where(numbers < 0, MISSING, numbers)
    digits = pc.extract_regex(column, rf"^\s*(?:{prefix})?(?P<digits>\d{{1,18}})\s*$")
    return _filled(pc.struct_field(digits, "digits"))


def seconds(column: Any) -> Int[ndarray, " row"]:
    """Seconds since 1970 of a clock without zone, from the first 19 characters; MISSING if none.

    Read are 2014-05-03 08:15:59 and 2014/5/3 8:15, and dates alone; a day that no calendar has is none.
    """
    column = _one(column)
    if pa.types.is_timestamp(column.type):
        return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))
    found = pc.extract_regex(pc.utf8_slice_codeunits(column, 0, 19), DATE)
    year, month, day = (_filled(pc.struct_field(found, name)) for name in ("year", "month", "day"))
    hour, minute, second = (
        _filled(pc.struct_field(found, name), 0) for name in ("hour", "minute", "second")
    )
    good = (year != MISSING) & (month >= 1) & (month <= 12) & (day >= 1)
    months = np.where(good, (year - 1970) * 12 + month - 1, 0)
    begin, end = (
        (months + more).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
        for more in (0, 1)
    )
    good &= (day <= end - begin) & (hour < 24) & (minute < 60) & (second < 60)
    time = (begin + day - 1) * 86_400 + hour * 3_600 + minute * 60 + second
    return np.where(good, time, MISSING)


def _one(column: Any) -> Any:
    """A column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _filled(texts: Any, instead: int = MISSING) -> Int[ndarray, " row"]:
    """Texts of digits as numbers; null and empty become `instead`."""
    none = pc.or_kleene(pc.is_null(texts), pc.equal(texts, ""))
    texts = pc.if_else(none, "0", texts)
    numbers = texts.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return np.where(none.to_numpy(zero_copy_only=False), instead, numbers)
