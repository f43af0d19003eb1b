"""Records: one JSON and one NPZ a cell, written whole or not at all; corrupt ones are set aside.

`results/cells/KEY/record.json` and `ranks.npz`; KEY is the SHA-256 of the resolved config. `arrays.npz`,
where a method gives any, has what a figure reads of the trained model.
Axes: user = users with a test target, in ascending user id.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer
from numpy import ndarray

from harness.config import digest
from harness.errors import InputError

RANKS = ("user", "above", "tied", "above_full", "tied_full", "untouched")
REDRAWN = ("above_redrawn", "tied_redrawn")


@dataclass(frozen=True)
class Ranks:
    """Two integers a test user, among 1 + 99 candidates and among all items never touched.

    `above`: candidates scoring strictly above the positive; `tied`: others scoring exactly as it
    (protocol, Metrics). `untouched`: how many items the full counts are among (without the positive).
    """

    user: Int[ndarray, " user"]
    above: Int[ndarray, " user"]
    tied: Int[ndarray, " user"]
    above_full: Int[ndarray, " user"]
    tied_full: Int[ndarray, " user"]
    untouched: Int[ndarray, " user"]
    above_redrawn: Integer[ndarray, "redraw user"] | None = None
    """As `above`, among other draws of the 99; None under P5 `popularity`."""
    tied_redrawn: Integer[ndarray, "redraw user"] | None = None


@dataclass(frozen=True)
class Fingerprints:
    """What made a number beside its config; a stored record is current when all three still hold."""

    code: str
    data: str
    candidates: str


@dataclass(frozen=True)
class Record:
    """Everything that is known of one finished run."""

    key: str
    config: dict[str, Any]
    """The resolved cell (`harness.config.plain`)."""
    label: str
    """The method's name in the paper's tables."""
    fingerprints: Fingerprints
    versions: dict[str, str]
    host: dict[str, Any]
    seconds: dict[str, float]
    """prepare, train, evaluate, total."""
    peak_memory_mib: float
    parameters: int
    train_samples: int
    """Training samples of one epoch."""
    epochs: int
    best_epoch: int
    curve: list[dict[str, Any]]
    """A row an epoch: epoch, loss and its terms, validation NDCG@10, seconds."""
    resumed: int = 0
    """How often the run went on from a checkpoint."""
    finished: str = ""
    measured: dict[str, list[float]] | None = None
    """Of a timing cell, which has no ranks: repeats by what was measured (harness.training.timing)."""
    ranks: Ranks | None = field(default=None, compare=False)

    @property
    def data(self) -> str:
        """Name of the data set."""
        return str(self.config["data"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.config["seed"])


class Store:
    """The results folder. Every write goes to a temporary name and is renamed when complete."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.cells = self.root / "cells"

    def ensure_writable(self) -> None:
        """Raise InputError unless a file can be written here."""
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.cells) as probe:
                probe.write(b"x")
        except OSError as error:
            message = (
                f"results folder '{self.root}' is not writable ({error.strerror}); "
                "choose another with --results DIR"
            )
            raise InputError(message) from error

    def save(self, record: Record, arrays: Mapping[str, ndarray] | None = None) -> None:
        """Store a record with its ranks; an older record of the same key is replaced.

        Args:
            record: With ranks, or with what was measured.
            arrays: What a figure reads of the trained model; kept beside the record.

        Raises OSError (a full disk, say) with nothing half-written left behind.
        """
        if (record.ranks is None) == (record.measured is None):
            raise ValueError("a record is stored with its ranks, or with what was measured")
        self.cells.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=self.cells))
        try:
            content = asdict(record)
            ranks = content.pop("ranks")
            if ranks is not None:
                there = {name: array for name, array in ranks.items() if array is not None}
                _write_arrays(scratch / "ranks.npz", there)
            if arrays:
                _write_arrays(scratch / "arrays.npz", arrays)
            write_json(scratch / "record.json", content | {"sha256": digest(content)})
            scratch.chmod(0o755)
            self._replace(scratch, self.cells / record.key)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    def _replace(self, scratch: Path, target: Path) -> None:
        """Rename a complete folder into place, moving an older one out of the way first."""
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=".old-", dir=self.cells))
            target.rename(old / "cell")
            scratch.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            scratch.rename(target)

    def load(self, key: str) -> Record | None:
        """A record with its ranks, or None. A corrupt one is set aside with a warning: None."""
        folder = self.cells / key
        there = _identity(folder)
        if there is None:
            return None
        try:
            record = _read(folder)
            if record.key != key:
                raise ValueError(f"its key is {record.key[:12]}")
        except Exception as error:  # noqa: BLE001 -- whatever a damaged file makes its readers say
            if _identity(folder) != there:  # another process replaced it while it was read
                return self.load(key)
            set_aside(
                folder, f"record {key[:12]} cannot be read ({error}); it will be computed again"
            )
            return None
        return record if _identity(folder) == there else self.load(key)

    def arrays(self, key: str) -> dict[str, ndarray]:
        """What was kept of a trained model for figures; empty where nothing was, or it is damaged."""
        path = self.cells / key / "arrays.npz"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except FileNotFoundError:
            return {}
        except Exception as error:  # noqa: BLE001 -- whatever a damaged file makes its readers say
            set_aside(path, f"arrays of {key[:12]} cannot be read ({error})")
            return {}

    def records(self) -> Iterator[Record]:
        """Every readable record, in the order of keys."""
        if not self.cells.is_dir():
            return
        for folder in sorted(self.cells.iterdir()):
            if not folder.name.startswith(".") and ".corrupt" not in folder.name:
                record = self.load(folder.name)
                if record is not None:
                    yield record


def disk_full(error: BaseException) -> bool:
    """Whether an error says that there is no more room, or no more of one's share of it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_full_is_said(root: Path) -> Iterator[None]:
    """Around work that writes below `root`. Raises InputError when there is no more room."""
    try:
        yield
    except OSError as error:
        if not disk_full(error):
            raise
        raise InputError(
            f"no space left on the disk of '{root}'; free some, or choose another "
            "folder with --results DIR, and run the same command again"
        ) from error


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)
        file.flush()
        os.fsync(file.fileno())


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one that took its name; None where there is none."""
    try:
        state = folder.stat()
    except OSError:
        return None
    return (state.st_ino, state.st_mtime_ns)


def _read(folder: Path) -> Record:
    """A stored record. Raises whatever its readers raise when something is wrong with it."""
    content = json.loads((folder / "record.json").read_text(encoding="utf8"))
    if content.pop("sha256") != digest(content):
        raise ValueError("checksum of record.json")
    content["fingerprints"] = Fingerprints(**content["fingerprints"])
    if content.get("measured") is not None:
        return Record(**content)
    with (
        (folder / "ranks.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        ranks = Ranks(
            **{name: arrays[name] for name in RANKS},
            **{name: arrays[name] for name in REDRAWN if name in arrays},
        )
    counts = [getattr(ranks, name) for name in (*RANKS, *REDRAWN)]
    if len({array.shape[-1] for array in counts if array is not None}) != 1:
        raise ValueError("lengths disagree")
    return Record(**content, ranks=ranks)


def set_aside(path: Path, why: str) -> None:
    """Rename something unreadable to NAME.corrupt-TIME and warn; nothing is deleted."""
    aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
    try:
        path.rename(aside)
    except FileNotFoundError:  # another process did so first, and has warned
        return
    except OSError as error:
        warnings.warn(f"{why}; it stays, for it cannot be renamed ({error.strerror})",
                      RuntimeWarning, stacklevel=3)  # fmt: skip
        return
    warnings.warn(f"{why}; kept as {aside.name}", RuntimeWarning, stacklevel=3)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all (temporary name, fsync, rename)."""
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode("utf8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; on error the old one stays and nothing else is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    scratch = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.chmod(0o644)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
