"""`engine.slot`: the next tokens to evaluate, the state that a slot reports, and common prefixes of token lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.slots.slot import Slot, count_common_prefix


def naive_prefix(a: list[int], b: list[int]) -> int:
    n = 0
    while n < len(a) and n < len(b) and a[n] == b[n]:
        n += 1
    return n


@given(a=st.lists(st.integers(0, 2)), b=st.lists(st.integers(0, 2)))
def test_the_common_beginning_is_what_a_slow_comparison_finds(a, b):
    assert count_common_prefix(a, b) == count_common_prefix(b, a) == naive_prefix(a, b)


@given(n=st.integers(0, 5000), extra_a=st.integers(0, 3), extra_b=st.integers(0, 3))
def test_long_common_beginnings_are_found_to_the_token(n, extra_a, extra_b):
    shared = list(range(n))
    assert count_common_prefix(shared + [-1] * extra_a, shared + [-2] * extra_b) == n


@pytest.mark.parametrize("at", [0, 1, 1022, 1023, 1024, 1025, 2047, 2048, 2049, 2999])
def test_one_different_token_ends_the_common_beginning(at):
    a = list(range(3000))
    b = list(a)
    b[at] = -1
    assert count_common_prefix(a, b) == at


def test_an_unused_slot_shows_that_no_task_has_run():
    state = Slot(2, 2, 64).make_state()
    assert (state.id, state.id_task, state.is_processing, state.n_ctx) == (2, -1, False, 64)
    assert state.stop == "none" and not state.has_next_token


def test_an_idle_slot_has_nothing_to_evaluate():
    assert Slot(0, 0, 64, tokens=[1, 2]).pending == []
