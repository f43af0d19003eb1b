"""`--plan --on slurm`: what an artefact costs, and the cheapest part of it that could decide each claim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tabulate import tabulate

from harness.config import Cell, cell_key
from harness.execution.plan import Plan, plan
from harness.execution.price import Known, Price, knowledge, price
from harness.execution.slurm import Site, SlurmProfile, read_profile, read_site
from harness.experiments import artefact
from harness.experiments.common import Request
from harness.report.hypotheses import Compare, Hypothesis, Sheet, read
from harness.zoo import find

LEAST_RUNS = 3
"""Fewer runs a method decide nothing (protocol, few runs)."""


def lines(request: Request, planned: Plan) -> list[str]:
    """What a plan says of its price on the cluster. Raises InputError as the cluster does."""
    name, words = request.slurm or ("", ())
    site = read_site()
    profile = read_profile(name, words)
    known = knowledge(request.places)
    cost = price(planned.missing, known, profile, site)
    said = [f"on {line}" for line in cost.needs] + [cost.say()]
    if request.target in {"claims", "all"}:
        rows = [
            [one.id, one.short, cost.cells, cost.jobs, f"{cost.hours.mean:.2f}",
             f"{cost.hours.low:.2f} to {cost.hours.high:.2f}", ", ".join(cost.unknown)]
            for one, cost in claims(request, known, profile, site)
        ]  # fmt: skip
        heads = ["claim", "", "cells", "jobs", "node-hours", "95 %", "not known"]
        title = "The cheapest runs that could still decide each claim"
        said += [
            f"{title} ({LEAST_RUNS} a row; what is stored costs nothing):",
            tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True),
        ]
    return said


def claims(
    request: Request,
    known: Callable[[Cell], Known | None],
    profile: SlurmProfile,
    site: Site,
) -> list[tuple[Hypothesis, Price]]:
    """What is missing for each hypothesis that runs can decide, with as few runs as may decide it."""
    few = replace(request, seeds=min(request.seeds, LEAST_RUNS))
    sheets = {
        Sheet.table2: _rows(few, "table2"),
        Sheet.figure3: _rows(few, "figure3"),
    }
    sheets[Sheet.table3] = sheets[Sheet.table2]
    made = []
    for one in read():
        if isinstance(one.test, Compare):
            wanted = {*one.test.better, *one.test.than}
            cells = [cell for label, cell in sheets[one.test.sheet] if label in wanted]
            missing = plan(cells, request.places, any_machine=True).missing
            made.append((one, price(missing, known, profile, site)))
    return made


def _rows(request: Request, target: str) -> list[tuple[str, Cell]]:
    """The cells of an artefact with the label of their row."""
    made = artefact(target)
    choose = getattr(made, "choose_methods", None)
    part = replace(request, target=target)
    if choose is not None:
        part = replace(part, methods=choose(None))
        rows = made.rows(part)
        return [(rows[cell_key(cell)].label, cell) for cell in made.cells(part)]
    return [(find(cell.method).label, cell) for cell in made.cells(part)]
