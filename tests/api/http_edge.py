"""Helpers for tests of the HTTP edge: a raw client, handlers that a test controls, a server on its own port.

Runs in the test process. Way not taken: `requests` or `http.client`, which can't send requests that the edge must
refuse.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.errors import ApiError
from server.web import sse
from server.web.httpd import HttpServer
from server.web.limits import Limits
from server.web.message import EventStream, Request, Response, make_json_response
from server.web.router import Route, Router

PATIENCE = 60.0
TLS_FILE = Path(__file__).with_name("localhost_tls.pem")
HOST = b"Host: localhost\r\n"


class Client:
    """A raw connection; `read` parses one answer and leaves what follows."""

    def __init__(self, server: HttpServer, tls: bool = False) -> None:
        self.sock = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.sock = context.wrap_socket(self.sock)
        self.file = self.sock.makefile("rb")

    def send(self, data: bytes) -> Client:
        self.sock.sendall(data)
        return self

    def get(self, path: str, method: str = "GET", fields: bytes = b"", body: bytes = b"") -> Answer:
        self.send(
            f"{method} {path} HTTP/1.1\r\n".encode()
            + HOST
            + fields
            + (b"Content-Length: %d\r\n" % len(body) if body else b"")
            + b"\r\n"
            + body
        )
        return self.read(method)

    def read(self, method: str = "GET") -> Answer:
        return Answer(self.file, method)

    def is_closed(self) -> bool:
        """Waits until the server closes; True unless it sends more instead."""
        try:
            return self.file.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


class Answer:
    """Status, headers by lower-case name, body, and whether a stream came to its proper end."""

    def __init__(self, file, method: str) -> None:
        self.version, status, _ = file.readline().decode("latin-1").split(" ", 2)
        self.status = int(status)
        self.headers = {}
        while line := file.readline().decode("latin-1").strip():
            name, _, value = line.partition(": ")
            assert name.lower() not in self.headers, f"{name} twice"
            self.headers[name.lower()] = value
        self.is_whole = True
        self.body = b""
        if method == "HEAD" or self.status in (100, 204, 304):
            return
        if self.headers.get("transfer-encoding") == "chunked":
            self.body = b"".join(self._chunks(file))
        elif "content-length" in self.headers:
            self.body = file.read(int(self.headers["content-length"]))
        else:
            self.body = file.read()

    def _chunks(self, file) -> Iterator[bytes]:
        while (size := file.readline()) and int(size, 16):
            yield file.read(int(size, 16))
            file.readline()
        self.is_whole = bool(size) and file.readline() == b"\r\n"

    def json(self):
        return json.loads(self.body)

    def error(self) -> dict:
        """The error object, after checking that it has the documented shape."""
        assert self.headers["content-type"] == "application/json; charset=utf-8"
        error = self.json()["error"]
        assert error["code"] == self.status and error["message"] and error["type"]
        assert "\n" not in error["message"]
        return error


class Chunks:
    """An iterator that, unlike a generator, is not closed by being forgotten."""

    def __init__(self, site: Site, chunks: list) -> None:
        self.site, self.chunks = site, iter(chunks)

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> bytes:
        chunk = next(self.chunks)
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def close(self) -> None:
        self.site.closed.release()


class Site:
    """Handlers that let a test see and steer what happens inside."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self.gone = threading.Semaphore(0)
        self.closed = threading.Semaphore(0)
        self.kept_bodies: list[bytes] = []
        self.access: list = []

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/hello", self.hello, public=True),
            Route("POST", "/echo", self.echo),
            Route("POST", "/bare", self.echo, body_optional=True),
            Route("GET", "/echo", self.echo),
            Route("GET", "/wait", self.wait),
            Route("GET", "/hold", self.hold),
            Route("POST", "/hold", self.hold),
            Route("GET", "/stream", self.stream),
            Route("GET", "/endless", self.endless),
            Route("GET", "/boom", lambda request: 1 / 0),
            Route("GET", "/file", lambda request: open("/no/such")),
            Route("GET", "/odd", lambda request: "text"),
            Route("GET", "/late", self.fails_late),
            Route("GET", "/slow", self.slow_start),
            Route("GET", "/early", self.fails_early),
            Route("GET", "/big", self.big),
            Route("POST", "/shaped", lambda request: 1 / 0, error_shape=lambda error: {"own": error.status}),
            Route("GET", "/items/{name}", lambda request: make_json_response(request.params)),
        ]

    def hello(self, request: Request) -> Response:
        return make_json_response({"hello": request.query.get("name", ""), "id": request.id})

    def echo(self, request: Request) -> Response:
        self.kept_bodies.append(request.body)
        return make_json_response({"n": len(request.body), "start": request.body[:20].decode("latin-1")})

    def wait(self, request: Request) -> Response:
        """Until the test says so."""
        self.entered.release()
        self.may_go_on.wait(PATIENCE)
        return make_json_response({})

    def hold(self, request: Request) -> Response:
        """Until the client is gone."""
        gone = threading.Event()
        with request.on_disconnect(gone.set):
            self.entered.release()
            if gone.wait(PATIENCE):
                self.gone.release()
        return make_json_response({})

    def stream(self, request: Request) -> EventStream:
        return EventStream(
            Chunks(self, [sse.encode_event({"n": 1}), b"", sse.comment("ping"), sse.encode_event({"n": 2}), sse.DONE])
        )

    def slow_start(self, request: Request) -> EventStream:
        """The head at once, the first event when the test says so."""

        def chunks():
            yield b""
            self.may_go_on.wait(PATIENCE)
            yield sse.encode_event({"n": 1})

        return EventStream(chunks())

    def endless(self, request: Request) -> EventStream:
        def chunks():
            try:
                self.entered.release()
                while not self.may_go_on.is_set():
                    yield sse.comment("x" * 20_000)
            finally:
                self.closed.release()

        return EventStream(chunks())

    def fails_late(self, request: Request) -> EventStream:
        def chunks():
            try:
                yield sse.encode_event({"n": 1})
                raise KeyError("late")
            finally:
                self.closed.release()

        return EventStream(chunks())

    def fails_early(self, request: Request) -> EventStream:
        return EventStream(Chunks(self, [ApiError(429, "not now", headers={"Retry-After": "3"})]))

    def big(self, request: Request) -> Response:
        return Response(200, b"x" * 50_000_000, {"Content-Type": "text/plain; charset=utf-8"})


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def start(site: Site) -> Iterator[Callable[..., HttpServer]]:
    """`start(n_connections=3, auth=...)` starts a server: fields of Limits, and arguments of HttpServer."""
    servers = []

    def start_server(host: str = "127.0.0.1", **options: object) -> HttpServer:
        limits = {name: options.pop(name) for name in list(options) if name in Limits.__dataclass_fields__}
        server = HttpServer(
            host, 0, Router(site.routes()), limits=Limits(**limits), access_log=site.access.append, **options
        )
        servers.append(server)
        server.start()
        return server

    yield start_server
    site.may_go_on.set()
    for server in servers:
        server.stop(0)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("http-")] == []


@pytest.fixture
def server(start) -> HttpServer:
    return start()


@pytest.fixture
def client(server: HttpServer) -> Iterator[Client]:
    client = Client(server)
    yield client
    client.close()


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return b"POST /echo HTTP/1.1\r\n" + HOST + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def tls_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS_FILE)
    return context
