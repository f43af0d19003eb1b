"""Draws by Gumbel noise: their distribution, their gradients, and large catalogues in blocks."""

from __future__ import annotations

from enum import Enum

import pytest
import torch
from torch import Tensor

from models.gumbel import Choice, Gumbel, LargeChoice, SampledChoice, straight_through


class Name(Enum):
    draw = "draw"
    sample = "sample"


class Given:
    """The same noise whatever block of columns is asked for."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def __call__(self, part: Enum, scores: Tensor, first: int = 0) -> Tensor:
        return self.noise[: len(scores), first : first + scores.shape[1]]


def test_draws_follow_the_softmax_of_the_scores() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0]).expand(40_000, 3)
    noise = Gumbel(torch.Generator().manual_seed(0))(Name.draw, scores)
    share = straight_through(scores, noise, 0.5).mean(0)
    torch.testing.assert_close(share, scores[0].softmax(0), atol=0.01, rtol=0)


def test_the_temperature_changes_gradients_but_no_sample() -> None:
    scores = torch.randn(50, 4, dtype=torch.float64, requires_grad=True)
    noise, weights = torch.randn_like(scores), torch.randn_like(scores)
    gradients, samples = [], []
    for tau in (0.1, 1.0):
        sample = straight_through(scores, noise, tau)
        (gradient,) = torch.autograd.grad((sample * weights).sum(), scores)
        expected = torch.autograd.grad(
            (((scores + noise) / tau).softmax(-1) * weights).sum(), scores
        )[0]
        torch.testing.assert_close(gradient, expected)
        gradients.append(gradient)
        samples.append(sample.detach())
    assert torch.equal(*samples)
    assert ((samples[0] == 0) | (samples[0] == 1)).all()  # exactly hard
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3


def test_a_choice_in_blocks_is_the_same_with_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("models.gumbel.BLOCK", 1)  # blocks of as many rows as are kept
    rows, d = 23, 5
    noise = Given(torch.randn(4, rows, dtype=torch.float64))
    found = []
    for choice in (Choice(), LargeChoice(rows), LargeChoice(20), LargeChoice(3)):
        torch.manual_seed(1)
        query = torch.randn(4, d, dtype=torch.float64, requires_grad=True)
        table = torch.randn(rows, d, dtype=torch.float64, requires_grad=True)
        row, vector = choice(query, table, noise, Name.draw, 0.1)
        (vector * torch.arange(d)).sum().backward()
        assert torch.equal(vector.detach(), table.detach()[row])
        found.append((row, query.grad, table.grad))
    for row, query_grad, table_grad in found[1:]:
        assert torch.equal(row, found[0][0])
        # the rows that are left out of the gradient had next to no probability
        torch.testing.assert_close(query_grad, found[0][1], atol=0.05, rtol=0.05)
        torch.testing.assert_close(table_grad, found[0][2], atol=0.05, rtol=0.05)
    torch.testing.assert_close(found[1][1:], found[0][1:])


def test_a_sampled_choice_draws_from_a_uniform_sample() -> None:
    table = torch.zeros(12, 2)
    choice = SampledChoice(3, Name.sample)
    noise = Gumbel(torch.Generator().manual_seed(0))
    counts = torch.zeros(12)
    for _ in range(600):
        row, _ = choice(torch.zeros(20, 2), table, noise, Name.draw, 1.0)
        assert len(row.unique()) <= 3
        counts[row.unique()] += 1
    assert counts.min() > 0.7 * counts.mean()
