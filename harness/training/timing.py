"""Seconds of a training epoch and of a prediction (Table 4), alone on one machine.

An epoch is what `Trainer.epoch` does: the method's refreshed samples, batches put together, losses,
gradients, the optimiser. An epoch of at most WHOLE_STEPS batches is timed whole; of a longer one a block of
BLOCK batches, and the epoch is its beginning plus its batches times the block's mean. A method with
stages is timed in its last one, whose epochs compete for the final weights; an earlier stage has one
epoch timed on the way there.

A prediction is what a server does once a user's history is in memory: encode it, score 1 + 99 candidates,
hand the scores over. What all users share (a graph, vectors of all items) is computed before, as it would
be; `predict_cold` has the prediction that computes it.

Seconds hold for one machine alone: nothing here is compared across processors, threads, GPUs or
releases of torch (`same_machine`).
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from harness.config import Cell
from harness.data.batches import EvaluationHistories, TrainingSamples
from harness.data.dataset import Split
from harness.errors import InputError
from harness.seeding import stream
from harness.training.loop import StoppedError, Trainer
from models.interface import History, Recommender

REPEATS = 5
"""Of everything timed, at least."""
WARM_UP = 10
"""Batches trained before the first is timed; predictions likewise."""
WHOLE_STEPS = 200
"""Batches of the longest epoch that is timed whole."""
BLOCK = 25
"""Batches of a repeat where it is not."""
MOST_STAGES = 10
"""Epochs after which a method that has not reached its last stage is timed where it is."""
ENOUGH_SECONDS = 1.0
"""Predictions are repeated until they have taken this long together, or MOST_REPEATS times."""
MOST_REPEATS = 100
THREADS = 1
"""Of torch, as in every run."""

Measured = dict[str, list[float]]
"""What `measure` says, by name; numbers without repeats are lists of one."""


@dataclass(frozen=True)
class Machine:
    """What seconds depend on beside the code."""

    processor: str
    """Model name."""
    processors: int
    """That this process may use."""
    threads: int
    """Of torch."""
    memory_gib: float
    gpu: str | None
    torch: str
    """Release."""


DECIDES = ("processor", "threads", "gpu", "torch")
"""What must agree for two timings to stand in one table; a machine's name and memory need not."""


def machine() -> Machine:
    """This one, with THREADS."""
    usable = hasattr(os, "sched_getaffinity")
    return Machine(
        processor=processor_model(),
        processors=len(os.sched_getaffinity(0)) if usable else os.cpu_count() or 1,
        threads=THREADS,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        torch=str(torch.__version__),
    )


def processor_model() -> str:
    """The processor's model name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def described(host: Mapping[str, Any]) -> Machine | None:
    """The machine of a timing record (its `host`); None where it says nothing that can be read."""
    try:
        return Machine(**host["machine"])
    except (KeyError, TypeError):
        return None


def same_machine(one: Machine | None, other: Machine | None) -> bool:
    """True where two timings may be compared: the same of everything in DECIDES."""
    if one is None or other is None:
        return False
    return all(getattr(one, name) == getattr(other, name) for name in DECIDES)


def load() -> Measured:
    """How busy the machine is: `load` (of one minute) and `others`, the tasks running beside this one."""
    found: Measured = {"load": [], "others": []}
    try:
        found["load"] = [os.getloadavg()[0]]
        running = Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[0]
        found["others"] = [max(0.0, float(running) - 1)]
    except (OSError, IndexError, ValueError):  # a system that does not say
        pass
    return found


def counted_flops(work: Callable[[], object]) -> int:
    """FLOPs of the matrix products of `work` (two a multiply-add), as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def measure(
    model: Recommender,
    split: Split,
    samples: TrainingSamples,
    cell: Cell,
    stop: Callable[[], bool] = lambda: False,
) -> Measured:
    """Time a model that is built and prepared.

    Args:
        model: Trained as it is timed.
        split: Whom to predict for.
        samples: What to train on.
        cell: Its batch size is that of training and of predictions.
        stop: Asked before each batch.

    Returns:
        `epoch`, `predict_batch`, `predict_one`, `predict_cold`: seconds, REPEATS or more of each.
        `earlier_stages`: seconds of an epoch of each stage before the last. `last_stage`: 1, or 0 where
        it was not reached. `whole`: 1 where epochs were timed whole, else 0. `steps`: batches of an
        epoch; `steps_timed`: of a repeat. `users`: of `predict_batch`. `flops_sample`: of training, a
        sample; `flops_user`: of a prediction, a user. `load`, `others`: as `load()`, at every repeat.

    Raises:
        InputError: Nothing to train on, or nobody to predict for.
        StoppedError: `stop` said so.
    """
    torch.set_num_threads(THREADS)
    if not len(samples) or not len(split.test.user):
        raise InputError(
            f"data set '{cell.data}' has {len(samples)} training samples and {len(split.test.user)} "
            "test users under these settings; use more users or other readings"
        )
    epochs = _Epochs(Trainer(model, samples, cell.seed, cell.train.numerics), stop)
    measured: Measured = {"load": [], "others": []}
    measured |= epochs.stages(measured)
    predictions = _Predictions(model, split, cell)
    measured |= predictions.measure(measured, stop)
    done = epochs.batches * len(samples) * cell.train.passes / samples.batches
    measured["flops_sample"] = [counted_flops(epochs.train) / done]
    measured["flops_user"] = [predictions.flops() / predictions.size]
    return measured


def _note_load(measured: Measured) -> None:
    for name, values in load().items():
        measured[name] += values


def _synchronise(device: torch.device) -> None:
    """Wait for a GPU, which works on while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Epochs:
    """Epochs of a model, whole or as blocks of batches, timed at the places where `stop` is asked."""

    def __init__(self, trainer: Trainer, stop: Callable[[], bool]) -> None:
        self.trainer, self.stop = trainer, stop
        self.steps = trainer.samples.batches
        self.whole = self.steps <= WHOLE_STEPS
        self.batches = self.steps if self.whole else BLOCK
        self.number = 0

    def train(self, batches: int | None = None) -> float:
        """Train one repeat (or so many batches of an epoch); returns the seconds of a whole epoch."""
        most = self.batches if batches is None else batches
        device = self.trainer.model.device
        marks: list[float] = []

        def ask() -> bool:
            """Before each batch: the time, and whether these are enough."""
            _synchronise(device)
            marks.append(time.perf_counter())
            return self.stop() or len(marks) > most

        _synchronise(device)
        began = time.perf_counter()
        try:
            self.trainer.epoch(self.number, ask)
        except StoppedError:
            if len(marks) <= most:  # it was not us
                raise
        _synchronise(device)
        ended = time.perf_counter()
        self.number += 1
        if len(marks) <= most:
            return ended - began
        return marks[0] - began + self.steps * (marks[most] - marks[0]) / most

    def stages(self, measured: Measured) -> Measured:
        """Go through the stages to the last one, and time its epochs; the load goes to `measured`."""
        model = self.trainer.model
        earlier: list[float] = []
        while True:
            self.train(WARM_UP)
            _note_load(measured)
            first = self.train()
            model.stage_ended(1, self.trainer.draws)
            follows = model.next_stage()
            if not follows or len(earlier) == MOST_STAGES:
                break
            earlier.append(first)
            self.trainer.renew()
        repeats = [first]
        while len(repeats) < REPEATS:
            _note_load(measured)
            repeats.append(self.train())
        return {
            "epoch": repeats,
            "earlier_stages": earlier,
            "last_stage": [float(not follows)],
            "whole": [float(self.whole)],
            "steps": [float(self.steps)],
            "steps_timed": [float(self.batches)],
        }


class _Predictions:
    """Scores of 1 + 99 candidates for test users, drawn the same way for every method."""

    def __init__(self, model: Recommender, split: Split, cell: Cell) -> None:
        self.model, self.targets = model, split.test
        self.histories = EvaluationHistories(split, split.test, cell.protocol)
        drawn = stream(cell.seed, "timed users").permutation(len(split.test.user))
        self.order = torch.as_tensor(drawn)
        self.size = min(cell.train.batch_size, len(drawn))
        self.cursor = 0

    def asked(self, size: int) -> tuple[History, Int[Tensor, "batch cand"]]:
        """Histories and candidates of the next users, where the model is."""
        rows = self.order[torch.arange(self.cursor, self.cursor + size) % len(self.order)]
        self.cursor += size
        ends = self.histories.end[rows]
        history = self.histories.histories.before(self.histories.user[rows], ends)
        positive = self.targets.item[rows].unsqueeze(1)
        items = torch.cat([positive, self.targets.candidates[rows]], dim=1)
        return history.to(self.model.device), items.to(self.model.device)

    def predict(self, size: int) -> float:
        """Seconds of one prediction for `size` users."""
        history, items = self.asked(size)
        _synchronise(self.model.device)
        began = time.perf_counter()
        self.model.score(self.model.encode(history), items).cpu()
        return time.perf_counter() - began

    def cold(self) -> float:
        """The same for a batch, when what users share has to be computed first."""
        self.model.eval()  # forgets what `once` remembers
        return self.predict(self.size)

    @torch.no_grad()
    def measure(self, measured: Measured, stop: Callable[[], bool]) -> Measured:
        """Seconds of predictions; the load goes to `measured`. Raises StoppedError."""
        self.model.eval()
        made: Measured = {"users": [float(self.size)]}
        asked: dict[str, Callable[[], float]] = {
            "predict_cold": self.cold,
            "predict_batch": lambda: self.predict(self.size),
            "predict_one": lambda: self.predict(1),
        }
        for name, one in asked.items():
            for _ in range(WARM_UP if name != "predict_cold" else 1):
                one()
            _note_load(measured)
            repeats: list[float] = []
            while len(repeats) < REPEATS or (
                sum(repeats) < ENOUGH_SECONDS and len(repeats) < MOST_REPEATS
            ):
                if stop():
                    raise StoppedError
                repeats.append(one())
            made[name] = repeats
        _note_load(measured)
        return made

    @torch.no_grad()
    def flops(self) -> int:
        """Of the prediction of a batch."""
        self.model.eval()
        self.predict(self.size)  # what users share is there
        return counted_flops(lambda: self.predict(self.size))


def host_facts() -> dict[str, Any]:
    """What a timing record's `host` has beside every record's (`described` reads it)."""
    return {"machine": asdict(machine())}
