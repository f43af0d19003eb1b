"""Figure 4 from stored records: HR@10 over two settings of M3BSR at a time, and where its peak may be.

A surface is one panel on one data set: first setting (rows) x second setting (columns). It is judged
as the protocol says (Statistics, heatmap); nothing here chooses a setting for any other artefact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np

from harness import stats
from harness.config import Cell
from harness.report.beside import Published
from harness.report.export import finite, heading
from harness.report.gather import Gathered, Runs, TableData, gather
from harness.stats import Judgement, Moments, Plateau
from harness.stats.spread import equal_spread
from harness.store import Record
from harness.zoo import Method

METRIC = "HR@10"
"""What Figure 4 shows."""


@dataclass(frozen=True)
class Axis:
    """One setting of a panel."""

    label: str
    values: tuple[Decimal, ...]
    """Ascending, as printed."""


@dataclass(frozen=True)
class Panel:
    """Two settings that are moved together, everything else being the full model's."""

    name: str
    """On the command line."""
    title: str
    figures: str
    """The paper's panels."""
    first: Axis
    second: Axis
    peak: tuple[Decimal, Decimal]
    """Where the paper has its highest value."""
    printed: str
    """Which of the paper's printed cells are of this panel."""

    @property
    def places(self) -> tuple[tuple[Decimal, Decimal], ...]:
        """Every pair of settings, row by row."""
        return tuple((one, two) for one in self.first.values for two in self.second.values)


STEPS, TEMPERATURE = "steps_x_weight", "temperature_x_weight"
NAMES = ("behaviour", "modality", "contrastive")
"""The panels, in the order of the page."""


def panels(*, named_only: bool = False) -> dict[str, Panel]:
    """The three panels; with `named_only` the settings alone that the paper's text names.

    The axes are a guess (results/paper/published.yaml): the paper's figure prints no numbers, its text
    a few cells.
    """
    paper = Published.read().paper
    guess, best = paper.content["figure4"]["axes_guess"], paper.content["settings"]["best"]

    def axis(label: str, guessed: str, printed: str, place: int, *among: Decimal) -> Axis:
        named = {
            (cell.first, cell.second)[place] for cell in paper.figure4 if cell.panel == printed
        }
        values = {Decimal(value) for value in guess[guessed]}
        return Axis(label, tuple(sorted(named if named_only else values | named | set(among))))

    made = {}
    for name, title, figures, printed, rows, columns in (
        ("behaviour", "Behaviour denoising", "4a and 4d", STEPS,
         ("denoising steps", "steps", "diffusion_steps"),
         ("loss weight lambda_b", "weight", "behavior_loss_weight")),
        ("modality", "Modality denoising", "4b and 4e", STEPS,
         ("denoising steps", "steps", "diffusion_steps"),
         ("loss weight lambda_m", "weight", "modality_loss_weight")),
        ("contrastive", "Contrastive loss", "4c and 4f", TEMPERATURE,
         ("temperature τ", "temperature", "temperature"),
         ("loss weight lambda_c", "weight", "contrastive_weight")),
    ):  # fmt: skip
        peak = (Decimal(best[rows[2]]), Decimal(best[columns[2]]))
        first = axis(rows[0], rows[1], printed, 0, peak[0])
        second = axis(columns[0], columns[1], printed, 1, peak[1])
        made[name] = Panel(name, title, figures, first, second, peak, printed)
    return made


def pair(first: Decimal, second: Decimal) -> str:
    """`10 / 0.02`."""
    return f"{first} / {second}"


@dataclass(frozen=True)
class Spot:
    """One cell of a surface."""

    first: Decimal
    second: Decimal
    mean: float | None
    """None without runs. With one run a cell: of one run, at the paper's peak too."""
    runs: tuple[str, ...]
    """Keys of the records in the mean."""
    complete: bool
    """Whether it has the runs that every cell is to have; only then it is judged."""
    gaps: tuple[str, ...]
    """`seed 2: why` of every run asked for and not there."""
    plateau: bool = False
    """It may be the peak: not told from the highest."""
    highest: bool = False

    @property
    def name(self) -> str:
        """`10 / 0.02`."""
        return pair(self.first, self.second)


@dataclass(frozen=True)
class Printed:
    """A published cell beside ours, and how far each lies below the peak's own."""

    first: Decimal
    second: Decimal
    published: Decimal
    below: Decimal
    """The published value at the peak minus this one."""
    spot: Spot | None
    """Ours; None where the axes do not have it."""
    ours_below: float | None


@dataclass(frozen=True)
class Surface:
    """A panel on a data set."""

    panel: Panel
    data: TableData
    spots: tuple[Spot, ...]
    """Row by row."""
    per_spot: int
    """Runs that every cell is to have."""
    peak_runs: Moments | None
    """All runs at the paper's peak; None without any."""
    peak_keys: tuple[str, ...]
    statistics: Plateau | None
    """Over the complete cells, in their order."""
    why: str
    """Why there are no statistics; empty where there are."""
    full: tuple[Decimal, Decimal]
    """The two settings as Table 2's full model has them."""
    printed: tuple[Printed, ...]

    @property
    def judged(self) -> tuple[Spot, ...]:
        """The cells that the statistics are over."""
        return tuple(spot for spot in self.spots if spot.complete)

    @property
    def peak(self) -> int | None:
        """Place of the paper's peak among the judged cells."""
        names = [(spot.first, spot.second) for spot in self.judged]
        return names.index(self.panel.peak) if self.panel.peak in names else None

    @property
    def highest(self) -> Spot | None:
        """Of the judged cells."""
        return next((spot for spot in self.judged if spot.highest), None)

    @property
    def span(self) -> float | None:
        """The highest minus the lowest judged mean."""
        means = [spot.mean for spot in self.judged if spot.mean is not None]
        return max(means) - min(means) if len(means) > 1 else None

    @property
    def run_sd(self) -> float | None:
        """Standard deviation from run to run at one setting; None where it is not known."""
        return None if self.statistics is None else math.sqrt(self.statistics.v)

    @property
    def cell_sd(self) -> float | None:
        """Standard deviation of a cell's mean that the cells' differences are read by."""
        return None if self.statistics is None else math.sqrt(self.statistics.D)

    @cached_property
    def from_nothing(self) -> tuple[float, float] | None:
        """How far as many equal cells would spread: expected, and 95 % of times less."""
        if self.statistics is None or self.cell_sd is None:
            return None
        equal = equal_spread(len(self.statistics.means), self.statistics.df)
        return equal.expected * self.cell_sd, equal.high * self.cell_sd

    @property
    def claim(self) -> tuple[Judgement, str]:
        """The paper's "peak there" on this data set, and why."""
        if self.statistics is None:
            return Judgement.UNDECIDED, self.why
        if self.peak is None:
            return Judgement.UNDECIDED, f"no runs at {pair(*self.panel.peak)}"
        judged = self.statistics.peak_at(self.peak)
        inside, count = len(self.statistics.plateau), len(self.statistics.means)
        gaps = len(self.spots) - len(self.judged)
        if judged is Judgement.SUPPORTED and gaps:
            return Judgement.UNDECIDED, f"{gaps} of {len(self.spots)} cells lack runs"
        if judged is Judgement.UNDECIDED:
            return judged, f"it is one of {inside} of {count} cells that may be the peak"
        if judged is Judgement.CONTRADICTED and self.highest is not None:
            return judged, f"it is below {self.highest.name}"
        return judged, f"it is above all {count - 1} others"


@dataclass(frozen=True)
class Heatmaps:
    """Figure 4, complete."""

    data: tuple[TableData, ...]
    panels: tuple[Panel, ...]
    surfaces: tuple[Surface, ...]
    """Data set by data set, in the order of the panels."""
    users: Mapping[str, int]
    protocol: Mapping[str, Any]
    users_limit: int
    per_spot: int
    at_peak: int
    """Runs asked for at the paper's peak."""
    budget_name: str
    overrides: tuple[str, ...]
    versions: tuple[str, ...]

    def surface(self, panel: str, dataset: str) -> Surface:
        """One panel on one data set."""
        return next(s for s in self.surfaces if (s.panel.name, s.data.name) == (panel, dataset))

    def judgement(self, panel: str) -> Judgement:
        """Over the data sets: contradicted with any, supported with all."""
        words = {s.claim[0] for s in self.surfaces if s.panel.name == panel}
        if Judgement.CONTRADICTED in words:
            return Judgement.CONTRADICTED
        return Judgement.SUPPORTED if words == {Judgement.SUPPORTED} else Judgement.UNDECIDED

    def plateaus(self, panel: str) -> dict[str, tuple[Plateau, int]]:
        """By data set: the judged surface and the place of the paper's peak in it.

        Without data sets where either is not there, or where other cells lack runs.
        """
        return {
            s.data.name: (s.statistics, s.peak)
            for s in self.surfaces
            if s.panel.name == panel
            and s.statistics is not None
            and s.peak is not None
            and len(s.judged) == len(s.spots)
        }


Place = tuple[str, str, Decimal, Decimal]
"""Panel, data set, first and second setting."""


def build_heatmaps(
    records: Iterable[Record],
    wanted: Sequence[Cell],
    datasets: Sequence[TableData],
    chosen: Sequence[Panel],
    places: Mapping[Place, str],
    rows: Mapping[str, Method],
    full: Mapping[tuple[str, str], tuple[Decimal, Decimal]],
    *,
    per_spot: int,
    at_peak: int,
    failed: Mapping[str, str] | None = None,
    budget_name: str = "",
    overrides: Sequence[str] = (),
) -> Heatmaps:
    """Compute every surface.

    Args:
        records: Finished runs, each of a wanted cell.
        wanted: Every run, once; a setting that two panels share is there once.
        datasets: The data sets, in order.
        chosen: The panels, in order.
        places: The row of every place of every surface.
        rows: The row of every wanted cell, by key: a setting under a name of its own.
        full: By panel and data set: the panel's two settings in Table 2's full model.
        per_spot: Runs that every cell is to have.
        at_peak: Runs at the paper's peak.
        failed: Why a cell has no record, by key.
        budget_name: Printed, like `overrides`.
        overrides: The user's `key=value`.

    Raises:
        InputError: Two records that may not stand in one figure.
    """
    kept = tuple(records)
    found = gather(kept, wanted, datasets, failed or {}, rows)
    surfaces = tuple(
        _surface(panel, data, found, places, full[panel.name, data.name], per_spot)
        for data in datasets
        for panel in chosen
    )
    releases = {
        ", ".join(f"{name} {version}" for name, version in record.versions.items())
        for record in kept
    }
    return Heatmaps(
        data=tuple(datasets),
        panels=tuple(chosen),
        surfaces=surfaces,
        users=found.users,
        protocol=found.protocol,
        users_limit=max((cell.users for cell in wanted), default=0),
        per_spot=per_spot,
        at_peak=at_peak,
        budget_name=budget_name,
        overrides=tuple(overrides),
        versions=tuple(sorted(releases)),
    )


def _surface(
    panel: Panel,
    data: TableData,
    found: Gathered,
    places: Mapping[Place, str],
    full: tuple[Decimal, Decimal],
    per_spot: int,
) -> Surface:
    """One panel on one data set, judged."""

    def runs_at(first: Decimal, second: Decimal) -> tuple[str, Runs | None]:
        row = places[panel.name, data.name, first, second]
        return row, found.runs.get((row, data.name))

    made: list[tuple[Spot, Moments | None]] = []
    for first, second in panel.places:
        row, runs = runs_at(first, second)
        own = None if runs is None else stats.moments(runs.scores(METRIC)[:per_spot])
        count = 0 if own is None else own.runs
        spot = Spot(
            first,
            second,
            mean=None if own is None else own.mean,
            runs=() if runs is None else tuple(r.key for r in runs.records[:per_spot]),
            complete=count == per_spot,
            gaps=() if count == per_spot else found.missing.get((row, data.name), ()),
        )
        made.append((spot, own))
    _, at_peak = runs_at(*panel.peak)
    peak_runs = None if at_peak is None else stats.moments(at_peak.scores(METRIC))
    complete = [own for spot, own in made if spot.complete and own is not None]
    statistics, why = _judge(complete, per_spot, peak_runs, panel)
    spots = _marked([spot for spot, _ in made], statistics)
    return Surface(
        panel=panel,
        data=data,
        spots=spots,
        per_spot=per_spot,
        peak_runs=peak_runs,
        peak_keys=() if at_peak is None else tuple(record.key for record in at_peak.records),
        statistics=statistics,
        why=why,
        full=full,
        printed=_printed(panel, data, spots),
    )


def _judge(
    cells: Sequence[Moments], per_spot: int, peak_runs: Moments | None, panel: Panel
) -> tuple[Plateau | None, str]:
    """The statistics of the cells that have their runs, or why there are none."""
    if len(cells) < 2:
        return None, "fewer than two cells have their runs"
    if per_spot > 1:
        return stats.heatmap(cells), ""
    if peak_runs is None or peak_runs.runs < 2:
        where = f"fewer than two runs at {pair(*panel.peak)}"
        return None, f"one run a cell and {where}, so how far runs differ is not known"
    return stats.heatmap_one_run(np.array([cell.mean for cell in cells]), peak_runs), ""


def _marked(spots: Sequence[Spot], statistics: Plateau | None) -> tuple[Spot, ...]:
    """The cells with their marks; the highest is known without statistics."""
    judged = [spot for spot in spots if spot.complete and spot.mean is not None]
    top = max((spot.mean for spot in judged if spot.mean is not None), default=None)
    inside = {} if statistics is None else {
        id(spot): place in statistics.plateau for place, spot in enumerate(judged)
    }  # fmt: skip
    return tuple(
        Spot(
            spot.first, spot.second, spot.mean, spot.runs, spot.complete, spot.gaps,
            plateau=inside.get(id(spot), False), highest=spot.complete and spot.mean == top,
        )
        for spot in spots
    )  # fmt: skip


def _printed(panel: Panel, data: TableData, spots: Sequence[Spot]) -> tuple[Printed, ...]:
    """The cells that the paper's text names, where it has numbers of the data set or of its twin."""
    published = Published.read()
    column = published.column(data)
    cells = [c for c in published.paper.figure4 if (c.panel, c.dataset) == (panel.printed, column)]
    at_peak = next((c.value for c in cells if (c.first, c.second) == panel.peak), None)
    of = {(spot.first, spot.second): spot for spot in spots}
    own = of.get(panel.peak)
    made = []
    for cell in cells:
        if at_peak is None:
            continue
        spot = of.get((cell.first, cell.second))
        below = None
        if spot is not None and own is not None and spot.mean is not None and own.mean is not None:
            below = own.mean - spot.mean
        made.append(Printed(cell.first, cell.second, cell.value, at_peak - cell.value, spot, below))
    return tuple(made)


# ------------------------------------------------------------------------------------ for programs


def heatmaps_json(heatmaps: Heatmaps) -> dict[str, Any]:
    """The content of table.json: JSON's types, every number finite or null."""
    return {
        **heading("figure4", heatmaps.data, heatmaps.protocol),
        "metric": METRIC,
        "runs": {"cell": heatmaps.per_spot, "peak": heatmaps.at_peak},
        "surfaces": [_surface_json(surface) for surface in heatmaps.surfaces],
        "claims": [
            {"panel": panel.name, "peak": [float(value) for value in panel.peak],
             "judgement": heatmaps.judgement(panel.name).value}
            for panel in heatmaps.panels
        ],
    }  # fmt: skip


def _surface_json(surface: Surface) -> dict[str, Any]:
    found = surface.statistics
    judgement, why = surface.claim
    peak, nothing = surface.peak_runs, surface.from_nothing
    return {
        "panel": surface.panel.name,
        "dataset": surface.data.name,
        "first": surface.panel.first.label,
        "second": surface.panel.second.label,
        "full_model": [float(value) for value in surface.full],
        "cells": [line for line in lines(surface) if line["kind"] == "cell"],
        "published": [line for line in lines(surface) if line["kind"] == "published"],
        "at_peak": {
            "first": float(surface.panel.peak[0]),
            "second": float(surface.panel.peak[1]),
            "runs": 0 if peak is None else peak.runs,
            "mean": None if peak is None else peak.mean,
            "sd": None if peak is None or peak.runs < 2 else math.sqrt(peak.v),
        },
        "statistics": None if found is None else {
            "c": finite(found.c),
            "v": finite(found.v),
            "e": finite(found.e),
            "r": finite(found.r),
            "D": finite(found.D),
            "df": finite(found.df),
            "F": finite(found.F),
            "F_critical": finite(found.F_critical),
            "flat": found.flat,
            "plateau": len(found.plateau),
            "cells": len(found.means),
            "range": finite(surface.span),
            "range_of_equal_cells": finite(nothing and nothing[0]),
            "range_of_equal_cells_95": finite(nothing and nothing[1]),
        },
        "claim": {"judgement": judgement.value, "why": why},
    }  # fmt: skip


def lines(surface: Surface) -> list[dict[str, Any]]:
    """Every number of a surface as one line: kind is cell or published."""
    made = [
        {
            "kind": "cell", "dataset": surface.data.name, "demo": surface.data.demo,
            "panel": surface.panel.name, "first": float(spot.first), "second": float(spot.second),
            "metric": METRIC, "mean": spot.mean, "runs": len(spot.runs),
            "highest": spot.highest,
            "plateau": spot.plateau if spot.complete and surface.statistics else None,
            "paper_peak": (spot.first, spot.second) == surface.panel.peak,
            "gap": "; ".join(spot.gaps) or None,
        }
        for spot in surface.spots
    ]  # fmt: skip
    made += [
        {
            "kind": "published", "dataset": surface.data.name, "demo": surface.data.demo,
            "panel": surface.panel.name, "first": float(cell.first), "second": float(cell.second),
            "metric": METRIC, "published": float(cell.published),
            "published_below_peak": float(cell.below),
            "mean": cell.spot.mean if cell.spot else None, "below_peak": cell.ours_below,
        }
        for cell in surface.printed
    ]  # fmt: skip
    return made
