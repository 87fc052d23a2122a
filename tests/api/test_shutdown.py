"""Shutdown over real sockets: running requests may finish, idle connections end at once, nothing new is accepted."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from unittest.mock import patch

import pytest

from server.web import httpd
from server.web.http1.wire import Wire
from tests.api.conftest import PATIENCE, Api
from tests.fakes import BOS, FakeBackend, FakeVocab, letters, said_by
from tests.support import wait_until


def said(prompt: str, n: int) -> str:
    return bytes(said_by(letters, [BOS, *prompt.encode()], n)).decode()


def stopping(api: Api, grace_s: float) -> threading.Thread:
    """Stop the edge and then the engine, as the product does on a signal, from another thread."""

    def stop() -> None:
        api.server.stop(grace_s, api.client.close)
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


def whole(sock: socket.socket) -> bytes:
    """The body of a whole answer on a raw connection; one that is cut off fails the test."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    return b"%d " % response.status + response.read()


STREAMS = {
    "/completion": {"prompt": "endless"},
    "/v1/completions": {"prompt": "endless", "max_tokens": -1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "endless"}]},
    "/infill": {"input_prefix": "endless", "input_suffix": "x"},
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", STREAMS)
def test_at_the_deadline_running_requests_get_the_text_so_far_with_its_end(make_api, path, stream):
    api = make_api(FakeBackend(n_ctx=512), vocab=FakeVocab({"pre": 1, "suf": 2, "mid": 3}), shift_context=True).start()
    client = api.begin({**STREAMS[path], "n_predict": -1, "stream": stream}, path=path)
    wait_until(lambda: api.backend.samplers and len(api.backend.samplers[0].accepted) > 20, "some text", PATIENCE)
    stopping(api, 0.0).join(PATIENCE)
    assert api.client.state == "closed"
    answer = whole(client)
    assert answer.startswith(b"200 ")
    if stream and path.startswith("/v1"):
        assert answer.endswith(b"data: [DONE]\n\n") and answer.count(b'"finish_reason":"length"') == 1
    elif stream:
        assert answer.count(b'"stop":true') == 1 and b'"stopped_limit":true' in answer
    elif path.startswith("/v1"):
        assert json.loads(answer[4:])["choices"][0]["finish_reason"] == "length"
    else:
        assert json.loads(answer[4:])["stopped_limit"] is True and len(json.loads(answer[4:])["content"]) > 19
    client.close()


@pytest.mark.parametrize("stream", [True, False])
def test_at_the_deadline_who_has_no_text_yet_is_told_that_the_server_stops(make_api, stream):
    """Those in the queue, and one whose prompt is being read in a step that lasts."""
    api = make_api(FakeBackend(n_ctx=256, n_slots=1)).start()
    api.backend.hold()
    reading = api.begin({"prompt": "reading", "stream": stream})
    api.wait_for_decode()
    waiting = [api.begin({"prompt": "waiting", "stream": stream}) for _ in range(3)]
    vectors = api.begin({"input": "waiting"}, path="/v1/embeddings")
    wait_until(lambda: api.n_requests == 5, "all requests to be known", PATIENCE)
    stopping(api, 0.0).join(PATIENCE)
    for client in (reading, *waiting, vectors):
        answer = whole(client)
        assert answer.startswith(b"503 ") and json.loads(answer[4:])["error"]["code"] == 503
        client.close()


def test_at_the_deadline_a_client_that_does_not_read_is_cut(make_api):
    api = make_api(FakeBackend(n_ctx=64), shift_context=True).start()
    client = api.begin({"prompt": "endless", "n_predict": -1, "stream": True})
    api.wait_for(n_processing=1)
    [entry] = api.server._server.connections.values()
    may_write = threading.Event()
    with (
        patch.object(Wire, "send", lambda *_: may_write.wait(PATIENCE)),
        patch.object(httpd, "ANSWER_S", 0.05),
        patch.object(httpd, "JOIN_S", 0.05),
    ):
        thread = stopping(api, 0.0)
        thread.join(PATIENCE)
        may_write.set()
        entry.thread.join(PATIENCE)
    assert not thread.is_alive() and api.client.state == "closed"
    client.close()


def test_a_request_that_came_just_before_the_end_is_told_so(api):
    """On a connection that was kept: its bytes are there, and its thread hasn't woken up yet."""
    server = api.server._server
    may_wake_up, set_idle = threading.Event(), server.set_idle
    may_wake_up.set()

    def set_idle_late(entry, is_idle):
        if not is_idle:
            assert may_wake_up.wait(PATIENCE)
        return set_idle(entry, is_idle)

    with patch.object(server, "set_idle", set_idle_late):
        connection = http.client.HTTPConnection("127.0.0.1", api.server.port, timeout=PATIENCE)
        connection.request("GET", "/health")
        connection.getresponse().read()
        wait_until(lambda: all(entry.is_idle for entry in [*server.connections.values()]), "the thread to wait again")
        may_wake_up.clear()
        connection.request("POST", "/completion", json.dumps({"prompt": "x", "n_predict": 1}))
        thread = stopping(api, PATIENCE)
        may_wake_up.set()
        response = connection.getresponse()
    assert (response.status, response.headers["Connection"], response.headers["Retry-After"]) == (503, "close", "1")
    assert json.loads(response.read())["error"]["code"] == 503
    thread.join(PATIENCE)
    connection.close()


def test_while_it_winds_down_everything_is_served_and_each_connection_ends(api):
    kept = http.client.HTTPConnection("127.0.0.1", api.server.port, timeout=PATIENCE)
    kept.request("GET", "/health/ready")
    response = kept.getresponse()
    assert response.status == 200 and response.headers["Connection"] is None and response.read()
    api.context.stop.set()
    api.server.wind_down()
    kept.request("GET", "/health/ready")
    response = kept.getresponse()
    assert (response.status, response.headers["Connection"]) == (503, "close")
    assert json.loads(response.read())["error"]["message"] == "the server is stopping"
    assert api.complete("x", 2)["content"] == said("x", 2)
    assert api.get("/health/live").status == 200
    kept.close()


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
