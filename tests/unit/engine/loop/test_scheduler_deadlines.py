"""Tasks with a deadline, in every phase, and tasks that are asked to end early."""

from __future__ import annotations

import pytest

from server.engine.loop.scheduler import Deadlines
from server.engine.seam.task import STOP_ABORT, STOP_LIMIT, Cancel
from tests.fakes import FakeBackend
from tests.unit.engine.driving import Driver


def test_the_most_overdue_comes_first_and_each_only_once():
    deadlines = Deadlines()
    for id_task, t_end in ((1, 5.0), (2, 3.0), (3, 9.0)):
        deadlines.add(id_task, t_end)
    assert deadlines.take_due(2.9) == []
    assert deadlines.take_due(5.0) == [2, 1]
    assert deadlines.take_due(8.0) == []
    assert deadlines.take_due(9.0) == [3]


def driver(**options: object) -> Driver:
    return Driver(FakeBackend(n_ctx=512, n_slots=1, n_batch=8), **options)


def test_a_generating_task_ends_with_its_text_in_the_step_after_its_time():
    one = driver()
    id_task = one.post("abc", 100, t_max_ms=1000)
    one.step(5)
    one.clock.now = 0.999
    one.step()
    assert not one.outcomes[id_task].ends
    n_tokens = len(one.outcomes[id_task].tokens)
    one.clock.now = 1.0
    one.step()
    final = one.outcomes[id_task].final
    assert final.stop == STOP_LIMIT and final.n_predicted == n_tokens > 0
    assert one.is_clean()


def test_a_task_in_prefill_fails_and_its_slot_is_free():
    one = driver()
    id_task = one.post("a prompt of several batches", 100, t_max_ms=1000)
    one.step(2)
    one.clock.now = 2.0
    one.step()
    failure = one.outcomes[id_task].failure
    assert failure.status == 504 and not one.outcomes[id_task].pieces
    assert one.is_clean()


def test_a_waiting_task_fails_and_the_others_keep_their_places():
    one = driver()
    running = one.post("abc", 200)
    one.step()
    hurried, patient = one.post("def", 5, t_max_ms=500), one.post("ghi", 5, t_max_ms=500_000)
    one.step()
    one.clock.now = 1.0
    one.step()
    assert one.outcomes[hurried].failure.status == 504
    one.finish()
    assert one.outcomes[running].final and one.outcomes[patient].final
    assert one.is_clean()


def test_a_task_that_ended_in_time_is_left_alone_afterwards():
    one = driver()
    id_task = one.post("abc", 3, t_max_ms=1000)
    one.finish()
    one.clock.now = 5.0
    one.step(3)
    assert one.outcomes[id_task].final.stop == STOP_LIMIT and len(one.outcomes[id_task].ends) == 1


def test_a_refused_task_is_not_refused_again_when_its_time_is_up():
    one = driver(max_queue=0)
    one.post("abc", 100)
    one.step()
    refused = one.post("def", 3, t_max_ms=10)
    one.step()
    one.clock.now = 5.0
    one.step()
    assert [end.status for end in one.outcomes[refused].ends] == [503]


@pytest.mark.parametrize("n_steps", [0, 1, 6])
def test_an_early_end_in_each_phase_is_a_final_with_what_there_is(n_steps):
    one = driver()
    id_task = one.post("a prompt of two batches", 100)
    one.step(n_steps)
    n_tokens = len(one.outcomes[id_task].tokens)
    one.scheduler.post(Cancel(id_task, finish=True))
    one.step()
    final = one.outcomes[id_task].final
    assert final.stop == STOP_ABORT and final.n_predicted == n_tokens
    assert one.is_clean()


@pytest.mark.parametrize("ends_itself", [False, True])
def test_an_early_end_in_prefill_counts_the_time_and_the_tokens_until_then(ends_itself):
    one = driver()
    one.post("a prompt", 1)
    one.finish()
    id_task = one.post("a prompt of several batches", 100, t_max_prompt_ms=1000 if ends_itself else 0)
    one.step()
    one.clock.now += 2.0
    if not ends_itself:
        one.scheduler.post(Cancel(id_task, finish=True))
    one.step()
    timings = one.outcomes[id_task].final.timings
    assert timings.cache_n == 8 and timings.prompt_n == (16 if ends_itself else 8)
    assert (timings.prompt_ms, timings.predicted_n, timings.predicted_ms) == (2000.0, 0, 0.0)


def test_an_early_end_of_an_unknown_task_is_nothing():
    one = driver()
    one.scheduler.post(Cancel(99, finish=True))
    one.step(2)
    assert one.is_clean()
