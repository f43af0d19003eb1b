"""Features made in chunks: whoever comes does chunks that are missing, and the last one puts them together.

While features are made there is a folder beside their own, OUT.parts/:
    plan.json        what is made from what; every process must want the same
    items.parquet    item, title, picture: the input, so that a job needs nothing else
    chunk-N.npz      the vectors of rows N * 512 to N * 512 + 511, and what became of their pictures

Chunks are the same however many processes share the work, and each is written whole, so work that was
stopped goes on, in any other number of processes, and ends with the same vectors.

Axes: item = the rows of a chunk, width = of its vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from numpy import ndarray

from harness.data.features import MODES, ROWS_AT_ONCE, blocks_of, write_features
from harness.data.files import write_archive
from harness.data.pictures import Cache, Entry, NoPictureError
from harness.errors import InputError

if TYPE_CHECKING:
    from harness.data.clip import Encoder

ROWS = 512
"""Items of a chunk."""
NONE, READY, MISSING = "none", "ready", "missing"
"""Statuses of an item without an address, with a ready-made vector, and with an all-zero one."""
STAND_IN = 10
"""Addresses that share one picture, from which on the manifest names it."""


@dataclass(frozen=True)
class Items:
    """What features are made of."""

    ids: list[str]
    titles: list[str]
    """Empty where there is none."""
    urls: list[str]

    def digest(self) -> str:
        """SHA-256 of all of it."""
        found = hashlib.sha256()
        for column in (self.ids, self.titles, self.urls):
            found.update(json.dumps(column).encode())
        return found.hexdigest()


def plain_url(text: str) -> str:
    """An address as it is asked for: without blanks around it, and with a scheme where it has none (//host/...)."""
    url = text.strip()
    return f"http:{url}" if url.startswith("//") else url


def whole_plan(items: Items, plan: Mapping[str, Any]) -> dict[str, Any]:
    """What is made from what: models and settings, and the input."""
    return {"rows": ROWS, "items": len(items.ids), "input_sha256": items.digest(), **plan}


class Parts:
    """The folder of chunks."""

    def __init__(self, folder: Path, items: Items, plan: Mapping[str, Any]) -> None:
        """Chunks of these items, by a `whole_plan`."""
        self.folder, self.items, self.plan = folder, items, dict(plan)

    @staticmethod
    def begin(folder: Path, items: Items, plan: Mapping[str, Any]) -> Parts:
        """Make the folder, or take up one that was begun for the same.

        Raises:
            InputError: it was begun for something else, or cannot be written.
        """
        path = folder / "plan.json"
        if path.is_file():
            begun = json.loads(path.read_text(encoding="utf8"))
            if difference := differing(begun, plan):
                raise InputError(
                    f"'{folder}' was begun for other features ({difference}); choose another --out, "
                    "or remove that folder to begin anew"
                )
            return Parts(folder, items, plan)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            columns = {"item": items.ids, "title": items.titles, "picture": items.urls}
            table = pa.table(
                {name: pa.array(column, pa.string()) for name, column in columns.items()}
            )
            pq.write_table(table, folder / "items.new")
            (folder / "items.new").replace(folder / "items.parquet")
            (folder / "plan.new").write_text(json.dumps(dict(plan), indent=1), encoding="utf8")
            (folder / "plan.new").replace(path)
        except OSError as error:
            raise _unwritable(folder, error) from error
        return Parts(folder, items, plan)

    @staticmethod
    def open(folder: Path) -> Parts:
        """A folder that was begun, with its own copy of the input."""
        plan = json.loads((folder / "plan.json").read_text(encoding="utf8"))
        table = pq.read_table(folder / "items.parquet")
        columns = [table[name].to_pylist() for name in ("item", "title", "picture")]
        return Parts(folder, Items(*columns), plan)

    @property
    def chunks(self) -> range:
        """Numbers of the chunks."""
        return range(-(-len(self.items.ids) // ROWS))

    def rows(self, chunk: int) -> slice:
        """The items of a chunk."""
        return slice(chunk * ROWS, min(len(self.items.ids), (chunk + 1) * ROWS))

    def path(self, chunk: int) -> Path:
        """The file of a chunk."""
        return self.folder / f"chunk-{chunk:06d}.npz"

    def missing(self) -> list[int]:
        """Chunks that nobody has made."""
        return [chunk for chunk in self.chunks if not self.path(chunk).is_file()]

    def due(self, chunk: int, entries: Mapping[str, Entry]) -> bool:
        """Whether a chunk is missing, or lacks a picture that is there by now."""
        if not self.path(chunk).is_file():
            return True
        status = self.read(chunk, "status")["status"]
        urls = self.items.urls[self.rows(chunk)]
        return any(
            said not in ("ok", NONE) and url in entries and entries[url].status == "ok"
            for said, url in zip(status, urls, strict=True)
        )

    def read(self, chunk: int, *names: str) -> dict[str, ndarray]:
        """These arrays of a chunk, those that it has.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path(chunk)
        try:
            with np.load(path, allow_pickle=False) as found:
                return {name: found[name] for name in names if name in found.files}
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"'{path}' is damaged; remove it and run the same command again"
            ) from error


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"cannot write '{folder}' ({error.strerror or error}); choose another --out")


def differing(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first thing in which two plans differ, in words; empty when they are the same."""
    for key in {**begun, **wanted}:
        old, new = begun.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := differing(old, new):
                return f"{key} {inner}"
        elif old != new:
            return f"{key}: {_short(old)} there, {_short(new)} now"
    return ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


def encode_chunk(
    parts: Parts,
    chunk: int,
    cache: Cache,
    entries: Mapping[str, Entry],
    image: Encoder | None,
    text: Encoder | None,
    batch: int,
    made_by: Mapping[str, Any],
) -> None:
    """Make the vectors of a chunk and write them.

    Args:
        parts: The chunks.
        chunk: Which one.
        cache: Of the pictures.
        entries: What became of the addresses.
        image: Of pictures; None leaves them out.
        text: Of titles; None leaves them out.
        batch: Pictures, or titles, at once.
        made_by: Device and versions, for the manifest.

    Raises:
        InputError: it cannot be written.
    """
    rows = parts.rows(chunk)
    urls, titles = parts.items.urls[rows], parts.items.titles[rows]
    arrays: dict[str, Any] = {"made_by": np.array(json.dumps(dict(made_by), sort_keys=True))}
    found = [_fate(url, entries) for url in urls]
    if image is not None:
        arrays["image"], broken = _image_rows(urls, found, cache, image, batch)
        found = [broken.get(entry.url, entry) for entry in found]
    if text is not None:
        arrays["text"] = np.zeros((len(titles), text.width), np.float32)
        arrays["truncated"] = np.zeros(len(titles), bool)
        told = np.array([row for row, title in enumerate(titles) if title.strip()], np.int64)
        for some in blocks_of(told, batch):
            vectors, longer = text.texts([titles[row] for row in some])
            arrays["text"][some], arrays["truncated"][some] = vectors, longer
    for name, kind in (("status", str), ("reason", str), ("tries", np.int32), ("bytes", np.int64),
                       ("sha256", str)):  # fmt: skip
        arrays[name] = np.array([getattr(entry, name) for entry in found], dtype=kind)
    try:
        write_archive(parts.path(chunk), arrays)
    except OSError as error:
        raise _unwritable(parts.folder, error) from error


def _fate(url: str, entries: Mapping[str, Entry]) -> Entry:
    if not url:
        return Entry("", NONE, "no address")
    return entries.get(url) or Entry(url, "failed", "not fetched yet")


def _image_rows(
    urls: Sequence[str], found: Sequence[Entry], cache: Cache, encoder: Encoder, batch: int
) -> tuple[Float[ndarray, "item width"], dict[str, Entry]]:
    """The vectors of a chunk's pictures, and the addresses whose kept picture cannot be opened.

    Such a file is removed, so that it is fetched again.
    """
    there = list(dict.fromkeys(entry.url for entry in found if entry.status == "ok"))
    vectors: dict[str, ndarray] = {}
    broken: dict[str, Entry] = {}
    for start in range(0, len(there), batch):
        some = there[start : start + batch]
        try:
            made = list(encoder.images([cache.path(url) for url in some]))
        except NoPictureError:
            made, some = _one_by_one(some, cache, encoder, broken)
        vectors.update(zip(some, made, strict=True))
    rows = np.zeros((len(urls), encoder.width), np.float32)
    for row, url in enumerate(urls):
        if url in vectors:
            rows[row] = vectors[url]
    return rows, broken


def _one_by_one(
    urls: Sequence[str], cache: Cache, encoder: Encoder, broken: dict[str, Entry]
) -> tuple[list[ndarray], list[str]]:
    """Vectors of the pictures that can be opened; the others are removed and named in `broken`."""
    made, whole = [], []
    for url in urls:
        path = cache.path(url)
        try:
            made.append(encoder.images([path])[0])
            whole.append(url)
        except NoPictureError:
            path.unlink(missing_ok=True)
            broken[url] = Entry(url, "failed", "the kept picture was damaged")
    return made, whole


# ------------------------------------------------------------------------------ putting together


def merge(
    out: Path,
    parts: Parts,
    ready: Mapping[str, ndarray],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Put all chunks together as a features folder; its manifest.

    Args:
        out: The features folder.
        parts: The chunks, which are there when a mode is not ready-made.
        ready: Ready-made vectors, in the items' order.
        facts: Of each mode, for the manifest.

    Raises:
        InputError: chunks are missing or damaged, or `out` cannot be written.
    """
    made = [mode for mode in MODES if parts.plan.get(mode) and mode not in ready]
    chunks = parts.chunks if made else range(0)
    if made and (lacking := parts.missing()):
        raise InputError(
            f"{len(lacking)} of {len(chunks)} parts are missing (the first is {parts.path(lacking[0]).name}); "
            "run the command without --merge, or its shards that did not end"
        )
    vectors: dict[str, tuple[int, Callable[[], Iterable[ndarray]]]] = {}
    for mode in MODES:
        if mode in ready:
            vectors[mode] = ready[mode].shape[1], partial(blocks_of, ready[mode])
        elif mode in made:
            width = parts.read(0, mode)[mode].shape[1] if chunks else 1
            vectors[mode] = width, partial(_column, parts, chunks, mode)
    tally = Tally()

    def ledger() -> Iterator[dict[str, list[Any]]]:
        for chunk in chunks:
            rows = parts.rows(chunk)
            found = parts.read(
                chunk, "status", "reason", "tries", "bytes", "sha256", "truncated", "made_by"
            )
            tally.add_maker(found)
            if "image" in made:
                yield tally.add(parts.items.ids[rows], parts.items.urls[rows], found)
        if "image" not in made:
            for start in range(0, len(parts.items.ids), ROWS_AT_ONCE):
                some = slice(start, start + ROWS_AT_ONCE)
                image = ready["image"][some] if "image" in ready else None
                yield tally.add_ready(parts.items.ids[some], parts.items.urls[some], image)

    def manifest() -> dict[str, Any]:
        said: dict[str, Any] = {mode: dict(facts.get(mode, {})) for mode in vectors}
        if "text" in made:
            told = sum(bool(title.strip()) for title in parts.items.titles)
            said["text"] |= {"titles": told, "truncated": tally.truncated}
        return {
            "plan": parts.plan,
            "pictures": tally.pictures(),
            "made_by": tally.made_by(),
            **said,
        }

    return write_features(out, parts.items.ids, vectors, ledger(), manifest)


def _column(parts: Parts, chunks: Iterable[int], mode: str) -> Iterator[ndarray]:
    """A mode's vectors, chunk by chunk."""
    for chunk in chunks:
        yield parts.read(chunk, mode)[mode]


class Tally:
    """Counts over chunks, for the manifest."""

    def __init__(self) -> None:
        self.status: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.same: Counter[str] = Counter()
        self.makers: dict[str, None] = {}
        self.truncated = 0
        self.seen: set[bytes] = set()

    def add(
        self, ids: list[str], urls: list[str], chunk: Mapping[str, ndarray]
    ) -> dict[str, list[Any]]:
        """Count a chunk; its ledger rows."""
        columns: dict[str, list[Any]] = {"item": ids, "url": urls}
        for name in ("status", "reason", "tries", "bytes"):
            columns[name] = chunk[name].tolist()
        self.status.update(columns["status"])
        self.reasons.update(reason for reason in columns["reason"] if reason)
        for url, sha256 in zip(urls, chunk["sha256"].tolist(), strict=True):
            key = hashlib.sha256(url.encode("utf8", "surrogatepass")).digest()[:8]
            if sha256 and key not in self.seen:
                self.seen.add(key)
                self.same[sha256] += 1
        return columns

    def add_maker(self, chunk: Mapping[str, ndarray]) -> None:
        """Count what a chunk says of itself."""
        self.truncated += int(chunk["truncated"].sum()) if "truncated" in chunk else 0
        self.makers[str(chunk["made_by"])] = None

    def add_ready(
        self, ids: list[str], urls: list[str], image: ndarray | None
    ) -> dict[str, list[Any]]:
        """Count items whose pictures nobody fetched; their ledger rows."""
        status, reason = [NONE] * len(ids), "not asked for"
        if image is not None:
            status, reason = [READY if row.any() else MISSING for row in image], ""
        self.status.update(status)
        return {"item": ids, "url": urls, "status": status, "reason": [reason] * len(ids),
                "tries": [0] * len(ids), "bytes": [0] * len(ids)}  # fmt: skip

    def pictures(self) -> dict[str, Any]:
        """Items by status and reason, and pictures that many addresses share."""
        stand_ins = {sha: count for sha, count in self.same.most_common(5) if count >= STAND_IN}
        return {
            "status": dict(sorted(self.status.items())),
            "reasons": dict(self.reasons.most_common(50)),
            "shared_by_addresses": stand_ins,
        }

    def made_by(self) -> list[dict[str, Any]]:
        """Devices and versions, each once."""
        return [json.loads(text) for text in self.makers]
