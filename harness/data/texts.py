"""Raw text files as streams of whole lines: plain, in .zip, .gz, .tar.gz or its numbered pieces.

Nothing is unpacked to disk and nothing is read twice, but for checksums, which follow the reader through
the page cache. Positions are byte offsets in the text itself (after unpacking), so that a reader can go
on where it stopped: plain files seek, archives skip by unpacking once more.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from harness.errors import InputError

PIECE = re.compile(r"(?P<stem>.+)\.(?P<number>\d{3})")
"""NAME.001, NAME.002, ...: one file cut in pieces."""
BLOCK = 1 << 23
"""Bytes of text handed out at once, about 200,000 log rows."""
HEAD = 1 << 16
"""Bytes looked at to learn how a file is laid out."""
DAMAGED = (zipfile.BadZipFile, gzip.BadGzipFile, tarfile.TarError, zlib.error, EOFError)


class Joined(io.RawIOBase):
    """Some files one after the other, as one that can be read forward and asked for its place."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self.paths = list(paths)
        self.place = 0
        self.file = self.paths[0].open("rb", buffering=0)
        self.next = 1

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; 0 at the end of the last file."""
        while True:
            count = self.file.readinto(buffer)
            if count or self.next == len(self.paths):
                self.place += count
                return count
            self.file.close()
            self.file = self.paths[self.next].open("rb", buffering=0)
            self.next += 1

    def tell(self) -> int:
        """Bytes read so far."""
        return self.place

    def close(self) -> None:
        """Close the file that is open."""
        self.file.close()
        super().close()


@dataclass(frozen=True)
class Text:
    """One text: a plain file, or a member of an archive."""

    name: str
    """What people call it: the file's name, with the member's behind a colon."""
    paths: tuple[Path, ...]
    """The file, or the pieces of it in order."""
    kind: str
    """plain, zip, gz or tar."""
    member: str | None = None
    size: int | None = None
    """Bytes of the text; None where the archive does not say (.gz)."""

    @property
    def stored(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths)

    @contextmanager
    def open(self, offset: int = 0) -> Iterator[Reading]:
        """Read from a byte of the text on.

        Raises:
            InputError: a file cannot be opened, or is damaged.
        """
        try:
            with ExitStack() as stack:
                reading = self._open(stack)
                reading.skip(offset, seek=self.kind == "plain")
                yield reading
        except DAMAGED as error:
            raise InputError(f"'{self.name}' is damaged ({error}); fetch it again") from error
        except OSError as error:
            raise InputError(f"cannot read '{self.name}': {error.strerror or error}") from error

    def _open(self, stack: ExitStack) -> Reading:
        if self.kind == "plain":
            plain = stack.enter_context(self.paths[0].open("rb", buffering=0))
            return Reading(plain, plain)
        if self.kind == "zip":
            raw = stack.enter_context(self.paths[0].open("rb"))
            archive = stack.enter_context(zipfile.ZipFile(raw))
            return Reading(stack.enter_context(archive.open(str(self.member))), raw)
        raw_pieces = stack.enter_context(Joined(self.paths))
        if self.kind == "gz":
            buffered = io.BufferedReader(raw_pieces, 1 << 20)
            return Reading(stack.enter_context(gzip.GzipFile(fileobj=buffered)), raw_pieces)
        tar = stack.enter_context(tarfile.open(fileobj=raw_pieces, mode="r|*", bufsize=1 << 20))  # noqa: SIM115
        for entry in tar:
            if entry.name == self.member:
                return Reading(cast("Any", tar.extractfile(entry)), raw_pieces)
        raise InputError(f"'{self.name}' is no longer there")

    def head(self, size: int = HEAD) -> bytes:
        """The first bytes of the text.

        Raises:
            InputError: the file cannot be read, or is damaged.
        """
        with self.open() as reading:
            return reading.up_to(size)

    def slices(self, places: int, size: int) -> Iterator[bytes]:
        """Whole lines from evenly spaced places of a plain file; the beginning alone of an archive."""
        if self.kind != "plain" or not self.size or self.size <= places * size:
            yield from _whole_lines(self.head(places * size))
            return
        for place in range(places):
            with self.open(self.size * place // places) as reading:
                part = reading.up_to(size)
            yield from _whole_lines(part if place == 0 else part[part.find(b"\n") + 1 :])


def _whole_lines(part: bytes) -> Iterator[bytes]:
    end = part.rfind(b"\n") + 1
    if end:
        yield part[:end]


class Reading:
    """A text being read: whole lines, and how far into the files on disk it is."""

    def __init__(self, stream: Any, disk: Any) -> None:
        self.stream, self.disk = stream, disk

    def up_to(self, size: int) -> bytes:
        """The next bytes, fewer only at the end."""
        parts = []
        while size > 0:
            part = self.stream.read(size)
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def skip(self, offset: int, *, seek: bool) -> None:
        """Leave the first bytes out."""
        if seek:
            self.stream.seek(offset)
            return
        while offset > 0:
            part = self.stream.read(min(offset, BLOCK))
            if not part:
                return
            offset -= len(part)

    def blocks(self, size: int = BLOCK) -> Iterator[bytes]:
        """Pieces of whole lines in order, each ending in a line end but perhaps the last."""
        left = b""
        while True:
            part = self.up_to(size)
            if not part:
                if left:
                    yield left
                return
            end = part.rfind(b"\n") + 1
            if not end:
                left += part
                continue
            yield left + part[:end]
            left = part[end:]

    def disk_bytes(self) -> int:
        """How far into the files on disk the reading is."""
        return int(self.disk.tell())


class Checksums:
    """SHA-256 of files, computed behind a reader so that the bytes come from the page cache."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths, self.digests = list(paths), [hashlib.sha256() for _ in paths]
        self.ends: list[int] = []
        for path in self.paths:
            self.ends.append((self.ends[-1] if self.ends else 0) + path.stat().st_size)
        self.place = 0

    def advance(self, to: int | None = None) -> None:
        """Go on to this byte of the files laid end to end; None is the end."""
        begin = 0
        to = self.ends[-1] if to is None else min(to, self.ends[-1])
        for path, digest, end in zip(self.paths, self.digests, self.ends, strict=True):
            if self.place < min(to, end):
                with path.open("rb", buffering=0) as file:
                    file.seek(self.place - begin)
                    while self.place < min(to, end):
                        part = file.read(min(BLOCK, min(to, end) - self.place))
                        if not part:
                            raise InputError(f"'{path}' became shorter while it was read")
                        digest.update(part)
                        self.place += len(part)
            begin = end

    def finished(self) -> dict[str, str]:
        """Checksum by file name."""
        self.advance()
        return {path.name: digest.hexdigest()
                for path, digest in zip(self.paths, self.digests, strict=True)}  # fmt: skip


def find_texts(
    folder: Path, pattern: str, what: str, *, example: str, required: bool = True
) -> list[Text]:
    """The texts in a folder whose own name, or whose archive's, matches; by name.

    A plain file is preferred to an archive with the same text in it.

    Args:
        folder: Where to look; its subfolders are not entered.
        pattern: Regular expression searched in the lower-case names of files and of archive members.
        what: What they are, for messages ("log").
        example: The name that such a file usually has.
        required: None found is an InputError.

    Raises:
        InputError: the folder is missing, an archive is damaged, or nothing matches.
    """
    if not folder.is_dir():
        raise InputError(f"no folder '{folder}'; name the folder of the raw files with --raw DIR")
    names = re.compile(pattern)
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            piece = PIECE.fullmatch(path.name)
            groups.setdefault(piece["stem"] if piece else path.name, []).append(path)
    found: dict[str, Text] = {}
    later = [name for name in groups if _is_tar(name) and not names.search(name.lower())]
    for name in [name for name in groups if name not in later] + later:
        if name in later and found:
            break  # to list a .tar.gz is to unpack it: only when nothing else is there
        texts = list(_texts_of(name, tuple(groups[name])))
        own = [text for text in texts if names.search(Path(text.member or name).name.lower())]
        for text in own or (texts if names.search(name.lower()) else ()):
            key = Path(text.member or name).name.lower().removesuffix(".gz")
            if key not in found or text.kind == "plain":
                found[key] = text
    if not found and required:
        there = ", ".join(sorted(groups)[:8]) or "nothing"
        raise InputError(
            f"'{folder}' holds no {what} such as {example} (plain or in .zip, .gz, .tar.gz); "
            f"it holds {there}"
        )
    return [found[key] for key in sorted(found)]


def _texts_of(name: str, paths: tuple[Path, ...]) -> Iterator[Text]:
    """The texts in a file: itself, or the members of an archive."""
    low = name.lower()
    try:
        if low.endswith(".zip"):
            if len(paths) > 1:
                raise InputError(
                    f"'{name}' is a .zip in pieces, which cannot be streamed; join it first: "
                    f"cat {name}.* > {name}"
                )
            with zipfile.ZipFile(paths[0]) as archive:
                for entry in archive.infolist():
                    if _is_text(entry.filename) and not entry.is_dir():
                        yield Text(f"{name}:{entry.filename}", paths, "zip", entry.filename,
                                   entry.file_size)  # fmt: skip
        elif _is_tar(low):
            with (
                Joined(paths) as pieces,
                tarfile.open(fileobj=pieces, mode="r|*", bufsize=1 << 20) as tar,
            ):
                for member in tar:
                    if member.isfile() and _is_text(member.name):
                        yield Text(f"{name}:{member.name}", paths, "tar", member.name, member.size)
        elif low.endswith(".gz"):
            yield Text(name, paths, "gz")
        elif len(paths) == 1:
            yield Text(name, paths, "plain", None, paths[0].stat().st_size)
        else:
            raise InputError(f"'{name}' is in pieces; join it first: cat {name}.* > {name}")
    except DAMAGED as error:
        raise InputError(f"'{name}' is damaged ({error}); fetch it again") from error


def _is_tar(name: str) -> bool:
    return name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def _is_text(member: str) -> bool:
    """False for the entries that a packing program adds."""
    return not any(part.startswith((".", "__MACOSX")) for part in Path(member).parts)
