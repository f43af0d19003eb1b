"""What tests of features share: a server that misbehaves, and a closed door to the outside."""

from __future__ import annotations

import io
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

LOCAL = ("127.0.0.1", "::1", "localhost")


def closed_door(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No connection leaves this machine, and no name is looked up; returns what was tried."""
    tried: list[str] = []

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOCAL:
                tried.append(address[0])
                raise OSError(101, "the door is closed")
            return real(self, address)

        return connect

    look_up = socket.getaddrinfo

    def local_names(host: Any, *args: Any, **words: Any) -> Any:
        if host not in (*LOCAL, None, b"127.0.0.1"):
            tried.append(str(host))
            raise socket.gaierror(-2, "the door is closed")
        return look_up(host, *args, **words)

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", local_names)
    return tried


def picture(seed: int = 0, size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    """The bytes of a made-up picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


class Quiet(ThreadingHTTPServer):
    """Clients that hang up are no news."""

    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass


class Server:
    """A web server on this machine: /good/N is a picture, the other paths misbehave as they are called."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.open = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                outer.asked[self.path] += 1
                outer.agents.add(self.headers["User-Agent"])
                kind, _, rest = self.path.strip("/").partition("/")
                try:
                    getattr(self, f"do_{kind}", self.do_missing)(rest, outer.asked[self.path])
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def say(
                self, code: int, body: bytes = b"", kind: str = "image/jpeg", **headers: Any
            ) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(headers.pop("length", len(body))))
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), str(value))
                self.end_headers()
                self.wfile.write(body)

            def do_good(self, rest: str, _: int) -> None:
                self.say(200, picture(int(rest)))

            def do_same(self, *_: Any) -> None:
                self.say(200, picture(4))

            def do_png(self, rest: str, _: int) -> None:
                self.say(200, picture(int(rest), kind="PNG"), kind="text/plain")

            def do_missing(self, *_: Any) -> None:
                self.say(404, b"gone", "text/html")

            def do_gone(self, *_: Any) -> None:
                self.say(410)

            def do_forbidden(self, *_: Any) -> None:
                self.say(403)

            def do_shaky(self, rest: str, time: int) -> None:
                self.say(500) if time <= int(rest.partition("/")[0]) else self.say(200, picture(9))

            def do_busy(self, rest: str, time: int) -> None:
                self.say(429, Retry_After=rest) if time == 1 else self.say(200, picture(8))

            def do_slow(self, *_: Any) -> None:
                outer.open.wait(20)
                self.close_connection = True

            def do_drip(self, *_: Any) -> None:
                """Headers, then a byte at a time, for ever."""
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                while not outer.open.wait(0.02):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                self.close_connection = True

            def do_cut(self, *_: Any) -> None:
                """Fewer bytes than were promised."""
                self.say(200, picture(7)[:500], length=5000)
                self.close_connection = True

            def do_halved(self, *_: Any) -> None:
                """A picture without its second half, honestly announced."""
                whole = picture(6)
                self.say(200, whole[: len(whole) // 2])

            def do_page(self, *_: Any) -> None:
                self.say(200, b"<html>sorry</html>")  # it says image/jpeg

            def do_vector(self, *_: Any) -> None:
                self.say(200, b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml")

            def do_empty(self, *_: Any) -> None:
                self.say(200)

            def do_huge(self, *_: Any) -> None:
                self.say(200, b"", length=10**9)
                self.close_connection = True

            def do_endless(self, *_: Any) -> None:
                """A body without a length and without an end."""
                self.send_response(200)
                self.end_headers()
                self.close_connection = True
                while not outer.open.is_set():
                    self.wfile.write(b"x" * 65536)

            def do_bomb(self, *_: Any) -> None:
                file = io.BytesIO()
                Image.new("1", (9000, 9000)).save(file, "PNG")
                self.say(200, file.getvalue(), "image/png")

            def do_pixel(self, *_: Any) -> None:
                self.say(200, picture(0, (1, 1), "PNG"))

            def do_strip(self, *_: Any) -> None:
                self.say(200, picture(0, (2, 900)))

            def do_circle(self, rest: str, _: int) -> None:
                self.say(302, Location=f"/circle/{(int(rest or 0) + 1) % 3}")

            def do_chain(self, rest: str, _: int) -> None:
                left = int(rest)
                self.say(301, Location=f"/chain/{left - 1}") if left else self.say(200, picture(5))

            def do_away(self, rest: str, _: int) -> None:
                self.say(302, Location=f"http://{rest}/x.jpg")

            def do_file(self, *_: Any) -> None:
                self.say(302, Location="file:///etc/passwd")

            def do_closes(self, *_: Any) -> None:
                self.close_connection = True

            def do_garbage(self, *_: Any) -> None:
                self.wfile.write(b"\x00\x01\x02 nonsense\r\n\r\n")
                self.close_connection = True

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.http.server_address[1]}"

    def url(self, path: str) -> str:
        return f"{self.base}/{path}"


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.open.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()
