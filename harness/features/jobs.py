"""Features made by an array of SLURM jobs, a share each, through submitit."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from harness.data.extraction import Parts
from harness.errors import InputError, unknown, warnings_in_one_line
from harness.execution.slurm import (
    SlurmProfile,
    outside_jobs,
    read_profile,
    read_site,
    settle,
    states,
)
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
    array = _submit(request, profile, count, logs)
    told.append({"array": array, "jobs": count, "submitted": time.time(), "merged": False})
    _write(record, told)
    before = f" (what stopped earlier jobs is in {logs})" if arrays else ""
    return f"{made}{before}; submitted {count} jobs as {array} to partition {profile.partition}; {again}"


def _write(record: Path, told: list[dict[str, Any]]) -> None:
    """What was submitted, whole or not at all."""
    scratch = record.with_suffix(".new")
    scratch.write_text(json.dumps(told), encoding="utf8")
    scratch.replace(record)


def _submit(request: Request, profile: SlurmProfile, count: int, logs: Path) -> str:
    """Submit the shares as one array; its job id."""
    logs.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(logs, python=profile.python or None, max_num_timeout=1000)
    executor.update_parameters(**_parameters(profile))
    absolute = replace(
        request,
        out=request.out.absolute(),
        pictures=request.pictures.absolute(),
        image=_at_home(request.image),
        text=_at_home(request.text),
        fetch=replace(request.fetch, rate=request.fetch.rate / count),
    )
    shares = [replace(absolute, shard=(share, count)) for share in range(1, count + 1)]
    with outside_jobs():
        try:
            with executor.batch():
                submitted = [executor.submit(Share(share)) for share in shares]
        except FailedJobError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = next((line for line in lines if "error" in line.lower()), lines[-1])
            raise InputError(
                f"sbatch refused: {reason.removeprefix('sbatch: ')}; see python -m harness.doctor, "
                "and set slurm.partition, slurm.minutes, ..."
            ) from error
    array: str = submitted[0].job_id.partition("_")[0]
    return array


def _at_home(source: Any) -> Any:
    """A model whose folder a job finds from wherever it starts."""
    return None if source is None else replace(source, folder=source.folder.absolute())


def _parameters(profile: SlurmProfile) -> dict[str, Any]:
    """Options of sbatch as submitit calls them."""
    asked: dict[str, Any] = {
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "gpus_per_node": profile.gpus,
        "gres": profile.gres,
    }
    return {
        **{key: value for key, value in asked.items() if value},
        "job_name": "m3bsr-features",
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": profile.cpus,
        "mem": profile.memory,
        "time": profile.minutes,
        "array_parallelism": profile.parallel,
        "signal_delay_s": profile.signal_seconds,
        "setup": list(profile.setup) or None,
        "wckey": None,  # submitit's own is refused where such keys are enforced
        # since SLURM 22.05 a step no longer inherits the cores of its job
        "srun_args": ["--cpu-bind=none", f"--cpus-per-task={profile.cpus}", *profile.srun],
        "additional_parameters": {
            ("requeue" if profile.requeue else "no-requeue"): True, **profile.sbatch
        },
    }  # fmt: skip
