"""What both sides of the comparison with RecBole 1.2.1 share: sizes, split, ranks, storage.

Needs numpy alone, as the two sides live in environments of their own. Axes: user, event = ratings of
all users, users ascending, each in order of time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, LAYERS, HEADS, DROPOUT = 32, 2, 2, 0.2
LENGTH = 20
RATE, BATCH = 1e-3, 256
"""Adam's rate, and targets an update."""
EPOCHS, PATIENCE = 30, 4
"""Most epochs; epochs without a better validation NDCG@10 that end a run."""
MASKED, LAST = 0.2, 0.5
"""BERT4Rec: share of masked events, and share of samples in which the last one alone is masked."""


@dataclass(frozen=True)
class Sequences:
    """The ratings as sequences, in the ids of the file; the last is the test, the one before validation."""

    user: np.ndarray
    item: np.ndarray

    @property
    def offsets(self) -> np.ndarray:
        """Events of the u-th user are offsets[u] : offsets[u + 1]."""
        return np.append(np.unique(self.user, return_index=True)[1], len(self.user))

    def same(self, other: Sequences) -> bool:
        """Whether every event stands at the same place."""
        return np.array_equal(self.user, other.user) and np.array_equal(self.item, other.item)


def read_sequences(path: Path) -> Sequences:
    """A .inter file in RecBole's order: time scaled to 0..1, as float32; ties as in the file."""
    columns = path.read_text(encoding="utf8").splitlines()[0].split("\t")
    place = [columns.index(name) for name in ("user_id:token", "item_id:token", "timestamp:float")]
    user, item, time = np.loadtxt(path, delimiter="\t", skiprows=1, usecols=place).T
    scaled = ((time - time.min()) / (time.max() - time.min())).astype(np.float32)
    order = np.lexsort((scaled, user))
    return Sequences(user[order].astype(np.int64), item[order].astype(np.int64))


def counts(scores: np.ndarray, target: np.ndarray, seen: np.ndarray) -> dict[str, np.ndarray]:
    """How many items score above each user's target: of all items, and of those not in its history.

    Args:
        scores: user x item, without a column of padding.
        target: Column of each user's target.
        seen: user x item, True at the history.
    """
    if not np.isfinite(scores).all():
        raise ArithmeticError("scores are not finite")
    above = scores > scores[np.arange(len(target)), target][:, None]
    return {"all": above.sum(1), "unseen": (above & ~seen).sum(1)}


def hit(above: np.ndarray) -> np.ndarray:
    """HR@10 of each user."""
    return (above < 10).astype(float)


def ndcg(above: np.ndarray) -> np.ndarray:
    """NDCG@10 of each user."""
    return hit(above) / np.log2(above + 2.0)


def store(folder: Path, name: str, above: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Keep a run's counts, and print what it reached."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", facts=json.dumps(facts), **above)
    reached = "  ".join(
        f"{which}: HR@10 {hit(count).mean():.4f} NDCG@10 {ndcg(count).mean():.4f}"
        for which, count in above.items()
    )
    short = {key: value for key, value in facts.items() if key != "curve"}
    print(f"{name}  {reached}  {short}", flush=True)
