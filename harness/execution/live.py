"""What runs are doing now, in files that any process can read: results/live, results/failed, locks.

A run holds the lock of its key while it works; the operating system lets go of it when the process
dies, so a live file without a held lock is a run that died.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from harness.store import write_json


@dataclass
class Live:
    """One run that is being worked on, or was when its process died."""

    key: str
    method: str
    data: str
    seed: int
    process: int
    host: str
    started: float
    """Seconds since 1970."""
    epoch: int = 0
    epochs: int = 0
    """Most epochs that it may take."""
    validation: float | None = None
    best: float | None = None
    loss: float | None = None
    updated: float = 0.0
    ends_at: float | None = None
    """When it ends if the patience is not used up before, seconds since 1970."""


@dataclass
class Failure:
    """One run that failed, and why."""

    key: str
    method: str
    data: str
    seed: int
    error: str
    """The error's last line."""
    traceback: str
    host: str
    when: float
    code: str
    """Code fingerprint: other code may succeed."""
    extra: dict[str, Any] = field(default_factory=dict)


Made = TypeVar("Made", Live, Failure)


class Board:
    """The live and failed files of one results folder."""

    def __init__(self, results: Path) -> None:
        self.results = Path(results)

    @contextmanager
    def lock(
        self, key: str, *, wait: bool, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[bool]:
        """Hold a cell's lock; yields False, at once, when another process has it and not `wait`.

        While it waits it asks `stop`, and yields False when that says so.
        """
        folder = self.results / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key}.lock")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0.5 if wait else 0)
            except Timeout:
                if not wait or stop():
                    yield False
                    return
        try:
            yield True
        finally:
            lock.release()

    def working(self, key: str) -> bool:
        """True while some process holds the cell's lock."""
        path = self.results / "locks" / f"{key}.lock"
        if not path.exists():
            return False
        try:
            with self.lock(key, wait=False) as free:
                return not free
        except OSError:  # a folder that may only be read: nobody can work in it from here
            return False

    @contextmanager
    def queue(self, cells: Mapping[str, str]) -> Iterator[None]:
        """While a plan runs: let others see which cells wait. `cells` names each by its key."""
        name = f"plan-{platform.node()}-{os.getpid()}"
        path = self.results / "queued" / f"{name}.json"
        with self.lock(name, wait=True):
            write_json(path, dict(cells))
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def queued(self) -> dict[str, str]:
        """Names, by key, of the cells that living `reproduce` processes still have to run."""
        folder = self.results / "queued"
        waiting: dict[str, str] = {}
        for path in sorted(folder.glob("plan-*.json")) if folder.is_dir() else []:
            if self.working(path.stem):
                for content in _read(folder, path.name):
                    waiting |= content
        return {
            key: name
            for key, name in waiting.items()
            if isinstance(name, str)
            and not (self.results / "cells" / key).exists()
            and not self._live(key).exists()
            and not self._failed(key).exists()
        }

    def put(self, live: Live) -> None:
        """Say what a run is doing."""
        live.updated = time.time()
        write_json(self._live(live.key), asdict(live))

    def clear(self, key: str) -> None:
        """The run is over."""
        self._live(key).unlink(missing_ok=True)

    def fail(self, failure: Failure) -> None:
        """Keep why a run failed."""
        write_json(self._failed(failure.key), asdict(failure))

    def forgive(self, key: str) -> None:
        """A run succeeded after all."""
        self._failed(key).unlink(missing_ok=True)

    def lives(self) -> list[Live]:
        """Everything that runs or ran when its process died, oldest first."""
        return sorted(
            _made(Live, _read(self.results / "live")),
            key=lambda live: live.started,
        )

    def failures(self) -> list[Failure]:
        """Every failed run, oldest first."""
        return sorted(
            _made(Failure, _read(self.results / "failed")),
            key=lambda failure: failure.when,
        )

    def failure(self, key: str) -> Failure | None:
        """Why this run failed, if it did."""
        return next(_made(Failure, _read(self.results / "failed", f"{key}.json")), None)

    def _live(self, key: str) -> Path:
        return self.results / "live" / f"{key}.json"

    def _failed(self, key: str) -> Path:
        return self.results / "failed" / f"{key}.json"


def _read(folder: Path, pattern: str = "*.json") -> Iterator[dict[str, Any]]:
    """JSON objects of a folder; a file that goes while we read is no longer of interest."""
    for path in sorted(folder.glob(pattern)) if folder.is_dir() else []:
        if path.name.startswith("."):
            continue
        try:
            content = json.loads(path.read_text(encoding="utf8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            yield content


KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "dict[str, Any]": (dict,),
}
"""What JSON gives for the fields of Live and Failure."""


def _made(kind: type[Made], contents: Iterable[dict[str, Any]]) -> Iterator[Made]:
    """Objects of the contents; a damaged file, or one of other code, says nothing."""
    known = {entry.name: KINDS[str(entry.type)] for entry in fields(kind)}
    for content in contents:
        fits = all(isinstance(value, known.get(key, ())) for key, value in content.items())
        if fits:
            with suppress(TypeError):  # a field is missing
                yield kind(**content)
