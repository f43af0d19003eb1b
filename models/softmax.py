"""Exact cross-entropy over the whole catalogue, a block of items at a time (Eq. 24 of M3BSR).

The logits of a block are made, folded into a running log-sum-exp and forgotten; the backward pass
makes them again. So the memory beside the gradients is one block, not batch x items, and the blocks
stay in the cache: faster than the full matrix too. The result is that of `cross_entropy`, to rounding.

Axes: batch = samples, item_row = items + 1 (row 0 is padding), d = hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.precision import in_float32

BLOCK = 1 << 21
"""Logits held at once unless `chunk` says otherwise (8 MiB in float32). Chosen by time on one and
two threads of a Xeon with batches of 128 to 6,400 and 1,683 to 618,529 items, d = 64: 2^19 to 2^21
are within 5 % of each other, 2^22 and more leave the cache and are slower."""


def catalogue_cross_entropy(
    query: Float[Tensor, "batch d"],
    weight: Float[Tensor, "item_row d"],
    bias: Float[Tensor, " item_row"] | None,
    target: Int[Tensor, " batch"],
    *,
    padding: bool = False,
    chunk: int | None = None,
) -> Float[Tensor, " batch"]:
    """Minus the log-softmax of each target's logit, logits = query . weight + bias of all rows.

    Exact: every item is in the denominator. Differentiable once in `query`, `weight` and `bias`.

    Args:
        query: one vector a sample.
        weight: one vector an item row.
        bias: one number an item row, or None.
        target: row that each sample should rank first.
        padding: True when row 0 is a class like the others; otherwise it is in no denominator.
        chunk: rows a block; None chooses it so that a block holds BLOCK logits.

    Raises:
        ValueError: a target that is not one of the rows, or a chunk below 1.
    """
    first, rows = (0 if padding else 1), weight.shape[0]
    if chunk is None:
        chunk = max(BLOCK // max(query.shape[0], 1), 256)
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it is a number of rows, at least 1")
    if target.numel():
        low, high = (int(end) for end in target.aminmax())
        if low < first or high >= rows:
            wrong = low if low < first else high
            raise ValueError(f"target {wrong} is not a row from {first} to {rows - 1}")
    losses: Tensor = _CatalogueCrossEntropy.apply(  # type: ignore[no-untyped-call]
        query, weight, bias, target, first, chunk
    )
    return losses


def _blocks(first: int, rows: int, chunk: int) -> Iterator[slice]:
    """Rows `first` to `rows` - 1, at most `chunk` at a time."""
    for start in range(first, rows, chunk):
        yield slice(start, min(start + chunk, rows))


def _logits(
    buffer: Tensor,
    query: Float[Tensor, "batch d"],
    weight: Float[Tensor, "item_row d"],
    bias: Float[Tensor, " item_row"] | None,
    block: slice,
) -> Float[Tensor, "batch block"]:
    """Logits of one block of rows, written into `buffer` (memory that every block uses again)."""
    shape = (query.shape[0], block.stop - block.start)
    out = buffer[: shape[0] * shape[1]].view(shape)
    if bias is None:
        return torch.mm(query, weight[block].T, out=out)
    return torch.addmm(bias[block], query, weight[block].T, out=out)


class _CatalogueCrossEntropy(torch.autograd.Function):
    """Blocks forward, the same blocks again backward."""

    @staticmethod
    @in_float32
    def forward(
        ctx: Any,
        query: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        first: int,
        chunk: int,
    ) -> Tensor:
        """Running log-sum-exp: `peak` is the largest logit so far, `mass` the sum of exp(logit - peak)."""
        batch, rows = query.shape[0], weight.shape[0]
        buffer = query.new_empty(batch * min(chunk, rows - first))
        peak = query.new_full((batch,), -torch.inf)
        mass = query.new_zeros(batch)
        hit = query.new_zeros(batch)
        for block in _blocks(first, rows, chunk):
            logits = _logits(buffer, query, weight, bias, block)
            place = target - block.start
            inside = (place >= 0) & (place < logits.shape[1])
            place = place.clamp(0, logits.shape[1] - 1).unsqueeze(1)
            hit = torch.where(inside, logits.gather(1, place).squeeze(1), hit)
            higher = torch.maximum(peak, logits.amax(1))
            # A row of logits that are all -inf has no peak to subtract.
            shift = higher.masked_fill(higher == -torch.inf, 0.0)
            mass = mass * (peak - shift).exp() + logits.sub_(shift.unsqueeze(1)).exp_().sum(1)
            peak = higher
        total = peak + mass.log()
        # A catalogue of one block need not be made again: its probabilities are kept.
        kept = logits.div_(mass.unsqueeze(1)) if rows - first <= chunk else None
        ctx.save_for_backward(query, weight, bias, target, total, kept)
        ctx.first, ctx.chunk = first, chunk
        return total - hit

    @staticmethod
    @once_differentiable
    @in_float32
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients: probability of each row, less 1 at the target, times the sample's gradient.

        The sample's gradient multiplies the queries and the products, never a block of probabilities.
        """
        query, weight, bias, target, total, kept = ctx.saved_tensors
        to_query, to_weight, to_bias = ctx.needs_input_grad[:3]
        weighted = query * gradient.unsqueeze(1)
        # Products with the block on the right and untransposed are the fastest of the four layouts.
        across = weighted.T.contiguous()
        grad_query = torch.zeros_like(query) if to_query else None
        grad_weight = torch.zeros_like(weight) if to_weight else None
        grad_bias = torch.zeros_like(bias) if to_bias else None
        buffer = query.new_empty(0 if kept is not None else query.shape[0] * ctx.chunk)
        for block in _blocks(ctx.first, weight.shape[0], ctx.chunk):
            share = kept
            if share is None:
                share = _logits(buffer, query, weight, bias, block)
                share.sub_(total.unsqueeze(1)).exp_()
            if grad_query is not None:
                grad_query.addmm_(share, weight[block])
            if grad_weight is not None:
                grad_weight[block] = (across @ share).T
            if grad_bias is not None:
                grad_bias[block] = gradient @ share
        if grad_query is not None:
            grad_query.sub_(weight[target]).mul_(gradient.unsqueeze(1))
        if grad_weight is not None:
            grad_weight.index_add_(0, target, weighted, alpha=-1)
        if grad_bias is not None:
            grad_bias.index_add_(0, target, gradient, alpha=-1)
        return grad_query, grad_weight, grad_bias, None, None, None


Scores = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""Logits (batch x rows) from tensors that all rows share and from tensors with one line a row."""


def scored_cross_entropy(
    scores: Scores,
    shared: Sequence[Tensor],
    rows: Sequence[Tensor],
    target: Int[Tensor, " batch"],
    *,
    chunk: int | None = None,
) -> Float[Tensor, " batch"]:
    """Minus the log-softmax of each target's logit, for logits that are no plain product.

    Exact, all rows in the denominator (row 0 too). Differentiable once in `shared` and `rows`.

    Args:
        scores: the logits of some rows, from `shared` and from these rows' lines of `rows`; made of
            differentiable operations, and drawing nothing: the backward pass calls it again.
        shared: what every row is scored with (queries, one a sample).
        rows: tensors with one line an item row.
        target: row that each sample should rank first.
        chunk: rows a block; None chooses it so that a block holds BLOCK / 4 logits, as a score that
            is no product has a handful of temporary values a logit.
    """
    if chunk is None:
        chunk = max(BLOCK // 4 // max(target.shape[0], 1), 256)
    if rows[0].shape[0] <= chunk:
        return functional.cross_entropy(scores(shared, rows), target, reduction="none")
    losses: Tensor = _ScoredCrossEntropy.apply(  # type: ignore[no-untyped-call]
        scores, target, chunk, len(shared), *shared, *rows
    )
    return losses


class _ScoredCrossEntropy(torch.autograd.Function):
    """Blocks forward; backward, each block is scored again and differentiated alone."""

    @staticmethod
    @in_float32
    def forward(
        ctx: Any, scores: Scores, target: Tensor, chunk: int, count: int, *tensors: Tensor
    ) -> Tensor:
        """Running log-sum-exp."""
        shared, rows = tensors[:count], tensors[count:]
        total = hit = None
        for block in _blocks(0, rows[0].shape[0], chunk):
            logits = scores(shared, [each[block] for each in rows])
            place = target - block.start
            inside = (place >= 0) & (place < logits.shape[1])
            place = place.clamp(0, logits.shape[1] - 1).unsqueeze(1)
            found = torch.where(inside, logits.gather(1, place).squeeze(1), 0.0)
            mass = logits.logsumexp(1)
            hit = found if hit is None else hit + found
            total = mass if total is None else torch.logaddexp(total, mass)
        assert total is not None
        assert hit is not None
        ctx.save_for_backward(target, total, *tensors)
        ctx.scores, ctx.chunk, ctx.count = scores, chunk, count
        return total - hit

    @staticmethod
    @once_differentiable
    @in_float32
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Through the scores of a block: probability of each row, less 1 at the target."""
        target, total, *tensors = ctx.saved_tensors
        wanted = ctx.needs_input_grad[4:]
        sums = [torch.zeros_like(each) if want else None
                for each, want in zip(tensors, wanted, strict=True)]  # fmt: skip
        sample = torch.arange(len(target), device=target.device)
        for block in _blocks(0, tensors[-1].shape[0], ctx.chunk):
            leaves = [
                (each if number < ctx.count else each[block]).detach().requires_grad_(want)
                for number, (each, want) in enumerate(zip(tensors, wanted, strict=True))
            ]
            with torch.enable_grad():
                logits = ctx.scores(leaves[: ctx.count], leaves[ctx.count :])
            share = (logits.detach() - total.unsqueeze(1)).exp_()
            inside = (target >= block.start) & (target < block.stop)
            share[sample[inside], target[inside] - block.start] -= 1
            needed = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(logits, needed, share.mul_(gradient.unsqueeze(1))))
            for number, into in enumerate(sums):
                if into is not None:
                    (into if number < ctx.count else into[block]).add_(next(found))
        return (None, None, None, None, *sums)
