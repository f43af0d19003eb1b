"""The report: one HTML page of everything that is published, which fetches nothing.

The page's look is in `page.css`, its behaviour in `page.js`, its order in `page.html.jinja`, all
beside this file and all put into the page. Every text is escaped where it is printed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from harness.report.content import CHAMPION
from harness.report.document import Document, Entry, Grid, Line, Picture
from harness.report.drawings import inline
from harness.report.layout import demo_line
from harness.report.pages import GAPS, Missing, Page, Pages
from harness.report.provenance import Runs

TITLE = "M3BSR, rerun and judged"
NUMBER = re.compile(
    r"(?:p\s*)?[<>≤≥≈~\[(]*\s*([+\-−±]?)\s*(\d[\d,]*(?:\.\d+)?|\.\d+)(e[+\-]?\d+)?(?![\w.])",
    re.IGNORECASE,
)
"""A number at the start of an entry: `0.5923±.0071`, `+0.0312`, `<.001`, `[+0.01, +0.02]`, `1,234`."""
ALONE = re.compile(r"[<>]?[+\-−]?[\d.,]+\s?%?")
"""An entry that is a number and nothing else; columns of them stand flush right."""
COMMAND = re.compile(r"python -m harness\.[^\n]*$")
"""A command at the end of a sentence."""


@dataclass(frozen=True)
class Row:
    """A line of a grid, ready to be printed."""

    name: str
    entries: tuple[Entry, ...]
    ours: bool


@dataclass(frozen=True)
class Group:
    """Rows under one heading."""

    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Column:
    """How a column is printed."""

    name: str
    flush: bool
    """Numbers alone: they stand flush right."""
    first: bool
    """Of its band."""


@dataclass(frozen=True)
class Section:
    """An artefact on the page."""

    name: str
    short: str
    """In the contents."""
    folder: str
    document: Document
    command: str
    budget: str
    drawings: Mapping[str, Markup]


def render(pages: Pages, runs: Runs, audit: Document) -> str:
    """The page.

    Args:
        pages: What is published.
        runs: Where the runs behind its numbers are looked up.
        audit: The audit of the paper's own numbers.
    """
    names = {"audit", "missing", "data", "runs", "content", "panel"}
    used: dict[str, list[str]] = {}
    damaged = list(pages.damaged)
    sections = [_section(page, names, damaged) for page in pages.pages]
    for page in pages.pages:
        for key in page.keys:
            runs.number(key)
            if page.artefact.name not in used.setdefault(key, []):
                used[key].append(page.artefact.name)
    runs.every(pages.names if pages.narrowed else None)
    script, style = _file("page.js"), _file("page.css")
    commands = {
        section.name: _commands(page) for section, page in zip(sections, pages.pages, strict=True)
    }
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "groups": groups,
        "columns": columns,
        "value": value,
        "said": said,
        "kind": lambda part: type(part).__name__,
    }
    template = environment.from_string(_file("page.html.jinja"))
    finished = sorted(run["finished"] for run in runs.found if run["finished"])
    made = template.render(
        title=TITLE,
        policy=_policy(script),
        script=Markup(script),  # noqa: S704 - our own file
        style=Markup(style),  # noqa: S704 - our own file
        demo=demo_line(pages.names, pages.demo) if pages.demo else "",
        pages=pages,
        sections=sections,
        audit=Section("audit", "Audit", "", audit, "python -m harness.audit", "", {}),
        gaps=[
            (section, page.gaps)
            for section, page in zip(sections, pages.pages, strict=True)
            if page.gaps
        ],
        missing=_by_folder(pages.missing),
        damaged=damaged,
        runs=runs,
        used=used,
        finished=(finished[0], finished[-1]) if finished else None,
        content=_script_data(runs.content() | {"commands": commands}),
        number_of=runs.number,
        gaps_title=GAPS,
    )
    return made.lstrip() + "\n"


def _file(name: str) -> str:
    return files("harness.report").joinpath(name).read_text(encoding="utf8").rstrip("\n")


def _policy(script: str) -> str:
    """Content security policy: nothing is fetched, and no script runs but this page's own."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _script_data(content: Mapping[str, Any]) -> Markup:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # noqa: S704 - escaped above


def _section(page: Page, used: set[str], damaged: list[str]) -> Section:
    """A page under a name of its own, its figures drawn in."""
    name = _unique(f"{page.target}-{page.folder}", used)
    drawings = {}
    for part in page.document.parts:
        if isinstance(part, Picture) and part.name in page.drawings:
            try:
                drawing = inline(page.drawings[part.name], _unique(f"{name}-{part.name}", used),
                                 part.title, part.caption)  # fmt: skip
            except ValueError as error:
                damaged.append(f"{page.target}: figure {part.name}.svg cannot be read ({error})")
                continue
            drawings[part.name] = Markup(drawing)  # noqa: S704 - rebuilt from its shapes alone
    return Section(
        name, page.artefact.name, page.folder, page.document, page.command, page.budget, drawings
    )


def _unique(text: str, used: set[str]) -> str:
    """A name for an element, of letters, digits and hyphens, that no other has."""
    base = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"
    name, number = base, 1
    while name in used:
        number += 1
        name = f"{base}-{number}"
    used.add(name)
    return name


def _commands(page: Page) -> dict[str, str | None]:
    """The artefact's command, and what stays of it before `--methods KEY`; None where nothing does."""
    narrow = _without(page.command, "--methods") if page.artefact.by_method else None
    return {"all": page.command, "narrow": narrow}


def _without(command: str, option: str) -> str | None:
    """A command line without an option and its value; None for a line that no shell reads."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    kept = [
        word
        for before, word in pairwise(["", *words])
        if option not in {before, word} and not word.startswith(f"{option}=")
    ]
    return shlex.join(kept)


def _by_folder(missing: Sequence[Missing]) -> dict[str, list[Missing]]:
    return {
        folder: [one for one in missing if one.folder == folder]
        for folder in dict.fromkeys(one.folder for one in missing)
    }


# --- how a grid is read by the template --------------------------------------------------------


def groups(grid: Grid) -> list[Group]:
    """The rows of a grid under their headings."""
    found: list[tuple[str, list[Row]]] = []
    for line in grid.lines:
        if not line.entries:
            found.append((line.name, []))
            continue
        if not found:
            found.append(("", []))
        found[-1][1].append(Row(line.name, line.entries, _ours(line)))
    return [Group(heading, tuple(rows)) for heading, rows in found]


def _ours(line: Line) -> bool:
    return re.match(rf"{CHAMPION}(?![\w-])", line.name) is not None


def columns(grid: Grid) -> list[Column]:
    """The columns of a grid."""
    names = [
        (name, at == 0 and len(grid.bands) > 1)
        for band in grid.bands
        for at, name in enumerate(band.columns)
    ]
    rows = [line.entries for line in grid.lines if line.entries]
    return [
        Column(name, _flush([_text(row[at]) for row in rows if at < len(row)]), first)
        for at, (name, first) in enumerate(names)
    ]


def _flush(texts: Sequence[str]) -> bool:
    there = [text for text in texts if text]
    return bool(there) and all(ALONE.fullmatch(text) for text in there)


def _text(item: Entry) -> str:
    return "".join(span.text for span in item).strip()


def value(item: Entry) -> float | None:
    """The number that an entry is sorted by: the first one it starts with; None without one."""
    found = NUMBER.match(_text(item))
    if found is None:
        return None
    sign = -1.0 if found[1] in {"-", "−"} else 1.0
    return sign * float(found[2].replace(",", "") + (found[3] or ""))


def said(line: str) -> list[tuple[str, bool]]:
    """A sentence in pieces, and whether each is a command to be typed."""
    found = COMMAND.search(line)
    if found is None or not line[: found.start()].endswith((": ", ":\t")):
        return [(line, False)]
    return [(line[: found.start()], False), (found[0], True)]
