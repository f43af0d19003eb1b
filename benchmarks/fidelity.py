"""Parameters, FLOPs and seconds of every method, as Markdown for docs/fidelity.md.

    python benchmarks/fidelity.py [METHOD ...]

On the demo twins, budget quick. FLOPs are those of matrix products (two a multiply-add), counted by
torch: of training (forward and backward) a sample, and of scoring 1 + 99 candidates a user, where
what all users share (a graph, item vectors) is spread over them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
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


def measure(method: Method, dataset: Dataset) -> dict[str, object]:
    """One row: an epoch of the method's first stage, the second time it is run."""
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
    start = time.perf_counter()
    trainer.epoch(1, never)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    validation(model)
    validated = time.perf_counter() - start
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
    }


def main() -> None:
    """Measure the methods named, or all."""
    torch.set_num_threads(1)
    named = select(sys.argv[1:]) if sys.argv[1:] else METHODS + REFERENCES
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in DEMO:
            ensure_demo(Path(folder), name)
            dataset = Dataset.open(Path(folder), name)
            for method in named:
                if method.trained:
                    rows.append(measure(method, dataset))
                    print(rows[-1], file=sys.stderr)
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g", intfmt=","))


if __name__ == "__main__":
    main()
