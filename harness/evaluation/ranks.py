"""From scores to the two counts that every metric is a function of.

Axes: batch, cand = the positive and its 99 negatives, item_row = items + 1 (row 0 is padding),
user = users with such a target.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from harness.config import ProtocolConfig
from harness.data.batches import EvaluationHistories
from harness.data.dataset import Split, Targets
from harness.evaluation.metrics import ndcg
from harness.store import Ranks
from models.interface import Recommender

MOST_SCORES = 2**25
"""Scores held at once when the whole catalogue is ranked (128 MiB of float32)."""


class BadScoresError(ArithmeticError):
    """A method gave NaN or infinite scores: the run fails before anything is counted."""


def above_and_tied(
    scores: Float[Tensor, "batch cand"], positive: Float[Tensor, " batch"]
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """How many scores lie strictly above the positive's, and how many equal it exactly.

    Raises BadScoresError for NaN or infinite scores, whose comparisons would all be false.
    """
    if not (torch.isfinite(scores).all() and torch.isfinite(positive).all()):
        raise BadScoresError("the method gave NaN or infinite scores; nothing was counted")
    level = positive.unsqueeze(1)
    return (scores > level).sum(1), (scores == level).sum(1)


class Validation:
    """NDCG@10 on the validation targets, among 1 + 99 candidates."""

    def __init__(self, split: Split, protocol: ProtocolConfig, batch: int) -> None:
        self.targets = split.validation
        self.histories = EvaluationHistories(split, self.targets, protocol)
        self.batch = batch

    def __len__(self) -> int:
        """Validation users."""
        return len(self.targets.user)

    @torch.no_grad()
    def __call__(self, model: Recommender) -> float:
        """Mean NDCG@10; the model is left in evaluation mode."""
        model.eval()
        values = []
        for rows, history in self.histories.batches(self.batch):
            state = model.encode(history.to(model.device))
            candidates = torch.cat(
                [self.targets.item[rows].unsqueeze(1), self.targets.candidates[rows]], dim=1
            )
            scores = model.score(state, candidates.to(model.device)).cpu()
            above, tied = above_and_tied(scores[:, 1:], scores[:, 0])
            values.append(ndcg(above.numpy(), tied.numpy(), 10))
        return float(np.concatenate(values).mean())


@torch.no_grad()
def final_ranks(model: Recommender, split: Split, protocol: ProtocolConfig, batch: int) -> Ranks:
    """Counts of every test user among the candidates and among all items never touched.

    Both come from one row of scores over the whole catalogue, so that they never disagree by rounding.
    """
    model.eval()
    targets = split.test
    histories = EvaluationHistories(split, targets, protocol)
    size = max(1, min(batch, MOST_SCORES // (model.catalogue.items + 1)))
    counts = torch.zeros(5, len(targets.user), dtype=torch.int64)
    others = split.redrawn()
    redrawn = None if others is None else torch.zeros(2, *others.shape[:2], dtype=torch.uint8)
    for rows, history in histories.batches(size):
        scores = model.score_all(model.encode(history.to(model.device))).cpu()
        counts[:, rows] = _count(scores, rows, targets, split)
        if redrawn is not None and others is not None:
            redrawn[:, :, rows] = _count_redrawn(scores, targets.item[rows], others[:, rows])
    above, tied, above_full, tied_full, untouched = counts.numpy()
    return Ranks(
        targets.user.numpy(), above, tied, above_full, tied_full, untouched,
        *(() if redrawn is None else redrawn.numpy()),
    )  # fmt: skip


def _count_redrawn(
    scores: Float[Tensor, "batch item_row"],
    positive: Int[Tensor, " batch"],
    others: Int[Tensor, "redraw batch negatives"],
) -> UInt8[Tensor, "two redraw batch"]:
    """Above and tied of some test users among each redraw of their candidates."""
    level = scores.gather(1, positive.unsqueeze(1))
    counts = [above_and_tied(scores.gather(1, items.long()), level.squeeze(1)) for items in others]
    return torch.stack([torch.stack(part) for part in zip(*counts, strict=True)]).to(torch.uint8)


def _count(
    scores: Float[Tensor, "batch item_row"],
    rows: Int[Tensor, " batch"],
    targets: Targets,
    split: Split,
) -> Int[Tensor, "counts batch"]:
    """above, tied, above_full, tied_full, untouched of some test users."""
    positive = scores.gather(1, targets.item[rows].unsqueeze(1)).squeeze(1)
    sampled = above_and_tied(scores.gather(1, targets.candidates[rows]), positive)
    everything = above_and_tied(scores[:, 1:], positive)
    touched, real = _touched(split, targets.user[rows])
    level = positive.unsqueeze(1)
    own = scores.gather(1, touched)
    full = (
        everything[0] - ((own > level) & real).sum(1),
        everything[1] - ((own == level) & real).sum(1),  # the positive itself is among the touched
    )
    untouched = scores.shape[1] - 1 - real.sum(1)
    return torch.stack([*sampled, *full, untouched])


def _touched(
    split: Split, user: Int[Tensor, " batch"]
) -> tuple[Int[Tensor, "batch most"], Bool[Tensor, "batch most"]]:
    """The distinct items each user ever touched, padded with 0, and which of them are real."""
    start, end = split.touched_offsets[user], split.touched_offsets[user + 1]
    place = start.unsqueeze(1) + torch.arange(int((end - start).max()))
    real = place < end.unsqueeze(1)
    return split.touched_items[place.clamp(max=len(split.touched_items) - 1)] * real, real
