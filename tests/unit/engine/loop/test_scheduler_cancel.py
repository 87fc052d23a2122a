"""Cancelled tasks and the end of the engine: in every phase, without effect on other tasks."""

from __future__ import annotations

import threading

import pytest

from server.engine.seam.task import Failure, Final
from tests.fakes import PATIENCE_S, FakeBackend
from tests.unit.engine.driving import Driver, alone


def driver(n_slots: int = 2, n_batch: int = 16, **config) -> Driver:
    return Driver(FakeBackend(n_ctx=512 * n_slots, n_slots=n_slots, n_batch=n_batch), **config)


def in_queue(d: Driver) -> int:
    for i in range(2):
        d.post(f"busy {i}", n_predict=12)
    d.step()
    task = d.post("the task", n_predict=50)
    d.step()
    return task


def in_prefill(d: Driver) -> int:
    task = d.post("the task " * 8, n_predict=50)
    d.step(2)
    assert 0 < len(d.backend.history(0)) < 72
    return task


def in_decode(d: Driver) -> int:
    task = d.post("the task", n_predict=50)
    d.step(5)
    return task


def before_the_first_step(d: Driver) -> int:
    return d.post("the task", n_predict=50)


@pytest.mark.parametrize("phase", [in_queue, in_prefill, in_decode, before_the_first_step])
@pytest.mark.parametrize("cache_prompt", [True, False])
def test_a_cancelled_task_is_gone_within_one_step(phase, cache_prompt):
    d = driver()
    post = d.post
    d.post = lambda *args, **fields: post(*args, **{"cache_prompt": cache_prompt, **fields})
    task = phase(d)
    other = post("somebody else", n_predict=9)
    d.cancel(task)
    n_said = len(d.outcomes[task].pieces)
    d.step()
    assert all(slot.run is None or slot.run.task.id != task for slot in d.scheduler.slots)
    d.step_until(lambda: d.outcomes.keys() - {task} <= {i for i, o in d.outcomes.items() if o.ends})
    assert not d.outcomes[task].ends and len(d.outcomes[task].pieces) == n_said
    assert d.text(other) == alone("somebody else", 9)
    assert d.is_clean()


def test_what_a_cancelled_task_computed_may_be_used_again():
    d = driver()
    task = in_decode(d)
    d.cancel(task)
    d.step()
    again = d.post("the task", n_predict=4)
    d.step_until(lambda: d.outcomes[again].ends)
    assert d.outcomes[again].final.timings.prompt_n == 1
    assert d.text(again) == alone("the task", 4)


@pytest.mark.parametrize("phase", [in_prefill, in_decode])
def test_a_cancelled_task_without_cache_prompt_leaves_no_cells(phase):
    d = driver()
    post = d.post
    d.post = lambda *args, **fields: post(*args, cache_prompt=False, **fields)
    d.cancel(phase(d))
    d.step()
    assert d.backend.n_used == 0 and d.snapshot.kv_used == 0


def test_cancelling_what_is_over_or_unknown_does_nothing():
    d = driver()
    task = d.post("the task", n_predict=2)
    d.finish()
    d.cancel(task)
    d.cancel(12345)
    d.step()
    again = d.post("the task", n_predict=2)
    d.finish()
    assert d.text(again) == alone("the task", 2)


class Looping:
    """A driver whose loop runs on a thread of its own; `close` ends it."""

    def __init__(self, **options) -> None:
        self.driver = driver(**options)
        self.thread = threading.Thread(target=self.driver.scheduler.run, daemon=True)
        self.thread.start()

    def wait_for_decode(self) -> None:
        assert self.driver.backend.decoding.acquire(timeout=PATIENCE_S)

    def close(self, grace_s: float = 0.0) -> None:
        self.driver.backend.go()
        self.driver.close(grace_s)
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


def test_a_running_prefill_of_the_only_task_is_interrupted():
    loop = Looping()
    d = loop.driver
    d.backend.hold()
    task = d.post("the task " * 8)
    loop.wait_for_decode()
    d.cancel(task)  # nobody calls `go`: only the abort lets the decode end
    loop.close()
    assert len(d.backend.batches) == 1 and not d.outcomes[task].ends
    assert d.backend.history(0) == [] and d.is_clean()


def cancel_while_decoding(d: Driver, id_task: int, batch: int) -> None:
    """Let the client of a task go away while the given batch is being decoded."""

    def go_away(spans) -> int:
        if len(d.backend.batches) == batch:
            d.cancel(id_task)
        return 0

    d.backend.refuse = go_away


def test_an_interrupted_prefill_leaves_nothing_behind():
    d = driver()
    task = d.post("the task " * 8)
    cancel_while_decoding(d, task, batch=2)
    d.step(4)
    assert len(d.backend.batches) == 2 and not d.outcomes[task].ends
    assert len(d.backend.history(0)) == 16, "the first part is kept, what the abort left behind is not"
    assert d.is_clean()


def test_a_prefill_is_not_interrupted_while_others_are_at_work():
    d = driver()
    first = d.post("first " * 8, n_predict=3)
    second = d.post("second " * 3, n_predict=9)
    cancel_while_decoding(d, first, batch=5)
    d.step_until(lambda: d.outcomes[second].ends)
    assert d.rows(3) == [(1, 1, True)] and d.rows(4) == [(0, 16, False)]
    assert d.text(second) == alone("second " * 3, 9)
    n_rows = sum(len(span) for batch in d.backend.batches for span in batch if span.seq == 1)
    assert n_rows == len("second " * 3) + 8, "nothing of the second was decoded twice"


def test_a_cancel_during_the_decode_of_a_running_text_waits_for_its_end():
    d = driver()
    task = d.post("the task", n_predict=50)
    cancel_while_decoding(d, task, batch=5)
    d.step(7)
    assert len(d.backend.batches) == 5 and d.is_clean()
    assert len(d.outcomes[task].pieces) == 5


# ---- the end -----------------------------------------------------------------------------------------------------


def test_running_tasks_finish_within_the_grace_time_and_waiting_ones_are_refused():
    d = driver(n_slots=1)
    running = d.post("running", n_predict=9)
    d.step(2)
    waiting = d.post("waiting")
    d.step()
    d.close(grace_s=10.0)
    late = d.post("late")
    d.step()
    assert isinstance(d.outcomes[waiting].ends[0], Failure) and d.outcomes[waiting].failure.status == 503
    assert d.outcomes[late].failure.status == 503
    d.finish()
    assert d.text(running) == alone("running", 9)
    assert d.is_clean()


def test_at_the_end_of_the_grace_time_running_tasks_end_with_what_they_have():
    d = driver()
    task = d.post("running", n_predict=-1)
    d.step(3)
    d.close(grace_s=10.0)
    d.step(3)
    d.clock.now += 9.9
    d.step()
    assert not d.outcomes[task].ends
    d.clock.now += 0.2
    d.step()
    final = d.outcomes[task].final
    assert (final.stop, final.n_predicted) == ("limit", len(d.outcomes[task].text)) and final.n_predicted > 0
    assert d.is_clean()


def test_closing_at_once_ends_everything_and_the_loop():
    loop = Looping()
    d = loop.driver
    d.backend.hold()
    tasks = [d.post(f"task {i}", n_predict=-1) for i in range(5)]
    loop.wait_for_decode()
    loop.close()
    begun = [task for task in tasks if d.outcomes[task].final is not None]
    assert [d.outcomes[task].final.stop for task in begun] == ["limit"] * len(begun), "these had a token"
    assert len(begun) < 5 and all(d.outcomes[task].failure.status == 503 for task in tasks if task not in begun)
    assert d.is_clean()


def test_an_idle_loop_ends_when_it_is_closed():
    loop = Looping()
    loop.close(grace_s=60.0)
    assert loop.driver.is_clean()


def test_what_is_posted_after_the_end_is_still_answered_by_the_last_frame():
    loop = Looping()
    d = loop.driver
    d.backend.hold()
    d.post("running", n_predict=3)
    loop.wait_for_decode()
    d.close()
    late = [d.post(f"late {i}") for i in range(3)]
    loop.close()
    assert [d.outcomes[task].failure.status for task in late] == [503] * 3


def test_a_second_close_may_shorten_the_first():
    d = driver()
    task = d.post("running", n_predict=-1)
    d.step(2)
    d.close(grace_s=1000.0)
    d.step(2)
    assert not d.outcomes[task].ends
    d.close(grace_s=0.0)
    d.step()
    assert d.outcomes[task].final.stop == "limit"


def test_every_task_ends_exactly_once_whatever_happens():
    d = driver(n_slots=3, n_batch=8, max_queue=6)
    d.backend.fail_at.update({4: 1, 7: 2, 9: -1, 15: -3})
    cancelled = set()
    for i in range(30):
        task = d.post("prompt " * (i % 5) + str(i), n_predict=i % 7)
        d.step(i % 3)
        if i % 6 == 5:
            d.cancel(task - 2)
            cancelled.add(task - 2)
    d.step_until(lambda: not set(d.unfinished) - cancelled)
    d.step(2)
    for id_task, outcome in d.outcomes.items():
        assert len(outcome.ends) <= 1
        assert outcome.ends or id_task in cancelled
        if outcome.ends and isinstance(outcome.ends[0], Final):
            i = id_task
            assert d.text(id_task) == alone("prompt " * (i % 5) + str(i), i % 7)
    assert d.is_clean()
