"""Published artefacts as the report reads them: every page below results/tables, its data, its figures.

Reads files alone. A damaged page or figure is named and left out; nothing of it is guessed.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import InputError, unknown
from harness.report.document import Document, Grid, Notes, Picture, from_json
from harness.report.gather import TableData

GAPS = "What is missing"
"""Heading of the notes in which a page names its gaps."""


@dataclass(frozen=True)
class Artefact:
    """An artefact of the paper, or of this harness, by its target."""

    target: str
    name: str
    by_method: bool = False
    """True where `--methods KEY` leaves the runs of one method, so that a lone run can be repeated."""


ARTEFACTS = (
    Artefact("claims", "Claims"),
    Artefact("table1", "Table 1"),
    Artefact("table2", "Table 2", by_method=True),
    Artefact("table3", "Table 3", by_method=True),
    Artefact("table4", "Table 4", by_method=True),
    Artefact("figure3", "Figure 3"),
    Artefact("figure4", "Figure 4"),
    Artefact("figure5", "Figure 5"),
    Artefact("multiverse", "Multiverse"),
    Artefact("simulate", "Simulation"),
    Artefact("tuning", "Tuning", by_method=True),
)
"""In the order of the report: the verdicts first, then the paper's order, then what it rests on."""

PLACES = {"--results": 1, "--data-dir": 1, "--data": 1, "--budget": 1, "--seeds": 1}
"""Words of a command line that another target takes too, and how many values follow each."""


@dataclass(frozen=True)
class Page:
    """One published artefact."""

    target: str
    folder: str
    """Of its data below results/tables/TARGET: the word of --data."""
    names: tuple[str, ...]
    """Data sets."""
    budget: str
    command: str
    """Recomputes it."""
    document: Document
    data: tuple[TableData, ...] = ()
    """As table.json names them."""
    drawings: Mapping[str, str] = field(default_factory=dict)
    """SVG files by the names of the document's pictures, as they stand on disk."""

    @property
    def artefact(self) -> Artefact:
        """What it is; a target that the report does not know is named as it is."""
        known = {artefact.target: artefact for artefact in ARTEFACTS}
        return known.get(self.target, Artefact(self.target, self.target))

    @property
    def demo(self) -> tuple[str, ...]:
        """Its data sets that are made up."""
        made_up = tuple(data.name for data in self.data if data.demo)
        says = self.document.opening.startswith("DEMO DATA")
        return made_up or (self.names if says else ())

    @property
    def gaps(self) -> tuple[str, ...]:
        """What it says is missing."""
        return tuple(
            line
            for part in self.document.parts
            if isinstance(part, Notes) and part.title == GAPS
            for line in part.lines
        )

    @property
    def keys(self) -> list[str]:
        """Records that its numbers rest on, each once, in the order of reading."""
        return list(dict.fromkeys(key for grid in self.grids for key in _keys(grid)))

    @property
    def grids(self) -> list[Grid]:
        """Every grid, the appendix included."""
        parts = [part for part in self.document.parts if isinstance(part, Grid)]
        return [*parts, *self.document.appendix]


@dataclass(frozen=True)
class Missing:
    """A target without a page on some data, and the command that makes one."""

    artefact: Artefact
    folder: str
    command: str


@dataclass(frozen=True)
class Pages:
    """Everything that is published."""

    pages: tuple[Page, ...]
    damaged: tuple[str, ...] = ()
    """What could not be read, and why."""
    narrowed: bool = False
    """Only some data were asked for."""

    @property
    def data(self) -> list[TableData]:
        """Every data set, once."""
        found = {data: None for page in self.pages for data in page.data}
        return sorted(found, key=lambda data: (data.name, data.data_sha256))

    @property
    def demo(self) -> list[str]:
        """Data sets that are made up."""
        return sorted({name for page in self.pages for name in page.demo})

    @property
    def names(self) -> list[str]:
        """Data sets of the pages."""
        return sorted({name for page in self.pages for name in page.names})

    @property
    def missing(self) -> list[Missing]:
        """Targets without a page, for every folder of data that has one."""
        folders = list(dict.fromkeys(page.folder for page in self.pages)) or ["demo"]
        made = {(page.target, page.folder) for page in self.pages}
        return [
            Missing(artefact, folder, self.command(artefact.target, folder))
            for folder in sorted(folders)
            for artefact in ARTEFACTS
            if (artefact.target, folder) not in made
        ]

    def command(self, target: str, folder: str) -> str:
        """The command of a target, with the places, data and budget of its neighbours."""
        beside = next((page for page in self.pages if page.folder == folder), None)
        words = [] if beside is None else _kept(beside.command)
        data = [] if "--data" in words or folder == "demo" else ["--data", folder.replace("+", ",")]
        return shlex.join(["python", "-m", "harness.reproduce", target, *data, *words])


def read_pages(results: Path, wanted: Sequence[str] = ()) -> Pages:
    """The pages below `results`/tables.

    Args:
        results: The results folder.
        wanted: Data sets, or words of --data; empty is everything.

    Raises:
        InputError: there is no such folder, or no page of the data that are wanted.
    """
    if not results.is_dir():
        raise InputError(
            f"no results folder '{results}'; make it with python -m harness.reproduce table2, or "
            "name another with --results DIR"
        )
    pages: list[Page] = []
    damaged: list[str] = []
    for path in sorted((results / "tables").glob("*/*/page.json")):
        try:
            pages.append(_page(path, damaged))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            damaged.append(f"{_named(path, results)} cannot be read ({_first_line(error)})")
    if wanted:
        known = {name for page in pages for name in (page.folder, *page.names)}
        for name in wanted:
            if name not in known:
                raise unknown("published data", name, known) if known else _none(name, results)
        pages = [page for page in pages if {page.folder, *page.names} & set(wanted)]
    order = {artefact.target: number for number, artefact in enumerate(ARTEFACTS)}
    pages.sort(key=lambda page: (order.get(page.target, len(order)), page.target, page.folder))
    return Pages(tuple(pages), tuple(damaged), narrowed=bool(wanted))


def _none(name: str, results: Path) -> InputError:
    return InputError(
        f"no page of data '{name}' below '{results}/tables', where nothing is published; "
        f"python -m harness.reproduce table2 --data {name} makes one"
    )


def _page(path: Path, damaged: list[str]) -> Page:
    """One page; figures that cannot be read are named in `damaged`."""
    content = json.loads(path.read_text(encoding="utf8"))
    document = from_json(content["document"])
    drawings = {}
    for part in document.parts:
        if isinstance(part, Picture) and re.fullmatch(r"[\w.+-]+", part.name):
            drawing = path.parent / f"{part.name}.svg"
            try:
                drawings[part.name] = drawing.read_text(encoding="utf8")
            except (OSError, ValueError) as error:
                damaged.append(
                    f"{content['target']}: figure {drawing.name} cannot be read ({_first_line(error)})"
                )
    return Page(
        target=str(content["target"]),
        folder=path.parent.name,
        names=tuple(map(str, content["data"])),
        budget=str(content["budget"]),
        command=str(content["command"]),
        document=document,
        data=_data(path.with_name("table.json")),
        drawings=drawings,
    )


def _data(path: Path) -> tuple[TableData, ...]:
    """The data sets of a table.json; empty where it names none in the usual way."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
        return tuple(
            TableData(
                str(data["name"]),
                bool(data["demo"]),
                str(data["data_sha256"]),
                str(data["candidates_sha256"]),
            )
            for data in content["data"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _keys(grid: Grid) -> Iterable[str]:
    for line in grid.lines:
        for entry in line.entries:
            for span in entry:
                yield from span.runs


def _kept(command: str) -> list[str]:
    """The words of a command that its neighbours share: places, data, budget, runs a method."""
    try:
        words = shlex.split(command)
    except ValueError:
        return []
    kept: list[str] = []
    at = 0
    while at < len(words):
        name = words[at].split("=", 1)[0]
        if name in PLACES:
            size = 1 if "=" in words[at] else 1 + PLACES[name]
            kept += words[at : at + size]
            at += size
        else:
            at += 1
    return kept


def _named(path: Path, results: Path) -> str:
    return path.relative_to(results).as_posix()


def _first_line(error: Exception) -> str:
    """Without the path, which differs from machine to machine."""
    said = error.strerror if isinstance(error, OSError) else str(error)
    return f"{type(error).__name__}: {said}".splitlines()[0]
