"""A tiny prepared data set, and the words of a command line that use it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.data.demo import prepare_demo
from harness.data.synthetic import rec_tmall_world


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    prepare_demo(root, "tiny", replace(rec_tmall_world(), users=120))
    return root


@pytest.fixture
def words(data: Path, tmp_path: Path) -> list[str]:
    return ["--data", "tiny", "--data-dir", str(data), "--results", str(tmp_path / "results")]
