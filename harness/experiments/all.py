"""Everything in the paper's section 5, planned together: a cell that two artefacts need is run once.

Tuning comes first under budget paper, whose cells rest on its choice; the demo budgets have stored
choices. What the paper does not have (multiverse, simulate) is asked for by its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.compose import Budget
from harness.config import Cell, cell_key
from harness.errors import InputError
from harness.execution.plan import Plan
from harness.experiments import artefact, common
from harness.experiments.common import Request
from harness.zoo import Method

PARTS = ("table1", "table2", "table3", "table4", "figure3", "figure4", "figure5", "claims")


def choose_methods(word: str | None) -> tuple[Method, ...]:
    """Every row of every artefact. Raises InputError for a choice."""
    if word is not None:
        raise InputError(
            f"--methods '{word}': all has every row of every artefact; name one artefact to choose rows"
        )
    return common.choose_methods(None)


def parts(request: Request) -> list[Request]:
    """The request of each artefact, in the paper's order."""
    return [_part(request, target) for target in PARTS]


def before(request: Request) -> list[Request]:
    """What must be complete before the cells can be named: tuning, where its choice decides."""
    return [_part(request, "tuning")] if request.budget is Budget.paper else []


def cells(request: Request) -> Sequence[Cell]:
    """The cells of every artefact, each once, in the order in which they are first needed."""
    once: dict[str, Cell] = {}
    for part in parts(request):
        for cell in artefact(part.target).cells(part):
            once.setdefault(cell_key(cell), cell)
    return list(once.values())


def publish(request: Request, planned: Plan, failed: dict[str, str]) -> str:
    """Write every artefact's files; returns their last lines: where each was written."""
    said = []
    for part in parts(request):
        made = artefact(part.target)
        wanted = tuple(made.cells(part))
        keys = {cell_key(cell) for cell in wanted}
        own = Plan(
            wanted,
            {key: record for key, record in planned.stored.items() if key in keys},
            tuple(key for key in planned.stale if key in keys),
        )
        said.append(f"{part.target}: {made.publish(part, own, failed).splitlines()[-1]}")
    return "\n".join(said)


def _part(request: Request, target: str) -> Request:
    choose = getattr(artefact(target), "choose_methods", common.choose_methods)
    command = request.command.replace(" all", f" {target}", 1)
    return replace(request, target=target, methods=choose(None), command=command)
