"""RecBole 1.2.1's side of a race, in an environment of its own (recbole.txt).

`train`: whole steps (next batch, forward, backward, Adam) of its model on its prefixes. `evaluate`: its
trainer's evaluation of all test users, each with 99 sampled negatives.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from theirs import configure, sequences

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
    Job,
    Round,
    serve,
)


def settings(job: Job) -> dict[str, Any]:
    """What differs from benchmarks/against_recbole."""
    data = Path(job.interactions)
    mode = {"train": "full", "evaluate": "uni99"}[job.work]
    return {
        "dataset": data.stem,
        "data_path": str(data.parent.parent),
        "MAX_ITEM_LIST_LENGTH": LENGTH,
        "train_batch_size": BATCH,
        "learning_rate": RATE,
        "hidden_size": HIDDEN,
        "embedding_size": HIDDEN,
        "inner_size": job.inner,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "hidden_dropout_prob": DROPOUT,
        "attn_dropout_prob": DROPOUT,
        "dropout_prob": DROPOUT,
        "mask_ratio": MASKED,
        "ft_ratio": LAST,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": mode},
    }


def main() -> None:
    """Serve one job."""
    job = Job.read()
    torch.set_num_threads(job.threads)
    warnings.simplefilter("ignore", FutureWarning)  # its way with pandas
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):  # its logs
        serve(rounds, job, warm=job.work != "evaluate")


def rounds(job: Job) -> Round:
    """The work that is timed."""
    config = configure(job.model, job.seed, ".", **settings(job))
    init_seed(job.seed, reproducibility=True)
    dataset = create_dataset(config)
    train, validation, test = data_preparation(config, dataset)
    split = sequences(dataset, train.dataset, validation.dataset, test.dataset)
    np.savez(Path(job.folder) / "split.npz", user=split.user, item=split.item)
    model = get_model(job.model)(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], job.model)(config, model)
    torch.autograd.set_detect_anomaly(job.checks)  # importing its models has switched it on

    def evaluate() -> dict[str, Any]:
        said = trainer.evaluate(test, load_best_model=False)
        return {"units": len(test.dataset), "NDCG@10": said["ndcg@10"]}

    if job.work == "evaluate":
        return evaluate
    batches = endless(train)
    model.train()

    def steps() -> dict[str, Any]:
        samples = 0
        for _ in range(job.portion):
            batch = next(batches).to(model.device)
            trainer.optimizer.zero_grad()
            loss = model.calculate_loss(batch)
            trainer._check_nan(loss)  # noqa: SLF001 -- as its own epoch does
            loss.backward()
            trainer.optimizer.step()
            samples += len(batch)
        return {"units": samples, "samples": len(train.dataset)}

    return steps


def endless(loader: Any) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


if __name__ == "__main__":
    main()
