"""`python -m harness.status`: what runs, what is done, what failed; from any shell, at any time.

Reads the results folder alone, so it works while a `reproduce` runs elsewhere and after it died.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness.errors import InputError, OneLineParser

SECONDS_BETWEEN = 15.0
"""Between two questions to a cluster's scheduler."""
EXAMPLE = "example: python -m harness.status --watch"


def main(arguments: list[str] | None = None) -> int:
    """Print the state of a results folder; with --watch again and again until Ctrl-C."""
    parser = OneLineParser(
        prog="python -m harness.status", epilog=EXAMPLE,
        description="What is running (epoch, loss, time left), done and failed.",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--watch", action="store_true",
                        help="again every two seconds (a cluster is asked every 15)")  # fmt: skip
    try:
        options = parser.parse_args(arguments)
        said, asked = _cluster(options.results), time.monotonic()
        while True:
            show(options.results, said)
            if not options.watch:
                return 0
            time.sleep(2)
            if time.monotonic() - asked >= SECONDS_BETWEEN:
                said, asked = _cluster(options.results), time.monotonic()
            print()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def show(results: Path, cluster: Sequence[str]) -> None:
    """Print the state once; `cluster` is what the scheduler said."""
    from rich.console import Console

    from harness.execution.live import Board
    from harness.execution.progress import live_table
    from harness.execution.remote import failures_by_host

    console = Console()
    board = Board(results)
    lives = board.lives()
    working = [live for live in lives if board.working(live.key)]
    died = [live for live in lives if not board.working(live.key)]
    failures = board.failures()
    cells = results / "cells"
    done = sum(1 for path in cells.iterdir() if _is_record(path)) if cells.is_dir() else 0
    queued = board.queued()
    console.print(
        f"{results}: {done} done, {len(working)} running, {len(queued)} queued, "
        f"{len(failures)} failed",
        markup=False,
        soft_wrap=True,
    )
    if working:
        console.print(live_table(working))
    if queued:
        first = ", ".join(list(queued.values())[:3])
        more = f" and {len(queued) - 3} more" if len(queued) > 3 else ""
        console.print(f"queued: {first}{more}", markup=False, soft_wrap=True)
    for live in died:
        console.print(
            f"stopped: {live.method} {live.data} seed {live.seed} after epoch {live.epoch} "
            f"(process {live.process} on {live.host} is gone); the same reproduce command goes on there",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    for line in cluster:
        console.print(line, markup=False, soft_wrap=True)
    if failures and (cluster or len({failure.host for failure in failures}) > 1):
        console.print(failures_by_host([failure.host for failure in failures]), markup=False)
    for failure in failures:
        console.print(
            f"failed: {failure.method} {failure.data} seed {failure.seed}: {failure.error}",
            markup=False, soft_wrap=True,
        )  # fmt: skip


def _cluster(results: Path) -> list[str]:
    """What the scheduler says; a scheduler that does not answer is said too, and stops nothing."""
    if not (results / "slurm").is_dir():
        return []
    from harness.execution.remote import lines
    from harness.run import Places

    try:
        return lines(Places(Path("data"), results))
    except InputError as error:
        return [f"cluster: {error}"]


def _is_record(path: Path) -> bool:
    return not path.name.startswith(".") and ".corrupt" not in path.name


if __name__ == "__main__":
    sys.exit(main())
