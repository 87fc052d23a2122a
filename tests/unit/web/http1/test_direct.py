"""Streams written by the thread that has their tokens: what a socket accepts, what it doesn't, and which thread
continues.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from server.web.connection import frame_chunk
from server.web.http1.direct import DirectWriter, lend
from server.web.http1.wire import ClientGone, Wire
from server.web.limits import Limits

BIG = b"x" * 300_000


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield ours, theirs


def read(sock: socket.socket, n_bytes: int) -> bytes:
    sock.settimeout(30)
    data = b""
    while len(data) < n_bytes:
        data += sock.recv(n_bytes - len(data))
    return data


def test_what_fits_is_sent_at_once_and_framed(pair):
    ours, theirs = pair
    writer = DirectWriter(Wire(ours, Limits()), frame_chunk)
    assert writer.offer(b"hello") and writer.offer(b"you")
    assert read(theirs, 18) == b"5\r\nhello\r\n3\r\nyou\r\n"
    assert writer.n_bytes == 18


def test_nothing_is_no_chunk(pair):
    """An empty one would end the body."""
    writer = DirectWriter(Wire(pair[0], Limits()), frame_chunk)
    assert writer.offer(b"") and writer.n_bytes == 0


def test_what_does_not_fit_is_kept_without_waiting_and_drained_with_patience(pair):
    ours, theirs = pair
    wire = Wire(ours, Limits())
    writer = DirectWriter(wire, bytes)
    assert not writer.offer(BIG)
    assert 0 < writer.n_bytes < len(BIG)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read(theirs, len(BIG) + 4)))
    reader.start()
    writer.drain()
    assert writer.n_bytes == len(BIG)
    assert writer.offer(b"more")
    reader.join()
    assert got == [BIG + b"more"]


def test_drain_without_a_rest_sends_nothing(pair):
    writer = DirectWriter(Wire(pair[0], Limits()), bytes)
    assert writer.offer(b"x")
    writer.drain()
    assert writer.n_bytes == 1


def test_a_client_that_has_left_is_found_by_the_connection_s_thread(pair):
    ours, theirs = pair
    theirs.close()
    writer = DirectWriter(Wire(ours, Limits()), bytes)
    assert not writer.offer(b"x") and writer.n_bytes == 0
    with pytest.raises(ClientGone):
        writer.drain()


def test_a_reader_that_stays_slow_is_gone(pair):
    writer = DirectWriter(Wire(pair[0], Limits(write_s=0.05)), bytes)
    assert not writer.offer(BIG)
    with pytest.raises(ClientGone):
        writer.drain()


class Source:
    """A stream that can be diverted."""

    writer: DirectWriter | None = None

    def divert(self, writer: DirectWriter) -> None:
        self.writer = writer


def test_only_a_source_that_can_and_a_plain_socket_are_lent(pair):
    wire, source = Wire(pair[0], Limits()), Source()
    assert lend(iter(()), wire, bytes) is None
    assert lend(source, wire, bytes) is source.writer is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    source = Source()
    with context.wrap_socket(pair[0], server_side=True, do_handshake_on_connect=False) as sock:
        assert lend(source, Wire(sock, Limits()), bytes) is None and source.writer is None
