"""One thread that detects when clients of running requests leave, also while nothing is written to them.

A client that ends its sending side (FIN, `shutdown(SHUT_WR)`) may still be reading. A client that closes the connection
sends the same FIN; only its reset, after the server has sent something, shows the difference. So an end and a reset are
reported separately.

Without the watcher, a client that hangs up while its request is queued or in prefill would occupy a slot until its
first token is written. Not taken: polling in each handler. That wakes hundreds of threads a second and detects nothing
during a long call.

A socket belongs to its connection thread; the watcher only peeks at it. Other threads put changes into a queue and wake
the watcher's thread, which alone uses the selector. Once woken, it waits for `GATHER_S`. A request that is answered
within that time isn't registered, and further requests don't wake the thread again."""

from __future__ import annotations

import select
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable

from server.log import get_logger

GATHER_S = 0.02
"""Seconds that the woken thread waits for further changes."""
QUIET, DATA, ENDED, GONE = "quiet", "data", "ended", "gone"  # see `find_peer_state`
TLS_ALERT, TLS_DATA = 0x15, 0x17
TLS13_ALERT_BYTES = 19
"""Size of an encrypted alert of TLS 1.3: 2 bytes of alert, 1 of type, 16 of tag. HTTP data is hardly ever that
short."""


class _Watch:
    """One request being watched; a context manager."""

    __slots__ = ("watcher", "sock", "on_gone", "on_end", "is_live", "has_ended")

    def __init__(
        self, watcher: Watcher, sock: socket.socket, on_gone: Callable[[], None], on_end: Callable[[], None] | None
    ) -> None:
        self.watcher = watcher
        self.sock = sock
        self.on_gone = on_gone
        self.on_end = on_end
        self.is_live = False
        self.has_ended = False

    def __enter__(self) -> _Watch:
        self.watcher._add(self)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.watcher._drop(self)


class Watcher:
    """`watch(sock, on_gone)` returns a context. Inside it, `on_gone` is called once for ENDED or GONE (see
    `find_peer_state`). If `on_end` is passed, it is called once for ENDED, and `on_gone` only for GONE."""

    def __init__(self, recheck_s: float = 0.1) -> None:
        self._recheck_s = recheck_s
        # Guards is_live of all watches. Held while a socket is peeked at: a connection thread, which drops its watch
        # before it reads, must not take the bytes away first, or the peek would block.
        self._lock = threading.Lock()
        self._changes: deque[_Watch] = deque()
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        self._is_woken = False  # the watcher's thread is about to read _changes
        self._watches: set[_Watch] = set()  # watcher's thread only; all live watches
        self._parked: set[_Watch] = set()  # those of them with unread data or an end; not in the selector

    def watch(
        self, sock: socket.socket, on_gone: Callable[[], None], on_end: Callable[[], None] | None = None
    ) -> _Watch:
        """See the class. The callbacks must be quick and must not raise."""
        return _Watch(self, sock, on_gone, on_end)

    def stop(self) -> None:
        """End the thread. Afterwards no callback is called. Idempotent."""
        with self._lock:
            self._is_stopped = True
            thread = self._thread
        if thread:
            self._wake()
            thread.join()
            self._thread = None

    def _add(self, watch: _Watch) -> None:
        with self._lock:
            if self._is_stopped:
                return
            watch.is_live = True
            self._changes.append(watch)
            if not self._thread:
                self._start()
            must_wake, self._is_woken = not self._is_woken, True
        if must_wake:
            self._wake()

    def _drop(self, watch: _Watch) -> None:
        # No wake-up: a dead watch costs nothing until the thread runs next.
        with self._lock:
            watch.is_live = False
            self._changes.append(watch)

    def _start(self) -> None:
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="http-watcher", daemon=True)
        self._thread.start()

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"!")
        except OSError:
            pass  # the pipe is full, so the thread wakes anyway; or the thread has ended and closed it

    def _run(self) -> None:
        while not self._is_stopped:
            ready = self._select()
            self._apply_changes()
            for watch in [*ready, *self._parked]:
                self._look(watch)
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    def _select(self) -> list[_Watch]:
        try:
            events = self._selector.select(self._recheck_s if self._parked else None)
        except (OSError, ValueError):
            # Windows: a socket was closed during select, or there are too many. Check each one, not too often.
            time.sleep(self._recheck_s / 4)
            return [watch for watch in self._watches if _is_readable(watch.sock)]
        for key, _ in events:
            if key.data is None:
                _drain(self._wake_out)
                time.sleep(0 if self._is_stopped else GATHER_S)
        return [key.data for key, _ in events if key.data]

    def _apply_changes(self) -> None:
        with self._lock:
            self._is_woken = False  # changes from now on may be missed below, so they must wake the thread again
        while self._changes:
            watch = self._changes.popleft()
            if watch.is_live and watch not in self._watches:
                self._watches.add(watch)
                self._register(watch)
            elif not watch.is_live:
                self._forget(watch)

    def _register(self, watch: _Watch) -> None:
        try:
            self._selector.register(watch.sock, selectors.EVENT_READ, watch)
        except (KeyError, OSError, ValueError):
            self._fire(watch)  # the server's shutdown has closed the socket already

    def _unregister(self, watch: _Watch) -> None:
        try:
            self._selector.unregister(watch.sock)
        except (KeyError, OSError, ValueError):
            pass  # parked, or closed meanwhile

    def _forget(self, watch: _Watch) -> None:
        if watch in self._watches:
            self._watches.discard(watch)
            self._parked.discard(watch)
            self._unregister(watch)

    def _look(self, watch: _Watch) -> None:
        with self._lock:
            state = find_peer_state(watch.sock) if watch.is_live else GONE
        if state is GONE or (state is ENDED and watch.on_end is None):
            self._forget(watch)
            self._fire(watch)
        elif state is not QUIET and watch not in self._parked:
            # A pipelined request, or an end: a level-triggered selector would report it again and again.
            self._unregister(watch)
            self._parked.add(watch)
        if state is ENDED and not watch.has_ended and watch.on_end is not None:
            watch.has_ended = True
            _call(watch.on_end)

    def _fire(self, watch: _Watch) -> None:
        with self._lock:
            was_live, watch.is_live = watch.is_live, False
        if was_live:
            _call(watch.on_gone)


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        get_logger("http").exception("a disconnect callback failed")


def find_peer_state(sock: socket.socket) -> str:
    """The state of a connection, without reading from the socket:

    - GONE: the peer has reset it, or this side has closed it;
    - ENDED: the peer has closed it, or has only ended its sending side;
    - DATA: unread bytes are waiting;
    - QUIET: none of these.

    With TLS it peeks at the encrypted bytes, since SSLSocket.recv refuses MSG_PEEK.
    """
    try:
        head = socket.socket.recv(sock, 5, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError, TimeoutError):
        return QUIET
    except OSError:
        return GONE
    behind = _find_state_behind_data(sock)
    if behind is DATA and (not head or (isinstance(sock, ssl.SSLSocket) and is_tls_closing(head))):
        return ENDED
    return behind


def is_tls_closing(record_head: bytes) -> bool:
    """Whether the first 5 bytes of a TLS record announce an alert. During a request that counts as a close_notify."""
    if len(record_head) < 5:
        return False
    n_bytes = int.from_bytes(record_head[3:5], "big")
    return record_head[0] == TLS_ALERT or (record_head[0] == TLS_DATA and n_bytes == TLS13_ALERT_BYTES)


def _find_state_behind_data(sock: socket.socket) -> str:
    """GONE, ENDED, or DATA if neither is known. Peeking shows neither an end after unread bytes nor a reset after an
    end. Linux and the BSDs (macOS) tell that by other calls, Windows doesn't."""
    if hasattr(select, "POLLRDHUP"):
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        found = sum(events for _, events in poll.poll(0))
        if found & (select.POLLHUP | select.POLLERR):
            return GONE
        return ENDED if found else DATA
    if hasattr(select, "kqueue"):
        queue = select.kqueue()
        try:
            wanted = select.kevent(sock.fileno(), select.KQ_FILTER_READ, select.KQ_EV_ADD)  # type: ignore[attr-defined]
            events = queue.control([wanted], 1, 0)
            ends = [event for event in events if event.flags & select.KQ_EV_EOF]  # type: ignore[attr-defined]
            return DATA if not ends else GONE if ends[0].fflags else ENDED  # `fflags` is the socket's error
        finally:
            queue.close()
    return DATA


def _is_readable(sock: socket.socket) -> bool:
    try:
        return bool(select.select([sock], [], [], 0)[0])
    except (OSError, ValueError):
        return True  # closed, as `find_peer_state` will find


def _drain(sock: socket.socket) -> None:
    try:
        while sock.recv(4096):
            pass
    except OSError:
        pass
