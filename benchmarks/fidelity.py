"""Parameters, FLOPs, seconds, and where they go, of every method, as Markdown for docs/fidelity.md.

    python benchmarks/fidelity.py [METHOD ...] [--data NAME]

On the demo twins, budget quick. FLOPs are those of matrix products (two a multiply-add), counted by
torch: of training (forward and backward) a sample, and of scoring 1 + 99 candidates a user, where
what all users share (a graph, item vectors) is spread over them. The floor of a sample is its FLOPs at
the rate of a large product, measured in the same run (benchmarks/floor.py). Seconds are of one core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from floor import SHOWN, SIZE, Rate, shares
from tabulate import tabulate

from harness.compose import Budget, compose_cell
from harness.data.batches import TrainingSamples
from harness.data.dataset import Dataset
from harness.data.demo import DEMO, ensure_demo
from harness.evaluation.ranks import Validation
from harness.training.loop import Trainer
from harness.training.timing import counted_flops
from harness.zoo import METHODS, REFERENCES, Method, select


def never() -> bool:
    """Nobody stops a benchmark."""
    return False


ENOUGH_SECONDS = 1.0
"""Epochs are repeated until they have taken this long together, at least twice."""


def measure(method: Method, dataset: Dataset, rate: Rate) -> dict[str, object]:
    """One row: an epoch of the method's first stage, the best after the first; all its facts."""
    cell = compose_cell(method, dataset.name, Budget.quick)
    split = dataset.split(cell.protocol)
    torch.manual_seed(1)
    model = method.load()[0](cell.model, dataset.catalogue(cell.protocol))
    model.prepare(split.train)
    trainer = Trainer(
        model, TrainingSamples(split, model.samples, cell.protocol, cell.train), seed=1
    )
    validation = Validation(split, cell.protocol, cell.train.evaluation_batch)
    samples = cell.train.passes * len(trainer.samples)
    training = counted_flops(lambda: trainer.epoch(0, never))
    scoring = counted_flops(lambda: validation(model))
    epochs: list[float] = []
    while len(epochs) < 2 or sum(epochs) < ENOUGH_SECONDS:
        rate.ask()
        start = time.process_time()
        trainer.epoch(1 + len(epochs), never)
        epochs.append(time.process_time() - start)
    seconds = min(epochs)
    start = time.process_time()
    validation(model)
    validated = time.process_time() - start
    return {
        "method": method.printed,
        "data": dataset.name,
        "hidden": cell.model.hidden,
        "parameters": f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}",
        "samples an epoch": samples,
        "MFLOP a sample": training / samples / 1e6,
        "MFLOP a user scored": scoring / len(validation) / 1e6,
        "s an epoch": seconds,
        "µs a sample": 1e6 * seconds / samples,
        "µs a user scored": 1e6 * validated / len(validation),
        **shares(trainer, 1 + len(epochs)),
    }


def account(row: dict[str, object], rate: Rate) -> dict[str, object]:
    """A line of the second table: floor, measured, and the shares of what was measured."""
    flops = float(row["MFLOP a sample"]) * 1e6  # type: ignore[arg-type]
    measured = float(row["µs a sample"])  # type: ignore[arg-type]
    floor = 1e6 * flops / rate.best
    return {
        "method": row["method"],
        "data": row["data"],
        "floor, µs a sample": f"{floor:.3g}" if flops else "none",
        "measured": measured,
        "times": f"{measured / floor:.3g}" if flops else "",
        **{f"{group}, %": f"{100 * float(row[group]):.0f}" for group in SHOWN},  # type: ignore[arg-type]
    }


def main() -> None:
    """Measure the methods named, or all."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--data", choices=DEMO, action="append")
    options = parser.parse_args()
    named = select(options.methods) if options.methods else METHODS + REFERENCES
    rows, rate = [], Rate()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.data or DEMO:
            ensure_demo(Path(folder), name)
            dataset = Dataset.open(Path(folder), name)
            for method in named:
                if method.trained:
                    rows.append(measure(method, dataset, rate))
                    print(rows[-1], file=sys.stderr)
    costs = [{name: row[name] for name in row if name not in SHOWN} for row in rows]
    print(tabulate(costs, headers="keys", tablefmt="github", floatfmt=".3g", intfmt=","))
    print(f"\n{rate.best / 1e9:.0f} GFLOP a second in a product of {SIZE} x {SIZE}\n")
    accounts = [account(row, rate) for row in rows]
    print(tabulate(accounts, headers="keys", tablefmt="github", floatfmt=".3g"))


if __name__ == "__main__":
    main()
