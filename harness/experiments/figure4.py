"""Figure 4: M3BSR's sensitivity to the steps and the weight of each denoising stage, and to tau.

A cell changes the two settings of its panel and nothing else; where they are the full model's own it
is Table 2's cell (same key). `diffusion.steps_b` and `steps_m` move the steps of one stage alone.

Runs: `--seeds N` gives every cell N. Without it: budget paper its 5, smoke 1; quick 1, and at the
paper's peak 3 (Table 2's where the settings are), whose spread the other cells are read by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from harness.compose import Budget, check_overrides, compose_cell
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
from harness.experiments.tuning import with_settings
from harness.report.export import written
from harness.report.heatmap import (
    NAMES,
    Heatmaps,
    Panel,
    Place,
    build_heatmaps,
    heatmaps_json,
    lines,
    panels,
)
from harness.report.heatmap_figure import heatmap_figure
from harness.report.heatmap_page import FIGURE, heatmap_page
from harness.zoo import Method, find

FULL = find("m3bsr")
SETTINGS = {
    "behaviour": ("model.diffusion.steps_b", "model.loss.lambda_b"),
    "modality": ("model.diffusion.steps_m", "model.loss.lambda_m"),
    "contrastive": ("model.loss.tau", "model.loss.lambda_c"),
}
"""What a panel's rows and columns set."""
STEPS = "model.diffusion.steps"
"""What a stage's own steps stand in for, where they are 0."""
NEEDS = {
    "behaviour": ("parts.behavior_denoiser", ("diffusion",)),
    "modality": ("parts.modality_denoiser", ("diffusion",)),
    "contrastive": ("parts.experts", (True,)),
}
"""The part that a panel's settings are of, and the choices under which it is there."""
TEMPERED = ("disent.loss", ("printed", "separate"))
"""Under `orthogonal` nothing reads the temperature."""


def choose_methods(word: str | None) -> tuple[Method, ...]:
    """`--methods behaviour,contrastive`: some of the panels. Raises InputError for another name."""
    chosen = set(NAMES)
    if word is not None:
        chosen = {_spelled(name) for name in word.split(",") if name.strip()}
        if not chosen:
            raise InputError(f"--methods '{word}' names no panel; choose from: {', '.join(NAMES)}")
        for name in sorted(chosen - set(NAMES)):
            raise unknown("panel of Figure 4", name, NAMES)
    return tuple(replace(FULL, label=name) for name in NAMES if name in chosen)


def _spelled(name: str) -> str:
    """A panel's name, however "behaviour" is spelled."""
    return name.strip().lower().replace("behavior", "behaviour")


def chosen_panels(request: Request) -> list[Panel]:
    """The panels asked for; budget smoke has the settings alone that the paper's text names."""
    every = panels(named_only=request.budget is Budget.smoke)
    return [every[method.label] for method in request.methods]


def runs_a_cell(request: Request) -> int:
    """Runs of every cell but that at the paper's peak, which has `request.seeds`."""
    all_alike = request.seeds_typed or request.budget is Budget.paper
    return request.seeds if all_alike else 1


def cells(request: Request) -> Sequence[Cell]:
    """Panels x their settings x data sets x runs, a cell that panels share once.

    Raises InputError for settings that do not fit each other, for readings that leave nothing to train
    on, and for overrides that take out what a panel is about, or that every panel sets.
    """
    check_overrides((FULL,), request.overrides)
    _refuse_axes(request)
    full_models = _full(request)
    check_cells(full_models.values(), request.places)
    for name, full in full_models.items():
        for panel in chosen_panels(request):
            _refuse_missing_part(panel, name, full)
    return list({cell_key(cell): cell for _, cell in _grid(request)}.values())


def later(request: Request) -> str:
    """What a plan has to say of the number of cells."""
    chosen = chosen_panels(request)
    sizes = " + ".join(f"{len(p.first.values)} x {len(p.second.values)}" for p in chosen)
    settings = {cell_key(replace(cell, seed=0)) for _, cell in _grid(request)}
    every = runs_a_cell(request)
    peak = "" if request.seeds == every else f", {request.seeds} at the paper's peaks"
    return (
        f"{', '.join(panel.name for panel in chosen)}: {sizes} cells on {len(request.names)} data "
        f"set{'s' * (len(request.names) > 1)}, {len(settings)} different settings; "
        f"{every} run{'s' * (every > 1)} each{peak}. A cell's time grows with its denoising steps."
    )


def _full(request: Request) -> dict[str, Cell]:
    """Table 2's full model on each data set, seed 0."""
    return {
        name: compose_cell(FULL, name, request.budget, request.overrides, request.tuned)
        for name in request.names
    }


def _grid(request: Request) -> Iterator[tuple[Place, Cell]]:
    """Every run with its place; runs count from seed 1, as in Table 2. Panels share cells."""
    every = runs_a_cell(request)
    for name, full in _full(request).items():
        for panel in chosen_panels(request):
            for first, second in panel.places:
                cell = with_settings(full, _settings(panel, full, first, second))
                count = request.seeds if (first, second) == panel.peak else every
                for seed in range(1, count + 1):
                    yield (panel.name, name, first, second), replace(cell, seed=seed)


def _settings(panel: Panel, full: Cell, first: Decimal, second: Decimal) -> dict[str, Any]:
    """What a place sets; steps that a stage has already are left as they are, so that keys agree."""
    rows, columns = SETTINGS[panel.name]
    made: dict[str, Any] = {columns: float(second)}
    if rows.startswith(STEPS):
        steps = int(first)
        if steps != _steps(full, rows):
            made[rows] = 0 if steps == _read(full, STEPS) else steps
    else:
        made[rows] = float(first)
    return made


def _steps(full: Cell, key: str) -> int:
    """Steps of one stage."""
    return int(_read(full, key) or _read(full, STEPS))


def _read(cell: Cell, key: str) -> Any:
    """A dotted setting."""
    value: Any = plain(cell)
    for name in key.split("."):
        value = value[name]
    return value


def _at_full(panel: Panel, full: Cell) -> tuple[Decimal, Decimal]:
    """A panel's two settings as the full model has them."""
    rows, columns = SETTINGS[panel.name]
    first = _steps(full, rows) if rows.startswith(STEPS) else _read(full, rows)
    return Decimal(str(first)), Decimal(str(_read(full, columns)))


def _refuse_axes(request: Request) -> None:
    """Raise InputError for an override of a setting that every chosen panel sets itself."""
    for word in request.overrides:
        key = word.partition("=")[0]
        if all(key in SETTINGS[method.label] for method in request.methods):
            named = ", ".join(method.label for method in request.methods)
            raise InputError(f"'{word}': {key} is an axis of {named}; leave the override out")


def _refuse_missing_part(panel: Panel, name: str, full: Cell) -> None:
    """Raise InputError where the settings lack what a panel's settings are of."""
    needs = [NEEDS[panel.name], *([TEMPERED] if panel.name == "contrastive" else [])]
    for key, choices in needs:
        value = _read(full, f"model.{key}")
        if value not in choices:
            others = [other for other in NAMES if other != panel.name]
            raise InputError(
                f"model.{key}={value} on {name} leaves the panel '{panel.name}' nothing to move; leave "
                f"it out, or choose other panels: --methods {','.join(others)}"
            )


def rows(request: Request) -> tuple[dict[Place, str], dict[str, Method]]:
    """The row of every place, and of every cell by key: a setting is named by its own hash."""
    places: dict[Place, str] = {}
    of_key: dict[str, Method] = {}
    for place, cell in _grid(request):
        setting = cell_key(replace(cell, seed=0))
        places[place] = setting
        of_key[cell_key(cell)] = replace(FULL, label=setting)
    return places, of_key


def build(request: Request, planned: Plan, failed: Mapping[str, str]) -> Heatmaps:
    """Every surface from what is stored."""
    places, of_key = rows(request)
    chosen = chosen_panels(request)
    return build_heatmaps(
        planned.stored.values(),
        planned.wanted,
        table_data(request, planned),
        chosen,
        places,
        of_key,
        {
            (panel.name, name): _at_full(panel, full)
            for name, full in _full(request).items()
            for panel in chosen
        },
        per_spot=runs_a_cell(request),
        at_peak=request.seeds,
        failed=failed,
        budget_name=request.budget.name,
        overrides=request.overrides,
    )


def publish(request: Request, planned: Plan, failed: dict[str, str]) -> str:
    """Write table.md, .csv, .tex, .json and the figure; returns what a terminal shows."""
    heatmaps = build(request, planned, failures(request) | failed)
    return publish_page(
        request, planned, heatmap_page(heatmaps), _csv(heatmaps), "tab:sensitivity",
        heatmaps_json(heatmaps), figures={FIGURE: heatmap_figure(heatmaps)},
    )  # fmt: skip


def _csv(heatmaps: Heatmaps) -> str:
    """One line a cell, numbers in full, nothing for null."""
    return written([line for surface in heatmaps.surfaces for line in lines(surface)])


assert set(SETTINGS) == set(NEEDS) == set(NAMES)
