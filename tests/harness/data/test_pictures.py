"""Fetching pictures from a server that misbehaves; nothing outside this machine is ever asked."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness.data.pictures import (
    Cache,
    Entry,
    FetchOptions,
    NoPictureError,
    Pace,
    check_picture,
    fetch,
    is_public,
    open_picture,
    retry_after,
)
from harness.errors import InputError
from tests.harness.data.picture_world import Server, closed_door, picture, serving

FAST = FetchOptions(rate=1e9, timeout=5.0, most_bytes=200_000, tries=3, backoff=0.001, private=True)


@pytest.fixture(scope="module")
def web() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def door(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return closed_door(monkeypatch)


@pytest.fixture
def server(web: Server) -> Server:
    web.asked.clear()
    return web


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "pictures")


def get(
    server: Server, cache: Cache, path: str, options: FetchOptions = FAST, **words: Any
) -> Entry:
    url = path if "://" in path else server.url(path)
    return fetch([url], cache, options, **words)[url]


def test_a_picture_is_kept_whole_and_never_asked_for_again(server: Server, cache: Cache) -> None:
    urls = [server.url(f"good/{number}") for number in range(30)]
    found = fetch([*urls, urls[0]], cache, FAST)
    assert {entry.status for entry in found.values()} == {"ok"}
    assert [cache.path(url).read_bytes() for url in urls] == [picture(n) for n in range(30)]
    again = fetch(urls, cache, FAST)
    assert again == found
    assert set(server.asked.values()) == {1}


def test_what_the_bytes_are_counts_and_not_what_the_server_calls_them(
    server: Server, cache: Cache
) -> None:
    assert get(server, cache, "png/1").status == "ok"
    assert get(server, cache, "page").reason == "not a picture"


@pytest.mark.parametrize(("path", "reason"), [
    ("missing", "HTTP 404"),
    ("gone", "HTTP 410"),
    ("forbidden", "HTTP 403"),
    ("page", "not a picture"),
    ("vector", "not a picture"),
    ("empty", "not a picture"),
    ("huge", "larger than 200,000 bytes"),
    ("endless", "larger than 200,000 bytes"),
    ("bomb", "9000 x 9000 pixels are too many"),
    ("pixel", "one pixel is no picture"),
    ("strip", "2 x 900 pixels are too long a strip"),
    ("circle/0", "redirects in a circle"),
    ("chain/9", "more than 5 redirects"),
    ("file", "redirects to no http address"),
    ("ftp://127.0.0.1/a.jpg", "no http address"),
    ("generated://3", "no http address"),
    ("http://", "no http address"),
    ("http://[half/a.jpg", "no http address"),
])  # fmt: skip
def test_what_is_dead_is_asked_for_once(
    server: Server, cache: Cache, path: str, reason: str
) -> None:
    entry = get(server, cache, path)
    assert (entry.status, entry.reason, entry.tries) == ("dead", reason, 1)
    asked = sum(server.asked.values())
    assert get(server, cache, path) == entry
    assert sum(server.asked.values()) == asked
    assert not cache.path(entry.url).exists()


def test_a_dead_link_is_asked_for_again_on_request(server: Server, cache: Cache) -> None:
    get(server, cache, "missing")
    again = get(server, cache, "missing", FetchOptions(**{**vars(FAST), "retry_dead": True}))
    assert (again.status, again.tries) == ("dead", 2)
    assert server.asked["/missing"] == 2


@pytest.mark.parametrize(("path", "reason"), [
    ("shaky/99", "HTTP 500"),
    ("cut", "the answer ended early"),
    ("closes", "the connection was closed"),
    ("garbage", "no sense in the answer"),
])  # fmt: skip
def test_what_may_pass_is_tried_again_and_again_next_time(
    server: Server, cache: Cache, path: str, reason: str
) -> None:
    entry = get(server, cache, path)
    assert (entry.status, entry.tries) == ("failed", 3)
    assert entry.reason.startswith(reason)
    assert get(server, cache, path).tries == 6
    assert server.asked[f"/{path}"] == 6


def test_a_server_that_recovers_gives_its_picture(server: Server, cache: Cache) -> None:
    entry = get(server, cache, "shaky/2")
    assert (entry.status, entry.tries) == ("ok", 3)


def test_half_a_picture_is_asked_for_again_and_then_dead(server: Server, cache: Cache) -> None:
    entry = get(server, cache, "halved")
    assert (entry.status, entry.reason, entry.tries) == ("dead", "damaged picture", 3)


@pytest.mark.parametrize("path", ["slow", "drip"])
def test_the_time_limit_is_of_the_whole_request(server: Server, cache: Cache, path: str) -> None:
    entry = get(server, cache, path, FetchOptions(**{**vars(FAST), "timeout": 0.2, "tries": 1}))
    assert (entry.status, entry.reason) == ("failed", "no answer in 0.2 s")


def test_a_host_that_asks_to_wait_is_left_alone(server: Server, cache: Cache) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    assert get(server, cache, "busy/50", sleep=sleep).status == "ok"
    assert max(waits) == pytest.approx(50, abs=1)
    entry = get(server, cache, "busy/3600", sleep=sleep)
    assert (entry.status, entry.reason) == ("failed", "its host asks to wait 3600 s")
    assert server.asked["/busy/3600"] == 1


def test_a_host_that_never_answers_is_given_up(
    server: Server, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [f"http://nowhere.example/{number}" for number in range(50)]
    options = FetchOptions(**{**vars(FAST), "patience": 6})
    found = fetch([*urls, server.url("good/1")], cache, options)
    assert found[server.url("good/1")].status == "ok"
    tries = sum(found[url].tries for url in urls)
    assert 6 <= tries <= 10  # 4 may be under way when it is given up
    reasons = {found[url].reason for url in urls}
    assert "its host gave no answer 6 times in a row" in reasons
    assert {found[url].status for url in urls} == {"failed"}


def test_a_host_that_answers_with_errors_alone_is_given_up_later(
    server: Server, cache: Cache
) -> None:
    urls = [server.url(f"shaky/99/{number}") for number in range(60)]
    options = FetchOptions(**{**vars(FAST), "patience": 4, "tries": 1})
    found = fetch(urls, cache, options)
    assert 20 <= server.asked.total() <= 24
    assert "its host failed 20 times in a row (HTTP 500)" in {one.reason for one in found.values()}


def test_redirects_are_followed_with_the_pace_of_where_they_lead(
    server: Server, cache: Cache
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    entry = get(server, cache, "chain/4", FetchOptions(**{**vars(FAST), "rate": 2.0}), sleep=sleep)
    assert entry.status == "ok"
    assert [round(wait) for wait in waits] == [0, 1, 2, 2] or sum(waits) == pytest.approx(
        5, abs=0.5
    )


@pytest.mark.parametrize("address", [
    "127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1%eth0",
])  # fmt: skip
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)
    assert is_public("8.8.8.8")


def test_private_addresses_are_refused_however_they_are_reached(
    server: Server, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut = FetchOptions(**{**vars(FAST), "private": False})
    entry = get(server, cache, "good/1", shut)
    assert (entry.status, entry.reason) == ("dead", "127.0.0.1 is no public address")
    port = server.base.rpartition(":")[2]
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda _, *rest, **words: real("127.0.0.1", *rest, **words)
    )
    entry = get(server, cache, f"http://innocent.example:{port}/good/2", shut)
    assert (entry.status, entry.reason) == ("dead", "127.0.0.1 is no public address")
    assert not server.asked


def test_nothing_leaves_this_machine_even_by_redirect(
    server: Server, cache: Cache, door: list[str]
) -> None:
    assert get(server, cache, "away/192.0.2.7").status == "failed"
    assert set(door) == {"192.0.2.7"}  # tried, and stopped at the door: the door works


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_stopped_in_the_middle_it_goes_on(server: Server, cache: Cache) -> None:
    urls = [server.url(f"good/{number}") for number in range(40)]
    seen = []

    def stop(entry: Entry) -> None:
        seen.append(entry.url)
        if len(seen) == 10:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C

    with pytest.raises(KeyboardInterrupt):
        fetch(urls, cache, FAST, done=stop)
    kept = [url for url in urls if cache.path(url).is_file()]
    assert 10 <= len(kept) < 40
    assert all(cache.path(url).read_bytes() == picture(urls.index(url)) for url in kept)
    assert not list(cache.folder.glob("*/.*"))
    found = fetch(urls, cache, FAST)
    assert {entry.status for entry in found.values()} == {"ok"}
    assert all(server.asked[url.removeprefix(server.base)] == 1 for url in kept)


def test_a_torn_ledger_line_and_a_lost_file_are_no_trouble(server: Server, cache: Cache) -> None:
    for path in ("good/1", "missing"):
        get(server, cache, path)
    ledgers = sorted((cache.folder / "ledger").iterdir())
    assert len(ledgers) == 2
    ledgers[-1].write_text(ledgers[-1].read_text() + '{"url": "http://x')
    assert get(server, cache, "missing").status == "dead"
    cache.path(server.url("good/1")).unlink()
    assert get(server, cache, "good/1").status == "ok"
    assert server.asked["/good/1"] == 2


def test_pictures_put_there_by_hand_count(server: Server, cache: Cache) -> None:
    url = server.url("good/3")
    cache.path(url).parent.mkdir(parents=True)
    cache.path(url).write_bytes(picture(3))
    assert get(server, cache, "good/3").status == "ok"
    assert not server.asked


def test_a_folder_that_cannot_be_written_is_said_in_one_line(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"cannot write pictures in .*choose another folder with --pictures"
    ):
        get(server, Cache(tmp_path / "file"), "good/1")


def test_a_full_disk_while_fetching_is_said_in_one_line(
    server: Server, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.data.pictures.os.fdopen", full)
    with pytest.raises(InputError, match="No space left on device"):
        get(server, cache, "good/1")


def test_it_says_who_asks(server: Server, cache: Cache) -> None:
    server.agents.clear()
    get(server, cache, "good/1", FetchOptions(**{**vars(FAST), "contact": "a@b.example"}))
    (agent,) = server.agents
    assert agent.startswith("m3bsr-bench/")
    assert agent.endswith("a@b.example")


def test_the_pace_spaces_requests_and_rests() -> None:
    pace = Pace(4.0)
    assert [pace.wait(10.0) for _ in range(4)] == [0.0, 0.25, 0.5, 0.75]
    assert pace.wait(20.0) == 0.0
    pace.rest(25.0)
    assert pace.wait(21.0) == 4.0
    pace.rest(0.0)
    assert pace.wait(21.0) == 4.25


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("120", 0.0) == 120.0
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 10.0) == 50.0
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 100.0) == 0.0
    assert retry_after("soon", 0.0) is None
    assert retry_after(None, 0.0) is None


def test_every_cut_of_a_picture_is_found_out() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        whole = picture(1, (64, 64), kind)
        check_picture(whole, 10**6)
        for share in (0.0, 0.1, 0.5, 0.8):
            with pytest.raises(NoPictureError):
                check_picture(whole[: int(len(whole) * share)], 10**6)


def test_other_modes_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "1", "LA"):
        kind = "JPEG" if mode == "CMYK" else "PNG"
        Image.new(mode, (5, 4)).save(tmp_path / "x", kind)
        assert open_picture(tmp_path / "x").mode == "RGB"
