"""The end of a server over real sockets: what runs may finish, what idles ends at once, nothing is accepted."""

from __future__ import annotations

import http.client
import json
import socket
import threading

import pytest

from tests.api.conftest import PATIENCE, Api
from tests.fakes import BOS, FakeBackend, letters, said_by
from tests.support import wait_until


def said(prompt: str, n: int) -> str:
    return bytes(said_by(letters, [BOS, *prompt.encode()], n)).decode()


def stopping(api: Api, grace_s: float) -> threading.Thread:
    """Stop the edge and then the engine, as the product does on a signal, from another thread."""

    def stop() -> None:
        api.server.stop(grace_s)
        api.client.close()

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    wait_until(lambda: api.server._server.is_stopping, "the server to begin to stop", PATIENCE, every=0.002)
    return thread


def text_of(sock: socket.socket) -> str:
    """The text of a streamed answer on a raw connection, to its end."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    events = [json.loads(line[6:]) for line in response.read().split(b"\n") if line.startswith(b"data: ")]
    assert events[-1]["stop"] is True, "the stream was cut off"
    return "".join(event["content"] for event in events)


@pytest.fixture
def api(make_api) -> Api:
    return make_api(FakeBackend(n_ctx=1024)).start()


def test_a_running_stream_comes_to_its_end(api):
    api.backend.hold()
    client = api.begin({"prompt": "running", "n_predict": 30, "stream": True})
    api.wait_for_decode()
    thread = stopping(api, PATIENCE)
    api.backend.go()
    assert text_of(client) == said("running", 30)
    thread.join(PATIENCE)
    assert not thread.is_alive() and api.client.state == "closed"
    client.close()


def test_requests_that_still_wait_are_served_within_the_time(api):
    api.backend.hold()
    clients = [api.begin({"prompt": f"client {i}", "n_predict": 9, "stream": True}) for i in range(4)]
    api.wait_for_decode()
    wait_until(lambda: api.n_requests == 4, "all requests to be known", PATIENCE)
    thread = stopping(api, PATIENCE)
    api.backend.go()
    assert [text_of(client) for client in clients] == [said(f"client {i}", 9) for i in range(4)]
    thread.join(PATIENCE)
    assert not thread.is_alive()
    for client in clients:
        client.close()


def test_at_the_deadline_running_requests_are_cut_off(make_api):
    api = make_api(FakeBackend(n_ctx=64), shift_context=True).start()
    client = api.begin({"prompt": "endless", "stream": True})
    api.wait_for(n_processing=1)
    thread = stopping(api, 0.0)
    thread.join(PATIENCE)
    assert not thread.is_alive() and api.client.state == "closed"
    client.settimeout(PATIENCE)
    try:
        while client.recv(65536):
            pass
    except ConnectionError:
        pass
    client.close()


def test_nothing_is_accepted_any_more(api):
    api.backend.hold()
    client = api.begin({"prompt": "running", "n_predict": 3, "stream": True})
    api.wait_for_decode()
    thread = stopping(api, PATIENCE)

    def is_refused() -> bool:
        try:
            api.connect().close()
        except ConnectionError:
            return True
        return False

    wait_until(is_refused, "new connections to be refused", PATIENCE)
    api.backend.go()
    assert text_of(client) == said("running", 3)
    thread.join(PATIENCE)
    client.close()


def test_idle_connections_end_at_once(api):
    connection = http.client.HTTPConnection("127.0.0.1", api.server.port, timeout=PATIENCE)
    connection.request("GET", "/health")
    assert connection.getresponse().read()
    silent = api.connect()
    wait_until(lambda: api.server.n_connections == 2, "both connections", PATIENCE)
    assert api.server.stop(PATIENCE) == 0, "nothing had to be cut by force"
    for sock in (connection.sock, silent):
        assert sock.recv(1) == b""
    connection.close()
    silent.close()


def test_stopping_twice_is_harmless(api):
    assert api.complete("x", 2)["content"] == said("x", 2)
    for _ in range(2):
        api.server.stop(0.0)
        api.client.close()


def test_stopping_while_the_model_loads(make_api):
    loading, go_on = threading.Event(), threading.Event()
    backend = FakeBackend()

    def open_backend(config, on_progress):
        loading.set()
        assert go_on.wait(PATIENCE)
        if not on_progress(0.5):
            raise RuntimeError("interrupted")
        return backend

    api = make_api(backend, open_backend=open_backend).start(is_ready=False)
    assert loading.wait(PATIENCE)
    thread = stopping(api, 0.0)
    wait_until(lambda: api.transport._is_closing, "the engine to be told", PATIENCE)
    go_on.set()
    thread.join(PATIENCE)
    assert not thread.is_alive() and api.client.state in ("error", "closed")
