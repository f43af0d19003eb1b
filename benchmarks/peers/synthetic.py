"""Made-up interactions with a catalogue ten times that of ml-100k, in RecBole's format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

USERS, EVENTS, ITEMS, SEED = 20_000, 30, 20_000, 7
SKEW = 0.9
"""Popularity of the r-th item goes as r ** -SKEW: the top 1 % have 43 % of the events."""


def write(folder: Path) -> Path:
    """Writes FOLDER/synthetic/synthetic.inter, and returns its path; distinct items a user."""
    generator = np.random.default_rng(SEED)
    odds = np.arange(1, ITEMS + 1) ** -SKEW
    drawn = generator.choice(ITEMS, (USERS, 2 * EVENTS), p=odds / odds.sum()) + 1
    path = folder / "synthetic" / "synthetic.inter"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, items in enumerate(drawn, start=1):
            first = np.sort(np.unique(items, return_index=True)[1])[:EVENTS]
            file.writelines(f"{user}\t{item}\t{time}\n" for time, item in enumerate(items[first]))
    return path
