"""What a plan will cost, from the stored seconds of the same method."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import mean
from typing import Any

from harness.config import Cell, Task
from harness.execution.plan import Plan, alone
from harness.execution.progress import duration
from harness.run import Places
from harness.store import Record, Store
from harness.zoo import find


@dataclass(frozen=True)
class Total:
    """Seconds of one-thread work, and how many cells nothing is known of."""

    seconds: float
    cells: int
    unknown: int
    lone_seconds: float = 0.0
    """Further seconds, of cells that nothing may run beside."""

    def say(self, workers: int) -> str:
        """A sentence for a person."""
        if not self.cells:
            return "nothing to run: the artefact can be printed from stored records"
        if self.unknown == self.cells:
            return "time: no run of these methods is stored yet, so nothing is known"
        known = (
            f"expected: {duration(self.seconds / workers + self.lone_seconds)} on {workers} workers"
        )
        more = (
            f", and {self.unknown} cells of methods that no run is stored of"
            if self.unknown
            else ""
        )
        return known + more


def estimate(planned: Plan, places: Places) -> tuple[list[dict[str, Any]], Total]:
    """A row per method, data set and task, and the total.

    Seconds come from runs of the same task on the same data set.
    """
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    memory: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in Store(places.results).records():
        name = (_printed(record), record.data)
        seconds[name].append(record.seconds["total"])
        memory[name].append(record.peak_memory_mib)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    total, lone, unknown = 0.0, 0.0, 0
    missing = {id(cell) for cell in planned.missing}
    for cell in planned.wanted:
        name = (_printed(cell), cell.data)
        row = rows.setdefault(name, {
            "method": name[0], "data": name[1], "wanted": 0, "stored": 0, "to run": 0,
            "s a cell": round(mean(seconds[name]), 1) if seconds[name] else None,
            "MiB": round(max(memory[name])) if memory[name] else None,
        })  # fmt: skip
        row["wanted"] += 1
        runs = id(cell) in missing
        row["to run" if runs else "stored"] += 1
        if runs:
            if alone(cell):
                lone += row["s a cell"] or 0.0
            else:
                total += row["s a cell"] or 0.0
            unknown += row["s a cell"] is None
    return list(rows.values()), Total(total, len(missing), unknown, lone)


def _printed(run: Cell | Record) -> str:
    """The method's label; `M3BSR (timing)` where it is timed."""
    if isinstance(run, Record):
        task, label = run.config.get("task", Task.score.name), run.label
    else:
        task, label = run.task.name, find(run.method).label
    return f"{label} (timing)" if task == Task.time.name else label
