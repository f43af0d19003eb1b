"""Sessions: tests, lint, types, layers, smoke, browser, latex, slurm, bench.

They run in the environment that nox itself stands in (torch is large, and one copy is enough):
`pip install -c constraints.txt -e ".[dev]"` first. `nox --force-venv-backend venv` gives each its own.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "layers", "tests", "smoke", "browser", "latex", "slurm"]

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MUST = bool(os.environ.get("CI") or os.environ.get("NOTHING_SKIPPED"))
"""Here no session may skip for want of a program."""
WORKERS = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def install(session: nox.Session) -> None:
    """Install the project where the session has an environment of its own."""
    if session.virtualenv.is_sandboxed:
        session.install("-c", "constraints.txt", "-e", ".[dev]")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, the slow group included; those of browser, latex and slurm have their own sessions."""
    install(session)
    chosen = "not browser and not engine and not slurm"
    words = session.posargs or ["-n", WORKERS, "--dist", "worksteal", "-m", chosen]
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


def program(session: nox.Session, names: tuple[str, ...], *packages: str) -> str:
    """The path of one of these programs; where none is there, Debian's packages are installed.

    Without a way to install it the session skips, but on a machine of CI it fails.
    """
    if found := _there(names):
        return found
    root = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"] if MUST else None
    if root is not None and shutil.which("apt-get") is not None:
        for words in (("update",), ("install", "-y", "--no-install-recommends", *packages)):
            session.run(*root, "apt-get", "-qq", *words, env={"DEBIAN_FRONTEND": "noninteractive"},
                        external=True, success_codes=range(256), silent=True)  # fmt: skip
    if found := _there(names):
        return found
    said = f"no {' or '.join(names)} on this machine; as root: apt-get install {' '.join(packages)}"
    raise (session.error if MUST else session.skip)(said)


def _there(names: tuple[str, ...]) -> str | None:
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
    return next(filter(None, (shutil.which(name, path=path) for name in names)), None)


@nox.session
def browser(session: nox.Session) -> None:
    """The report in headless Chromium; screenshots in build/report."""
    install(session)
    path = program(session, BROWSERS, "chromium")
    session.run("python", "-m", "pip", "install", "-q", "-c", "constraints.txt", "playwright")
    session.run("python", "-m", "pytest", "-n", "0", "-m", "browser", *session.posargs,
                "tests/harness/test_report_page.py", env={**ONE_THREAD, "REPORT_BROWSER": path})  # fmt: skip


@nox.session
def latex(session: nox.Session) -> None:
    """Every kind of exported table, compiled."""
    install(session)
    path = program(session, ("pdflatex",), "texlive-latex-base", "texlive-latex-recommended")
    session.run("python", "-m", "pytest", "-n", "0", "-m", "engine", *session.posargs,
                "tests/harness/test_latex_compiles.py", env={**ONE_THREAD, "REPORT_LATEX": path})  # fmt: skip


@contextmanager
def services_stay_down() -> Iterator[None]:
    """Installing a package starts no daemon meanwhile (Debian's policy-rc.d)."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = os.geteuid() == 0 and policy.parent.is_dir() and not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            policy.unlink()


@nox.session
def slurm(session: nox.Session) -> None:
    """The cluster tests, on a real SLURM that is brought up on this machine and taken down again."""
    install(session)
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
    with services_stay_down():
        for name in ("slurmctld", "slurmd", "munged", "sbatch"):
            program(session, (name,), "munge", "slurmctld", "slurmd", "slurm-client")
    session.run("python", "-m", "pytest", "-n", "0", "-m", "slurm", *session.posargs, "tests/slurm",
                env={**ONE_THREAD, "PATH": path})  # fmt: skip


def peer(session: nox.Session, name: str, *options: str) -> str:
    """The interpreter of a peer's environment, made where benchmarks/peers/NAME.txt says another than it has."""
    wanted = Path("benchmarks/peers", f"{name}.txt")
    folder = Path(".nox", f"peers-{name}").resolve()
    python, made_by = folder / "bin" / "python", folder / "made-by.txt"
    if not (made_by.exists() and made_by.read_text() == wanted.read_text()):
        session.run("python", "-m", "venv", "--clear", str(folder))
        session.run(str(python), "-m", "pip", "install", "-q", *options, "-r", str(wanted),
                    env={"PYTHONPATH": ""}, external=True)  # fmt: skip
        made_by.write_text(wanted.read_text())
    return str(python)


@nox.session
def bench(session: nox.Session) -> None:
    """Speed, as ratios, beside RecBole and RecTools in environments of their own; never part of the tests."""
    install(session)
    recbole, rectools = peer(session, "recbole", "--no-deps"), peer(session, "rectools")
    session.run("python", "benchmarks/bench.py", "--recbole", recbole, "--rectools", rectools,
                *session.posargs, env=ONE_THREAD)  # fmt: skip
