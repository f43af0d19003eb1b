"""The floor under a computation: its counted FLOPs at the rate of a large matrix product, and what
stands on top of it.

Seconds are those that the process had a core (one thread, so those of a clock on a quiet machine).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from functools import cache
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from harness.training.loop import StoppedError, Trainer

SIZE = 1024
"""Rows and columns of the large product: 2 * SIZE ** 3 FLOPs."""


class Rate:
    """FLOP a second of a large float32 product: the best of many, asked for whenever there is time.

    The least disturbed product stands beside the least disturbed step.
    """

    def __init__(self) -> None:
        self.matrix = torch.randn(SIZE, SIZE)
        self.best = 0.0

    def ask(self, times: int = 5) -> None:
        """Multiply some more."""
        for _ in range(times):
            start = time.process_time()
            _ = self.matrix @ self.matrix
            self.best = max(self.best, 2 * SIZE**3 / (time.process_time() - start))


def against_floor(
    step: Callable[[], object], flops: float, repeats: int = 9
) -> tuple[float, float]:
    """Seconds that the FLOPs take at the rate of a large product, and seconds of a step."""
    rate, seconds = Rate(), []
    step()
    for _ in range(repeats):
        rate.ask()
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return flops / rate.best, min(seconds)


GROUPS: dict[str, tuple[str, ...]] = {
    "products": ("*mm", "*mm_", "aten::dot", "aten::linear", "mkldnn*", "aten::mkldnn*",
                 "aten::_thnn_fused_*", "aten::mv", "aten::addr*", "aten::bilinear"),
    "softmax": ("*softmax*", "aten::logsumexp", "aten::*dot_product*"),
    "random": ("aten::random_", "aten::bernoulli*", "aten::normal_", "aten::uniform_",
               "aten::exponential_", "aten::rand*", "aten::multinomial", "aten::*dropout*"),
    "look-ups": ("aten::*embedding*", "aten::*index*", "aten::gather", "aten::scatter*",
                 "aten::nonzero*", "aten::*sort*", "aten::*unique*", "aten::searchsorted",
                 "aten::bincount", "aten::take*", "aten::masked_select", "aten::topk",
                 "aten::*fft*", "aten::unfold*", "aten::_sparse*"),
    "copies": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_", "aten::clone",
               "aten::empty*", "aten::contiguous", "aten::_to_copy", "aten::repeat*"),
    "optimiser": ("aten::_fused_*", "aten::_foreach_*", "Optimizer.*"),
}  # fmt: skip
"""Operations by what they are for; other operations of torch are element-wise ones and sums."""
INSIDE = {"batches": "batches", "Optimizer.step*": "optimiser", "Optimizer.zero_grad*": "optimiser"}
"""Ranges of the profile whose operations all count for one group."""
SHOWN = (*GROUPS, "element-wise", "batches", "Python")
"""Groups in the order in which they are printed; together they are the wall clock's time."""


@cache
def _range(name: str) -> str | None:
    """The group that a range of this name stands for; None for an event that is no such range."""
    return next((group for pattern, group in INSIDE.items() if fnmatch(name, pattern)), None)


@cache
def _named(name: str) -> str | None:
    """The group of an operation of this name; None for autograd's own steps."""
    for group, patterns in GROUPS.items():
        if any(fnmatch(name, pattern) for pattern in patterns):
            return group
    return "element-wise" if name.startswith("aten::") else None


def group_of(event: Any) -> str | None:
    """The group of a profiled event; None for autograd's own steps, which count with Python."""
    above = event
    while above is not None:
        if (group := _range(above.name)) is not None:
            return group
        above = above.cpu_parent
    return _named(event.name)


def shares(trainer: Trainer, number: int, most: int = 20) -> dict[str, float]:
    """Where the time of an epoch's first batches goes: share of the wall clock of each of SHOWN.

    Python's share holds autograd's bookkeeping and the profiler's own cost, about a microsecond an
    operation.
    """
    asked = 0

    def stop() -> bool:
        """After `most` batches."""
        nonlocal asked
        asked += 1
        return asked > most

    samples, epoch = trainer.samples, trainer.samples.epoch

    def watched(*streams: torch.Generator) -> Iterator[Any]:
        """Batches, each made inside a range of its own."""
        made = iter(epoch(*streams))
        while True:
            with record_function("batches"):
                batch = next(made, None)
            if batch is None:
                return
            yield batch

    samples.epoch = watched  # type: ignore[method-assign]
    try:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            start = time.perf_counter()
            with suppress(StoppedError):
                trainer.epoch(number, stop)
            wall = time.perf_counter() - start
    finally:
        del samples.epoch
    found: Counter[str] = Counter()
    for event in seen.events():
        group = group_of(event)
        if group is not None:
            found[group] += event.self_cpu_time_total / 1e6 / wall
    found["Python"] = max(0.0, 1 - sum(found.values()))
    return {group: found[group] for group in SHOWN}
