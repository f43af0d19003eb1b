"""From a grid of strings, however its header is arranged, to the rows of a table.

CSV, Markdown and LaTeX all end here. Spans are already repeated or left empty; headers may have
several lines (data set over metric, metric over data set, HR over @5), methods may be rows or
columns, and blocks with headers of their own may follow each other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum
from itertools import pairwise

from harness.audit import cells
from harness.audit.bounds import Metric, Row
from harness.audit.cells import Heading, Number
from harness.audit.published import split_year

Grid = list[list[str]]

METHOD_WORDS = re.compile(
    r"(?:methods?|models?|algorithms?|baselines?|approach(?:es)?|systems?|names?|recommenders?)",
    re.IGNORECASE,
)
DATASET_WORDS = re.compile(r"(?:data\s*-?_?sets?|data|domains?|corpus|benchmarks?)", re.IGNORECASE)
GROUP_WORDS = re.compile(
    r"(?:groups?|types?|categor(?:y|ies)|famil(?:y|ies)|settings?)", re.IGNORECASE
)
METRIC_WORDS = re.compile(r"(?:metrics?|measures?)", re.IGNORECASE)
VALUE_WORDS = re.compile(r"(?:values?|means?|scores?|results?)", re.IGNORECASE)
NOT_METHODS = re.compile(
    r"(?:rel(?:ative|\.)?\s*)?(?:improv\w*|imp|gains?|lift|p-?\s?values?|t-?\s?test|Δ)\b.*",
    re.IGNORECASE,
)
"""Rows of a table that are no method's."""

HEADER_LINES = 4
"""Most lines of a header."""


class Scale(Enum):
    """How numbers are printed."""

    auto = "auto"
    """Percent when any number is above 1 or has a percent sign."""
    fraction = "fraction"
    percent = "percent"


@dataclass(frozen=True)
class Table:
    """A table as it was read."""

    name: str
    rows: tuple[Row, ...]
    percent: bool = False
    """Printed in percent; the rows are fractions."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""
    above_one: int = 0
    """Numbers printed above 1 or with a percent sign."""


@dataclass
class RawRow:
    """A row before scaling."""

    label: str
    dataset: str
    group: str
    numbers: dict[str, Number]


def table(name: str, rows: Sequence[RawRow], notes: Iterable[str], scale: Scale) -> Table:
    """Rows as fractions with their digits; where a label recurs, groups are data sets."""
    found = [number for row in rows for number in row.numbers.values()]
    above_one = sum(number.percent or number.value > 1 for number in found)
    percent = scale is Scale.percent or (scale is Scale.auto and above_one > 0)
    shift = -2 if percent else 0
    names = Counter(row.label for row in rows if not row.dataset)
    recurs = any(count > 1 for count in names.values())
    made = []
    for row in rows:
        label, year = split_year(row.label)
        values = {key: _shifted(number.value, shift) for key, number in row.numbers.items()}
        dataset = row.dataset or (row.group if recurs else "")
        made.append(Row(label, values, dataset, row.group, year))
    return Table(name, tuple(made), percent, tuple(dict.fromkeys(notes)), above_one)


def _shifted(value: Decimal, places: int) -> Decimal:
    """A value times a power of ten, every printed digit kept."""
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)  # cells.number reads finite numbers only
    return Decimal((sign, digits, exponent + places))


def read_grid(grid: Grid, *, decimal_comma: bool = False) -> tuple[list[RawRow], list[str]]:
    """Rows and remarks of a grid; no rows when no header names a metric that is judged."""
    grid = [[cells.plain(text) for text in line] for line in grid]
    grid = [line for line in grid if any(line) and not _is_rule(line)]
    width = max(map(len, grid), default=0)
    grid = [line + [""] * (width - len(line)) for line in grid]
    if not grid:
        return [], []
    reader = _Reader(decimal_comma)
    long = reader.long(grid)
    if long is not None:
        return long, reader.notes
    rows = reader.wide(grid)
    if not rows:
        rows = reader.wide(_transposed(grid))
    return rows, reader.notes


def _is_rule(line: list[str]) -> bool:
    """A line of dashes."""
    return all(re.fullmatch(r"[:\s=+-]*", text) for text in line)


def _transposed(grid: Grid) -> Grid:
    """Columns as lines, titles left out; blanks of leading text columns repeat the cell above."""
    grid = [list(line) for line in grid if any(line[1:]) and len(set(line)) > 1]
    for above, line in pairwise(grid):
        for column, text in enumerate(line):
            if cells.number(text) is not None or cells.metric_in(text):
                break
            if not text:
                line[column] = above[column]
    return [list(column) for column in zip(*grid, strict=True)]


@dataclass
class _Header:
    """Where the metrics of a block stand."""

    first: int
    """Line of the first body row."""
    columns: dict[int, Heading]
    texts: list[str]
    """The whole header of every column."""


class _Reader:
    """Reads grids; remarks collect in `notes`."""

    def __init__(self, decimal_comma: bool) -> None:
        self.decimal_comma = decimal_comma
        self.notes: list[str] = []

    def number(self, text: str) -> Number | None:
        return cells.number(text, decimal_comma=self.decimal_comma)

    # --- one number a line -------------------------------------------------------------------

    def long(self, grid: Grid) -> list[RawRow] | None:
        """Rows of a table with a column `metric` and a column `value`, or None."""
        metric = _column(grid[0], METRIC_WORDS)
        value = _column(grid[0], VALUE_WORDS)
        if metric is None or value is None:
            return None
        method, dataset = _column(grid[0], METHOD_WORDS), _column(grid[0], DATASET_WORDS)
        group = _column(grid[0], GROUP_WORDS)
        rows: dict[tuple[str, str, str], RawRow] = {}
        for index, line in enumerate(grid[1:], start=1):
            heading = cells.metric_in(line[metric])
            if heading is None:
                self.notes.append(f"not judged: {line[metric]}")
                continue
            names = [
                cells.label(line[column]) if column is not None else ""
                for column in (method, dataset, group)
            ]
            key = (names[0] or f"row {index}", names[1], names[2])
            row = rows.setdefault(key, RawRow(*key, {}))
            self.take(row, heading, line[value])
        return [row for row in rows.values() if row.numbers]

    # --- one row a line ----------------------------------------------------------------------

    def wide(self, grid: Grid) -> list[RawRow]:
        """Rows of a grid whose header names metrics; blocks with their own headers one by one."""
        rows: list[RawRow] = []
        starts = [0, *self.later_headers(grid), len(grid)]
        for start, stop in pairwise(starts):
            block = grid[start:stop]
            header = self.header(block)
            if header is None:
                continue
            found = self.body(block[header.first :], header)
            if len(starts) > 2 and header.first > 1 and not any(block[0][1:]):
                for row in found:  # each block under the name of its data set
                    row.dataset = row.dataset or cells.label(block[0][0])
            rows += found
        return rows

    def later_headers(self, grid: Grid) -> list[int]:
        """Lines at which a further block begins: its heading if it has one, else its header."""
        starts = []
        body = False
        for index, line in enumerate(grid):
            if self.is_body(line):
                body = True
            elif body and _metric_cells(line):
                start = index
                while not self.is_body(grid[start - 1]):
                    start -= 1
                starts.append(start)
                body = False
        return starts

    def is_body(self, line: list[str]) -> bool:
        """A line that prints numbers: a decimal point, a percent sign, not the K of a header."""
        return any(
            number.value != number.value.to_integral_value() or number.percent or "." in text
            for text in line
            if cells.metric_in(text) is None
            for number in [self.number(text)]
            if number is not None
        )

    def header(self, block: Grid) -> _Header | None:
        """The header: the lines above the body that together name most metrics, fewest lines."""
        last = next((i for i, line in enumerate(block) if self.is_body(line)), len(block))
        best: _Header | None = None
        for stop in range(1, min(last, len(block), 12) + 1):
            lines = block[max(0, stop - HEADER_LINES) : stop]
            texts = _joined(lines)
            columns = {
                index: heading
                for index, text in enumerate(texts)
                for heading in [cells.metric_in(text)]
                if heading is not None and len(heading.rest) <= 60
            }
            if columns and (best is None or len(columns) > len(best.columns)):
                best = _Header(stop, columns, texts)
        if best is None:
            return None
        stop = best.first
        while stop < last and self.is_subheader(block[stop], best):
            stop += 1
        if stop > best.first:
            texts = _joined(block[max(0, stop - HEADER_LINES) : stop])
            columns = {
                index: cells.metric_in(texts[index]) or heading
                for index, heading in best.columns.items()
            }
            best = _Header(stop, columns, texts)
        return best

    def is_subheader(self, line: list[str], header: _Header) -> bool:
        """A line below the metrics that names the data set of each column."""
        texts = [line[column] for column in header.columns]
        return (
            all(texts)
            and len(set(line)) > 1
            and not any(cells.is_missing(text) or self.number(text) for text in texts)
        )

    def body(self, lines: Grid, header: _Header) -> list[RawRow]:
        """Rows below a header; a line of text alone is the heading of those after it."""
        columns = self.distinct(header)
        others = [c for c in range(len(header.texts)) if c not in columns]
        names = [c for c in others if not self.is_measured(lines, c)]
        for column in others:
            other = cells.other_metric(header.texts[column]) if column not in names else None
            if other:
                self.notes.append(f"not judged: column {other}")
        before = [c for c in names or others if c < min(columns)]
        method, dataset, group = _label_columns(before or others[:1], header.texts)
        carried: dict[int, str] = {}
        heading = ""
        rows: list[RawRow] = []
        for line in lines:
            texts = [line[column] for column in columns]
            if not any(self.number(text) for text in texts):
                named = {text for text in line if text}
                if len(named) == 1:
                    heading = cells.label(named.pop())
                    carried = {}
                elif not all(map(cells.is_missing, texts)):
                    self.notes.append(f"no numbers in the line of '{next(filter(None, line))}'")
                continue
            for column in before:
                carried[column] = cells.label(line[column]) or carried.get(column, "")
            name = carried.get(method, "") if method is not None else ""
            if method is not None and method not in before:
                name = cells.label(line[method])
            if NOT_METHODS.fullmatch(name):
                self.notes.append(f"not a method: row '{name}'")
                continue
            own = carried.get(dataset, "") if dataset is not None else ""
            kind = carried.get(group, "") if group is not None else heading
            by_dataset: dict[str, RawRow] = {}
            for column, found in columns.items():
                where = " ".join(filter(None, (own, found.rest)))
                row = by_dataset.setdefault(
                    where, RawRow(name or f"row {len(rows) + 1}", where, kind or heading, {})
                )
                self.take(row, found, line[column])
            rows += [row for row in by_dataset.values() if row.numbers]
        return rows

    def is_measured(self, lines: Grid, column: int) -> bool:
        """A column of numbers with a decimal point: sizes, times, other metrics, no names."""
        texts = [line[column] for line in lines if not cells.is_missing(line[column])]
        return bool(texts) and all(
            ("." in text and self.number(text) is not None)
            or re.fullmatch(r"[\d.,]+\s*[kKMBG]?", text)
            for text in texts
        )

    def distinct(self, header: _Header) -> dict[int, Heading]:
        """Columns by data set: a name holds until the next one.

        Where a header has a metric twice, the second opens a new data set.
        """
        seen: Counter[tuple[str, Metric]] = Counter()
        columns = {}
        last = ""
        for column, heading in header.columns.items():
            metric = heading.metric
            rest = heading.rest or ("" if seen[last, metric] else last)
            seen[rest, metric] += 1
            last = rest
            again = seen[rest, metric]
            rest = f"{rest} ({again})".strip() if again > 1 else rest
            columns[column] = replace(heading, rest=rest)
        return columns

    def take(self, row: RawRow, heading: Heading, text: str) -> None:
        """Put a cell's number into a row, or say why not."""
        number = self.number(text)
        name = str(heading.metric)
        if number is not None:
            row.numbers[name] = replace(number, percent=number.percent or heading.percent)
        elif not cells.is_missing(text):
            where = " on ".join(filter(None, (row.label, row.dataset)))
            self.notes.append(f"not a number: '{text}' ({where}, {name})")


def _column(line: list[str], words: re.Pattern[str]) -> int | None:
    """The first column whose header is one of these words."""
    return next((i for i, text in enumerate(line) if words.fullmatch(text.strip(" :"))), None)


def _metric_cells(line: list[str]) -> int:
    return sum(cells.metric_in(text) is not None for text in line)


def _joined(lines: Grid) -> list[str]:
    """Every column's header from top to bottom; a heading reaches over the empty cells after it."""
    filled = []
    for index, line in enumerate(lines):
        if index < len(lines) - 1 and len(line) > 1 and not any(line[1:]):
            continue  # a title in the first column
        full: list[str] = []
        for column, text in enumerate(line):
            before = full[column - 1] if column > 1 else ""
            spans = not any(
                words.fullmatch(before) for words in (METHOD_WORDS, DATASET_WORDS, GROUP_WORDS)
            )
            full.append(text or (before if spans else ""))
        filled.append(full)
    return [" ".join(dict.fromkeys(filter(None, column))) for column in zip(*filled, strict=True)]


def _label_columns(
    columns: list[int], texts: list[str]
) -> tuple[int | None, int | None, int | None]:
    """Columns of the method, the data set and the group, by their headers, else by place."""

    def find(words: re.Pattern[str]) -> int | None:
        return next((c for c in columns if any(words.fullmatch(w) for w in _words(texts[c]))), None)

    dataset, group, method = find(DATASET_WORDS), find(GROUP_WORDS), find(METHOD_WORDS)
    free = [column for column in columns if column not in (dataset, group, method)]
    if method is None and free:
        method = free.pop()
    elif method is None:
        method = dataset if dataset is not None else group
        dataset = None if method == dataset else dataset
    if group is None and free:
        group = free[0]
    return method, dataset, group


def _words(text: str) -> Iterator[str]:
    yield text.strip(" :")
    yield from text.split()
