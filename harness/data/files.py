"""A prepared set as a folder: written whole or not at all, with the size and SHA-256 of every file."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from harness.data.raw import sha256_file
from harness.errors import InputError

MANIFEST = "manifest.json"
DEMO = ("demo_rec_tmall", "demo_kuaishou")
"""The demo twins at their default knobs, made when first asked for."""
FORMAT = 1
"""Of a prepared set; sets of another format are prepared again."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def check_name(name: str) -> None:
    """InputError unless a data set can be called this."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot name a data set; use letters, digits, '_', '-' and '.', as in 'my_shop'"
        )


@contextmanager
def whole_folder(root: Path, name: str, *, replace: bool) -> Iterator[Path]:
    """A scratch folder that becomes root/name when the block ends without an error.

    Args:
        root: The data folder, made when missing.
        name: The data set.
        replace: An older set of this name gives way; otherwise the one that came first stays.

    Raises:
        InputError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    check_name(name)
    scratch = None
    new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
        yield scratch
        scratch.chmod(0o755)
        _sync(scratch)
        _put(scratch, root / name, replace=replace)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"cannot write data set '{name}' in '{root}' ({reason}); "
            "choose another folder with --data-dir DIR"
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        if new:
            with suppress(OSError):
                root.rmdir()  # only when the block failed: an empty folder is not left behind


def _put(scratch: Path, target: Path, *, replace: bool) -> None:
    """Rename a complete folder into place; two processes at once both end with a whole folder."""
    while True:
        try:
            scratch.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            _sync(target.parent)
            return
        if not replace:
            return
        old = Path(tempfile.mkdtemp(prefix=f".old-{target.name}-", dir=target.parent))
        try:
            target.rename(old / "set")
        except FileNotFoundError:
            pass  # the other process moved it
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Make a folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_array(path: Path, array: ndarray) -> None:
    """Write a .npy file and make it durable."""
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def write_archive(path: Path, arrays: dict[str, Any]) -> None:
    """Write an .npz file whole or not at all; a process that comes second replaces the same content."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    scratch = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        scratch.chmod(0o644)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of a folder."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.iterdir())
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json and make it durable."""
    with (folder / MANIFEST).open("w", encoding="utf8") as file:
        json.dump(manifest, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
