"""What a plan costs on a cluster: jobs and hours, with an interval, before anything is submitted."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from harness.compose import Budget, compose_cell
from harness.config import Cell, Task
from harness.data.demo import prepare_demo
from harness.data.synthetic import rec_tmall_world
from harness.execution.price import Known, knowledge, price
from harness.execution.slurm import Partition, Site, SlurmProfile
from harness.reproduce import main
from harness.run import Places, run
from harness.zoo import find

SITE = Site({"a": Partition("a", True, 60, 8, 16_000, "", 2, True)}, 4, True, "22.05")
GPUS = Site({"a": Partition("a", True, 60, 8, 16_000, "gpu:2", 2, True)}, 4, True, "22.05")
PROFILE = SlurmProfile(partition="a", cpus=2, memory="4G", minutes=60, pack_minutes=30)


def cells(method: str = "sasrec", count: int = 6) -> list[Cell]:
    cell = compose_cell(find(method), "tiny", Budget.smoke)
    return [replace(cell, seed=seed) for seed in range(1, count + 1)]


def test_hours_are_those_of_jobs_whose_workers_share_the_cells() -> None:
    cost = price(cells(), lambda _: Known(1200.0, 4, 0.0, exact=True), PROFILE, SITE)
    assert (cost.cells, cost.jobs, cost.arrays) == (6, 2, 1)
    assert cost.hours.mean == pytest.approx(6 * 1200 / 2 / 3600)
    assert (cost.hours.low, cost.hours.high) == (cost.hours.mean, cost.hours.mean)
    assert cost.gpu_hours.mean == 0
    assert "6 cells in 2 jobs (1 array): 1.00 node-hours" in cost.say()


def test_the_interval_widens_with_fewer_stored_runs_and_gpus_multiply() -> None:
    profile = replace(PROFILE, gres="gpu:a100:2")
    many = price(cells(), lambda _: Known(1200.0, 400, 100.0**2, exact=True), profile, GPUS)
    few = price(cells(), lambda _: Known(1200.0, 2, 100.0**2, exact=True), profile, GPUS)
    half = 1.96 * (6 * 100**2 + 36 * 100**2 / 2) ** 0.5 / 2 / 3600
    assert few.hours.high - few.hours.mean == pytest.approx(half)
    assert many.hours.high - many.hours.mean < few.hours.high - few.hours.mean
    assert many.gpu_hours.high == pytest.approx(2 * many.hours.high)
    assert "2.00 GPU-hours" in many.say()


def test_each_need_has_its_jobs_and_only_gpu_jobs_cost_gpu_hours() -> None:
    profile = replace(PROFILE, gpus=1, methods={"references": {"gpus": 0}, "ebm": {"memory": "8G"}})
    some = [*cells(), *cells("ebm"), *cells("markov", 1)]
    cost = price(some, lambda _: Known(1800.0, 3, 0.0, exact=True), profile, GPUS)
    assert cost.needs == (
        "partition 'a', 2 cores, 4G, 1 GPU, 60 min: 6 cells in 6 jobs (2 arrays): SASRec",
        "partition 'a', 2 cores, 8G, 1 GPU, 60 min: 6 cells in 6 jobs (2 arrays): EBM",
        "partition 'a', 2 cores, 4G, no GPU, 60 min: 1 cell in 1 job (1 array): Markov",
    )
    assert (cost.jobs, cost.arrays) == (13, 5)
    assert cost.gpu_hours.mean == pytest.approx(12 * 0.5)
    assert cost.hours.mean == pytest.approx(12 * 0.5 + 0.25)  # Markov's job has two workers


def test_what_is_not_known_is_named_and_not_in_the_hours() -> None:
    known = {"sasrec": Known(600.0, 3, 1.0, exact=False)}
    cost = price([*cells(), *cells("ebm")], lambda cell: known.get(cell.method), PROFILE, SITE)
    assert cost.unknown == ("EBM",)
    assert cost.guessed == ("SASRec",)
    assert cost.hours.mean == pytest.approx(6 * 600 / 2 / 3600)
    assert "no run is stored: EBM" in cost.say()
    assert "by runs on other data: SASRec" in cost.say()


def test_timing_cells_have_jobs_of_their_own_and_arrays_are_split() -> None:
    timed = [replace(cell, task=Task.time) for cell in cells(count=4)]
    cost = price([*cells(), *timed], lambda _: Known(1800.0, 3, 0.0, exact=True), PROFILE, SITE)
    assert (cost.jobs, cost.arrays) == (3 + 4, 1 + 2)  # at most 3 tasks an array here
    assert cost.hours.mean == pytest.approx((6 * 1800 / 2 + 4 * 1800) / 3600)


@pytest.mark.slow
def test_a_timed_epoch_prices_runs_that_nothing_else_is_known_of(tmp_path: Path) -> None:
    prepare_demo(tmp_path / "data", "tiny", replace(rec_tmall_world(), users=120))
    places = Places(tmp_path / "data", tmp_path / "results")
    (cell,) = cells(count=1)
    assert knowledge(places)(cell) is None
    timed = run(replace(cell, task=Task.time), places)
    assert timed.measured is not None
    one = knowledge(places)(cell)
    assert one is not None
    assert one.mean == median(timed.measured["epoch"]) * cell.train.epochs
    assert (
        price([cell], knowledge(places), PROFILE, SITE)
        .say()
        .endswith("; at most, by a timed epoch: SASRec")
    )
    scored = run(cell, places)
    known = knowledge(places)(cell)
    assert known is not None
    assert (known.mean, known.most) == (scored.seconds["total"], False)


def test_nothing_missing_costs_nothing() -> None:
    assert price([], lambda _: None, PROFILE, SITE).say() == "nothing to submit"


@pytest.mark.slow
def test_a_plan_prices_the_cheapest_runs_that_could_decide_each_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_demo(tmp_path / "data", "tiny", replace(rec_tmall_world(), users=120))
    monkeypatch.setattr("harness.experiments.price.read_site", lambda: SITE)
    places = ["--data-dir", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    words = ["claims", "--data", "tiny", *places, "--seeds", "5", "--on", "slurm", "--plan"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "The cheapest runs that could still decide each claim (3 a row;" in shown
    needed = {
        name: int(count)
        for name, count in re.findall(r"^\| (C\d\w*) +\|[^|]*\| +(\d+)", shown, re.MULTILINE)
    }
    assert needed["C7a"] == 2 * 3  # the full model and one without
    assert needed["C1"] == 17 * 3  # M3BSR against every other row of Table 2
    assert max(needed.values()) < int(shown.partition(" to run")[0].rpartition(", ")[2])
