"""Planted worlds: does each part of M3BSR earn its keep where the paper says, and only there?

Every sweep turns one knob of a generated world (`harness.data.demo`): accidental clicks (CDMD-B),
noise in the vectors (CDMD-M), how differently image and text move clicks and favors (MEIE, shared
expert). At each value the full model and the model without the part run with the settings of the data
set itself; at the data set's own value these are the cells of Table 2 and Figure 3. Only here is a
world's truth read: for the share of the planted noise that CDMD-M takes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from harness.compose import Budget, check_overrides, compose_cell
from harness.config import Cell, ProtocolConfig, cell_key
from harness.data.demo import agreement, ensure_world, preference, truth_of, world_of
from harness.data.synthetic import WorldConfig
from harness.errors import InputError, unknown
from harness.execution.plan import Plan
from harness.experiments.common import (
    Request,
    check_cells,
    failures,
    publish_page,
)
from harness.report.gather import TableData
from harness.report.noise import feature, removed, same_feature
from harness.report.simulate import (
    KNOBS,
    Noise,
    Point,
    Sweep,
    WorldFacts,
    build_simulation,
    simulate_json,
    unique_cells,
)
from harness.report.simulate_figure import simulate_figure
from harness.report.simulate_page import FIGURE, csv_text, simulate_page
from harness.run import open_dataset
from harness.store import Store
from harness.zoo import Method, find
from models.variants import VARIANTS

FULL = find("m3bsr")
VALUES = {"accident": (0.0, 0.2, 0.35), "nuisance": (0.0, 2.0, 3.0), "preference": (0.0, 1.5)}
"""Of each sweep, beside the data set's own value."""
MODES = ("image", "text")


def choose_methods(word: str | None) -> tuple[Method, ...]:
    """`--methods accident,nuisance`: some of the sweeps. Raises InputError for another name."""
    chosen = list(KNOBS)
    if word is not None:
        chosen = [name.strip().lower() for name in word.split(",") if name.strip()]
        if not chosen:
            raise InputError(f"--methods '{word}' names no sweep; choose from: {', '.join(KNOBS)}")
        for name in chosen:
            if name not in KNOBS:
                raise unknown("sweep", name, KNOBS)
    return tuple(replace(FULL, label=name) for name in KNOBS if name in chosen)


def cells(request: Request) -> Sequence[Cell]:
    """Worlds x rows x seeds; worlds that are not there are generated.

    Raises InputError for data that were not generated, for settings that do not fit each other, and
    when the overrides have taken a part out that a removal is to take out.
    """
    check_overrides((FULL,), request.overrides)
    made = unique_cells(cell for _, cell in _grid(request, sweeps(request)))
    check_cells(made, request.places)
    return made


def rows(request: Request) -> dict[str, Method]:
    """The row of every cell, by key: the full model, or a removal by Figure 3's name."""
    return {
        cell_key(cell): replace(FULL, label=label)
        for label, cell in _grid(request, sweeps(request))
    }


def sweeps(request: Request) -> tuple[Sweep, ...]:
    """The sweeps of every data set; their worlds are there when this returns.

    Budget smoke has two values a sweep, 0 and the data set's own.
    """
    made = []
    for name in request.names:
        base = world_of(request.places.data, name)
        for knob in KNOBS.values():
            if not any(method.label == knob.name for method in request.methods):
                continue
            own = 1.0 if knob.name == "preference" else float(getattr(base, knob.name))
            values = {own, *VALUES[knob.name]}
            if request.budget is Budget.smoke:
                values = {0.0, own} if own else {0.0, VALUES[knob.name][-1]}
            points = []
            for value in sorted(values):
                world = name if value == own else f"{name}-{knob.name}-{value:g}"
                if world != name:
                    config = _turned(request.places.data, name, knob.name, value)
                    ensure_world(request.places.data, world, config)
                points.append(Point(value, world))
            made.append(Sweep(knob, name, own, tuple(points)))
    return tuple(made)


@cache
def _turned(root: Path, name: str, knob: str, value: float) -> WorldConfig:
    """The world of a data set with one knob turned."""
    base = world_of(root, name)
    changed: dict[str, Any] = {knob: value}
    return preference(base, value) if knob == "preference" else replace(base, **changed)


def _grid(request: Request, planned: Sequence[Sweep]) -> Iterator[tuple[str, Cell]]:
    """Every cell with its row's label, the full model first; runs count from seed 1, as in Table 2.

    The settings are those of the sweep's data set (what tuning chose on it) in all its worlds.
    """
    for sweep in planned:
        full = compose_cell(FULL, sweep.data, request.budget, request.overrides, request.tuned)
        of_row = {FULL.label: full}
        for part in sweep.knob.parts:
            of_row[part] = replace(full, model=VARIANTS[part](full.model))  # type: ignore[arg-type]
            if cell_key(of_row[part]) == cell_key(full):
                raise InputError(
                    f"'{part}' takes out what the settings of {FULL.label} on {sweep.data} lack "
                    f"already; leave that override out, or the sweep '{sweep.knob.name}' (--methods)"
                )
        for label, cell in of_row.items():
            for point in sweep.points:
                for seed in range(1, request.seeds + 1):
                    yield label, replace(cell, data=point.world, seed=seed)


def publish(request: Request, planned: Plan, failed: dict[str, str]) -> str:
    """Write table.md, .csv, .tex, .json and the figure; returns what a terminal shows."""
    turned = sweeps(request)
    names = list(dict.fromkeys(point.world for sweep in turned for point in sweep.points))
    protocol, limit = planned.wanted[0].protocol, planned.wanted[0].users
    simulation = build_simulation(
        planned.stored.values(),
        planned.wanted,
        [_table_data(request, name, protocol) for name in names],
        rows(request),
        turned,
        people={name: _people(request, name, protocol, limit) for name in names},
        noise=_noise(request, planned, turned),
        facts=[_facts(request, name, protocol, limit) for name in names],
        failed=failures(request) | failed,
        budget_name=request.budget.name,
        overrides=request.overrides,
    )
    return publish_page(
        request, planned, simulate_page(simulation), csv_text(simulation), "tab:simulate",
        simulate_json(simulation), figures={FIGURE: simulate_figure(simulation)},
    )  # fmt: skip


def _table_data(request: Request, name: str, protocol: ProtocolConfig) -> TableData:
    dataset = open_dataset(request.places.data, name)
    return TableData(name, dataset.demo, dataset.data_sha256, dataset.candidates_sha256(protocol))


def _people(
    request: Request, name: str, protocol: ProtocolConfig, limit: int
) -> Int[ndarray, " user"]:
    """Who a world's test users are: their numbers in the generator, the same in all its worlds."""
    dataset = open_dataset(request.places.data, name)
    tested = dataset.split(protocol).test.user.numpy()
    numbers: ndarray = dataset.array("user_number")[tested]
    return numbers[:limit] if limit else numbers


def _facts(request: Request, name: str, protocol: ProtocolConfig, limit: int) -> WorldFacts:
    manifest = open_dataset(request.places.data, name).manifest
    return WorldFacts(
        world=name,
        events=int(manifest["counts"]["interactions"]),
        accidental_clicks=int(manifest["accidental_clicks"]),
        favors=int(manifest["counts"]["favors"]),
        users=len(_people(request, name, protocol, limit)),
        agreement=agreement(world_of(request.places.data, name)),
    )


def _noise(request: Request, planned: Plan, turned: Sequence[Sweep]) -> list[Noise]:
    """What CDMD-M took out in every world of the nuisance sweeps, by the models of seed 1."""
    keys = {
        cell.data: cell_key(cell)
        for label, cell in _grid(request, turned)
        if label == FULL.label and cell.seed == 1
    }
    return [
        _noise_of(request, planned, sweep.data, point, mode, keys[point.world])
        for sweep in turned
        if sweep.knob.name == "nuisance"
        for point in sweep.points
        for mode in MODES
    ]


def _noise_of(
    request: Request, planned: Plan, data: str, point: Point, mode: str, key: str
) -> Noise:
    """One modality in one world: raw and denoised features as stored, clean ones from the truth."""
    arrays = Store(request.places.results).arrays(key) if key in planned.stored else {}
    needed = ("item", f"{mode}_raw", f"{mode}_denoised", f"{mode}_project_weight")
    if any(name not in arrays for name in needed):
        why = f"no features of the model of seed 1 are stored (cell {key[:12]})"
        return Noise(data, point, mode, None, why=why)
    dataset = open_dataset(request.places.data, point.world)
    item = arrays["item"].astype(np.int64)
    there = dataset.array(f"{mode}_present")[item]
    row, item = np.nonzero(there)[0], item[there]
    raw = arrays[f"{mode}_raw"][row]
    if len(row) < 2 or not same_feature(feature(dataset.array(mode)[item], arrays, mode), raw):
        return Noise(data, point, mode, None, why=f"features of cell {key[:12]} are of other items")
    truth = truth_of(request.places.data, point.world)
    clean = feature(truth[f"clean_{mode}"][item - 1], arrays, mode)  # row 0 is padding
    return Noise(data, point, mode, removed(raw, arrays[f"{mode}_denoised"][row], clean), key)


assert set(VALUES) == set(KNOBS)
assert {knob for knob in KNOBS if knob != "preference"} < set(asdict(WorldConfig()))
