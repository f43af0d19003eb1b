"""Figure 3: M3BSR without each of five parts, tested against the full model, as bars and a table.

The full model's runs are Table 2's (same keys), so they are trained once. A removal's records carry
M3BSR's name; rows are told apart by the keys of their cells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from harness.compose import check_overrides, compose_cell
from harness.config import Cell, cell_key, plain
from harness.errors import InputError, unknown
from harness.execution.plan import Plan
from harness.experiments.common import (
    Request,
    check_cells,
    failures,
    publish_page,
    table_data,
)
from harness.report.ablation import FIGURE, ablation_json, ablation_page, build_ablation
from harness.report.ablation_figure import ablation_figure
from harness.report.export import csv_text
from harness.zoo import Method, find
from models.variants import VARIANTS

FULL = find("m3bsr")
REMOVALS = tuple(name for name in VARIANTS if name.startswith("w/o "))
"""The five removals; the twin of section 5.6 is no row of Figure 3."""


def choose_methods(word: str | None) -> tuple[Method, ...]:
    """`--methods cdmd-m,cdmd-b`: some of the removals; the full model always comes with them.

    Removals are named as the figure prints them, with or without "w/o ". Raises InputError for
    another name.
    """
    rows = [FULL, *(replace(FULL, label=name) for name in REMOVALS)]
    if word is None:
        return tuple(rows)
    known = {_short(row.label): row for row in rows}
    chosen = {FULL.label}
    named = [name.strip() for name in word.split(",") if name.strip()]
    if not named:
        raise InputError(f"--methods '{word}' names no row; choose from: "
                         f"{', '.join(row.label for row in rows)}")  # fmt: skip
    for name in named:
        if _short(name) not in known:
            raise unknown("row of Figure 3", name, [row.label for row in rows])
        chosen.add(known[_short(name)].label)
    return tuple(row for row in rows if row.label in chosen)


def _short(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("w/o"))


def cells(request: Request) -> Sequence[Cell]:
    """Rows x data sets x seeds, the full model first.

    Raises InputError for settings that do not fit each other, for readings that leave nothing to
    train on, and when the overrides have taken a part out that a removal is to take out.
    """
    check_overrides((FULL,), request.overrides)
    made = [cell for _, cell in _grid(request)]
    check_cells(made, request.places)
    return made


def rows(request: Request) -> dict[str, Method]:
    """The row of every cell, by key, in the figure's order: the full model last."""
    made = {cell_key(cell): row for row, cell in _grid(request)}
    return dict(sorted(made.items(), key=lambda item: item[1].label == FULL.label))


def _grid(request: Request) -> list[tuple[Method, Cell]]:
    """Every cell with its row. Runs count from seed 1, as in Table 2."""
    full = {
        name: compose_cell(FULL, name, request.budget, request.overrides, request.tuned)
        for name in request.names
    }
    return [
        (row, replace(_without(row.label, full[name]), seed=seed))
        for row in request.methods
        for name in request.names
        for seed in range(1, request.seeds + 1)
    ]


def _without(label: str, full: Cell) -> Cell:
    """The full model's cell without the part that the row lacks. Raises InputError if none is lost."""
    if label not in REMOVALS:
        return full
    cell = replace(full, model=VARIANTS[label](full.model))  # type: ignore[arg-type]
    if plain(cell) == plain(full):
        raise InputError(
            f"'{label}' takes out what the settings of {FULL.label} on {full.data} lack already; "
            "leave that override out, or the row (--methods)"
        )
    return cell


def publish(request: Request, planned: Plan, failed: dict[str, str]) -> str:
    """Write table.md, .csv, .tex, .json and the figure; returns what a terminal shows."""
    ablation = build_ablation(
        planned.stored.values(),
        planned.wanted,
        table_data(request, planned),
        rows(request),
        everything=REMOVALS,
        failed=failures(request) | failed,
        budget_name=request.budget.name,
        overrides=request.overrides,
    )
    return publish_page(
        request, planned, ablation_page(ablation), csv_text(ablation.table), "tab:ablations",
        ablation_json(ablation), figures={FIGURE: ablation_figure(ablation.table)},
    )  # fmt: skip
