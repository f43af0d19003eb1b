"""Both sides' stored ranks side by side, as Markdown: python benchmarks/against_recbole/compare.py FOLDER

A figure is the mean over users and seeds. The difference is ours less theirs, each user's mean over
the seeds paired; its standard error is that of the mean over users. Beside it stands the standard
deviation over seeds where there are two or more.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from setting import hit, ndcg

METRICS = {"HR@10": hit, "NDCG@10": ndcg}


@dataclass(frozen=True)
class Runs:
    """The seeds of one row."""

    values: dict[tuple[str, str], np.ndarray]
    """Metric and kind of ranking to seed x user."""
    facts: list[dict[str, Any]]

    def mean(self, fact: str) -> float:
        """Of a number that every run notes."""
        return float(np.mean([facts[fact] for facts in self.facts]))


def read(folder: Path) -> dict[str, Runs]:
    """All rows, by side and name."""
    files = defaultdict(list)
    for path in sorted(folder.glob("*s-*.npz")):
        files[path.stem.rpartition("-")[0]].append(path)
    rows = {}
    for name, paths in files.items():
        stored = [np.load(path) for path in paths]
        rows[name] = Runs(
            {
                (metric, kind): np.stack([of(run[kind]) for run in stored])
                for metric, of in METRICS.items()
                for kind in ("all", "unseen")
            },
            [json.loads(str(run["facts"])) for run in stored],
        )
    return rows


def spread(values: np.ndarray) -> str:
    """Mean, and the standard deviation over seeds."""
    means = values.mean(1)
    return f"{means.mean():.4f}" + (f" ({means.std(ddof=1):.4f})" if len(means) > 1 else "")


def main() -> None:
    """A table a kind of ranking, and what each row cost."""
    rows = read(Path(sys.argv[1]))
    for kind in ("unseen", "all"):
        print(
            f"\n| {kind} | metric | ours | RecBole | difference | s.e. of users |\n|" + "---|" * 6
        )
        for name, ours in rows.items():
            theirs = rows.get(f"theirs-{ours.facts[0].get('against')}")
            if theirs is None:
                continue
            for metric in METRICS:
                a, b = ours.values[metric, kind], theirs.values[metric, kind]
                paired = a.mean(0) - b.mean(0)
                error = paired.std(ddof=1) / len(paired) ** 0.5
                print(
                    f"| {name.removeprefix('ours-')} | {metric} | {spread(a)} | {spread(b)} "
                    f"| {paired.mean():+.4f} | {error:.4f} |"
                )
    print("\n| run | seeds | parameters | best epoch | epochs | updates | s |\n|" + "---|" * 7)
    for name, runs in rows.items():
        costs = (runs.mean(fact) for fact in ("parameters", "best_epoch", "epochs", "updates"))
        numbers = " | ".join(f"{cost:,.0f}" for cost in costs)
        print(f"| {name} | {len(runs.facts)} | {numbers} | {runs.mean('seconds'):.0f} |")


if __name__ == "__main__":
    main()
