"""What every artefact of the paper shares: what was asked for, and which cells a grid of runs has."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from harness.compose import SEEDS, TUNED, Budget, check_overrides, compose_cell
from harness.config import Cell, cell_key, digest, plain
from harness.data.demo import ensure_demo
from harness.data.files import DEMO, check_name
from harness.errors import InputError
from harness.execution.live import Board
from harness.execution.plan import Plan
from harness.report.document import Document, Notes, to_json
from harness.report.figures import write_figure
from harness.report.files import write_table
from harness.report.gather import TableData
from harness.report.latex import latex
from harness.report.text import markdown, terminal
from harness.run import Places, open_dataset
from harness.zoo import METHODS, REFERENCES, Method, find
from models.interface import Catalogue

DATA_WORDS = {"demo": DEMO, "paper": ("rec_tmall", "kuaishou")}
"""Short names of pairs of data sets."""


@dataclass(frozen=True)
class Request:
    """One command line, understood."""

    target: str
    data: str
    """The word of --data as typed; names the folder of the tables."""
    names: tuple[str, ...]
    """Data sets, in order."""
    budget: Budget
    seeds: int
    methods: tuple[Method, ...]
    """Of the paper's; reference rows come on top."""
    overrides: tuple[str, ...]
    places: Places
    command: str
    """The command line that recomputes the artefact."""
    trials: int | None = None
    """Of tuning: settings tried of each method; None is the budget's number."""
    slurm: tuple[str, tuple[str, ...]] | None = None
    """On a cluster: the profile's name, and `slurm.key=value` words; None runs here."""
    wait: bool = False
    """On a cluster: stay until the jobs are over."""
    seeds_typed: bool = False
    """Whether `seeds` was asked for; else it is the budget's."""

    @property
    def tuned(self) -> tuple[Path, ...]:
        """Where ledgers of tuning are looked for: among the results, then those that come with us."""
        return (self.places.results / "tuned", TUNED)

    @property
    def folder_name(self) -> str:
        """Folder of the tables below results/tables/TARGET."""
        return "+".join(part.strip() for part in self.data.split(",") if part.strip())


def data_names(word: str) -> tuple[str, ...]:
    """Data sets of `--data a,b`; `demo` and `paper` are pairs."""
    names = [
        name for part in word.split(",") if part.strip()
        for name in DATA_WORDS.get(part.strip(), (part.strip(),))
    ]  # fmt: skip
    if not names:
        raise InputError(f"--data '{word}' names no data set; try --data demo")
    for name in names:
        check_name(name)  # it names folders of data and of tables: no path
    return tuple(dict.fromkeys(names))


def open_all(names: Iterable[str], places: Places) -> bool:
    """Open (and, for the demo's, generate) the data sets; True when all are demo data."""
    demo = True
    for name in names:
        if name in DEMO:
            ensure_demo(places.data, name)
        demo &= open_dataset(places.data, name).demo
    return demo


def choose_methods(word: str | None) -> tuple[Method, ...]:
    """`--methods a,b`, in the order of the paper's Table 2; all that are built without it."""
    if word is None:
        return METHODS
    chosen = {find(name).key for name in word.split(",") if name.strip()}
    if not chosen:
        choices = ", ".join(method.key for method in METHODS)
        raise InputError(f"--methods '{word}' names no method; choose from: {choices}")
    return tuple(method for method in METHODS if method.key in chosen)


def grid(request: Request) -> list[Cell]:
    """Methods x data sets x seeds; a row without randomness has one cell a data set.

    Seed 0 is the tuning seed (protocol, Tuning), so runs count from 1.
    """
    check_overrides((*request.methods, *REFERENCES), request.overrides)
    cells = []
    for method in (*request.methods, *REFERENCES):
        seeds = request.seeds if method.trained else 1
        for name in request.names:
            cell = compose_cell(method, name, request.budget, request.overrides, request.tuned)
            cells += [replace(cell, seed=seed) for seed in range(1, seeds + 1)]
    check_cells(cells, request.places)
    return cells


def check_cells(cells: Iterable[Cell], places: Places) -> None:
    """Check each setting's model, and each data set's split under its readings, once.

    Raises InputError as `check_model` and `check_split`.
    """
    settings = {cell_key(replace(cell, seed=0)): cell for cell in cells}
    for cell in settings.values():
        check_model(cell)
    splits = {digest([c.data, c.users, plain(c.protocol)]): c for c in settings.values()}
    for cell in splits.values():
        check_split(cell, places)


def check_split(cell: Cell, places: Places) -> None:
    """Raise InputError for readings that leave a data set without training or validation targets."""
    split = open_dataset(places.data, cell.data).split(cell.protocol, cell.users)
    targets, users = int(split.train.target.sum()), len(split.validation.user)
    if not targets or not users:
        raise InputError(
            f"data set '{cell.data}' has {targets} training targets and {users} validation users "
            "under these readings; use more users or other readings"
        )


def check_model(cell: Cell) -> None:
    """Build the cell's model over three items, to learn of settings that do not fit each other.

    Raises InputError with the model's own words (`model.heads=3 does not divide model.hidden=8`).
    """
    some, nothing = torch.zeros(4, 1), torch.zeros(4, dtype=torch.bool)
    tiny = Catalogue(
        users=2, items=3, length=cell.protocol.max_history, image=some, image_present=nothing,
        text=some, text_present=nothing, fields={}, drops_own_events=True,
    )  # fmt: skip
    method = find(cell.method)
    try:
        method.load()[0](cell.model, tiny)
    except (ValueError, ZeroDivisionError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{method.label} cannot be built: {reason}") from error


def table_data(request: Request, planned: Plan) -> list[TableData]:
    """The request's data sets as a table names them."""
    protocol = planned.wanted[0].protocol
    return [
        TableData(
            name=name,
            demo=(dataset := open_dataset(request.places.data, name)).demo,
            data_sha256=dataset.data_sha256,
            candidates_sha256=dataset.candidates_sha256(protocol),
        )
        for name in request.names
    ]


def publish_page(
    request: Request,
    planned: Plan,
    page: Document,
    csv: str,
    label: str,
    content: dict[str, Any],
    figures: Mapping[str, Figure] | None = None,
) -> str:
    """Write a page's files below results/tables; returns what a terminal shows.

    Args:
        request: Names the folder.
        planned: What is missing of it is named on the page, with the command that fills it.
        page: What is printed.
        csv: Content of table.csv.
        label: Of the first LaTeX float, such as tab:main.
        content: Of table.json.
        figures: Of the page's pictures, by their names.
    """
    folder = request.places.results / "tables" / request.target / request.folder_name
    for name, figure in (figures or {}).items():
        write_figure(folder, name, figure)
    page = replace(page, parts=(*page.parts, *_gaps(request, planned)))
    write_table(folder, markdown(page), csv, latex(page, label), content, {
        "target": request.target, "data": request.names, "budget": request.budget.name,
        "command": request.command, "document": to_json(page),
    })  # fmt: skip
    width = shutil.get_terminal_size((140, 24)).columns
    shown = terminal(page, colour=sys.stdout.isatty(), width=width)
    drawn = "".join(f", {name}.svg, .png" for name in figures or {})
    return f"{shown}\nwritten to {folder}/table.md, .csv, .tex, .json{drawn}"


def _gaps(request: Request, planned: Plan) -> tuple[Notes, ...]:
    """Runs that are not there, by method and data set."""
    missing: dict[str, list[str]] = {}
    for cell in planned.missing:
        missing.setdefault(f"{find(cell.method).label} on {cell.data}", []).append(str(cell.seed))
    if not missing:
        return ()
    most = 12
    named = [f"{name} (seed {', '.join(dict.fromkeys(seeds))})" for name, seeds in missing.items()]
    rest = f" and {len(named) - most} more" if len(named) > most else ""
    count = len(planned.missing)
    said = f"{count} run{'s' * (count > 1)}: {'; '.join(named[:most])}{rest}."
    return (Notes("What is missing", (said, f"To fill the gaps: {request.command}")),)


def failures(request: Request) -> dict[str, str]:
    """Why runs have failed, by key, so far."""
    return {failure.key: failure.error for failure in Board(request.places.results).failures()}


def default_budget(*, demo: bool) -> Budget:
    """Quick on demo data, the paper's on everything else."""
    return Budget.quick if demo else Budget.paper


def default_seeds(budget: Budget) -> int:
    """Runs a method."""
    return SEEDS[budget]
