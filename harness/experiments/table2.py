"""Table 2: every method on every data set, several seeds, tested, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Sequence

from harness import ledger
from harness.config import Cell
from harness.execution.plan import Plan
from harness.experiments.common import Request, failures, grid, publish_page, table_data
from harness.ledger import Trial
from harness.report.export import csv_text, json_content
from harness.report.layout import document
from harness.report.tables import build_table


def cells(request: Request) -> Sequence[Cell]:
    """Methods x data sets x seeds, reference rows with one cell a data set."""
    return grid(request)


def searches(request: Request) -> dict[tuple[str, str], list[Trial]]:
    """The trials that chose each method's settings, by its key and the data set."""
    budget = request.budget.name
    return {
        (method.key, name): ledger.find(request.tuned, budget, name, method.key)
        for method in request.methods
        for name in request.names
    }


def publish(request: Request, planned: Plan, failed: dict[str, str]) -> str:
    """Write table.md, .csv, .tex and .json below results/tables; returns what a terminal shows."""
    table = build_table(
        planned.stored.values(),
        planned.wanted,
        table_data(request, planned),
        failed=failures(request) | failed,
        target=request.target,
        searches=searches(request),
        budget_name=request.budget.name,
        overrides=request.overrides,
    )
    return publish_page(
        request, planned, document(table), csv_text(table), "tab:main", json_content(table)
    )
