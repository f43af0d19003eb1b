"""Table 1: what our data sets count, beside the paper's statistics, and where those do not add up.

It needs no runs: everything is in the manifests of the prepared sets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.audit import PRINTED_NAMES, Sizes, published
from harness.config import Cell
from harness.data.dataset import Dataset
from harness.execution.plan import Plan
from harness.experiments.common import Request, publish_page
from harness.report.document import Band, Document, Grid, Line, Notes, entry
from harness.report.export import written
from harness.report.layout import demo_line
from harness.run import open_dataset

TITLE = "Table 1: statistics of the data sets"
COLUMNS = ("Users", "Items", "Interactions", "Avg. Clicks", "Avg. Favors")
"""As the paper heads them."""
SUMS = ("Clicks + Favors", "Interactions / Users")
"""Ours: two ways to the same number."""


@dataclass(frozen=True)
class Statistics:
    """A row of the table: a data set of ours, or one of the paper's."""

    dataset: str
    ours: bool
    users: int
    items: int
    interactions: int
    clicks: float
    """A user, as are favors; the paper's are rounded to two digits."""
    favors: float
    adds_up: bool
    """Clicks and favors a user sum to interactions a user, within rounding."""
    demo: bool = False
    data_sha256: str = ""
    candidates_sha256: str = ""

    @property
    def name(self) -> str:
        """As the table prints it; the paper spells its data sets in its own way."""
        if self.ours:
            return self.dataset
        return f"{PRINTED_NAMES.get(self.dataset, self.dataset)} (paper)"

    @property
    def summed(self) -> float:
        """Interactions a user by the averages."""
        return self.clicks + self.favors

    @property
    def divided(self) -> float:
        """Interactions a user by the counts."""
        return self.interactions / self.users


def rows(datasets: Iterable[Dataset]) -> tuple[Statistics, ...]:
    """Each data set of ours with the paper's row below it, then what else the paper prints."""
    paper = dict(published().table1)
    found = []
    for dataset in datasets:
        found.append(_ours(dataset))
        twin = dataset.name.removeprefix("demo_") if dataset.demo else dataset.name
        if twin in paper:
            found.append(_papers(twin, paper.pop(twin)))
    return (*found, *(_papers(name, sizes) for name, sizes in paper.items()))


def _ours(dataset: Dataset) -> Statistics:
    table1 = dataset.manifest["table1"]
    clicks, favors = float(table1["clicks_per_user"]), float(table1["favors_per_user"])
    users, interactions = int(table1["users"]), int(table1["interactions"])
    return Statistics(
        dataset=dataset.name,
        ours=True,
        users=users,
        items=int(table1["items"]),
        interactions=interactions,
        clicks=clicks,
        favors=favors,
        adds_up=math.isclose(clicks + favors, interactions / users),
        demo=dataset.demo,
        data_sha256=dataset.data_sha256,
        candidates_sha256=str(dataset.manifest["candidates_sha256"]["uniform"]),
    )


def _papers(name: str, sizes: Sizes) -> Statistics:
    return Statistics(
        dataset=name,
        ours=False,
        users=sizes.users,
        items=sizes.items,
        interactions=sizes.interactions,
        clicks=float(sizes.avg_clicks),
        favors=float(sizes.avg_favors),
        adds_up=sizes.adds_up,
    )


def render(found: Sequence[Statistics]) -> Document:
    """The page: one grid, the sums that fail, and what is counted."""
    lines = tuple(Line(row.name, tuple(map(entry, _cells(row)))) for row in found)
    grid = Grid(
        title="Counts, and averages a user",
        corner="Data",
        bands=(Band("", "", (*COLUMNS, *SUMS)),),
        lines=lines,
        below=("(paper): as the paper prints it, its sums computed here from its own numbers.",),
    )
    return Document(opening(found), TITLE, (grid, Notes("What these numbers say", notes(found))))


def opening(found: Sequence[Statistics]) -> str:
    """The first line: which data, and whether the numbers can be the paper's."""
    ours = [row for row in found if row.ours]
    names = [row.dataset for row in ours]
    made_up = [row.dataset for row in ours if row.demo]
    return demo_line(names, made_up) if made_up else f"Data: {', '.join(names)}."


def notes(found: Sequence[Statistics]) -> tuple[str, ...]:
    """Sentences below the table."""
    wrong = [
        f"{row.name}: the printed numbers do not add up: {row.clicks:.2f} + {row.favors:.2f} = "
        f"{row.summed:.2f} interactions a user, but {row.interactions:,} / {row.users:,} = "
        f"{row.divided:.2f}. Both cannot be if every interaction is a click or a favor."
        for row in found
        if not row.adds_up
    ]
    counted = (
        "Ours count recorded events after the filter (at least 5 events a user and a last favor with "
        "something before it), before any reading of the protocol drops one; items are the "
        "catalogue's, touched or not."
    )
    sums = [
        f"Data {row.dataset}: sha256 {row.data_sha256[:12]}, candidates {row.candidates_sha256[:12]}."
        for row in found
        if row.ours
    ]
    return (*wrong, counted, *sums)


def _cells(row: Statistics) -> list[str]:
    """A row as it is printed."""
    counts = (row.users, row.items, row.interactions)
    averages = (row.clicks, row.favors, row.summed, row.divided)
    printed = [*(f"{count:,}" for count in counts), *(f"{average:.2f}" for average in averages)]
    if not row.adds_up:
        printed[-1] += " (does not add up)"
    return printed


def content(found: Sequence[Statistics]) -> dict[str, Any]:
    """The table for programs."""
    return {
        "target": "table1",
        "data": [
            {
                "name": row.dataset,
                "demo": row.demo,
                "data_sha256": row.data_sha256,
                "candidates_sha256": row.candidates_sha256,
            }
            for row in found
            if row.ours
        ],
        "rows": [_record(row) for row in found],
        "notes": list(notes(found)),
    }


def _record(row: Statistics) -> dict[str, Any]:
    return {
        "dataset": row.dataset,
        "source": "ours" if row.ours else "paper",
        "users": row.users,
        "items": row.items,
        "interactions": row.interactions,
        "avg_clicks": row.clicks,
        "avg_favors": row.favors,
        "summed": round(row.summed, 10),  # 5.89, not 5.890000000000001
        "divided": row.divided,
        "adds_up": row.adds_up,
    }


def frame(found: Sequence[Statistics]) -> str:
    """The table as CSV, a row a line."""
    return written([_record(row) for row in found])


def cells(request: Request) -> Sequence[Cell]:  # noqa: ARG001 - what every artefact offers
    """No run is needed."""
    return ()


def publish(request: Request, planned: Plan, failed: dict[str, str]) -> str:  # noqa: ARG001
    """Write table.md, .csv, .tex and .json below results/tables; returns what a terminal shows."""
    found = rows(open_dataset(request.places.data, name) for name in request.names)
    page = render(found)
    return publish_page(request, planned, page, frame(found), "tab:data", content(found))
