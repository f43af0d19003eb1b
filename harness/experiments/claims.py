"""Claims: the paper's sentences as hypotheses, judged by the runs of Table 2 and Figure 3.

Those runs are the cells (same keys). What other artefacts have stored is read too: cold-start users are
a part of Table 2's, heatmaps, clusters and times are looked up and never run from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from harness.config import Cell, cell_key
from harness.errors import InputError, unknown
from harness.execution.plan import Plan, plan
from harness.experiments import artefact, common, figure3, table2
from harness.experiments.common import Request, failures, publish_page, table_data
from harness.report.ablation import ABLATION_METRICS
from harness.report.claims import Claims, Evidence, Word, build_claims, means
from harness.report.claims_figure import claims_figure
from harness.report.claims_page import FIGURE, claims_json, claims_page, csv_text
from harness.report.gather import TableData, gather
from harness.report.hypotheses import Sheet, read
from harness.report.tables import build_table
from harness.report.timing import build_timing, claim_lines
from harness.run import open_dataset
from harness.store import Record
from harness.zoo import METHODS, Method

FULL = figure3.FULL
COLD = 10
"""Most recorded interactions before the test favor of a cold-start user (section 5.5)."""
TIMES = "C14"
"""The sentence that Table 4 answers."""


def choose_methods(word: str | None) -> tuple[Method, ...]:
    """`--methods ebm,w/o MEIE`: rows of Table 2 and removals of Figure 3; M3BSR always comes with them.

    A sentence about rows that were left out is not testable. Raises InputError for another name.
    """
    removals = tuple(row for row in figure3.choose_methods(None) if row.label in figure3.REMOVALS)
    rows = (*METHODS, *removals)
    if word is None:
        return rows
    names = [name.strip() for name in word.split(",") if name.strip()]
    if not names:
        raise InputError(f"--methods '{word}' names no row; choose from: "
                         f"{', '.join([m.key for m in METHODS] + [m.label for m in removals])}")  # fmt: skip
    known = {name.lower(): row.label for row in METHODS for name in (row.key, row.label)}
    known |= {row.label.lower(): row.label for row in removals}
    known |= {row.label.lower().removeprefix("w/o "): row.label for row in removals}
    chosen = {FULL.label}
    for name in names:
        if name.lower() not in known:
            choices = [m.key for m in METHODS] + [m.label for m in removals]
            raise unknown("row of Table 2 or Figure 3", name, choices)
        chosen.add(known[name.lower()])
    return tuple(row for row in rows if row.label in chosen)


def cells(request: Request) -> Sequence[Cell]:
    """The cells of Table 2 and of Figure 3, each once."""
    made = (*table2.cells(_table2(request)), *figure3.cells(_figure3(request)))
    return list({cell_key(cell): cell for cell in made}.values())


def _table2(request: Request) -> Request:
    rows = tuple(row for row in request.methods if row.label not in figure3.REMOVALS)
    return replace(request, target="table2", methods=rows)


def _figure3(request: Request) -> Request:
    rows = tuple(row for row in request.methods if row.label in figure3.REMOVALS)
    return replace(request, target="figure3", methods=(FULL, *rows))


def publish(request: Request, planned: Plan, failed: dict[str, str]) -> str:
    """Write table.md, .csv, .tex and .json below results/tables; returns what a terminal shows."""
    claims = build(request, planned, failures(request) | failed)
    return publish_page(
        request, planned, claims_page(claims), csv_text(claims), "tab:claims", claims_json(claims),
        {FIGURE: claims_figure(claims)},
    )  # fmt: skip


def build(request: Request, planned: Plan, failed: dict[str, str]) -> Claims:
    """Every sentence, judged by what is stored."""
    data = table_data(request, planned)
    two, three = _table2(request), _figure3(request)
    wanted = table2.cells(two)
    table = build_table(
        _stored(planned, wanted), wanted, data, failed=failed, target=request.target,
        searches=table2.searches(two), budget_name=request.budget.name, overrides=request.overrides,
    )  # fmt: skip
    found = gather(_stored(planned, wanted), wanted, data, failed)
    removed = figure3.cells(three)
    ablated = gather(_stored(planned, removed), removed, data, failed, figure3.rows(three))
    metrics = tuple(dict.fromkeys(column.metric for column in table.columns))
    cold = {one.name: _cold(request, one, wanted[0]) for one in data}
    about = {
        name: f"{int(kept.sum()):,} of the {len(kept):,} test users of {name} are cold-start users"
        for name, kept in cold.items()
    }
    sheets = {
        Sheet.table2: means(found, data, metrics),
        Sheet.figure3: means(ablated, data, ABLATION_METRICS),
        Sheet.table3: means(found, data, ABLATION_METRICS, cold, about),
    }
    return build_claims(read(), table, sheets, _evidence(request, data))


def _stored(planned: Plan, wanted: Sequence[Cell]) -> list[Record]:
    keys = {cell_key(cell) for cell in wanted}
    return [record for key, record in planned.stored.items() if key in keys]


def _cold(request: Request, data: TableData, cell: Cell) -> Bool[ndarray, " user"]:
    """Which test users of a data set, in the order of a record's ranks, have a short history.

    All events recorded before the test favor count, before any reading drops one.
    """
    split = open_dataset(request.places.data, data.name).split(cell.protocol, cell.users)
    before = split.test.position - split.events.offsets[split.test.user]
    return np.asarray(before <= COLD)


# ------------------------------------------------------------------- what other artefacts have stored


def _evidence(request: Request, data: Sequence[TableData]) -> dict[str, Evidence]:
    """By hypothesis; without an entry for those whose artefact has nothing stored."""
    found = {}
    times = _look_up(request, "table4")
    if times is not None:
        _, part, planned = times
        timing = build_timing(
            planned.stored.values(), planned.wanted, data, overrides=part.overrides
        )
        why = 'no test settles what is "comparable"; for the reader'
        found[TIMES] = Evidence(Word.NOT_TESTABLE, why, claim_lines(timing)[1:])
    return found


def _look_up(request: Request, target: str) -> tuple[ModuleType, Request, Plan] | None:
    """Another artefact's stored cells under the same settings; None where there are none."""
    try:
        module = artefact(target)
        choose = getattr(module, "choose_methods", common.choose_methods)
        part = replace(request, target=target, methods=choose(None))
        planned = plan(module.cells(part), request.places)
    except (InputError, ModuleNotFoundError):
        return None
    return (module, part, planned) if planned.stored else None
