"""Table 2: every method on every data set, several seeds, tested, beside the paper's numbers."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from harness.config import Cell
from harness.execution.plan import Plan
from harness.experiments.common import Request, failures, grid, table_data
from harness.report.export import csv_text, json_content
from harness.report.files import write_table
from harness.report.latex import latex
from harness.report.layout import document
from harness.report.tables import build_table
from harness.report.text import markdown, terminal


def cells(request: Request) -> Sequence[Cell]:
    """Methods x data sets x seeds, reference rows with one cell a data set."""
    return grid(request)


def publish(request: Request, planned: Plan, failed: dict[str, str]) -> str:
    """Write table.md, .csv, .tex and .json below results/tables; returns what a terminal shows."""
    table = build_table(
        planned.stored.values(),
        planned.wanted,
        table_data(request, planned),
        failed=failures(request) | failed,
        target=request.target,
        budget_name=request.budget.name,
        overrides=request.overrides,
    )
    page = document(table)
    folder = request.places.results / "tables" / request.target / request.folder_name
    write_table(folder, markdown(page), csv_text(table), latex(page, "main"), json_content(table))
    shown = terminal(
        page, colour=sys.stdout.isatty(), width=shutil.get_terminal_size((140, 24)).columns
    )
    return f"{shown}\nwritten to {folder}/table.md, .csv, .tex, .json"
