"""This project's side of a race, in the project's environment.

`train`: prefixes as RecBole has them (BERT4Rec: masked windows), whole steps of the training loop.
`evaluate`: validation as the harness does it, on the test users with 99 negatives each. `windows`: a
model trained at all places of each user's last window.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ours import Prefixes, leave_one_out, ranked
from setting import hit, ndcg

from baselines import bert4rec, gru4rec, sasrec
from harness.config import ProtocolConfig, SameItemHistory, TrainConfig
from harness.data.batches import EvaluationHistories, TrainingSamples
from harness.data.dataset import Split
from harness.evaluation.ranks import Validation
from harness.seeding import stream
from harness.training.loop import Trainer
from models.interface import Batch, ModelConfig, Recommender, Samples
from peers.job import (
    BATCH,
    DROPOUT,
    HEADS,
    HIDDEN,
    LAST,
    LAYERS,
    LENGTH,
    MASKED,
    RATE,
    WINDOWS,
    Job,
    Round,
    serve,
)

PROTOCOL = ProtocolConfig(same_item_history=SameItemHistory.keep, max_history=LENGTH)
USERS_AT_ONCE = 512


def sasrec_settings(_: int) -> ModelConfig:
    """Softmax over all items, as the peers have it."""
    return sasrec.SASRecCEConfig(
        hidden=HIDDEN, blocks=LAYERS, heads=HEADS, dropout=DROPOUT, learning_rate=RATE
    )


def bert4rec_settings(_: int) -> ModelConfig:
    """As in benchmarks/against_recbole: fresh masks, Adam; a sample a step of the batch's users."""
    return bert4rec.BERT4RecConfig(
        hidden=HIDDEN,
        layers=LAYERS,
        heads=HEADS,
        hidden_dropout=DROPOUT,
        attention_dropout=DROPOUT,
        rho=MASKED,
        last_share=LAST,
        learning_rate=RATE,
        samples_a_row=1,
        window_step=1 / LENGTH,
        masking=bert4rec.Masking.dynamic,
        optimiser=bert4rec.Optimiser.adam,
    )


def gru4rec_settings(others: int) -> ModelConfig:
    """With the batch's own targets, as many uniform negatives as RecBole's softmax has items."""
    return gru4rec.GRU4RecConfig(
        hidden=HIDDEN,
        dropout_embedding=DROPOUT,
        learning_rate=RATE,
        optimiser=gru4rec.Optimiser.adam,
        sample_alpha=0.0,
        negatives=others,
    )


@dataclass(frozen=True)
class Method:
    """What this project has under a peer's name."""

    model: type[Recommender]
    settings: Callable[[int], ModelConfig]
    """From the items that are not among the targets of a step, at least."""
    masked: bool = False
    """Its samples are masked windows that it draws itself, one a row."""


METHODS = {
    "SASRec": Method(sasrec.SASRec, sasrec_settings),
    "GRU4Rec": Method(gru4rec.GRU4Rec, gru4rec_settings),
    "BERT4Rec": Method(bert4rec.BERT4Rec, bert4rec_settings, masked=True),
}


class Portions:
    """The training loop's own epoch, a portion of its batches at a time."""

    def __init__(self, samples: TrainingSamples, parts: int) -> None:
        self.samples = samples
        self.parts = parts
        self.left: list[Batch] = []
        self.done = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.samples, name)

    def epoch(self, order: torch.Generator, draws: torch.Generator) -> Iterator[Batch]:
        """The next batches of an epoch that goes on from call to call."""
        if not hasattr(self, "batch"):
            self.batch = self._endless(order, draws)
        self.done = 0
        for _ in range(max(1, self.samples.batches // self.parts)):
            batch = next(self.batch)
            self.done += len(batch.history.user)
            yield batch

    def _endless(self, order: torch.Generator, draws: torch.Generator) -> Iterator[Batch]:
        while True:
            yield from self.samples.epoch(order, draws)


def build(job: Job) -> tuple[Recommender, Split]:
    """The model, prepared, and the data in RecBole's order."""
    torch.manual_seed(int(stream(job.seed, "torch").integers(2**63 - 1)))
    split, catalogue = leave_one_out(Path(job.interactions), Path(job.folder), LENGTH)
    method = METHODS[job.model]
    rows = WINDOWS if job.work == "windows" else BATCH
    model = method.model(method.settings(max(catalogue.items - rows, 0)), catalogue)
    model.prepare(split.train)
    return model, split


def train(job: Job) -> Round:
    """Part of an epoch a round."""
    model, split = build(job)
    # a masked method draws a window of each row's user, so it takes any rows
    kind = TrainingSamples if METHODS[job.model].masked else Prefixes
    samples = kind(split, Samples.prefix, PROTOCOL, TrainConfig(batch_size=BATCH))
    portions: Any = Portions(samples, job.portion)
    trainer = Trainer(model, portions, job.seed)

    def part() -> dict[str, Any]:
        trainer.epoch(0, lambda: False)
        return {"units": portions.done, "samples": len(samples)}

    return part


def windows(job: Job) -> Round:
    """An epoch over each user's last window, all places of it targets."""
    model, split = build(job)
    samples = TrainingSamples(split, Samples.window, PROTOCOL, TrainConfig(batch_size=WINDOWS))
    trainer = Trainer(model, samples, job.seed)
    targets = sum(
        float(batch.weights.sum())
        for batch in samples.epoch(*(torch.Generator().manual_seed(1) for _ in range(2)))
    )

    def epochs() -> dict[str, Any]:
        for _ in range(job.portion):
            trainer.epoch(0, lambda: False)
        return {"units": job.portion * targets, "samples": len(samples)}

    return epochs


def evaluate(job: Job) -> Round:
    """Encodes each test user once, and scores 1 + 99; the negatives are drawn beforehand, as always here."""
    model, split = build(job)
    generator, users = np.random.default_rng(job.seed), len(split.test.user)
    items = model.catalogue.items
    seen = np.zeros((users, items), dtype=bool)
    seen[split.events.user.numpy(), split.events.item.numpy() - 1] = True
    negatives = np.stack(
        [generator.choice(np.flatnonzero(~row), 99, replace=False) for row in seen]
    )
    test = replace(split.test, candidates=torch.from_numpy(negatives + 1))
    split = replace(split, validation=test)

    def once() -> dict[str, Any]:
        return {
            "NDCG@10": Validation(split, PROTOCOL, USERS_AT_ONCE)(model),
            "units": users,
        }

    return once


def ranks(job: Job, epochs: int) -> None:
    """Print HR@10 and NDCG@10 of the last events among unseen items, each quarter of the epochs."""
    model, split = build(job)
    samples = TrainingSamples(split, Samples.window, PROTOCOL, TrainConfig(batch_size=WINDOWS))
    trainer = Trainer(model, samples, job.seed)
    for part in range(1, 5):
        for epoch in range(epochs // 4):
            trainer.epoch(epoch, lambda: False)
        test = EvaluationHistories(split, split.test, PROTOCOL)
        above = ranked(model, test, split, split.test)["unseen"]
        print(f"ours seed {job.seed} epoch {part * epochs // 4}: "
              f"HR@10 {hit(above).mean():.4f} NDCG@10 {ndcg(above).mean():.4f}", flush=True)  # fmt: skip


def main() -> None:
    """Serve one job; with `ranks N` behind it, say how a model of N epochs ranks instead."""
    more = sys.argv[2:]
    job = Job.read()
    torch.set_num_threads(job.threads)
    if more:
        ranks(job, int(more[1]))
        return
    serve({"train": train, "windows": windows, "evaluate": evaluate}[job.work], job)


if __name__ == "__main__":
    main()
