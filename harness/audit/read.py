"""Tables from files: YAML, JSON, CSV, Markdown and LaTeX, told apart by the file's name.

Numbers stay strings until they are decimals, so that no printed digit is lost.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.audit import cells, latex
from harness.audit.bounds import Row, Sizes
from harness.audit.grid import (
    DATASET_WORDS,
    GROUP_WORDS,
    METHOD_WORDS,
    METRIC_WORDS,
    VALUE_WORDS,
    Grid,
    RawRow,
    Scale,
    Table,
    read_grid,
    table,
)
from harness.audit.published import from_content, load_yaml
from harness.errors import InputError, unknown

FORMATS = {
    "yaml": (".yaml", ".yml"),
    "json": (".json",),
    "csv": (".csv", ".tsv", ".tab"),
    "markdown": (".md", ".markdown"),
    "latex": (".tex", ".latex", ".ltx"),
}
"""Formats and the file names that tell them."""


@dataclass(frozen=True)
class Document:
    """Everything in a file that can be judged."""

    source: str
    tables: tuple[Table, ...]
    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    """Rows of a table of data sets (only files of published.yaml's shape have them)."""


def read(path: Path, kind: str | None = None, scale: Scale = Scale.auto) -> Document:
    """The tables of a file.

    Args:
        path: the file.
        kind: one of FORMATS; None: by the file's name.
        scale: how numbers are printed.

    Raises:
        InputError: no such file, an unknown format, a malformed file, or no HR@K or NDCG@K in it.
    """
    path = Path(path)
    if not path.is_file():
        raise _no_file(path)
    if kind is None:
        kind = next((name for name, ends in FORMATS.items() if path.suffix.lower() in ends), None)
        if kind is None:
            known = ", ".join(end for ends in FORMATS.values() for end in ends)
            raise InputError(
                f"'{path}': no table format is known by '{path.suffix or path.name}'; "
                f"rename it to one of {known}, or say --format {'|'.join(FORMATS)}"
            )
    elif kind not in FORMATS:
        raise unknown("table format", kind, FORMATS)
    document = READERS[kind](path, scale)
    if not any(found.rows for found in document.tables) and not document.sizes:
        raise InputError(
            f"'{path}': no column or key like HR@10, Recall@20 or NDCG@10 with numbers was found "
            f"(read as {kind}); --format reads it as another of {', '.join(FORMATS)}"
        )
    kept = tuple(found for found in document.tables if found.rows)
    return Document(document.source, kept, document.sizes)


def _no_file(path: Path) -> InputError:
    """The error for a path that is no file, with the nearest file beside it."""
    step = "give a .yaml, .json, .csv, .md or .tex file, or nothing for the paper's own numbers"
    if path.is_dir():
        return InputError(f"'{path}' is a folder; {step}")
    beside = [p.name for p in path.parent.glob("*") if p.is_file()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.5)
    hint = f"; did you mean '{path.parent / near[0]}'?" if near else ";"
    return InputError(f"no table '{path}'{hint} {step}")


def _text(path: Path) -> str:
    """A file's text: UTF-8, else Latin-1."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from error
    if b"\0" in content[:4096]:
        raise InputError(f"'{path}' is not a text file; export the table as csv")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _grids(
    path: Path, grids: Sequence[tuple[str, Grid]], scale: Scale, *, decimal_comma: bool = False
) -> Document:
    """A document of grids; unnamed ones are numbered."""
    found: list[Table] = []
    for index, (name, grid) in enumerate(grids, start=1):
        rows, notes = read_grid(grid, decimal_comma=decimal_comma)
        usual = f"table {index}" if len(grids) > 1 else path.name
        found.append(table(name.rstrip(" .:;") or usual, rows, notes, scale))
    return Document(str(path), tuple(found))


# --- CSV -------------------------------------------------------------------------------------


def _read_csv(path: Path, scale: Scale) -> Document:
    """Comma, semicolon, tab or bar between the cells; lines that begin with # are remarks."""
    lines = [line for line in _text(path).splitlines() if not line.lstrip().startswith("#")]
    delimiter = _delimiter(lines)
    try:
        grid = [
            list(line) for line in csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)
        ]
    except csv.Error as error:
        raise InputError(f"'{path}' is not csv: {error}") from error
    return _grids(path, [("", grid)], scale, decimal_comma=delimiter == ";")


def _delimiter(lines: Sequence[str]) -> str:
    """The sign that most lines have; the most frequent of them."""

    def weight(sign: str) -> tuple[int, int]:
        counts = [line.count(sign) for line in lines if line.strip()]
        return sum(count > 0 for count in counts), sum(counts)

    # a semicolon or tab on every line is no accident, a comma may be a decimal point
    every = sum(bool(line.strip()) for line in lines)
    for sign in "\t;":
        if every and weight(sign)[0] == every:
            return sign
    return max(",\t;|", key=weight)


# --- Markdown --------------------------------------------------------------------------------


def _read_markdown(path: Path, scale: Scale) -> Document:
    """Pipe tables; the name is the nearest heading or caption line above."""
    grids: list[tuple[str, Grid]] = []
    grid: Grid = []
    name = ""
    for line in [*_text(path).splitlines(), ""]:
        text = line.strip().lstrip(">").strip()
        if "|" in text:
            cut = re.split(r"(?<!\\)\|", text.strip("|") if text.startswith("|") else text)
            grid.append([cell.strip() for cell in cut])
            continue
        if len(grid) > 1 and any(map(_is_separator, grid)):
            grids.append((name, grid))
            name = ""
        grid = []
        if text.startswith("#") or re.match(r"\W*tab(?:le|\.)", text, re.IGNORECASE):
            name = cells.plain(text.lstrip("# "))
            name = name if len(name) <= 80 else name[:79].rsplit(" ", 1)[0] + " …"
    return _grids(path, grids, scale)


def _is_separator(line: list[str]) -> bool:
    return all(re.fullmatch(r":?-+:?", text) for text in line)


# --- LaTeX -----------------------------------------------------------------------------------


def _read_latex(path: Path, scale: Scale) -> Document:
    return _grids(path, [(t.name, t.grid) for t in latex.tables(_text(path))], scale)


# --- YAML and JSON ---------------------------------------------------------------------------


def _read_yaml(path: Path, scale: Scale) -> Document:
    _text(path)  # a binary file is named before the parser stumbles
    return _from_content(path, load_yaml(path), scale)


def _read_json(path: Path, scale: Scale) -> Document:
    try:
        content = json.loads(_text(path), parse_float=str, parse_int=str)
    except json.JSONDecodeError as error:
        raise InputError(f"'{path}' is not JSON: line {error.lineno}: {error.msg}") from error
    return _from_content(path, content, scale)


def _from_content(path: Path, content: Any, scale: Scale) -> Document:
    """A file of published.yaml's shape, or mappings of any depth from names to metrics."""
    if isinstance(content, dict) and isinstance(content.get("table2"), dict):
        ours = from_content(path, content)
        named = (("Table 2", ours.table2), ("Table 3", ours.table3))
        tables = tuple(
            table(name, [_raw(row) for row in rows], (), scale) for name, rows in named if rows
        )
        return Document(str(path), tables, ours.table1)
    notes: list[str] = []
    found = list(_walk(content, (), None, notes))
    rows = _placed([(names, row) for names, row in found if row.numbers])
    return Document(str(path), (table(path.name, rows, notes, scale),))


def _raw(row: Row) -> RawRow:
    """A typed row before scaling; the year goes back into the label and is read from it again."""
    label = row.label if row.year is None else f"{row.label} ({row.year})"
    numbers = {name: cells.Number(value) for name, value in row.values.items()}
    return RawRow(label, row.dataset, row.group, numbers)


def _walk(
    node: Any, names: tuple[str, ...], metrics: list[str] | None, notes: list[str]
) -> Iterator[tuple[tuple[str, ...], RawRow]]:
    """Rows below a node, each with the keys that lead to it.

    A row is a mapping from metrics to numbers, a list of numbers beside a list `metrics` of some
    mapping above, or several entries of a list with `metric` and `value`.
    """
    if isinstance(node, dict):
        for key in ("metrics", "columns"):
            listed = node.get(key)
            if isinstance(listed, list) and all(cells.metric_in(str(text)) for text in listed):
                metrics = [str(text) for text in listed]
        numbers = {
            key: value
            for key, value in node.items()
            if cells.metric_in(str(key)) and not isinstance(value, dict | list)
        }
        if numbers:
            yield names, _row(names, node, numbers, notes)
        for key, value in node.items():
            if isinstance(value, dict | list) and key not in ("metrics", "columns"):
                yield from _walk(value, (*names, str(key)), metrics, notes)
    elif isinstance(node, list) and node and all(isinstance(item, dict) for item in node):
        keys = list(dict.fromkeys(key for item in node for key in item))
        if _key(keys, METRIC_WORDS) and _key(keys, VALUE_WORDS):
            grid = [keys, *([_scalar(item.get(key)) for key in keys] for item in node)]
            rows, remarks = read_grid(grid)
            notes += remarks
            yield from (((), row) for row in rows)
        else:
            for index, item in enumerate(node, start=1):
                own = _find(item, METHOD_WORDS) or f"row {index}"
                yield from _walk(item, (*names, own), metrics, notes)
    elif isinstance(node, list) and metrics is not None and len(node) == len(metrics):
        numbers = dict(zip(metrics, map(_scalar, node), strict=True))
        yield names, _row(names, {}, numbers, notes)


def _row(
    names: tuple[str, ...], node: Mapping[str, Any], numbers: Mapping[str, Any], notes: list[str]
) -> RawRow:
    """A row from a mapping of metrics to scalars."""
    row = RawRow(
        _find(node, METHOD_WORDS) or (names[-1] if names else "row 1"),
        _find(node, DATASET_WORDS),
        _find(node, GROUP_WORDS),
        {},
    )
    for key, value in numbers.items():
        heading, number = cells.metric_in(str(key)), cells.number(_scalar(value))
        if heading is not None and number is not None:
            row.numbers[str(heading.metric)] = number
        elif not cells.is_missing(_scalar(value)):
            notes.append(f"not a number: '{value}' ({row.label}, {key})")
    return row


def _placed(found: list[tuple[tuple[str, ...], RawRow]]) -> list[RawRow]:
    """Rows with data sets: of the last two keys, the one with fewer names is the data set's."""
    nested = [
        (names, row)
        for names, row in found
        if len(names) > 1 and not row.dataset and row.label == names[-1]
    ]
    inner = len({names[-1] for names, _ in nested})
    outer = len({names[-2] for names, _ in nested})
    for names, row in nested:
        if outer == 1 and inner > 1:
            row.group = row.group or names[-2]  # a title over all rows
        elif inner < outer:
            row.label, row.dataset = names[-2], names[-1]
        else:
            row.dataset = names[-2]
        if len(names) > 2:
            row.group = row.group or names[-3]
    return [row for _, row in found]


def _scalar(value: Any) -> str:
    return "" if value is None else str(value)


def _key(keys: Sequence[str], words: re.Pattern[str]) -> str | None:
    return next((key for key in keys if words.fullmatch(key)), None)


def _find(node: Mapping[str, Any], words: re.Pattern[str]) -> str:
    """The text under the first key that is one of these words."""
    key = _key([str(key) for key in node], words)
    value = node.get(key) if key is not None else None
    return value if isinstance(value, str) else ""


READERS: dict[str, Callable[[Path, Scale], Document]] = {
    "yaml": _read_yaml,
    "json": _read_json,
    "csv": _read_csv,
    "markdown": _read_markdown,
    "latex": _read_latex,
}
