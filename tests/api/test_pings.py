"""Comments in silent streams, and which clients get them. The model waits meanwhile, so the comments come first."""

from __future__ import annotations

import json

import pytest

from server.api.dialects import native, openai_chat
from server.api.request.media import Files
from server.api.request.text_request import Incoming
from tests.api.conftest import Api
from tests.fakes import FakeBackend

PING = b": ping\n\n"
CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
TEXT = {"prompt": "x", "n_predict": 2}


def stream_of(api: Api, path: str, **fields: object) -> bytes:
    """The body of a stream whose model does nothing until the first bytes have come."""
    api.backend.hold()
    data = json.dumps({**(CHAT if "chat" in path else TEXT), "stream": True, **fields}).encode()
    with api.connect() as sock:
        sock.sendall(
            b"POST %s HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(data)) + data
        )
        seen = b""
        while part := sock.recv(65536):
            seen += part
            if b"\r\n\r\n" in seen and seen.partition(b"\r\n\r\n")[2]:
                api.backend.go()
    return seen.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("path", "argv", "fields"),
    [
        ("/v1/chat/completions", ("--sse-ping-interval", "1"), {}),
        ("/v1/chat/completions", (), {"sse_ping_interval": 1}),
        ("/completion", (), {"sse_ping_interval": 1}),
    ],
)
def test_a_silent_stream_carries_comments(make_api, path, argv, fields):
    api = make_api(FakeBackend(), argv).start()
    body = stream_of(api, path, **fields)
    assert body.startswith(PING) and body.replace(PING, b"").startswith(b"data: {")


@pytest.mark.parametrize(
    ("dialect", "argv", "fields", "seconds"),
    [
        (openai_chat.DIALECT, (), {}, 30),
        (native.DIALECT, (), {}, None),
        (openai_chat.DIALECT, ("--sse-ping-interval", "-1"), {}, None),
        (native.DIALECT, ("--sse-ping-interval", "5"), {"sse_ping_interval": -1}, None),
        (native.DIALECT, ("--sse-ping-interval", "5"), {}, 5),
        (native.DIALECT, (), {"sse_ping_interval": 0}, None),
    ],
)
def test_who_gets_them_by_default(make_api, dialect, argv, fields, seconds):
    api = make_api(FakeBackend(), argv).start()
    model = api.context.models.default
    incoming = Incoming(api.context, model, {**CHAT, **TEXT, **fields}, Files(model), "")
    assert dialect.read(incoming).ping_s == seconds
