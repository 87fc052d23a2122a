"""`engine.prompt_cache` over the fake backend: slots and the cache agree after every move."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.cache import prompt_cache
from server.engine.slots.planner import Span
from server.engine.slots.slot import Slot
from tests.fakes import FakeBackend
from tests.unit.engine.driving import Driver


def filled(backend: FakeBackend, *contents: list[int]) -> list[Slot]:
    """Slots whose sequences hold the given tokens; the first was used longest ago."""
    slots = []
    for i, tokens in enumerate(contents):
        slots.append(Slot(i, i, backend.info.n_ctx_slot, list(tokens), t_used=float(i + 1)))
        if tokens:
            assert backend.decode([Span(i, i, 0, tokens, False)]) == 0
    return slots


def assert_true(backend: FakeBackend, slots: list[Slot]) -> None:
    """The one invariant: `slot.tokens` is what the cache holds, at positions 0, 1, ..."""
    for slot in slots:
        assert backend.history(slot.seq) == slot.tokens
        assert [cell.pos for cell in backend.cells.get(slot.seq, [])] == list(range(len(slot.tokens)))


def backend_for(n_slots: int = 3, **options) -> FakeBackend:
    return FakeBackend(n_slots=n_slots, n_ctx=256 * n_slots, **options)


# ---- which slot --------------------------------------------------------------------------------------------------


def test_the_slot_with_the_longest_common_beginning_is_chosen():
    slots = filled(backend_for(), [1, 2], [1, 2, 3, 4], [9])
    assert prompt_cache.choose_slot(slots, [1, 2, 3, 5], True) is slots[1]


def test_among_equals_the_slot_unused_for_longest_is_chosen():
    slots = filled(backend_for(), [1, 2], [1, 3], [1, 4])
    slots[0].t_used = 9.0
    assert prompt_cache.choose_slot(slots, [7], True) is slots[1]


def test_without_cache_an_empty_slot_is_chosen_before_anybody_s_cache_is_lost():
    slots = filled(backend_for(), [1, 2], [], [1, 4])
    assert prompt_cache.choose_slot(slots, [1, 2], False) is slots[1]


def test_a_busy_slot_is_never_chosen():
    slots = filled(backend_for(), [1, 2], [], [1, 4])
    slots[0].run = object()
    slots[1].run = object()
    assert prompt_cache.choose_slot(slots, [1, 2], True) is slots[2]
    slots[2].run = object()
    assert prompt_cache.choose_slot(slots, [1, 2], True) is None


# ---- reuse -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "prompt", "kept"),
    [
        ([1, 2, 3], [1, 2, 4], 2),
        ([1, 2, 3], [1, 2, 3, 4], 3),
        ([1, 2, 3, 4], [1, 2, 3], 2),
        ([1, 2, 3], [1, 2, 3], 2),
        ([1, 2, 3], [9], 0),
        ([], [1, 2], 0),
        ([1, 2], [], 0),
        ([5], [5], 0),
    ],
)
def test_reuse_keeps_the_common_beginning_but_leaves_one_token_to_evaluate(held, prompt, kept):
    backend = backend_for(1)
    slots = filled(backend, held)
    assert prompt_cache.reuse_prefix(backend, slots[0], prompt, True) == kept
    assert slots[0].tokens == held[:kept]
    assert_true(backend, slots)


def test_without_cache_prompt_nothing_is_reused():
    backend = backend_for(1)
    slots = filled(backend, [1, 2, 3])
    assert prompt_cache.reuse_prefix(backend, slots[0], [1, 2, 3, 4], False) == 0
    assert_true(backend, slots)


def test_where_a_tail_cannot_be_dropped_everything_is():
    backend = backend_for(1, can_trim=False)
    slots = filled(backend, [1, 2, 3])
    assert prompt_cache.reuse_prefix(backend, slots[0], [1, 2, 4], True) == 0
    assert slots[0].tokens == []
    assert_true(backend, slots)


def test_where_a_tail_cannot_be_dropped_a_longer_prompt_still_reuses_all():
    backend = backend_for(1, can_trim=False)
    slots = filled(backend, [1, 2, 3])
    assert prompt_cache.reuse_prefix(backend, slots[0], [1, 2, 3, 4], True) == 3
    assert_true(backend, slots)


LONG = list(range(100, 160))


def test_a_beginning_that_another_slot_holds_is_shared_not_computed():
    backend = backend_for(2)
    slots = filled(backend, LONG, [])
    used = backend.n_used
    assert prompt_cache.reuse_prefix(backend, slots[1], LONG[:50] + [1, 2], True, [slots[0]]) == 50
    assert slots[1].tokens == LONG[:50] and backend.n_used == used
    assert_true(backend, slots)


def test_sharing_goes_on_behind_what_the_slot_has_itself():
    backend = backend_for(2)
    slots = filled(backend, LONG, [*LONG[:10], 7])
    assert prompt_cache.reuse_prefix(backend, slots[1], [*LONG, 1], True, [slots[0]]) == 60
    assert slots[1].tokens == LONG
    assert_true(backend, slots)


def test_a_few_tokens_are_not_worth_sharing():
    backend = backend_for(2)
    slots = filled(backend, LONG[: prompt_cache.MIN_SHARED - 1], [])
    assert prompt_cache.reuse_prefix(backend, slots[1], LONG, True, [slots[0]]) == 0
    assert not slots[0].is_sharing and not slots[1].is_sharing


def test_shifting_a_slot_that_shares_leaves_the_other_as_it_was():
    backend = backend_for(2)
    slots = filled(backend, LONG, [])
    prompt_cache.reuse_prefix(backend, slots[1], [*LONG, 1], True, [slots[0]])
    prompt_cache.shift(backend, slots[1], 4, 0)
    assert slots[0].tokens == LONG
    assert_true(backend, slots)


def test_cells_are_counted_once_however_many_slots_share_them():
    backend = backend_for(3)
    slots = filled(backend, LONG, [], [3, 4])
    prompt_cache.reuse_prefix(backend, slots[1], [*LONG, 1], True, [slots[0]])
    n_tokens = sum(len(slot.tokens) for slot in slots)
    assert n_tokens - prompt_cache.count_shared(slots) == backend.n_used == 62


# ---- eviction ----------------------------------------------------------------------------------------------------


def test_among_equals_the_idle_slot_unused_for_longest_is_worth_least():
    backend = backend_for(3)
    slots = filled(backend, [1], [3], [4])
    slots[0].run = object()
    assert prompt_cache.find_least_valuable(slots, 3.0) is slots[1]


def test_without_an_idle_cache_there_is_none_to_give_up():
    backend = backend_for(2)
    slots = filled(backend, [1, 2], [])
    slots[0].run = object()
    assert prompt_cache.find_least_valuable(slots) is None


# ---- context shift -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "n_keep", "n_discard", "left"),
    [
        (10, 0, 0, [5, 6, 7, 8, 9]),
        (10, 2, 0, [0, 1, 6, 7, 8, 9]),
        (10, 2, 3, [0, 1, 5, 6, 7, 8, 9]),
        (10, 2, 99, [0, 1, 9]),
        (10, 99, 0, [0, 1, 2, 3, 4, 5, 8, 9]),
        (10, 0, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_a_shift_keeps_the_beginning_and_the_end(n, n_keep, n_discard, left):
    backend = backend_for(1)
    slots = filled(backend, list(range(n)))
    assert prompt_cache.shift(backend, slots[0], n_keep, n_discard) == n - len(left)
    assert slots[0].tokens == left
    assert_true(backend, slots)


@given(n=st.integers(8, 200), n_keep=st.integers(0, 250), n_discard=st.integers(0, 250))
def test_a_shift_always_makes_room_and_keeps_what_it_must(n, n_keep, n_discard):
    backend = backend_for(1)
    slots = filled(backend, [i % 250 for i in range(n)])
    before = list(slots[0].tokens)
    dropped = prompt_cache.shift(backend, slots[0], n_keep, n_discard)
    kept = min(n_keep, n - 4)
    assert 1 <= dropped < n
    assert slots[0].tokens == before[:kept] + before[kept + dropped :]
    assert_true(backend, slots)


def cut_of_2024(prompt: list[int], n_ctx: int, n_keep: int) -> list[int]:
    """llama.cpp, examples/server/server.cpp of July 2024, `update_slots`, line by line."""
    if n_keep < 0:
        n_keep = len(prompt)
    n_keep = min(n_ctx - 4, n_keep)
    n_left = n_ctx - n_keep
    n_block_size = n_left // 2
    erased_blocks = (len(prompt) - n_keep - n_block_size) // n_block_size
    new_tokens = prompt[:n_keep]
    new_tokens += prompt[n_keep + erased_blocks * n_block_size :]
    return new_tokens


@given(n_ctx=st.integers(8, 300), extra=st.integers(0, 900), n_keep=st.integers(0, 900))
def test_an_over_long_prompt_is_cut_as_the_server_of_2024_cut_it(n_ctx, extra, n_keep):
    prompt = list(range(n_ctx + extra))
    cut = prompt_cache.cut_prompt(prompt, n_ctx, n_keep)
    assert cut == cut_of_2024(prompt, n_ctx, n_keep)
    assert len(cut) < n_ctx and cut[-1] == prompt[-1]


def test_with_sliding_windows_a_beginning_whose_cells_were_dropped_is_neither_kept_nor_shared():
    d = Driver(FakeBackend(n_ctx=1024, n_slots=2))
    prompt = "a long beginning that windows have passed by now"
    d.post(prompt, n_predict=3, id_slot=0)
    d.finish()
    d.backend.window = 8
    d.backend.least = {0: len(prompt) - 4}
    branch = d.post(prompt[:30] + " and another end", n_predict=3, id_slot=1)
    d.finish()
    assert d.outcomes[branch].final.timings.cache_n == 0
    longer = d.post(prompt + " with more", n_predict=3, id_slot=1)
    d.finish()
    assert d.outcomes[longer].final.timings.cache_n == len(prompt)
    own = d.post(prompt[:30] + " and another end", n_predict=3, id_slot=0)
    d.finish()
    assert d.outcomes[own].final.timings.cache_n in (0, 30) and d.text(own) == d.text(branch)
    assert d.backend.history(0)[:30] == list(prompt[:30].encode())


@pytest.mark.parametrize("is_split", [False, True])
def test_only_what_was_kept_of_a_shifted_context_is_reused_or_shared(is_split):
    """The rest is not what its tokens alone would give, though the tokens are equal."""
    backend = backend_for(2, is_split=is_split)
    slots = filled(backend, LONG, [])
    prompt_cache.shift(backend, slots[0], 20, 10)
    held = list(slots[0].tokens)
    assert prompt_cache.choose_slot(slots, held, True) is slots[1], "an empty slot is as good"
    assert prompt_cache.reuse_prefix(backend, slots[1], [*held, 1], True, [slots[0]]) == 20
    assert slots[1].shifted_at is None
    assert prompt_cache.reuse_prefix(backend, slots[0], [*held, 1], True) == 20
    assert slots[0].shifted_at is None, "what is left is what its tokens give"
    assert_true(backend, slots)


def test_the_earliest_shift_counts():
    backend = backend_for(1)
    slots = filled(backend, LONG)
    for n_keep, shifted_at in ((20, 20), (30, 20), (5, 5)):
        prompt_cache.shift(backend, slots[0], n_keep, 10)
        assert slots[0].shifted_at == shifted_at
    prompt_cache.trim(backend, slots[0], 6)
    assert slots[0].shifted_at == 5
    prompt_cache.trim(backend, slots[0], 5)
    assert slots[0].shifted_at is None
