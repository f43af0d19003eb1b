"""This project's side: the baselines as they are, with RecBole's sizes, rates, split and ranking.

    python benchmarks/against_recbole/ours.py FOLDER ML-100K.inter ROW SEED [SEED ...]

FOLDER is the one that theirs.py wrote its split to: the sequences must be the same, event by event.
ROW is one of ROWS, or "all".
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from setting import (
    BATCH,
    DROPOUT,
    EPOCHS,
    HEADS,
    HIDDEN,
    LAST,
    LAYERS,
    LENGTH,
    MASKED,
    PATIENCE,
    RATE,
    counts,
    ndcg,
    read_sequences,
    store,
)
from torch.nn import functional

from baselines import bert4rec, gru4rec, sasrec
from harness.config import ProtocolConfig, SameItemHistory, TrainConfig, Windows
from harness.data.batches import EvaluationHistories, TrainingSamples
from harness.data.dataset import Split, Targets
from harness.seeding import stream
from harness.training.loop import Checkpoint, fit
from models.interface import Batch, Catalogue, Interactions, ModelConfig, Recommender, Samples

PROTOCOL = ProtocolConfig(same_item_history=SameItemHistory.keep, max_history=LENGTH)
USERS_AT_ONCE = 512


class Prefixes(TrainingSamples):
    """RecBole's samples for a method that is trained on windows: a window that has one target."""

    def _one_pass(self, order: torch.Generator, draws: torch.Generator) -> Iterator[Batch]:
        for batch in super()._one_pass(order, draws):
            missing = (batch.history.items.shape[1] - 1, 0)
            yield replace(
                batch,
                targets=functional.pad(batch.targets, missing),
                clicks=functional.pad(batch.clicks, missing),
                favors=functional.pad(batch.favors, missing),
            )


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    against: str
    model: type[Recommender]
    config: Callable[[], ModelConfig]
    rows: int
    """Windows (or prefixes) a batch."""
    prefixes: bool = False


SASREC = partial(
    sasrec.SASRecCEConfig,
    hidden=HIDDEN,
    blocks=LAYERS,
    heads=HEADS,
    dropout=DROPOUT,
    learning_rate=RATE,
)
BERT4REC = partial(
    bert4rec.BERT4RecConfig,
    hidden=HIDDEN,
    layers=LAYERS,
    heads=HEADS,
    hidden_dropout=DROPOUT,
    attention_dropout=DROPOUT,
    rho=MASKED,
    last_share=LAST,
    learning_rate=RATE,
    samples_a_row=LENGTH - 2,
    window_step=1 / LENGTH,
    masking=bert4rec.Masking.dynamic,
    optimiser=bert4rec.Optimiser.adam,
)
GRU4REC = partial(gru4rec.GRU4RecConfig, hidden=HIDDEN, dropout_embedding=DROPOUT)
GRU4REC_ADAM = partial(GRU4REC, learning_rate=RATE, optimiser=gru4rec.Optimiser.adam)
WINDOWS = 14
"""Of at most 20 targets, 18.3 on average: 256 targets an update, as RecBole."""

ROWS = {
    "sasrec": Row("SASRec", sasrec.SASRec, SASREC, WINDOWS),
    "sasrec-prefixes": Row("SASRec", sasrec.SASRec, SASREC, BATCH, prefixes=True),
    "sasrec-post": Row("SASRec", sasrec.SASRec, partial(SASREC, norm=sasrec.Norm.post), WINDOWS),
    "sasrec-bce1": Row(
        "SASRec", sasrec.SASRec, partial(SASREC, loss=sasrec.Loss.bce1), WINDOWS
    ),
    "bert4rec": Row("BERT4Rec", bert4rec.BERT4Rec, BERT4REC, BATCH),
    "gru4rec": Row("GRU4Rec", gru4rec.GRU4Rec, GRU4REC, WINDOWS),
    "gru4rec-adam": Row("GRU4Rec", gru4rec.GRU4Rec, GRU4REC_ADAM, WINDOWS),
    "gru4rec-adam-uniform": Row(
        "GRU4Rec", gru4rec.GRU4Rec, partial(GRU4REC_ADAM, sample_alpha=0.0), WINDOWS
    ),
    "gru4rec-adam-prefixes": Row(
        "GRU4Rec",
        gru4rec.GRU4Rec,
        partial(GRU4REC_ADAM, sample_alpha=0.0),
        BATCH,
        prefixes=True,
    ),
}  # fmt: skip


def leave_one_out(path: Path, folder: Path, length: int = LENGTH) -> tuple[Split, Catalogue]:
    """The last event of a user is the test, the one before it validation, the rest are trained on.

    Args:
        path: The .inter file.
        folder: Where the other side has left its split.
        length: Events of a history that a model may read.

    Raises:
        ValueError: RecBole has made another split.
    """
    sequences = read_sequences(path)
    with np.load(folder / "split.npz") as theirs:
        if not sequences.same(replace(sequences, user=theirs["user"], item=theirs["item"])):
            raise ValueError("the sequences are not those of RecBole")
    names, item = np.unique(sequences.item, return_inverse=True)
    user = torch.from_numpy(np.unique(sequences.user, return_inverse=True)[1])
    item = torch.from_numpy(item + 1)
    offsets = torch.from_numpy(sequences.offsets)
    users, items = len(offsets) - 1, len(names)

    def records(kept: torch.Tensor) -> Interactions:
        ones = torch.ones(int(kept.sum()), dtype=torch.int64)
        count = torch.bincount(user[kept], minlength=users)
        return Interactions(
            user[kept], item[kept], ones, ones > 0, functional.pad(count.cumsum(0), (1, 0))
        )

    def targets(from_end: int) -> Targets:
        place, none = offsets[1:] - from_end, torch.zeros(users, 0, dtype=torch.int64)
        return Targets(torch.arange(users), item[place], place, none, none)

    place = torch.arange(len(item))
    everything, train = place >= 0, place < offsets[user + 1] - 2
    split = Split(records(everything), records(train), targets(1), targets(2), offsets, item)
    nothing, no = torch.zeros(items + 1, 1), torch.zeros(items + 1, dtype=torch.bool)
    return split, Catalogue(users, items, length, nothing, no, nothing, no, {}, False)


@torch.no_grad()
def ranked(
    model: Recommender, histories: EvaluationHistories, split: Split, targets: Targets
) -> dict[str, np.ndarray]:
    """Counts of every user's items above the target."""
    model.eval()
    scores = torch.zeros(len(targets.user), model.catalogue.items)
    for rows, history in histories.batches(USERS_AT_ONCE):
        scores[rows] = model.score_all(model.encode(history))[:, 1:]
    seen = torch.zeros(scores.shape, dtype=torch.bool)
    before = torch.arange(len(split.events.item)) < targets.position[split.events.user]
    seen[split.events.user[before], split.events.item[before] - 1] = True
    return counts(scores.numpy(), targets.item.numpy() - 1, seen.numpy())


def run(name: str, row: Row, seed: int, split: Split, catalogue: Catalogue, folder: Path) -> None:
    """Train and test one row with one seed."""
    torch.manual_seed(int(stream(seed, "torch").integers(2**63 - 1)))
    model = row.model(row.config(), catalogue)
    model.prepare(split.train)
    train = TrainConfig(EPOCHS, PATIENCE, row.rows, windows=Windows.tiled)
    kind, make = (Samples.prefix, Prefixes) if row.prefixes else (model.samples, TrainingSamples)
    samples = make(split, kind, PROTOCOL, train)
    targets = sum(
        float(batch.weights.sum())
        for batch in samples.epoch(*(torch.Generator().manual_seed(1) for _ in range(2)))
    )
    validation = EvaluationHistories(split, split.validation, PROTOCOL)

    def validate(model: Recommender) -> float:
        return float(ndcg(ranked(model, validation, split, split.validation)["all"]).mean())

    updates = 0
    before_step = model.before_step

    def counted(optimiser: torch.optim.Optimizer) -> None:
        nonlocal updates
        updates += 1
        before_step(optimiser)

    model.before_step = counted  # type: ignore[method-assign]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        progress = fit(
            model, samples, validate, train, seed, Checkpoint(Path(scratch) / "checkpoint", {})
        )
    facts = {
        "against": row.against,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "updates": updates,
        "targets": int(targets),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - start),
        "curve": [epoch["NDCG@10"] for epoch in progress.curve],
    }
    test = EvaluationHistories(split, split.test, PROTOCOL)
    store(folder, f"ours-{name}-{seed}", ranked(model, test, split, split.test), facts)


def main() -> None:
    """Train and test what the command line names."""
    folder, path, name, seeds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    torch.set_num_threads(1)
    split, catalogue = leave_one_out(path, folder)
    for row in ROWS if name == "all" else [name]:
        for seed in seeds:
            run(row, ROWS[row], int(seed), split, catalogue, folder)


if __name__ == "__main__":
    main()
