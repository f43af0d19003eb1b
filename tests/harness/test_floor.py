"""benchmarks/floor.py: which operation counts for what, and that the shares are the whole time."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest
import torch

from benchmarks import floor
from benchmarks.floor import SHOWN, against_floor, group_of, shares
from harness.training.loop import Trainer
from tests.harness.test_training import Toy, toy_samples


def event(name: str, *above: str) -> SimpleNamespace:
    """A profiled event and, outwards, those that it happened in."""
    parent = event(above[0], *above[1:]) if above else None
    return SimpleNamespace(name=name, cpu_parent=parent)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::addmm", "products"),
        ("aten::baddbmm_", "products"),
        ("aten::mul_", "element-wise"),
        ("aten::_softmax_backward_data", "softmax"),
        ("aten::embedding_dense_backward", "look-ups"),
        ("aten::random_", "random"),
        ("aten::copy_", "copies"),
        ("aten::_fused_adam_", "optimiser"),
        ("aten::native_layer_norm", "element-wise"),
        ("autograd::engine::evaluate_function: MulBackward0", None),
    ],
)
def test_operations_are_grouped_by_what_they_are_for(name: str, group: str | None) -> None:
    assert group_of(event(name)) == group


def test_what_happens_inside_a_range_counts_for_it() -> None:
    assert group_of(event("aten::mul", "aten::where", "batches")) == "batches"
    assert group_of(event("aten::mul", "Optimizer.step#Adam.step")) == "optimiser"


def test_shares_are_of_the_whole_time_and_leave_the_samples_as_they_were() -> None:
    torch.manual_seed(1)
    trainer = Trainer(Toy(), toy_samples(), 1)
    found = shares(trainer, 0, most=3)
    assert tuple(found) == SHOWN
    assert sum(found.values()) == pytest.approx(1, abs=1e-6)
    assert found["products"] > 0
    assert found["batches"] > 0
    assert found["optimiser"] > 0
    assert "epoch" not in vars(trainer.samples)


def test_the_floor_is_flops_at_the_rate_of_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second whenever it is asked."""
    monkeypatch.setattr(floor, "SIZE", 8)
    monkeypatch.setattr(floor.time, "process_time", count().__next__)
    steps: list[None] = []
    found = against_floor(lambda: steps.append(None), flops=512.0, repeats=3)
    assert found == (0.5, 1.0)  # 2 * 8 ** 3 FLOPs take a second
    assert len(steps) == 4
