"""Detecting disconnected clients, with real sockets of this machine."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from server.web import watcher as watcher_module
from server.web.watcher import DATA, GONE, Watcher, find_peer_state, is_tls_closing
from tests.support import wait_until

PATIENCE = 60.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """(server's, client's) end of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    yield server, client
    server.close()
    client.close()


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    """Stopped at the end, which joins its thread."""
    watcher = Watcher(recheck_s=0.02)
    yield watcher
    watcher.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "http-watcher"]


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize(
    "leave",
    [socket.socket.close, reset, lambda sock: sock.shutdown(socket.SHUT_WR)],
    ids=["close", "reset", "half close"],
)
def test_a_client_that_leaves_is_noticed_once(watcher, pair, leave):
    calls = threading.Semaphore(0)
    with watcher.watch(pair[0], calls.release):
        assert not calls.acquire(blocking=False)
        leave(pair[1])
        assert calls.acquire(timeout=PATIENCE)
    assert not calls.acquire(blocking=False)


def test_a_client_that_left_before_is_noticed(watcher, pair):
    pair[1].close()
    gone = threading.Event()
    with watcher.watch(pair[0], gone.set):
        assert gone.wait(PATIENCE)


def test_a_client_that_waits_is_left_alone(watcher, pair):
    calls = []
    other = threading.Event()
    with watcher.watch(pair[0], lambda: calls.append(1)), socket_that_is_gone() as gone, watcher.watch(gone, other.set):
        assert other.wait(PATIENCE)
    pair[1].close()
    with socket_that_is_gone() as gone, watcher.watch(gone, other.clear):
        wait_until(lambda: not other.is_set(), "the second watch")
    assert calls == []


class socket_that_is_gone:
    """A socket whose peer has closed."""

    def __enter__(self) -> socket.socket:
        self.here, there = socket.socketpair()
        there.close()
        return self.here

    def __exit__(self, *_exc: object) -> None:
        self.here.close()


@pytest.mark.skipif(os.name == "nt", reason="not on Windows: it can't tell EOF behind unread data")
@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
def test_a_client_that_leaves_behind_pipelined_data_is_noticed(watcher, pair, leave):
    gone = threading.Event()
    pair[1].sendall(b"GET /next HTTP/1.1\r\n\r\n")
    wait_until(lambda: find_peer_state(pair[0]) is not GONE, "data")
    with watcher.watch(pair[0], gone.set):
        wait_until(lambda: watcher._parked, "the watch to be parked")
        assert not gone.is_set()
        leave(pair[1])
        assert gone.wait(PATIENCE)


def test_pipelined_data_does_not_make_the_thread_spin(watcher, pair, monkeypatch):
    pair[1].sendall(b"x")
    wait_until(lambda: find_peer_state(pair[0]) is DATA, "data")
    with watcher.watch(pair[0], lambda: None):
        wait_until(lambda: watcher._parked, "the watch to be parked")
        # nothing but the wake-up pipe is left in the selector, so select() waits
        assert len(watcher._selector.get_map()) == 1
    assert pair[0].recv(10) == b"x", "the watcher took what belongs to the connection"


def test_one_socket_is_watched_again_and_again(watcher, pair):
    for _ in range(200):
        with watcher.watch(pair[0], lambda: pytest.fail("called")):
            pass
    gone = threading.Event()
    with watcher.watch(pair[0], gone.set):
        pair[1].close()
        assert gone.wait(PATIENCE)


def test_descriptors_that_come_back_are_watched_for_their_new_owner(watcher):
    for _ in range(100):
        here, there = socket.socketpair()
        gone = threading.Event()
        with watcher.watch(here, gone.set):
            there.close()
            assert gone.wait(PATIENCE)
        here.close()


def test_a_callback_that_fails_does_not_end_the_thread(watcher, caplog):
    gone = threading.Event()
    with socket_that_is_gone() as first, socket_that_is_gone() as second:
        with watcher.watch(first, lambda: 1 / 0):
            with watcher.watch(second, gone.set):
                assert gone.wait(PATIENCE)
            wait_until(lambda: "ZeroDivisionError" in caplog.text, "the log line")


def test_no_thread_before_the_first_watch_and_none_after_stop():
    watcher = Watcher()
    assert watcher._thread is None
    watcher.stop()
    with socket_that_is_gone() as gone, watcher.watch(gone, lambda: pytest.fail("called after stop")):
        assert watcher._thread is None
    watcher.stop()


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_a_selector_that_fails_is_replaced_by_asking(watcher, pair, monkeypatch, error):
    def fail(_timeout: float) -> None:
        raise error

    gone = threading.Event()
    with watcher.watch(pair[0], gone.set):
        monkeypatch.setattr(watcher._selector, "select", fail)
        watcher._wake()
        pair[1].close()
        assert gone.wait(PATIENCE)


def test_our_own_shutdown_counts_as_leaving(watcher, pair):
    gone = threading.Event()
    with watcher.watch(pair[0], gone.set):
        pair[0].shutdown(socket.SHUT_RDWR)
        assert gone.wait(PATIENCE)


@pytest.mark.parametrize(
    ("record", "closing"),
    [
        (b"\x15\x03\x03\x00\x02", True),  # TLS 1.2, clear or encrypted alert
        (b"\x17\x03\x03\x00\x13", True),  # TLS 1.3, encrypted alert
        (b"\x17\x03\x03\x00\x50", False),
        (b"\x16\x03\x03\x00\x13", False),
        (b"\x17\x03\x03", False),
        (b"", False),
    ],
)
def test_tls_alerts_are_told_from_data(record, closing):
    assert is_tls_closing(record) is closing


def test_short_requests_wake_the_thread_once_for_many(watcher, pair, monkeypatch):
    """Each wake-up is a fight for the interpreter's lock with the thread that answers."""
    monkeypatch.setattr(watcher_module, "GATHER_S", 0.5)
    n_woken = []
    wake = watcher._wake
    monkeypatch.setattr(watcher, "_wake", lambda: n_woken.append(1) or wake())
    for _ in range(50):
        with watcher.watch(pair[0], lambda: pytest.fail("called")):
            pass
    assert len(n_woken) < 25
    monkeypatch.undo()
    gone = threading.Event()
    with watcher.watch(pair[0], gone.set):  # and none is forgotten
        pair[1].close()
        assert gone.wait(PATIENCE)
