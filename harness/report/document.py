"""A printed page as data: grids of entries and lists of notes, the same for every output format.

`text.py` prints it as Markdown or on a terminal, `latex.py` as LaTeX; neither knows what a number
means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Span:
    """A piece of an entry in one style."""

    text: str
    bold: bool = False
    underline: bool = False
    struck: bool = False
    """Struck through: an impossible published number."""
    runs: tuple[str, ...] = ()
    """Keys of the records that the number rests on; the report shows them."""


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
class Picture:
    """A figure that stands in files of its own beside the page (`NAME.svg`, `NAME.png`)."""

    title: str
    name: str
    """Of the files, without their ending."""
    caption: str
    """What is seen, for readers and for screen readers."""


Part = Grid | Notes | Picture


@dataclass(frozen=True)
class Document:
    """Everything that is printed of one artefact, from top to bottom."""

    opening: str
    """The first line: which data, and whether the numbers can be the paper's."""
    title: str
    parts: tuple[Part, ...]
    appendix: tuple[Grid, ...] = ()
    """Grids too long for a terminal; files have them."""


def to_json(document: Document) -> dict[str, Any]:
    """A document as JSON's types; each part says what it is in `kind`."""
    content = asdict(document)
    for part, made in zip(document.parts, content["parts"], strict=True):
        made["kind"] = type(part).__name__
    return content


def from_json(content: Mapping[str, Any]) -> Document:
    """The document that `to_json` was given. Raises KeyError or TypeError for anything else."""
    parts = [_part(part) for part in content["parts"]]
    appendix = [_part({**part, "kind": "Grid"}) for part in content["appendix"]]
    grids = tuple(part for part in appendix if isinstance(part, Grid))
    return Document(content["opening"], content["title"], tuple(parts), grids)


def _part(content: Mapping[str, Any]) -> Part:
    kind = content["kind"]
    if kind == "Picture":
        return Picture(content["title"], content["name"], content["caption"])
    if kind == "Notes":
        return Notes(content["title"], tuple(content["lines"]))
    bands = (Band(**{**band, "columns": tuple(band["columns"])}) for band in content["bands"])
    lines = (
        Line(line["name"], tuple(tuple(map(_read_span, spans)) for spans in line["entries"]))
        for line in content["lines"]
    )
    return Grid(
        content["title"], content["corner"], tuple(bands), tuple(lines), tuple(content["below"])
    )


def _read_span(content: Mapping[str, Any]) -> Span:
    return Span(**{**content, "runs": tuple(content["runs"])})
