"""The limits of the HTTP server: sizes, counts and times. Any thread reads them.

`service.edge` sets some fields from options. Not taken: one timeout for everything. A slow head, a slow body and a
quiet keep-alive connection need different ones."""

from __future__ import annotations

from server.log import get_logger
from server.records import record

KIB = 1024
MIB = 1024 * 1024
RESERVE = 32
"""File descriptors kept for other uses: standard streams, pipes to the engine, listening sockets, the log."""


@record(frozen=True)
class Limits:
    """Sizes in bytes, counts (`n_`) and seconds (`_s`)."""

    request_line_bytes: int = 16 * KIB
    head_bytes: int = 64 * KIB
    n_headers: int = 100
    body_bytes: int = 64 * MIB
    all_requests_bytes: int = 768 * MIB
    """Memory that all requests together may hold, as `server.memory` counts it. Beyond it, requests get 503."""
    n_connections: int = 512
    """Connections at the same time, each with a thread. Further ones get 503, unless a silent one makes room."""
    n_backlog: int = 128  # connections of a listening socket that wait to be accepted

    idle_s: float = 75.0
    """How long a keep-alive connection may wait for its next request."""
    spare_s: float = 5.0
    """A connection that has sent no whole request head for this long may be closed to make room for a new one."""
    head_s: float = 15.0
    """Time for each of these: the first byte of a new connection, the TLS handshake, a whole request head."""
    body_s: float = 30.0
    """Time for the request body. Every `body_rate` bytes that arrive add one second."""
    body_rate: int = 4 * KIB  # bytes/s
    write_s: float = 30.0
    """Time for one send of at most `write_slice` bytes. Clients that read more slowly are cut off."""
    write_slice: int = 256 * KIB
    linger_s: float = 2.0
    """How long a refused client may go on sending before the socket is closed, so that it can read the refusal."""
    drain_bytes: int = 256 * KIB
    """After an early error, an unread body up to this size is read and dropped to keep the connection."""


def make_room_for_connections(wanted: int) -> int:
    """How many connections this process can have, at most `wanted`. Raises the limit of file descriptors if necessary
    and possible, and logs a warning if it stays too low. Main thread, before it listens.

    Not taken: reserve one descriptor to accept and refuse connections when all others are used. Running requests, which
    open files and sockets, would still fail.
    """
    try:
        import resource
    except ImportError:
        return wanted  # Windows: a process may have millions of handles
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    needed = RESERVE - -wanted * 4 // 3  # one in three connections may have a file open or fetch one
    if soft < needed:
        soft = raise_limit(needed, soft, hard)
    room = max((soft - RESERVE) * 3 // 4, 1)
    if room < wanted:
        get_logger("http").warning(
            "only %d connections at the same time instead of %d: this process may open %d files (ulimit -n)",
            room,
            wanted,
            soft,
        )
    return min(room, wanted)


def raise_limit(needed: int, soft: int, hard: int) -> int:
    """Raise the soft limit to `needed`, but not above the hard limit, and return it. If the system refuses, return the
    old one."""
    import resource

    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):
        return soft
    return most
