"""The loop on a toy method: early stopping, resumption, divergence, what a checkpoint survives."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.config import ProtocolConfig, TrainConfig
from harness.data.batches import TrainingSamples
from harness.training.loop import (
    Checkpoint,
    Progress,
    StoppedError,
    TrainingDivergedError,
    checked_total,
    fit,
)
from models.interface import Batch, History, Losses, Samples
from models.layers import DotProduct
from tests.harness.test_batches import interactions, random_users, split_of
from tests.worlds import catalogue

CONFIG = TrainConfig(epochs=6, patience=6, batch_size=16)


class Toy(DotProduct):
    """Mean of the history's vectors; uses dropout, the batch's generator and a schedule."""

    def __init__(self) -> None:
        super().__init__(self.Config(hidden=8), catalogue())
        self.items = nn.Embedding(self.catalogue.items + 1, 8)
        self.drop = nn.Dropout(0.3)

    def item_vectors(self) -> torch.Tensor:
        return self.items.weight

    def encode(self, history: History) -> torch.Tensor:
        return self.drop(self.items(history.items)).mean(1)

    def loss(self, batch: Batch) -> Losses:
        scores = self.score_all(self.encode(batch.history))
        noise = torch.randn(scores.shape, generator=batch.generator)
        return {"main": nn.functional.cross_entropy(scores + 0.1 * noise, batch.target)}

    def schedule(
        self, optimiser: torch.optim.Optimizer, steps: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.StepLR(optimiser, steps, 0.5)


class KilledError(Exception):
    pass


def toy_samples() -> TrainingSamples:
    split = split_of(interactions(random_users(7, users=30, items=20)))
    return TrainingSamples(split, Samples.prefix, ProtocolConfig(), CONFIG)


def weight_sum(model: Toy) -> float:
    return float(model.items.weight.detach().sum())


def train(
    path: Path, die_after: int = 0, validate=weight_sum, made_by: str = "a"
) -> tuple[Toy, Progress]:
    torch.manual_seed(5)
    model = Toy()

    def report(progress: Progress) -> None:
        if progress.epoch == die_after:
            raise KilledError

    checkpoint = Checkpoint(path, {"code": made_by})
    return model, fit(model, toy_samples(), validate, CONFIG, 5, checkpoint, report)


@pytest.mark.parametrize("die_after", [1, 3, 5])
def test_a_killed_run_resumes_bit_equal(tmp_path: Path, die_after: int) -> None:
    straight, first = train(tmp_path / "straight.pt")
    with pytest.raises(KilledError):
        train(tmp_path / "killed.pt", die_after=die_after)
    torch.rand(100)  # another process has other random numbers behind it
    resumed, second = train(tmp_path / "killed.pt")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert second.resumed == 1
    assert (first.best_epoch, first.best) == (second.best_epoch, second.best)
    drop = [{k: v for k, v in row.items() if k != "seconds"} for row in first.curve]
    assert drop == [{k: v for k, v in row.items() if k != "seconds"} for row in second.curve]


def test_a_checkpoint_of_other_code_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(tmp_path / "run.pt", die_after=2, made_by="a")
    _, progress = train(tmp_path / "run.pt", made_by="b")
    assert progress.resumed == 0


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None], ids=["empty", "text", "cut"])
def test_a_corrupt_checkpoint_is_set_aside_and_the_run_starts_again(
    tmp_path: Path, damage: bytes | None
) -> None:
    path = tmp_path / "run.pt"
    with pytest.raises(KilledError):
        train(path, die_after=2)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        _, progress = train(path)
    assert progress.resumed == 0
    assert [p.name for p in tmp_path.iterdir() if "corrupt" in p.name]


def test_a_checkpoint_changed_anywhere_is_never_taken_for_the_truth(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run.pt", {"code": "a"})
    weights = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    checkpoint.save({"model": {"w": weights}, "epoch": 3})
    whole = checkpoint.path.read_bytes()
    draws = torch.Generator().manual_seed(2)
    for _ in range(100):
        place, bit = (int(torch.randint(end, (), generator=draws)) for end in (len(whole), 8))
        content = bytearray(whole)
        content[place] ^= 1 << bit
        checkpoint.path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = checkpoint.load()
        if state is not None:  # a byte that means nothing: the archive's padding
            assert torch.equal(state["model"]["w"], weights)
            assert state["epoch"] == 3


def test_patience_ends_the_run_with_the_weights_of_the_best_epoch(tmp_path: Path) -> None:
    scores = iter([0.1, 0.3, 0.2, 0.25, 0.3])
    sums = []

    def validate(model: Toy) -> float:
        sums.append(weight_sum(model))
        return next(scores)

    torch.manual_seed(5)
    model = Toy()
    config = TrainConfig(epochs=50, patience=3, batch_size=16)
    progress = fit(model, toy_samples(), validate, config, 5, Checkpoint(tmp_path / "c.pt", {}))
    assert (progress.epoch, progress.best_epoch, progress.best) == (5, 2, 0.3)
    assert weight_sum(model) == sums[1]
    assert len(set(sums)) == 5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_terms(bad: float) -> None:
    with pytest.raises(TrainingDivergedError, match=r"epoch 3, update 8: main=1, other=(nan|inf)"):
        checked_total({"main": torch.tensor(1.0), "other": torch.tensor(bad)}, 2, 8)


def test_stopping_leaves_the_checkpoint_of_the_last_epoch(tmp_path: Path) -> None:
    torch.manual_seed(5)
    path, calls = tmp_path / "run.pt", 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return path.exists() and calls > 3

    with pytest.raises(StoppedError):
        fit(Toy(), toy_samples(), weight_sum, CONFIG, 5, Checkpoint(path, {"code": "a"}), stop=stop)
    straight, _ = train(tmp_path / "straight.pt")
    resumed, progress = train(path)
    assert progress.resumed == 1
    assert torch.equal(straight.items.weight, resumed.items.weight)


def test_a_failed_write_of_a_checkpoint_leaves_the_old_one(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run.pt", {"code": "a"})
    checkpoint.save({"epoch": 1})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save({"epoch": lambda: None})
    assert checkpoint.load() == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


class Staged(Toy):
    """A pre-training stage that the method's own rule ends, then one that validation selects from."""

    stage: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stage", torch.tensor(0))
        self.rates: list[float] = []

    @property
    def selects(self) -> bool:
        return bool(self.stage > 0)

    def stage_ended(self, epochs: int, generator: torch.Generator) -> bool:
        torch.rand(1, generator=generator)
        return bool(self.stage == 0) and epochs >= 2

    def next_stage(self) -> bool:
        self.stage += 1
        return bool(self.stage == 1)

    def before_step(self, optimiser: torch.optim.Optimizer) -> None:
        self.rates.append(optimiser.param_groups[0]["lr"])


def staged(
    path: Path, scores: list[float], patience: int = 2, epochs: int = 6, die_after: int = 0
) -> tuple[Staged, Progress]:
    torch.manual_seed(5)
    model = Staged()

    def report(progress: Progress) -> None:
        if progress.epoch == die_after:
            raise KilledError

    seen = []

    def validate(_: Toy) -> float:
        seen.append(len(seen))
        return scores[seen[-1]]

    config = TrainConfig(epochs=epochs, patience=patience, batch_size=16)
    progress = fit(model, toy_samples(), validate, config, 5, Checkpoint(path, {}), report)
    return model, progress


def test_epochs_of_a_pre_training_stage_compete_with_nothing(tmp_path: Path) -> None:
    _, progress = staged(tmp_path / "c.pt", [0.9, 0.8, 0.2, 0.4, 0.3, 0.3])
    assert (
        progress.epoch == 6
    )  # two of the first stage, then patience 2 after the second stage's best
    assert (progress.best_epoch, progress.best, progress.stage_start) == (4, 0.4, 2)


def test_a_stage_has_an_optimiser_and_a_schedule_of_its_own(tmp_path: Path) -> None:
    model, _ = staged(tmp_path / "c.pt", [0.1, 0.2, 0.3, 0.2, 0.2])
    steps = toy_samples().batches
    assert model.rates[0] == model.rates[2 * steps] == Toy.Config().learning_rate
    assert model.rates[steps] == model.rates[3 * steps] == Toy.Config().learning_rate / 2


def test_the_budget_of_epochs_is_that_of_a_stage(tmp_path: Path) -> None:
    model, progress = staged(tmp_path / "c.pt", [0.1, 0.2], epochs=1)
    assert progress.epoch == 2
    assert int(model.stage) == 2  # asked once more after its last stage


@pytest.mark.parametrize("die_after", [1, 2, 3, 4])
def test_a_run_killed_in_or_between_stages_resumes_bit_equal(
    tmp_path: Path, die_after: int
) -> None:
    scores = [0.9, 0.8, 0.2, 0.4, 0.3, 0.3]
    straight, _ = staged(tmp_path / "straight.pt", scores)
    with pytest.raises(KilledError):
        staged(tmp_path / "killed.pt", scores, die_after=die_after)
    resumed, progress = staged(tmp_path / "killed.pt", scores[die_after:])
    assert progress.resumed == 1
    assert progress.epoch == 6
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
