"""Table 4: seconds of a training epoch and of a prediction, each method alone on one machine.

A cell is Table 2's with another task and batch size (harness/training/timing.py measures). The repeats
are of one model, so there is one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.compose import check_overrides, compose_cell
from harness.config import Cell, Task
from harness.errors import InputError
from harness.execution.plan import Plan
from harness.experiments.common import (
    Request,
    check_cells,
    failures,
    publish_page,
    table_data,
)
from harness.report.timing import build_timing
from harness.report.timing_page import csv_text, json_content, page
from harness.zoo import METHODS, REFERENCES, Method, find

PAPER = tuple(find(key) for key in ("stosa", "mmmlp", "ebm", "m3bsr"))
"""The rows of Table 4."""
OURS = find("m3bsr")
TIMED = (*METHODS, *(method for method in REFERENCES if method.trained))
"""Whatever has an epoch."""
SETTING = {"batch_size": 128, "samples": 0, "passes": 1}
"""Table 4's batch size (section 5.7), and an epoch that goes through every sample once."""


def choose_methods(word: str | None) -> tuple[Method, ...]:
    """`--methods a,b`, or `all` 17; M3BSR always comes with them, for times are printed over its own.

    Raises InputError for a name that is no method, or has no training.
    """
    if word is None:
        return PAPER
    names = [name.strip() for name in word.split(",") if name.strip()]
    if [name.lower() for name in names] == ["all"]:
        return METHODS
    chosen = {find(name).key for name in names}
    without = chosen - {method.key for method in TIMED}
    if without or not chosen:
        named = f"'{min(without)}' has no epoch to time" if without else "names no method"
        choices = ", ".join(method.key for method in TIMED)
        raise InputError(f"--methods '{word}': {named}; choose from: all, {choices}")
    return tuple(method for method in TIMED if method.key in chosen | {OURS.key})


def cells(request: Request) -> Sequence[Cell]:
    """A cell a method and data set: Table 2's of seed 1, to be timed in Table 4's setting.

    A `train.batch_size=` of the command line wins over the paper's 128, as do the other two of SETTING.
    """
    check_overrides(request.methods, request.overrides)
    typed = {word.partition("=")[0] for word in request.overrides}
    setting = {key: value for key, value in SETTING.items() if f"train.{key}" not in typed}
    made = []
    for name in request.names:
        for method in request.methods:
            cell = compose_cell(method, name, request.budget, request.overrides, request.tuned)
            train = replace(cell.train, **setting)  # type: ignore[arg-type]
            made.append(replace(cell, seed=1, task=Task.time, train=train))
    check_cells(made, request.places)
    return made


def publish(request: Request, planned: Plan, failed: dict[str, str]) -> str:
    """Write table.md, .csv, .tex and .json below results/tables; returns what a terminal shows."""
    timing = build_timing(
        planned.stored.values(),
        planned.wanted,
        table_data(request, planned),
        failed=failures(request) | failed,
        overrides=request.overrides,
    )
    return publish_page(
        request, planned, page(timing), csv_text(timing), "tab:time", json_content(timing)
    )
