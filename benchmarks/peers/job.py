"""What all sides are given: sizes, rates, where the data are. Plain Python, for any environment."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

HIDDEN, LAYERS, HEADS, INNER, DROPOUT = 64, 2, 2, 256, 0.2
LENGTH = 50
RATE, BATCH = 1e-3, 1024
"""Adam's rate, and samples an update."""
MASKED, LAST = 0.2, 0.5
"""BERT4Rec: share of masked events, and share of samples in which the last one alone is masked."""
WINDOWS = 128
"""Windows an update where all places of a window are targets (RecTools' default)."""


@dataclass(frozen=True)
class Job:
    """What one process of a race is to do in its rounds."""

    work: str
    """train, evaluate, windows: what each side offers is in its own file."""
    model: str
    interactions: str
    """A .inter file (user_id, item_id, timestamp)."""
    folder: str
    """Scratch that both sides see; the peer leaves its split here."""
    threads: int
    portion: int = 1
    """How much a round is: batches (RecBole), rounds that make an epoch (ours), epochs (windows)."""
    inner: int = INNER
    """Width inside the peer's feed-forward network."""
    checks: bool = False
    """Autograd's anomaly detection, which RecBole leaves on."""
    seed: int = 1

    def words(self) -> str:
        """As one word of a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls) -> Job:
        """From the command line, which is emptied (RecBole reads it too)."""
        job = cls(**json.loads(sys.argv[1]))
        del sys.argv[1:]
        return job


Round = Callable[[], dict[str, Any]]
"""One portion of the work; returns what it did (units: targets, samples, windows or users)."""


def serve(make: Callable[[Job], Round], job: Job, *, warm: bool = True) -> None:
    """An untimed round; then one for each line of the standard input, timed, answered by a line of JSON.

    A round that times itself says its seconds. What the packages print goes to the standard error.

    Args:
        make: Builds the work.
        job: What it is built for.
        warm: False for a round so long that a cold start does not show.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    work = make(job)
    if warm:
        work()
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        start, processor = time.perf_counter(), time.process_time()
        facts = work()
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        answer = {"seconds": seconds, "processor": processor, **facts}
        print(json.dumps(answer), file=answers, flush=True)
