"""Running slots are moved side by side in a split cache, without effect on any text."""

from __future__ import annotations

import pytest

from server.engine.loop.ranks import S_PER_TOKEN, find_best_window
from tests.fakes import FakeBackend
from tests.unit.engine.driving import Driver, alone


def driver(n_slots: int = 6, is_split: bool = True, step_s: float = 0.002, **config) -> Driver:
    """A step takes `step_s`, an exchange no time (a token of one is expected to take `S_PER_TOKEN` at first)."""
    d = Driver(FakeBackend(n_ctx=512 * n_slots, n_slots=n_slots, is_split=is_split), **config)
    decode = d.backend.decode

    def timed(spans):
        d.clock.now += step_s
        return decode(spans)

    d.backend.decode = timed
    return d


def seqs(d: Driver) -> list[int]:
    return sorted(slot.seq for slot in d.scheduler.slots if slot.run is not None)


@pytest.mark.parametrize(
    ("running", "n_slots", "window"),
    [
        ([0, 1, 3], 6, (0, 3)),
        ([0, 5], 6, (0, 2)),
        ([2, 3, 5], 6, (1, 4)),
        ([0, 2, 4], 5, (0, 3)),
        ([1, 3, 4], 5, (1, 4)),
        ([0, 4, 5], 6, (3, 6)),
    ],
)
def test_as_few_as_possible_have_to_move(running, n_slots, window):
    assert find_best_window(running, n_slots) == range(*window)


def test_a_gap_is_closed_once_it_has_cost_as_much_as_that_will_and_texts_go_on():
    step_s, prompts = 1e-4, [f"{name} has a long story to tell" for name in ("anna", "bert", "carl")]
    d = driver(step_s=step_s)
    tasks = [d.post(prompt, n_predict=60, id_slot=i) for prompt, i in zip(prompts, (0, 2, 5))]
    d.step_until(lambda: all(slot.run.n_decoded for slot in d.scheduler.slots if slot.run) and len(seqs(d)) == 3)
    n_tokens = len(prompts[0]) + 1  # of the slot that moves; the one in the gap is empty
    lost_s = step_s * 2 / 3  # by three micro-batches instead of one; each step makes it longer, too
    d.step(int(n_tokens * S_PER_TOKEN / (lost_s - S_PER_TOKEN)) - 1)
    assert seqs(d) == [0, 2, 5]
    d.step(4)
    assert seqs(d) == [0, 1, 2]
    d.finish()
    assert [d.text(task) for task in tasks] == [alone(prompt, 60) for prompt in prompts]
    assert d.backend.n_swaps == 1


def test_where_steps_are_dear_all_gaps_are_closed_at_once():
    d = driver(n_slots=9, step_s=0.1)
    tasks = [d.post(f"{i} runs", n_predict=30, id_slot=i) for i in (0, 2, 4, 6, 8)]
    d.step_until(lambda: d.backend.n_swaps > 0)
    assert d.backend.n_swaps == 2 and len(seqs(d)) == 5 and seqs(d)[-1] - seqs(d)[0] == 4
    d.finish()
    assert [d.text(task) for task in tasks] == [alone(f"{i} runs", 30) for i in (0, 2, 4, 6, 8)]


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
    d = driver(n_slots=3, step_s=1e-6)
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
