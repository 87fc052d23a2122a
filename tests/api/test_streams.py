"""The thread that writes a stream: the one that delivers its tokens, or the connection's own for a slow client."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from server.api.dialects.native import NativeReply
from server.web.http1.direct import DirectWriter
from tests.api.conftest import PATIENCE, Api
from tests.fakes import FakeBackend, answer
from tests.support import wait_until

N_TOKENS = 3000


@pytest.fixture
def api(make_api) -> Api:
    return make_api(FakeBackend(n_slots=2, n_ctx=16384)).start()


def ask(api: Api, n_predict: int = N_TOKENS, **fields: object) -> socket.socket:
    """A connection on which a stream has been asked for. Its buffer is small: who doesn't read soon takes nothing."""
    data = json.dumps({"prompt": "x", "n_predict": n_predict, "ignore_eos": True, "stream": True, **fields}).encode()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(PATIENCE)
    sock.connect(("127.0.0.1", api.server.port))
    sock.sendall(b"POST /completion HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    return sock


def rest_of(sock: socket.socket) -> list[dict]:
    data = b""
    while part := sock.recv(65536):
        data += part
    return [
        json.loads(block.removeprefix("data: ")) for block in data.partition(b"\r\n\r\n")[2].decode().split("\n\n")[:-1]
    ]


def text_of(events: list[dict]) -> str:
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    return "".join(event["content"] for event in events)


def test_tokens_are_written_by_the_thread_that_brings_them(api, monkeypatch):
    writers = []
    offer = DirectWriter.offer
    monkeypatch.setattr(
        DirectWriter,
        "offer",
        lambda self, data: (writers.append(threading.current_thread().name), offer(self, data))[1],
    )
    api.backend.hold()
    with ask(api, 20) as sock:
        assert api.backend.decoding.acquire(timeout=PATIENCE)
        api.backend.let()  # the first token opens the stream on its own thread
        wait_until(lambda: any(results._is_waiting for results in list(api.client._results.values())), "it sleeps")
        api.backend.go()
        assert len(text_of(rest_of(sock))) == 20
    assert set(writers) == {"engine"}


def test_a_client_that_does_not_read_holds_up_nobody_and_misses_nothing(api, monkeypatch):
    taken = []
    begin, offer = DirectWriter.__init__, DirectWriter.offer

    def small(self, wire, frame):
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        begin(self, wire, frame)

    monkeypatch.setattr(DirectWriter, "__init__", small)
    monkeypatch.setattr(DirectWriter, "offer", lambda self, data: (taken.append(offer(self, data)), taken[-1])[1])
    with ask(api) as slow, ask(api) as quick:
        text = text_of(rest_of(quick))  # to its end, while the other one hasn't read a byte
        assert len(text) == N_TOKENS
        assert text_of(rest_of(slow)) == text
    assert False in taken


def test_a_stream_is_the_same_text_as_the_whole_answer(api):
    whole = api.post("/completion", {"prompt": "x", "n_predict": 200, "ignore_eos": True}).json()["content"]
    with ask(api, 200) as sock:
        assert text_of(rest_of(sock)) == whole


def test_a_fault_in_making_events_ends_that_stream_only(api, monkeypatch):
    """It happens on the thread that serves all streams."""
    write, seen = NativeReply.encode_event, []

    def broken(self, index, event):
        if self._asked.values["seed"] == 5 and getattr(event, "text", "") and len(seen) > 2:
            raise ZeroDivisionError("a bug")
        seen.append(event)
        return write(self, index, event)

    monkeypatch.setattr(NativeReply, "encode_event", broken)
    with ask(api, 300, seed=6) as good, ask(api, 300, seed=5) as bad:
        assert b'"stop":true' not in b"".join(iter(lambda: bad.recv(65536), b""))
        assert len(text_of(rest_of(good))) == 300


@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/chat/completions"])
def test_chunks_put_together_by_hand_are_those_that_are_encoded_whole(make_api, path):
    """Ordinary text takes a shorter way into a stream than text with timings."""
    text = 'a "quoted"\\ line\n\ttab \x7f\u2028 Zürich 😀 </s> [DONE] data: {"content":"x"}'
    api = make_api(FakeBackend(answer(text, end="hi" if "chat" not in path else "assistant\n"), n_ctx=512)).start()
    body = {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "n_predict": 200, "seed": 1}
    body |= {"model": 'm","content":"x', "n": 2}

    def chunks(**fields: object) -> list[dict]:
        reply = api.post(path, {**body, "stream": True, **fields})
        assert reply.status == 200, reply
        lines = [line[6:] for line in reply.body.split(b"\n") if line.startswith(b"data: ") and b"[DONE]" != line[6:]]
        found = [json.loads(line) for line in lines]
        for chunk in found:
            for name in ("timings", "cache", "id", "created"):
                chunk.pop(name, None)
        return [chunk for chunk in found if not chunk.get("stop")]

    by_hand, whole = chunks(), chunks(timings_per_token=True)
    assert len(by_hand) > 40 and sorted(map(json.dumps, by_hand)) == sorted(map(json.dumps, whole))
