"""`engine.pace` and the stall budget: steps with a reader keep to their time on any machine, and prompts get on."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from server.engine.pace import FIRST_ROWS, MIN_ROWS, Pace
from server.engine.planner import Span
from tests.fakes import FakeBackend, letters
from tests.unit.engine.driving import Driver, alone


class Machine:
    """Steps that cost `base` ms, `row` ms per prompt row and `context` ms per row and 1000 tokens read before."""

    def __init__(self, base: float, row: float, context: float = 0.0, noise: float = 0.0) -> None:
        self.base, self.row, self.context = base, row, context
        self.n_read = 0
        self._noise, self._rng = noise, random.Random(1)

    def ms(self, n_generating: int, n_prompt: int) -> float:
        cost = (self.base if n_generating else 0.0) + n_prompt * (self.row + self.context * self.n_read / 1000)
        self.n_read += n_prompt
        return cost * (1 + self._noise * self._rng.random())


def steps(pace: Pace, machine: Machine, limit_ms: float, n: int) -> list[float]:
    """The times of `n` mixed steps planned by `pace`."""
    times = []
    for _ in range(n):
        rows = pace.rows_beside_streams(limit_ms)
        times.append(machine.ms(1, rows))
        pace.observe(1, rows, times[-1])
    return times


def pace_after_a_reader(machine: Machine) -> Pace:
    """As it is when somebody's prompt was read and some tokens have come."""
    pace = Pace()
    pace.observe(0, 200, machine.ms(0, 200))
    for _ in range(5):
        pace.observe(1, 0, machine.ms(1, 0))
    return pace


@pytest.mark.parametrize("machine", [
    Machine(3, 1.2), Machine(3, 1.2, noise=0.2), Machine(20, 0.05), Machine(40, 10), Machine(3, 1, context=1)])
def test_steps_keep_to_their_time_and_use_it(machine):
    times = steps(pace_after_a_reader(machine), machine, 100, 40)
    assert max(times) <= 130
    assert min(times[5:]) >= 70


def test_one_step_that_was_held_up_changes_nothing():
    machine = Machine(3, 1)
    pace = pace_after_a_reader(machine)
    steps(pace, machine, 100, 10)
    rows = pace.rows_beside_streams(100)
    pace.observe(1, rows, 5000)
    assert pace.rows_beside_streams(100) == rows


def test_a_slower_machine_is_noticed_within_some_steps():
    pace = pace_after_a_reader(Machine(3, 1))
    steps(pace, Machine(3, 1), 100, 10)
    assert steps(pace, Machine(3, 4), 100, 24)[-1] <= 110


def test_the_short_end_of_a_prompt_says_nothing_about_large_batches():
    machine = Machine(3, 1)
    pace = pace_after_a_reader(machine)
    steps(pace, machine, 100, 10)
    rows = pace.rows_beside_streams(100)
    for _ in range(10):
        pace.observe(1, 3, 40.0)
    assert pace.rows_beside_streams(100) == rows


def test_prompts_get_as_much_time_as_streams_where_these_alone_take_too_long():
    machine = Machine(200, 10)
    times = steps(pace_after_a_reader(machine), machine, 100, 20)
    assert times[-1] == pytest.approx(400, rel=0.1)


def test_there_is_always_some_row_for_prompts():
    machine = Machine(1, 1000)
    pace = pace_after_a_reader(machine)
    assert pace.rows_beside_streams(100) == MIN_ROWS


def test_nothing_measured_is_a_careful_guess():
    assert Pace().rows_beside_streams(100) == Pace().rows_alone(100) == FIRST_ROWS


def test_an_unbelievably_fast_step_is_no_division_by_zero():
    pace = Pace()
    pace.observe(1, 64, 0.0)
    assert pace.rows_beside_streams(100) > 10**6


# ---- in the engine ------------------------------------------------------------------------------------------------

class SlowBackend(FakeBackend):
    """Decodes take time on the driver's clock: `machine` says how much."""

    def __init__(self, machine: Machine, **fields) -> None:
        super().__init__(letters, **fields)
        self.machine, self.clock = machine, None
        self.step_ms: list[float] = []

    def decode(self, spans: Sequence[Span]) -> int:
        n_generating = sum(len(span) == 1 and span.output for span in spans)
        self.step_ms.append(self.machine.ms(n_generating, sum(map(len, spans)) - n_generating))
        self.clock.now += self.step_ms[-1] / 1e3
        return super().decode(spans)


def slow_driver(n_slots: int = 6, n_batch: int = 2048, **config) -> Driver:
    backend = SlowBackend(Machine(3, 1), n_ctx=4096 * n_slots, n_slots=n_slots, n_batch=n_batch)
    d = Driver(backend, **config)
    backend.clock = d.clock
    return d


def reading(d: Driver) -> int:
    """A task whose text is being streamed."""
    reader = d.post("once upon a time there was", n_predict=400)
    d.step_until(lambda: len(d.outcomes[reader].pieces) > 10)
    d.backend.step_ms.clear()
    return reader


def test_long_prompts_stall_a_reader_no_longer_than_asked():
    d = slow_driver(max_stall_ms=100)
    reader = reading(d)
    prompts = [d.post(letter * 2000, n_predict=3) for letter in "abcd"]
    d.step_until(lambda: all(d.outcomes[task].ends for task in prompts))
    assert max(d.backend.step_ms) <= 130
    assert sum(d.backend.step_ms) <= 1.1 * 4 * 2000, "the time is used"
    d.finish()
    assert d.text(reader) == alone("once upon a time there was", 400)
    assert [d.text(task) for task in prompts] == [alone(letter * 2000, 3) for letter in "abcd"]


def test_without_a_limit_a_prompt_is_read_in_whole_batches():
    d = slow_driver(max_stall_ms=0)
    reading(d)
    d.post("a" * 2000, n_predict=3)
    d.step()
    assert d.rows() == [(0, 1, True), (1, 2000, True)]


def test_without_a_reader_steps_are_whole_micro_batches():
    d = slow_driver(max_stall_ms=100, n_ubatch=256)
    d.post("a" * 2000, n_predict=3)
    d.step()
    assert d.rows() == [(0, 256, False)]
    d.step()
    assert d.rows() == [(0, 256, False)], "400 ms would be 400 rows: one micro-batch"


def test_a_short_prompt_does_not_wait_for_long_ones():
    d = slow_driver(max_stall_ms=100)
    reading(d)
    for letter in "abc":
        d.post(letter * 4000, n_predict=3)
    d.step(3)
    short = d.post("short", n_predict=3)
    started = d.clock.now
    d.step_until(lambda: d.outcomes[short].pieces)
    assert d.clock.now - started <= 0.25


def test_a_long_prompt_gets_on_while_short_ones_keep_coming():
    d = slow_driver(max_stall_ms=100)
    reading(d)
    long = d.post("x" * 1000, n_predict=1)
    for i in range(200):
        if d.outcomes[long].ends:
            break
        d.post(f"{i} short" * 20, n_predict=1)
        d.step()
    assert i <= 1000 / 45, "it had half of each step"
