"""The number of drafted rows that pays, from the measured cost of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from server.engine.speculation.cost import (
    FORGET_AFTER,
    MAX_WAIT,
    RowCost,
    StepCost,
    compute_micro_batches,
    find_best_common_length,
    find_best_lengths,
)


def measured(seconds_of, sizes=range(1, 65)) -> StepCost:
    cost = StepCost()
    for n in sizes:
        for _ in range(20):
            cost.observe(n, seconds_of(n))
    return cost


FLAT = measured(lambda n: 0.010 + 0.0001 * n)  # a GPU: rows are nearly free
STEEP = measured(lambda n: 0.010 * n)  # a busy CPU: a row more costs what it gives
CPU = measured(lambda n: 0.010 * (1 if n == 1 else 1.4 + 0.28 * (n - 1)))
MATRIX_UNITS = measured(lambda n: 0.010 * (1 if n == 1 else 1.4 + 0.08 * (n - 1)))


def lengths(chance: float, cost: StepCost, n: int = 16, n_rows: int = 1, n_generating: int = 1, room: int = 100) -> int:
    return find_best_lengths([[chance ** (i + 1) for i in range(n)]], n_generating, room, seconds(cost, n_rows), 1.05)[
        0
    ]


def seconds(cost: StepCost, n_rows: int) -> Callable[[Sequence[int]], float]:
    return lambda lengths: cost.estimate(n_rows + sum(lengths))


def common_length(chances, n_rows: int, cost: StepCost, draft_seconds: Callable[[int], float], min_gain: float) -> int:
    return find_best_common_length(chances, n_rows, seconds(cost, n_rows), draft_seconds, min_gain)


def test_all_steps_are_taken_to_get_slower_when_the_plain_ones_do():
    cost = StepCost()
    for _ in range(50):
        cost.observe(1, 1.0)
        cost.observe(8, 4.0)
    for _ in range(100):
        cost.observe(1, 2.0)
    assert cost.estimate(8) / cost.estimate(1) == pytest.approx(4.0) and cost.estimate(1) == pytest.approx(
        2.0, rel=0.05
    )
    for _ in range(20):
        cost.observe(8, 4.0)
    assert cost.estimate(8) < 4.1 and cost.estimate(1) == pytest.approx(2.0, rel=0.05), "what is measured counts more"


def test_estimates_are_the_measured_times_between_and_beyond_them_plausible_ones():
    cost = measured(lambda n: n * 1e-3, (4, 8))
    assert cost.estimate(4) == pytest.approx(4e-3) and cost.estimate(6) == pytest.approx(6e-3)
    assert cost.estimate(1) < cost.estimate(2) < 4e-3 and 8e-3 < cost.estimate(9) < cost.estimate(20)


def test_before_anything_is_measured_steps_are_still_comparable():
    cost = StepCost()
    assert not cost.is_known
    estimates = [cost.estimate(n) for n in (1, 2, 8, 64)]
    assert estimates[0] == 1.0 and estimates == sorted(estimates)


def test_a_spike_hardly_moves_an_estimate_and_a_lasting_change_does():
    cost = measured(lambda n: 1e-3, (1,))
    cost.observe(1, 0.5)
    assert cost.estimate(1) < 1.2e-3
    for _ in range(60):
        cost.observe(1, 2e-3)
    assert cost.estimate(1) > 1.8e-3
    for _ in range(12):
        cost.observe(1, 1e-3)
    assert cost.estimate(1) < 1.1e-3


def test_a_stall_in_the_first_step_of_its_size_is_not_believed():
    """It would never be corrected: what looks dear isn't tried again."""
    cost = StepCost()
    cost.observe(1, 0.01)
    expected = cost.estimate(8)
    cost.observe(8, 3.0)
    assert cost.estimate(8) == expected
    cost.observe(8, 0.02)
    assert cost.estimate(8) == pytest.approx(0.02)
    cost.observe(16, 0.9)
    cost.observe(16, 0.8)
    assert cost.estimate(16) == pytest.approx(0.8), "twice in a row it is no stall"


def test_a_stall_in_the_step_of_a_prompt_does_not_make_guesses_dear():
    row = RowCost()
    row.observe(100, 60.0)
    cost = StepCost(row)
    cost.observe(1, 0.01)
    assert cost.estimate(4) == pytest.approx(0.04), "a row among many is never dearer than a row alone"


def test_steps_of_no_time_teach_nothing():
    cost = StepCost()
    cost.observe(1, 0.0)
    assert not cost.is_known


def test_what_was_not_seen_for_long_is_forgotten():
    cost = measured(lambda n: 1.0 if n > 1 else 1e-3, (1, 8))
    for _ in range(2 * FORGET_AFTER):
        cost.observe(1, 1e-3)
    assert cost.estimate(8) < 0.1


@pytest.mark.parametrize(
    ("chance", "cost", "least", "most"),
    [
        (0.95, FLAT, 12, 16),
        (0.5, FLAT, 3, 6),
        (0.05, FLAT, 0, 1),
        (0.95, CPU, 5, 16),
        (0.5, CPU, 0, 0),
        (0.1, CPU, 0, 0),
        (0.99, STEEP, 0, 0),
    ],
)
def test_drafts_are_as_long_as_they_pay(chance, cost, least, most):
    assert least <= lengths(chance, cost) <= most


def test_with_many_sequences_a_cpu_drafts_less_than_with_one():
    busy = measured(lambda n: 0.010 * (1 if n == 1 else 0.6 + 0.5 * n))
    assert lengths(0.9, CPU) > lengths(0.9, busy, n_rows=16, n_generating=16)


def test_in_a_step_that_reads_a_prompt_drafts_are_nearly_free():
    assert lengths(0.5, measured(lambda n: 0.001 * n, (1, 2, 513, 520)), n_rows=513) >= 3


def test_the_likelier_draft_gets_the_rows():
    likely, unlikely = [0.9 ** (i + 1) for i in range(8)], [0.2 ** (i + 1) for i in range(8)]
    n_unlikely, n_likely = find_best_lengths([unlikely, likely], 2, 100, seconds(FLAT, 2), 1.05)
    assert n_likely > 5 and n_unlikely <= 2
    assert find_best_lengths([unlikely, likely], 2, 3, seconds(FLAT, 2), 1.05) == [0, 3]


@pytest.mark.parametrize("room", [0, 1, 5])
def test_drafts_fit_into_the_batch(room):
    assert lengths(0.99, FLAT, room=room) == room


def test_no_draft_no_length():
    assert find_best_lengths([], 1, 10, seconds(FLAT, 1), 1.05) == []
    assert find_best_lengths([[], []], 2, 10, seconds(FLAT, 2), 1.05) == [0, 0]


@pytest.mark.parametrize(
    ("chance", "draft_ms", "least", "most"),
    [(0.95, 0.1, 8, 16), (0.95, 3.0, 1, 8), (0.95, 12.0, 0, 0), (0.3, 3.0, 0, 0), (0.6, 1.0, 1, 4)],
)
def test_a_draft_model_drafts_as_long_as_its_own_time_pays(chance, draft_ms, least, most):
    assert least <= common_length([(chance, 16)], 1, FLAT, lambda n: draft_ms * 1e-3, 1.05) <= most


def test_without_a_least_gain_every_draft_is_sent():
    assert find_best_lengths([[0.1, 0.01], [0.1]], 2, 10, seconds(STEEP, 2), 0.0) == [2, 1]
    assert find_best_lengths([[0.1, 0.01], [0.1]], 2, 2, seconds(STEEP, 2), 0.0) == [1, 1]
    assert common_length([(0.01, 4), (0.5, 3)], 2, STEEP, STEEP.estimate, 0.0) == 4


def test_each_sequence_counts_as_far_as_it_can_use_a_draft():
    assert common_length([(0.99, 2)], 1, FLAT, lambda n: 0.0, 1.05) <= 2
    assert common_length([], 1, FLAT, lambda n: 0.0, 1.05) == 0


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        ([(0, 1)], [1]),
        ([(0, 9)], [9]),
        ([(0, 1), (1, 1), (2, 1)], [3]),
        ([(0, 9), (1, 1), (2, 1)], [3, 8]),  # all have one, one has eight more
        ([(0, 5), (1, 3), (2, 4), (3, 2), (4, 1)], [5, 4, 3, 2, 1]),
        ([(0, 1), (2, 1), (3, 1)], [1, 2]),  # nobody at 1
        ([(0, 4), (1, 1), (2, 4)], [3, 3, 3]),
        ([], []),
    ],
)
def test_streams_of_their_own_are_cut_into_equal_rows_of_neighbours(rows, sizes):
    assert sum(sizes) == sum(n for _, n in rows)
    assert sorted(compute_micro_batches(rows)) == sorted(sizes)


@pytest.mark.parametrize("n_drafted", [1, 3, 8])
def test_an_uneven_draft_pays_less_than_one_for_all(n_drafted):
    def at_odds(extra: Sequence[int]) -> float:
        return sum(MATRIX_UNITS.estimate(n) for n in compute_micro_batches([(i, 1 + n) for i, n in enumerate(extra)]))

    chances = [[0.95 ** (i + 1) for i in range(8)] if n < n_drafted else [] for n in range(8)]
    together = find_best_lengths(chances, 8, 48, seconds(MATRIX_UNITS, 8), 1.05)
    apart = find_best_lengths(chances, 8, 48, at_odds, 1.05)
    assert sum(apart) <= sum(together) and (n_drafted == 8) == (sum(apart) > 0)


def test_unmeasured_rows_cost_at_least_what_rows_of_prompts_do():
    row = RowCost()
    cost = StepCost(row)
    cost.observe(1, 5e-3)
    before = cost.estimate(17)
    row.observe(8, 1.0)  # too few to tell
    assert cost.estimate(17) == before
    row.observe(64, 64 * 2e-3)
    assert cost.estimate(17) == pytest.approx(5e-3 + 16 * 2e-3) and cost.estimate(17) > before
    row.observe(64, 64.0)  # held up by something else
    assert cost.estimate(17) < 1.2 * (5e-3 + 16 * 2e-3)
    for _ in range(40):
        row.observe(64, 64 * 1e-4)
    assert cost.estimate(17) == before


def test_who_has_no_guesses_does_not_wait_long_for_those_of_others():
    chances = [0.99 ** (i + 1) for i in range(16)]

    def step_s(lengths: Sequence[int]) -> float:
        return FLAT.estimate(4) * (1 + 0.02 * sum(lengths))  # much to be gained by all

    (alone,) = find_best_lengths([chances], 1, 100, step_s, 1.05)
    (with_others,) = find_best_lengths([chances], 4, 100, step_s, 1.05)
    assert alone == 16 and 0 < with_others and step_s([with_others]) <= MAX_WAIT * step_s([0]) < step_s([alone])
    assert min(find_best_lengths([chances] * 4, 4, 100, step_s, 1.05)) > with_others, "all have guesses"
    assert find_best_lengths([chances], 4, 100, step_s, 0.0) == [16], "all are sent"


def test_streams_stay_smooth_where_all_have_guesses():
    chances = [0.999 ** (i + 1) for i in range(16)]

    def find(cost_of_row: float, n: int = 4) -> float:
        """How many times longer the best step is, if each of its drafted rows costs so much of a plain step."""
        step_s = lambda lengths: 1 + cost_of_row * sum(lengths)  # noqa: E731
        return step_s(find_best_lengths([chances] * n, n, 100, step_s, 1.05))

    assert find(0.05) > 2, "much is gained"
    assert find(0.22) <= 1.14**2, "little is gained: at most 1.14 times the speed"
    assert find(0.8, 1) > 10, "nobody waits for a stream's own guesses"


def test_streams_of_their_own_get_equally_many_guesses_where_that_costs_the_least():
    chances = [[0.97 ** (i + 1) for i in range(6)] for _ in range(7)] + [[0.95, 0.9]]

    def step_s(lengths: Sequence[int]) -> float:
        return sum(map(MATRIX_UNITS.estimate, compute_micro_batches([(i, 1 + n) for i, n in enumerate(lengths)])))

    one_by_one = find_best_lengths(chances, 8, 8, step_s, 1.05)
    alike = find_best_lengths(chances, 8, 8, step_s, 1.05, 100)
    assert alike[0] >= 2 and alike == [min(alike[0], len(row)) for row in chances]

    def rate(lengths: Sequence[int]) -> float:
        return (8 + sum(sum(row[:n]) for row, n in zip(chances, lengths))) / step_s(lengths)

    assert rate(alike) > 1.04 * rate(one_by_one)
    assert max(find_best_lengths(chances, 8, 8, step_s, 1.05, 7)) <= 1, "no room for one each"


def test_no_step_is_longer_than_the_others_may_wait_unless_plain_ones_are_as_slow():
    chances = [0.9999 ** (i + 1) for i in range(100)]
    step_s = lambda lengths: 0.01 + 0.002 * sum(lengths)  # noqa: E731
    (free,) = find_best_lengths([chances], 1, 100, step_s, 1.05)
    (bound,) = find_best_lengths([chances], 1, 100, step_s, 1.05, longest_s=0.1)
    (slow,) = find_best_lengths([chances], 1, 100, lambda lengths: 100 * step_s(lengths), 1.05, longest_s=0.1)
    assert free > bound == 45
    assert 0 < slow == 35, "eight plain steps"
    assert find_best_lengths([chances], 1, 100, step_s, 0.0, longest_s=0.01) == [free], "all are sent"


def test_a_tile_is_expected_to_cost_what_prompts_show_until_it_is_measured():
    row = RowCost()
    row.observe(256, 256 * 0.002)
    cost = StepCost(row)
    for n_rows, seconds_ in ((1, 0.007), (16, 0.057), (24, 0.084)):
        cost.observe(n_rows, seconds_)
    assert cost.estimate(63) > 0.17 > cost.estimate(64) > 64 * 0.002
    cost.observe(64, 0.3)
    assert cost.estimate(64) == 0.3
    assert cost.estimate(128) > 0.3
