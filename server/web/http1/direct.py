"""Short writes of a stream by whoever has them, without waiting: saves waking the connection's thread for each token.

A connection's thread that streams lends its socket to the thread that has the tokens (one for all streams), and sleeps
until the end. A write here never waits: what a client's socket doesn't take is kept, and the connection's thread, which
may wait for its client and has a deadline for it, takes over. The two never write at the same time; the lock that sees
to it is the lender's (`server/engine/client/engine_client.py`).

Not for TLS: one TLS object can't be used by two threads. Not taken: an event loop for all streams; handlers, limits and
the watcher stay what they are this way, and a stream that is written by its own thread all the time is the same stream.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

from server.web.http1.wire import Wire


class DirectWriter:
    """Over one connection's socket; `frame` is how its data is put on the wire. `n_bytes` counts what was sent."""

    __slots__ = ("n_bytes", "_wire", "_frame", "_rest")

    def __init__(self, wire: Wire, frame: Callable[[bytes], bytes]) -> None:
        self.n_bytes = 0
        self._wire = wire
        self._frame = frame
        self._rest = b""

    def offer(self, data: bytes) -> bool:
        """Any thread: send `data` at once. False if some of it is left: then `drain` has to come before anything else.

        An error counts as nothing sent: the connection's thread will meet it, too, and knows what to do.
        """
        if not data:
            return True
        data = self._frame(data)
        sock = self._wire.sock
        try:
            if sock.gettimeout() != 0:  # else a send is two system calls, and waits
                sock.settimeout(0)
            n_sent = sock.send(data)
        except OSError:
            n_sent = 0
        self.n_bytes += n_sent
        self._rest = data[n_sent:]
        return not self._rest

    def drain(self) -> None:
        """The connection's thread: send what is left, with patience. ClientGone if the reader is dead or slow."""
        rest, self._rest = self._rest, b""
        if rest:
            self._wire.send(rest)
            self.n_bytes += len(rest)


def lend(chunks: object, wire: Wire, frame: Callable[[bytes], bytes]) -> DirectWriter | None:
    """Let the source of a stream write by itself, if it can and the socket is a plain one."""
    divert = getattr(chunks, "divert", None)
    if divert is None or not isinstance(wire.sock, socket.socket) or isinstance(wire.sock, ssl.SSLSocket):
        return None
    writer = DirectWriter(wire, frame)
    divert(writer)
    return writer
