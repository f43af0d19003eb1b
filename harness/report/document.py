"""A printed page as data: grids of entries and lists of notes, the same for every output format.

`text.py` prints it as Markdown or on a terminal, `latex.py` as LaTeX; neither knows what a number
means.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Span:
    """A piece of an entry in one style."""

    text: str
    bold: bool = False
    underline: bool = False
    struck: bool = False
    """Struck through: an impossible published number."""


Entry = tuple[Span, ...]
"""What stands in one place of a grid."""


def entry(text: str) -> Entry:
    """An entry without any style."""
    return (Span(text),)


EMPTY = entry("")


@dataclass(frozen=True)
class Band:
    """Neighbouring columns under one heading: the metrics of a data set."""

    name: str
    short: str
    """The heading as it stands before each column's name where there is only one header line."""
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """A row of a grid; a line without entries is the heading of the group of rows below it."""

    name: str
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A table of entries: a first column of names, then the columns of the bands."""

    title: str
    corner: str
    bands: tuple[Band, ...]
    lines: tuple[Line, ...]
    below: tuple[str, ...] = ()
    """What the marks mean, right under the grid."""

    def one_band(self, index: int) -> Grid:
        """The grid of a single band."""
        start = sum(len(band.columns) for band in self.bands[:index])
        stop = start + len(self.bands[index].columns)
        lines = tuple(replace(line, entries=line.entries[start:stop]) for line in self.lines)
        return replace(self, bands=(self.bands[index],), lines=lines)


@dataclass(frozen=True)
class Notes:
    """Sentences under a heading."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """Everything that is printed of one artefact, from top to bottom."""

    opening: str
    """The first line: which data, and whether the numbers can be the paper's."""
    title: str
    parts: tuple[Grid | Notes, ...]
    appendix: tuple[Grid, ...] = ()
    """Grids too long for a terminal; files have them."""
