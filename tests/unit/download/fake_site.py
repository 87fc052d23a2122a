"""A web server for download tests that misbehaves on request: cuts connections, lies, redirects, changes files.

Runs on threads of the test process, on 127.0.0.1. `Thing` is the content at a path; `Site.seen` has the client's real
requests. Way not taken: a mock in place of urllib, which would accept any request.
"""

from __future__ import annotations

import hashlib
import io
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from server.download import DownloadError, Progress, fetch_model


@dataclass
class Thing:
    """What is served at a path.

    `cuts`: after how many body bytes each of the first answers ends (None: whole). `length`: "true",
    "chunked", "none", or the text of a Content-Length. `statuses`: refusals to give first, (status, headers).
    `on_request(thing)` runs before each answer and may change everything.
    """

    data: bytes = b""
    etag: str | None = "auto"
    has_ranges: bool = True
    heeds_if_range: bool = True
    shift: int = 0  # partial answers begin so many bytes too late
    length: str = "true"
    headers: dict[str, str] = field(default_factory=dict)
    partial_headers: dict[str, str | None] = field(default_factory=dict)
    cuts: list[int | None] = field(default_factory=list)
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    status: int = 200
    on_request: Callable[[Thing], None] | None = None

    @property
    def tag(self) -> str | None:
        return f'"{hashlib.md5(self.data).hexdigest()}"' if self.etag == "auto" else self.etag


@dataclass
class Seen:
    """One request as it came, and how many bytes of a body went back."""

    path: str
    headers: dict[str, str]
    n_sent: int = 0


class Site:
    """Things by path. `url` has no slash at the end; `seen` is in order of arrival."""

    def __init__(self, certificate: str | None = None) -> None:
        self.things: dict[str, Thing] = {}
        self.seen: list[Seen] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site._answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def put(self, path: str, data: bytes = b"", **rest: object) -> str:
        """Its URL."""
        self.things[path] = Thing(data, **rest)
        return self.url + path

    def redirect(self, path: str, to: str, status: int = 302, **headers: str) -> str:
        """A thing that leads elsewhere; headers with underscores for dashes."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.put(path, status=status, headers={"Location": to, **named})

    def requests(self, path: str) -> list[dict[str, str]]:
        """The headers of all requests for `path`."""
        return [seen.headers for seen in self.seen if seen.path == path]

    @property
    def n_sent(self) -> int:
        return sum(seen.n_sent for seen in self.seen)

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        seen = Seen(handler.path, {name.lower(): value for name, value in handler.headers.items()})
        self.seen.append(seen)
        thing = self.things.get(handler.path) or self.things.get(handler.path.partition("?")[0])
        if thing and thing.on_request:
            thing.on_request(thing)
        if thing is None or thing.statuses:
            status, headers = thing.statuses.pop(0) if thing else (404, {})
            self._send(handler, seen, status, {"Content-Length": "4", **headers}, b"nope", None)
            return
        status, body, headers = thing.status, thing.data, dict(thing.headers)
        if thing.tag:
            headers.setdefault("ETag", thing.tag)
        if thing.has_ranges and "range" in seen.headers and status == 200:
            status, body, headers = partial(thing, seen.headers, headers)
        framings = {"chunked": {"Transfer-Encoding": "chunked"}, "none": {}, "true": {"Content-Length": str(len(body))}}
        headers |= framings.get(thing.length, {"Content-Length": thing.length})
        if thing.length == "chunked":
            half = len(body) // 2
            pieces = [piece for piece in (body[:half], body[half:]) if piece]
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        self._send(handler, seen, status, headers, body, thing.cuts.pop(0) if thing.cuts else None)

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        seen: Seen,
        status: int,
        headers: dict[str, str | None],
        body: bytes,
        cut: int | None,
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            if value is not None:
                handler.send_header(name, value)
        try:
            handler.end_headers()
            handler.wfile.write(body if cut is None else body[:cut])
            seen.n_sent = len(body if cut is None else body[:cut])
            handler.wfile.flush()
            if cut is not None:
                handler.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the client has seen enough


def partial(thing: Thing, request: dict[str, str], headers: dict[str, str]) -> tuple[int, bytes, dict[str, str | None]]:
    """Status, body and headers of the answer to a Range."""
    names = (thing.tag, headers.get("Last-Modified"))
    if thing.heeds_if_range and request.get("if-range", thing.tag) not in names:
        return 200, thing.data, headers
    start, size = int(request["range"].removeprefix("bytes=").removesuffix("-")), len(thing.data)
    if start >= size:
        return 416, b"", {**headers, "Content-Range": f"bytes */{size}", **thing.partial_headers}
    start += thing.shift
    told = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
    return 206, thing.data[start:], {**headers, **told, **thing.partial_headers}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own proxy would not find the test's server."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("no_proxy", "*")


def _site() -> Iterator[Site]:
    """A server with nothing on it yet."""
    one = Site()
    yield one
    one.stop()


site, other = pytest.fixture(_site, name="site"), pytest.fixture(_site, name="other")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A cache in a folder of the test's own."""
    return World(tmp_path)


class World:
    """A cache of its own, and what the user was told."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.environ = {"MODEL_ENDPOINT": "http://127.0.0.1:1"}  # never the real hub
        self.waits: list[float] = []
        self.said: list[str] = []
        self.progress: Progress | None = None
        self.on_say: Callable[[str], None] | None = None

    def say(self, line: str) -> None:
        self.said.append(line)
        if self.on_say:
            self.on_say(line)

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        time.sleep(min(seconds, 0.001))  # lets other threads run while one polls a lock

    def fetch(self, url: str | None = None, **options: object) -> Path:
        options = {
            "environ": self.environ,
            "cache": self.cache,
            "sleep": self.sleep,
            "progress": self.progress or Progress(io.StringIO(), self.say),
        } | options
        return fetch_model(url, **options)

    def refusal(self, url: str | None = None, **options: object) -> str:
        """The one line."""
        with pytest.raises(DownloadError) as caught:
            self.fetch(url, **options)
        message = str(caught.value)
        assert "\n" not in message and len(message) < 600
        return message

    def files(self) -> set[str]:
        return {path.name for path in self.cache.rglob("*") if path.is_file()}
