"""One `reproduce --on slurm` from the missing cells to what a person is told, and `--cancel`."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from harness.config import Cell, cell_key
from harness.execution.cluster import Cluster, Look, Submission
from harness.execution.live import Board
from harness.execution.plan import plan
from harness.execution.price import mean_seconds
from harness.execution.slurm import (
    SlurmProfile,
    ask,
    outside_jobs,
    read_profile,
    read_site,
    settle,
)
from harness.run import Places

SECONDS_BETWEEN = 15.0
"""Between two questions to the scheduler while waiting."""


def run_on_cluster(
    missing: Sequence[Cell],
    places: Places,
    profile: str,
    words: Sequence[str],
    target: str,
    command: str,
    *,
    wait: bool,
) -> dict[str, str]:
    """Submit what is neither stored nor out, and return why cells failed, by key.

    Args:
        missing: Cells of the artefact that are not stored.
        places: Folders; both must be seen by the nodes.
        profile: Name of a file in slurm/; empty: the cluster's defaults.
        words: `slurm.key=value` on top of it.
        target: Names the artefact.
        command: What was typed.
        wait: Stay until no job of these cells is out; else return at once.

    Raises:
        InputError: the cluster, the profile or sbatch says no.
    """
    site = read_site()
    asked = settle(read_profile(profile, words), site)
    cluster = Cluster(places)
    look = cluster.look()
    failed = cluster.give_up(asked, missing, look)
    out = look.out
    todo = [c for c in missing if cell_key(c) not in out and cell_key(c) not in failed]
    seconds = mean_seconds(places)
    made = cluster.submit(todo, asked, site, target, command, seconds, look) if todo else []
    _say(f"{len(missing) - len(todo) - len(failed)} cells are out already, {len(todo)} submitted"
         + (f" as {_arrays(made)} on partition '{asked.partition}'" if made else ""))  # fmt: skip
    if not wait:
        if todo or out:
            _say(
                "watch: python -m harness.status --watch; the same command again prints what is stored"
            )
        return failed
    return failed | _wait(missing, cluster, places, asked)


def _wait(
    missing: Sequence[Cell], cluster: Cluster, places: Places, profile: SlurmProfile
) -> dict[str, str]:
    """Follow until no job of these cells is out; cells that are neither stored nor out have failed."""
    keys = {cell_key(cell) for cell in missing}
    said = ""
    while True:
        look = cluster.look()
        if not look.out & keys:
            break
        done = sum((places.results / "cells" / key).exists() for key in keys)
        line = f"{done} of {len(keys)} cells stored; " + _states(look)
        if line != said:
            _say(line)
            said = line
        time.sleep(SECONDS_BETWEEN)
    failed = cluster.give_up(profile, missing, look)
    board = Board(places.results)
    for cell in plan(missing, places, any_machine=True).missing:
        key = cell_key(cell)
        failure = board.failure(key)
        why = "it was not submitted"
        if key in look.cells:
            one, _, state = look.cells[key]
            why = f"its job ended without it ({state.name}); see {cluster.log(one, key)}"
        failed.setdefault(key, failure.error if failure else why)
    return failed


def cancel(target: str, places: Places) -> str:
    """Cancel every job of an artefact that is out; what is stored stays. Returns what was done.

    Raises InputError when the scheduler does not answer.
    """
    cluster = Cluster(places)
    look = cluster.look()
    mine = {
        one.array: one
        for one, _, state in look.cells.values()
        if one.target == target and state.alive
    }
    if not mine:
        return f"no job of {target} is out"
    with outside_jobs():
        ask("scancel", *mine)
    count = sum(state.alive for one, _, state in look.cells.values() if one.array in mine)
    return (
        f"cancelled {', '.join(mine)}: {count} cells of {target} were not finished; what is stored "
        "and every run's last epoch stay"
    )


def lines(places: Places) -> list[str]:
    """What the cluster says of the cells that are out, for `status`; nothing without submissions."""
    cluster = Cluster(places)
    if not cluster.submissions():
        return []
    look = cluster.look()
    said = [f"cluster: {_states(look)}"] if look.cells else ["cluster: nothing is out"]
    ended: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    logs: dict[tuple[str, str, str], Path] = {}
    for key, (one, _, state) in look.cells.items():
        if not state.alive:
            place = (one.command, state.name, state.node)
            ended[place].append(one.names[key])
            logs.setdefault(place, cluster.log(one, key))
    for place, names in ended.items():
        command, name, node = place
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        said.append(f"jobs ended ({name}{f' on {node}' if node else ''}) without {', '.join(names[:3])}"
                    f"{more}; log: {logs[place]}; to submit again: {command}")  # fmt: skip
    return said


def failures_by_host(hosts: Sequence[str]) -> str:
    """`failures by node: n1 5, n2 1`: a node that stands out is sick."""
    counted = Counter(host for host in hosts if host)
    return "failures by node: " + ", ".join(f"{host} {n}" for host, n in counted.most_common())


def _states(look: Look) -> str:
    return (
        ", ".join(f"{count} {name}" for name, count in sorted(look.counts().items())) or "none out"
    )


def _arrays(made: Sequence[Submission]) -> str:
    jobs = sum(len(one.packs) for one in made)
    ids = ", ".join(one.array for one in made)
    return f"{jobs} job{'s' * (jobs > 1)} ({'array' if len(made) == 1 else 'arrays'} {ids})"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
