"""The command line: what is refused, in one line and without a trace, and what a table run leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from harness.reproduce import main
from harness.status import main as status

ROOT = Path(__file__).resolve().parents[2]


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    return err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["tabel2"],
            "no target 'tabel2'; did you mean 'table2'? Choose from: ",
        ),
        (["all", "--methods", "sasrec"], "--methods 'sasrec': all has every row of every artefact"),
        (["table2", "--methods", "sasrek"], "no method 'sasrek'; did you mean 'sasrec'?"),
        (["figure3", "--methods", "sasrec"], "no row of Figure 3 'sasrec'"),
        (["figure3", "model.loss.lambda_c=0"], "'w/o Disent' takes out what"),
        (["table2", "train.epoch=3"], "no setting 'train.epoch'; did you mean 'train.epochs'?"),
        (["table2", "train.epochs=three"], "'train.epochs=three': Value 'three'"),
        (["table2", "train.patience=0"], "'train.patience=0': at least 1 is needed"),
        (["table2", "train.batch_size=0"], "'train.batch_size=0': at least 1 is needed"),
        (["table2", "protocol.max_history=-1"], "'protocol.max_history=-1': at least 1 is needed"),
        (["table2", "model.hidden=-3"], "'model.hidden=-3': at least 1 is needed"),
        (["table2", "model.learning_rate=nan"], "'model.learning_rate=nan': a finite number"),
        (["table2", "--methods", ","], "--methods ',' names no method; choose from: gru4rec"),
        (["table2", "protocol.scope=usr"], "Invalid value 'usr', expected one of [user, behavior]"),
        (
            ["table2", "--methods", "m3bsr", "model.hidden=30", "model.heads=4"],
            "M3BSR cannot be built: model.heads=4 does not divide model.hidden=30",
        ),
        (["table2", "seed=3"], "no setting 'seed'"),
        (["table2", "epochs"], "'epochs' is not key=value; an example: train.epochs=3"),
        (["table2", "train.epochs=1,2"], "'train.epochs=1,2' is not key=value"),
        (["table2", "--budget", "fast"], "no budget 'fast'"),
        (["table2", "--seeds", "0"], "--seeds 0: at least 1 is needed"),
        (
            ["table2", "--on", "slurm", "slurm.gpu=1"],
            "no setting of a SLURM profile 'gpu'; did you",
        ),
        (["table2", "--on", "slurm:cqu"], "no SLURM profile 'cqu'; did you mean 'cpu'?"),
        (["table2", "slurm.gpus=1"], "'slurm.gpus=1' is for --on slurm"),
        (["table2", "--wait"], "'--wait' is for --on slurm"),
        (["table2", "--on", "moon"], "no place 'moon' to run; choose from: here"),
        (["table2", "--data", "deskdrp"], "no data set 'deskdrp'"),
        (["table2", "--data", "../tiny"], "'../tiny' cannot name a data set"),
        (["table2", "--data", ","], "names no data set"),
        (
            ["table2", "protocol.same_item_history=novel_only", "users=3"],
            "training targets and 0 validation users under these readings",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_line(
    arguments: list[str], says: str, words: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    line = refused([arguments[0], *words, *arguments[1:]], capsys)
    assert says in line
    assert not (tmp_path / "results").exists()


def test_a_results_folder_that_cannot_be_written_is_named(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").write_text("a file")
    assert "is not writable" in refused(["table2", *words, "--methods", "sasrec"], capsys)


def test_help_comes_without_torch() -> None:
    code = "import sys; from harness.reproduce import main; main(['--help']); print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.endswith("False\n")
    assert "python -m harness.reproduce table2" in run.stdout


def test_a_plan_runs_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table2", *words, "--methods", "sasrec", "--seeds", "2", "--plan"]) == 0
    out = capsys.readouterr().out
    assert (
        "9 cells wanted, 0 stored, 9 to run" in out
    )  # two runs, as many of SASRec (CE), five floors
    assert not (tmp_path / "results").exists()


Start = Callable[..., "subprocess.Popen[str]"]


def hears_control_c() -> None:
    """As a shell's foreground job does; tests run in the background would pass on "ignored"."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `reproduce` processes; whatever a failed test leaves running is ended."""
    processes: list[subprocess.Popen[str]] = []

    def begin(words: Sequence[str], **options: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.reproduce", *words],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=hears_control_c,  # noqa: PLW1509 - no thread has been started here
            **options,  # type: ignore[call-overload]
        )  # fmt: skip
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def ranks(results: Path, label: str = "SASRec") -> dict[str, np.ndarray]:
    for path in (results / "cells").iterdir():
        if json.loads((path / "record.json").read_text())["label"] == label:
            with (path / "ranks.npz").open("rb") as file, np.load(file) as arrays:
                return {name: arrays[name] for name in arrays.files}
    raise AssertionError(f"no record of {label}")


def curve(results: Path, label: str = "SASRec") -> list[dict[str, float]]:
    for path in (results / "cells").iterdir():
        record = json.loads((path / "record.json").read_text())
        if record["label"] == label:
            return [{k: v for k, v in row.items() if k != "seconds"} for row in record["curve"]]
    raise AssertionError(f"no record of {label}")


def epochs_seen(results: Path) -> int:
    epochs = [0]
    for path in (results / "live").glob("[!.]*.json") if (results / "live").is_dir() else []:
        try:
            epochs.append(json.loads(path.read_text())["epoch"])
        except (OSError, ValueError):
            continue
    return max(epochs)


def wait_for_epoch(process: subprocess.Popen[str], results: Path, epoch: int) -> None:
    """Until some run has finished this many epochs; the bound only ends a test that hangs."""
    give_up = time.monotonic() + 240
    while epochs_seen(results) < epoch:
        assert process.poll() is None, finished(process)
        assert time.monotonic() < give_up
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pids: Sequence[int]) -> bool:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        if not any(Path(f"/proc/{pid}").exists() and "Z" not in state(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


LONG = [
    "--methods",
    "sasrec",
    "--seeds",
    "1",
    "train.epochs=25",
    "train.patience=25",
    "train.batch_size=4",
]


@pytest.mark.slow
def test_a_table_is_run_stored_printed_and_not_run_again(
    words: list[str], tmp_path: Path, start: Start
) -> None:
    arguments = ["table2", *words, "--methods", "sasrec,mbstr", "--budget", "smoke"]
    code, out, err = finished(start(arguments))
    assert code == 0, err
    assert out.splitlines()[0].lower().startswith("demo")
    folder = tmp_path / "results" / "tables" / "table2" / "tiny"
    assert {path.name for path in folder.iterdir()} == {
        "page.json", *(f"table.{ending}" for ending in ("md", "csv", "tex", "json"))
    }  # fmt: skip
    assert r"\label{tab:main}" in (folder / "table.tex").read_text()
    some = next((tmp_path / "results" / "cells").glob("*/record.json"))
    assert json.loads(some.read_text())["host"]["numerics"] == {
        "switch": "exact", "tf32": False, "bf16": False, "compiled": False, "graphs": False,
        "autotuned": False, "deterministic": True,
    }  # fmt: skip
    content = json.loads((folder / "table.json").read_text())
    assert content["target"] == "table2"
    assert content["data"][0]["demo"] is True
    assert {cell["method"] for cell in content["cells"]} >= {"SASRec", "MB-STR"}
    random = [
        cell
        for cell in content["reference"]
        if cell["method"] == "Random" and cell["metric"] == "HR@10"
    ]
    assert random[0]["mean"] == pytest.approx(0.1)
    code, again, err = finished(start(arguments))
    assert (code, again) == (0, out)
    assert "to run" not in err, "nothing was left to run"


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_bit_equal(
    words: list[str], tmp_path: Path, start: Start
) -> None:
    results = tmp_path / "results"
    first = start(["table2", *words, *LONG, "--workers", "1"])
    wait_for_epoch(first, results, 3)
    workers = children(first.pid)
    first.kill()
    finished(first)
    assert gone(workers), "no orphan goes on"
    assert not list((results / "cells").glob(".new-*"))
    code, _, err = finished(start(["table2", *words, *LONG]))
    assert code == 0, err
    straight = [word.replace(str(results), str(tmp_path / "straight")) for word in words]
    code, _, err = finished(start(["table2", *straight, *LONG]))
    assert code == 0, err
    assert curve(results) == curve(tmp_path / "straight")
    for name, array in ranks(results).items():
        np.testing.assert_array_equal(array, ranks(tmp_path / "straight")[name])
    assert not list((results / "checkpoints").iterdir())


@pytest.mark.slow
def test_control_c_ends_cleanly_and_names_how_to_go_on(
    words: list[str], tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    process = start(["table2", *words, *LONG, "--workers", "1"], start_new_session=True)
    wait_for_epoch(process, results, 2)
    assert status(["--results", str(results)]) == 0
    shown = capsys.readouterr().out
    assert "1 running" in shown
    assert "SASRec" in shown
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    code, _, err = finished(process)
    assert code == 130
    assert (
        err.strip()
        .splitlines()[-1]
        .startswith("interrupted; what is finished is stored. To go on: ")
    )
    assert "Traceback" not in err
    assert gone(workers)
    assert list((results / "checkpoints").glob("*.pt"))
    assert not list((results / "live").iterdir())


@pytest.mark.slow
def test_two_at_once_share_the_work(words: list[str], tmp_path: Path, start: Start) -> None:
    arguments = [
        "table2",
        *words,
        "--methods",
        "sasrec",
        "--seeds",
        "4",
        "train.epochs=4",
        "--workers",
        "1",
    ]
    processes = [start(arguments) for _ in range(2)]
    ends = [finished(process) for process in processes]
    assert [end[0] for end in ends] == [0, 0], ends
    assert ends[0][1] == ends[1][1], "both print the same table"
    done = [line for end in ends for line in end[2].splitlines() if "validation NDCG@10" in line]
    assert len(done) == 4 + 4, "each run, of SASRec and SASRec (CE), was done by one of them"
    cells = [path.name for path in (tmp_path / "results" / "cells").iterdir()]
    assert len(cells) == 4 + 4 + 5
    assert not [name for name in cells if name.startswith(".")]


@pytest.mark.slow
def test_a_method_that_diverges_leaves_a_gap_with_its_reason(
    words: list[str], tmp_path: Path, start: Start
) -> None:
    arguments = [
        "table2",
        *words,
        "--methods",
        "sasrec,mbstr",
        "--budget",
        "smoke",
        "model.learning_rate=1e30",
        "train.batch_size=4",
    ]
    code, out, err = finished(start(arguments))
    assert code == 1
    assert "TrainingDivergedError" in err
    assert "failed: TrainingDivergedError: loss not finite" in out.replace("\n", " ")
    failures = list((tmp_path / "results" / "failed").glob("*.json"))
    assert failures
    assert "Traceback" in json.loads(failures[0].read_text())["traceback"]


@pytest.mark.slow
def test_a_worker_killed_again_and_again_is_a_failed_cell(
    words: list[str], tmp_path: Path, start: Start
) -> None:
    results = tmp_path / "results"
    process = start(["table2", *words, *LONG, "--workers", "1"])
    for epoch in (2, 4, 6):  # of two cells, one is killed twice
        wait_for_epoch(process, results, epoch)
        alive = [pid for pid in children(process.pid) if is_worker(pid)]
        os.kill(alive[0], signal.SIGKILL)
        assert gone(alive)
    code, _, err = finished(process)
    assert code == 1
    assert "the worker process was killed (out of memory?)" in err


def is_worker(pid: int) -> bool:
    """A spawned worker, not multiprocessing's resource tracker."""
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
