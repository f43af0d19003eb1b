"""Features made by an array of jobs on a real local cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.data.extraction import ROWS
from harness.execution.slurm import states
from harness.prepare import main
from tests.harness.data.picture_world import Server, serving
from tests.harness.data.tiny_clip import save_clip

pytestmark = pytest.mark.usefixtures("cluster")
ITEMS = 2 * ROWS + 10


@pytest.fixture
def web() -> Iterator[Server]:
    with serving() as server:
        yield server


def test_shares_run_as_jobs_and_are_put_together(
    web: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_clip(tmp_path / "clip")
    urls = [web.url(f"good/{number % 40}") for number in range(ITEMS)]
    urls[ROWS] = web.url("missing")
    frame = pd.DataFrame({"item": range(ITEMS), "title": "red cup", "picture": urls})
    frame.to_parquet(tmp_path / "items.parquet")
    out = tmp_path / "out"
    words = ["features", "--items", f"{tmp_path}/items.parquet", "--image-model", str(model), "--rate", "1e9",
             "--private-hosts", "--out"]  # fmt: skip
    jobs = [str(out), "--on", "slurm", "--shards", "2", "slurm.cpus=1", "slurm.memory=1500M"]
    assert main([*words, *jobs]) == 0
    assert "0 of 3 parts are made; submitted 2 jobs" in capsys.readouterr().out
    (told,) = json.loads((tmp_path / "out.parts" / "slurm.json").read_text())
    assert main([*words, *jobs]) == 0
    assert "jobs out: " in capsys.readouterr().out  # nothing is submitted twice
    deadline = time.monotonic() + 120
    while any(state.alive for state in states([told["array"]]).values()):
        assert time.monotonic() < deadline, "the jobs do not end"
        time.sleep(0.3)
    assert main([*words, *jobs]) == 0, capsys.readouterr().err
    assert f"features of {ITEMS:,} items" in capsys.readouterr().out
    assert main([*words, f"{tmp_path}/here"]) == 0
    for name in ("image", "text"):
        there = np.load(out / f"{name}.npy")
        assert there.tobytes() == np.load(tmp_path / "here" / f"{name}.npy").tobytes()
        assert there.any(axis=1).sum() == ITEMS - (name == "image")


def test_a_partition_that_is_not_there_is_said_before_anything_is_submitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_clip(tmp_path / "clip")
    pd.DataFrame({"item": [1], "title": ["red"]}).to_parquet(tmp_path / "items.parquet")
    words = ["features", "--items", f"{tmp_path}/items.parquet", "--text-model", str(model),
             "--out", f"{tmp_path}/out", "--on", "slurm", "slurm.partition=debgu"]  # fmt: skip
    assert main(words) == 2
    assert "no partition 'debgu'; did you mean 'debug'?" in capsys.readouterr().err
    assert not (tmp_path / "out.parts" / "slurm.json").exists()
