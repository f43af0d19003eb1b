"""A document as Markdown (files), as plain text (pipes) and with terminal styles: aligned columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.report.document import EMPTY, Document, Entry, Grid, Notes, Picture, Span


@dataclass(frozen=True)
class Style:
    """How bold, underlined and struck text is written."""

    bold: tuple[str, str]
    underline: tuple[str, str]
    struck: tuple[str, str]
    visible: bool
    """True where the signs themselves take up columns."""

    def paint(self, entry: Entry) -> str:
        """An entry with its styles."""
        return "".join(self._paint(span) for span in entry)

    def _paint(self, span: Span) -> str:
        text = escape(span.text) if self.visible else span.text
        for wanted, (before, after) in (
            (span.struck, self.struck),
            (span.underline, self.underline),
            (span.bold, self.bold),
        ):
            if wanted and text:
                text = f"{before}{text}{after}"
        return text

    def width(self, painted: str) -> int:
        """Columns that painted text takes up."""
        return len(painted if self.visible else re.sub(r"\x1b\[\d+m", "", painted))


MARKDOWN = Style(("**", "**"), ("<ins>", "</ins>"), ("~~", "~~"), visible=True)
"""`<ins>` is the underline that Markdown viewers keep."""

PLAIN = Style(("**", "**"), ("_", "_"), ("~~", "~~"), visible=True)
"""Markdown that is read as it stands."""

TERMINAL = Style(("\x1b[1m", "\x1b[22m"), ("\x1b[4m", "\x1b[24m"), ("~~", "~~"), visible=False)
"""Struck text keeps its tildes: not every terminal can strike."""


def markdown(document: Document) -> str:
    """The whole document for a file, the appendix included; ends in a newline."""
    lines = [document.opening, "", f"# {document.title}", ""]
    for part in (*document.parts, *document.appendix):
        if isinstance(part, Grid):
            lines += [_title(part), "", *_table(part, MARKDOWN), "", *_bullets(part.below)]
        elif isinstance(part, Picture):
            image = f"![{escape(part.title)}]({part.name}.svg)"
            lines += [f"## {part.title}", "", image, "", escape(part.caption)]
        else:
            lines += [f"## {part.title}", "", *_bullets(part.lines)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def terminal(document: Document, *, colour: bool, width: int = 140) -> str:
    """The document without its appendix, in lines of at most `width` columns where that is possible.

    A grid that is wider is split by its bands (data sets). Without colour the text is Markdown.
    """
    style = TERMINAL if colour else PLAIN
    lines = [*_wrap(document.opening, width), "", f"# {document.title}", ""]
    for part in document.parts:
        if isinstance(part, Grid):
            lines += _grid(part, style, width)
        elif isinstance(part, Notes):
            lines += _notes(part, width)
        else:
            lines += [f"## {part.title}", "", f"(drawn in {part.name}.svg and .png)"]
            lines += [*_wrap(part.caption, width), ""]
    return "\n".join(lines).rstrip() + "\n"


def _grid(grid: Grid, style: Style, width: int) -> Iterator[str]:
    """A grid with its title and what stands below it."""
    table = _table(grid, style) if style.visible else _columns(grid, style)
    if len(grid.bands) > 1 and max(map(style.width, table)) > width:
        for index in range(len(grid.bands)):
            part = grid.one_band(index)
            table = _table(part, style) if style.visible else _columns(part, style)
            yield from (_title(part), "", *table, "")
    else:
        yield from (_title(grid), "", *table, "")
    for line in grid.below:
        yield from _wrap(line, width, "  ")
    yield ""


def _title(grid: Grid) -> str:
    """`## Means`, with the data set where there is only one."""
    name = grid.bands[0].name if len(grid.bands) == 1 else ""
    return f"## {grid.title}: {name}" if name else f"## {grid.title}"


def _notes(notes: Notes, width: int) -> Iterator[str]:
    yield from (f"## {notes.title}", "")
    for line in notes.lines:
        yield from _wrap(f"- {line}", width, "  ")
    yield ""


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [""]


def _bullets(lines: Sequence[str]) -> list[str]:
    return [f"- {escape(line)}" for line in lines]


def _table(grid: Grid, style: Style) -> list[str]:
    """Aligned rows of a pipe table; headings of groups run over the empty columns beside them."""
    header = [grid.corner]
    for band in grid.bands:
        lone = len(grid.bands) == 1 or not band.short
        header += [name if lone else f"{band.short} {name}" for name in band.columns]
    rows, widths = _measure(grid, header, style)
    lines = [_row(header, widths, style), "|" + "|".join("-" * (w + 2) for w in widths) + "|"]
    for line, row in zip(grid.lines, rows, strict=True):
        lines.append(
            _row(row, widths, style) if line.entries else _heading(line.name, widths, style)
        )
    return lines


def _columns(grid: Grid, style: Style) -> list[str]:
    """Aligned columns without bars: the data sets stand over their columns."""
    header = [grid.corner, *(name for band in grid.bands for name in band.columns)]
    rows, widths = _measure(grid, header, style)

    def padded(cells: Sequence[str]) -> str:
        parts = (
            cell + " " * (size - style.width(cell))
            for cell, size in zip(cells, widths, strict=True)
        )
        return "  ".join(parts).rstrip()

    above, at = " " * widths[0], 1
    for band in grid.bands:
        size = sum(widths[at : at + len(band.columns)]) + 2 * (len(band.columns) - 1)
        above += "  " + band.name[:size].ljust(size)
        at += len(band.columns)
    lines = [above.rstrip(), padded(header), "-" * (sum(widths) + 2 * (len(widths) - 1))]
    for line, row in zip(grid.lines, rows, strict=True):
        lines.append(padded(row) if line.entries else style.paint((Span(line.name, bold=True),)))
    return lines if len(grid.bands) > 1 else lines[1:]


def _measure(grid: Grid, header: Sequence[str], style: Style) -> tuple[list[list[str]], list[int]]:
    """Painted rows (a heading's has its name alone) and the width of every column."""
    rows = [
        [style.paint((Span(line.name),)), *(style.paint(item or EMPTY) for item in line.entries)]
        for line in grid.lines
    ]
    full = [row for row, line in zip(rows, grid.lines, strict=True) if line.entries]
    widths = [
        max(3, len(name), *(style.width(row[at]) for row in full), 0)
        for at, name in enumerate(header)
    ]
    return rows, widths


def _row(cells: Sequence[str], widths: Sequence[int], style: Style) -> str:
    padded = (
        cell + " " * (width - style.width(cell)) for cell, width in zip(cells, widths, strict=True)
    )
    return "| " + " | ".join(padded) + " |"


def _heading(name: str, widths: Sequence[int], style: Style) -> str:
    """`| *Group*      | | | |`, as wide as the other rows."""
    painted = f"*{escape(name)}*"
    empty = " |" * (len(widths) - 1) + " |"
    room = sum(widths) + 3 * len(widths) + 1 - len("| ") - len(empty)
    return "| " + painted + " " * max(0, room - style.width(painted)) + empty


def escape(text: str) -> str:
    """Text that no Markdown viewer takes for a table's bar or for HTML."""
    text = re.sub(r"\s+", " ", text).replace("|", "\\|")
    return re.sub(r"<(?=[A-Za-z/!?])", r"\\<", text)
