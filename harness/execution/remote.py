"""One `reproduce --on slurm` from the missing cells to what a person is told, and `--cancel`."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from harness.config import Cell, cell_key
from harness.execution.cluster import Cluster, Look, Submission, by_needs
from harness.execution.live import Board
from harness.execution.plan import plan
from harness.execution.price import mean_seconds
from harness.execution.progress import Display
from harness.execution.slurm import (
    SlurmProfile,
    ask,
    outside_jobs,
    read_profile,
    read_site,
)
from harness.run import Places
from harness.store import Store

SECONDS_BETWEEN = 15.0
"""Between two questions to the scheduler while waiting."""
SECONDS_TO_END = 2.0
"""The same, when every cell is stored or has failed and jobs are about to end."""
SECONDS_OF_READING = 1.0
"""Between two looks at what nodes wrote while waiting."""


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
    asked = read_profile(profile, words)
    needs = by_needs(
        missing, asked, site
    )  # says what the cluster cannot give before anything is out
    cluster = Cluster(places)
    look = cluster.look()
    failed = cluster.give_up(missing, asked, site, look)
    out = look.out
    todo = [c for c in missing if cell_key(c) not in out and cell_key(c) not in failed]
    seconds = mean_seconds(places)
    made = cluster.submit(todo, asked, site, target, command, seconds, look) if todo else []
    _say(f"{len(missing) - len(todo) - len(failed)} cells are out already, {len(todo)} submitted"
         + (f" as {_arrays(made)} on {_partitions(needs)}" if made else ""))  # fmt: skip
    if not wait:
        if todo or out:
            _say(
                "watch: python -m harness.status --watch; the same command again prints what is stored"
            )
        return failed
    while True:
        look = _follow(missing, cluster)
        failed |= cluster.give_up(missing, asked, site, look)
        hungry = cluster.hungry(look) - set(failed)
        if not (again := [cell for cell in missing if cell_key(cell) in hungry]):
            return _ended(missing, cluster, places, look) | failed
        made = cluster.submit(again, asked, site, target, command, seconds, look)
        _say(f"{len(again)} cells ran out of memory; submitted with more as {_arrays(made)}")


def _follow(missing: Sequence[Cell], cluster: Cluster) -> Look:
    """Show progress until no job of these cells is out; returns what the scheduler said last.

    The scheduler is asked every SECONDS_BETWEEN; records, failures and epochs are read from the disk
    that the nodes write to.
    """
    open_ones = {cell_key(cell): cell for cell in missing}
    store, board = Store(cluster.places.results), cluster.board
    display = Display(len(open_ones), board, 1)
    look, asked, said = cluster.look(), time.monotonic(), ""
    began = min([time.time(), *(one.submitted for one, _, _ in look.cells.values())])
    with display:
        while True:
            interval = SECONDS_BETWEEN if open_ones else min(SECONDS_TO_END, SECONDS_BETWEEN)
            if time.monotonic() - asked >= interval:
                look, asked = cluster.look(), time.monotonic()
            display.workers = max(1, sum(one.updated >= began for one in board.lives()))
            for key in [key for key in open_ones if _since(store.cells / key, began)]:
                if (record := store.load(key)) is not None:
                    best = max((row["NDCG@10"] for row in record.curve), default=None)
                    display.finished(open_ones.pop(key), "done", record.seconds["total"], best,
                                     record.epochs, "")  # fmt: skip
            for failure in board.failures():
                if failure.key in open_ones and failure.when >= began:
                    display.finished(
                        open_ones.pop(failure.key), "failed", 0.0, None, 0, failure.error
                    )
            if (line := f"cluster: {_states(look)}") != said:
                display.console.print(line, markup=False, highlight=False)
                said = line
            if not look.out & {cell_key(cell) for cell in missing}:
                return look
            time.sleep(min(SECONDS_OF_READING, SECONDS_BETWEEN))


def _since(path: Path, moment: float) -> bool:
    """Whether a record was stored after a moment; an older one was made by other code."""
    try:
        return path.stat().st_mtime >= moment
    except OSError:
        return False


def _ended(missing: Sequence[Cell], cluster: Cluster, places: Places, look: Look) -> dict[str, str]:
    """Why cells that are neither stored nor out are not there, by key."""
    failed: dict[str, str] = {}
    board = Board(places.results)
    for cell in plan(missing, places, any_machine=True).missing:
        key = cell_key(cell)
        failure = board.failure(key)
        why = "it was not submitted"
        if key in look.cells:
            one, _, state = look.cells[key]
            why = f"its job ended without it ({state.name}); see {cluster.log(one, key)}"
        failed[key] = failure.error if failure else why
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
    """`3 PENDING (Resources), 4 RUNNING`: why something waits is what a person needs to know."""
    counted = Counter(
        f"{state.name} ({state.reason})"
        if state.name == "PENDING" and state.reason not in {"", "None"}
        else state.name
        for _, _, state in look.cells.values()
    )
    return ", ".join(f"{n} {name}" for name, n in sorted(counted.items())) or "none out"


def _arrays(made: Sequence[Submission]) -> str:
    jobs = sum(len(one.packs) for one in made)
    ids = ", ".join(one.array for one in made)
    return f"{jobs} job{'s' * (jobs > 1)} ({'array' if len(made) == 1 else 'arrays'} {ids})"


def _partitions(needs: Sequence[tuple[SlurmProfile, Sequence[Cell]]]) -> str:
    names = [f"'{name}'" for name in dict.fromkeys(asked.partition for asked, _ in needs)]
    return f"partition{'s' * (len(names) > 1)} {', '.join(names)}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
