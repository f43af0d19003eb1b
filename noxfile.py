"""Sessions: tests, lint, types, layers, smoke, bench.

They run in the environment that nox itself stands in (torch is large, and one copy is enough):
`pip install -c constraints.txt -e ".[dev]"` first. `nox --force-venv-backend venv` gives each its own.
"""

import os
import shutil
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "layers", "tests", "smoke"]

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
WORKERS = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def install(session: nox.Session) -> None:
    """Install the project where the session has an environment of its own."""
    if session.virtualenv.is_sandboxed:
        session.install("-c", "constraints.txt", "-e", ".[dev]")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, the slow group included; words after -- go to pytest."""
    install(session)
    words = session.posargs or ["-n", WORKERS, "--dist", "worksteal", "-m", "slow or not slow"]
    session.run("python", "-m", "pytest", *words, env=ONE_THREAD)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    install(session)
    session.run("python", "-m", "ruff", "check", ".")
    session.run("python", "-m", "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict on the three packages."""
    install(session)
    session.run("python", "-m", "mypy")


@nox.session
def layers(session: nox.Session) -> None:
    """Imports point one way."""
    install(session)
    session.run("lint-imports")


@nox.session
def smoke(session: nox.Session) -> None:
    """Table 2 on at most 200 users of the demo twins, every registered method, from empty folders."""
    install(session)
    folder = Path(tempfile.mkdtemp(prefix="smoke-"))
    try:
        places = ("--results", f"{folder}/results", "--data-dir", f"{folder}/data")
        command = ("python", "-m", "harness.reproduce", "table2", "--budget", "smoke", *places)
        session.run(*command)
        session.run(*command)  # a second time, from stored records
    finally:
        shutil.rmtree(folder)


@nox.session
def bench(session: nox.Session) -> None:
    """Speed, as ratios; never part of the tests."""
    install(session)
    session.run("python", "benchmarks/bench.py", *session.posargs, env=ONE_THREAD)
