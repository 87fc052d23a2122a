"""The timeline of the last minutes, from snapshots at times that the test chooses."""

from __future__ import annotations

from server.engine.client import timeline
from server.engine.client.timeline import READING, WRITING, Timeline
from server.engine.seam.task import SlotState, Snapshot


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def slot(id_task: int, is_processing: bool = True, n_decoded: int = 0, id_slot: int = 0) -> SlotState:
    return SlotState(id_slot, id_task, is_processing, 64, 0, 0, 0, n_decoded, -1, True, "none", "", False)


def watched(*steps: tuple[float, Snapshot]) -> tuple[Timeline, Clock]:
    clock = Clock()
    line = Timeline(lambda id_task: f"owner {id_task}", clock)
    for clock.now, snapshot in steps:
        line.note(snapshot)
    return line, clock


def test_a_slot_reads_then_writes_and_then_rests():
    line, clock = watched(
        (10, Snapshot((slot(7),))),
        (11, Snapshot((slot(7),))),
        (12, Snapshot((slot(7, n_decoded=1),))),
        (13, Snapshot((slot(7, n_decoded=9),))),
        (15, Snapshot((slot(7, is_processing=False, n_decoded=9),))),
        (16, Snapshot((slot(8),))),
    )
    clock.now = 20
    now, spans, _ = line.list_since(60)
    assert now == 20
    assert [(one.id_task, one.owner, one.phase, one.start, one.end) for one in spans] == [
        (7, "owner 7", READING, 10, 12),
        (7, "owner 7", WRITING, 12, 15),
        (8, "owner 8", READING, 16, None),
    ]


def test_a_task_that_follows_another_at_once_begins_a_span():
    line, _ = watched((1, Snapshot((slot(1, n_decoded=5),))), (2, Snapshot((slot(2, n_decoded=5),))))
    assert [(one.id_task, one.end) for one in line.list_since(60)[1]] == [(1, 2), (2, None)]


def test_what_ended_before_the_time_asked_for_is_left_out():
    line, clock = watched((1, Snapshot((slot(1),))), (2, Snapshot((slot(1, False),))))
    clock.now = 100
    assert line.list_since(60)[1] == []
    assert len(line.list_since(99)[1]) == 1


def test_waiting_begins_with_what_held_at_the_start():
    line, clock = watched(
        (1, Snapshot(n_deferred=3)),
        (5, Snapshot(n_deferred=1)),
        (6, Snapshot(n_deferred=1)),
        (80, Snapshot(n_deferred=0)),
    )
    clock.now = 90
    assert line.list_since(60)[2] == [(5, 1), (80, 0)]


def test_the_books_stay_small():
    steps = ((i, Snapshot((slot(i),), n_deferred=i)) for i in range(3 * timeline.MAX_SPANS))
    line, _ = watched(*steps)
    _, spans, waits = line.list_since(1e9)
    assert len(spans) <= timeline.MAX_SPANS + 1 and len(waits) <= timeline.MAX_WAITS
