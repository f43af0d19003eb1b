"""CONTRIBUTING's worked example, executed: one new file and one row make a method of the harness."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def block(marker: str) -> str:
    """The code under `<!-- marker -->`."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf8")
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", page, re.DOTALL)
    assert found is not None, f"CONTRIBUTING.md has no block {marker}"
    return found[1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which the example has been followed."""
    root = tmp_path_factory.mktemp("checkout")
    nothing = shutil.ignore_patterns("__pycache__", "cells", "tables", "checkpoints", "live")
    for name in ("models", "baselines", "harness", "tests", "results"):
        shutil.copytree(ROOT / name, root / name, ignore=nothing)
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "baselines" / "recentmean.py").write_text(block("file: baselines/recentmean.py"))
    zoo = root / "harness" / "zoo.py"
    start = "METHODS: tuple[Method, ...] = (\n"
    text = zoo.read_text(encoding="utf8")
    assert text.count(start) == 1
    zoo.write_text(text.replace(start, start + block("row: harness/zoo.py")))
    return root


def run(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python process that sees the copy alone."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=checkout, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_example_meets_the_contract(checkout: Path) -> None:
    done = run(
        checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "recentmean",
        "tests/test_contract.py", "tests/test_structure.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 30
    order = run(
        checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/harness/test_zoo.py"
    )
    assert order.returncode == 0, order.stdout


@pytest.mark.slow
def test_the_example_has_its_row_in_table_2_and_its_trials(checkout: Path) -> None:
    for target in ("table2", "tuning"):
        words = ["--methods", "recentmean", "--data", "demo_rec_tmall", "--budget", "smoke"]
        done = run(checkout, "-m", "harness.reproduce", target, *words)
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("| RecentMean")][:1]
        assert re.search(r"0\.\d{4}", line)
