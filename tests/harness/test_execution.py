"""Workers that are killed, and files that a killed process left behind."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from harness.config import Cell, cell_key
from harness.errors import InputError
from harness.execution import here
from harness.execution.here import Ended, Outcome, run_here
from harness.execution.live import Board, Failure, Live
from harness.execution.progress import Display
from harness.run import Places
from harness.status import main as status

KILLER = Cell(method="sasrec", data="somewhere", seed=1)
NEIGHBOUR = Cell(method="sasrec", data="somewhere", seed=2)


def live(cell: Cell, started: float) -> Live:
    return Live(cell_key(cell), "SASRec", cell.data, cell.seed, os.getpid(), "here", started)


def failure(cell: Cell) -> Failure:
    return Failure(
        cell_key(cell), "SASRec", cell.data, cell.seed, "why", "trace", "here", 1.0, "code"
    )


def work(cell: Cell, places: Places, wait_for_lock: bool) -> Outcome:
    """A worker's task: the first cell always kills its worker, the second is still at work then."""
    key, board = cell_key(cell), Board(places.results)
    with board.lock(key, wait=wait_for_lock):
        board.put(live(cell, time.time()))
        if cell == KILLER:
            for _ in range(100):  # gives the neighbour a chance to be at work
                if board.results.joinpath("live", f"{cell_key(NEIGHBOUR)}.json").exists():
                    break
                time.sleep(0.02)
            os._exit(9)
        time.sleep(1.0)
        board.clear(key)
    return Outcome(key, Ended.done)


def die(_: object) -> None:
    """A worker's start that fails."""
    os._exit(9)


def run(results: Path, *cells: Cell) -> dict[str, str]:
    display = Display(len(cells), Board(results), 2, Console(quiet=True))
    return run_here(cells, Places(results / "data", results), display, workers=2)


@pytest.mark.slow
def test_a_cell_that_kills_its_worker_does_not_fail_its_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here, "_work", work)
    assert list(run(tmp_path, KILLER, NEIGHBOUR)) == [cell_key(KILLER)]
    assert [one.key for one in Board(tmp_path).failures()] == [cell_key(KILLER)]


@pytest.mark.slow
def test_workers_that_cannot_begin_end_the_run_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here, "_start_worker", die)
    with pytest.raises(InputError, match=r"killed before they begin.*--workers 1"):
        run(tmp_path, KILLER)


def test_waiting_for_another_process_ends_when_the_run_is_stopped(tmp_path: Path) -> None:
    board = Board(tmp_path)
    asked = iter([False, True])
    with board.lock("k", wait=True) as mine, board.lock("k", wait=False) as second:
        assert (mine, second) == (True, False)
        with board.lock("k", wait=True, stop=lambda: next(asked)) as third:
            assert not third
    assert list(asked) == []
    with board.lock("k", wait=False) as free:
        assert free


def test_what_an_earlier_process_left_behind_is_no_death_of_this_one(tmp_path: Path) -> None:
    board, key = Board(tmp_path), cell_key(KILLER)
    board.put(live(KILLER, started=10.0))
    deaths = {key: 0}
    assert here._killed({key: KILLER}, deaths, Places(tmp_path, tmp_path), began=20.0) == []
    assert deaths == {key: 0}
    assert board.lives() == []


@pytest.mark.parametrize(
    "damage", ["", "{", "[1]", "{}", '{"key": 1}', '{"other": "x"}', "seed", "when"]
)
def test_a_damaged_live_or_failed_file_says_nothing(tmp_path: Path, damage: str) -> None:
    board = Board(tmp_path)
    board.put(live(KILLER, 1.0))
    board.put(live(NEIGHBOUR, 2.0))
    board.fail(failure(KILLER))
    board.fail(failure(NEIGHBOUR))
    for folder in ("live", "failed"):
        path = tmp_path / folder / f"{cell_key(KILLER)}.json"
        wrong = {"seed": ('"seed": 1', '"seed": "x"'), "when": ('": 1.0', '": null')}
        text = path.read_text().replace(*wrong[damage]) if damage in wrong else damage
        path.write_text(text)
    assert [one.seed for one in board.lives()] == [2]
    assert [one.seed for one in board.failures()] == [2]
    assert board.failure(cell_key(KILLER)) is None
    assert board.failure(cell_key(NEIGHBOUR)) is not None


def test_failures_are_counted_by_node_so_that_a_sick_one_stands_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = Board(tmp_path)
    for number, host in enumerate(["n1", "n2", "n1", "n1"]):
        key = f"{number:064}"
        board.fail(Failure(key, "SASRec", "tiny", number, "CUDA error", "", host, 0.0, "c"))
    assert status(["--results", str(tmp_path)]) == 0
    assert "failures by node: n1 3, n2 1" in capsys.readouterr().out


def test_gpus_are_those_that_the_scheduler_left_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert here.gpus() == ["3", "5"]
    assert here.slots() == 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert here.gpus() == ["0", "1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # handed out, but nothing computes on it
    assert here.gpus() == []
    assert here.slots() == here.cores()


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(here.signal, "signal", lambda *_: None)
    monkeypatch.setattr(here, "_stop", None)
    context = multiprocessing.get_context("spawn")
    stop, number = context.Event(), context.Value("i", 0)
    taken = []
    for _ in range(3):
        here._start_worker(stop, number, ["3", "5"])
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken == ["3", "5", "3"]
