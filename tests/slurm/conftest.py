"""A real SLURM on this machine for the whole test run, and a tiny data set that its nodes can see.

Skipped where SLURM is not installed; `nox -s slurm` installs it, and fails where it must not skip.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from harness.data.demo import prepare_demo
from harness.data.synthetic import rec_tmall_world

ROOT = Path(__file__).resolve().parents[2]


def local_cluster() -> ModuleType:
    """slurm/local_cluster.py as a module."""
    path = ROOT / "slurm" / "local_cluster.py"
    spec = importlib.util.spec_from_file_location("local_cluster", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["local_cluster"] = module
    spec.loader.exec_module(module)
    return module


LOCAL = local_cluster()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = str(Path(__file__).parent)
    missing = LOCAL.missing_programs()
    for item in items:
        if not str(item.path).startswith(here) or "cluster" not in item.fixturenames:  # type: ignore[attr-defined]
            continue
        item.add_marker(pytest.mark.slurm)
        if missing:
            reason = f"no SLURM here ({', '.join(missing)}); nox -s slurm installs it on Debian"
            item.add_marker(pytest.mark.skip(reason))


@pytest.fixture(scope="session")
def cluster() -> Iterator[object]:
    with LOCAL.LocalCluster(nodes=2, folder=Path("/tmp")) as running:
        yield running
        mark, root = running.mark, running.root
    carrying = [
        process
        for process in Path("/proc").iterdir()
        if process.name.isdecimal()
        and LOCAL._environment(int(process.name)).get(LOCAL.MARK) == mark
        and not LOCAL._zombie(int(process.name))
    ]
    assert not carrying, "a process outlived its cluster"
    assert not root.exists(), "a folder outlived its cluster"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    prepare_demo(root, "tiny", replace(rec_tmall_world(), users=120))
    return root


@pytest.fixture
def words(data: Path, tmp_path: Path) -> list[str]:
    places = ["--data-dir", str(data), "--results", str(tmp_path / "results")]
    return ["--data", "tiny", *places, "--budget", "smoke", "--on", "slurm"]
