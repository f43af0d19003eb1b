"""Load and soak of `--on slurm`, on a local cluster; figures for slurm/README.md, never part of the tests.

    python benchmarks/slurm_load.py --cells 2000
    python benchmarks/slurm_load.py --cells 300 --nodes 3 --cpus 1 --soak 600

The grid is of trivial cells (the row Random with many seeds, on 120 users). The soak kills nodes (slurmd
with its jobs, as a power cut does; the node comes back later), jobs and submitting processes at random
while it lasts. Whenever little is left to do, further seeds are submitted, so that there is work until the
killing stops; some of it are runs of many epochs, which go on from their last epoch. Then the rest finishes,
and the end is checked: every cell is stored, none was finished twice, the ranks are those of an undisturbed
run, and no job, lock or half-written file is left.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from harness.compose import Budget, compose_cell
from harness.config import Cell, cell_key
from harness.data.demo import prepare_demo
from harness.data.synthetic import rec_tmall_world
from harness.execution import cluster as cluster_module
from harness.execution import slurm
from harness.execution.cluster import Cluster, Submission
from harness.execution.here import name_of
from harness.execution.live import Board
from harness.execution.slurm import SlurmProfile, read_site, settle
from harness.run import Places, run
from harness.store import Store
from harness.zoo import find

FEW_LEFT = 150
"""The soak submits further seeds when fewer cells are open."""
MORE = 300
TRAINED_EACH = 75
"""One cell in so many is a run of many epochs."""
EPOCHS = ("train.epochs=150", "train.patience=150", "train.samples=0")
MOST_AGAIN = 15
"""Trained runs that are run again at the end, undisturbed; those that were interrupted come first."""
SIGNALS = ("KILL", "USR2", "TERM")

calls = itertools.count()
asked = slurm.states


def counted(arrays: Sequence[str]) -> dict[str, slurm.State]:
    """`states`, counted."""
    next(calls)
    return asked(arrays)


def grid(count: int, *, trained_too: bool = True) -> list[Cell]:
    """The first cells of the grid: trivial ones, and here and there a trained one if asked."""
    trivial = compose_cell(find("random"), "tiny", Budget.smoke)
    trained = compose_cell(find("sasrec"), "tiny", Budget.smoke, EPOCHS)
    return [
        replace(trained if trained_too and seed % TRAINED_EACH == 0 else trivial, seed=seed)
        for seed in range(1, count + 1)
    ]


def submit(places: Places, cells: Sequence[Cell]) -> list[Submission]:
    """Submit what is neither stored nor out, as `reproduce` does."""
    site = read_site()
    cpus = min(2, site.partition("").cpus)
    profile = settle(SlurmProfile(cpus=cpus, memory="3000M", pack_minutes=1, minutes=30), site)
    cluster = Cluster(places)
    look = cluster.look()
    todo = [cell for cell in cells if cell_key(cell) not in look.out | stored(places)]
    if not todo:
        return []
    return cluster.submit(todo, profile, site, "table2", "bench", lambda _: 1.0, look)


def stored(places: Places) -> set[str]:
    """Keys of the cells that are stored."""
    return {path.name for path in (places.results / "cells").glob("*")}


def main() -> int:
    """Exit code 1 when a cell is lost or differs."""
    words = argparse.ArgumentParser()
    words.add_argument("--cells", type=int, default=2000)
    words.add_argument("--soak", type=float, default=0.0, help="seconds of killing at random")
    words.add_argument("--nodes", type=int, default=4)
    words.add_argument("--cpus", type=int, default=8, help="a node's, made up")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--only-submit", type=Path, help=argparse.SUPPRESS)
    options = words.parse_args()
    if options.only_submit:
        root = options.only_submit
        submit(Places(root / "data", root / "results"), grid(options.cells))
        return 0
    cluster_module.states = counted
    root = Path(tempfile.mkdtemp(prefix="load-"))
    try:
        with local_cluster().LocalCluster(options.nodes, options.cpus, gpus=0) as running:
            return measure(root, options, running)
    finally:
        shutil.rmtree(root)


def local_cluster() -> ModuleType:
    """slurm/local_cluster.py as a module."""
    path = Path(__file__).resolve().parents[1] / "slurm" / "local_cluster.py"
    spec = importlib.util.spec_from_file_location("local_cluster", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["local_cluster"] = module
    spec.loader.exec_module(module)
    return module


def measure(root: Path, options: argparse.Namespace, running: Any) -> int:
    """Submit, kill for a while, let it end, check."""
    prepare_demo(root / "data", "tiny", replace(rec_tmall_world(), users=120))
    places = Places(root / "data", root / "results")
    undisturbed = Places(places.data, root / "here")
    cells = grid(options.cells, trained_too=options.soak > 0)
    began = time.perf_counter()
    run(cells[0], undisturbed)
    alone = time.perf_counter() - began

    began = time.perf_counter()
    made = submit(places, cells)
    seconds = time.perf_counter() - began
    jobs = sum(len(one.packs) for one in made)
    print(f"{len(cells)} cells in {jobs} jobs: submitted in {seconds:.2f} s", flush=True)
    if options.soak:
        cells = Soak(root, places, running, random.Random(options.seed)).last(options.soak, cells)
    while left := set(map(cell_key, cells)) - stored(places):
        if not left & Cluster(places).look().out:
            submit(places, cells)
        time.sleep(2)
    total = time.perf_counter() - began
    questions = next(calls)
    while slurm.ask("squeue", "-h").strip():  # the last jobs end
        time.sleep(0.5)
    print(f"all {len(cells)} stored after {total:.0f} s: {total / len(cells):.3f} s a cell against "
          f"{alone:.3f} s for a trivial one here; {questions} questions to the scheduler")  # fmt: skip
    found = [*faults(places, cells), *differences(places, undisturbed, cells)]
    print("\n".join(found) or "every cell exactly once, with the ranks of an undisturbed run; "
                              "no job, lock or half-written file is left")  # fmt: skip
    return int(bool(found))


@dataclass
class Soak:
    """Killing at random."""

    root: Path
    places: Places
    running: Any
    """The LocalCluster."""
    chance: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    down: dict[str, float] = field(default_factory=dict)
    """Nodes without power, and when it comes back."""

    def last(self, seconds: float, cells: list[Cell]) -> list[Cell]:
        """Kill for so long; returns all cells that were submitted by then."""
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            time.sleep(self.chance.uniform(1, 6))
            self.restore(time.perf_counter())
            kind = self.chance.choices([self.node, self.job, self.submitter], [2, 5, 2])[0]
            kind(cells)
            if len(cells) - len(stored(self.places)) < FEW_LEFT:
                cells = grid(len(cells) + MORE)
            submit(self.places, cells)
        left = len(cells) - len(stored(self.places))
        print(f"{len(cells)} cells submitted and {left} of them open when the killing stopped, after "
              + ", ".join(f"{count} {what}" for what, count in self.kills.items()), flush=True)  # fmt: skip
        self.restore(float("inf"))
        return cells

    def restore(self, now: float) -> None:
        """Give nodes their power back; some before the controller has noticed, some long after."""
        for name in [name for name, back in self.down.items() if back <= now]:
            self.running.start_node(name)
            del self.down[name]

    def node(self, _: Sequence[Cell]) -> None:
        """Cut a node's power, if another one is there."""
        up = [name for name in self.running.names if name not in self.down]
        if len(up) > 1:
            name = self.chance.choice(up)
            self.running.kill_node(name)
            self.down[name] = time.perf_counter() + self.chance.uniform(2, 60)
            self.kills["nodes"] += 1

    def job(self, _: Sequence[Cell]) -> None:
        """End, or ask to stop, a running job."""
        jobs = slurm.ask("squeue", "-h", "-r", "-t", "running", "-o", "%i").split()
        if jobs:
            name = self.chance.choice(SIGNALS)
            subprocess.run(["scancel", "--full", f"--signal={name}", self.chance.choice(jobs)],
                           check=False, capture_output=True)  # fmt: skip
            self.kills[f"jobs by {name}"] += 1

    def submitter(self, cells: Sequence[Cell]) -> None:
        """Kill a process that is about to submit the next cells, in the middle of it or before."""
        process = subprocess.Popen([sys.executable, __file__, "--only-submit", str(self.root),
                                    "--cells", str(len(cells) + MORE // 10)])  # fmt: skip
        time.sleep(self.chance.uniform(1, 12))
        self.kills["submitters" if process.poll() is None else "submitters that were done"] += 1
        process.kill()
        process.wait()


def faults(places: Places, cells: Sequence[Cell]) -> list[str]:
    """What is wrong with what is left, a line each."""
    found = []
    wanted, there = set(map(cell_key, cells)), stored(places)
    if extra := [name for name in there if not re.fullmatch(r"[0-9a-f]+", name)]:
        found.append(f"half-written: {', '.join(extra)}")
    if wanted - there:
        found.append(f"lost: {len(wanted - there)} cells")
    done: Counter[str] = Counter()
    for log in (places.results / "slurm" / "logs").glob("*_log.err"):
        done.update(re.findall(r"\] (\w.*? seed \d+): \d+ (?:s|min)\b", log.read_text()))
    if twice := {name: count for name, count in done.items() if count > 1}:
        found.append(f"finished more than once: {twice}")
    board = Board(places.results)
    if held := [key for key in wanted if board.working(key)]:
        found.append(f"locks still held: {len(held)}")
    if failures := board.failures():
        found.append(f"failures: {len(failures)}, such as {failures[0].error}")
    if lives := board.lives():
        found.append(f"said to be running: {len(lives)}")
    return found


def differences(places: Places, undisturbed: Places, cells: Sequence[Cell]) -> list[str]:
    """Cells whose ranks are not those of a run here, a line each."""
    found = []
    here, there = Store(undisturbed.results), Store(places.results)
    records = {cell_key(cell): there.load(cell_key(cell)) for cell in cells}
    trained = [cell for cell in cells if cell.method == "sasrec"]
    whole = {key for key, one in records.items() if one is not None and not one.resumed}
    trained.sort(key=lambda cell: cell_key(cell) in whole)
    for cell in trained[:MOST_AGAIN]:
        run(cell, undisturbed)
    trivial = here.load(cell_key(cells[0]))
    for cell in cells:
        record = records[cell_key(cell)]
        known = here.load(cell_key(cell)) if cell.method == "sasrec" else trivial
        if record is None or record.ranks is None:
            found.append(f"lost or damaged: {name_of(cell)}")
        elif known is None or known.ranks is None:
            continue
        elif not np.array_equal(record.ranks.above, known.ranks.above):
            found.append(f"other ranks: {name_of(cell)}")
    resumed = sum(cell_key(cell) not in whole for cell in trained)
    print(f"{len(trained)} trained runs; {resumed} of them went on from a stored epoch; "
          f"{len(trained[:MOST_AGAIN])} were run again here to compare")  # fmt: skip
    return found


if __name__ == "__main__":
    sys.exit(main())
