"""`engine.pace` and the stall budget: streams wait for prompts no longer than the setting on any machine, and prompts
progress.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from server.engine.slots.pace import FEW, PATIENCE, TILE, Pace
from server.engine.slots.planner import Span
from tests.fakes import FakeBackend, letters
from tests.unit.engine.driving import Driver, alone

LIMIT_MS = 100.0


class Machine:
    """What a step costs, in ms. `row` and `cell` are of one prompt row, the latter for each token before it; `fixed`
    is of each of those tokens for the whole step. Below a tile, attention costs `small` times as much.

    The default is what was measured with SmolLM2 on two cores, each slot with its own KV stream.
    """

    def __init__(
        self,
        decode: float = 5.5,
        row: float = 0.37,
        cell: float = 0.00078,
        fixed: float = 0.045,
        small: float = 1.7,
        noise: float = 0.1,
    ) -> None:
        self.decode, self.row, self.cell, self.fixed, self.small = decode, row, cell, fixed, small
        self.speed = 1.0
        self._noise, self._rng = noise, random.Random(1)

    def ms(self, n_rows: int, depth: int) -> float:
        """Of a step of prompt rows."""
        cells = -(-(depth + n_rows) // 256) * 256
        attention = cells * (self.cell * n_rows + self.fixed * min(n_rows / TILE, 1.0))
        attention *= self.small if n_rows < TILE else 1.0
        return (n_rows * self.row + attention) * (1 + self._noise * self._rng.random()) / self.speed


def a_pace(machine: Machine) -> Pace:
    """As it is when somebody's short prompt was read and some tokens have come."""
    pace = Pace()
    pace.observe_prompt(20, 0, machine.ms(20, 0))
    for _ in range(5):
        pace.observe_decode(machine.decode / machine.speed)
    return pace


def read(
    pace: Pace,
    machine: Machine,
    n_tokens: int,
    limit_ms: float = LIMIT_MS,
    before: Callable[[int], None] = lambda depth: None,
) -> list[tuple[int, float]]:
    """A prompt in steps planned by `pace`: rows and time of each. `before` is called with each step's depth."""
    steps, depth = [], 0
    while depth < n_tokens:
        before(depth)
        n_rows = pace.count_rows(limit_ms, depth, n_tokens - depth)
        steps.append((n_rows, machine.ms(n_rows, depth)))
        pace.observe_prompt(n_rows, depth, steps[-1][1])
        depth += n_rows
    return steps


def longest(steps: list[tuple[int, float]]) -> float:
    return max(ms for _, ms in steps)


def total(steps: list[tuple[int, float]]) -> float:
    return sum(ms for _, ms in steps)


@pytest.mark.parametrize(
    "machine",
    [
        Machine(),
        Machine(noise=0.3),
        Machine(decode=10, row=0.05, cell=0, fixed=0),
        Machine(row=1, cell=0.0001, fixed=0),
        Machine(decode=8, row=0.01, cell=0.00001, fixed=0.001),
    ],
)
def test_steps_keep_to_their_time(machine):
    pace = a_pace(machine)
    read(pace, machine, 600)
    for _ in range(4):
        steps = read(pace, machine, 600)
        assert longest(steps) <= 1.3 * LIMIT_MS
        assert all(n_rows % TILE == 0 for n_rows, _ in steps[:-1])


def test_the_time_that_is_there_is_used():
    machine = Machine(row=0.1, cell=0, fixed=0, noise=0)
    pace = a_pace(machine)
    read(pace, machine, 3000)
    assert min(ms for _, ms in read(pace, machine, 9000)[:-1]) >= 0.9 * LIMIT_MS


def test_deep_in_a_text_a_tile_may_take_longer_because_less_would_hardly_be_quicker():
    machine = Machine()
    pace = a_pace(machine)
    for _ in range(4):
        steps = read(pace, machine, 1600)
        assert longest(steps) <= 1.1 * PATIENCE * LIMIT_MS and min(n_rows for n_rows, _ in steps[:-1]) == TILE


def test_prompts_take_little_longer_than_without_a_limit():
    machine = Machine(noise=0)
    pace = a_pace(machine)
    limited = [total(read(pace, machine, 600)) for _ in range(4)]
    at_once = sum(machine.ms(min(512, 600 - depth), depth) for depth in (0, 512))
    assert sum(limited) <= 1.35 * 4 * at_once
    cheap = Machine(row=0.3, cell=0.00005, fixed=0.0005, noise=0)
    pace = a_pace(cheap)
    limited = [total(read(pace, cheap, 2000)) for _ in range(4)]
    at_once = sum(cheap.ms(min(512, 2000 - depth), depth) for depth in range(0, 2000, 512))
    assert sum(limited) <= 1.1 * 4 * at_once


@pytest.mark.parametrize("speed", [0.5, 0.2])
@pytest.mark.parametrize("at", [0, 600, 1200])
def test_a_slower_machine_is_noticed_within_some_steps(at, speed):
    machine = Machine()
    pace = a_pace(machine)
    read(pace, machine, 1600)
    read(pace, machine, at)
    machine.speed = speed
    steps = read(pace, machine, 1600)
    assert longest(steps[4:]) <= 1.1 * PATIENCE * LIMIT_MS
    assert longest(steps[:4]) <= 1.1 * PATIENCE * LIMIT_MS / speed


@pytest.mark.parametrize("speed", [0.5, 0.1])
def test_after_a_slow_time_steps_are_large_again(speed):
    machine = Machine()
    pace = a_pace(machine)
    usual = total(read(pace, machine, 1200))
    machine.speed = speed
    read(pace, machine, 1200)
    machine.speed = 1.0
    read(pace, machine, 300)
    assert total(read(pace, machine, 1200)) <= 1.1 * usual


def test_small_steps_do_not_lead_to_smaller_ones():
    machine = Machine(small=1.9, noise=0)
    machine.speed = 0.3
    pace = a_pace(machine)
    for _ in range(3):
        steps = read(pace, machine, 1200)
        assert min(ms for n_rows, ms in steps[:-1] if n_rows > FEW) >= 0.5 * LIMIT_MS


def test_one_step_that_was_held_up_changes_nothing():
    machine = Machine(noise=0)
    pace = a_pace(machine)
    read(pace, machine, 600)
    rows = [pace.count_rows(LIMIT_MS, depth, 1000) for depth in (0, 300, 600)]
    pace.observe_prompt(64, 300, 5000)
    assert [pace.count_rows(LIMIT_MS, depth, 1000) for depth in (0, 300, 600)] == pytest.approx(rows, abs=TILE)


def test_a_slow_model_is_read_in_few_rows():
    machine = Machine(decode=60, row=10, cell=0, fixed=0, noise=0)
    pace = a_pace(machine)
    assert {n_rows for n_rows, _ in read(pace, machine, 80)} == {FEW}


def test_the_first_step_on_an_unknown_machine_is_a_careful_guess():
    assert Pace().count_rows(LIMIT_MS, 0, 1000) <= 2 * TILE
    slow = Pace()
    slow.observe_decode(300)
    assert slow.count_rows(LIMIT_MS, 0, 1000) == FEW


def test_the_end_of_a_prompt_goes_along_if_it_takes_but_little_longer():
    machine = Machine(row=1, cell=0, fixed=0, noise=0)
    pace = a_pace(machine)
    read(pace, machine, 256)
    assert pace.count_rows(LIMIT_MS, 0, 115) == 115 and pace.count_rows(LIMIT_MS, 0, 130) == TILE


def test_a_step_is_at_most_twice_as_long_as_those_before():
    pace = Pace()
    pace.observe_prompt(64, 0, 0.0)
    assert pace.count_rows(LIMIT_MS, 0, 10000) == 128


def test_a_further_step_is_whole_tiles_or_the_rest_of_a_prompt_or_nothing():
    machine = Machine(row=1, cell=0, fixed=0, noise=0)
    pace = a_pace(machine)
    assert Pace().count_rows_within(LIMIT_MS, 0, 10) == 0, "nothing can be said"
    read(pace, machine, 640)
    assert pace.count_rows_within(70, 0, 500) == TILE
    assert pace.count_rows_within(40, 0, 500) == 0
    assert pace.count_rows_within(40, 0, 17) == 17
    assert pace.count_rows_within(-5, 0, 17) == 0


# ---- in the engine ------------------------------------------------------------------------------------------------


class SlowBackend(FakeBackend):
    """Decodes take time on the driver's clock: `machine` says how much. Prompt rows are those before outputs."""

    def __init__(self, machine: Machine, **fields) -> None:
        super().__init__(letters, **fields)
        self.machine, self.clock = machine, None
        self.prompt_ms: list[float] = []

    def decode(self, spans: Sequence[Span]) -> int:
        is_prompt = any(len(span) > 1 or not span.output for span in spans)
        assert not is_prompt or not any(self.is_generating(span.seq) for span in spans), "a mixed batch"
        assert not is_prompt or not self.is_split or are_a_group(spans), "prompts mixed"
        ms = self.machine.decode
        if is_prompt:
            ms = self.machine.ms(sum(map(len, spans)), spans[0].pos)
            self.prompt_ms.append(ms)
        self.clock.now += ms / 1e3
        return super().decode(spans)


def are_a_group(spans: Sequence[Span]) -> bool:
    """One prompt, or short ones of about one length in slots side by side."""
    first, *others = spans
    lengths = [len(span) for span in spans]
    return not others or (
        [span.seq for span in spans] == list(range(first.seq, first.seq + len(spans)))
        and max(lengths) < TILE
        and max(lengths) <= 1.25 * min(lengths)
    )


def slow_driver(
    is_split: bool = True, n_slots: int = 6, n_batch: int = 2048, machine: Machine | None = None, **config
) -> Driver:
    backend = SlowBackend(
        machine or Machine(), n_ctx=4096 * n_slots, n_slots=n_slots, n_batch=n_batch, is_split=is_split
    )
    d = Driver(backend, **config)
    backend.clock = d.clock
    backend.is_generating = lambda seq: d.scheduler.slots[seq].run.next_token is not None
    return d


def reading(d: Driver, **fields: object) -> int:
    """A task whose text is being streamed."""
    reader = d.post("once upon a time there was", n_predict=600, **{"stream": True, **fields})
    d.step_until(lambda: len(d.outcomes[reader].pieces) > 10)
    d.backend.prompt_ms.clear()
    return reader


def gaps_of(d: Driver, id_task: int, until: Callable[[], object]) -> list[float]:
    """Milliseconds between the pieces of a task while stepping until `until()`."""
    gaps, n, latest = [], len(d.outcomes[id_task].pieces), d.clock.now
    while not until():
        d.step()
        if len(d.outcomes[id_task].pieces) > n:
            gaps.append((d.clock.now - latest) * 1e3)
            n, latest = len(d.outcomes[id_task].pieces), d.clock.now
    return [*gaps, (d.clock.now - latest) * 1e3]


@pytest.mark.parametrize("is_split", [True, False])
def test_long_prompts_stall_a_reader_no_longer_than_asked(is_split):
    d = slow_driver(is_split, max_stall_ms=100)
    reader = reading(d)
    prompts = [d.post(letter * 600, n_predict=3) for letter in "abcd"]
    started = d.clock.now
    gaps = gaps_of(d, reader, lambda: all(d.outcomes[task].ends for task in prompts))
    assert max(gaps) <= (125 if is_split else 400), "in a common stream each row goes over everybody's tokens"
    if is_split:
        at_once = 4 * sum(d.backend.machine.ms(min(512, 600 - depth), depth) for depth in (0, 512))
        assert (d.clock.now - started) * 1e3 <= 1.5 * at_once, "the time is used"
    d.finish()
    assert d.text(reader) == alone("once upon a time there was", 600)
    assert [d.text(task) for task in prompts] == [alone(letter * 600, 3) for letter in "abcd"]


def test_without_a_limit_a_prompt_is_read_in_whole_batches():
    d = slow_driver(max_stall_ms=0)
    reading(d)
    d.post("a" * 2000, n_predict=3)
    d.step(2)
    assert [d.rows(-2), d.rows(-1)] == [[(1, 2000, True)], [(0, 1, True), (1, 1, True)]]


def test_without_a_stream_steps_are_whole_micro_batches():
    d = slow_driver(machine=Machine(row=1, cell=0, fixed=0, noise=0), max_stall_ms=100, n_ubatch=256)
    d.post("a" * 2000, n_predict=3)
    d.step()
    assert d.rows() == [(0, 256, False)]
    d.step()
    assert d.rows() == [(0, 256, False)], "400 ms would be 400 rows: one micro-batch"


def test_where_nobody_reads_along_prompts_get_four_times_as_long():
    d = slow_driver(max_stall_ms=100)
    quiet = reading(d, stream=False)
    d.post("a" * 4000, n_predict=1)
    gaps = gaps_of(d, quiet, lambda: len(d.scheduler.slots[1].tokens) > 2000)
    assert 200 <= max(gaps) <= 500


@pytest.mark.parametrize(("group_part", "sizes"), [(1, [8]), (2, [4, 2, 1, 1]), (8, [1] * 8)])
def test_a_part_of_the_short_prompts_shares_a_step_before_the_first_text_goes_on(group_part: int, sizes: list[int]):
    d = slow_driver(n_slots=8, max_stall_ms=100, group_part=group_part)
    tasks = [d.post(f"{i} a short question", n_predict=20, stream=True) for i in range(8)]
    d.step(len(sizes) + 1)
    assert [len(d.rows(i)) for i in range(len(sizes))] == sizes
    assert d.rows(len(sizes)) == [(i, 1, True) for i in range(8)]
    assert [len(d.outcomes[task].tokens) for task in tasks] == [2] * 8
    d.finish()
    assert [d.text(task) for task in tasks] == [alone(f"{i} a short question", 20) for i in range(8)]


def test_a_group_that_is_too_large_for_a_step_loses_some_of_its_prompts_not_all():
    d = slow_driver(machine=Machine(row=2.5, cell=0, fixed=0, noise=0), n_slots=9, max_stall_ms=80)
    reading(d)
    n_steps = len(d.backend.batches)
    for i in range(8):
        d.post(f"{i} a short question", n_predict=3, stream=True)
    d.step(2)
    prompts = next(d.rows(i) for i in range(n_steps, len(d.backend.batches)) if d.rows(i)[0][1] > 1)
    assert len(prompts) == 3, "a step has 64 rows; half of the group would be four prompts of 18"


def test_a_group_is_of_one_length_and_came_together():
    def first_rows(texts: Sequence[str]) -> list:
        d = slow_driver(n_slots=8, max_stall_ms=100)
        for text in texts:
            d.post(text, n_predict=3, stream=True)
        d.step()
        return d.rows(0)

    alike = [f"{i} a short question" for i in range(8)]
    assert len(first_rows(alike)) == 4
    assert len(first_rows([text + "?" * (i % 2) for i, text in enumerate(alike)])) == 4, "nearly"
    assert len(first_rows([text + "?" * (10 * i) for i, text in enumerate(alike)])) == 1
    assert len(first_rows([10 * text for text in alike])) == 1, "long ones fill a tile by themselves"
    assert len(first_rows(alike[:3])) == 1


@pytest.mark.parametrize(("apart_s", "n_together"), [(0.0, 4), (0.2, 1)])
def test_who_comes_later_is_not_of_the_group(apart_s: float, n_together: int):
    d = slow_driver(n_slots=12, max_stall_ms=100)
    for names, wait_s in (("abcdef", apart_s), ("ghijkl", 0.0)):
        for name in names:
            d.post(f"{name} short question", n_predict=3)
        d.step()
        d.clock.now += wait_s
    assert (len(d.rows(0)), len(d.rows(1))) == (3, n_together)


def test_who_has_begun_to_read_does_not_wait_for_a_whole_group():
    d = slow_driver(n_slots=9, max_stall_ms=100)
    reader = reading(d)
    tasks = [d.post(f"{i} a short question", n_predict=20, stream=True) for i in range(8)]
    assert max(gaps_of(d, reader, lambda: all(d.outcomes[task].pieces for task in tasks))) <= 110


def prompts_before_the_texts_go_on(n_tasks: int, max_stall_ms: float) -> int:
    """So many short questions come at once: how many of them are read before a stream has its second token."""
    d = slow_driver(n_slots=n_tasks, max_stall_ms=max_stall_ms)
    for i in range(n_tasks):
        d.post(f"{i:02} a short question", n_predict=20, stream=True)
    d.finish()
    n_steps = next(i for i, batch in enumerate(d.backend.batches) if len(batch[0]) == 1)
    return sum(map(len, d.backend.batches[:n_steps]))


def test_a_group_that_comes_at_once_is_read_before_its_texts_go_on():
    assert prompts_before_the_texts_go_on(32, 100) == 32


def test_texts_go_on_when_the_time_for_further_prompts_is_over():
    assert 5 <= prompts_before_the_texts_go_on(32, 1) <= 28


@pytest.mark.parametrize("late_s, is_paused", [(0.5, True), (1.5, False)])
def test_prompts_that_come_later_than_a_group_take_turns_with_its_texts(late_s, is_paused):
    d = slow_driver(n_slots=9, max_stall_ms=100)
    first = d.post("a short question", n_predict=20, stream=True)
    d.step_until(lambda: d.outcomes[first].tokens)
    d.clock.now += late_s
    tasks = [d.post(f"{i} a short question", n_predict=20, stream=True) for i in range(8)]
    d.step_until(lambda: len(d.outcomes[first].tokens) > 1)
    assert all(d.outcomes[task].tokens for task in tasks) == is_paused


def test_streams_with_different_adapters_all_go_on_while_prompts_are_read():
    d = slow_driver(max_stall_ms=100)
    d.backend.adapters = ("one",)
    readers = [reading(d, lora=lora) for lora in (((0, 1.0),), ())]
    prompts = [d.post("x" * 800, n_predict=1, lora=lora) for lora in (((0, 1.0),), ())]
    n_before = [len(d.outcomes[reader].pieces) for reader in readers]
    d.step_until(lambda: all(d.outcomes[task].ends for task in prompts))
    n_steps = len(d.backend.prompt_ms)
    for reader, n in zip(readers, n_before):
        assert len(d.outcomes[reader].pieces) - n >= n_steps // 2 - 2


def test_a_short_prompt_does_not_wait_for_long_ones():
    d = slow_driver(max_stall_ms=100)
    reading(d)
    for letter in "abc":
        d.post(letter * 2000, n_predict=3)
    d.step(3)
    short = d.post("short", n_predict=3)
    started = d.clock.now
    d.step_until(lambda: d.outcomes[short].pieces)
    assert d.clock.now - started <= 0.25


def test_a_long_prompt_gets_on_while_short_ones_keep_coming():
    d = slow_driver(max_stall_ms=100)
    reading(d)
    long = d.post("x" * 1000, n_predict=1)
    n_short = 0
    while not d.outcomes[long].ends:
        d.post(f"{n_short} short" * 20, n_predict=1)
        n_short += 1
        d.step()
    n_rows = sum(len(span) for batch in d.backend.batches for span in batch if len(span) > 1)
    assert n_rows <= 2 * 1000 + 300, "it had half of the rows"


def test_starting_many_tasks_takes_no_longer_than_a_reader_can_wait():
    d = slow_driver(n_slots=9, max_stall_ms=100)
    reader = reading(d)
    make = d.backend.make_sampler

    def slow_start(*args):
        d.clock.now += 0.05  # as if the slot's cache had to be saved
        return make(*args)

    d.backend.make_sampler = slow_start
    tasks = [d.post(f"{i} a short question", n_predict=20, stream=True) for i in range(8)]
    assert max(gaps_of(d, reader, lambda: all(d.outcomes[task].pieces for task in tasks))) <= 170
    d.finish()
    assert [d.text(task) for task in tasks] == [alone(f"{i} a short question", 20) for i in range(8)]


# ---- beside engines of other models ----------------------------------------------------------------------------------


class Shared:
    """Turns that are shared with another engine, which loads or doesn't."""

    are_shared = True
    is_loading = False

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def beside_another(d: Driver) -> Shared:
    d.scheduler._turns = d.scheduler._batching._turns = shared = Shared()
    return shared


@pytest.mark.covers("D19")
def test_beside_another_engine_a_prompt_is_read_in_steps_of_one_stall():
    d = slow_driver(machine=Machine(row=1, cell=0, fixed=0, noise=0), max_stall_ms=100, n_ubatch=256)
    beside_another(d)
    task = d.post("a" * 2000, n_predict=3)
    d.finish()
    assert max(d.backend.prompt_ms[1:]) <= 125
    assert d.text(task) == alone("a" * 2000, 3)


def test_a_core_is_left_to_an_engine_that_loads_and_taken_back():
    d = slow_driver()
    told = []
    d.backend.leave_cores = told.append
    shared = beside_another(d)
    reading(d)
    assert told == []
    shared.is_loading = True
    d.step(3)
    assert told == [1]
    shared.is_loading = False
    d.step(3)
    assert told == [1, 0]


def test_exact_answers_keep_their_number_of_threads():
    d = slow_driver(exact=True)
    d.backend.leave_cores = lambda n: pytest.fail("sums of other parts round differently")
    beside_another(d).is_loading = True
    d.post("once", n_predict=3)
    d.finish()
