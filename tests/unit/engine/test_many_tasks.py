"""Requests with very many tasks: the work for one task doesn't grow with their number, in both processes."""

from __future__ import annotations

import random

import pytest

from server.engine.client.ledger import Ledger
from server.engine.seam.task import READY, Cancel, Failure, Frame, Ready, Task, Tasks
from tests.fakes import FakeBackend, FakeVocab
from tests.support import n_lines
from tests.unit.engine.client.test_engine_client import INFO, RecordingTransport
from tests.unit.engine.driving import Driver

N = 300


def queue_and_leave(n: int) -> None:
    """A request comes into the queue of a busy engine, and its client leaves."""
    d = Driver(FakeBackend(n_ctx=512), max_queue=10_000)
    d.post("busy", 500)
    ids = d.post_together(*["x"] * n)
    d.step()
    random.Random(5).shuffle(ids)
    for id_task in ids:
        d.cancel(id_task)
    d.step()
    assert not d.scheduler._admission


def queue_and_fail(n: int) -> None:
    """All of a request's tasks are refused."""
    d = Driver(FakeBackend(n_ctx=512), max_queue=0)
    d.post("busy", 500)
    d.step()
    ids = d.post_together(*["x"] * n)
    d.step()
    assert all(d.outcomes[id_task].failure for id_task in ids)


def note_one_by_one(n: int) -> None:
    """The supervisor's book, while many tasks are open."""
    ledger = Ledger()
    ledger.note_ready()
    for i in range(n):
        assert ledger.post(Task(i, (1,))) == [Task(i, (1,))]
    for i in range(n):
        ledger.post(Cancel(i))


def end_one_by_one(n: int) -> None:
    """The web side: all tasks of one request fail, each with a frame of its own."""
    from server.engine.client.engine_client import EngineClient

    transport = RecordingTransport()
    client = EngineClient(transport, FakeVocab)
    client.start()
    transport.on_frame(Frame((Ready(INFO),)))
    assert client.state is READY
    results = client.submit(*(Task(i, (1,)) for i in range(n)), stream=False)
    for task in results.tasks:
        assert client.get_task(task.id) is task
        client.dispatch(Frame((Failure(task.id, 500, "it broke"),)))


@pytest.mark.parametrize("work", [queue_and_leave, queue_and_fail, note_one_by_one, end_one_by_one])
def test_work_grows_with_the_number_of_tasks_and_not_with_its_square(work):
    work(2)  # what is made once
    small, large = (n_lines(lambda n=n: work(n)) for n in (N, 4 * N))
    assert large < 6 * small


def test_places_in_a_long_queue_are_told_seldom_enough():
    """Each move changes all places: told every time, a thousand tasks would hear a million."""
    d = Driver(FakeBackend(n_ctx=512), max_queue=10_000)
    d.post("busy", 500)
    d.post_together(*["x"] * 50, stream=True, progress=True)

    class Ticking:
        now = 0.0

        def __call__(self) -> float:
            self.now += 0.001  # every look at the clock: telling takes 1 ms
            return self.now

    d.scheduler._state.clock = Ticking()
    d.step()
    n_told = sum(len(outcome.progress) for outcome in d.outcomes.values())
    assert n_told == 50
    for id_task in range(1, 20):
        d.cancel(id_task)
        d.step()
    assert sum(len(outcome.progress) for outcome in d.outcomes.values()) < n_told + 19 * 31 / 2


# ---- a full queue --------------------------------------------------------------------------------------------------


def waiting(d: Driver) -> list[int]:
    return [one.task.id for one in d.scheduler._admission._waiting]


def test_an_owner_who_fills_the_queue_makes_room_for_others():
    d = Driver(FakeBackend(n_ctx=512), max_queue=10)
    d.post("busy", 500, owner="greedy")
    d.step()
    greedy = d.post_together(*["x"] * 12, owner="greedy")
    d.step()
    assert waiting(d) == greedy[:10]
    assert [d.outcomes[id_task].failure.status for id_task in greedy[10:]] == [503, 503]
    modest = [d.post("x", owner="modest") for _ in range(7)]
    d.step()
    assert waiting(d) == [*greedy[:5], *modest[:5]]  # half of it each
    refused = [d.outcomes[id_task].failure for id_task in (*greedy[5:], *modest[5:])]
    assert [(one.status, one.reason) for one in refused] == [(503, "queue_full")] * 9
    assert "most waiting requests are yours" in d.outcomes[greedy[9]].failure.message


def test_a_full_queue_of_one_owner_refuses_that_owner():
    d = Driver(FakeBackend(n_ctx=512), max_queue=2)
    d.post("busy", 500)
    d.step()
    ids = [d.post("x") for _ in range(3)]
    d.step()
    assert waiting(d) == ids[:2] and d.outcomes[ids[2]].failure.status == 503


def test_a_request_travels_as_one_message():
    ledger = Ledger()
    ledger.note_ready()
    tasks = Tasks(tuple(Task(i, (1,)) for i in range(3)))
    assert ledger.post(tasks) == [tasks]
