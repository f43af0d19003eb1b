"""The streaming core of all readers of raw logs: text in, sorted events out, in bounded memory.

Reading. Every text is read once, front to back. Two blocks at a time are decoded (`Log.decode`), what
cannot be used is dropped with a counted reason, and the rest goes to the end of one of up to 512 bucket files, each
for a range of users, in file order. A journal says after every 256 MiB how far all files are.

Selecting. Bucket by bucket the events are put in order (user, then time, then place in the file), exact
duplicates of (user, item, kind, time) lose all but the first, what the `Selection` does not want is left
out, and users with enough events and a last favor with something before it are written. As buckets are
ranges of users, what is written is sorted as a whole. The journal moves on bucket by bucket.

A process killed anywhere goes on at its journal's last entry with the same outcome, bit for bit, as the
outcome does not depend on blocks, buckets or threads. The folder (data/.staging/SOURCE-KEY) is named by
its inputs and rules, so that another selection of the same log needs no second reading.

A reader writes a `decode` function, a `Log`, a `Selection`, and makes a `Raw` of what comes back:

    log = Log("my_source", texts, decode, rules={"favor": "like"})
    with stage(log, root) as staged:
        chosen = staged.select(Selection(minimum_events=5))
        raw = chosen.raw(user_prefix="u")

Axes: event = rows of arrays in file order, kept = events of the kept users in their final order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Int, UInt8
from numpy import ndarray
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from harness.data.blocks import MISSING, Rows
from harness.data.labels import Numbered
from harness.data.ordering import Chosen, Selection, Touched, choose, in_order
from harness.data.raw import Raw
from harness.data.texts import BLOCK, Checksums, Text
from harness.errors import InputError

FORMAT = 1
"""Of a staging folder."""
BUCKET_ROWS = 2_500_000
"""Rows that a bucket should have."""
MOST_BUCKETS = 512
"""Files held open at once."""
SPLIT_ROWS = 2 * BUCKET_ROWS
"""A bucket with more rows is cut in smaller ranges of users."""
SAVE_BYTES = 256 << 20
"""Text between two entries of the journal."""
MOST_UNKNOWN = 0.01
"""Share of rows with an unknown action from which the whole reading is wrong."""
RANGE = "number out of range"
"""Reason in the ledger."""


@dataclass(frozen=True)
class Decoded:
    """What a block says, in file order; what it says that cannot be used is in `dropped`."""

    user: Int[ndarray, " event"]
    """Raw user numbers from 0 on."""
    item: Int[ndarray, " event"]
    """Raw item numbers from 0 on."""
    kind: UInt8[ndarray, " event"]
    """What was done, 0 to 255, as the reader numbers it; a `Selection` says which are click and favor."""
    time: Int[ndarray, " event"]
    rows: int
    """Lines read, whether used or not."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Lines that are no event, by reason; `rows` is their sum and the number of events."""
    extra: Int[ndarray, " event"] | None = None
    """A number that belongs to the item (its category), for logs that say so in each line."""
    unknown: int = 0
    """Of the dropped lines, those with an action that the reader does not know."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Other counts for the ledger."""


@dataclass(frozen=True)
class Log:
    """A raw log: where it is and how a block of it is understood."""

    source: str
    texts: Sequence[Text]
    decode: Callable[[bytes, Text, bool], Decoded]
    """From (whole lines, the text they are from, whether they begin it) to events. Runs in threads, so it
    must not change anything, and what it gives for a line may not depend on the other lines."""
    rules: Mapping[str, Any] = field(default_factory=dict)
    """Everything (as JSON) that `decode`'s outcome depends on beside the bytes."""
    number_type: str = "<i4"
    """Of users, items and extra."""
    time_type: str = "<i4"
    """Of times: seconds fit "<i4" until 2038; milliseconds need "<i8"."""
    has_extra: bool = False

    @property
    def record(self) -> np.dtype[Any]:
        """One event in a bucket."""
        fields = [("user", self.number_type), ("item", self.number_type),
                  ("time", self.time_type), ("kind", "u1")]  # fmt: skip
        return np.dtype(fields + [("extra", self.number_type)] * self.has_extra)

    @property
    def key(self) -> str:
        """Names the staging folder: format, rules, and the name, size and age of every file."""
        files = sorted({path for text in self.texts for path in text.paths})
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        said = [FORMAT, self.source, dict(self.rules), [text.name for text in self.texts], stats,
                self.record.descr]  # fmt: skip
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def decoded(
    rows: Rows,
    user: Int[ndarray, " row"],
    item: Int[ndarray, " row"],
    kind: Int[ndarray, " row"],
    time: Int[ndarray, " row"],
    *,
    left_out: Mapping[str, int] | None = None,
    unknown: int = 0,
    extra: Int[ndarray, " row"] | None = None,
) -> Decoded:
    """The rows of a block whose numbers are all there and whose kind is not 0.

    Args:
        rows: The block as read, for its counts.
        user: Numbers, MISSING where none could be read; `item` and `time` the same.
        item: See `user`.
        kind: 0 for rows that are left out.
        time: See `user`.
        left_out: Rows of kind 0 by reason; they must add up (see `kinds_of`).
        unknown: How many of these have an unknown action.
        extra: See `Decoded`; MISSING becomes -1.
    """
    dropped = Counter(rows.dropped)
    dropped.update(left_out or {})
    good = kind != 0
    for name, numbers in (("user", user), ("item", item), ("time", time)):
        bad = good & (numbers == MISSING)
        if bad.any():
            dropped[f"unreadable {name}"] += int(bad.sum())
            good &= ~bad
    if not good.all():
        user, item, kind, time = user[good], item[good], kind[good], time[good]
        extra = None if extra is None else extra[good]
    if extra is not None:
        extra = np.where(extra == MISSING, -1, extra)
    notes = {"characters replaced": rows.replaced} if rows.replaced else {}
    return Decoded(user, item, kind.astype(np.uint8), time, rows.lines,
                   {reason: count for reason, count in dropped.items() if count},
                   extra, unknown, notes)  # fmt: skip


def kinds_of(
    rows: Rows, column: str, kinds: Mapping[str, int]
) -> tuple[Int[ndarray, " row"], dict[str, int], int]:
    """Kinds of a column of actions, exactly as spelt.

    Args:
        rows: The block.
        column: The column of actions.
        kinds: Kind of each known action; 0 leaves it out, counted as "action NAME".

    Returns:
        Kinds (0 also for unknown actions), rows left out by reason, rows with an unknown action.
    """
    code, names = rows.codes(column)
    table = np.array([kinds.get(name, 0) for name in names] or [0], dtype=np.int64)
    counts = np.bincount(code, minlength=len(names)) if len(names) else np.zeros(0, np.int64)
    left_out: Counter[str] = Counter()
    unknown = 0
    for name, count in zip(names, counts.tolist(), strict=True):
        if name not in kinds:
            unknown += count
            left_out[f"unknown action {name[:20]!r}"] += count
        elif not kinds[name]:
            left_out[f"action {name}"] += count
    return table[code], dict(left_out), unknown


def stage(
    log: Log, root: Path, *, workers: int = 2, keep: bool = False, show: bool = True
) -> Staged:
    """Read a log into a staging folder, or find it read there already; for a `with` block.

    Args:
        log: The log.
        root: The data folder; the staging folder is root/.staging/SOURCE-KEY.
        workers: Blocks decoded at the same time.
        keep: The folder stays when the `with` block has ended well; after an error it always stays,
            to be gone on with.
        show: Progress on the error stream.

    Raises:
        InputError: a file cannot be read, the disk is too full, another process is at work in the
            folder, or more than 1 % of the rows have an unknown action.
    """
    staged = Staged(log, root / ".staging" / f"{log.source}-{log.key[:16]}", workers, keep, show)
    try:
        staged.read()
    except BaseException:
        staged.close()
        staged.say_what_stays()
        raise
    return staged


def _step(name: str) -> None:
    """Called after each step, for tests that stop a reading there."""


def _save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a journal whole or not at all."""
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(content), encoding="utf8")
    scratch.replace(path)


def _load(path: Path) -> dict[str, Any] | None:
    """A journal; None if there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


class Staged:
    """A log that has been read into buckets; made by `stage`."""

    def __init__(self, log: Log, folder: Path, workers: int, keep: bool, show: bool) -> None:
        self.log, self.folder, self.workers, self.keep, self.show = log, folder, workers, keep, show
        self.journal: dict[str, Any] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot write data set '{folder.parent.parent.name}' in '{folder}' "
                f"({error.strerror}); choose another folder with --data-dir DIR"
            ) from error
        self.lock = FileLock(folder.with_suffix(".lock"), timeout=0)
        try:
            self.lock.acquire()
        except Timeout:
            raise InputError(
                f"another process is reading '{log.source}' into '{folder}'; wait for it, "
                "or choose another --data-dir"
            ) from None

    def __enter__(self) -> Staged:  # noqa: PYI034 - beartype cannot check Self
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Remove the folder if all went well and it is not to be kept."""
        self.close(remove=error is None and not self.keep)
        if error is not None or self.keep:
            self.say_what_stays()

    def say_what_stays(self) -> None:
        """Where what was read lies, if it still does."""
        if (self.folder / "journal.json").exists():
            self._say(
                f"what was read stays in '{self.folder}'; the same command goes on from there"
            )

    def close(self, *, remove: bool = False) -> None:
        """Give the folder free, and remove it if told."""
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.with_suffix(".lock").unlink(missing_ok=True)  # while it is still held
        self.lock.release()
        if remove:
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()

    @property
    def ledger(self) -> dict[str, Any]:
        """Rows read, rows dropped by reason, events, and other counts of the reading."""
        return {key: self.journal[key] for key in ("rows", "dropped", "events", "notes")}

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of the raw files."""
        return dict(self.journal["sha256"])

    @property
    def span(self) -> tuple[int, int]:
        """First and last time of an event."""
        return self.journal["first_time"], self.journal["last_time"]

    # -- reading ---------------------------------------------------------------------------------

    def read(self) -> None:
        """Read what the journal does not have yet."""
        path = self.folder / "journal.json"
        journal = _load(path)
        if journal is None or not self._holds(journal):
            journal = self._begin()
            _save(path, journal)
            _step("begin")
        self.journal = journal
        if journal["state"] == "reading":
            self._read_texts()
        self._split()

    def _holds(self, journal: Mapping[str, Any]) -> bool:
        """Whether all that the journal speaks of is on disk."""
        for name, size in zip(journal["buckets"], journal["sizes"], strict=True):
            path = self.folder / name
            if (path.stat().st_size if path.exists() else 0) < size:
                return False
        return True

    def _begin(self) -> dict[str, Any]:
        """An empty journal with the ranges of the buckets, which a sample of the log proposes."""
        users, size, events = [np.zeros(0, np.int64)], 0, 0
        places = max(1, 64 // max(1, len(self.log.texts)))
        for text in self.log.texts:
            for place, part in enumerate(text.slices(places, 1 << 17)):
                got = self.log.decode(part, text, place == 0)
                users.append(got.user.astype(np.int64))
                size += len(part)
                events += len(got.user)
        total = sum(text.size or 4 * text.stored for text in self.log.texts)
        expected = total * events / max(1, size)
        needed = int(expected * self.log.record.itemsize)
        free = shutil.disk_usage(self.folder).free
        self._say(
            f"reading {_bytes(total)} of text, about {expected:,.0f} events; needs up to "
            f"{_bytes(2 * needed)} of disk in {self.folder.parent} ({_bytes(free)} free)"
        )
        if needed > free:
            raise InputError(
                f"reading '{self.log.source}' needs about {_bytes(needed)} in '{self.folder.parent}', "
                f"where {_bytes(free)} are free; choose another folder with --data-dir DIR"
            )
        buckets = int(np.clip(np.ceil(expected / BUCKET_ROWS), 1, MOST_BUCKETS))
        sample = np.sort(np.concatenate(users))
        edges = sample[np.arange(1, buckets) * len(sample) // buckets] if len(sample) else sample
        edges = np.unique(edges)
        older = [str(path) for path in sorted(self.folder.parent.glob(f"{self.log.source}-*"))
                 if path.is_dir() and path != self.folder]  # fmt: skip
        if older:
            self._say(
                f"other readings of this source lie in {', '.join(older)}; delete them if done"
            )
        for old in self.folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        return {
            "format": FORMAT, "state": "reading", "text": 0, "offset": 0, "rows": 0, "events": 0,
            "unknown": 0, "dropped": {}, "notes": {}, "first_time": 0, "last_time": 0, "sha256": {},
            "edges": edges.tolist(), "sizes": [0] * (len(edges) + 1),
            "buckets": [f"bucket-{place:03}" for place in range(len(edges) + 1)],
        }  # fmt: skip

    def _read_texts(self) -> None:
        journal = self.journal
        total = sum(text.stored for text in {text.paths: text for text in self.log.texts}.values())
        with contextlib.ExitStack() as stack:
            files = []
            for name, size in zip(journal["buckets"], journal["sizes"], strict=True):
                file = stack.enter_context((self.folder / name).open("ab", buffering=0))
                file.truncate(size)
                files.append(file)
            bar = stack.enter_context(Bar(f"reading {self.log.source}", total, self.show))
            pool = stack.enter_context(ThreadPoolExecutor(self.workers))
            hashing = stack.enter_context(ThreadPoolExecutor(1))
            sums: dict[tuple[Path, ...], Checksums] = {}
            done = 0
            for place, text in enumerate(self.log.texts):
                last_of_file = all(
                    other.paths != text.paths for other in self.log.texts[place + 1 :]
                )
                if place >= journal["text"]:
                    behind = sums.setdefault(text.paths, Checksums(text.paths))
                    self._read_text(text, files, bar, done, pool, hashing, behind)
                    if last_of_file:
                        journal["sha256"].update(
                            hashing.submit(sums.pop(text.paths).finished).result()
                        )
                    journal["text"], journal["offset"] = place + 1, 0
                    self._save_reading()
                done += text.stored if last_of_file else 0
                bar.at(done)
        journal["state"] = "read"
        self._save_reading()

    def _read_text(
        self, text: Text, files: Sequence[Any], bar: Bar, done: int, pool: ThreadPoolExecutor,
        hashing: ThreadPoolExecutor, behind: Checksums,
    ) -> None:  # fmt: skip
        """Read a text from the journal's offset on."""
        journal = self.journal
        pending: deque[tuple[Future[Any], int, int]] = deque()
        hashed: deque[Future[None]] = deque()
        unsaved = 0

        def take() -> None:
            nonlocal unsaved
            future, size, disk = pending.popleft()
            self._append(future.result(), files)
            journal["offset"] += size
            unsaved += size
            bar.at(done + disk)
            hashed.append(hashing.submit(behind.advance, disk))
            if len(hashed) > 4:
                hashed.popleft().result()
            if unsaved >= SAVE_BYTES:
                unsaved = 0
                self._save_reading()
            _step("block")

        with text.open(journal["offset"]) as reading:
            first = journal["offset"] == 0
            for block in reading.blocks(BLOCK):
                future = pool.submit(self._sorted_by_bucket, block, text, first)
                pending.append((future, len(block), reading.disk_bytes()))
                first = False
                if len(pending) > self.workers:
                    take()
            while pending:
                take()
        for behind_done in hashed:
            behind_done.result()

    def _save_reading(self) -> None:
        journal = self.journal
        if journal["unknown"] > MOST_UNKNOWN * journal["rows"]:
            shutil.rmtree(self.folder, ignore_errors=True)
            names = [reason for reason in journal["dropped"] if reason.startswith("unknown action")]
            raise InputError(
                f"{journal['unknown']:,} of the first {journal['rows']:,} rows of '{self.log.source}' "
                f"have an {', an '.join(names[:4])}: this is no log of this source, or the reader's list of "
                "actions is out of date; nothing was guessed"
            )
        _save(self.folder / "journal.json", journal)
        _step("saved")

    def _sorted_by_bucket(self, block: bytes, text: Text, first: bool) -> tuple[Any, ...]:
        """The records of a block, by bucket, and what the journal counts of it."""
        got = self.log.decode(block, text, first)
        records = np.empty(len(got.user), dtype=self.log.record)
        good = np.ones(len(records), dtype=bool)
        columns = {"user": got.user, "item": got.item, "time": got.time, "kind": got.kind}
        if self.log.has_extra:
            columns["extra"] = got.user if got.extra is None else got.extra
        for name, values in columns.items():
            records[name] = values
            low, high = _limits(self.log.record[name])
            if len(values) and (values.min() < low or values.max() > high):
                good &= (values >= low) & (values <= high)
        if len(records) and min(got.user.min(), got.item.min()) < 0:
            good &= (got.user >= 0) & (got.item >= 0)
        dropped = Counter(got.dropped)
        if not good.all():
            dropped[RANGE] += int((~good).sum())
            records = records[good]
        if got.rows != len(records) + sum(dropped.values()):
            raise AssertionError(
                f"{text.name}: {got.rows} rows, but {len(records)} events, {dropped}"
            )
        edges = np.asarray(self.journal["edges"], dtype=np.int64)
        bucket = np.searchsorted(edges, records["user"], side="right").astype(np.uint16)
        order = np.argsort(bucket, kind="stable")
        counts = np.bincount(bucket, minlength=len(edges) + 1)
        times = records["time"]
        span = (int(times.min()), int(times.max())) if len(times) else None
        return records[order], counts, got.rows, dropped, got.unknown, got.notes, span

    def _append(self, found: tuple[Any, ...], files: Sequence[Any]) -> None:
        """Put a block's records at the ends of their buckets."""
        records, counts, rows, dropped, unknown, notes, span = found
        journal = self.journal
        view = memoryview(records.view(np.uint8)) if len(records) else memoryview(b"")
        width, start = self.log.record.itemsize, 0
        for place in np.nonzero(counts)[0].tolist():
            end = start + int(counts[place]) * width
            self._write(files[place], view[start:end])
            journal["sizes"][place] += end - start
            start = end
        if span is not None:
            first = journal["first_time"] if journal["events"] else span[0]
            last = journal["last_time"] if journal["events"] else span[1]
            journal["first_time"], journal["last_time"] = min(first, span[0]), max(last, span[1])
        journal["rows"] += rows
        journal["events"] += len(records)
        journal["unknown"] += unknown
        _count(journal["dropped"], dropped)
        _count(journal["notes"], notes)

    def _split(self) -> None:
        """Cut buckets that came out too large in smaller ranges of users."""
        journal = self.journal
        width = self.log.record.itemsize
        while True:
            large = [place for place, size in enumerate(journal["sizes"])
                     if size > SPLIT_ROWS * width and journal["buckets"][place].count("-") == 1]  # fmt: skip
            if not large:
                return
            place = large[0]
            name, size = journal["buckets"][place], journal["sizes"][place]
            records = np.memmap(self.folder / name, self.log.record, "r", shape=(size // width,))
            step = max(1, len(records) // 1_000_000)
            sample = np.sort(records["user"][::step])
            pieces = -(-len(records) // BUCKET_ROWS)
            edges = np.unique(sample[np.arange(1, pieces) * len(sample) // pieces])
            names = [f"{name}-{piece:03}" for piece in range(len(edges) + 1)]
            sizes = [0] * len(names)
            with contextlib.ExitStack() as stack:
                files = [stack.enter_context((self.folder / one).open("wb")) for one in names]
                for start in range(0, len(records), BUCKET_ROWS):
                    part = records[start : start + BUCKET_ROWS]
                    piece = np.searchsorted(edges, part["user"], side="right")
                    for one in np.unique(piece).tolist():
                        chosen = part[piece == one]
                        chosen.tofile(files[one])
                        sizes[one] += chosen.nbytes
            del records
            journal["buckets"][place : place + 1] = names
            journal["sizes"][place : place + 1] = sizes
            _save(self.folder / "journal.json", journal)
            (self.folder / name).unlink()
            _step("split")

    # -- selecting -------------------------------------------------------------------------------

    def select(self, selection: Selection) -> Selected:
        """The wanted events of the wanted users, sorted by user, then time, then place in the file.

        Raises:
            InputError: nobody is left.
        """
        journal = self.journal
        facts = selection.facts()
        key = hashlib.sha256(json.dumps([FORMAT, facts], sort_keys=True).encode()).hexdigest()[:16]
        folder = self.folder / f"selected-{key}"
        folder.mkdir(exist_ok=True)
        columns = self._columns()
        state = _load(folder / "journal.json")
        if state is None or any(
            (folder / name).stat().st_size < state["sizes"][name] for name in columns
        ):
            state = {"done": 0, "users": 0, "kept_users": 0, "events": 0, "ledger": {},
                     "sizes": dict.fromkeys(columns, 0)}  # fmt: skip
        with contextlib.ExitStack() as stack:
            files = {}
            for name in columns:
                files[name] = stack.enter_context((folder / name).open("ab", buffering=0))
                files[name].truncate(state["sizes"][name])
            bar = stack.enter_context(
                Bar(f"ordering {self.log.source}", sum(journal["sizes"]), self.show)
            )
            for place, chosen in self._chosen(state["done"], [selection], lambda one: one):
                one: Chosen = chosen[0]
                values = {"user": one.user + state["users"], "item": one.item, "time": one.time,
                          "behaviour": one.behaviour, "users": one.users, "extra": one.extra}  # fmt: skip
                for name, kind in columns.items():
                    part = np.ascontiguousarray(values[name], dtype=kind)
                    self._write(files[name], part.tobytes())
                    state["sizes"][name] += part.nbytes
                state["users"] += len(one.users)
                state["kept_users"] += one.kept_users
                state["events"] += len(one.user)
                _count(state["ledger"], one.ledger)
                state["done"] = place + 1
                _save(folder / "journal.json", state)
                bar.at(sum(journal["sizes"][: place + 1]))
                _step("bucket")
        if not state["events"]:
            raise InputError(
                f"no user of '{self.log.source}' is left: of {state['users']:,} users with an event, "
                f"none has at least {selection.minimum_events} events and a last favor with an event "
                "before it"
                + (
                    f" and a share of favors in {list(selection.favor_share)}"
                    if selection.favor_share != (0.0, 1.0)
                    else ""
                )
                + "; select more, as in fewer conditions on months, items or shares"
            )
        return Selected(self, selection, folder, state, columns)

    def survey(self, selections: Sequence[Selection]) -> list[dict[str, float]]:
        """Table 1 of several selections in one pass over the buckets, nothing written.

        Returns:
            Per selection: users, items, interactions, clicks_per_user, favors_per_user, and the users
            with an event at all (source_users).
        """
        totals = [Counter[str]() for _ in selections]
        touched = [Touched() for _ in selections]
        done = 0
        with Bar(f"surveying {self.log.source}", sum(self.journal["sizes"]), self.show) as bar:
            for place, found in self._chosen(0, selections, Chosen.counts):
                for number, (counts, items) in enumerate(found):
                    totals[number].update(counts)
                    touched[number].add(items)
                done += self.journal["sizes"][place]
                bar.at(done)
        return [
            {
                "users": float(total["users"]),
                "items": float(len(items.numbers())),
                "interactions": float(total["clicks"] + total["favors"]),
                "clicks_per_user": total["clicks"] / max(1, total["users"]),
                "favors_per_user": total["favors"] / max(1, total["users"]),
                "source_users": float(total["source_users"]),
            }
            for total, items in zip(totals, touched, strict=True)
        ]

    def _columns(self) -> dict[str, str]:
        """What a selection writes, and as what."""
        number, clock = self.log.number_type, self.log.time_type
        columns = {"user": "<i4", "item": number, "time": clock, "behaviour": "i1", "users": number}
        return columns | ({"extra": number} if self.log.has_extra else {})

    def _chosen(
        self, begin: int, selections: Sequence[Selection], then: Callable[[Chosen], Any]
    ) -> Iterator[tuple[int, list[Any]]]:
        """What `then` makes of each bucket's events under each selection, in order, some buckets ahead."""
        buckets = self.journal["buckets"]
        width = self.log.record.itemsize

        def work(place: int) -> list[Any]:
            size = self.journal["sizes"][place]
            with (self.folder / buckets[place]).open("rb") as file:
                records = np.fromfile(file, dtype=self.log.record, count=size // width)
            ordered, duplicates = in_order(records, selections)
            return [then(choose(ordered, duplicates, selection)) for selection in selections]

        with ThreadPoolExecutor(self.workers) as pool:
            pending: deque[tuple[int, Future[list[Any]]]] = deque()
            for place in range(begin, len(buckets)):
                pending.append((place, pool.submit(work, place)))
                if len(pending) > self.workers:
                    number, future = pending.popleft()
                    yield number, future.result()
            while pending:
                number, future = pending.popleft()
                yield number, future.result()

    def _write(self, file: Any, content: bytes | memoryview) -> None:
        """Write all of it to an unbuffered file."""
        while len(content):
            try:
                content = content[file.write(content) :]
            except OSError as error:
                raise InputError(
                    f"cannot write in '{self.folder}' ({error.strerror}); make room and run the same "
                    "command again, it goes on where it stopped"
                ) from error

    def _say(self, line: str) -> None:
        if self.show:
            print(line, file=sys.stderr)


class Selected:
    """Events that a selection left, as memory-mapped files of the staging folder."""

    def __init__(
        self, staged: Staged, selection: Selection, folder: Path, state: Mapping[str, Any],
        columns: Mapping[str, str],
    ) -> None:  # fmt: skip
        self.staged, self.selection, self.folder = staged, selection, folder
        self.state, self.columns = state, columns
        self.item_numbers = self._items()
        """Raw numbers of the items that occur, ascending."""

    def array(self, name: str) -> ndarray:
        """One of: user (rank among all users), item (raw number), time, behaviour, extra, an entry an event.

        And users: the raw number of each user by rank.
        """
        kind = np.dtype(self.columns[name])
        count = self.state["sizes"][name] // kind.itemsize
        return np.memmap(self.folder / name, kind, "r", shape=(count,))

    def _items(self) -> Int[ndarray, " item"]:
        """The distinct items, and the file `place` with each event's place among them."""
        item = self.array("item")
        parts = [item[start : start + BUCKET_ROWS] for start in range(0, len(item), BUCKET_ROWS)]
        touched = Touched()
        for part in parts:
            touched.add(part)
        numbers, place = touched.numbers(), touched.places()
        with (self.folder / "place").open("wb") as file:
            for part in parts:
                place(part).astype("<i4").tofile(file)
        _step("items")
        return numbers

    def extra_of_items(self) -> Int[ndarray, " item"]:
        """The extra number of each item in its first event, users ascending."""
        item, extra = np.memmap(self.folder / "place", "<i4", "r"), self.array("extra")
        result = np.full(len(self.item_numbers), -1, dtype=np.int64)
        for start in range(0, len(item), BUCKET_ROWS):
            places, first = np.unique(item[start : start + BUCKET_ROWS], return_index=True)
            new = result[places] == -1
            result[places[new]] = extra[start + first[new]]
        return result

    def facts(self) -> dict[str, Any]:
        """What the manifest says: the selection's rules and the ledger of every row."""
        return {
            "selection": self.selection.facts(),
            "ledger": {**self.staged.ledger, "selected": {**self.state["ledger"],
                       "kept_users": self.state["kept_users"], "kept_events": self.state["events"]}},
        }  # fmt: skip

    def raw(self, *, user_prefix: str = "", item_prefix: str = "", **more: Any) -> Raw:
        """The source for `harness.data.prepare`, its arrays memory-mapped and sorted.

        Args:
            user_prefix: Stands before a user's number in its raw id ("u").
            item_prefix: The same for items.
            more: Further fields of `Raw` (title, picture, category, fields, image, text, facts,
                files), an entry an item in the order of `item_numbers`. facts and files are added to
                what the staging knows.
        """
        dropped = self.staged.journal["dropped"]
        facts = {**self.facts(), **more.pop("facts", {})}
        files = {**self.staged.files, **more.pop("files", {})}
        return Raw(
            source=self.staged.log.source,
            user=self.array("user"),
            item=np.memmap(self.folder / "place", "<i4", "r"),
            behaviour=self.array("behaviour"),
            timestamp=self.array("time"),
            user_ids=Numbered(self.array("users"), user_prefix),
            item_ids=Numbered(self.item_numbers, item_prefix),
            ignored={reason.removeprefix("action "): count for reason, count in dropped.items()
                     if reason.startswith("action ")},
            facts=facts,
            files=files,
            **more,
        )  # fmt: skip


class Bar:
    """Progress in bytes on the error stream: a bar in a terminal, a line every tenth elsewhere."""

    def __init__(self, name: str, total: int, show: bool) -> None:
        self.name, self.total, self.show = name, total, show
        self.said, self.begun = 0, time.monotonic()
        self.progress: Progress | None = None

    def __enter__(self) -> Bar:  # noqa: PYI034 - beartype cannot check Self
        """Begin to show."""
        console = Console(stderr=True)
        if self.show and console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
                TransferSpeedColumn(), TimeRemainingColumn(), console=console,
            )  # fmt: skip
            self.progress.add_task(self.name, total=self.total)
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Stop showing."""
        if self.progress is not None:
            self.progress.stop()

    def at(self, done: int) -> None:
        """So many bytes are done."""
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=done)
            return
        tenth = 10 * done // max(1, self.total)
        if self.show and tenth > self.said and self.total > SAVE_BYTES:
            self.said = tenth
            speed = done / max(1e-9, time.monotonic() - self.begun)
            print(f"{self.name}: {tenth}0 % of {_bytes(self.total)}, {_bytes(int(speed))}/s",
                  file=sys.stderr, flush=True)  # fmt: skip


def _count(into: dict[str, int], counts: Mapping[str, int]) -> None:
    """Add counts; of reasons that quote the text no more than 50 are told apart."""
    for reason, count in counts.items():
        name = reason if reason in into or len(into) < 50 else "other reasons"
        into[name] = into.get(name, 0) + count


def _limits(kind: np.dtype[Any]) -> tuple[int, int]:
    info = np.iinfo(kind)
    return int(info.min), int(info.max)


def _bytes(count: int) -> str:
    """1.4 GB."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
