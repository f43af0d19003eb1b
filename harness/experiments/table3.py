"""Table 3: Table 2's runs among users with at most 10 interactions, and by the length of a history.

Its cells are Table 2's (same keys): nothing is trained for it. The strata show every method of Table 2
that has stored runs, whether this artefact asks for it or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Int
from numpy import ndarray

from harness.compose import compose_cell
from harness.config import Cell, cell_key
from harness.errors import InputError
from harness.execution.plan import Plan, plan
from harness.experiments import common
from harness.experiments.common import Request, failures, grid, publish_page, table_data
from harness.experiments.table2 import searches
from harness.report.cold_start import build_cold_start, cold_start_csv, cold_start_json
from harness.report.cold_start_figure import draw
from harness.report.cold_start_page import cold_start_page
from harness.run import Places, open_dataset
from harness.zoo import METHODS, Method, find

PAPER = tuple(find(key) for key in ("stosa", "mmmlp", "ebm", "m3bsr"))
"""The rows of Table 3."""


def choose_methods(word: str | None) -> tuple[Method, ...]:
    """`--methods a,b`, any of Table 2's; the paper's four without it."""
    return PAPER if word is None else common.choose_methods(word)


def cells(request: Request) -> Sequence[Cell]:
    """Table 2's cells of these methods, reference rows included."""
    return grid(request)


def recorded(wanted: Sequence[Cell], places: Places) -> dict[str, Int[ndarray, " user"]]:
    """Interactions of each test user strictly before the test favor, by data set.

    All that are recorded: before a reading drops any, and before the cut to the latest.
    """
    counted: dict[str, Int[ndarray, " user"]] = {}
    for cell in wanted:
        if cell.data not in counted:
            split = open_dataset(places.data, cell.data).split(cell.protocol, cell.users)
            first = split.events.offsets[split.test.user]
            counted[cell.data] = (split.test.position - first).numpy()
    return counted


def further(request: Request) -> Plan:
    """Table 2's other methods as far as they are stored under these settings; none has to be run."""
    asked = {method.key for method in request.methods}
    wanted: list[Cell] = []
    for method in METHODS:
        for name in request.names if method.key not in asked else ():
            try:
                cell = compose_cell(method, name, request.budget, request.overrides, request.tuned)
            except InputError:  # an override that this method cannot take: it has no such runs
                continue
            wanted += [replace(cell, seed=seed) for seed in range(1, request.seeds + 1)]
    found = plan(wanted, request.places)
    stored = tuple(cell for cell in wanted if cell_key(cell) in found.stored)
    return replace(found, wanted=stored)


def publish(request: Request, planned: Plan, failed: dict[str, str]) -> str:
    """Write table.md, .csv, .tex, .json and the figure; returns what a terminal shows."""
    others = further(request)
    made = build_cold_start(
        planned.stored.values(),
        planned.wanted,
        table_data(request, planned),
        {cell_key(cell): find(cell.method) for cell in planned.wanted},
        recorded(planned.wanted, request.places),
        further=(others.stored.values(), others.wanted),
        failed=failures(request) | failed,
        searches=searches(request),
        budget_name=request.budget.name,
        overrides=request.overrides,
    )
    return publish_page(
        request, planned, cold_start_page(made), cold_start_csv(made), "tab:cold",
        cold_start_json(made), figures={"strata": draw(made)},
    )  # fmt: skip
