"""A results folder on a disk that runs full: one line, exit code 2, nothing half-written, resumable."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.data.demo import prepare_demo
from harness.data.synthetic import rec_tmall_world
from harness.store import Store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    prepare_demo(root, "tiny", replace(rec_tmall_world(), users=120))
    return root


def mount(folder: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty folder with a file system of 256 KiB in memory, until the test makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount(folder, "size=256k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(
            "a small disk is mounted for this test, which only the superuser of Linux may do"
        )
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def reproduce(data: Path, results: Path) -> subprocess.CompletedProcess[str]:
    words = ["table2", "--data", "tiny", "--data-dir", str(data), "--results", str(results)]
    words += ["--budget", "smoke", "--methods", "sasrec", "--workers", "2"]
    command = [sys.executable, "-m", "harness.reproduce", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def assert_nothing_is_half_written(results: Path) -> None:
    files = [path for path in results.rglob("*") if path.is_file()]
    assert not [path for path in files if path.name.startswith(".")]
    assert not [path for path in files if "failed" in path.parts or "live" in path.parts]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(Store(results).records())) == len(list((results / "cells").iterdir()))


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_same_command_goes_on_when_there_is_room(
    data: Path, disk: Path
) -> None:
    results = disk / "results"
    for size in ("256k", "700k"):  # ends at the first checkpoint, and at the second
        mount(disk, f"remount,size={size}")
        run = reproduce(data, results)
        assert (run.returncode, run.stdout) == (2, ""), run.stderr
        lines = run.stderr.strip().splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
        assert f"no space left on the disk of '{results}'" in lines[-1]
        assert "--results DIR" in lines[-1]
        assert "Traceback" not in run.stderr
        assert_nothing_is_half_written(results)
    mount(disk, "remount,size=100m")
    run = reproduce(data, results)
    assert run.returncode == 0, run.stderr
    assert "SASRec" in run.stdout

    for path in (results / "tables").rglob("table.*"):
        path.unlink()
    (disk / "other").write_bytes(b"x" * (99 * 2**20))
    left = "size=" + str(99 * 2**20 + used(results) + 3 * 2**12)  # room for some of a table's files
    mount(disk, f"remount,{left}")
    run = reproduce(data, results)
    assert (run.returncode, run.stdout) == (2, "")
    assert len(run.stderr.strip().splitlines()) == 1
    assert f"no space left on the disk of '{results}'" in run.stderr
    assert_nothing_is_half_written(results)


def used(folder: Path) -> int:
    """Bytes of the pages that the files below a folder take."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
