"""`python -m harness.doctor` names what is wrong and what to do, on a machine without SLURM."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.doctor import main


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    def which(name: str, **_: object) -> str | None:
        return None if name in {"sinfo", "scontrol"} else known(name)

    known = shutil.which
    monkeypatch.setattr(shutil, "which", which)


def test_a_healthy_machine_is_said_to_be_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data-dir", str(data), "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "ok    data tiny: 120 users" in shown
    assert "every checksum holds" in shown
    assert "ok    SLURM: not on this machine" in shown


def test_a_changed_byte_of_the_data_is_bad(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data / "tiny", copy / "tiny")
    path = next((copy / "tiny").glob("event_item.npy"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert main(["--data-dir", str(copy), "--results", str(tmp_path)]) == 1
    assert "bad   data tiny: " in capsys.readouterr().out


def test_slurm_that_was_asked_for_and_is_not_there_is_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data-dir", str(tmp_path), "--results", str(tmp_path)]
    assert main(["--on", "slurm", *words]) == 1
    assert "bad   SLURM: 'scontrol' is not found" in capsys.readouterr().out
    assert main(["--on", "slurm", "slurm.gpu=1", *words]) == 1
    assert "did you mean 'gpus'?" in capsys.readouterr().out


def test_a_place_that_is_no_place_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--on", "moon"]) == 2
    assert "slurm or slurm:PROFILE is needed" in capsys.readouterr().err
