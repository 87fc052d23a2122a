"""Requests of the commands to a server, and reading a chat's answer: whole, byte by byte, cut off, or invalid."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from server.commands.talk import TEXT, THOUGHT, Peer, Running, make_visible
from server.errors import PassingError
from server.options.parser import OptionError
from tests.unit.download.fake_site import no_proxy  # noqa: F401


class FakeServer:
    """Answers every request with `body`, in pieces of `n` bytes."""

    def __init__(self) -> None:
        self.status, self.body, self.n = 200, b"", 1 << 20
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fake.seen.append((self.path, dict(self.headers), json.loads(data) if data else None))
                self.send_response(fake.status)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for at in range(0, len(fake.body), fake.n):
                    piece = fake.body[at : at + fake.n]
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")

            do_GET = do_POST

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def fake():
    fake = FakeServer()
    yield fake
    fake.stop()


def stream(*deltas: object) -> bytes:
    """An answer as a server streams it."""
    events = [json.dumps({"choices": [{"delta": delta}]}, ensure_ascii=False) for delta in deltas]
    return b"".join(f"data: {event}\n\n".encode() for event in [*events, "[DONE]"])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 1 << 20])
def test_an_answer_is_read_in_whatever_pieces_it_comes(fake, n):
    fake.n = n
    fake.body = b": ping\n\nevent: x\n" + stream(
        {"role": "assistant"}, {"reasoning_content": "hm"}, {"content": "ä€\n"}
    )
    peer = Peer(fake.url + "/prefix", "secret")
    assert list(peer.chat({"messages": []})) == [(THOUGHT, "hm"), (TEXT, "ä€\n")]
    ((path, headers, body),) = fake.seen
    assert (path, body) == ("/prefix/v1/chat/completions", {"messages": [], "stream": True})
    assert headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "body",
    [
        b"data: {\n\n",
        b"data: []\n\n",
        b"data: 5\n\n",
        b'data: {"choices": 5}\n\n',
        b'data: {"choices": [5]}\n\n',
        b'data: {"choices": [{"delta": "x"}]}\n\n',
        b"data: " + b"[" * 10000 + b"\n\n",
    ],
)
def test_an_answer_that_is_nonsense_is_told_of(fake, body):
    fake.body = stream({"content": "so far"}).replace(b"data: [DONE]\n\n", b"") + body
    pieces = Peer(fake.url).chat({})
    assert next(pieces) == (TEXT, "so far")
    with pytest.raises(PassingError, match="the answer broke off"):
        list(pieces)


def test_odd_deltas_are_no_text(fake):
    fake.body = stream({"content": None}, {"content": 5}, {"tool_calls": []}, {"content": ""}, {"content": "x"})
    fake.body += b'data: {"choices": null}\n\ndata: {"usage": 1}\n\nnonsense\n'
    assert list(Peer(fake.url).chat({})) == [(TEXT, "x")]


def test_errors_are_told_in_the_servers_words(fake):
    fake.status, fake.body = 400, json.dumps({"error": {"message": "too \x1b[31mlong"}}).encode()
    with pytest.raises(PassingError, match=r"^too \[31mlong$"):
        list(Peer(fake.url).chat({}))
    fake.status, fake.body = 502, b"<html>"
    with pytest.raises(PassingError, match="it answered 502"):
        list(Peer(fake.url).chat({}))
    fake.status, fake.body = 200, b'data: {"error": {"message": "the engine has died"}}\n\n'
    with pytest.raises(PassingError, match="the engine has died"):
        list(Peer(fake.url).chat({}))


def test_a_server_that_is_not_there_is_told_of():
    with pytest.raises(PassingError, match="there is no server at http://127.0.0.1:1 "):
        Peer("http://127.0.0.1:1").list_models()
    with pytest.raises(OptionError, match="is not an address"):
        Peer("http:///x").list_models()
    with pytest.raises(PassingError, match="there is no server"):
        Peer("http://127.0.0.1:99999").list_models()


def test_models_are_read_from_servers_with_and_without_states(fake):
    fake.body = json.dumps(
        {
            "data": [
                {"id": "a", "status": {"value": "loaded"}, "size": 5, "meta": {"n_ctx": 4096}},
                {"id": "b\x1b", "status": {"value": "unloaded"}, "size": 7, "meta": None},
                {"id": "c", "meta": {"size": 9, "n_ctx_train": 512}},
                {"id": "d", "meta": {"n_ctx": "\x1b[31m1"}},
                "nonsense",
            ]
        }
    ).encode()
    assert Peer(fake.url).list_models() == [
        Running("a", "loaded", 5, "4096"),
        Running("b", "unloaded", 7, ""),
        Running("c", "loaded", 9, "512"),
        Running("d", "loaded", 0, "[31m1"),
    ]
    fake.body = b"[]"
    with pytest.raises(PassingError, match="doesn't list models"):
        Peer(fake.url).list_models()
    fake.body = b"{"
    with pytest.raises(PassingError):
        Peer(fake.url).list_models()


def test_what_a_model_writes_cannot_steer_the_terminal():
    assert make_visible("a\x1b[2J\x9b\u202e\r\x07b\n\tä€😀") == "a[2Jb\n\tä€😀"
