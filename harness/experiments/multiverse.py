"""Multiverse: what the text leaves open, one reading at a time, M3BSR against its strongest rival.

The paper has no such table. Readings of the model (R1-R23, the set `repaired`) change M3BSR alone;
readings of the protocol (P1-P5) change the test for everyone, so the rival runs under them too. The
runs of the reading that the others start from are Table 2's (same keys).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from harness.compose import check_overrides, compose_cell
from harness.config import Cell, ProtocolConfig, cell_key
from harness.data.batches import TrainingSamples
from harness.errors import InputError, unknown
from harness.execution.plan import Plan, plan
from harness.experiments.common import (
    Request,
    check_model,
    check_split,
    failures,
    publish_page,
)
from harness.experiments.tuning import best_score
from harness.report.gather import TableData
from harness.report.multiverse import BASE, Kind, Panel, Specification, build_multiverse, diverged
from harness.report.multiverse_figure import draw
from harness.report.multiverse_page import csv_text, json_content, page
from harness.run import Places, open_dataset
from harness.store import Store
from harness.zoo import METHODS, Method, find
from models.readings import OPTIONS, SETS, Option, option, value_name

FULL = find("m3bsr")
RIVALS = tuple(method for method in METHODS if method != FULL)
PAPERS_RIVAL = find("ebm")
"""The highest HR@10 of the paper's baselines on both data sets."""


def _protocol(id_: str, path: str, why: str) -> Option:
    return option(ProtocolConfig(), id_, path, why)


PROTOCOL = (
    _protocol("P1", "scope", "50 most recent records: of the user, or of each behaviour"),
    _protocol("P2", "same_item_history", "what becomes of a target's own earlier events is not said"),
    _protocol("P3", "train_targets", "which interactions are training targets is not said"),
    _protocol("P4", "cutoff", "whether training may use what others did after a test is not said"),
    _protocol("P5", "negatives", '"randomly selected negative instances": from which distribution is not said'),
)  # fmt: skip
"""P1 to P5."""

IDS = (*(o.id for o in OPTIONS), *SETS, *(o.id for o in PROTOCOL))
"""What --methods may name, in the order of printing."""


def choose_methods(word: str | None) -> tuple[Method, ...]:
    """`--methods r4,r6=noise,repaired,p2`: some of the readings; what they start from comes with them.

    Raises InputError for another name, or for a value that a reading does not have.
    """
    if word is None:
        return (FULL, *(replace(FULL, label=name) for name in IDS))
    named = [name.strip() for name in word.split(",") if name.strip()]
    if not named:
        raise InputError(f"--methods '{word}' names no reading; choose from: {', '.join(IDS)}")
    chosen = set()
    for name in named:
        start, equals, value = name.partition("=")
        known = next((id_ for id_ in IDS if id_.lower() == start.lower()), None)
        if known is None:
            raise unknown("reading", start, IDS)
        if equals:
            values = next((o.values for o in (*OPTIONS, *PROTOCOL) if o.id == known), ())
            names = [value_name(one) for one in values]
            if value not in names:
                raise unknown(f"value of {known}", value, names)
        chosen.add(known + equals + value)
    order = [known for name in chosen for known in IDS if known == name.partition("=")[0]]
    rows = sorted(zip(order, chosen, strict=True), key=lambda row: (IDS.index(row[0]), row[1]))
    return (FULL, *(replace(FULL, label=name) for _, name in rows))


# ------------------------------------------------------------------------------------- the rival


@dataclass(frozen=True)
class Rival:
    """Whom M3BSR is held against on one data set."""

    method: Method
    cell: Cell
    """Table 2's, seed 0."""
    why: str
    """How it was chosen, as a sentence goes on after its name."""


def rival(request: Request, name: str) -> Rival:
    """The best of Table 2's stored runs by validation NDCG@10; never by the test.

    A choice is only made with the paper's strongest baseline among the stored: until then it is the
    rival. A method that is stored later may take its place.
    """
    cells = {
        method.key: compose_cell(method, name, request.budget, request.overrides, request.tuned)
        for method in RIVALS
    }
    scores: dict[str, float] = {}
    for key, cell in cells.items():
        found = plan(_seeds(request, cell), request.places).stored.values()
        known = [best_score(record)[0] for record in found if record.curve]
        if known:
            scores[key] = mean(known)
    if PAPERS_RIVAL.key not in scores or len(scores) == 1:
        return Rival(
            PAPERS_RIVAL,
            cells[PAPERS_RIVAL.key],
            "the highest HR@10 of the paper's baselines, as Table 2 is not stored under these settings",
        )
    best = max(scores, key=lambda key: scores[key])
    count = f"{len(scores)} methods with runs here, of the {len(RIVALS)} that Table 2 has beside {FULL.label}"
    return Rival(
        find(best),
        cells[best],
        f"the highest validation NDCG@10, {scores[best]:.4f}, of the {count}; the test chose nothing",
    )


def _seeds(request: Request, cell: Cell) -> tuple[Cell, ...]:
    """A cell's runs; seed 0 is the tuning seed, so they count from 1 as in Table 2."""
    return tuple(replace(cell, seed=seed) for seed in range(1, request.seeds + 1))


# ------------------------------------------------------------------------------------- the cells


def cells(request: Request) -> Sequence[Cell]:
    """Readings x seeds of M3BSR on each data set, and the rival's, each cell once.

    Raises InputError for settings that do not fit each other, or that leave nothing to train on.
    """
    once: dict[str, Cell] = {}
    for panel in panels(request, checked=True):
        for row in panel.specifications:
            for cell in (*row.cells, *row.rival):
                once.setdefault(cell_key(cell), cell)
    return list(once.values())


def later(request: Request) -> str:
    """What a plan has to say: how many readings there are, and who the rival is."""
    made = panels(request)
    rows = "; ".join(
        f"{len(panel.specifications)} readings on {panel.data.name}, against {panel.rival.label} "
        f"({panel.why_rival})"
        for panel in made
    )
    return f"{rows}. A method of Table 2 that validates better, once stored, becomes the rival."


def panels(request: Request, *, checked: bool = False) -> list[Panel]:
    """Every data set's readings with their cells.

    Args:
        request: Which readings, data sets, runs and settings.
        checked: Whether to raise InputError for settings that cannot be used.
    """
    rivals = {name: rival(request, name) for name in request.names}
    if checked:
        methods = dict.fromkeys((FULL, *(one.method for one in rivals.values())))
        check_overrides(methods, request.overrides)
    made = []
    for name, one in rivals.items():
        base = compose_cell(FULL, name, request.budget, request.overrides, request.tuned)
        if checked:
            check_model(base)
            check_model(one.cell)
            check_split(base, request.places)
        rows = tuple(_specifications(request, base, one.cell, checked=checked))
        made.append(Panel(rows[0].data, one.method, one.why, rows))
    return made


def _specifications(
    request: Request, base: Cell, rival_cell: Cell, *, checked: bool
) -> Iterator[Specification]:
    """The reading that the others start from, then every other one that was asked for."""
    places, wanted = request.places, [method.label for method in request.methods[1:]]
    runs, rivals = _seeds(request, base), _seeds(request, rival_cell)
    data = _table_data(base, places)
    own = [f"{o.id} {value_name(o.of(base.model))}" for o in OPTIONS]
    yield Specification(
        BASE, Kind.BASE, "", "", "", "what the others start from", (), runs, rivals, data
    )
    seen = [base.model]
    for o in OPTIONS:
        for value in _asked(o, o.others(base.model), wanted):
            cell = replace(base, model=o.taken(base.model, value))
            if checked:
                check_model(cell)
            seen.append(cell.model)
            yield Specification(
                o.id, Kind.MODEL, o.path, value_name(value), value_name(o.of(base.model)), o.why,
                (f"{o.id} {value_name(value)}",), _seeds(request, cell), rivals, data,
            )  # fmt: skip
    for name, (changed, why) in SETS.items():
        cell = replace(base, model=changed(base.model))  # type: ignore[arg-type]
        if name not in wanted or cell.model in seen:  # a reading's overrides may be the set already
            continue
        values = [f"{o.id} {value_name(o.of(cell.model))}" for o in OPTIONS]
        turned = tuple(value for value in values if value not in own)
        yield Specification(
            name, Kind.SET, "", "", "", why, turned, _seeds(request, cell), rivals, data
        )
    for o in PROTOCOL:
        for value in _asked(o, o.others(base.protocol), wanted):
            protocol = o.taken(base.protocol, value)
            theirs = o.taken(rival_cell.protocol, value)
            both = replace(base, protocol=protocol), replace(rival_cell, protocol=theirs)
            reason = _unusable(request, both)
            mine, its = ((), ()) if reason else (_seeds(request, cell) for cell in both)
            yield Specification(
                o.id, Kind.PROTOCOL, o.path, value_name(value), value_name(o.of(base.protocol)),
                o.why, (f"{o.id} {value_name(value)}",), mine, its,
                _table_data(both[0], places), reason,
            )  # fmt: skip


def _asked(o: Option, values: Sequence[object], wanted: Sequence[str]) -> list[object]:
    """The other values of an option that the command line asked for."""
    return [value for value in values if o.id in wanted or f"{o.id}={value_name(value)}" in wanted]


def _table_data(cell: Cell, places: Places) -> TableData:
    """The data set as its page names it, with the candidates of the cell's protocol."""
    dataset = open_dataset(places.data, cell.data)
    return TableData(
        name=cell.data,
        demo=dataset.demo,
        data_sha256=dataset.data_sha256,
        candidates_sha256=dataset.candidates_sha256(cell.protocol),
    )


def _unusable(request: Request, both: tuple[Cell, Cell]) -> str:
    """Why a reading of the protocol leaves nothing to train on or to test; empty where it does not.

    Such a reading is a row without runs, not an end of everything. Stored runs are proof enough.
    """
    folder = Store(request.places.results).cells
    first = [folder / cell_key(replace(cell, seed=1)) / "record.json" for cell in both]
    if all(path.is_file() for path in first):
        return ""
    protocol, name = both[0].protocol, both[0].data
    try:
        split = open_dataset(request.places.data, name).split(protocol, both[0].users)
    except InputError as error:
        return str(error).split(" under protocol")[0]
    if len(split.test.user) < 2:
        return f"{len(split.test.user)} test users"
    if not len(split.validation.user):
        return "no validation users"
    for cell in both:
        samples = find(cell.method).load()[0].samples
        if not len(TrainingSamples(split, samples, protocol, cell.train)):
            return f"no training samples of {find(cell.method).label}"
    return ""


# -------------------------------------------------------------------------------------- the page


def publish(request: Request, planned: Plan, failed: dict[str, str]) -> str:
    """Write table.md, .csv, .tex, .json and the figure; returns what a terminal shows."""
    failed = failures(request) | failed
    made = build_multiverse(
        planned.stored,
        panels(request),
        failed=failed,
        seeds=request.seeds,
        budget_name=request.budget.name,
        overrides=request.overrides,
        options=(*OPTIONS, *PROTOCOL),
    )
    results = {key for key, reason in failed.items() if diverged(reason)}
    kept = tuple(cell for cell in planned.wanted if cell_key(cell) not in results)
    return publish_page(
        request, replace(planned, wanted=kept), page(made), csv_text(made), "tab:multiverse",
        json_content(made), figures={"multiverse": draw(made)},
    )  # fmt: skip
