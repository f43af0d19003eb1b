"""Chunked cross-entropy: torch's values and gradients, in a block's memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from models.softmax import BLOCK, catalogue_cross_entropy, scored_cross_entropy

ROOT = Path(__file__).parents[2]


def draw(
    batch: int, rows: int, width: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Query, weight, bias (all with gradients), targets of 1 and above, a weight a sample."""
    generator = torch.Generator().manual_seed(batch * 1000 + rows * 10 + width)
    query = torch.randn(batch, width, generator=generator, dtype=dtype).mul_(scale)
    weight = torch.randn(rows, width, generator=generator, dtype=dtype).mul_(scale)
    bias = torch.randn(rows, generator=generator, dtype=dtype).mul_(scale)
    target = torch.randint(1, rows, (batch,), generator=generator)
    per_sample = torch.rand(batch, generator=generator, dtype=dtype)
    return (
        query.requires_grad_(),
        weight.requires_grad_(),
        bias.requires_grad_(),
        target,
        per_sample,
    )


def gradients(loss: Tensor, per_sample: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((loss * per_sample).sum(), inputs))


def torchs(
    query: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, padding: bool
) -> Tensor:
    logits = query @ weight.T if bias is None else query @ weight.T + bias
    first = 0 if padding else 1
    return cross_entropy(logits[:, first:], target - first, reduction="none")


@pytest.mark.parametrize(("batch", "rows", "width"), [(1, 2, 1), (7, 30, 5), (33, 101, 16)])
@pytest.mark.parametrize("chunk", [1, 3, 10, 29, 1000, None])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_values_and_gradients_are_torchs(
    batch: int,
    rows: int,
    width: int,
    chunk: int | None,
    padding: bool,
    with_bias: bool,
    scale: float,
) -> None:
    query, weight, bias, target, per_sample = draw(batch, rows, width, scale=scale)
    if padding:
        target = target - 1
    inputs = [query, weight] + ([bias] if with_bias else [])
    chosen = bias if with_bias else None
    ours = catalogue_cross_entropy(query, weight, chosen, target, padding=padding, chunk=chunk)
    theirs = torchs(query, weight, chosen, target, padding=padding)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    pairs = zip(
        gradients(ours, per_sample, inputs), gradients(theirs, per_sample, inputs), strict=True
    )
    for mine, reference in pairs:
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


@given(
    batch=st.integers(1, 9), rows=st.integers(2, 40), chunk=st.integers(1, 45), seed=st.integers(0)
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_chunk_gives_the_same(batch: int, rows: int, chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**32)
    query = torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    target = torch.randint(1, rows, (batch,), generator=generator)
    ours = catalogue_cross_entropy(query, weight, None, target, chunk=chunk)
    whole = torchs(query, weight, None, target, padding=False)
    torch.testing.assert_close(ours, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [4, 50])
def test_gradcheck(chunk: int) -> None:
    query, weight, bias, target, _ = draw(4, 11, 3)

    def loss(query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return catalogue_cross_entropy(query, weight, bias, target, chunk=chunk)

    assert torch.autograd.gradcheck(loss, (query, weight, bias))


@pytest.mark.parametrize("chunk", [4, 50])
def test_repeated_targets_and_a_second_backward(chunk: int) -> None:
    query, weight, bias, _, per_sample = draw(6, 20, 4)
    target = torch.full((6,), 7)
    loss = catalogue_cross_entropy(query, weight, bias, target, chunk=chunk)
    total = (loss * per_sample).sum()
    first = torch.autograd.grad(total, [query, weight, bias], retain_graph=True)
    again = torch.autograd.grad(total, [query, weight, bias])
    theirs = gradients(
        torchs(query, weight, bias, target, padding=False), per_sample, [query, weight, bias]
    )
    for mine, repeated, reference in zip(first, again, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)
        assert torch.equal(mine, repeated)


def test_only_the_gradients_that_are_asked_for() -> None:
    query, weight, bias, target, per_sample = draw(5, 20, 4)
    loss = catalogue_cross_entropy(query.detach(), weight.detach(), bias, target, chunk=6)
    (mine,) = gradients(loss, per_sample, [bias])
    (reference,) = gradients(torchs(query, weight, bias, target, padding=False), per_sample, [bias])
    torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [2, 100])
def test_extreme_logits(chunk: int) -> None:
    query = torch.tensor([[1.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(
        [[9e9], [-800.0], [0.0], [800.0], [800.0]], dtype=torch.float64, requires_grad=True
    )
    target = torch.tensor([1, 1])
    loss = catalogue_cross_entropy(query, weight, None, target, chunk=chunk)
    assert loss.tolist() == pytest.approx([1600 + torch.log(torch.tensor(2.0)).item(), 0.0])
    for gradient in gradients(loss, torch.ones(2, dtype=torch.float64), [query, weight]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("chunk", [2, 100])
def test_items_shut_out_by_an_infinite_bias(chunk: int) -> None:
    query, weight, bias, _, per_sample = draw(5, 8, 4)
    target = torch.tensor([5, 6, 7, 5, 6])
    shut = bias.detach().clone()
    shut[:5] = -torch.inf
    ours = catalogue_cross_entropy(query, weight, shut, target, chunk=chunk)
    theirs = torchs(query, weight, shut, target, padding=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for gradient in gradients(ours, per_sample, [query, weight]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("chunk", [2, 100])
def test_a_nan_is_not_hidden(chunk: int) -> None:
    query, weight, _, target, _ = draw(3, 9, 4)
    broken = query.detach().clone()
    broken[1, 2] = torch.nan
    loss = catalogue_cross_entropy(broken, weight, None, target, chunk=chunk)
    assert loss.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("target", "padding"), [([1, 0], False), ([1, -1], True), ([9, 1], False), ([-100, 1], False)]
)
def test_a_target_that_is_no_row_raises(target: list[int], padding: bool) -> None:
    query, weight, _, _, _ = draw(2, 9, 4)
    with pytest.raises(ValueError, match=r"target -?\d+ is not a row from [01] to 8"):
        catalogue_cross_entropy(query, weight, None, torch.tensor(target), padding=padding)


def test_a_chunk_of_no_rows_raises() -> None:
    query, weight, _, target, _ = draw(2, 9, 4)
    with pytest.raises(ValueError, match="chunk is 0"):
        catalogue_cross_entropy(query, weight, None, target, chunk=0)


def test_an_empty_batch_has_no_losses() -> None:
    _, weight, bias, _, _ = draw(2, 9, 4)
    query = torch.zeros(0, 4, dtype=torch.float64, requires_grad=True)
    loss = catalogue_cross_entropy(query, weight, bias, torch.zeros(0, dtype=torch.long), chunk=4)
    loss.sum().backward()
    assert loss.shape == (0,)
    assert weight.grad is not None
    assert not weight.grad.any()


def test_float32_is_as_exact_as_torchs() -> None:
    query, weight, bias, target, per_sample = draw(64, 5000, 32, dtype=torch.float32)
    double = [tensor.detach().double().requires_grad_() for tensor in (query, weight, bias)]
    exact = torchs(*double, target, padding=False)
    expected = gradients(exact, per_sample.double(), double)
    ours = catalogue_cross_entropy(query, weight, bias, target, chunk=600)
    theirs = torchs(query, weight, bias, target, padding=False)

    def error(values: Tensor, truth: Tensor) -> float:
        return float(((values.double() - truth).abs().max() / truth.abs().max()).detach())

    assert error(ours, exact) < 1e-6
    found = gradients(ours, per_sample, [query, weight, bias])
    peers = gradients(theirs, per_sample, [query, weight, bias])
    for mine, peer, truth in zip(found, peers, expected, strict=True):
        assert error(mine, truth) < max(2e-6, 3 * error(peer, truth))


class LargestTensor(TorchDispatchMode):
    """Largest number of elements that an operation returned memory of its own for."""

    largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                elements = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.largest = max(self.largest, elements)
        return result


@pytest.mark.parametrize("chunk", [50, 700])
def test_the_full_logits_are_never_made(chunk: int) -> None:
    batch, rows, width = 64, 3001, 8
    query, weight, bias, target, _ = draw(batch, rows, width)
    with LargestTensor() as ours:
        catalogue_cross_entropy(query, weight, bias, target, chunk=chunk).sum().backward()
    with LargestTensor() as full:
        torchs(query, weight, bias, target, padding=False).sum().backward()
    assert ours.largest == max(batch * chunk, rows * width)
    assert full.largest == batch * rows  # the check sees what it is there to forbid


def test_the_default_chunk_holds_one_block() -> None:
    batch, rows, width = 2048, 4001, 2
    query, weight, _, target, _ = draw(batch, rows, width, dtype=torch.float32)
    with LargestTensor() as ours:
        catalogue_cross_entropy(query, weight, None, target).sum().backward()
    assert ours.largest == BLOCK < batch * rows


RESIDENT = """
import resource, torch
from models.softmax import catalogue_cross_entropy
torch.manual_seed(0)
query = torch.randn(512, 64, requires_grad=True)
weight = torch.randn(200_001, 64, requires_grad=True)
weight.grad = torch.ones_like(weight)
catalogue_cross_entropy(query[:2], weight[:300], None, torch.tensor([1, 2])).sum().backward()
def resident():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = resident()
loss = catalogue_cross_entropy(query, weight, None, torch.arange(1, 513))
loss.mean().backward()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_resident_memory_at_200_000_items() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", RESIDENT], cwd=ROOT, check=True, capture_output=True, text=True
    )
    # 49 MiB of table gradient and an 8 MiB block (a little is the libraries'); full logits: 391 MiB.
    assert float(finished.stdout) < 49 + 3 * 8 + 20


def gated(shared: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """Two products, the second weighed by the first and by a number a row: linear in nothing."""
    query, scale = shared
    first, second, gate = rows
    one, other = query @ first.T, query @ second.T
    return scale * (one + other * (gate * one).sigmoid())


@pytest.mark.parametrize("chunk", [1, 4, 19, 1000, None])
def test_scores_that_are_no_product_have_torchs_values_and_gradients(chunk: int | None) -> None:
    query, first, gate, target, per_sample = draw(9, 20, 3)
    second, scale = draw(2, 20, 3)[1], torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    inputs = [query, scale, first, second, gate]
    ours = scored_cross_entropy(gated, inputs[:2], inputs[2:], target - 1, chunk=chunk)
    theirs = cross_entropy(gated(inputs[:2], inputs[2:]), target - 1, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for mine, reference in zip(
        gradients(ours, per_sample, inputs), gradients(theirs, per_sample, inputs), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


def test_scores_of_frozen_tensors_need_no_gradient_of_them() -> None:
    query, first, gate, target, per_sample = draw(5, 20, 3)
    scale, second = torch.tensor(2.0, dtype=torch.float64), first.detach().flip(0)
    rows = [first.detach(), second, gate]
    ours = scored_cross_entropy(gated, [query, scale], rows, target, chunk=6)
    theirs = cross_entropy(gated([query, scale], rows), target, reduction="none")
    for mine, reference in zip(
        gradients(ours, per_sample, [query, gate]),
        gradients(theirs, per_sample, [query, gate]),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


def test_blocks_of_scores_are_forgotten() -> None:
    """No call of the scores sees more rows than a block, forward or backward."""
    seen: list[int] = []

    def scores(shared: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
        seen.append(len(rows[0]))
        return shared[0] @ rows[0].T

    query, weight, _, target, _ = draw(4, 50, 3)
    scored_cross_entropy(scores, [query], [weight], target, chunk=20).sum().backward()
    assert seen == [20, 20, 10] * 2
