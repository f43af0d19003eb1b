"""The races against peers: who runs what, and the lines they make."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from peers import synthetic
from peers.job import Job
from peers.race import Result, Row, Side, race, row

HERE = Path(__file__).resolve().parent
PATHS = (HERE.parent, HERE.parent / "against_recbole", HERE.parent.parent)
"""Import roots of every side: what a module imports decides which environment it needs."""
FASTER, ALL_PLACES_FASTER, EVALUATION_FASTER = 4.0, 2.0, 50.0
PORTIONS = {"SASRec": (1, 24, 4), "GRU4Rec": (4, 24, 5), "BERT4Rec": (2, 32, 8)}
"""RecBole's batches a round, our rounds an epoch, rounds. (BERT4Rec's batches are of two kinds.)"""


def side(name: str, python: str, job: Job) -> Side:
    """A side's program on a job, with as many threads as the job says."""
    threads = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(job.threads)
    )
    paths = os.pathsep.join(str(path) for path in PATHS)
    environment = {**os.environ, **threads, "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"}
    program = HERE / f"{name}_side.py"
    return Side(name, [python, str(program), job.words()], environment)


def against(
    peer: str, python: str, ours: str, job: Job, portion: int, rounds: int, work: str = ""
) -> Result:
    """A race of one job. The peer's split is there before we start.

    Args:
        peer: Which side.
        python: Its interpreter.
        ours: This project's.
        job: The peer's job.
        portion: Our own portion.
        rounds: How many of each.
        work: Our own work where it is another.
    """
    own = replace(job, portion=portion, work=work or job.work)
    with side(peer, python, job) as theirs:
        theirs.ready()
        with side("our", ours, own) as here:
            here.ready()
            return race(here, theirs, rounds)


@contextmanager
def scratch() -> Iterator[str]:
    """A folder that both sides see."""
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        yield folder


def shipped(python: str) -> Path:
    """The ml-100k that RecBole's package holds, beside its interpreter."""
    root = Path(python).parent.parent
    return next(
        root.glob("lib/python*/site-packages/recbole/dataset_example/ml-100k/ml-100k.inter")
    )


def threads_word(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''} each"


def training(recbole: str, ours: str, threads: int, *, more: bool) -> Iterator[Row]:
    """A step of each of the three methods; with `more` also RecBole as it ships, and a large catalogue."""
    small = str(shipped(recbole))
    with scratch() as folder:
        for model, (portion, parts, rounds) in PORTIONS.items():
            job = Job("train", model, small, folder, threads, portion)
            name = f"{model}, ml-100k, prefixes, {threads_word(threads)}"
            result = against("recbole", recbole, ours, job, parts, rounds)
            yield row(name, "RecBole, anomaly detection off", result, FASTER)
            if not more:
                continue
            if model != "BERT4Rec":
                result = against("recbole", recbole, ours, job, 1, 2, work="windows")
                yield row(f"{model}, ml-100k, all places as by default here, {threads_word(threads)}",
                          "RecBole's prefixes", result)  # fmt: skip
            result = against("recbole", recbole, ours, replace(job, checks=True), parts, 2)
            yield row(name, "RecBole as shipped", result)
            if model == "SASRec":
                result = against("recbole", recbole, ours, replace(job, inner=64), parts, rounds)
                yield row(name, "RecBole, its inner width cut to ours (64)", result)
        if not more:
            return
        large = str(synthetic.write(Path(folder)))
        for model in ("SASRec", "GRU4Rec"):
            portion, parts, rounds = PORTIONS[model]
            job = Job("train", model, large, folder, threads, portion)
            result = against("recbole", recbole, ours, job, 5 * parts, rounds)
            yield row(f"{model}, 20,000 items, prefixes, {threads_word(threads)}",
                      "RecBole, anomaly detection off", result, FASTER)  # fmt: skip


def evaluation(recbole: str, ours: str, threads: int) -> Iterator[Row]:
    """1 + 99 candidates of every user of ml-100k."""
    with scratch() as folder:
        for model in PORTIONS:
            job = Job("evaluate", model, str(shipped(recbole)), folder, threads)
            result = against("recbole", recbole, ours, job, 1, 1)
            yield row(f"{model}, 99 negatives, ml-100k, {threads_word(threads)}", "RecBole", result,
                      EVALUATION_FASTER, unit="user")  # fmt: skip


def all_places(recbole: str, rectools: str, ours: str, threads: int) -> Iterator[Row]:
    """SASRec with a target at every place of a user's last window."""
    with scratch() as folder:
        job = Job("windows", "SASRec", str(shipped(recbole)), folder, threads, 2)
        result = against("rectools", rectools, ours, job, 2, 4)
        yield row(f"SASRec, ml-100k, all places, {threads_word(threads)}", "RecTools SASRec", result,
                  ALL_PLACES_FASTER)  # fmt: skip
