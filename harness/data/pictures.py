"""Pictures by their address: fetched politely, looked at, kept in a folder, every failure with its reason.

A cache folder holds each picture once, under the SHA-256 of its address (CACHE/abc/abcdef...), written
whole; and ledger/*.jsonl, a line an address that was tried, one file a process. What is there is not
fetched again. What failed for good ("dead": no such page, no picture, too large) is not asked for again
unless the caller wants to; what may pass ("failed": no answer, an error of the server) is, next time.

No host gets more than `rate` requests a second, redirects and second tries included; a host that asks to
wait is left alone for as long as it says; one that fails again and again is given up for this run. Only
http and https, and only public addresses, checked on the very address that is connected to.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import ipaddress
import json
import os
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from PIL import Image, UnidentifiedImageError

from harness.errors import InputError

AGENT = "m3bsr-bench/0.1 (research crawler of one data set's pictures; each is fetched once)"
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
"""What is opened; Pillow's other formats are not for pictures on pages, and some start programs."""
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers of a server that may be different the next time."""
LONGEST = 100
"""Times that a picture's long side may be its short one, which is scaled to what a model reads."""
PIECE = 65536
MORE_PATIENCE = 5


@dataclass(frozen=True)
class FetchOptions:
    """How to fetch."""

    rate: float = 5.0
    """Requests a second to one host."""
    timeout: float = 20.0
    """Seconds for one request, from the look-up of its name to its last byte."""
    most_bytes: int = 10_000_000
    most_pixels: int = 50_000_000
    """Width x height; a small file can unpack to gigabytes."""
    tries: int = 4
    backoff: float = 2.0
    """Seconds before the second try, doubled for each further one."""
    longest_wait: float = 120.0
    """Seconds that a host may ask to be left alone (Retry-After) without being given up for this run."""
    redirects: int = 5
    at_once: int = 16
    """Requests under way, at most 4 of them to one host."""
    patience: int = 20
    """A host that fails to answer so many times in a row is given up for this run; one that answers with
    errors that may pass, after five times as many."""
    retry_dead: bool = False
    """Ask again for what failed for good."""
    proxy: str | None = None
    """http://HOST:PORT. The proxy then looks names up, so addresses cannot be checked here."""
    private: bool = False
    """Connect to addresses inside private networks, too."""
    contact: str = ""
    """Added to the User-Agent: an address where a host's owner reaches who runs this."""


@dataclass(frozen=True)
class Entry:
    """What became of one address."""

    url: str
    status: str
    """ok, dead (for good) or failed (may pass)."""
    reason: str = ""
    tries: int = 0
    """Requests so far, over all runs; those of redirects count with the one that led there."""
    bytes: int = 0
    sha256: str = ""
    """Of the picture's bytes: hosts that lost a picture often send one stand-in for all."""


class Cache:
    """A folder of fetched pictures and what is known of the addresses that were tried.

    Used as a context manager by whoever fetches; reading needs no context. Several processes may share it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ledger: Any = None

    def path(self, url: str) -> Path:
        """Where the picture of an address is, or would be."""
        name = hashlib.sha256(url.encode("utf8", "surrogatepass")).hexdigest()
        return self.folder / name[:3] / name

    def entries(self, urls: Iterable[str]) -> dict[str, Entry]:
        """The latest known of these addresses; those never tried are not in it."""
        wanted = set(urls)
        found: dict[str, tuple[float, Entry]] = {}
        for path in sorted((self.folder / "ledger").glob("*.jsonl")):
            with path.open(encoding="utf8") as file:
                for line in file:
                    try:
                        said = json.loads(line)
                        when, url = said.pop("when"), said["url"]
                        if url in wanted and when >= found.get(url, (0.0, None))[0]:
                            found[url] = when, Entry(**said)
                    except (ValueError, TypeError, KeyError):
                        continue  # the last line of a process that was killed
        known = {url: entry for url, (_, entry) in found.items()}
        for url in wanted:
            entry = known.get(url)
            there = self.path(url).is_file()
            if there and (entry is None or entry.status != "ok"):
                known[url] = Entry(url, "ok", bytes=self.path(url).stat().st_size)
            elif not there and entry is not None and entry.status == "ok":
                del known[url]  # the file was removed
        return known

    def __enter__(self) -> Cache:  # noqa: PYI034 - beartype cannot check Self
        """Open a ledger of this process's own."""
        try:
            (self.folder / "ledger").mkdir(parents=True, exist_ok=True)
            name = f"{time.time_ns()}-{socket.gethostname()}-{os.getpid()}.jsonl"
            self._ledger = (self.folder / "ledger" / name).open("a", encoding="utf8")
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Close the ledger; an empty one is removed."""
        self._ledger.close()
        path = Path(self._ledger.name)
        if not path.stat().st_size:
            path.unlink()

    def note(self, entry: Entry) -> None:
        """Add a line to the ledger."""
        try:
            self._ledger.write(json.dumps({**asdict(entry), "when": time.time()}) + "\n")
            self._ledger.flush()
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def keep(self, url: str, content: bytes) -> None:
        """Write a picture whole."""
        path = self.path(url)
        scratch = None
        try:
            path.parent.mkdir(exist_ok=True)
            handle, scratch = tempfile.mkstemp(prefix=".", dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(scratch).chmod(0o644)
            Path(scratch).replace(path)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        finally:
            if scratch is not None:
                Path(scratch).unlink(missing_ok=True)


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write pictures in '{folder}' ({error.strerror or error}); choose another folder with "
        "--pictures DIR"
    )


# --------------------------------------------------------------------------- looking at pictures


class NoPictureError(Exception):
    """Bytes that are no whole picture; `whole` says whether asking again is pointless."""

    def __init__(self, reason: str, *, whole: bool = True) -> None:
        super().__init__(reason)
        self.whole = whole


def check_picture(content: bytes, most_pixels: int) -> None:
    """Raise NoPictureError unless these bytes are a picture that can be opened and read to its end."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > most_pixels:
                raise NoPictureError(f"{width} x {height} pixels are too many")
            if width * height == 1:
                raise NoPictureError("one pixel is no picture")
            if max(width, height) > LONGEST * min(width, height):
                raise NoPictureError(f"{width} x {height} pixels are too long a strip")
            image.load()
    except NoPictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise NoPictureError("too many pixels") from error
    except UnidentifiedImageError as error:
        raise NoPictureError("not a picture") from error
    except Exception as error:  # damaged bytes make Pillow's decoders raise nearly anything
        raise NoPictureError("damaged picture", whole=False) from error


def open_picture(path: Path) -> Image.Image:
    """The first frame of a checked picture in RGB. Raises NoPictureError when it cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.mode == "P":  # a palette may hold transparency
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # as above
        raise NoPictureError("damaged picture", whole=False) from error


# ---------------------------------------------------------------------------------- politeness


class NotPublicError(OSError):
    """An address that lies inside a private network."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet."""
    return ipaddress.ip_address(address.partition("%")[0]).is_global


class Pace:
    """When the next request to a host may start: a plain clock of slots, `1 / rate` seconds apart."""

    def __init__(self, rate: float) -> None:
        self.gap = 1.0 / rate
        self.free = 0.0

    def wait(self, now: float) -> float:
        """Take the next slot; seconds until it."""
        start = max(now, self.free)
        self.free = start + self.gap
        return start - now

    def rest(self, until: float) -> None:
        """No slot before this time."""
        self.free = max(self.free, until)


@dataclass
class Host:
    """One host while fetching."""

    pace: Pace
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))
    silent: int = 0
    """Requests in a row without an answer."""
    troubled: int = 0
    """Requests in a row that failed in a way that may pass."""
    given_up: str = ""
    """Why it is left alone for the rest of this run."""


class PassingError(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, *, silent: bool = False, after: float | None = None) -> None:
        super().__init__(reason)
        self.silent = silent
        """The host did not answer at all."""
        self.after = after
        """Seconds that the host asks to wait."""


class DeadError(Exception):
    """A failure for good."""


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None for anything else."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None


# ------------------------------------------------------------------------------------ fetching


def fetch(
    urls: Sequence[str],
    cache: Cache,
    options: FetchOptions,
    *,
    done: Callable[[Entry], None] = lambda _: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> dict[str, Entry]:
    """Fetch what is not there yet; what became of every address, by address.

    Stopped at any moment (Ctrl-C too), it leaves whole pictures and whole lines; called again it goes on.

    Args:
        urls: Addresses; each is fetched once.
        cache: Where to.
        options: How.
        done: Called with every address, those known from earlier among them.
        sleep: Waits; tests give one of their own.

    Raises:
        InputError: the folder cannot be written.
    """
    distinct = list(dict.fromkeys(urls))
    known = cache.entries(distinct)
    settled = {
        url: entry for url, entry in known.items()
        if entry.status == "ok" or (entry.status == "dead" and not options.retry_dead)
    }  # fmt: skip
    for entry in settled.values():
        done(entry)
    open_urls = [url for url in distinct if url not in settled]
    if open_urls:
        with cache:
            fetcher = _Fetcher(cache, options, known, done, sleep)
            try:
                settled |= asyncio.run(fetcher.run(open_urls))
            except BaseExceptionGroup as group:
                raise _first(group) from group
    return {url: settled[url] for url in distinct}


def _first(error: BaseException) -> BaseException:
    """The first error of a task group, however deep."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Fetcher:
    """One run of `fetch`, inside its event loop."""

    def __init__(
        self,
        cache: Cache,
        options: FetchOptions,
        known: dict[str, Entry],
        done: Callable[[Entry], None],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.cache, self.options, self.known, self.done = cache, options, known, done
        self.sleep = sleep
        self.hosts: dict[str, Host] = {}
        self.entries: dict[str, Entry] = {}

    async def run(self, urls: Sequence[str]) -> dict[str, Entry]:
        """Fetch each of these; a queue a host, so that a slow host holds up no other."""
        queues: dict[str, list[str]] = {}
        for url in urls:
            queues.setdefault(_host(url), []).append(url)
        self.gate = asyncio.Semaphore(self.options.at_once)
        agent = f"{AGENT}; {self.options.contact}" if self.options.contact else AGENT
        connector = aiohttp.TCPConnector(
            limit=self.options.at_once, socket_factory=self._socket, ttl_dns_cache=300
        )
        with ThreadPoolExecutor(2, thread_name_prefix="look") as self.look:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    headers={
                        "User-Agent": agent,
                        "Accept": "image/*",
                        "Accept-Encoding": "identity",
                    },
                    timeout=aiohttp.ClientTimeout(total=None),  # ours spans redirects of one try
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,  # a small answer must not unpack to a large one
                ) as self.session,
                asyncio.TaskGroup() as group,
            ):
                self.session._retry_connection = False  # noqa: SLF001 - its own second try asks without waiting its turn
                for name, queue in queues.items():
                    group.create_task(self._queue(name, queue))
        return self.entries

    def _socket(self, info: Any) -> socket.socket:
        """A socket for an address that may be connected to."""
        family, kind, protocol, _, address = info
        checked = self.options.proxy is None and not self.options.private
        if checked and not is_public(str(address[0])):
            raise NotPublicError(0, f"{address[0]} is no public address")
        return socket.socket(family, kind, protocol)

    def _of(self, name: str) -> Host:
        if name not in self.hosts:
            self.hosts[name] = Host(Pace(self.options.rate))
        return self.hosts[name]

    async def _queue(self, name: str, urls: Sequence[str]) -> None:
        """Fetch a host's addresses, some at a time."""
        host = self._of(name)

        async def one(url: str) -> None:
            try:
                await self._one(url)
            finally:
                host.gate.release()

        async with asyncio.TaskGroup() as group:
            for url in urls:
                await host.gate.acquire()
                group.create_task(one(url))

    async def _one(self, url: str) -> None:
        """Fetch one address, with second tries, and note what became of it."""
        before = self.known.get(url)
        tries = before.tries if before else 0
        entry = Entry(url, "failed", "not tried", tries)
        host = self._of(_host(url))
        for attempt in range(self.options.tries):
            if host.given_up:
                entry = Entry(url, "failed", host.given_up, tries)
                break
            if attempt:
                await self.sleep(self.options.backoff * 2 ** (attempt - 1))
            last = attempt == self.options.tries - 1
            tries += 1
            try:
                content = await self._get(url)
            except DeadError as error:
                entry = Entry(url, "dead", str(error), tries)
                break
            except PassingError as error:
                entry = Entry(url, "failed", str(error), tries)
                continue
            try:
                await asyncio.get_running_loop().run_in_executor(
                    self.look, check_picture, content, self.options.most_pixels
                )
            except NoPictureError as error:
                entry = Entry(url, "dead", str(error), tries, len(content))
                if error.whole or last:
                    break
            else:
                self.cache.keep(url, content)
                sha256 = hashlib.sha256(content).hexdigest()
                entry = Entry(url, "ok", "", tries, len(content), sha256)
                break
        self.cache.note(entry)
        self.entries[url] = entry
        self.done(entry)

    async def _get(self, url: str) -> bytes:
        """The bytes behind an address, redirects followed. Raises DeadError or PassingError."""
        seen = [url]
        while True:
            name = _host(seen[-1])
            if not name:
                raise DeadError(
                    "no http address" if len(seen) == 1 else "redirects to no http address"
                )
            host = self._of(name)
            if host.given_up:
                raise PassingError(host.given_up)
            if pause := host.pace.wait(asyncio.get_running_loop().time()):
                await self.sleep(pause)
            try:
                async with self.gate, asyncio.timeout(self.options.timeout):
                    found = await self._request(seen[-1])
            except TimeoutError as error:
                trouble = PassingError(f"no answer in {self.options.timeout:g} s", silent=True)
                self._judge(host, trouble)
                raise trouble from error
            except PassingError as error:
                self._judge(host, error)
                raise
            host.silent = host.troubled = 0
            if isinstance(found, bytes):
                return found
            if found in seen:
                raise DeadError("redirects in a circle")
            if len(seen) > self.options.redirects:
                raise DeadError(f"more than {self.options.redirects} redirects")
            seen.append(found)

    def _judge(self, host: Host, trouble: PassingError) -> None:
        """Leave a host alone that asks for it or does not answer."""
        host.silent = host.silent + 1 if trouble.silent else 0
        host.troubled += 1
        if host.given_up:
            return  # this request was under way when that was decided
        if host.silent >= self.options.patience:
            host.given_up = f"its host gave no answer {host.silent} times in a row"
        elif host.troubled >= MORE_PATIENCE * self.options.patience:
            host.given_up = f"its host failed {host.troubled} times in a row ({trouble})"
        if trouble.after is not None:
            if trouble.after > self.options.longest_wait:
                host.given_up = f"its host asks to wait {trouble.after:.0f} s"
            else:
                host.pace.rest(asyncio.get_running_loop().time() + trouble.after)

    async def _request(self, url: str) -> bytes | str:
        """One request: the bytes, or where it redirects to. Raises DeadError or PassingError."""
        try:
            async with self.session.get(
                url, allow_redirects=False, proxy=self.options.proxy
            ) as answer:
                code = answer.status
                if code in (301, 302, 303, 307, 308):
                    if "Location" not in answer.headers:
                        raise DeadError(f"HTTP {code} to nowhere")
                    return urljoin(url, answer.headers["Location"]).partition("#")[0]
                if code in PASSING:
                    after = retry_after(answer.headers.get("Retry-After"), time.time())
                    raise PassingError(f"HTTP {code}", after=after)
                if code != 200:
                    raise DeadError(f"HTTP {code}")
                return await self._body(answer)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, NotPublicError):
                raise DeadError(error.os_error.strerror or "no public address") from error
            what = "its host's name is not known" if isinstance(
                error, aiohttp.ClientConnectorDNSError) else "no connection"  # fmt: skip
            raise PassingError(what, silent=True) from error
        except aiohttp.ClientPayloadError as error:
            raise PassingError("the answer ended early") from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            raise PassingError("the connection was closed") from error
        except aiohttp.ClientError as error:
            if isinstance(error, aiohttp.InvalidURL):
                raise DeadError("no http address") from error
            raise PassingError(f"no sense in the answer ({type(error).__name__})") from error
        except ValueError as error:  # a host's name that cannot be one
            raise DeadError("no http address") from error

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        """The body, up to the limit. Raises DeadError beyond it."""
        most = self.options.most_bytes
        too_large = f"larger than {most:,} bytes"
        if answer.content_length is not None and answer.content_length > most:
            raise DeadError(too_large)
        content = bytearray()
        async for piece in answer.content.iter_chunked(PIECE):
            content += piece
            if len(content) > most:
                raise DeadError(too_large)
        return bytes(content)


def _host(url: str) -> str:
    """The host and port of an http address; empty for anything else."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    return ""
