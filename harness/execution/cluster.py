"""Run cells on a SLURM cluster through submitit: packed into arrays, followed by stored records.

A submission is written down in results/slurm/ID.json before sbatch is called, so nothing that runs is
ever lost sight of: the same `reproduce` command, typed again, leaves alone what is queued or running,
picks up what is stored, and submits the rest. What a job did is judged by the records, failures and
checkpoints that it left, not by what the scheduler says of it.

Inside a job the cells of its pack run as on any machine (`harness.execution.here`): one worker a GPU or
core, one result a cell, locks, checkpoints every epoch.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import submitit

from harness.config import Cell, cell_key
from harness.errors import InputError, warnings_in_one_line
from harness.execution.arrays import submit_array
from harness.execution.here import gpus, name_of, run_here
from harness.execution.live import Board, Failure
from harness.execution.plan import alone
from harness.execution.progress import Display
from harness.execution.slurm import (
    UNKNOWN,
    Site,
    SlurmProfile,
    State,
    megabytes,
    most_memory_of,
    named,
    settled_for,
    states,
)
from harness.fingerprint import code_fingerprint
from harness.run import Places
from harness.store import write_json
from harness.zoo import find

GUESS = 600.0
"""Seconds of a cell that nothing is known of."""
SECONDS_OF_LAG = 60.0
"""How late a shared disk may show what a node has written."""
OUT_OF_MEMORY = ("OUT_OF_MEMORY", "oom-kill", "oom_kill", "exceeded memory limit", "out of memory?")
"""What SLURM, its logs and our own failures say when memory was short."""


# ------------------------------------------------------------------------------- inside a job


class Pack:
    """The cells of one job, run one after another (or side by side, one worker a GPU or core).

    submitit calls `checkpoint` when SLURM says that the job must end (preemption, time limit); the job
    is queued again and goes on: finished cells are stored, the others have their last epoch.
    """

    def __init__(self, cells: Sequence[Cell], places: Places, code: Mapping[str, str]) -> None:
        self.cells, self.places, self.code = tuple(cells), places, dict(code)

    def __call__(self) -> dict[str, str]:
        """Run what is not stored; why cells failed, by key."""
        warnings_in_one_line()
        for method, code in self.code.items():
            if code_fingerprint(find(method).module) != code:
                print(f"note: the code of {method} changed after submission; it runs as it is now",
                      file=sys.stderr)  # fmt: skip
        workers = len(gpus()) or int(os.environ.get("SLURM_CPUS_PER_TASK", "0")) or None
        board = Board(self.places.results)
        display = Display(len(self.cells), board, workers or 1)
        return run_here(self.cells, self.places, display, workers)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The same pack again: what it did is on the disk."""
        return submitit.helpers.DelayedSubmission(self)


# -------------------------------------------------------------------------------- packing


def packs(
    cells: Sequence[Cell],
    seconds: Callable[[Cell], float | None],
    profile: SlurmProfile,
    workers: int,
) -> list[list[Cell]]:
    """Cells as jobs, the longest first.

    A job is filled until its workers are busy for `pack_minutes`; a cell that is measured (Table 4) has
    a job of its own. `seconds` is what a cell takes on one worker; None is not known.
    """
    lone = [[cell] for cell in cells if alone(cell)]
    rest = [cell for cell in cells if not alone(cell)]
    lengths = {id(cell): seconds(cell) or GUESS for cell in rest}
    room = 60.0 * profile.pack_minutes * workers
    made: list[list[Cell]] = []
    left = 0.0
    for cell in sorted(rest, key=lambda cell: -lengths[id(cell)]):
        if not made or lengths[id(cell)] > left:
            made.append([])
            left = room
        made[-1].append(cell)
        left -= lengths[id(cell)]
    return made + lone


# ------------------------------------------------------------------------------- submission


@dataclass
class Submission:
    """One array of jobs, as written in results/slurm/ID.json."""

    id: str
    target: str
    command: str
    packs: list[list[str]]
    """Keys of the cells of each task, by its index."""
    names: dict[str, str]
    """What a person calls each cell, by key."""
    memory: str
    exclusive: bool = False
    array: str = ""
    """The array's job id; empty while sbatch has not answered."""
    submitted: float = 0.0
    """Seconds since 1970."""

    @property
    def job_name(self) -> str:
        """How the scheduler knows it: unique."""
        return f"m3bsr-{self.id}"

    def task(self, index: int) -> str:
        """The scheduler's id of one task; a single pack is a plain job."""
        return self.array if len(self.packs) == 1 else f"{self.array}_{index}"


class Cluster:
    """The submissions of one results folder."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.folder = places.results / "slurm"
        self.logs = self.folder / "logs"
        self.board = Board(places.results)

    # ------------------------------------------------------------------------------ what is out

    def submissions(self) -> list[Submission]:
        """All that were ever written down here, oldest first."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(Submission(**json.loads(path.read_text(encoding="utf8"))))
            except (OSError, ValueError, TypeError):
                warnings.warn(f"'{path}' cannot be read; what it submitted is not followed",
                              RuntimeWarning, stacklevel=2)  # fmt: skip
        return sorted(found, key=lambda one: one.submitted)

    def look(self) -> Look:
        """Every cell that was submitted and is not stored, with its job's state: one call of squeue.

        Raises InputError when the scheduler does not answer: nothing is submitted twice on a guess.
        """
        made = [self._found(one) for one in self.submissions()]
        made = [one for one in made if one.array]
        open_ones = [one for one in made if any(not self._over(one, key) for key in _keys(one))]
        said = states([one.array for one in open_ones])
        cells: dict[str, tuple[Submission, int, State]] = {}
        for one in open_ones:
            for index, keys in enumerate(one.packs):
                state = said.get(one.task(index)) or said.get(one.array) or State(UNKNOWN)
                for key in keys:
                    if not self._over(one, key):
                        cells[key] = (one, index, state)  # a later submission of a cell counts
        late = {key for key, (_, _, state) in cells.items() if self._late(key, state)}
        return Look(cells, frozenset(late))

    def _late(self, key: str, state: State) -> bool:
        """Whether a job has just ended well without a record or failure: a shared disk may show it late."""
        just = state.ended is not None and time.time() - state.ended < SECONDS_OF_LAG
        return state.name == "COMPLETED" and just and self.board.failure(key) is None

    def _over(self, one: Submission, key: str) -> bool:
        """Whether a cell was stored after it was submitted; an older record was made by other code."""
        try:
            return (self.places.results / "cells" / key).stat().st_mtime >= one.submitted
        except OSError:
            return False

    def _found(self, one: Submission) -> Submission:
        """A submission whose process died before it could write down the job's id: asked by name."""
        if not one.array and (array := named(one.job_name)):
            one.array = array
            self._write(one)
        return one

    # --------------------------------------------------------------------------------- submit

    def submit(
        self,
        cells: Sequence[Cell],
        profile: SlurmProfile,
        site: Site,
        target: str,
        command: str,
        seconds: Callable[[Cell], float | None],
        look: Look | None = None,
    ) -> list[Submission]:
        """Submit cells as arrays, and return at once.

        Args:
            cells: What is missing and not out already.
            profile: As read; a method may need something else than the others.
            site: Its limits, which fill in what the profile leaves open.
            target: Names the artefact, for `--cancel`.
            command: What was typed.
            seconds: Expected of a cell on one worker.
            look: What was out a moment ago; None asks.

        Raises:
            InputError: sbatch refused; with its message. What was submitted before stays.
        """
        greedy = self.hungry(look or self.look())
        groups: list[tuple[SlurmProfile, list[Cell]]] = []
        for asked, group in by_needs(cells, profile, site):
            more = replace(asked, memory=f"{_most_memory(asked, site)}M")
            groups.append((asked, [cell for cell in group if cell_key(cell) not in greedy]))
            groups.append((more, [cell for cell in group if cell_key(cell) in greedy]))
        made = []
        for asked, group in groups:
            jobs = packs(group, seconds, asked, workers_of(asked))
            shared = [job for job in jobs if not alone(job[0])]
            single = [job for job in jobs if alone(job[0])]
            for some, exclusive in ((shared, False), (single, True)):
                most = site.largest_array - 1
                for start in range(0, len(some), most):
                    part = some[start : start + most]
                    made.append(self._submit(part, asked, target, command, exclusive=exclusive))
        return made

    def _submit(
        self,
        jobs: Sequence[Sequence[Cell]],
        profile: SlurmProfile,
        target: str,
        command: str,
        *,
        exclusive: bool,
    ) -> Submission:
        one = Submission(
            id=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}",
            target=target,
            command=command,
            packs=[[cell_key(cell) for cell in job] for job in jobs],
            names={cell_key(cell): name_of(cell) for job in jobs for cell in job},
            memory=profile.memory,
            exclusive=exclusive,
            submitted=time.time(),
        )
        self._write(one)
        places = Places(self.places.data.resolve(), self.places.results.resolve())
        calls = [Pack(job, places, _codes(job)) for job in jobs]
        try:
            one.array = submit_array(calls, profile, self.logs, one.job_name, exclusive=exclusive)
        except InputError:
            (self.folder / f"{one.id}.json").unlink(missing_ok=True)
            raise
        self._write(one)
        return one

    def _write(self, one: Submission) -> None:
        write_json(self.folder / f"{one.id}.json", asdict(one))

    # ------------------------------------------------------------------------------- memory

    def hungry(self, look: Look) -> set[str]:
        """Keys of the cells whose job has run out of memory."""
        return {
            key
            for key, (one, _, state) in look.cells.items()
            if not state.alive and self._starved(key, one, state)
        }

    def _starved(self, key: str, one: Submission, state: State) -> bool:
        failure = self.board.failure(key)
        said = f"{state.name} {state.reason} {failure.error if failure else ''}"
        if failure is None and state.name in {"FAILED", "OUT_OF_MEMORY", UNKNOWN}:
            said += self._end_of_log(one, key)
        return any(word.lower() in said.lower() for word in OUT_OF_MEMORY)

    def log(self, one: Submission, key: str) -> Path:
        """Where the job of a cell writes what goes wrong."""
        index = next(i for i, keys in enumerate(one.packs) if key in keys)
        return self.logs / f"{one.task(index)}_0_log.err"

    def _end_of_log(self, one: Submission, key: str) -> str:
        try:
            return self.log(one, key).read_bytes()[-4000:].decode(errors="replace")
        except OSError:
            return ""

    def give_up(
        self,
        cells: Sequence[Cell],
        profile: SlurmProfile,
        site: Site,
        look: Look | None = None,
    ) -> dict[str, str]:
        """Record as failed the cells that ran out of the most memory that they may be tried with."""
        look = look or self.look()
        hungry = self.hungry(look)
        tried: dict[str, int] = {}
        for one in self.submissions():
            for key in _keys(one):
                tried[key] = max(tried.get(key, 0), megabytes(one.memory))
        failed = {}
        starved = [cell for cell in cells if cell_key(cell) in hungry]
        for asked, group in by_needs(starved, profile, site):
            for cell in group:
                key = cell_key(cell)
                if tried[key] < _most_memory(asked, site):
                    continue
                error = f"out of memory with {tried[key]}M; set slurm.memory to more"
                method = find(cell.method)
                self.board.fail(Failure(
                    key, method.label, cell.data, cell.seed, error, "", look.cells[key][2].node,
                    time.time(), code_fingerprint(method.module, cell.task),
                ))  # fmt: skip
                failed[key] = error
        return failed


def by_needs(
    cells: Sequence[Cell], profile: SlurmProfile, site: Site
) -> list[tuple[SlurmProfile, list[Cell]]]:
    """The distinct settled profiles that some cells need, each with its cells.

    Raises InputError where the cluster cannot give what one of them asks for.
    """
    methods = [find(name) for name in dict.fromkeys(cell.method for cell in cells)]
    return [
        (asked, [cell for cell in cells if cell.method in {method.key for method in sharing}])
        for asked, sharing in settled_for(methods, profile, site)
    ]


def workers_of(asked: SlurmProfile) -> int:
    """Cells that run side by side in a job of a settled profile: one a GPU, without GPUs one a core."""
    return max(1, asked.gpu_count or asked.cpus)


def _most_memory(asked: SlurmProfile, site: Site) -> int:
    """MiB that a cell is tried with at most: `more_memory` times as much, on no larger node than there is."""
    memory = megabytes(asked.memory)
    most = most_memory_of(site.partition(asked.partition))
    return max(memory, min(most, int(memory * asked.more_memory)))


@dataclass(frozen=True)
class Look:
    """What is out on the cluster at one moment."""

    cells: Mapping[str, tuple[Submission, int, State]]
    """By key: the submission, the task's index in it, and the task's state."""
    late: frozenset[str] = frozenset()
    """Keys of cells whose job has just ended well, and whose record is not seen yet."""

    @property
    def out(self) -> set[str]:
        """Keys of the cells whose job may still write a record, or whose record may still appear."""
        return {key for key, (_, _, state) in self.cells.items() if state.alive} | self.late

    def counts(self) -> dict[str, int]:
        """Cells by their job's state."""
        found: dict[str, int] = {}
        for _, _, state in self.cells.values():
            found[state.name] = found.get(state.name, 0) + 1
        return found


def _keys(one: Submission) -> list[str]:
    return [key for keys in one.packs for key in keys]


def _codes(cells: Sequence[Cell]) -> dict[str, str]:
    return {cell.method: code_fingerprint(find(cell.method).module) for cell in cells}
