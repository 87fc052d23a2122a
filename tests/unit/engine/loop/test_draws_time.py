"""Slow sampling: a task ends when its time budget is spent, and several such tasks take turns, so that another stream
waits for at most one of them.
"""

from __future__ import annotations

import pytest

from server.engine.loop.answers import DRAW_S, DRAWS_S
from server.engine.seam.task import STOP_LIMIT, SamplingParams
from tests.fakes import FakeBackend
from tests.unit.engine.driving import Clock, Driver

SLOW = SamplingParams(temperature=0.0, grammar="slow")


class SlowBackend(FakeBackend):
    """Draws under a grammar take `seconds`, by both clocks."""

    def __init__(self, seconds: float, **fields: object) -> None:
        super().__init__(**fields)
        self.clock, self.seconds = Clock(), seconds

    def make_sampler(self, stages, grammar, waits=False):
        sampler = super().make_sampler(stages, grammar)
        if grammar:
            draw = sampler.sample

            def sample(row: int) -> int:
                self.clock.now += self.seconds
                return draw(row)

            sampler.sample = sample
        return sampler


def driver(seconds: float, n_slots: int = 4, **config: object) -> Driver:
    backend = SlowBackend(seconds, n_slots=n_slots)
    return Driver(backend, backend.clock, backend.clock, **config)


def test_a_task_whose_draws_take_too_long_fails_alone():
    d = driver(1.0)
    slow, beside = d.post("abc", 60, sampling=SLOW), d.post("xyz", 60)
    d.finish()
    failure = d.outcomes[slow].failure
    assert failure.status == 400 and "grammar" in failure.message
    n_tokens = sum(len(piece.tokens) for piece in d.outcomes[slow].pieces)
    assert n_tokens == next(n for n in range(99) if n * 1.0 > DRAWS_S + DRAW_S * n)
    assert d.outcomes[beside].failure is None and sum(len(p.tokens) for p in d.outcomes[beside].pieces) == 60


@pytest.mark.parametrize("seconds", [DRAW_S, 0.01, 0.0])
def test_a_task_within_its_budget_goes_on_as_long_as_it_likes(seconds):
    d = driver(seconds)
    id_task = d.post("abc", 300, sampling=SLOW)
    d.finish()
    assert d.outcomes[id_task].failure is None and d.outcomes[id_task].ends[-1].stop == STOP_LIMIT


def test_a_task_that_ends_with_its_last_second_has_its_answer():
    d = driver(DRAWS_S + 1.0)
    id_task = d.post("abc", 1, sampling=SLOW)
    d.finish()
    assert d.outcomes[id_task].failure is None


def gaps(d: Driver, id_task: int) -> list[float]:
    """The times between a stream's tokens until the end."""
    found, n, latest = [], 0, d.clock.now
    while d.outcomes[id_task].ends == []:
        d.step()
        pieces = len(d.outcomes[id_task].pieces)
        if pieces > n:
            found.append(d.clock.now - latest)
            n, latest = pieces, d.clock.now
    return found[1:]


@pytest.mark.parametrize("n_slow", [1, 2, 7])
@pytest.mark.parametrize(("seconds", "longest"), [(0.04, 0.1), (0.09, 0.1), (0.15, 0.15)])
def test_slow_draws_take_turns_in_the_time_of_a_stall(n_slow, seconds, longest):
    d = driver(seconds, n_slots=8, max_stall_ms=100)
    for i in range(n_slow):
        d.post(f"abc{i}", 30, sampling=SLOW)
    for _ in range(3 * n_slow):
        d.step()  # the first draw of each is the one that tells
    stream = d.post("xyz", 100, stream=True)
    assert max(gaps(d, stream)) <= longest + 1e-9
    d.finish()
    assert all(outcome.failure is None for outcome in d.outcomes.values())


def test_everybody_has_a_turn():
    d = driver(0.09, n_slots=8, max_stall_ms=100)
    tasks = [d.post(f"abc{i}", 20, sampling=SLOW) for i in range(6)]
    for _ in range(60):
        d.step()
    numbers = [sum(len(piece.tokens) for piece in d.outcomes[task].pieces) for task in tasks]
    assert max(numbers) - min(numbers) <= 2


def test_texts_are_the_same_in_turns():
    def said(seconds: float) -> list[str]:
        d = driver(seconds, n_slots=8, max_stall_ms=100)
        tasks = [d.post(f"abc{i}", 20, sampling=SLOW) for i in range(6)]
        d.finish()
        return ["".join(piece.text for piece in d.outcomes[task].pieces) for task in tasks]

    assert said(0.09) == said(0.0)


def test_without_a_stall_limit_nobody_waits_for_a_turn():
    d = driver(0.09, n_slots=4, max_stall_ms=0)
    tasks = [d.post(f"abc{i}", 20, sampling=SLOW) for i in range(3)]
    d.finish()
    assert len({len(d.outcomes[task].pieces) for task in tasks}) == 1


def test_the_time_of_draws_is_counted():
    d = driver(0.25)
    d.post("abc", 4, sampling=SLOW)
    d.finish()
    assert d.scheduler.snapshot().sampler_ms == pytest.approx(1000.0)
