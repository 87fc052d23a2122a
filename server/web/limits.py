"""What one client may take from the HTTP edge: sizes, counts and times. A leaf of `server.web`, read by every
thread.

Each field is an option of its own because "safe" depends on the place: a phone and a public server differ.
The way not taken is one `timeout` for everything (the 2024 option): a slow head, a slow body and a quiet
keep-alive connection deserve different patience."""

from __future__ import annotations

from server.log import get_logger
from server.records import record

KIB = 1024
MIB = 1024 * 1024
RESERVE = 32
"""Descriptors for what is open anyway: standard streams, pipes to the engine, listeners, log; twice over."""


@record(frozen=True)
class Limits:
    """Bytes, counts, and seconds (`_s`)."""

    request_line_bytes: int = 16 * KIB
    head_bytes: int = 64 * KIB
    n_headers: int = 100
    body_bytes: int = 64 * MIB
    all_requests_bytes: int = 768 * MIB
    """What all requests hold in memory at one time, as `server.memory` counts it; beyond it 503."""
    n_connections: int = 512
    """Also the bound on handler threads: one each. Beyond it 503 and close."""
    n_backlog: int = 128

    idle_s: float = 75.0
    """Wait for the next request on a kept connection."""
    spare_s: float = 5.0
    """A connection that has sent no whole request head for so long may be closed to make room for a new one."""
    head_s: float = 15.0
    """The first byte of a new connection, the TLS handshake, and a whole head however slowly it drips: this
    long for each."""
    body_s: float = 30.0
    """Grace for the body; every `body_rate` bytes that arrive buy one more second."""
    body_rate: int = 4 * KIB
    write_s: float = 30.0
    """One send of at most `write_slice` bytes: slower readers are cut off."""
    write_slice: int = 256 * KIB
    linger_s: float = 2.0
    """How long a refused client may go on sending before the socket closes, so that it can read the
    refusal."""
    drain_bytes: int = 256 * KIB
    """An unread body up to this size is read and dropped, to keep the connection after an early error."""


def room_for_connections(wanted: int) -> int:
    """`wanted`, or as many as this process has file descriptors for, with a warning. The limit on those is raised as
    far as the system lets us. Main thread, before it listens.

    Not taken: a descriptor kept back to accept and refuse with when all are gone. That answers newcomers and leaves
    nothing for the requests under way, which need files and sockets of their own.
    """
    try:
        import resource
    except ImportError:
        return wanted  # Windows: a process may have millions of handles
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    needed = RESERVE - -wanted * 4 // 3  # one in four connections may have a file open or fetch one
    if soft < needed:
        soft = raised(needed, soft, hard)
    room = max((soft - RESERVE) * 3 // 4, 1)
    if room < wanted:
        get_logger("http").warning(
            "%d connections at the same time instead of %d: this process may have %d files open (ulimit -n)",
            room,
            wanted,
            soft,
        )
    return min(room, wanted)


def raised(needed: int, soft: int, hard: int) -> int:
    """The new limit; the old one if the system doesn't agree (macOS has a lower one than it says)."""
    import resource

    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):
        return soft
    return most
