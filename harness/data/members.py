"""Vectors out of an archive of one .npy array an item, whose names are numbers, in bounded memory.

An archive of 7.6 million members cannot be opened by `zipfile`: it keeps about 680 bytes of Python objects
a member (measured), 5 GB. Here the archive's directory is read in pieces, a few numbers are kept of the wanted
members alone, and these are read in the order in which they lie in the file (the ZIP format: APPNOTE.TXT
6.3, sections 4.3.7 to 4.3.16; 64-bit sizes and places included). A folder into which the archive was
unpacked works as well.

Axes: wanted = numbers asked for, ascending; member = those of them that are there; width.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from harness.errors import InputError

END, END64, LOCATOR, ENTRY, LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
"""Signatures of the records of a ZIP file."""
STORED, DEFLATED = 0, 8
"""Methods of compression that are read."""
FULL = 0xFFFFFFFF
"""A 32-bit size or place that stands in the 64-bit extra field instead."""
LOCAL_SIZE = 30
"""Bytes of a member's own record before its name."""
NAMES = 128
"""Bytes of name and extra field that are read along with a member; longer ones cost a second reading."""
PIECE = 1 << 22
"""Bytes of the directory read at once."""
IN_MEMORY = 1 << 27
"""Bytes of a table up to which it stays in memory."""


@dataclass
class Members:
    """What an archive or a folder holds, as counts and as places of the wanted members."""

    number: Int[ndarray, " member"]
    """The members' numbers, in the order in which they lie in the file."""
    place: Int[ndarray, " member"]
    """Where a member begins in the file; not used for a folder."""
    packed: Int[ndarray, " member"]
    """Bytes of it in the file."""
    method: Int[ndarray, " member"]
    check: Int[ndarray, " member"]
    """CRC-32 of its content."""
    counts: dict[str, int] = field(default_factory=dict)
    """Entries by kind: members, folder entries, other names."""
    sha256: str = ""
    """Of the archive's directory, which holds every member's name, size and checksum; hashing 62 GB of
    content would take longer than reading what is wanted of it. Empty for a folder."""


def number_of(name: bytes) -> int | None:
    """The number that a member is called, without folders and without .npy; None for other names."""
    last = name.rpartition(b"/")[2].removesuffix(b".npy")
    return int(last) if last.isdigit() and len(last) < 19 else None


def find_members(path: Path, wanted: Int[ndarray, " wanted"]) -> Members:
    """Look the wanted numbers up in an archive's directory, or in a folder.

    Args:
        path: A .zip, or the folder into which it was unpacked.
        wanted: Ascending.

    Raises:
        InputError: no archive, a damaged or an encrypted one, or a compression that is not read.
    """
    counts = {"members": 0, "folder entries": 0, "other names": 0}
    found: list[tuple[int, int, int, int, int]] = []
    digest = hashlib.sha256()
    entries = _folder_entries(path) if path.is_dir() else _archive_entries(path, digest)
    kept = set(wanted.tolist())
    for name, *facts in entries:
        if name.endswith(b"/"):
            counts["folder entries"] += 1
            continue
        number = number_of(name)
        if number is None:
            counts["other names"] += 1
            continue
        counts["members"] += 1
        if number in kept:
            kept.discard(number)
            found.append((number, *facts))  # type: ignore[arg-type]
    table = np.array(found, dtype=np.int64).reshape(-1, 5)
    table = table[np.argsort(table[:, 1], kind="stable")]
    whole = "" if path.is_dir() else digest.hexdigest()
    return Members(table[:, 0], table[:, 1], table[:, 2], table[:, 3], table[:, 4], counts, whole)


def _folder_entries(path: Path) -> Iterator[tuple[bytes, int, int, int, int]]:
    """The files of a folder as if they were members without a place."""
    with os.scandir(path) as entries:
        for entry in entries:
            name = os.fsencode(entry.name) + (b"/" if entry.is_dir() else b"")
            yield name, 0, 0, 0, 0


def _archive_entries(path: Path, digest: Any) -> Iterator[tuple[bytes, int, int, int, int]]:
    """Name, place, packed bytes, method and CRC-32 of each entry of an archive's directory."""
    try:
        with path.open("rb") as file:
            start, size, shift = _directory(file, path)
            file.seek(start)
            buffer, at, left = b"", 0, size
            while left or at < len(buffer):
                if (
                    len(buffer) - at < 1 << 18 and left
                ):  # an entry has at most 46 + 3 x 65,535 bytes
                    part = file.read(min(PIECE, left))
                    if not part:
                        break
                    left -= len(part)
                    digest.update(part)
                    buffer, at = buffer[at:] + part, 0
                fixed = struct.unpack_from("<4s6H3L5H2L", buffer, at)
                if fixed[0] != ENTRY:
                    raise InputError(f"'{path}' is damaged (its directory is cut); fetch it again")
                flags, method, check = fixed[3], fixed[4], fixed[7]
                packed, unpacked, place = fixed[8], fixed[9], fixed[16]
                names, extras, comments = fixed[10], fixed[11], fixed[12]
                name = buffer[at + 46 : at + 46 + names]
                if FULL in (packed, unpacked, place):
                    extra = buffer[at + 46 + names : at + 46 + names + extras]
                    packed, place = _wide(extra, unpacked, packed, place)
                if flags & 1:
                    raise InputError(f"'{path}' is encrypted; unpack it and name the folder")
                if method not in (STORED, DEFLATED):
                    raise InputError(
                        f"'{path}' is compressed by method {method}, which is not read; "
                        "unpack it into a folder of the same name"
                    )
                yield name, place + shift, packed, method, check
                at += 46 + names + extras + comments
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from error
    except struct.error as error:
        raise InputError(f"'{path}' is damaged (its directory is cut); fetch it again") from error


def _directory(file: BinaryIO, path: Path) -> tuple[int, int, int]:
    """Where the directory begins, its bytes, and by how much all places are shifted."""
    length = file.seek(0, os.SEEK_END)
    tail_from = max(0, length - 22 - 0xFFFF)
    file.seek(tail_from)
    tail = file.read()
    end = tail.rfind(END)
    if end < 0 or end + 22 > len(tail):
        raise InputError(f"'{path}' is no .zip file, or is cut short; fetch it again")
    size, start = struct.unpack_from("<2L", tail, end + 12)
    after = tail_from + end
    locator = end - 20
    if locator >= 0 and tail[locator : locator + 4] == LOCATOR:
        # the record lies right before its locator, wherever the archive was put
        file.seek(after - 20 - 56)
        record = file.read(56)
        if record[:4] == END64:
            size, start = struct.unpack_from("<2Q", record, 40)
            after -= 20 + 56
    shift = after - size - start
    if shift < 0:
        raise InputError(f"'{path}' is damaged (its directory is cut); fetch it again")
    return start + shift, size, shift


def _wide(extra: bytes, unpacked: int, packed: int, place: int) -> tuple[int, int]:
    """Packed bytes and place from the 64-bit extra field, which holds only what did not fit."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{size // 8}Q", extra, at + 4))
            if unpacked == FULL:
                next(numbers, 0)
            packed = next(numbers, packed) if packed == FULL else packed
            place = next(numbers, place) if place == FULL else place
            break
        at += 4 + size
    return packed, place


def read_members(path: Path, members: Members) -> Iterator[tuple[int, ndarray | None]]:
    """Number and array of each found member; None for one that is damaged or no .npy array.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        if path.is_dir():
            for number in members.number.tolist():
                named = path / str(number)
                content = (
                    named if named.exists() else named.with_name(f"{number}.npy")
                ).read_bytes()
                yield number, array_of(content)
            return
        with path.open("rb") as file:
            columns = (members.number, members.place, members.packed, members.method, members.check)
            for number, place, packed, method, check in zip(
                *(column.tolist() for column in columns), strict=True
            ):
                yield number, _member(file.fileno(), place, packed, method, check)
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from error


def _member(file: int, place: int, packed: int, method: int, check: int) -> ndarray | None:
    """One member's array from an open file, None when it is damaged."""
    found = os.pread(file, LOCAL_SIZE + NAMES + packed, place)
    if len(found) < LOCAL_SIZE or found[:4] != LOCAL:
        return None
    names, extras = struct.unpack_from("<2H", found, 26)
    begin = LOCAL_SIZE + names + extras
    content = found[begin : begin + packed]
    if len(content) < packed:
        content = os.pread(file, packed, place + begin)
    if method == DEFLATED:
        try:
            content = zlib.decompress(content, -15)
        except zlib.error:
            return None
    return array_of(content) if zlib.crc32(content) == check else None


@lru_cache(maxsize=64)
def _header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of a .npy header; nearly all members share one."""
    stream = io.BytesIO(head)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    return read[np.lib.format.read_magic(stream)](stream)


def array_of(content: bytes) -> ndarray | None:
    """The array of numbers in the bytes of a .npy file; None when there is none."""
    if content[:6] != b"\x93NUMPY" or len(content) < 12:
        return None
    wide = content[6] > 1
    begin = (12 if wide else 10) + int.from_bytes(content[8 : 12 if wide else 10], "little")
    try:
        shape, fortran, kind = _header(content[:begin])
        if kind.kind not in "fiu":
            return None
        flat = np.frombuffer(content, kind, count=int(np.prod(shape)), offset=begin)
    except (ValueError, KeyError, SyntaxError):
        return None
    return flat.reshape(shape, order="F" if fortran else "C")


class Table:
    """Rows of float32 written in any order: in memory, or a large one in a file without a name.

    Such a file goes when the table does, whatever becomes of the process; rows that nobody writes take no
    room in it.
    """

    def __init__(self, items: int, width: int, scratch: Path) -> None:
        self.shape = (items, width)
        self.memory: ndarray | None = None
        if items * width * 4 <= IN_MEMORY:
            self.memory = np.zeros(self.shape, dtype="<f4")
        else:
            scratch.mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - closed by `finished`
            self.file.truncate(items * width * 4)

    def put(self, row: int, vector: Float[ndarray, " width"]) -> None:
        """Write a row."""
        if self.memory is not None:
            self.memory[row] = vector
        else:
            os.pwrite(self.file.fileno(), vector.astype("<f4").tobytes(), row * self.shape[1] * 4)

    def finished(self) -> Float[ndarray, "item width"]:
        """The rows; those that were not written are zero."""
        if self.memory is not None:
            return self.memory
        with self.file:
            return np.memmap(self.file, dtype="<f4", mode="r", shape=self.shape)


def check_room(scratch: Path, found: int, items: int, width: int) -> None:
    """InputError when the vectors would not fit on the disk: once here, and once in the prepared set."""
    scratch.mkdir(parents=True, exist_ok=True)
    needed = 4 * width * (items + (found if items * width * 4 > IN_MEMORY else 0))
    free = shutil.disk_usage(scratch).free
    if needed > free:
        raise InputError(
            f"vectors of {items:,} items x {width:,} numbers need about {needed / 1e9:.1f} GB in "
            f"'{scratch.parent}' (twice, while they are read), where {free / 1e9:.1f} GB are free; choose another "
            "folder with --data-dir DIR"
        )


def fill_vectors(
    path: Path,
    members: Members,
    wanted: Int[ndarray, " wanted"],
    row: Int[ndarray, " wanted"],
    scratch: Path,
    watch: Callable[[int], None] = lambda _: None,
) -> tuple[Float[ndarray, "item width"] | None, dict[str, int]]:
    """The found members' vectors, a row for each wanted number.

    A member holds (1, width) or (width,) numbers; the first one gives the width.

    Args:
        path: The archive or folder.
        members: What was found there.
        wanted: Numbers, ascending.
        row: The table's row of each: a permutation.
        scratch: Folder for a large table's file.
        watch: Told now and then how many bytes of members were read.

    Returns:
        The table (None when no member could be read), and members by what became of them: read,
        damaged (bad checksum, no .npy array, another shape), not finite. Those rows stay zero.

    Raises:
        InputError: the file cannot be read, or the disk has no room.
    """
    counts = {"read": 0, "damaged": 0, "not finite": 0}
    table: Table | None = None
    width, done = 0, 0
    rows = row[np.searchsorted(wanted, members.number)].tolist()
    packed = members.packed.tolist()
    for place, size, (_, array) in zip(rows, packed, read_members(path, members), strict=True):
        done += size
        watch(done)
        fits = array is not None and (array.ndim == 1 or (array.ndim == 2 and len(array) == 1))
        if array is None or not fits or array.size == 0 or (width and array.size != width):
            counts["damaged"] += 1
            continue
        with np.errstate(over="ignore"):
            vector = array.reshape(-1).astype("<f4")
        if not np.isfinite(vector).all():
            counts["not finite"] += 1
            continue
        try:
            if table is None:
                width = array.size
                check_room(scratch, len(members.number), len(wanted), width)
                table = Table(len(wanted), width, scratch)
            table.put(place, vector)
        except OSError as error:
            raise InputError(
                f"cannot write vectors in '{scratch}' ({error.strerror}); make room, or choose another "
                "folder with --data-dir DIR"
            ) from error
        counts["read"] += 1
    return None if table is None else table.finished(), counts
