"""One share of the work on features: fetching, encoding, and what a person sees of it."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from harness.data.clip import Encoder, Source, versions
from harness.data.extraction import Parts, encode_chunk
from harness.data.pictures import Cache, Entry, FetchOptions, fetch
from harness.errors import InputError

SECONDS_A_LINE = 60.0
"""Between two lines of progress where there is no terminal."""


@dataclass(frozen=True)
class Request:
    """What a command line asks for, as a job of a cluster gets it too."""

    out: Path
    pictures: Path
    fetch: FetchOptions
    image: Source | None = None
    """The model of pictures; None: ready-made vectors, or none."""
    text: Source | None = None
    stage: str = "all"
    """all, fetch or encode."""
    shard: tuple[int, int] = (1, 1)
    """Which share of how many."""
    batch: int = 64
    device: str = "auto"
    dtype: str = "float32"
    unit_length: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Of each mode, for plan and manifest."""

    @property
    def parts(self) -> Path:
        """The folder of chunks."""
        return self.out.parent / f"{self.out.name}.parts"

    def plan(self) -> dict[str, Any]:
        """What every process that shares the work must agree on."""
        models = {"image": self.image, "text": self.text}
        ready = {
            mode: {"sha256": facts["sha256"]}
            for mode, facts in self.facts.items() if models[mode] is None
        }  # fmt: skip
        made = {mode: source.identity() for mode, source in models.items() if source is not None}
        return {**ready, **made, "unit_length": self.unit_length, "dtype": self.dtype}


def work(request: Request, parts: Parts) -> str:
    """Fetch and encode one share; what was done, in a line.

    Raises:
        InputError: no picture can be had, or something cannot be written.
    """
    entries = fetch_share(request, parts) if request.image is not None else {}
    mine = _share(request, parts)
    cache = Cache(request.pictures)
    _encode(request, parts, [chunk for chunk in mine if parts.due(chunk, entries)], cache, entries)
    return f"{said_of(request, entries)}; {len(mine):,} parts encoded"


def fetch_share(request: Request, parts: Parts) -> dict[str, Entry]:
    """Fetch the pictures of one share, or (stage encode) look which are there.

    Raises:
        InputError: none is there that could be, or they cannot be written.
    """
    urls = [
        url
        for chunk in _share(request, parts)
        for url in parts.items.urls[parts.rows(chunk)]
        if url
    ]
    cache = Cache(request.pictures)
    if request.stage == "encode":
        entries = cache.entries(urls)
    else:
        with progress("pictures", len(set(urls))) as advance:
            entries = fetch(urls, cache, request.fetch, done=lambda _: advance())
    if not any(cache.path(url).is_file() for url in parts.items.urls if url):
        _require_some(urls, entries, request)
    return entries


def _share(request: Request, parts: Parts) -> list[int]:
    """The chunks of a share: every N-th."""
    share, count = request.shard
    return [chunk for chunk in parts.chunks if chunk % count == share - 1]


def said_of(request: Request, entries: Mapping[str, Entry]) -> str:
    """Pictures by what became of them."""
    share, count = request.shard
    states = Counter(entry.status for entry in entries.values())
    said = ", ".join(
        f"{states[name]:,} {name}" for name in ("ok", "dead", "failed") if states[name]
    )
    return (f"shard {share} of {count}: " if count > 1 else "") + f"pictures: {said or 'none'}"


def _require_some(urls: Sequence[str], entries: Mapping[str, Entry], request: Request) -> None:
    """InputError unless a share without pictures is one of dead links alone."""
    states = Counter(entry.status for entry in entries.values())
    if states["dead"] == len(set(urls)):
        return
    if request.stage == "encode":
        raise InputError(
            f"'{request.pictures}' has none of these {len(set(urls)):,} pictures; fetch them first, on a "
            "machine with a way out: the same command with --stage fetch"
        )
    reasons = Counter(entry.reason for entry in entries.values() if entry.status == "failed")
    raise InputError(
        f"none of {len(set(urls)):,} pictures could be had (mostly: {reasons.most_common(1)[0][0]}); has this "
        "machine a way out? On one that has: --stage fetch, then --stage encode here (--proxy URL, if your "
        "site has one)"
    )


def _encode(
    request: Request,
    parts: Parts,
    chunks: Sequence[int],
    cache: Cache,
    entries: Mapping[str, Entry],
) -> None:
    """Encode chunks."""
    if not chunks:
        return
    device = request.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: {str(error).splitlines()[0]}") from error
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    loaded: dict[Path, Encoder] = {}
    for source in (request.image, request.text):
        if source is not None and source.folder not in loaded:
            loaded[source.folder] = Encoder(
                source, device, request.dtype, unit_length=request.unit_length, threads=threads
            )
    image = loaded[request.image.folder] if request.image else None
    text = loaded[request.text.folder] if request.text else None
    made_by = {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        **versions(),
    }
    rows = sum(len(range(*parts.rows(chunk).indices(len(parts.items.ids)))) for chunk in chunks)
    with progress("items encoded", rows) as advance:
        for chunk in chunks:
            encode_chunk(parts, chunk, cache, entries, image, text, request.batch, made_by)
            part = parts.rows(chunk)
            advance(part.stop - part.start)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar on the error stream in a terminal, a line a minute elsewhere; gives what moves it on."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda steps=1: bar.advance(task, steps)
        return
    state = {"done": 0, "said": time.monotonic()}

    def advance(steps: int = 1) -> None:
        state["done"] += steps
        if time.monotonic() - state["said"] > SECONDS_A_LINE:
            state["said"] = time.monotonic()
            print(f"{what}: {state['done']:,} of {total:,}", file=sys.stderr)

    yield advance
