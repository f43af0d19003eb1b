"""`python -m harness.doctor`: is this machine, and its cluster, ready? What is wrong, and what to do."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from harness.errors import InputError, OneLineParser

EXAMPLE = """\
examples:
  python -m harness.doctor
  python -m harness.doctor --on slurm:gpu slurm.partition=long
exit code: 0 ready, 1 something must be done first, 2 a mistake in what was typed"""
LEAST_DISK_GIB = 2.0


class Grade(Enum):
    """How bad a finding is."""

    ok = "ok"
    note = "note"
    """Works, but not as well as it could."""
    bad = "bad"
    """Must be put right first."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what to do about it."""

    what: str
    grade: Grade
    said: str
    advice: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Print every finding; returns 1 when one of them is bad."""
    words = OneLineParser(
        prog="python -m harness.doctor", epilog=EXAMPLE,
        description="Check the machine: torch, GPU, disk, data checksums, SLURM.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    words.add_argument("words", nargs="*", metavar="slurm.key=value",
                       help="settings of the SLURM profile")  # fmt: skip
    words.add_argument("--on", default="", metavar="slurm[:PROFILE]",
                       help="check a profile against the cluster, nothing is submitted")  # fmt: skip
    words.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    words.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR")
    try:
        options = words.parse_intermixed_args(arguments)
        where, _, profile = options.on.partition(":")
        if where not in ("", "slurm"):
            raise InputError(f"--on {options.on}: slurm or slurm:PROFILE is needed")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    checks: list[Callable[[], Iterator[Finding]]] = [
        libraries,
        gpus,
        lambda: folders(options.results),
        lambda: data_sets(options.data_dir),
        lambda: cluster(profile, options.words, asked=bool(where)),
    ]
    worst = Grade.ok
    for check in checks:
        for finding in check():
            worst = max(worst, finding.grade, key=list(Grade).index)
            print(f"{finding.grade.value:4}  {finding.what}: {finding.said}")
            if finding.advice:
                print(f"      -> {finding.advice}")
    return 1 if worst is Grade.bad else 0


def libraries() -> Iterator[Finding]:
    """Python, torch and threads."""
    import torch

    from harness.execution.here import cores

    yield Finding("python", Grade.ok, platform.python_version())
    yield Finding("torch", Grade.ok, f"{torch.__version__}, {cores()} cores for workers")


def gpus() -> Iterator[Finding]:
    """What torch sees; a GPU that the driver has and torch does not is a wrong build."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        yield Finding("GPU", Grade.ok, ", ".join(names))
        return
    if shutil.which("nvidia-smi"):
        yield Finding("GPU", Grade.note, "nvidia-smi is there, but torch sees no GPU",
                      "on a login node this is usual; elsewhere install a CUDA build of torch")  # fmt: skip
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    more = f" (CUDA_VISIBLE_DEVICES={hidden})" if hidden is not None else ""
    yield Finding("GPU", Grade.ok, f"none{more}; everything runs on the CPU")


def folders(results: Path) -> Iterator[Finding]:
    """Whether results can be written, and for how long."""
    from harness.store import Store

    try:
        Store(results).ensure_writable()
    except InputError as error:
        yield Finding("results", Grade.bad, str(error))
        return
    free = shutil.disk_usage(results).free / 2**30
    little = free < LEAST_DISK_GIB
    yield Finding("results", Grade.bad if little else Grade.ok,
                  f"'{results}' can be written, {free:.1f} GiB free",
                  "free some, or choose another folder with --results DIR" if little else "")  # fmt: skip


def data_sets(root: Path) -> Iterator[Finding]:
    """Every prepared set, byte by byte against its checksums."""
    from harness.data.dataset import Dataset, verify
    from harness.data.files import MANIFEST

    names = sorted(path.parent.name for path in root.glob(f"*/{MANIFEST}"))
    if not names:
        yield Finding("data", Grade.note, f"no prepared set in '{root}'",
                      "the demo's are made when first used; others: python -m harness.prepare --help")  # fmt: skip
    for name in names:
        try:
            dataset = Dataset.open(root, name)
            verify(dataset)
        except InputError as error:
            yield Finding(f"data {name}", Grade.bad, str(error))
        else:
            yield Finding(f"data {name}", Grade.ok,
                          f"{dataset.users:,} users, {dataset.items:,} items, every checksum holds")  # fmt: skip


def cluster(profile: str, words: list[str], *, asked: bool) -> Iterator[Finding]:
    """SLURM's partitions and limits, and whether the profile fits them; nothing is submitted."""
    from harness.execution.slurm import dry_run, read_profile, read_site, resources, settled_for
    from harness.zoo import METHODS, REFERENCES

    if not asked and shutil.which("sinfo") is None:
        yield Finding("SLURM", Grade.ok, "not on this machine; runs stay here")
        return
    try:
        wanted = read_profile(profile, words)
        site = read_site()
    except InputError as error:
        yield Finding("SLURM", Grade.bad if asked else Grade.note, str(error))
        return
    for one in site.partitions.values():
        limit = "no time limit" if one.most_minutes is None else f"{one.most_minutes} min"
        mark = " (default)" if one.default else ""
        yield Finding(f"partition {one.name}{mark}", Grade.ok if one.up else Grade.note,
                      f"{one.nodes} nodes, {one.cpus} cores, {one.memory} MiB, "
                      f"{one.gres or 'no GPU'}, {limit}{'' if one.up else ', down'}")  # fmt: skip
    yield Finding(
        "SLURM", Grade.ok, f"{site.version}, arrays of at most {site.largest_array} tasks"
    )
    if not site.requeues:
        yield Finding("requeue", Grade.note, "this cluster does not queue jobs again (JobRequeue=0)",
                      "after a preemption or time-out type the same command again")  # fmt: skip
    name = f"profile {profile or '(defaults)'}"
    advice = "set slurm.key=value, or copy slurm/example-site.yaml and edit it"
    try:
        needs = settled_for(METHODS + REFERENCES, wanted, site)
    except InputError as error:
        yield Finding(name, Grade.bad, str(error), advice)
        return
    for settled, sharing in sorted(needs, key=lambda need: -len(need[1])):
        usual = len(sharing) > (len(METHODS) + len(REFERENCES)) // 2
        whose = "" if usual else f" for {', '.join(method.label for method in sharing)}"
        try:
            said = dry_run(settled)
        except InputError as error:
            yield Finding(name + whose, Grade.bad, str(error), advice)
        else:
            yield Finding(name + whose, Grade.ok, f"{resources(settled)}; {said}")


if __name__ == "__main__":
    sys.exit(main())
