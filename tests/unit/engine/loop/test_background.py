"""Background tasks: they give way to others, get a share of the time beside them, and all of it alone.

The clock is a model of a machine: a step takes a fixed time, and more for each of its rows.
"""

from __future__ import annotations

import random

import pytest

from server.engine.seam.task import BACKGROUND, GAVE_WAY
from tests.fakes import FakeBackend
from tests.unit.engine.driving import Clock, Driver, alone

STEP_MS = 5.0


class Machine(FakeBackend):
    """Takes `step_ms` for each decode, and `row_ms` for each row of it."""

    def __init__(self, clock: Clock, row_ms: float, step_ms: float, n_slots: int, is_split: bool = False) -> None:
        super().__init__(n_ctx=2048 * n_slots, n_slots=n_slots, is_split=is_split)
        self._clock, self._row_ms, self._step_ms = clock, row_ms, step_ms

    def decode(self, spans):
        self._clock.now += (self._step_ms + self._row_ms * sum(map(len, spans))) / 1e3
        return super().decode(spans)


def machine(row_ms: float = 1.0, step_ms: float = STEP_MS, n_slots: int = 4, **config) -> Driver:
    clock = Clock()
    return Driver(Machine(clock, row_ms, step_ms, n_slots), clock, **config)


def behind(d: Driver, prompt: str, n_predict: int = 8, **fields) -> int:
    return d.post(prompt, n_predict, priority=BACKGROUND, stream=False, **fields)


def times(d: Driver, id_task: int, n: int) -> list[float]:
    """When each of the first `n` tokens of a task came."""
    found: list[float] = []
    while len(found) < n:
        d.step()
        found += [d.clock.now] * (len(d.outcomes[id_task].tokens) - len(found))
    return found


# ---- slots and the queue -----------------------------------------------------------------------------------------


@pytest.mark.covers("J10")
def test_a_task_that_finds_no_slot_gets_that_of_the_background_task_with_least_to_lose():
    d = machine(n_slots=2)
    old = behind(d, "old", 100)
    d.step(5)
    young = behind(d, "young", 100)
    d.step(3)
    task = d.post("hello", 3)
    d.step()
    failure = d.outcomes[young].failure
    assert (failure.status, failure.reason) == (503, GAVE_WAY) and not d.outcomes[old].ends
    d.finish()
    assert d.text(task) == alone("hello", 3) and d.text(old) == alone("old", 100)


def test_no_more_give_way_than_there_are_tasks_without_a_slot():
    d = machine(n_slots=4)
    ids = [behind(d, f"b{i}", 50) for i in range(3)]
    d.step(3)
    tasks = [d.post(f"t{i}", 3) for i in range(2)]
    d.step(2)
    assert sum(d.outcomes[one].failure is not None for one in ids) == 1
    d.finish()
    assert all(d.outcomes[task].final for task in tasks)


def test_background_tasks_do_not_give_way_to_each_other():
    d = machine(n_slots=1)
    ids = [behind(d, f"b{i}", 5) for i in range(4)]
    d.finish()
    assert [d.text(one) for one in ids] == [alone(f"b{i}", 5) for i in range(4)]


def test_a_task_that_wants_a_certain_slot_gets_it():
    d = machine(n_slots=2)
    held = behind(d, "held", 50)
    d.step(2)
    [slot] = [slot.id for slot in d.scheduler.slots if slot.run]
    task = d.post("hello", 3, id_slot=slot)
    d.step(2)
    assert d.outcomes[held].failure.reason == GAVE_WAY
    d.finish()
    assert d.outcomes[task].final


def test_the_background_starts_behind_everybody_however_long_it_waits():
    d = machine(n_slots=1)
    running = d.post("running", 3)
    d.step()
    last = behind(d, "last", 1)
    others = [d.post(f"t{i}", 1, priority=-100) for i in range(30)]
    while not d.outcomes[last].ends:
        d.step()
    assert all(d.outcomes[one].ends for one in (running, *others))


def test_in_a_full_queue_the_background_goes_first():
    d = machine(n_slots=1, max_queue=2)
    d.post("running", 50)
    d.step()
    waiting = [behind(d, "a"), d.post("b")]
    d.step()
    late, refused = d.post("c"), behind(d, "d")
    d.step()
    assert d.outcomes[waiting[0]].failure.reason == GAVE_WAY and not d.outcomes[late].ends
    assert d.outcomes[refused].failure.reason == "queue_full"


def test_the_snapshot_counts_those_that_somebody_waits_for():
    d = machine(n_slots=1)
    d.post("running", 20)
    for i in range(3):
        behind(d, f"b{i}")
    d.post("waits")
    d.step(2)
    assert d.snapshot.n_deferred == 1


# ---- time --------------------------------------------------------------------------------------------------------


@pytest.mark.covers("J10")
@pytest.mark.parametrize("row_ms, step_ms", [(1.0, 5.0), (0.1, 10.0), (3.0, 1.0), (0.5, 30.0)])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_stream_keeps_its_rate_and_its_pauses_beside_the_background(row_ms, step_ms, seed):
    n = 300
    quiet = machine(row_ms, step_ms, 8)
    [*_, t_alone] = times(quiet, quiet.post("hello", n), n)
    d = machine(row_ms, step_ms, 8)
    random.seed(seed)
    task = d.post("hello", n)
    first = times(d, task, 1)[0]
    ids: list[int] = []
    found = [first]
    while len(found) < n:
        while len(ids) - sum(bool(d.outcomes[one].ends) for one in ids) < 7:
            ids.append(behind(d, f"{len(ids)} " + "x" * random.randint(1, 400), random.randint(1, 40)))
        d.step()
        found += [d.clock.now] * (len(d.outcomes[task].tokens) - len(found))
    gaps = [b - a for a, b in zip(found, found[1:])]
    assert (found[-1] - first) * 0.8 <= t_alone
    assert max(gaps) <= 0.1, max(gaps)
    assert found[-1] - first >= 1.1 * t_alone, "the background has a part"
    d.finish()
    assert d.text(task) == alone("hello", n)


def test_where_rows_cost_nothing_the_background_is_in_every_step():
    d = machine(row_ms=0.01, step_ms=20.0, n_slots=8)
    task = d.post("hello", 200)
    times(d, task, 1)
    ids = [behind(d, f"b{i}", 500) for i in range(7)]
    times(d, task, 150)
    assert min(len(d.outcomes[one].tokens) for one in ids) > 100


def test_a_prompt_does_not_wait_for_the_background_to_read_what_both_begin_with():
    d = machine(n_slots=4)
    behind(d, "x" * 1500, 1)
    d.step()
    started = d.clock.now
    task = d.post("x" * 1500 + "y", 1)
    times(d, task, 1)
    assert d.clock.now - started < 4.0


def test_alone_the_background_has_all_the_time():
    def spent(**fields) -> float:
        d = machine(n_slots=4)
        for i in range(8):
            d.post(f"{i}" * 200, 20, stream=False, **fields)
        d.finish()
        return d.clock.now

    assert spent(priority=BACKGROUND) == spent()


@pytest.mark.parametrize("seed", range(6))
def test_whoever_comes_beside_whom_everybody_gets_the_text_that_he_gets_alone(seed):
    random.seed(seed)
    d = machine(random.choice([0.1, 1.0, 4.0]), n_slots=random.choice([1, 2, 4]), max_stall_ms=random.choice([0, 20]))
    texts, open_ones = {}, {}
    for _ in range(40):
        prompt, n = random.choice("ab") * random.choice([3, 90, 300]) + str(random.randint(0, 5)), random.randint(1, 12)
        is_behind = random.random() < 0.6
        id_task = behind(d, prompt, n) if is_behind else d.post(prompt, n)
        texts[id_task] = (prompt, n)
        d.step(random.randint(0, 6))
    d.finish()
    for id_task, (prompt, n) in texts.items():
        failure = d.outcomes[id_task].failure
        assert failure.reason == GAVE_WAY if failure else d.text(id_task) == alone(prompt, n)
    assert d.is_clean() and not open_ones


def test_vectors_in_the_background_wait_for_their_part_of_the_time():
    clock = Clock()
    d = Driver(FakeBackend(n_ctx=4096, n_slots=2), clock)
    task = d.post("hello", 400)
    d.step(2)
    from server.engine.seam.task import Embed

    embedder = d.scheduler._embedder
    embedder.post(Embed(1000, ((1, 2), (3,)), in_background=True))
    embedder._t_background = clock.now + 1.0
    assert embedder.plan(True) == 0
    clock.now += 1.1
    assert embedder.plan(True) > 0
    embedder._t_background = clock.now + 1.0
    embedder.post(Embed(1001, ((4,),)))
    assert embedder.plan(True) > 0, "somebody waits for that"
    assert not d.outcomes[task].ends
