"""What a plan would cost on a cluster, before anything is submitted: jobs and hours, with an interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance

from harness.config import Cell, Task
from harness.execution.cluster import by_needs, packs, workers_of
from harness.execution.plan import alone
from harness.execution.slurm import Site, SlurmProfile, resources
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
    most: bool = False
    """Not of runs, but of a timed epoch: the training alone, if it uses every epoch that it may."""


@dataclass(frozen=True)
class Hours:
    """Expected hours with a 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """`1.50 {} [1.20, 1.80]` with a place for the unit."""
        mean, low, high = (
            f"{value:.2f}" if value < 10 else f"{value:,.0f}"
            for value in (self.mean, self.low, self.high)
        )
        return f"{mean} {{}} [{low}, {high}]"


@dataclass(frozen=True)
class Price:
    """What some cells cost."""

    cells: int
    jobs: int
    arrays: int
    hours: Hours
    """Of nodes."""
    gpu_hours: Hours
    needs: tuple[str, ...]
    """A line for each distinct profile: what a job gets, and which methods' cells run in such jobs."""
    unknown: tuple[str, ...]
    """Methods that no run is stored of: their cells are not in the hours."""
    guessed: tuple[str, ...]
    """Methods known from other data alone."""
    probed: tuple[str, ...] = ()
    """Methods known from a timed epoch alone."""

    def say(self) -> str:
        """Sentences for a person."""
        if not self.cells:
            return "nothing to submit"
        said = (
            f"{_counts(self.cells, self.jobs, self.arrays)}: {str(self.hours).format('node-hours')}"
        )
        if self.gpu_hours.mean:
            said += f", {str(self.gpu_hours).format('GPU-hours')}"
        if self.guessed:
            said += f"; by runs on other data: {', '.join(self.guessed)}"
        if self.probed:
            said += f"; at most, by a timed epoch: {', '.join(self.probed)}"
        if self.unknown:
            said += (f"; not in the hours, as no run is stored: {', '.join(self.unknown)} (a probe: "
                     "reproduce table4 --methods KEY times an epoch)")  # fmt: skip
        return said


def _counts(cells: int, jobs: int, arrays: int) -> str:
    """`6 cells in 2 jobs (1 array)`."""
    cell, job, array = (
        f"{count} {name}{'s' * (count != 1)}"
        for count, name in ((cells, "cell"), (jobs, "job"), (arrays, "array"))
    )
    return f"{cell} in {job} ({array})"


def knowledge(places: Places) -> Callable[[Cell], Known | None]:
    """What stored runs say of a cell's seconds on one worker.

    Runs of the method on the same data come first, then a timed epoch of it (Table 4) times the most
    epochs that the cell may take, then runs on other data.
    """
    exact: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    of_method: dict[tuple[str, str], list[float]] = defaultdict(list)
    epochs: dict[tuple[str, str], float] = {}
    for record in Store(places.results).records():
        task = str(record.config.get("task", Task.score.name))
        exact[record.label, record.data, task].append(record.seconds["total"])
        of_method[record.label, task].append(record.seconds["total"])
        if timed := (record.measured or {}).get("epoch"):
            epochs[record.label, record.data] = median(timed)

    def known(cell: Cell) -> Known | None:
        label, task = find(cell.method).label, cell.task.name
        here = exact.get((label, cell.data, task), [])
        probe = epochs.get((label, cell.data)) if cell.task is Task.score else None
        if not here and probe is not None:
            most = probe * cell.train.epochs
            return Known(most, 1, (UNSURE * most) ** 2, exact=True, most=True)
        seconds = here or of_method.get((label, task))
        if not seconds:
            return None
        middle = fmean(seconds)
        spread = variance(seconds) if len(seconds) > 1 else (UNSURE * middle) ** 2
        return Known(middle, len(seconds), spread, exact=bool(here))

    return known


def mean_seconds(places: Places) -> Callable[[Cell], float | None]:
    """What a cell takes on one worker by stored runs; None where nothing is known."""
    return _means(knowledge(places))


def _means(known: Callable[[Cell], Known | None]) -> Callable[[Cell], float | None]:
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
    """The price of cells under a profile.

    The interval is that of a sum of new runs: each group of cells that the same runs stand for has the
    variance n s^2 + n^2 s^2 / k, from k stored runs.

    Raises:
        InputError: the cluster cannot give what the profile asks for.
    """
    found = [(cell, known(cell)) for cell in cells]
    sure = [(cell, one) for cell, one in found if one is not None]
    node, gpu = _Sum(), _Sum()
    jobs, arrays, needs = 0, 0, []
    for asked, some in by_needs(cells, profile, site):
        made = packs(some, _means(known), asked, workers_of(asked))
        count = _arrays(made, site)
        jobs, arrays = jobs + len(made), arrays + count
        labels = ", ".join(dict.fromkeys(find(cell.method).label for cell in some))
        needs.append(f"{resources(asked)}: {_counts(len(some), len(made), count)}: {labels}")
        methods = {cell.method for cell in some}
        part = [(cell, one) for cell, one in sure if cell.method in methods]
        node.add(part, workers_of(asked), 1)
        gpu.add(part, workers_of(asked), asked.gpu_count)
    named = {cell.method: find(cell.method).label for cell in cells}
    return Price(
        cells=len(cells),
        jobs=jobs,
        arrays=arrays,
        hours=node.hours(),
        gpu_hours=gpu.hours(),
        needs=tuple(needs),
        unknown=tuple(dict.fromkeys(named[c.method] for c, one in found if one is None)),
        guessed=tuple(dict.fromkeys(named[c.method] for c, one in sure if not one.exact)),
        probed=tuple(dict.fromkeys(named[c.method] for c, one in sure if one.most)),
    )


def _arrays(jobs: Sequence[Sequence[Cell]], site: Site) -> int:
    """Arrays of some jobs: those of cells that run alone have their own."""
    most = max(1, site.largest_array - 1)
    shared = sum(not alone(job[0]) for job in jobs)
    return -(-shared // most) + -(-(len(jobs) - shared) // most)


class _Sum:
    """Seconds of jobs, and their variance, weighted by what a job holds."""

    def __init__(self) -> None:
        self.seconds = self.variance = 0.0

    def add(self, cells: Sequence[tuple[Cell, Known]], workers: int, weight: int) -> None:
        """Cells that run on `workers` workers a job, where a job's second counts `weight`."""
        groups: dict[tuple[str, str, str], list[Known]] = defaultdict(list)
        for cell, one in cells:
            groups[cell.method, cell.data, cell.task.name].append(one)
            self.seconds += weight * (one.mean if alone(cell) else one.mean / workers)
        for group in groups.values():
            n, one = len(group), group[0]
            spread = n * one.variance + n**2 * one.variance / one.runs
            self.variance += (weight / workers) ** 2 * spread

    def hours(self) -> Hours:
        """With the interval."""
        half = Z * math.sqrt(self.variance)
        low, high = max(0.0, self.seconds - half), self.seconds + half
        return Hours(self.seconds / 3600, low / 3600, high / 3600)
