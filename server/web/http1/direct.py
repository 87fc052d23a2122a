"""Lets the thread that receives tokens from the engine write a stream itself, so that no token has to wake the
connection thread.

The connection thread sleeps and lends its socket to that thread, which serves all streams of an engine. An `offer`
doesn't wait for the client. Bytes that the client's socket doesn't accept are kept, and the connection thread wakes up
to send them, with its usual deadline. A lock in `server/engine/client/engine_client.py` prevents both threads from
writing at the same time.

Not for TLS, since two threads can't use one TLS object. Not taken: an event loop for all streams. Handlers, limits and
the watcher would have to change.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

from server.web.http1.wire import Wire


class DirectWriter:
    """Writes to one connection's socket. `frame` puts data into the form that is sent (a chunk). `n_bytes` counts the
    bytes sent."""

    __slots__ = ("n_bytes", "_wire", "_frame", "_rest")

    def __init__(self, wire: Wire, frame: Callable[[bytes], bytes]) -> None:
        self.n_bytes = 0
        self._wire = wire
        self._frame = frame
        self._rest = b""

    def offer(self, data: bytes) -> bool:
        """Any thread; see `message.Writer`.

        On an error nothing counts as sent: the connection thread will get the same error and handle it.
        """
        if not data:
            return True
        data = self._frame(data)
        sock = self._wire.sock
        try:
            if sock.gettimeout() != 0:  # with a timeout a send takes two system calls and may wait
                sock.settimeout(0)
            n_sent = sock.send(data)
        except OSError:
            n_sent = 0
        self.n_bytes += n_sent
        self._rest = data[n_sent:]
        return not self._rest

    def drain(self) -> None:
        """The connection thread; see `message.Writer`. ClientGone if the client has left or reads too slowly."""
        rest, self._rest = self._rest, b""
        if rest:
            self._wire.send(rest)
            self.n_bytes += len(rest)


def lend(chunks: object, wire: Wire, frame: Callable[[bytes], bytes]) -> DirectWriter | None:
    """Let the source of a stream write to the socket itself. None if it can't, or if the connection uses TLS."""
    divert = getattr(chunks, "divert", None)
    if divert is None or not isinstance(wire.sock, socket.socket) or isinstance(wire.sock, ssl.SSLSocket):
        return None
    writer = DirectWriter(wire, frame)
    divert(writer)
    return writer
