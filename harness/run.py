"""run(cell) -> Record: the only place where a model is trained and tested."""

from __future__ import annotations

import datetime as dt
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from numpy import ndarray

from harness.config import Cell, Task, cell_key, plain
from harness.data.batches import EvaluationHistories, TrainingSamples
from harness.data.dataset import Dataset, Split
from harness.errors import InputError
from harness.evaluation.ranks import Validation, final_ranks
from harness.fingerprint import fingerprints
from harness.seeding import stream
from harness.store import Ranks, Record, Store
from harness.training import timing
from harness.training.loop import Checkpoint, Progress, fit
from harness.training.numerics import exact_numerics, facts
from harness.zoo import find
from models.interface import Recommender

LIBRARIES = ("torch", "numpy", "scipy")


@dataclass(frozen=True)
class Places:
    """Folders of this machine; no number depends on them."""

    data: Path
    results: Path

    def checkpoint(self, key: str) -> Path:
        """Where a run keeps its state between epochs."""
        return self.results / "checkpoints" / f"{key}.pt"


def run(
    cell: Cell,
    places: Places,
    report: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Train and test one cell (or time it, as its task says), store its record, and return it.

    Raises:
        InputError: The data set cannot be used, or a method without training is to be timed.
        TrainingDivergedError, BadScoresError: The method failed; nothing is stored.
        StoppedError: `stop` said so; the checkpoint stays.
    """
    key, method = cell_key(cell), find(cell.method)
    clock = Clock()
    reset_peak_memory()
    exact_numerics()
    dataset = open_dataset(places.data, cell.data)
    split = dataset.split(cell.protocol, cell.users)
    if len(split.test.user) < 2:
        raise InputError(
            f"data set '{cell.data}' has one test user under these settings, and a spread over users "
            "needs two; use more users or other readings"
        )
    catalogue = replace(dataset.catalogue(cell.protocol), users=len(split.events.offsets) - 1)
    made_by = fingerprints(method.module, dataset, cell.protocol, cell.task)

    torch.manual_seed(int(stream(cell.seed, "torch").integers(2**63 - 1)))
    model_class, _ = method.load()
    model = model_class(cell.model, catalogue).to(device())
    model.prepare(split.train)
    clock.lap("prepare")

    checkpoint = Checkpoint(places.checkpoint(key), vars(made_by))
    if cell.task is Task.time:
        made = time_model(model, split, cell, clock, stop)
    else:
        made = score_model(model, split, cell, clock, checkpoint, report, stop)
    progress = made.progress
    record = Record(
        key=key,
        config=plain(cell),
        label=method.label,
        fingerprints=made_by,
        versions={"python": platform.python_version(), **versions()},
        host=host() | {"numerics": facts(cell.train.numerics)} | made.host,
        seconds=clock.seconds,
        peak_memory_mib=peak_memory_mib(),
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        train_samples=made.samples,
        epochs=progress.epoch,
        best_epoch=progress.best_epoch,
        curve=progress.curve,
        resumed=progress.resumed,
        finished=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        measured=made.measured,
        ranks=made.ranks,
    )
    Store(places.results).save(record, made.arrays)
    checkpoint.remove()
    return record


@dataclass(frozen=True)
class Made:
    """What a run leaves: ranks of a trained model, or what was measured."""

    samples: int = 0
    """Of one epoch."""
    progress: Progress = field(default_factory=Progress)
    ranks: Ranks | None = None
    measured: dict[str, list[float]] | None = None
    arrays: dict[str, ndarray] = field(default_factory=dict)
    host: dict[str, Any] = field(default_factory=dict)
    """Facts of the machine that only this task records."""


def score_model(
    model: Recommender, split: Split, cell: Cell, clock: Clock, checkpoint: Checkpoint,
    report: Callable[[Progress], None], stop: Callable[[], bool],
) -> Made:  # fmt: skip
    """Train a prepared model and rank. Raises as `run` does."""
    progress, count = Progress(), 0
    if model.trained:
        samples = TrainingSamples(split, model.samples, cell.protocol, cell.train)
        validation = Validation(split, cell.protocol, cell.train.evaluation_batch)
        count = len(samples)
        if not count or not len(validation):
            message = (
                f"data set '{cell.data}' has {count} training samples and {len(validation)} "
                f"validation users for {find(cell.method).label}; use more users or other readings"
            )
            raise InputError(message)
        progress = fit(model, samples, validation, cell.train, cell.seed, checkpoint, report, stop)
    clock.lap("train")
    ranks = final_ranks(model, split, cell.protocol, cell.train.evaluation_batch)
    clock.lap("evaluate")
    return Made(count, progress, ranks, arrays=kept_arrays(model, split, cell))


def time_model(
    model: Recommender, split: Split, cell: Cell, clock: Clock, stop: Callable[[], bool]
) -> Made:
    """Time a prepared model (`harness.training.timing`). Raises as `run` does."""
    if not model.trained:
        raise InputError(f"{find(cell.method).label} is not trained: it has no epoch to time")
    samples = TrainingSamples(split, model.samples, cell.protocol, cell.train)
    measured = timing.measure(model, split, samples, cell, stop)
    clock.lap("train")
    return Made(len(samples), measured=measured, host=timing.host_facts())


def kept_arrays(model: Recommender, split: Split, cell: Cell) -> dict[str, ndarray]:
    """What figures read of a trained model (`Recommender.item_views`); the first run's stand for all."""
    if cell.seed != 1:
        return {}
    histories = EvaluationHistories(split, split.test, cell.protocol)
    model.eval()
    with torch.no_grad():
        views = model.item_views(
            history.to(model.device)
            for _, history in histories.batches(cell.train.evaluation_batch)
        )
    return {name: view.detach().cpu().numpy() for name, view in views.items()}


@cache
def open_dataset(root: Path, name: str) -> Dataset:
    """A data set, opened once a process."""
    return Dataset.open(root, name)


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Clock:
    """Seconds of each stage of a run, and in all."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.seconds[stage] = now - self.last
        self.seconds["total"] = now - self.started
        self.last = now


@cache
def versions() -> dict[str, str]:
    """Releases of the libraries that numbers may depend on."""
    return {name: metadata.version(name) for name in LIBRARIES}


def host() -> dict[str, Any]:
    """The machine, as far as it may matter for a number or for its seconds."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "name": platform.node(),
        "system": platform.platform(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "process": os.getpid(),
    }


def reset_peak_memory() -> None:
    """Begin a new peak, where the system can (Linux, a GPU)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): peak := now


def peak_memory_mib() -> float:
    """Largest resident size since `reset_peak_memory`, in MiB (on a GPU: its allocations).

    Where the system cannot reset it, the largest of this process so far.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
