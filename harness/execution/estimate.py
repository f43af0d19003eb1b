"""What a plan will cost, from the stored seconds of the same method."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import mean
from typing import Any

from harness.execution.plan import Plan
from harness.execution.progress import duration
from harness.run import Places
from harness.store import Store
from harness.zoo import find


@dataclass(frozen=True)
class Total:
    """Seconds of one-thread work, and how many cells nothing is known of."""

    seconds: float
    cells: int
    unknown: int

    def say(self, workers: int) -> str:
        """A sentence for a person."""
        if not self.cells:
            return "nothing to run: the artefact can be printed from stored records"
        if self.unknown == self.cells:
            return "time: no run of these methods is stored yet, so nothing is known"
        known = f"expected: {duration(self.seconds / workers)} on {workers} workers"
        more = (
            f", and {self.unknown} cells of methods that no run is stored of"
            if self.unknown
            else ""
        )
        return known + more


def estimate(planned: Plan, places: Places) -> tuple[list[dict[str, Any]], Total]:
    """A row per method and data set, and the total. Seconds come from runs on the same data set."""
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    memory: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in Store(places.results).records():
        name = (record.label, record.data)
        seconds[name].append(record.seconds["total"])
        memory[name].append(record.peak_memory_mib)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    total, unknown = 0.0, 0
    missing = {id(cell) for cell in planned.missing}
    for cell in planned.wanted:
        name = (find(cell.method).label, cell.data)
        row = rows.setdefault(name, {
            "method": name[0], "data": name[1], "wanted": 0, "stored": 0, "to run": 0,
            "s a cell": round(mean(seconds[name]), 1) if seconds[name] else None,
            "MiB": round(max(memory[name])) if memory[name] else None,
        })  # fmt: skip
        row["wanted"] += 1
        runs = id(cell) in missing
        row["to run" if runs else "stored"] += 1
        if runs:
            total += row["s a cell"] or 0.0
            unknown += row["s a cell"] is None
    return list(rows.values()), Total(total, len(missing), unknown)
