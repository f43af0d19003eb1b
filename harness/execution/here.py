"""Run cells on this machine: as many one-thread worker processes as there are cores.

Workers are spawned once and import the models once. What is timed runs after all other cells, each in a
process of its own with nothing beside it. Two `reproduce` processes on one results folder
share the work: a cell that the other one holds is left to it, and looked up when it is done.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import wait as wait_for
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

import torch

from harness.config import Cell, cell_key
from harness.errors import InputError, warnings_in_one_line
from harness.execution.live import Board, Failure, Live
from harness.execution.plan import alone, current
from harness.execution.progress import Display
from harness.fingerprint import code_fingerprint
from harness.run import Places, run
from harness.store import Store, disk_full, disk_full_is_said
from harness.training.loop import Progress, StoppedError
from harness.zoo import find

MOST_DEATHS = 2
"""A cell whose worker was killed so often (out of memory, most likely) counts as failed."""
SECONDS_TO_STOP = 20.0
"""How long workers may take to reach the end of a batch after Ctrl-C, before they are ended."""


class Ended(Enum):
    """How a worker left a cell."""

    done = "done"
    stored = "stored"
    busy = "busy"
    failed = "failed"
    stopped = "stopped"


@dataclass(frozen=True)
class Outcome:
    """What a worker says of a cell."""

    key: str
    ended: Ended
    message: str = ""
    """The error's last line, or what became of a corrupt file."""
    seconds: float = 0.0
    validation: float | None = None
    epochs: int = 0


def name_of(cell: Cell) -> str:
    """A cell as a person calls it."""
    timing = " (timing)" if alone(cell) else ""
    return f"{find(cell.method).label} {cell.data} seed {cell.seed}{timing}"


def gpus() -> list[str]:
    """GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = [str(number) for number in range(count)] if chosen is None else chosen.split(",")
    return [name.strip() for name in names if name.strip()][:count]


def host() -> str:
    """What to call the machine: the name that SLURM has for it, or its own."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def slots() -> int:
    """Workers that this machine has room for: one a GPU, or one a core where there is none."""
    return len(gpus()) or cores()


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(
    cells: Sequence[Cell], places: Places, display: Display, workers: int | None = None
) -> dict[str, str]:
    """Run the cells, and return the error's last line of each one that failed, by key.

    Raises:
        InputError: Something that concerns every cell (an unusable data set, a full disk).
        KeyboardInterrupt: After Ctrl-C, when every worker has stopped.
    """
    Store(places.results).ensure_writable()
    by_key = {cell_key(cell): cell for cell in cells}
    failed: dict[str, str] = {}
    if not by_key:
        return failed
    count = max(1, min(workers or slots(), len(by_key)))
    context = multiprocessing.get_context("spawn")
    stop, number = context.Event(), context.Value("i", 0)
    left, deaths = dict(by_key), dict.fromkeys(by_key, 0)
    breaks, began = 0, time.time()
    board = Board(places.results)
    names = {key: name_of(cell) for key, cell in by_key.items()}
    with display, worker_environment(), board.queue(names):
        while left:
            batch = _together(left, deaths)
            pool = ProcessPoolExecutor(min(count, len(batch)), context, _start_worker,
                                       (stop, number, gpus()))  # fmt: skip
            try:
                for outcome in _outcomes(pool, batch, places):
                    if outcome.ended is Ended.busy:
                        continue
                    cell = left.pop(outcome.key)
                    if outcome.ended is Ended.failed:
                        failed[outcome.key] = outcome.message
                    display.finished(cell, outcome.ended.value, outcome.seconds,
                                     outcome.validation, outcome.epochs, outcome.message)  # fmt: skip
            except BrokenProcessPool:
                pool.shutdown(wait=True)  # until its processes are gone, they hold their locks
                for key in _killed(left, deaths, places, began):
                    failed[key] = "the worker process was killed (out of memory?)"
                    display.finished(left.pop(key), "failed", 0.0, None, 0, failed[key])
                breaks += 1
                if breaks > sum(deaths.values()) + MOST_DEATHS:
                    raise InputError(
                        "worker processes are killed before they begin (too little memory, or a limit "
                        "of the system?); try --workers 1, or run on a larger machine"
                    ) from None
            except BaseException:
                stop.set()
                _end(pool)
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    return failed


def _together(left: dict[str, Cell], deaths: dict[str, int]) -> dict[str, Cell]:
    """The cells to hand to one pool.

    A killed worker takes its neighbours with it, so a cell that was worked on when that happened runs
    again when the others are done, and alone. A cell that is timed runs last, and alone.
    """
    trusted = {key: cell for key, cell in left.items() if not deaths[key] and not alone(cell)}
    return trusted or dict(sorted(left.items(), key=lambda item: alone(item[1]))[:1])


def _outcomes(
    pool: ProcessPoolExecutor, left: dict[str, Cell], places: Places
) -> Iterator[Outcome]:
    """Outcomes as they come; cells that another process holds are waited for at the end."""
    cells = list(left.values())
    busy = []
    for outcome in _completed(pool.submit(_work, cell, places, False) for cell in cells):
        if outcome.ended is Ended.busy:
            busy.append(left[outcome.key])
        yield outcome
    yield from _completed(pool.submit(_work, cell, places, True) for cell in busy)


def _completed(futures: Iterable[Future[Outcome]]) -> Iterator[Outcome]:
    """Results in the order of completion. Wakes often, so that Ctrl-C is heard at once."""
    open_ones = set(futures)
    while open_ones:
        done, open_ones = wait(open_ones, timeout=0.5, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


def _killed(
    left: dict[str, Cell], deaths: dict[str, int], places: Places, began: float
) -> list[str]:
    """After a worker was killed: the cells that were being worked on too often when that happened."""
    board = Board(places.results)
    given_up = []
    for live in board.lives():
        if live.key in left and not board.working(live.key):
            board.clear(live.key)
            if live.started < began:  # left by a process that died before this one was there
                continue
            deaths[live.key] += 1
            if deaths[live.key] >= MOST_DEATHS:
                given_up.append(live.key)
                board.fail(
                    _failure(left[live.key], "the worker process was killed (out of memory?)")
                )
    return given_up


def _end(pool: ProcessPoolExecutor) -> None:
    """Let workers reach the end of their batch, then end those that did not."""
    processes = list((pool._processes or {}).values())  # noqa: SLF001 - no public way to their ids
    pool.shutdown(wait=False, cancel_futures=True)
    deadline = time.monotonic() + SECONDS_TO_STOP
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.terminate()


ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # glibc gives large blocks back to the system at once; keeping them spares a training step the page
    # faults (6 to 10 % of its time for MMMLP, MB-STR and M3BSR)
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
"""Of a worker process: one thread, whatever its libraries are, and memory that is kept."""


@contextmanager
def worker_environment() -> Iterator[None]:
    """Children that are started inside have ENVIRONMENT."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_stop: Event | None = None


def _start_worker(stop: Event, number: Synchronized[int], gpus: Sequence[str]) -> None:
    """Once a worker process: one thread, Ctrl-C left to the parent, an end when the parent ends.

    Workers take the GPUs in turn; CUDA has not been touched yet, so it sees the worker's alone.
    """
    global _stop  # noqa: PLW0603 - how an initialiser hands something to the tasks of its process
    _stop = stop
    if gpus:
        with number.get_lock():
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number.value % len(gpus)]
            number.value += 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings_in_one_line()
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _stopped() -> bool:
    """Whether the parent asked its workers to stop."""
    return _stop is not None and _stop.is_set()


def _end_with(sentinel: int) -> None:
    """End this process when the parent is gone, so that no orphan goes on."""
    wait_for([sentinel])
    os._exit(1)


def _work(cell: Cell, places: Places, wait_for_lock: bool) -> Outcome:
    """One cell, in a worker: run it unless another process holds it or has just stored it."""
    key, board = cell_key(cell), Board(places.results)
    with (
        disk_full_is_said(places.results),
        board.lock(key, wait=wait_for_lock, stop=_stopped) as mine,
    ):
        if not mine:
            return Outcome(key, Ended.stopped if wait_for_lock else Ended.busy)
        record = Store(places.results).load(key)
        if record is not None and current(record, cell, places):
            return Outcome(key, Ended.stored)
        try:
            return _run(key, cell, places, board)
        except StoppedError:
            return Outcome(key, Ended.stopped)
        except InputError:
            raise
        except Exception as error:
            if disk_full(error):
                raise
            failure = _failure(cell, f"{type(error).__name__}: {error}", traceback.format_exc())
            board.fail(failure)
            return Outcome(key, Ended.failed, failure.error)
        finally:
            board.clear(key)


def _run(key: str, cell: Cell, places: Places, board: Board) -> Outcome:
    """Run a cell and keep its live file up to date."""
    label, epochs = find(cell.method).label, cell.train.epochs
    if alone(cell):
        label, epochs = f"{label} (timing)", 0
    live = Live(key, label, cell.data, cell.seed, os.getpid(), host(),
                time.time(), epochs=epochs)  # fmt: skip
    board.forgive(key)
    board.put(live)

    def report(progress: Progress) -> None:
        row = progress.curve[-1]
        live.epoch, live.loss = progress.epoch, row["loss"]
        live.validation, live.best = row["NDCG@10"], progress.best
        last = min(cell.train.epochs, progress.best_epoch + cell.train.patience)
        live.ends_at = time.time() + row["seconds"] * (last - progress.epoch)
        board.put(live)

    timed = f"timing-{platform.node()}"
    lock = board.lock(timed, wait=True, stop=_stopped) if alone(cell) else nullcontext(True)
    with lock as mine:  # two `reproduce` processes do not time side by side
        if not mine:
            raise StoppedError
        record = run(cell, places, report, _stopped)
    best = max((row["NDCG@10"] for row in record.curve), default=None)
    return Outcome(key, Ended.done, "", record.seconds["total"], best, record.epochs)


def _failure(cell: Cell, error: str, trace: str = "") -> Failure:
    """Why a cell failed, for its file in results/failed."""
    method = find(cell.method)
    line = error.strip().splitlines()[-1] if error.strip() else "no message"
    return Failure(cell_key(cell), method.label, cell.data, cell.seed, line, trace, host(),
                   time.time(), code_fingerprint(method.module, cell.task))  # fmt: skip
