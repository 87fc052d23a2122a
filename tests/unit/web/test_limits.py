"""The number of connections that the limit on open files allows, on simulated systems."""

from __future__ import annotations

import logging
import sys

import pytest

from server.web.limits import make_room_for_connections

INFINITY = -1


class System:
    """`resource` of a system with these limits; it refuses to go beyond `cap`, as macOS does."""

    RLIMIT_NOFILE, RLIM_INFINITY = 7, INFINITY

    def __init__(self, soft: int, hard: int, cap: int = 10**9) -> None:
        self.limits, self.cap = (soft, hard), cap

    def getrlimit(self, which: int) -> tuple[int, int]:
        return self.limits

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        if limits[0] > self.cap or limits[0] > limits[1] != INFINITY:
            raise ValueError("not allowed to raise maximum limit")
        self.limits = limits


@pytest.mark.parametrize(
    "system, wanted, room, soft",
    [
        (System(1024, 4096), 512, 512, 1024),  # what most systems have
        (System(INFINITY, INFINITY), 512, 512, INFINITY),
        (System(256, INFINITY), 512, 512, 715),  # macOS: raised as far as needed
        (System(256, INFINITY, cap=300), 512, 168, 256),  # and not beyond what it really has
        (System(100, 100), 512, 51, 100),
        (System(100, 300), 512, 201, 300),
        (System(100, 100), 20, 20, 100),
        (System(20, 20), 512, 1, 20),
    ],
)
def test_connections_follow_the_limit_on_open_files(monkeypatch, caplog, system, wanted, room, soft):
    monkeypatch.setitem(sys.modules, "resource", system)
    with caplog.at_level(logging.WARNING, "llama_srv"):
        assert make_room_for_connections(wanted) == room
    assert system.limits[0] == soft
    assert ("ulimit -n" in caplog.text) is (room < wanted)
    assert soft == INFINITY or room + 3 * room // 8 < soft or room == 1  # what else a request may open


def test_a_system_without_such_a_limit_has_room_for_all(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert make_room_for_connections(512) == 512
