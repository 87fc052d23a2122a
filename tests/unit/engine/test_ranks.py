"""Running slots stand side by side in a split cache, and nobody's text notices that they were moved."""

from __future__ import annotations

import pytest

from server.engine.ranks import PATIENCE_STEPS, best_window
from tests.fakes import FakeBackend
from tests.unit.engine.driving import Driver, alone


def driver(n_slots: int = 6, is_split: bool = True, **config) -> Driver:
    return Driver(FakeBackend(n_ctx=512 * n_slots, n_slots=n_slots, is_split=is_split), **config)


def seqs(d: Driver) -> list[int]:
    return sorted(slot.seq for slot in d.scheduler.slots if slot.run is not None)


@pytest.mark.parametrize(("running", "n_slots", "window"), [
    ([0, 1, 3], 6, (0, 3)), ([0, 5], 6, (0, 2)), ([2, 3, 5], 6, (1, 4)), ([0, 2, 4], 5, (0, 3)), ([1, 3, 4], 5, (1, 4)),
    ([0, 4, 5], 6, (3, 6))])
def test_as_few_as_possible_have_to_move(running, n_slots, window):
    assert best_window(running, n_slots) == range(*window)


def test_a_gap_is_closed_after_some_steps_and_texts_go_on():
    d = driver()
    prompts = [f"{name} has a long story to tell" for name in ("anna", "bert", "carl")]
    tasks = [d.post(prompt, n_predict=60, id_slot=i) for prompt, i in zip(prompts, (0, 2, 5))]
    d.step(2)
    assert seqs(d) == [0, 2, 5]
    d.step(2 * (PATIENCE_STEPS + 2))
    assert seqs(d) == [0, 1, 2]
    d.finish()
    assert [d.text(task) for task in tasks] == [alone(prompt, 60) for prompt in prompts]
    assert d.backend.n_swaps == 1


def test_what_an_idle_slot_held_is_still_its_own():
    d = driver(n_slots=3)
    idle = d.post("what the idle slot has", n_predict=4, id_slot=1)
    d.finish()
    tasks = [d.post(f"{i} runs", n_predict=40, id_slot=i) for i in (0, 2)]
    d.finish()
    assert d.backend.n_swaps == 1
    again = d.post("what the idle slot has" + d.text(idle) + "more", n_predict=4, id_slot=1)
    d.finish()
    assert d.outcomes[again].final.timings.cache_n >= len("what the idle slot has")
    assert [d.text(task) for task in tasks] == [alone(f"{i} runs", 40) for i in (0, 2)]
    for slot in d.scheduler.slots:
        assert d.backend.history(slot.seq) == slot.tokens


def test_a_newcomer_may_fill_the_gap_first():
    d = driver(n_slots=3)
    for i in (0, 2):
        d.post(f"{i} runs", n_predict=40, id_slot=i)
    d.step(3)
    d.post("1 runs", n_predict=40, id_slot=1)
    d.finish()
    assert d.backend.n_swaps == 0


def test_what_would_take_longer_than_a_stall_stays():
    d = driver(max_stall_ms=1)
    for i in (0, 2):
        d.post("long " * 60, n_predict=30, id_slot=i, cache_prompt=False)
    d.finish()
    assert d.backend.n_swaps == 0


def test_a_backend_that_can_not_do_it_is_asked_once():
    d = driver()
    d.backend.takes_states = False
    asked = []
    swap = d.backend.swap
    d.backend.swap = lambda a, b: asked.append((a, b)) or swap(a, b)
    tasks = [d.post(f"{i} runs", n_predict=40, id_slot=i) for i in (0, 2)]
    d.finish()
    assert len(asked) == 1 and seqs(d) == []
    assert [d.text(task) for task in tasks] == [alone(f"{i} runs", 40) for i in (0, 2)]


@pytest.mark.parametrize("config", [{"exact": True}, {"is_split": False}])
def test_elsewhere_nobody_moves(config):
    d = driver(**config)
    tasks = [d.post(f"{i} runs", n_predict=40, id_slot=i) for i in (0, 2)]
    d.finish()
    assert d.backend.n_swaps == 0 and all(d.outcomes[task].final for task in tasks)
