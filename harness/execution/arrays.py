"""One array of SLURM jobs through submitit: what a profile asks for, and what sbatch says to it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from harness.errors import InputError
from harness.execution.slurm import SlurmProfile, outside_jobs

MOST_TIMEOUTS = 1000
"""Times that submitit may queue a job again: what is left gets shorter each time."""


def submit_array(
    calls: Sequence[Callable[[], Any]],
    profile: SlurmProfile,
    logs: Path,
    job_name: str,
    *,
    exclusive: bool = False,
) -> str:
    """Submit each call as a job of one array (one call: a plain job); its id.

    Args:
        calls: Picklable; with a method `checkpoint` a job that SLURM ends early is queued again.
        profile: A settled one.
        logs: Folder of submitit's files, made if it is not there.
        job_name: What squeue shows.
        exclusive: Whole nodes.

    Raises:
        InputError: sbatch refuses; with its message.
    """
    logs.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(
        logs, python=profile.python or None, max_num_timeout=MOST_TIMEOUTS
    )
    executor.update_parameters(**options(profile, job_name, exclusive=exclusive))
    with outside_jobs(), redirect_stderr(io.StringIO()):  # submitit repeats what sbatch says
        try:
            with executor.batch():
                submitted = [executor.submit(call) for call in calls]
            array: str = submitted[0].job_id.partition("_")[0]
        except FailedJobError as error:
            said = [line for line in str(error).splitlines() if line.strip()]
            reason = next((line for line in said if "error" in line.lower()), said[-1])
            raise InputError(
                f"sbatch refused: {reason.removeprefix('sbatch: ')}; see python -m harness.doctor, "
                "and set slurm.partition, slurm.minutes, ..."
            ) from error
    return array


def options(profile: SlurmProfile, job_name: str, *, exclusive: bool = False) -> dict[str, Any]:
    """Options of sbatch as submitit calls them."""
    asked: dict[str, Any] = {
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "gpus_per_node": profile.gpus,
        "gres": profile.gres,
        "exclusive": exclusive,
    }
    return {
        **{key: value for key, value in asked.items() if value},
        "job_name": job_name,
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
