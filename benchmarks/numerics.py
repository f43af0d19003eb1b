"""How far fast training is from exact training: the accuracy check of `train.numerics`.

    PYTHONPATH=. python benchmarks/numerics.py [METHOD ...] [--steps tf32,bf16] [--runs 3] [--data NAME]

Trains the same cells with exact numerics and with each step of the switch, and prints for each: the
largest relative difference of an epoch's loss while both runs have the same seed, test NDCG@10 of both,
their difference with its 95 % interval (paired by user, runs not paired: the protocol's variance), and
how many times faster an epoch was. Where the whole interval lies within MARGIN the two are equal; where
it holds 0, no difference is seen (more runs or users would see smaller ones); otherwise they differ,
and the exit code is 1. What this machine cannot do is said, never passed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tabulate import tabulate

from harness.compose import Budget, check_overrides, compose_cell
from harness.config import Cell, Numerics
from harness.data.demo import DEMO, ensure_demo
from harness.errors import InputError
from harness.evaluation.metrics import ndcg
from harness.run import Places, run
from harness.stats import compare, moments
from harness.store import Record
from harness.training.numerics import check
from harness.zoo import Method, select

MARGIN = 0.01
"""NDCG@10 that is taken for equal."""
EVERYWHERE = ("m3bsr", "sasrec")
"""Methods checked unless others are named."""


@dataclass(frozen=True)
class Verdict:
    """A step of the switch against exact training of one method."""

    loss: float
    """Largest relative difference of an epoch's mean loss, over epochs that both runs of a seed have."""
    exact: float
    """Mean test NDCG@10."""
    fast: float
    low: float
    """Of the 95 % interval of fast - exact."""
    high: float
    faster: float
    """Seconds of an exact epoch over those of a fast one, medians."""

    @property
    def differs(self) -> bool:
        """A difference is seen that matters."""
        return not (self.low <= 0 <= self.high or self.equal)

    @property
    def equal(self) -> bool:
        """Any difference is smaller than what matters."""
        return max(-self.low, self.high) <= MARGIN

    def __str__(self) -> str:
        if self.differs:
            return "DIFFERS"
        return f"equal within {MARGIN}" if self.equal else "no difference seen"


def judge(exact: Sequence[Record], fast: Sequence[Record]) -> Verdict:
    """Records of the same cells but for the switch, in the same order of seeds."""
    sides = []
    for records in (exact, fast):
        ranks = [record.ranks for record in records]
        assert all(each is not None for each in ranks)
        sides.append(moments(np.stack([ndcg(each.above, each.tied, 10) for each in ranks])))
    against = compare(sides[1], sides[0])
    curves = [
        (one["loss"], other["loss"])
        for a, b in zip(exact, fast, strict=True)
        for one, other in zip(a.curve, b.curve, strict=False)
    ]
    seconds = [
        median(row["seconds"] for each in records for row in each.curve)
        for records in (exact, fast)
    ]
    return Verdict(
        loss=max(abs(b - a) / max(abs(a), 1e-12) for a, b in curves),
        exact=sides[0].mean,
        fast=sides[1].mean,
        low=against.low,
        high=against.high,
        faster=seconds[0] / seconds[1],
    )


def records(cell: Cell, numerics: Numerics, runs: int, places: Places) -> list[Record]:
    """Runs 1 to `runs` of a cell."""
    train = replace(cell.train, numerics=numerics)
    return [run(replace(cell, train=train, seed=1 + n), places) for n in range(runs)]


def possible(steps: Sequence[Numerics]) -> list[Numerics]:
    """Steps that mean something here; the others are named on stderr."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    for step in steps:
        try:
            if step is Numerics.tf32 and device.type == "cpu":
                raise InputError("'train.numerics=tf32': nothing on a CPU")
            check(step, device)
        except InputError as error:
            print(f"NOT RUN: {error}", file=sys.stderr)
        else:
            found.append(step)
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Check the methods named; 1 where a step differs."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("methods", nargs="*", default=EVERYWHERE, help="keys of methods")
    parser.add_argument("--steps", default="tf32,bf16,compiled,graphs")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--data", default=DEMO[0], help="a demo twin, or a set in --root")
    parser.add_argument("--root", type=Path, help="folder of prepared data sets")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="settings")
    options = parser.parse_args(words)
    chosen: list[Method] = list(select(options.methods))
    check_overrides(chosen, options.set)
    steps = possible([Numerics[name] for name in options.steps.split(",")])
    rows, differs = [], False
    with tempfile.TemporaryDirectory() as scratch:
        root = options.root or Path(scratch)
        if options.root is None:
            ensure_demo(root, options.data)
        places = Places(root, Path(scratch) / "results")
        for method in chosen:
            cell = compose_cell(method, options.data, Budget.quick, options.set)
            exact = records(cell, Numerics.exact, options.runs, places)
            for step in steps:
                found = judge(exact, records(cell, step, options.runs, places))
                differs |= found.differs
                rows.append({
                    "method": method.label, "train.numerics": step.name,
                    "loss, at most": f"{100 * found.loss:.2g} %", "NDCG@10 exact": found.exact,
                    "fast": found.fast, "difference": found.fast - found.exact,
                    "95 % interval": f"{found.low:+.4f} to {found.high:+.4f}",
                    "times faster": found.faster,
                    "verdict": str(found),
                })  # fmt: skip
                print(rows[-1], file=sys.stderr)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: a CPU"
    print(f"{options.data}, {options.runs} runs each, on {gpu}")
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4f"))
    return int(differs)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch")
    torch.set_num_threads(1)
    sys.exit(main())
