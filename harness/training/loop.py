"""One training loop for all methods: early stopping, a checkpoint an epoch, exact resumption.

A run that was killed and resumed ends bit-equal (on the CPU) to one that was not: a checkpoint holds
the model, the optimiser, the schedule and every random stream, and is taken between two epochs.
"""

from __future__ import annotations

import math
import os
import time
import zipfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch

from harness.config import Numerics, TrainConfig
from harness.data.batches import TrainingSamples
from harness.errors import InputError
from harness.seeding import torch_stream
from harness.store import set_aside
from harness.training.numerics import passes, prepare, products
from models.interface import Losses, Recommender


class TrainingDivergedError(ArithmeticError):
    """The loss became NaN or infinite: the run stops, and its record says where."""


class StoppedError(Exception):
    """Somebody asked the run to stop; it goes on from its last checkpoint next time."""


@dataclass
class Progress:
    """What a run has reached: handed on after each epoch, and kept in the checkpoint."""

    epoch: int = 0
    """Epochs finished."""
    best_epoch: int = 0
    """Number of the best one of this stage, from 1."""
    best: float = -math.inf
    """Its validation NDCG@10."""
    stage_start: int = 0
    """Epochs finished before this stage began."""
    stage_ended: bool = False
    """The method's own rule has ended this stage."""
    resumed: int = 0
    """How often the run went on from a checkpoint."""
    curve: list[dict[str, Any]] = field(default_factory=list)

    def ended(self, train: TrainConfig) -> bool:
        """True when this stage is over: by the method's rule, its epochs or the patience."""
        if self.stage_ended or self.epoch - self.stage_start >= train.epochs:
            return True
        return self.epoch - max(self.best_epoch, self.stage_start) >= train.patience

    def begin_stage(self) -> None:
        """Nothing before this competes with what follows."""
        self.stage_start, self.stage_ended, self.best = self.epoch, False, -math.inf


class _Writer:
    """A file for torch, which hides the system's error (a full disk) behind one of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write, and remember what went wrong."""
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Hand on what the file still holds."""
        self.file.flush()


@dataclass(frozen=True)
class Checkpoint:
    """Where a run's state is kept, and what it must have been made by to be taken up again."""

    path: Path
    made_by: dict[str, str]

    def save(self, state: dict[str, Any]) -> None:
        """Write the state whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_name(f".{self.path.name}-{os.getpid()}")
        try:
            with scratch.open("wb") as file:
                writer = _Writer(file)
                try:
                    torch.save({"made_by": self.made_by, **state}, cast("IO[bytes]", writer))
                except RuntimeError:
                    if writer.error is None:
                        raise
                    raise writer.error from None
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self.path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise

    def load(self) -> dict[str, Any] | None:
        """The state, or None where there is none, or it is of other code or data, or corrupt."""
        if not self.path.exists():
            return None
        try:
            with zipfile.ZipFile(self.path) as archive:  # torch itself does not look at checksums
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"checksum of {damaged}")
            state: dict[str, Any] = torch.load(self.path, weights_only=True)
            made_by = state.pop("made_by")
        except Exception as error:  # noqa: BLE001 -- whatever a damaged file makes its readers say
            set_aside(self.path, f"checkpoint {self.path.name} cannot be read ({error!r:.80}); "
                                 "the run starts again")  # fmt: skip
            return None
        return state if made_by == self.made_by else None

    def remove(self) -> None:
        """Forget the state: the run is stored."""
        self.path.unlink(missing_ok=True)


def fit(
    model: Recommender,
    samples: TrainingSamples,
    validate: Callable[[Recommender], float],
    train: TrainConfig,
    seed: int,
    checkpoint: Checkpoint,
    report: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train, stage by stage, until the patience is used up; the weights end as the best epoch's.

    Args:
        model: Built and prepared; its global torch generator already seeded.
        samples: What to train on.
        validate: NDCG@10 on the validation targets.
        train: Epochs, patience, batch size.
        seed: Of the run; shuffling and the method's draws take a stream each.
        checkpoint: Where to keep the state between epochs.
        report: Called after each epoch.
        stop: Asked before each batch; True ends the run with StoppedError.

    Raises:
        TrainingDivergedError: A loss was NaN or infinite.
        StoppedError: `stop` said so.
        InputError: This machine cannot compute as `train.numerics` says.
    """
    trainer = Trainer(model, samples, seed, train.numerics)
    progress, best = Progress(), deepcopy(model.state_dict())
    state = checkpoint.load()
    if state is not None:
        progress, best = Progress(**state.pop("progress")), state.pop("best")
        progress.resumed += 1
        trainer.restore(state)
    while True:
        while not progress.ended(train):
            started = time.perf_counter()
            means = trainer.epoch(progress.epoch, stop)
            score = validate(model)
            progress.epoch += 1
            epochs = progress.epoch - progress.stage_start
            progress.stage_ended = model.stage_ended(epochs, trainer.draws)
            if score > progress.best or not model.selects:
                progress.best, progress.best_epoch = score, progress.epoch
                best = deepcopy(model.state_dict())
            seconds = time.perf_counter() - started
            progress.curve.append(
                {"epoch": progress.epoch, **means, "NDCG@10": score, "seconds": seconds}
            )
            checkpoint.save({"progress": vars(progress), "best": best, **trainer.state()})
            report(progress)
        model.load_state_dict(best)
        if not model.next_stage():
            return progress
        progress.begin_stage()
        trainer.renew()


class Trainer:
    """A model with everything that moves while it is trained."""

    def __init__(
        self,
        model: Recommender,
        samples: TrainingSamples,
        seed: int,
        numerics: Numerics = Numerics.exact,
    ) -> None:
        """Raises InputError where this machine cannot compute as `numerics` says."""
        self.model, self.samples, self.numerics = model, samples, numerics
        prepare(model, numerics)
        self.order = torch_stream(seed, "order")
        self.draws = torch_stream(seed, "draws", model.device)
        self.renew()

    def renew(self) -> None:
        """A new optimiser and schedule, for the stage that the model is in."""
        self.optimiser = self.model.optimiser()
        self.schedule = self.model.schedule(self.optimiser, self.samples.batches)

    def state(self) -> dict[str, Any]:
        """Weights, optimiser, schedule and every random stream."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "order": self.order.get_state(),
            "draws": self.draws.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),  # of dropout on a GPU; empty where there is none
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.model.load_state_dict(state["model"])
        self.renew()
        self.optimiser.load_state_dict(state["optimiser"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.order.set_state(state["order"])
        self.draws.set_state(state["draws"])
        torch.set_rng_state(state["torch"])
        torch.cuda.set_rng_state_all(state["cuda"])

    def epoch(self, number: int, stop: Callable[[], bool]) -> dict[str, float]:
        """One epoch (from 0); returns the mean loss of an update, and the mean of each of its terms.

        Raises:
            TrainingDivergedError: A loss was NaN or infinite.
            StoppedError: `stop` said so.
            InputError: No batch has a target that this method trains on.
        """
        self.model.train()
        self.model.begin_epoch(number, self.draws)
        sums: dict[str, float] = {}
        updates = 0
        for batch in self.samples.epoch(self.order, self.draws):
            if stop():
                raise StoppedError
            with products(self.numerics):
                for losses in passes(self.model, batch.to(self.model.device), self.numerics):
                    updates += 1
                    total = checked_total(losses, number, updates)
                    self.optimiser.zero_grad(set_to_none=True)
                    total.backward()
                    self.model.before_step(self.optimiser)
                    self.optimiser.step()
                    for name, term in {"loss": total, **losses}.items():
                        sums[name] = sums.get(name, 0.0) + float(term.detach())
            if self.schedule is not None:
                self.schedule.step()
        if not updates:
            raise InputError("no batch of this method has a target; use other readings or settings")
        return {name: total / updates for name, total in sums.items()}


def checked_total(losses: Losses, epoch: int, update: int) -> torch.Tensor:
    """Sum of the terms. Raises TrainingDivergedError when it is NaN or infinite.

    `epoch` counts from 0, `update` (steps of the optimiser in it) from 1.
    """
    total = torch.stack(list(losses.values())).sum()
    if not math.isfinite(float(total.detach())):
        terms = ", ".join(f"{name}={float(term.detach()):.4g}" for name, term in losses.items())
        raise TrainingDivergedError(
            f"loss not finite in epoch {epoch + 1}, update {update}: {terms}"
        )
    return total
