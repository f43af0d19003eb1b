"""Claims: the paper's sentences as hypotheses, judged by the runs of Table 2 and Figure 3.

Those runs are the cells (same keys). What other artefacts have stored is read too: cold-start users are
a part of Table 2's, heatmaps, clusters and times are looked up and never run from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from harness.config import Cell, cell_key
from harness.errors import InputError, unknown
from harness.execution.plan import Plan, plan
from harness.experiments import artefact, common, figure3, table2, table3
from harness.experiments.common import Request, failures, publish_page, table_data
from harness.report.ablation import ABLATION_METRICS
from harness.report.claims import Claims, Evidence, Word, build_claims, means, peaks
from harness.report.claims_figure import claims_figure
from harness.report.claims_page import FIGURE, claims_json, claims_page, csv_text
from harness.report.cold_start import COLD
from harness.report.gather import TableData, gather
from harness.report.hypotheses import Elsewhere, Hypothesis, Peak, Sheet, read
from harness.report.tables import build_table
from harness.report.timing import build_timing
from harness.report.timing_page import claim_lines
from harness.run import Places
from harness.store import Record
from harness.zoo import METHODS, Method

FULL = figure3.FULL


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
    cold = _cold(planned, request.places)
    about = {
        name: f"{int(kept.sum()):,} of the {len(kept):,} test users of {name} are cold-start users"
        for name, kept in cold.items()
    }
    sheets = {
        Sheet.table2: means(found, data, metrics),
        Sheet.figure3: means(ablated, data, ABLATION_METRICS),
        Sheet.table3: means(found, data, ABLATION_METRICS, cold, about),
    }
    hypotheses = read()
    return build_claims(hypotheses, table, sheets, _evidence(request, data, hypotheses))


def _stored(planned: Plan, wanted: Sequence[Cell]) -> list[Record]:
    keys = {cell_key(cell) for cell in wanted}
    return [record for key, record in planned.stored.items() if key in keys]


def _cold(planned: Plan, places: Places) -> dict[str, Bool[ndarray, " user"]]:
    """By data set: which test users, in the order of a record's ranks, are Table 3's."""
    counted = table3.recorded(planned.wanted, places)
    return {name: np.asarray(before <= COLD) for name, before in counted.items()}


# ------------------------------------------------------------------- what other artefacts have stored


def _evidence(
    request: Request, data: Sequence[TableData], hypotheses: Sequence[Hypothesis]
) -> dict[str, Evidence]:
    """By hypothesis; without an entry for those whose artefact has nothing stored."""
    found: dict[str, Evidence] = {}
    sources = {"table4": _times, "figure5": _clusters}
    for one in hypotheses:
        if isinstance(one.test, Elsewhere) and one.test.target in sources:
            there = _look_up(request, one.test.target)
            said = there and sources[one.test.target](*there, data)
            if said:
                found[one.id] = said
    heatmaps = [one for one in hypotheses if isinstance(one.test, Peak)]
    there = _look_up(request, "figure4") if heatmaps else None
    return found | (_peaks(*there, heatmaps) if there else {})


def _times(_: Any, part: Request, planned: Plan, data: Sequence[TableData]) -> Evidence:
    """Table 4's ratios."""
    timing = build_timing(planned.stored.values(), planned.wanted, data, overrides=part.overrides)
    why = 'no test settles what is "comparable"; for the reader'
    return Evidence(Word.NOT_TESTABLE, why, claim_lines(timing)[1:])


def _clusters(module: Any, part: Request, planned: Plan, _: Sequence[TableData]) -> Evidence | None:
    """Figure 5's own judgement of what the eye is to see; None without a run of the MLP."""
    rows = module.rows(part)
    if all(rows[key].label == FULL.label for key in planned.stored):
        return None
    embedding = module.build(part, planned, failures(part))
    facts = tuple(
        f"{reading.data}: {reading.judgement.value}{f' ({reading.why})' if reading.why else ''}"
        for reading in embedding.readings
    )
    why = "by figure5's own rule, which is no test of the family"
    return Evidence(Word(embedding.judgement.value), why, facts)


def _peaks(
    module: Any, part: Request, planned: Plan, hypotheses: Sequence[Hypothesis]
) -> dict[str, Evidence]:
    """Figure 4's plateaus; the full model's own cell, which is Table 2's, makes no heatmap."""
    heatmaps = module.build(part, planned, failures(part))
    found = {}
    for one in hypotheses:
        assert isinstance(one.test, Peak)
        surfaces = {
            surface.data.name: surface
            for surface in heatmaps.surfaces
            if surface.panel.name == one.test.panel.value
        }
        if not any(len(surface.judged) > 1 for surface in surfaces.values()):
            continue
        plateaus, gaps = {}, {}
        for name, surface in surfaces.items():
            settings = [(spot.first, spot.second) for spot in surface.judged]
            if surface.statistics is None:
                gaps[name] = surface.why
            elif one.test.at not in settings:
                gaps[name] = f"no runs at {one.test.said}"
            else:
                plateaus[name] = (surface.statistics, settings.index(one.test.at))
                if len(settings) < len(surface.spots):
                    gaps[name] = (
                        f"{len(surface.spots) - len(settings)} of {len(surface.spots)} cells lack runs"
                    )
        found[one.id] = peaks(plateaus, one.test.said, gaps)
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
