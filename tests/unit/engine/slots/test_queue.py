"""`engine.queue`: fair between owners, in order within one, urgent tasks first, and no task waits for ever."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from server.engine.seam.task import Task
from server.engine.slots.queue import FairQueue, Waiting
from tests.fakes import FakeBackend
from tests.unit.engine.driving import Driver


def queue_of(*tasks: Task) -> FairQueue:
    queue = FairQueue()
    for task in tasks:
        queue.push(Waiting(task, 0.0))
    return queue


def task(id_: int, owner: str = "", n: int = 10, **fields: int) -> Task:
    return Task(id_, tuple(range(n)), owner=owner, **fields)


def popped(queue: FairQueue, n: int | None = None) -> list[int]:
    return [queue.pop().task.id for _ in range(len(queue) if n is None else n)]


def test_one_owner_is_served_in_order_of_arrival():
    assert popped(queue_of(*(task(i, n=(i * 7919) % 5000) for i in range(7)))) == list(range(7))


def test_an_owner_with_many_requests_does_not_keep_another_waiting():
    queue = queue_of(*(task(i, "greedy") for i in range(20)), task(20, "modest"), task(21, "modest"))
    assert {20, 21} <= set(popped(queue, 5))


def test_an_owner_of_long_prompts_gets_as_many_tokens_not_as_many_turns():
    queue = queue_of(*(task(i, "long", 5000) for i in range(20)), *(task(20 + i, "short", 100) for i in range(400)))
    tokens = Counter()
    for _ in range(200):
        waiting = queue.pop()
        tokens[waiting.task.owner] += waiting.cost
    assert 0.5 <= tokens["long"] / tokens["short"] <= 2


def test_a_long_prompt_is_reached_however_many_short_ones_come():
    queue = queue_of(task(0, "long", 100_000))
    for i in range(1, 2000):
        queue.push(Waiting(task(i, f"short {i % 3}"), 0.0))
        if queue.pop().task.id == 0:
            return
    raise AssertionError("it never was")


def test_higher_priority_goes_first_and_others_keep_their_order():
    queue = queue_of(task(0), task(1, priority=2), task(2, priority=1), task(3, priority=2), task(4, priority=-1))
    assert popped(queue) == [1, 3, 2, 0, 4]


def test_low_priority_is_reached_while_urgent_ones_keep_coming():
    queue = queue_of(task(0, priority=-5))
    for i in range(1, 20):
        queue.push(Waiting(task(i, priority=5), 0.0))
        if queue.pop().task.id == 0:
            return
    raise AssertionError("it never was")


def test_who_cannot_run_is_passed_over_and_keeps_the_place():
    queue = queue_of(task(0, id_slot=1), task(1), task(2, id_slot=1))
    assert queue.pop(lambda task: task.id_slot < 0).task.id == 1
    assert queue.pop(lambda task: task.id_slot < 0) is None
    assert popped(queue) == [0, 2]


def test_a_removed_task_is_gone():
    queue = queue_of(task(0), task(1), task(2))
    assert queue.remove(1).task.id == 1 and queue.remove(1) is None
    assert len(queue) == 2 and popped(queue) == [0, 2]


def test_the_order_foretold_is_the_order_that_comes():
    tasks = [task(i, "ab"[i % 3 == 0], 100 * i, priority=i % 2) for i in range(7)]
    assert queue_of(*tasks).order() == popped(queue_of(*tasks))


TASKS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 3000), st.integers(-1, 1), st.integers(-1, 2)), max_size=30
)


@given(rows=TASKS, free=st.lists(st.sets(st.integers(0, 2)), max_size=40))
def test_every_task_comes_out_once_whatever_is_free(rows, free):
    tasks = [task(i, owner, n, priority=priority, id_slot=slot) for i, (owner, n, priority, slot) in enumerate(rows)]
    queue = queue_of(*tasks)
    seen = []
    for slots in free:
        waiting = queue.pop(lambda task, slots=slots: task.id_slot < 0 or task.id_slot in slots)
        if waiting is None:
            assert all(w.task.id_slot >= 0 and w.task.id_slot not in slots for w in queue)
        else:
            seen.append(waiting.task)
    seen += [queue.pop().task for _ in range(len(queue))]
    assert queue.pop() is None
    assert sorted(task.id for task in seen) == list(range(len(rows)))


# ---- in the engine ------------------------------------------------------------------------------------------------


def starts(d: Driver) -> list[int]:
    """Tasks in the order in which they got their first token."""
    order: list[int] = []
    while d.unfinished:
        d.step()
        order += [i for i, outcome in sorted(d.outcomes.items()) if outcome.pieces and i not in order]
    return order


def test_the_engine_serves_owners_in_turn_and_urgent_ones_first():
    d = Driver(FakeBackend(n_ctx=512))
    d.post("running", n_predict=3)
    d.step()
    for _ in range(3):
        d.post("a" * 10, n_predict=1, owner="greedy")
    modest = d.post("b", n_predict=1, owner="modest")
    urgent = d.post("c", n_predict=1, owner="greedy", priority=1)
    order = starts(d)
    assert order.index(urgent) == 1
    assert order.index(modest) <= 3


def test_a_waiting_task_hears_its_place_in_the_queue():
    d = Driver(FakeBackend(n_ctx=512))
    d.post("running", n_predict=10)
    d.step()
    first = d.post("first", n_predict=2)
    second = d.post("second", n_predict=2, progress=True)
    d.step()
    assert [event.place for event in d.outcomes[second].progress] == [2]
    d.step(3)
    assert len(d.outcomes[second].progress) == 1, "said once"
    d.step_until(lambda: d.outcomes[first].pieces)
    assert [event.place for event in d.outcomes[second].progress] == [2, 1]
    d.finish()
    places = [event.place for event in d.outcomes[second].progress]
    assert places[:2] == [2, 1] and set(places[2:]) == {0}


def test_the_place_moves_up_when_somebody_before_gives_up():
    d = Driver(FakeBackend(n_ctx=512))
    d.post("running", n_predict=10)
    d.step()
    first = d.post("first", n_predict=2)
    second = d.post("second", n_predict=2, progress=True)
    d.step()
    d.cancel(first)
    d.step()
    assert [event.place for event in d.outcomes[second].progress] == [2, 1]
