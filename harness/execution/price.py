"""What a plan would cost on a cluster, before anything is submitted: jobs and hours, with an interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from harness.config import Cell
from harness.execution.cluster import packs
from harness.execution.plan import alone
from harness.execution.slurm import Site, SlurmProfile
from harness.run import Places
from harness.store import Store
from harness.zoo import find

Z = 1.96
UNSURE = 1.0
"""Standard deviation of a cell's seconds over their mean where one run alone is known."""


@dataclass(frozen=True)
class Known:
    """Seconds of the stored runs that stand for a cell."""

    mean: float
    runs: int
    variance: float
    exact: bool
    """Of the method on the same data; else of the method on other data."""


@dataclass(frozen=True)
class Price:
    """What some cells cost. Hours are node-hours of jobs, `gpus` times as many GPU-hours."""

    cells: int
    jobs: int
    arrays: int
    hours: float
    low: float
    """95 % interval of `hours`."""
    high: float
    gpus: int
    unknown: tuple[str, ...]
    """Methods that no run is stored of: their cells are not in the hours."""
    guessed: tuple[str, ...]
    """Methods known from other data alone."""

    def say(self) -> str:
        """Sentences for a person."""
        if not self.cells:
            return "nothing to submit"
        jobs = (
            f"{self.cells} cells in {self.jobs} jobs ({self.arrays} array{'s' * (self.arrays > 1)})"
        )
        parts = [
            f"{jobs}: {_hours(self.hours)} node-hours [{_hours(self.low)}, {_hours(self.high)}]"
        ]
        if self.gpus:
            times = [_hours(self.gpus * value) for value in (self.hours, self.low, self.high)]
            parts.append(f"{times[0]} GPU-hours [{times[1]}, {times[2]}]")
        said = ", ".join(parts)
        if self.guessed:
            said += f"; by runs on other data: {', '.join(self.guessed)}"
        if self.unknown:
            said += (f"; not in the hours, as no run is stored: {', '.join(self.unknown)} (a probe: "
                     "reproduce table4 --methods KEY times an epoch)")  # fmt: skip
        return said


def _hours(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def knowledge(places: Places) -> Callable[[Cell], Known | None]:
    """What stored runs say of a cell's seconds on one worker."""
    exact: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    of_method: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in Store(places.results).records():
        task = str(record.config.get("task", "score"))
        exact[record.label, record.data, task].append(record.seconds["total"])
        of_method[record.label, task].append(record.seconds["total"])

    def known(cell: Cell) -> Known | None:
        label, task = find(cell.method).label, cell.task.name
        here = exact.get((label, cell.data, task))
        seconds = here or of_method.get((label, task))
        if not seconds:
            return None
        middle = fmean(seconds)
        spread = variance(seconds) if len(seconds) > 1 else (UNSURE * middle) ** 2
        return Known(middle, len(seconds), spread, bool(here))

    return known


def mean_seconds(places: Places) -> Callable[[Cell], float | None]:
    """What a cell takes on one worker by stored runs; None where nothing is known."""
    known = knowledge(places)

    def seconds(cell: Cell) -> float | None:
        one = known(cell)
        return None if one is None else one.mean

    return seconds


def price(
    cells: Sequence[Cell],
    known: Callable[[Cell], Known | None],
    profile: SlurmProfile,
    site: Site,
) -> Price:
    """The price of cells under a settled profile.

    The interval is that of a sum of new runs: each group of cells that the same runs stand for has the
    variance n s^2 + n^2 s^2 / k, from k stored runs.
    """
    workers = max(1, profile.gpu_count or profile.cpus)
    found = [(cell, known(cell)) for cell in cells]
    sure = [(cell, one) for cell, one in found if one is not None]
    jobs = packs(
        cells, lambda cell: None if (k := known(cell)) is None else k.mean, profile, workers
    )
    groups: dict[tuple[str, str, str], list[Known]] = defaultdict(list)
    total = 0.0
    for cell, one in sure:
        groups[cell.method, cell.data, cell.task.name].append(one)
        total += one.mean if alone(cell) else one.mean / workers
    spread = 0.0
    for group in groups.values():
        n, one = len(group), group[0]
        spread += (n * one.variance + n**2 * one.variance / one.runs) / workers**2
    half = Z * math.sqrt(spread)
    most = max(1, site.largest_array - 1)
    shared = sum(not alone(job[0]) for job in jobs)
    arrays = -(-shared // most) + -(-(len(jobs) - shared) // most)
    labels = {cell.method: find(cell.method).label for cell in cells}
    return Price(
        cells=len(cells),
        jobs=len(jobs),
        arrays=arrays,
        hours=total / 3600,
        low=max(0.0, total - half) / 3600,
        high=(total + half) / 3600,
        gpus=profile.gpu_count,
        unknown=tuple(dict.fromkeys(labels[c.method] for c, one in found if one is None)),
        guessed=tuple(dict.fromkeys(labels[c.method] for c, one in sure if not one.exact)),
    )
