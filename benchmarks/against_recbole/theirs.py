"""RecBole 1.2.1's side; runs in an environment that has it, on the ml-100k that it ships.

    python benchmarks/against_recbole/theirs.py FOLDER MODEL SEED [SEED ...]

FOLDER receives the ranks of every test user, and the split as RecBole made it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
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
    Sequences,
    counts,
    hit,
    ndcg,
    store,
)

DATA = Path(recbole.__file__).parent / "dataset_example"


def configure(model: str, seed: int, checkpoints: str, **changes: Any) -> Config:
    """RecBole's defaults (inner width 4 d, GELU) but for what both sides are given, and `changes`."""
    return Config(
        model=model,
        dataset=changes.pop("dataset", "ml-100k"),
        config_dict={
            "data_path": str(DATA),
            "checkpoint_dir": checkpoints,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": LENGTH,
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
            "metrics": ["Hit", "NDCG"],
            "topk": [10],
            "valid_metric": "NDCG@10",
            "metric_decimal_place": 6,
            "stopping_step": PATIENCE - 1,  # it stops when more than so many are no better
            "epochs": EPOCHS,
            "train_batch_size": BATCH,
            "learning_rate": RATE,
            "train_neg_sample_args": None,
            "loss_type": "CE",
            "hidden_size": HIDDEN,
            "inner_size": 4 * HIDDEN,
            "embedding_size": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "num_layers": 1,
            "hidden_dropout_prob": DROPOUT,
            "attn_dropout_prob": DROPOUT,
            "dropout_prob": DROPOUT,
            "mask_ratio": MASKED,
            "ft_ratio": LAST,
            "seed": seed,
            "use_gpu": False,
            "show_progress": False,
            "state": "ERROR",
            **changes,
        },
    )


def sequences(dataset: Any, *parts: Any) -> Sequences:
    """RecBole's samples of all parts put together again as sequences, in the file's ids."""
    train = parts[0].inter_feat
    first = train["item_length"] == 1  # a sequence's first event is nobody's target
    events = [(train["user_id"][first], train["item_id_list"][first, 0])]
    events += [(part.inter_feat["user_id"], part.inter_feat["item_id"]) for part in parts]
    user, item = (torch.cat(column) for column in zip(*events, strict=True))
    user = dataset.id2token("user_id", user).astype(np.int64)
    item = dataset.id2token("item_id", item).astype(np.int64)
    order = np.argsort(user, kind="stable")
    return Sequences(user[order], item[order])


def main() -> None:
    """Train and test one model with each of the seeds."""
    folder, model_name = Path(sys.argv[1]).resolve(), sys.argv[2]
    seeds = [int(word) for word in sys.argv[3:]]
    del sys.argv[1:]  # RecBole reads the command line too
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # it loads its own checkpoint the old way
    torch.set_num_threads(1)
    for seed in seeds:
        with (
            tempfile.TemporaryDirectory() as checkpoints,
            contextlib.chdir(checkpoints),
        ):  # its logs
            run(folder, configure(model_name, seed, checkpoints))


def run(folder: Path, config: Config) -> None:
    """One run."""
    init_seed(config["seed"], reproducibility=True)
    dataset = create_dataset(config)
    train, validation, test = data_preparation(config, dataset)
    split = sequences(dataset, train.dataset, validation.dataset, test.dataset)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "split.npz", user=split.user, item=split.item)

    model = get_model(config["model"])(config, train.dataset)
    torch.autograd.set_detect_anomaly(False)  # left on by one of its models; doubles the time
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    curve: list[float] = []
    start = time.perf_counter()

    def note(epoch: int, score: float) -> None:
        curve.append(score)
        print(config["model"], config["seed"], epoch + 1, score, round(time.perf_counter() - start),
              file=sys.stderr, flush=True)  # fmt: skip

    trainer.fit(train, validation, verbose=False, callback_fn=note)
    seconds = time.perf_counter() - start
    said = trainer.evaluate(test, load_best_model=True)

    # the same scores, ranked here; users ascending, items by RecBole's own numbers
    frame = test.dataset.inter_feat
    by_id = np.argsort(dataset.id2token("user_id", frame["user_id"].numpy()).astype(np.int64))
    with torch.no_grad():
        scores = model.full_sort_predict(frame)[by_id, 1:].numpy()
    seen = np.zeros_like(scores, dtype=bool)
    column = dataset.token2id("item_id", split.item.astype(str)) - 1
    seen[np.unique(split.user, return_inverse=True)[1], column] = True
    target = frame["item_id"][by_id].numpy() - 1
    above = counts(scores, target, seen)
    ours = {"hit@10": hit(above["all"]).mean(), "ndcg@10": ndcg(above["all"]).mean()}
    if any(abs(said[key] - value) > 1e-5 for key, value in ours.items()):
        raise ArithmeticError(f"RecBole says {dict(said)}, these ranks {ours}")
    facts = {
        "best_epoch": int(np.argmax(curve)) + 1,
        "epochs": len(curve),
        "updates": len(curve) * len(train),
        "targets": len(train.dataset),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds),
        "curve": curve,
    }
    store(folder, f"theirs-{config['model']}-{config['seed']}", above, facts)


if __name__ == "__main__":
    main()
