"""The local cluster leaves nothing behind, whichever way it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "local_cluster.py"


def processes_of(root: str) -> list[int]:
    """Processes whose command line names the cluster's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if root.encode() in line:
                found.append(int(entry.name))
    return found


def start(command: str) -> tuple[subprocess.Popen[str], str]:
    """A cluster of its own with a command that prints its folder."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--nodes", "1", "--", "bash", "-c", command],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, str(Path(process.stdout.readline().strip()).parent)


@pytest.mark.parametrize("how", ["end", "SIGTERM", "SIGKILL"])
def test_nothing_is_left_behind(cluster: Any, how: str) -> None:
    del cluster  # it says where SLURM is not installed
    wait = "true" if how == "end" else "sleep 600"
    process, root = start(f"echo $SLURM_CONF; sbatch -o /dev/null --wrap 'sleep 500' >&2; {wait}")
    assert processes_of(root)
    if how != "end":
        process.send_signal(getattr(signal, how))
    process.wait(60)
    assert process.stdout is not None
    process.stdout.close()
    deadline = time.monotonic() + 30
    while processes_of(root) or Path(root).exists():
        assert time.monotonic() < deadline, "something outlived its cluster"
        time.sleep(0.2)
