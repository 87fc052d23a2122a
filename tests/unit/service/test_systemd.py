"""Messages to systemd, over a socket like its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from server.service.systemd import Notifier

pytestmark = pytest.mark.skipif(os.name == "nt", reason="not on Windows: no UNIX datagram sockets")


class Manager:
    """The listening side."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address)
        self.sock.setblocking(False)

    def heard(self) -> list[str]:
        """All messages so far."""
        messages = []
        while True:
            try:
                messages.append(self.sock.recv(65536).decode())
            except BlockingIOError:
                return messages


@pytest.fixture
def manager(tmp_path, monkeypatch) -> Iterator[Manager]:
    monkeypatch.chdir(tmp_path)  # such paths must be short
    one = Manager("notify")
    yield one
    one.sock.close()


def test_fields_are_lines_of_one_message(manager):
    assert Notifier({"NOTIFY_SOCKET": "notify"}).send(READY=1, STATUS="all is well")
    assert manager.heard() == ["READY=1\nSTATUS=all is well"]


@pytest.mark.skipif(not os.path.exists("/proc/net/unix"), reason="only on Linux: abstract names")
def test_an_abstract_name_is_reached():
    name = f"llama-srv-test-{os.getpid()}"
    manager = Manager("\0" + name)
    assert Notifier({"NOTIFY_SOCKET": "@" + name}).send(READY=1)
    assert manager.heard() == ["READY=1"]
    manager.sock.close()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "nobody-here"},
        {"NOTIFY_SOCKET": "x" * 500},
        {"WATCHDOG_USEC": "1000"},
    ],
)
def test_nobody_listening_is_no_error(environ, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notifier = Notifier(environ)
    assert notifier.send(READY=1) is False
    notifier.report_alive()


def test_life_is_told_twice_as_often_as_demanded(manager):
    now = [100.0]
    notifier = Notifier(
        {"NOTIFY_SOCKET": "notify", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}, clock=lambda: now[0]
    )
    assert notifier.watchdog_s == 2.0
    for _ in range(40):
        notifier.report_alive()
        now[0] += 0.25
    assert manager.heard() == ["WATCHDOG=1"] * 10


@pytest.mark.parametrize("more", [{}, {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}])
def test_without_a_watchdog_for_us_nothing_is_told(manager, more):
    notifier = Notifier({"NOTIFY_SOCKET": "notify", **more})
    notifier.report_alive()
    assert notifier.watchdog_s == 0 and manager.heard() == []


def test_a_reload_says_when_it_began(manager):
    Notifier({"NOTIFY_SOCKET": "notify"}).report_reload()
    [message] = manager.heard()
    first, second = message.split("\n")
    assert first == "RELOADING=1" and second.removeprefix("MONOTONIC_USEC=").isdigit()
