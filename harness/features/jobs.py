"""Features made by an array of SLURM jobs, a share each, through submitit."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit

from harness.data.extraction import Parts
from harness.errors import unknown, warnings_in_one_line
from harness.execution.arrays import submit_array
from harness.execution.slurm import read_profile, read_site, settle, states
from harness.features.work import Request, work

MOST_JOBS = 16
"""Unless the command line says otherwise: hosts of pictures set the pace, not the number of jobs."""


class Share:
    """A job's share. submitit calls `checkpoint` when SLURM ends the job; queued again, it goes on."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def __call__(self) -> str:
        """Do what is missing of it; what was done, in a line."""
        warnings_in_one_line()
        said = work(self.request, Parts.open(self.request.parts))
        print(said)
        return said

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The same share again: what it did is on the disk."""
        return submitit.helpers.DelayedSubmission(self)


def on_slurm(
    where: str, words: list[str], jobs: int | None, request: Request, parts: Parts
) -> str | None:
    """Submit what is missing, unless jobs are out already; what a person is told.

    None when all parts are there and nothing is out, so that they can be put together. Asked once more
    after that, for the sake of pictures that failed, it submits again.

    Args:
        where: slurm or slurm:PROFILE.
        words: slurm.KEY=VALUE, on top of the profile.
        jobs: How many; None leaves it to us.
        request: The work.
        parts: The chunks.

    Raises:
        InputError: no such profile, the cluster refuses, or does not answer.
    """
    kind, _, name = where.partition(":")
    if kind != "slurm":
        raise unknown("place to run", where, ("here", "slurm", "slurm:PROFILE"))
    record = parts.folder / "slurm.json"
    told = json.loads(record.read_text(encoding="utf8")) if record.is_file() else []
    arrays = [entry["array"] for entry in told]
    alive = Counter(state.name for state in states(arrays).values() if state.alive)
    missing = parts.missing()
    made = f"{len(parts.chunks) - len(missing):,} of {len(parts.chunks):,} parts are made"
    again = "the same command, typed again, goes on"
    if alive:
        jobs_said = ", ".join(f"{count} {state.lower()}" for state, count in alive.items())
        return f"{made}; jobs out: {jobs_said}; {again}"
    if not missing and not (told and told[-1]["merged"]):
        if told:
            told[-1]["merged"] = True
            _write(record, told)
        return None
    profile = settle(read_profile(name, words), read_site())
    count = min(jobs or MOST_JOBS, len(parts.chunks))
    logs = parts.folder.absolute() / "logs"
    array = submit_array(_shares(request, count), profile, logs, "m3bsr-features")
    told.append({"array": array, "jobs": count, "submitted": time.time(), "merged": False})
    _write(record, told)
    before = f" (what stopped earlier jobs is in {logs})" if arrays else ""
    return f"{made}{before}; submitted {count} jobs as {array} to partition {profile.partition}; {again}"


def _write(record: Path, told: list[dict[str, Any]]) -> None:
    """What was submitted, whole or not at all."""
    scratch = record.with_suffix(".new")
    scratch.write_text(json.dumps(told), encoding="utf8")
    scratch.replace(record)


def _shares(request: Request, count: int) -> list[Share]:
    """The request in so many shares, which together keep to its rate, wherever a job starts."""
    absolute = replace(
        request,
        out=request.out.absolute(),
        pictures=request.pictures.absolute(),
        image=_at_home(request.image),
        text=_at_home(request.text),
        fetch=replace(request.fetch, rate=request.fetch.rate / count),
    )
    return [Share(replace(absolute, shard=(share, count))) for share in range(1, count + 1)]


def _at_home(source: Any) -> Any:
    """A model whose folder a job finds from wherever it starts."""
    return None if source is None else replace(source, folder=source.folder.absolute())
