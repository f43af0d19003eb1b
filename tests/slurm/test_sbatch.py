"""slurm/reproduce.sbatch: one artefact inside one allocation."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.execution.slurm import states

pytestmark = pytest.mark.usefixtures("cluster")
ROOT = Path(__file__).resolve().parents[2]


def finished(job: str) -> str:
    deadline = time.monotonic() + 180
    while (state := states([job])[job]).alive:
        assert time.monotonic() < deadline, f"job {job} is still {state.name}"
        time.sleep(0.5)
    return state.name


def sbatch(folder: Path, *words: str, cores: int, gpus: int = 0) -> str:
    asked = ["-c", str(cores), *([f"--gpus-per-node={gpus}"] if gpus else [])]
    command = ["sbatch", "--parsable", *asked, "--mem=3000", f"--output={folder}/out",
               f"--export=ALL,PYTHON={sys.executable}", str(ROOT / "slurm/reproduce.sbatch"), *words]  # fmt: skip
    return subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()


def test_an_artefact_is_run_and_printed_inside_a_job_on_all_its_gpus(
    data: Path, tmp_path: Path
) -> None:
    places = ["--data-dir", str(data), "--results", str(tmp_path / "results")]
    words = ["table2", "--data", "tiny", *places, "--budget", "smoke", "--methods", "gru4rec"]
    job = sbatch(tmp_path, *words, cores=1, gpus=2)
    assert finished(job) == "COMPLETED"
    assert "on 2 workers" in (tmp_path / "out").read_text()
    assert (tmp_path / "results/tables/table2/tiny/table.md").exists()


def test_told_to_stop_it_is_queued_again_and_goes_on_with_all_its_cores(
    data: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    words = ["table2", "--data", "tiny", "--data-dir", str(data), "--results", str(results), "--budget",
             "smoke", "--methods", "gru4rec", "train.epochs=60", "train.patience=60"]  # fmt: skip
    job = sbatch(tmp_path, *words, cores=3)
    deadline = time.monotonic() + 180
    while not list(results.glob("checkpoints/*.pt")):
        assert time.monotonic() < deadline, "waited in vain for an epoch"
        time.sleep(0.1)
    subprocess.run(["scancel", "--batch", "--signal=USR2", job], check=True)
    assert finished(job) == "COMPLETED"
    said = (tmp_path / "out").read_text()
    assert "on 3 workers" in said
    assert "queued again" in said
    assert "interrupted; what is finished is stored" in said
    assert (results / "tables/table2/tiny/table.md").exists()
