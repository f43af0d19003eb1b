"""Load and soak of `--on slurm`, on a local cluster; figures for slurm/README.md, never part of the tests.

    python slurm/local_cluster.py --nodes 4 -- python benchmarks/slurm_load.py --cells 2000
    python slurm/local_cluster.py --nodes 4 -- python benchmarks/slurm_load.py --cells 300 --soak 600

The grid is of trivial cells (the row Random with many seeds, on 120 users). The soak kills jobs and whole
submitting processes at random while it lasts, then lets the rest finish, and checks that every cell is
stored exactly once, with the ranks of an undisturbed run.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from harness.compose import Budget, compose_cell
from harness.config import cell_key
from harness.data.demo import prepare_demo
from harness.data.synthetic import rec_tmall_world
from harness.execution import cluster as cluster_module
from harness.execution import slurm
from harness.execution.cluster import Cluster
from harness.execution.slurm import SlurmProfile, read_site, settle
from harness.run import Places, run
from harness.store import Store
from harness.zoo import find

calls = itertools.count()
known = slurm.states


def counted(arrays):
    next(calls)
    return known(arrays)


def submit(places, cells, profile, site):
    cluster = Cluster(places)
    out = cluster.look().out
    stored = {path.name for path in (places.results / "cells").glob("*")}
    todo = [c for c in cells if cell_key(c) not in out | stored]
    return cluster.submit(todo, profile, site, "table2", "bench", lambda _: 1.0) if todo else []


def main() -> int:
    words = argparse.ArgumentParser()
    words.add_argument("--cells", type=int, default=2000)
    words.add_argument("--soak", type=float, default=0.0, help="seconds of killing at random")
    words.add_argument("--seed", type=int, default=0)
    options = words.parse_args()
    cluster_module.states = counted
    root = Path(tempfile.mkdtemp(prefix="load-"))
    try:
        return measure(root, options)
    finally:
        shutil.rmtree(root)


def measure(root: Path, options: argparse.Namespace) -> int:
    prepare_demo(root / "data", "tiny", replace(rec_tmall_world(), users=120))
    places = Places(root / "data", root / "results")
    one = compose_cell(find("random"), "tiny", Budget.smoke)
    cells = [replace(one, seed=seed) for seed in range(2, options.cells + 2)]
    site = read_site()
    profile = settle(SlurmProfile(cpus=2, pack_minutes=1, minutes=30), site)
    began = time.perf_counter()
    lone = run(replace(one, seed=1), Places(places.data, root / "here"))
    alone = time.perf_counter() - began

    began = time.perf_counter()
    made = submit(places, cells, profile, site)
    seconds = time.perf_counter() - began
    jobs = sum(len(one.packs) for one in made)
    print(f"{options.cells} cells in {jobs} jobs: submitted in {seconds:.2f} s")
    chance, kills = random.Random(options.seed), 0
    while time.perf_counter() - began < options.soak:
        time.sleep(chance.uniform(2, 10))
        running = slurm.ask("squeue", "-h", "-r", "-t", "running", "-o", "%i").split()
        if running and chance.random() < 0.8:
            victim = chance.choice(running)
            signal = chance.choice(["KILL", "USR2", "TERM"])
            subprocess.run(["scancel", "--full", f"--signal={signal}", victim], check=False)
            kills += 1
        else:
            code = ("from pathlib import Path; from harness.execution.cluster import Cluster; "
                    "from harness.run import Places; "
                    f"Cluster(Places(Path('{places.data}'), Path('{places.results}'))).look()")  # fmt: skip
            process = subprocess.Popen([sys.executable, "-c", code])
            time.sleep(chance.uniform(0, 3))
            process.kill()
            process.wait()
            kills += 1
        submit(places, cells, profile, site)
    while True:
        look = Cluster(places).look()
        done = len(list((places.results / "cells").glob("*")))
        if not look.out:
            if done >= len(cells):
                break
            submit(places, cells, profile, site)
        time.sleep(2)
    total = time.perf_counter() - began
    store = Store(places.results)
    found = [store.load(cell_key(cell)) for cell in cells]
    same = all(
        record is not None and np.array_equal(record.ranks.above, lone.ranks.above)
        for record in found
    )
    folders = [p.name for p in (places.results / "cells").iterdir()]
    exact = sorted(folders) == sorted(map(cell_key, cells))
    print(f"all stored after {total:.0f} s: {total / len(cells):.3f} s a cell against {alone:.3f} s for one "
          f"here; {next(calls)} questions to the scheduler, {kills} kills")  # fmt: skip
    print(f"every cell exactly once: {exact}; the ranks of an undisturbed run: {same}")
    return 0 if exact and same else 1


if __name__ == "__main__":
    sys.exit(main())
