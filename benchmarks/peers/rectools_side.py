"""RecTools 0.19's side of a race, in an environment of its own (rectools.txt): SASRec, all places targets.

`windows`: whole epochs of its Lightning trainer over the last window of each user, softmax over all items.
Its own epochs are timed, without what `fit` does around them. With `ranks` after the job on the command
line it trains that many epochs instead and says how it ranks.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from setting import read_sequences

from peers.job import DROPOUT, HEADS, HIDDEN, LAYERS, LENGTH, RATE, WINDOWS, Job, Round, serve


class Clock(Callback):  # type: ignore[misc]
    """Seconds of the epochs since it was read last, by the wall and of all threads' work."""

    def __init__(self) -> None:
        self.passed = (0.0, 0.0)

    def on_train_epoch_start(self, *_: Any) -> None:
        self.start = (time.perf_counter(), time.process_time())

    def on_train_epoch_end(self, *_: Any) -> None:
        now = (time.perf_counter(), time.process_time())
        self.passed = tuple(
            total + after - before
            for total, after, before in zip(self.passed, now, self.start, strict=True)
        )

    def read(self) -> dict[str, float]:
        """And begin again."""
        (seconds, processor), self.passed = self.passed, (0.0, 0.0)
        return {"seconds": seconds, "processor": processor}


def interactions(job: Job, left_out: int) -> tuple[Dataset, pd.DataFrame]:
    """All events but each user's last so many, and the last of all."""
    sequences = read_sequences(Path(job.interactions))
    np.savez(Path(job.folder) / "split.npz", user=sequences.user, item=sequences.item)
    number = np.arange(len(sequences.user))
    frame = pd.DataFrame({
        Columns.User: sequences.user,
        Columns.Item: sequences.item,
        Columns.Weight: 1.0,
        Columns.Datetime: pd.Timestamp(2000, 1, 1) + pd.to_timedelta(number, unit="s"),
    })  # fmt: skip
    from_end = frame.groupby(Columns.User).cumcount(ascending=False)
    return Dataset.construct(frame[from_end >= left_out]), frame[from_end == 0]


def model() -> SASRecModel:
    """Its defaults but for what both sides are given."""

    def trainer() -> Trainer:
        return Trainer(max_epochs=1, callbacks=[Clock()], devices=1, accelerator="cpu", logger=False,
                       enable_progress_bar=False, enable_model_summary=False,
                       enable_checkpointing=False)  # fmt: skip

    return SASRecModel(
        n_blocks=LAYERS, n_heads=HEADS, n_factors=HIDDEN, dropout_rate=DROPOUT,
        session_max_len=LENGTH, batch_size=WINDOWS, lr=RATE, loss="softmax",
        get_trainer_func=trainer, recommend_torch_device="cpu",
    )  # fmt: skip


def windows(job: Job) -> Round:
    """Epochs."""
    dataset, _ = interactions(job, 2)
    sasrec = model()
    counts = dataset.interactions.df.groupby(Columns.User).size()
    targets = int((counts - 1).clip(upper=LENGTH).sum())

    def epochs() -> dict[str, Any]:
        sasrec.fit_partial(dataset, min_epochs=job.portion, max_epochs=job.portion)
        clock = next(part for part in sasrec.fit_trainer.callbacks if isinstance(part, Clock))
        return {"units": job.portion * targets, "samples": len(counts), **clock.read()}

    return epochs


def ranks(job: Job, epochs: int) -> None:
    """Print HR@10 and NDCG@10 of the last events among unseen items, each quarter of the epochs."""
    train, _ = interactions(job, 2)
    history, test = interactions(job, 1)
    sasrec = model()
    for part in range(1, 5):
        sasrec.fit_partial(train, min_epochs=epochs // 4, max_epochs=epochs // 4)
        found = sasrec.recommend(test[Columns.User].unique(), history, k=10, filter_viewed=True)
        hits = found.merge(test, on=[Columns.User, Columns.Item])
        gain = (1 / np.log2(hits[Columns.Rank] + 1)).sum() / len(test)
        print(f"RecTools seed {job.seed} epoch {part * epochs // 4}: "
              f"HR@10 {len(hits) / len(test):.4f} NDCG@10 {gain:.4f}", flush=True)  # fmt: skip


def main() -> None:
    """Serve one job, or say how it ranks."""
    more = sys.argv[2:]
    job = Job.read()
    torch.set_num_threads(job.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seed_everything(job.seed, verbose=False)
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        if more:
            ranks(job, int(more[1]))
        else:
            serve(windows, job)


if __name__ == "__main__":
    main()
