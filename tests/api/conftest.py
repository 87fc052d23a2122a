"""Fixtures for the whole server without a model: real sockets, the real engine loop, the fake backend.

Runs in the test process. Tests of a file that leave nothing behind share the server `api`. `make_api` starts a server
with the test's own options and backend. When a server ends, it must have freed all samplers, threads and connections.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest.mock import patch

import pytest

from server.app import SWITCH_INTERVAL_S
from server.engine.client.engine_client import EngineClient, Transport
from server.engine.entry.thread import ThreadTransport
from server.engine.seam.config import EngineConfig
from server.options.groups import group
from server.options.parser import parse
from server.service.edge import KeyFiles
from server.serving import make_context, make_server
from server.web import httpd
from tests.fake_media import seeing
from tests.fakes import FakeBackend, FakeVocab
from tests.support import wait_until

PATIENCE = 30.0  # seconds; only a hang gets that far
POLL_S = 0.01  # of the accept loop: a server of the tests ends at once


@dataclass(slots=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        """The body as JSON; the type must say so."""
        assert self.headers["content-type"].startswith("application/json"), self
        return json.loads(self.body)

    @property
    def error(self) -> dict:
        """The error object, in the shape that errors have on this route."""
        body = self.json()
        if isinstance(body["error"], str):  # Ollama's
            body["error"] = {"message": body["error"], "type": "", "code": self.status}
        error = {"code": self.status, **body["error"]} if body.get("type") == "error" else body["error"]  # Anthropic's
        assert error["code"] == self.status and isinstance(error["message"], str) and isinstance(error["type"], str)
        assert "\n" not in error["message"]
        return error

    def events(self) -> list[dict]:
        """The `data:` objects of a stream, each framed as the documents say."""
        assert self.headers["content-type"].startswith("text/event-stream"), self
        assert self.body.endswith(b"\n\n")
        found = []
        for block in self.body.decode().removesuffix("\n\n").split("\n\n"):
            for line in block.split("\n"):
                name, colon, value = line.partition(": ")
                assert colon and name in ("data", "error"), line
                if name == "data":
                    found.append(json.loads(value))
        return found


class Api:
    """A running server. `argv` are its options, `engine` fields of its EngineConfig."""

    def __init__(
        self,
        backend: FakeBackend | None = None,
        argv: tuple[str, ...] = (),
        open_backend: Callable[..., FakeBackend] | None = None,
        vocab: FakeVocab | None = None,
        transport: Transport | None = None,
        **engine: object,
    ) -> None:
        self.backend = backend or FakeBackend()
        self.options = group(parse(["-m", "fake.gguf", "--port", "0", *argv], {}))
        config = EngineConfig("fake.gguf", "", **{"n_slots": self.backend.info.n_slots, **engine})
        self.threads_before = set(threading.enumerate())
        self.transport = transport or ThreadTransport(
            config, open_backend or (lambda config, on_progress: self.backend)
        )
        self.client = EngineClient(self.transport, lambda: vocab or FakeVocab())
        self.keys = KeyFiles(self.options.http)
        self.context = make_context(self.options, self.client, "fake.gguf", threading.Event(), self.keys)
        self.server = make_server(self.options.http, self.context, self.keys)

    def start(self, is_ready: bool = True) -> Api:
        """Listen and load."""
        with patch.object(httpd, "POLL_S", POLL_S):
            self.server.start()
        self.client.start()
        if is_ready:
            assert self.client.wait_until_loaded(PATIENCE) and self.client.state == "ok", self.client.error
        if self.context.batches is not None:
            self.context.batches.wake()
        return self

    def stop(self, grace_s: float = 0.0) -> None:
        """End it in the order of the product, and see that samplers and connections are given back."""
        self.backend.go()
        if self.context.batches is not None:
            self.context.batches.close()
        self.server.stop(grace_s, self.client.close)
        self.client.close()
        assert self.backend.n_samplers == 0, "samplers were not freed"
        assert self.server.n_connections == 0

    def wait_for_threads(self) -> None:
        """Wait until no thread is left that came after this server was made."""
        wait_until(lambda: not self.own_threads(), f"the end of {self.own_threads()}", PATIENCE)

    def own_threads(self) -> list[str]:
        """Names of the threads that came with this server."""
        return [thread.name for thread in threading.enumerate() if thread not in self.threads_before]

    def is_idle(self) -> bool:
        """Whether no slot works, nothing waits and no sampler is left."""
        snapshot = self.client.snapshot
        return snapshot.n_processing == 0 and snapshot.n_deferred == 0 and self.backend.n_samplers == 0

    def settle(self) -> None:
        """Wait until no client is left and the engine has taken all that it was told; the snapshot is then true."""
        self.get("/health")  # connections are accepted in order: the others' have been, too
        wait_until(lambda: self.server.n_connections == 0, "all connections to end", PATIENCE, every=0.002)
        self.client.run_command("get_lora")  # answered in the frame that tells of everything before it

    def wait_for(self, n_processing: int | None = None, n_deferred: int | None = None) -> None:
        """Wait until so many slots work and so many tasks wait; None is any number."""

        def reached() -> bool:
            snapshot = self.client.snapshot
            return (n_processing in (None, snapshot.n_processing)) and (n_deferred in (None, snapshot.n_deferred))

        wait_until(reached, f"{n_processing} tasks at work and {n_deferred} waiting", PATIENCE, every=0.002)

    @property
    def n_requests(self) -> int:
        """Requests that the engine has not answered to the end."""
        return len(self.client._results)

    @property
    def n_messages(self) -> int:
        """Messages that the engine has not taken yet."""
        return self.transport._scheduler._inbox.qsize()

    def wait_for_decode(self) -> None:
        """Wait until a held decode has begun."""
        assert self.backend.decoding.acquire(timeout=PATIENCE), "no decode began"

    # ---- clients ------------------------------------------------------------------------------------------------

    def send(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own. `body` is sent as it is if it's bytes, else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        """GET."""
        return self.send("GET", path)

    def post(self, path: str, body: object) -> Answer:
        """POST."""
        return self.send("POST", path, body)

    def complete(self, prompt: object, n_predict: int = 8, **fields: object) -> dict:
        """A plain completion that must succeed."""
        answer = self.post("/completion", {"prompt": prompt, "n_predict": n_predict, **fields})
        assert answer.status == 200, answer
        return answer.json()

    def stream(self, prompt: object, n_predict: int = 8, **fields: object) -> list[dict]:
        """The events of a streamed completion that must begin well."""
        answer = self.post("/completion", {"prompt": prompt, "n_predict": n_predict, "stream": True, **fields})
        assert answer.status == 200, answer
        return answer.events()

    def refuse(self, **body: object) -> dict:
        """The error object of a completion that must be refused with 400."""
        n_started = len(self.backend.samplers)
        answer = self.post("/completion", {"prompt": "x", "n_predict": 1, **body})
        assert answer.status == 400, answer
        assert len(self.backend.samplers) == n_started, "the engine was bothered with it"
        return answer.error

    def connect(self) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(("127.0.0.1", self.server.port), PATIENCE)

    def begin(self, body: dict, n_body: int | None = None, path: str = "/completion") -> socket.socket:
        """A connection that has sent a completion request (or only its head and the first `n_body` bytes)."""
        data = json.dumps(body).encode()
        sock = self.connect()
        sock.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(data))
            + data[:n_body]
        )
        return sock

    def at_the_same_time(self, *asks: Callable[[], object]) -> list[object]:
        """What the calls return, each made by a thread of its own; the first error is raised."""
        results: list[object] = [None] * len(asks)

        def run(i: int) -> None:
            try:
                results[i] = asks[i]()
            except BaseException as error:
                results[i] = error

        threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(asks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a client got no answer"
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results


@pytest.fixture(autouse=True, scope="package")
def switch_interval() -> Iterator[None]:
    """As short as the product sets it: an engine that never rests shares one interpreter with all clients here."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    """One server with two slots for a whole file."""
    one = Api(FakeBackend(n_ctx=8192, n_slots=2)).start()
    yield one
    one.stop()
    one.wait_for_threads()


@pytest.fixture(scope="module")
def eyes() -> Iterator[Api]:
    """One server with eyes and ears for a whole file."""
    one = Api(seeing()).start()
    yield one
    one.stop()
    assert one.backend.media.n_open == 0
    one.wait_for_threads()


@pytest.fixture
def make_api() -> Iterator[Callable[..., Api]]:
    """`make_api(backend, argv, ...)` makes a server; the test starts it and its end stops it."""
    made: list[Api] = []

    def make(*args: object, **options: object) -> Api:
        made.append(Api(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()
    if made:
        made[0].wait_for_threads()
