"""Table 4: what is timed and how often, alone; what is said of made-up timings; never how fast."""

from __future__ import annotations

import csv
import io
import json
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from harness.audit import published
from harness.compose import Budget, check_overrides, compose_cell
from harness.config import Cell, Task, cell_key
from harness.data.batches import TrainingSamples
from harness.errors import InputError
from harness.execution import here
from harness.execution.estimate import estimate
from harness.execution.here import Ended, Outcome, run_here
from harness.execution.live import Board
from harness.execution.plan import alone, plan
from harness.execution.progress import Display
from harness.experiments import common, table2, table4
from harness.fingerprint import TIMING, _closure, code_fingerprint
from harness.report.text import markdown
from harness.report.timing import (
    BATCH,
    EPOCH,
    Ratio,
    Timing,
    build_timing,
    printed_ratio,
    ratio,
    spread,
)
from harness.report.timing_page import csv_text, is_busy, json_content, page, three
from harness.reproduce import TARGETS, main
from harness.run import Places, open_dataset, run
from harness.store import Record, Store
from harness.training import timing as measuring
from harness.training.loop import StoppedError, Trainer
from harness.training.timing import REPEATS, Machine
from harness.zoo import METHODS, find
from tests.harness.report_world import ranks, record, table_data

DATA = ("demo_rec_tmall", "demo_kuaishou")
HERE = Machine("Some Processor", 8, 1, 16.0, None, "2.13")
LEVELS = {"STOSA": 1.0, "MMMLP": 2.0, "EBM": 4.0, "M3BSR": 5.0}
"""Seconds of an epoch in the made-up timings."""


@pytest.fixture(scope="module", autouse=True)
def _composed_once():
    """Hydra takes most of the time of these tests, and predictions need no more than their least number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table4, "compose_cell", cache(compose_cell))
        patch.setattr(measuring, "ENOUGH_SECONDS", 0.05)
        yield


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set is opened."""
    monkeypatch.setattr(common, "check_split", lambda *_: None)


def request(word: str | None = None, data: tuple[str, ...] = DATA, overrides: tuple[str, ...] = (),
            places: Places | None = None, target: str = "table4") -> common.Request:  # fmt: skip
    choose = table4.choose_methods if target == "table4" else common.choose_methods
    return common.Request(
        target, "demo", data, Budget.quick, 1, choose(word), overrides,
        places or Places(Path("data"), Path("results")), "a command",
    )  # fmt: skip


def timed(cell: Cell, machine: Machine | None = HERE, levels: dict[str, float] | None = None,
          **measured: list[float]) -> Record:  # fmt: skip
    """A made-up timing record of a cell."""
    seconds = (levels or LEVELS).get(find(cell.method).label, 3.0)
    values = {
        "epoch": [seconds * (1 + 0.01 * n) for n in range(-2, 3)],
        "predict_batch": [0.01 * seconds * (1 + 0.02 * n) for n in range(-3, 4)],
        "predict_one": [0.001 * seconds] * 9,
        "predict_cold": [0.02 * seconds] * 5,
        "earlier_stages": [], "last_stage": [1.0], "whole": [1.0], "steps": [12.0],
        "steps_timed": [12.0], "users": [128.0], "flops_sample": [2e6], "flops_user": [1e6],
        "load": [0.5, 0.9], "others": [0.0, 1.0],
    }  # fmt: skip
    made = record(cell, ranks(np.linspace(0, 1, 5)))
    host = {"name": "anywhere"} | ({"machine": asdict(machine)} if machine else {})
    return replace(
        made, ranks=None, measured={**values, **measured}, host=host, curve=[], epochs=0,
        seconds={"prepare": 1.5, "total": 70.0},
    )  # fmt: skip


def build(asked: common.Request, records: list[Record] | None = None, **more: object) -> Timing:
    cells = table4.cells(asked)
    kept = [timed(cell) for cell in cells] if records is None else records
    return build_timing(kept, cells, [table_data(name) for name in asked.names], **more)  # type: ignore[arg-type]


# --- cells ---


def test_a_cell_is_table2s_timed_in_table4s_setting(unopened):
    scored = {
        (cell.method, cell.data): cell
        for cell in table2.cells(request("stosa,mmmlp,ebm,m3bsr", target="table2"))
        if cell.seed == 1
    }
    cells = table4.cells(request())
    assert [cell.method for cell in cells[:4]] == ["stosa", "mmmlp", "ebm", "m3bsr"]
    assert len({cell_key(cell) for cell in cells}) == len(cells) == 4 * len(DATA)
    for cell in cells:
        assert (cell.train.batch_size, cell.train.samples, cell.train.passes) == (128, 0, 1)
        twin = scored[cell.method, cell.data]
        assert replace(cell, task=Task.score, train=twin.train) == twin
        changed = {key for key, value in asdict(cell.train).items()
                   if value != asdict(twin.train)[key]}  # fmt: skip
        assert changed <= {"batch_size", "samples", "passes"}


def test_a_typed_batch_size_wins_over_the_papers(unopened):
    asked = request("m3bsr", DATA[:1], ("train.batch_size=32", "train.samples=64"))
    cells = table4.cells(asked)
    assert {(cell.train.batch_size, cell.train.samples) for cell in cells} == {(32, 64)}
    assert "batch size 32" in markdown(page(build(asked)))


def test_methods_are_the_papers_or_any_and_m3bsr_always_comes_along():
    def keys(word):
        return [method.key for method in table4.choose_methods(word)]

    assert keys(None) == ["stosa", "mmmlp", "ebm", "m3bsr"]
    assert keys("all") == [method.key for method in METHODS]
    assert keys(" GRU4Rec,sasrec_ce") == ["gru4rec", "m3bsr", "sasrec_ce"]
    with pytest.raises(
        InputError, match="'random' has no epoch to time; choose from: all, gru4rec"
    ):
        keys("random")
    with pytest.raises(InputError, match="names no method"):
        keys(",")


def test_the_task_is_nothing_to_override():
    with pytest.raises(InputError, match="no setting 'task'"):
        check_overrides((find("sasrec"),), ("task=time",))


# --- what is measured ---


def measured(data: Path, method: str, results: Path, batch: int = 128) -> Record:
    cell = compose_cell(find(method), "tiny", Budget.smoke)
    train = replace(cell.train, batch_size=batch, samples=0, passes=1)
    return run(replace(cell, seed=1, task=Task.time, train=train), Places(data, results))


def check_structure(made: Record) -> None:
    values = made.measured
    assert values is not None
    for name in ("epoch", "predict_batch", "predict_one", "predict_cold"):
        assert len(values[name]) >= REPEATS
        assert min(values[name]) > 0
        one = spread(values[name])
        assert one.least <= one.lower <= one.middle <= one.upper <= one.most
    assert values["flops_sample"][0] > 0
    assert values["flops_user"][0] > 0
    assert made.ranks is None
    assert made.train_samples > 0
    machine = measuring.described(made.host)
    assert measuring.same_machine(machine, measuring.machine())


@pytest.mark.parametrize("method", ["sasrec", "m3bsr"])
def test_a_timing_has_five_repeats_of_each_and_is_stored(data, tmp_path, method):
    made = measured(data, method, tmp_path)
    check_structure(made)
    assert made.measured is not None
    assert made.measured["whole"] == [1.0]
    assert Store(tmp_path).load(made.key) == made
    assert not list((tmp_path / "cells" / made.key).glob("*.npz"))


def test_the_last_stage_is_timed_and_one_epoch_of_each_before(data, tmp_path):
    made = measured(data, "ebm", tmp_path)
    check_structure(made)
    assert made.measured is not None
    assert len(made.measured["earlier_stages"]) == 3
    assert made.measured["last_stage"] == [1.0]


def test_a_long_epoch_is_its_beginning_and_its_batches_times_a_block(monkeypatch):
    """A clock that moves 10 s for the beginning and 2 s a batch: an epoch of 50 has 110 s."""
    now = [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measuring, "BLOCK", 7)

    class Trained(Trainer):
        def __init__(self):
            self.model = SimpleNamespace(device=torch.device("cpu"))
            self.samples = SimpleNamespace(batches=50)
            self.done = 0

        def epoch(self, number, stop):
            now[0] += 10
            for _ in range(50):
                if stop():
                    raise StoppedError
                now[0] += 2
                self.done += 1
            return {}

    monkeypatch.setattr(measuring, "WHOLE_STEPS", 49)
    trained = Trained()
    assert measuring._Epochs(trained, lambda: False).train() == 110
    assert trained.done == 7
    monkeypatch.setattr(measuring, "WHOLE_STEPS", 50)
    assert measuring._Epochs(trained, lambda: False).train() == 110
    assert trained.done == 57
    with pytest.raises(StoppedError):
        measuring._Epochs(trained, lambda: True).train()


def test_long_epochs_are_timed_in_blocks_end_to_end(data, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "WHOLE_STEPS", 1)
    monkeypatch.setattr(measuring, "BLOCK", 2)
    made = measured(data, "dipn", tmp_path, batch=32)
    check_structure(made)
    assert made.measured is not None
    assert made.measured["whole"] == [0.0]
    assert made.measured["steps_timed"] == [2.0]
    assert made.measured["steps"][0] > 2
    text = markdown(page(build_timing([made], [as_cell(made)], [table_data("tiny", demo=True)])))
    assert f"DIPN on tiny ({made.measured['steps'][0]:.0f} batches)" in text


def as_cell(made: Record) -> Cell:
    """The cell of `measured`."""
    cell = compose_cell(find(made.label), "tiny", Budget.smoke)
    train = replace(cell.train, batch_size=made.config["train"]["batch_size"], samples=0, passes=1)
    return replace(cell, seed=1, task=Task.time, train=train)


def test_flops_of_a_sample_do_not_depend_on_how_many_batches_were_counted(
    data, tmp_path, monkeypatch
):
    """Batches differ in length, so a block's mean is near an epoch's, not equal to it."""
    whole = measured(data, "sasrec", tmp_path / "a", batch=8)
    monkeypatch.setattr(measuring, "WHOLE_STEPS", 1)
    monkeypatch.setattr(measuring, "BLOCK", 5)
    block = measured(data, "sasrec", tmp_path / "b", batch=8)
    assert whole.measured is not None
    assert block.measured is not None
    assert block.measured["flops_sample"][0] == pytest.approx(
        whole.measured["flops_sample"][0], rel=0.5
    )


def test_what_has_no_training_cannot_be_timed(data, tmp_path):
    with pytest.raises(InputError, match="Random is not trained: it has no epoch to time"):
        measured(data, "random", tmp_path)


def test_a_stopped_timing_ends_and_stores_nothing(data, tmp_path):
    cell = replace(compose_cell(find("sasrec"), "tiny", Budget.smoke), seed=1, task=Task.time)
    asked = iter([False] * 30 + [True] * 10)
    with pytest.raises(StoppedError):
        run(cell, Places(data, tmp_path), stop=lambda: next(asked, True))
    assert not list(Store(tmp_path).records())


def test_predictions_ask_the_same_users_of_every_method(data):
    dataset = open_dataset(data, "tiny")
    users = []
    for method in ("sasrec", "mostpopular"):
        cell = replace(compose_cell(find(method), "tiny", Budget.smoke), seed=1)
        split = dataset.split(cell.protocol, cell.users)
        model = find(method).load()[0](cell.model, dataset.catalogue(cell.protocol))
        history, items = measuring._Predictions(model, split, cell).asked(9)
        assert items.shape == (9, 100)
        users.append(history.user)
    assert torch.equal(*users)
    assert len(TrainingSamples(split, model.samples, cell.protocol, cell.train)) > 0


# --- what is current, what runs beside what ---


def test_a_timing_of_another_machine_or_code_is_not_current(data, tmp_path, monkeypatch):
    places = Places(data, tmp_path)
    made = measured(data, "sasrec", tmp_path)
    cell = as_cell(made)
    assert cell_key(cell) == made.key
    assert plan([cell], places).missing == []
    mine = measuring.machine()
    for other in (
        replace(mine, processor="Another"), replace(mine, gpu="One"), replace(mine, threads=4),
        replace(mine, torch="1.0"),
    ):  # fmt: skip
        monkeypatch.setattr(measuring, "machine", lambda other=other: other)
        assert plan([cell], places).stale == (made.key,)
        assert plan([cell], places, any_machine=True).missing == []
    monkeypatch.setattr(measuring, "machine", lambda: replace(mine, memory_gib=1.0))
    assert plan([cell], places).missing == []


def test_code_that_times_makes_timings_stale_and_no_score():
    assert TIMING not in _closure("harness.run")
    assert code_fingerprint("baselines.sasrec") != code_fingerprint("baselines.sasrec", Task.time)


def test_timing_cells_are_handed_out_last_and_one_at_a_time():
    scored = [Cell(method="sasrec", data="d", seed=seed) for seed in (1, 2, 3)]
    times = [replace(cell, task=Task.time) for cell in scored[:2]]
    assert [alone(cell) for cell in (*scored, *times)] == [False] * 3 + [True] * 2
    left = {cell_key(cell): cell for cell in (times[0], *scored, times[1])}
    deaths = dict.fromkeys(left, 0)
    deaths[cell_key(scored[1])] = 1
    order = []
    while left:
        batch = here._together(left, deaths)
        order.append([(cell.seed, cell.task) for cell in batch.values()])
        left = {key: cell for key, cell in left.items() if key not in batch}
    score, timing = Task.score, Task.time
    assert order == [[(1, score), (3, score)], [(2, score)], [(1, timing)], [(2, timing)]]


def work(cell: Cell, places: Places, wait_for_lock: bool) -> Outcome:
    """A worker's task: note when it was at work."""
    began = time.time()
    time.sleep(0.3)
    name = f"{cell.task.name}-{cell.seed}"
    places.results.joinpath(f"{name}.txt").write_text(f"{began} {time.time()}")
    return Outcome(cell_key(cell), Ended.done)


@pytest.mark.slow
def test_nothing_runs_beside_a_timing(tmp_path, monkeypatch):
    monkeypatch.setattr(here, "_work", work)
    scored = [Cell(method="sasrec", data="d", seed=seed) for seed in (1, 2)]
    cells = [replace(scored[0], task=Task.time), *scored, replace(scored[1], task=Task.time)]
    display = Display(len(cells), Board(tmp_path), 2, Console(quiet=True))
    assert run_here(cells, Places(tmp_path, tmp_path), display, workers=2) == {}
    spans = {
        path.stem: tuple(map(float, path.read_text().split())) for path in tmp_path.glob("*.txt")
    }
    assert len(spans) == 4
    last_score = max(end for name, (_, end) in spans.items() if name.startswith("score"))
    first, second = sorted(span for name, span in spans.items() if name.startswith("time"))
    assert last_score <= first[0]
    assert first[1] <= second[0]


def test_an_estimate_keeps_timings_and_runs_apart(tmp_path, data):
    scored = Cell(method="sasrec", data="tiny", seed=1)
    clocked = replace(scored, task=Task.time)
    store = Store(tmp_path)
    made = record(scored, ranks(np.linspace(0, 1, 5)), seconds={"total": 10.0})
    store.save(made)
    store.save(timed(clocked))
    later = [replace(cell, seed=seed) for cell in (scored, clocked) for seed in (2, 3)]
    places = Places(data, tmp_path)
    rows, total = estimate(plan(later, places), places)
    assert [(row["method"], row["s a cell"]) for row in rows] == [
        ("SASRec", 10.0), ("SASRec (timing)", 70.0),
    ]  # fmt: skip
    assert (total.seconds, total.lone_seconds, total.unknown) == (20.0, 140.0, 0)
    assert total.say(2) == "expected: 2 min on 2 workers"  # 10 s side by side, 140 s alone


# --- what is said ---


def test_ratios_are_of_medians_and_their_range_of_quartiles(unopened):
    timing = build(request())
    made = timing.ratio("STOSA", DATA[1], EPOCH)
    assert made is not None
    assert made.value == pytest.approx(1 / 5)
    assert made.low == pytest.approx(0.99 / 5.05)
    assert made.high == pytest.approx(1.01 / 4.95)
    one, other = spread([1.0, 2.0, 9.0]), spread([4.0, 4.0, 4.0])
    assert ratio(one, other) == Ratio(0.5, 1.5 / 4, 5.5 / 4)


def test_the_papers_ratios_stand_beside_with_their_rounding(unopened):
    timing = build(request())
    papers = timing.published_ratio("EBM", BATCH)
    assert papers is not None
    assert papers == printed_ratio(*(row.inference_seconds for row in published().table4[2:]))
    assert papers.value == pytest.approx(0.13 / 0.16)
    assert (papers.low, papers.high) == (pytest.approx(0.125 / 0.165), pytest.approx(0.135 / 0.155))
    text = markdown(page(timing))
    assert "0.812 [0.758, 0.871]" in text
    assert "0.719 [0.716, 0.721]" in text  # 25.3 / 35.2
    assert "GRU4Rec" not in text


def test_the_page_says_machine_and_ratios_and_claims_nothing_of_seconds(unopened):
    text = markdown(page(build(request())))
    lines = text.splitlines()
    assert lines[0].startswith("DEMO DATA")
    assert (
        "Some Processor, 8 processors, 1 thread of torch 2.13, 16 GiB of memory, no GPU"
        in "\n".join(lines[:8])
    )
    assert "nothing is claimed of them" in text
    assert "no test settles it" in text
    assert (
        "demo_kuaishou: a prediction takes M3BSR 1.25 [1.18, 1.33] times as long as EBM; in the paper "
        "1.23 [1.15, 1.32]" in text
    )
    assert "Every epoch was timed whole." in text
    assert "--methods all" in text
    assert "while the machine was busy" not in text
    for word in ("significant", " p ", "faster than"):
        assert word not in text


def test_the_claim_turns_with_the_numbers(unopened):
    asked = request("ebm", DATA[:1])
    fast = [timed(cell, levels={"EBM": 8.0, "M3BSR": 2.0}) for cell in table4.cells(asked)]
    text = markdown(page(build(asked, fast)))
    assert "a prediction takes M3BSR 0.250 [0.235, 0.265] times as long as EBM" in text
    assert json_content(build(asked, fast))["claim"]["judgement"] == "for the reader"


def test_the_arithmetic_of_the_papers_seconds(unopened):
    text = markdown(page(build(request())))
    assert "22,793 x 0.16 s = 3,647 s, 1.0 h" in text
    assert "104 training epochs of 35.2 s" in text
    assert "1.25 ms a user and 179 x 0.16 s = 29 s a pass" in text
    assert "room for 220 batches of 0.16 s" in text
    assert "28,160 samples" in text


def test_a_busy_machine_is_said(unopened):
    asked = request(data=DATA[:1])
    records = [
        timed(cell, **({"others": [8.0, 9.0]} if cell.method == "ebm" else {}))
        for cell in table4.cells(asked)
    ]
    timing = build(asked, records)
    text = markdown(page(timing))
    assert (
        "Measured while the machine was busy: EBM on demo_rec_tmall (load average up to 0.9, 8.5 other"
        in text
    )
    assert [cost["busy"] for cost in json_content(timing)["costs"]] == [False, False, True, False]
    row = timing.rows["M3BSR", DATA[0]]
    assert row.record is not None
    for load, busy in (([1.0, 8.5], True), ([8.5, 1.0], False)):  # what was before fades
        values = {**(row.record.measured or {}), "load": load}
        assert is_busy(replace(row, record=replace(row.record, measured=values)), HERE) is busy


def test_timings_of_two_machines_do_not_stand_in_one_table(unopened):
    asked = request(data=DATA[:1])
    other = replace(HERE, processor="Another Processor")
    cells = table4.cells(asked)
    records = [timed(cell, other if cell.method == "stosa" else HERE) for cell in cells]
    timing = build(asked, records)
    assert timing.rows["STOSA", DATA[0]].record is None
    assert timing.ratio("STOSA", DATA[0], EPOCH) is None
    text = markdown(page(timing))
    assert "timed on another machine (Another Processor, 8 processors" in text
    assert "Timed on another machine, so not beside these: STOSA on demo_rec_tmall" in text
    # two against two: M3BSR's machine; a record that names none is of another one
    halves = [timed(c, other if c.method in ("ebm", "m3bsr") else HERE) for c in cells]
    assert build(asked, halves).machine == other
    unnamed = [timed(c, None if c.method == "ebm" else HERE) for c in cells]
    assert build(asked, unnamed).rows["EBM", DATA[0]].record is None


@pytest.mark.parametrize("kept", [(), ("stosa",), ("m3bsr",), ("stosa", "m3bsr")])
def test_it_prints_with_nothing_one_or_some_of_its_cells(unopened, kept):
    asked = request()
    cells = table4.cells(asked)
    records = [timed(cell) for cell in cells if cell.method in kept]
    missing = next(cell for cell in cells if cell.method == "ebm")
    timing = build(asked, records, failed={cell_key(missing): "out of\nmemory"})
    text = markdown(page(timing))
    assert "failed [1]" in text
    assert "EBM on demo_rec_tmall: failed: out of memory." in text
    assert ("Nothing is timed yet." in text) == (not kept)
    assert ("nothing is said" in text) == (len(kept) < 2)
    json.dumps(json_content(timing), allow_nan=False)
    assert len(list(csv.DictReader(io.StringIO(csv_text(timing))))) == 2 * 4 * 4


def test_a_record_of_ranks_or_of_no_cell_is_refused(unopened):
    asked = request()
    cells = table4.cells(asked)
    with pytest.raises(InputError, match="is no timing of this table"):
        build(asked, [record(cells[0], ranks(np.linspace(0, 1, 5)))])
    with pytest.raises(InputError, match="is no timing of this table"):
        build(asked, [timed(replace(cells[0], seed=7))])
    with pytest.raises(InputError, match="no timing"):
        page(build(asked, [timed(cells[0], epoch=[])]))


def test_json_and_csv_have_every_number(unopened):
    timing = build(request())
    content = json_content(timing)
    assert content["target"] == "table4"
    assert content["machine"]["processor"] == "Some Processor"
    assert content["batch_size"] == 128
    assert [data["name"] for data in content["data"]] == list(DATA)
    for cell in content["cells"]:
        assert cell["repeats"] >= REPEATS
        assert cell["lower"] <= cell["median"] <= cell["upper"]
        assert cell["ratio"] is not None
        has_published = cell["dataset"] == DATA[1] and cell["measure"] in ("epoch", "predict_batch")
        assert (cell["published"] is not None) == has_published
    rows = list(csv.DictReader(io.StringIO(csv_text(timing))))
    assert {row["measure"] for row in rows} == {
        "epoch", "predict_batch", "predict_one", "predict_cold",
    }  # fmt: skip
    assert all(row["key"] and row["demo"] == "true" for row in rows)


def test_seconds_and_ratios_name_their_runs(unopened):
    asked = request(data=DATA[:1])
    timing = build(asked)
    keys = {cell.method: cell_key(cell) for cell in table4.cells(asked)}
    grids = [
        part for part in page(timing).parts if hasattr(part, "lines") and hasattr(part, "bands")
    ]
    assert grids[0].lines[0].entries[0][0].runs == (keys["stosa"],)
    assert grids[1].lines[0].entries[0][0].runs == (keys["stosa"], keys["m3bsr"])


def test_stages_are_said(unopened):
    asked = request(data=DATA[:1])
    records = [
        timed(
            cell,
            **({"earlier_stages": [1.5, 2.0], "last_stage": [0.0]} if cell.method == "ebm" else {}),
        )
        for cell in table4.cells(asked)
    ]
    text = markdown(page(build(asked, records)))
    assert "EBM on demo_rec_tmall is trained in stages" in text
    assert "1.50, 2.00 s. The last stage was not reached" in text


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0123456, "0.0123"), (1.0, "1.00"), (99.96, "100"), (999.4, "999"), (1234.5, "1,234")],
)
def test_three_digits(value, said):
    assert three(value) == said


# --- from the command line ---


@pytest.mark.slow
def test_end_to_end(words, tmp_path, capsys):
    command = ["table4", *words, "--budget", "smoke", "--methods", "stosa", "--workers", "2"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "STOSA        tiny seed 1 (timing)" in captured.err
    assert "# Table 4" in captured.out
    folder = tmp_path / "results" / "tables" / "table4" / "tiny"
    content = json.loads((folder / "table.json").read_text(encoding="utf8"))
    assert {cell["method"] for cell in content["cells"]} == {"STOSA", "M3BSR"}
    assert all(cell["repeats"] >= REPEATS and cell["median"] > 0 for cell in content["cells"])
    assert r"\label{tab:time}" in (folder / "table.tex").read_text(encoding="utf8")
    assert main([*command, "--plan"]) == 0
    assert "2 stored, 0 to run" in capsys.readouterr().out


def test_cells_whose_code_changed_while_they_ran_are_run_once_a_command(words, monkeypatch, capsys):
    """They are not current for this process, and would be run again for ever."""
    asked = []

    def run_nothing(cells, *_):
        asked.append(len(cells))
        return {}

    monkeypatch.setattr(here, "run_here", run_nothing)
    assert main(["table4", *words, "--budget", "smoke", "--methods", "stosa"]) == 1
    assert asked == [2]
    captured = capsys.readouterr()
    assert "code or data changed while 2 cells were running" in captured.err
    assert "Nothing is timed yet." in captured.out
    assert "What is missing" in captured.out


assert "table4" in TARGETS
