"""The switch `train.numerics`: what each step does, what it leaves alone, what it asks of a machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.numerics import Verdict, judge, possible
from harness.config import Cell, Numerics, cell_key, digest, plain
from harness.errors import InputError
from harness.store import Fingerprints, Ranks, Record
from harness.training import numerics
from harness.training.loop import Checkpoint, Trainer, fit
from harness.training.numerics import exact_numerics, facts, passes, products
from models.interface import Batch, Losses, Recommender
from models.precision import in_float32
from tests.harness.test_training import CONFIG, Toy, toy_samples

CPU = torch.device("cpu")


class Bare(Toy):
    """Its loss goes through nothing that the tests' type checks wrap: those cannot be compiled."""

    def loss(self, batch: Batch) -> Losses:
        scores = self.encode(batch.history) @ self.items.weight.T
        return {"main": torch.nn.functional.cross_entropy(scores, batch.targets[:, -1])}


def trained(step: Numerics, kind: type[Toy] = Toy) -> tuple[Toy, list[float]]:
    """Three epochs of the toy method, and their losses."""
    torch.manual_seed(5)
    model = kind()
    trainer = Trainer(model, toy_samples(), 5, step)
    return model, [trainer.epoch(epoch, lambda: False)["loss"] for epoch in range(3)]


def test_each_step_includes_those_before_it() -> None:
    for number, step in enumerate(Numerics):
        assert [step.includes(other) for other in Numerics] == [
            other <= number for other in range(len(Numerics))
        ]


def test_exact_runs_keep_their_names_and_others_have_their_own() -> None:
    cell = Cell(method="sasrec", data="demo")
    before = plain(cell)
    del before["train"]["numerics"]  # a config from before there was a switch
    assert cell_key(cell) == digest(before)
    cells = [replace(cell, train=replace(cell.train, numerics=step)) for step in Numerics]
    assert len({cell_key(each) for each in cells}) == len(Numerics)


def test_tf32_is_on_for_losses_and_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    exact_numerics()
    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return gradient

    def loss(self: Toy, batch) -> Losses:
        return {"main": Watch.apply(self.encode(batch.history)).square().mean()}

    monkeypatch.setattr(Toy, "loss", loss)
    trained(Numerics.tf32)
    assert seen
    assert all(seen)
    assert not torch.backends.cuda.matmul.allow_tf32
    seen.clear()
    trained(Numerics.exact)
    assert not any(seen)
    with pytest.raises(KeyError), products(Numerics.tf32):
        raise KeyError
    assert not torch.backends.cuda.matmul.allow_tf32


def test_bf16_training_is_near_the_exact_one_and_its_weights_are_float32() -> None:
    model, losses = trained(Numerics.bf16)
    exact, expected = trained(Numerics.exact)
    assert losses != expected
    assert losses == pytest.approx(expected, rel=0.01)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(
            parameter, dict(exact.named_parameters())[name], rtol=0, atol=5e-3
        )


def test_validation_is_exact_whatever_the_switch_says(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    def validate(model: Recommender) -> float:
        assert not torch.is_autocast_enabled("cpu")
        seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return 0.0

    torch.manual_seed(5)
    config = replace(CONFIG, epochs=2, numerics=Numerics.bf16)
    fit(Toy(), toy_samples(), validate, config, 5, Checkpoint(tmp_path / "run.pt", {}))
    assert seen == [torch.float32] * 2


def test_updates_between_two_losses_are_outside_autocast() -> None:
    class Twice(Toy):
        def passes(self, batch):
            yield self.loss(batch)
            yield self.loss(batch)

    torch.manual_seed(5)
    model, samples = Twice(), toy_samples()
    batch = next(iter(samples.epoch(torch.Generator(), torch.Generator())))
    for losses in passes(model, batch, Numerics.bf16):
        assert not torch.is_autocast_enabled("cpu")
        assert losses["main"].dtype == torch.float32


def test_compiled_losses_are_those_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the tracer alone: code generation needs a C++ compiler."""
    monkeypatch.setattr(numerics, "BACKEND", "eager")
    torch.compiler.reset()
    _, losses = trained(Numerics.compiled, Bare)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.compiler.reset()
    assert losses == trained(Numerics.bf16, Bare)[1]


def test_what_a_machine_cannot_do_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"train.numerics=graphs.*need a GPU; choose compiled"):
        numerics.check(Numerics.graphs, CPU)

    def without_compiler(graph: object, inputs: object) -> None:
        raise RuntimeError("no C++ compiler\nlong story")

    torch.compiler.reset()
    monkeypatch.setattr(numerics, "BACKEND", without_compiler)
    with pytest.raises(InputError, match=r"train.numerics=compiled.*choose bf16 or exact") as found:
        trained(Numerics.compiled)
    assert "\n" not in str(found.value)
    torch.compiler.reset()
    numerics.check(Numerics.bf16, CPU)


def test_records_say_the_switch_and_what_it_means() -> None:
    exact_numerics()
    said = {step: facts(step) for step in Numerics}
    assert [each["switch"] for each in said.values()] == [step.name for step in Numerics]
    assert said[Numerics.exact] == {
        "switch": "exact", "tf32": False, "bf16": False, "compiled": False, "graphs": False,
        "autotuned": False, "deterministic": True,
    }  # fmt: skip
    assert said[Numerics.compiled]["bf16"]
    assert said[Numerics.compiled]["compiled"]
    assert not said[Numerics.compiled]["graphs"]


def test_sensitive_parts_are_raised_under_autocast_and_left_alone_without() -> None:
    @in_float32
    def product(a: torch.Tensor, rest: tuple[torch.Tensor, str]) -> torch.Tensor:
        assert not torch.is_autocast_enabled("cpu")
        return a @ rest[0]

    a = torch.randn(3, 3)
    assert torch.equal(product(a, (a, "")), a @ a)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = a @ a
        assert low.dtype == torch.bfloat16
        assert product(low, (low, "")).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")


def record(above: list[int], losses: list[float], seconds: float) -> Record:
    """A run with these ranks."""
    column = np.array(above)
    nothing = np.zeros_like(column)
    ranks = Ranks(np.arange(len(above)), column, nothing, column, nothing, nothing + 100)
    curve = [{"loss": loss, "seconds": seconds} for loss in losses]
    return Record(
        "k", {}, "M", Fingerprints("", "", ""), {}, {}, {}, 0.0, 0, 0, 2, 1, curve, ranks=ranks
    )


def test_the_accuracy_check_compares_runs_by_user_and_epochs_by_seed() -> None:
    draws = np.random.default_rng(1)
    above = [draws.integers(0, 100, 400).tolist() for _ in range(3)]
    exact = [record(each, [2.0, 1.0], 3.0) for each in above]
    near = [record(each, [2.02, 1.0, 0.5], 1.5) for each in reversed(above)]
    found = judge(exact, near)
    assert found.loss == pytest.approx(0.01)
    assert found.faster == pytest.approx(2.0)
    assert found.fast == pytest.approx(found.exact)
    assert not found.differs
    worse = [record([min(99, rank + 60) for rank in each], [2.0], 1.0) for each in above]
    assert judge(exact, worse).differs
    assert str(Verdict(0, 0.5, 0.5, -0.002, 0.009, 1)) == "equal within 0.01"
    assert str(Verdict(0, 0.5, 0.5, -0.002, 0.011, 1)) == "no difference seen"
    assert str(Verdict(0, 0.5, 0.5, 0.002, 0.011, 1)) == "DIFFERS"
    assert str(Verdict(0, 0.5, 0.5, 0.002, 0.009, 1)) == "equal within 0.01"


def test_steps_that_mean_nothing_here_are_named_not_passed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert possible([Numerics.tf32, Numerics.bf16, Numerics.graphs]) == [Numerics.bf16]
    assert capsys.readouterr().err.count("NOT RUN: 'train.numerics=") == 2
