"""Random bytes sent to a real server: every answer is valid HTTP, the server never fails, and the next client is
served.
"""

from __future__ import annotations

import http.client
import io
import socket
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from server.log import get_logger
from tests.api.conftest import PATIENCE, Api
from tests.fakes import FakeBackend
from tests.fuzzing import fuzz
from tests.unit.web.test_fuzz_requests import REQUESTS

BODIES = st.sampled_from(
    (
        b'{"prompt": "x", "n_predict": 2}',
        b'{"prompt": "x", "n_predict": 3, "stream": true}',
        b"{}",
        b"[]",
        b"{",
        b'{"prompt": 5}',
        b'{"messages": []}',
        b'{"content": "x"}',
        b'{"tokens": [1, 2]}',
        b'{"id": "x"}',
        b"\xff",
    )
)
PATHS = st.sampled_from(
    (
        b"/completion",
        b"/v1/completions",
        b"/v1/chat/completions",
        b"/tokenize",
        b"/detokenize",
        b"/infill",
        b"/health",
        b"/slots",
        b"/props",
        b"/v1/abort",
        b"/",
        b"/completion.js",
        b"/nothing",
        b"/apply-template",
        b"/slots/0?action=erase",
    )
)
WHOLE = st.builds(
    lambda method, path, fields, body: (
        b"%b %b HTTP/1.1\r\nHost: localhost\r\n%bContent-Length: %d\r\n\r\n%b" % (method, path, fields, len(body), body)
    ),
    st.sampled_from((b"POST", b"GET", b"PUT", b"OPTIONS", b"HEAD")),
    PATHS,
    st.sampled_from(
        (
            b"",
            b"",
            b"Connection: close\r\n",
            b"Expect: 100-continue\r\n",
            b"Origin: http://localhost\r\n",
            b"X-Request-Id: a\r\n",
            b"Accept-Encoding: gzip\r\n",
        )
    ),
    BODIES,
)
TRAFFIC = st.lists(st.one_of(WHOLE, WHOLE, REQUESTS, st.binary(max_size=20)), min_size=1, max_size=4).map(b"".join)


class Received(io.BytesIO):
    """Bytes from which several answers are read: the end of one must not close it."""

    def close(self) -> None:
        """Not yet."""


def answers(data: bytes) -> list[int]:
    """The status of each answer; fails unless all of `data` is whole answers."""
    found, stream = [], Received(data)
    while stream.tell() < len(data):
        response = http.client.HTTPResponse(SimpleNamespace(makefile=lambda mode: stream))
        response.begin()
        found.append(response.status)
        response.read()
    return found


def talk(api: Api, data: bytes, cut: int) -> bytes:
    """Everything the server says to `data`, sent in two parts, before it closes."""
    received = b""
    with api.connect() as sock:
        sock.settimeout(PATIENCE)
        try:
            sock.sendall(data[:cut])
            sock.sendall(data[cut:])
            sock.shutdown(socket.SHUT_WR)
            while more := sock.recv(65536):
                received += more
        except OSError:
            pass  # it was refused and left unread bytes, or is gone already
    return received


def test_a_server_survives_any_traffic(make_api, caplog):
    api = make_api(FakeBackend(n_ctx=512, n_slots=2)).start()
    with caplog.at_level("ERROR", get_logger("http").name):

        @fuzz(250)
        @given(TRAFFIC, st.integers(0, 400))
        def survives(data: bytes, cut: int) -> None:
            received = talk(api, data, cut)
            if b"HEAD " not in data:
                statuses = answers(received)
                assert all(status == 100 or 200 <= status < 504 for status in statuses), statuses
                assert 500 not in statuses, received
            assert api.get("/health").status == 200

        survives()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    api.settle()
    assert api.is_idle() and api.complete("x", 2)["tokens_predicted"] == 2
