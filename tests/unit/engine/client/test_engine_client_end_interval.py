"""The time after which a client should come back to a full queue."""

from __future__ import annotations

from server.engine.client.engine_client import LONGEST_S, SHORTEST_S, EndInterval


def after(*ends: tuple[float, bool]) -> float:
    interval = EndInterval()
    for now, is_busy in ends:
        interval.note_end(now, is_busy)
    return interval.mean_s


def test_it_settles_at_the_time_between_two_ends():
    assert after() == SHORTEST_S
    assert 9 < after(*((i * 10.0, True) for i in range(30))) < 11
    assert after(*((i * 0.1, True) for i in range(30))) == SHORTEST_S
    assert after(*((i * 200.0, True) for i in range(50))) == LONGEST_S


def test_idle_times_do_not_count():
    assert after((0.0, False), (100.0, False), (200.0, False)) == SHORTEST_S
    assert after((0.0, True), (1e6, True)) == SHORTEST_S
