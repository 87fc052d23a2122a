"""`engine.self_extend`: positions follow the documented formula, and the engine tracks them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.slots.self_extend import GroupAttention
from tests.fakes import FakeBackend
from tests.unit.engine.driving import Driver, alone

SHAPES = st.tuples(st.integers(2, 8), st.integers(1, 16)).map(lambda shape: (shape[0], shape[0] * shape[1]))


def positions_of_2024(n_tokens: int, ga_n: int, ga_w: int) -> tuple[list[int], int, int]:
    """llama.cpp, examples/server/server.cpp of July 2024, on a plain list: (positions, n_past_se, ga_i)."""
    cells: list[int] = []
    n_past_se = ga_i = 0

    def add(start: int, end: int, delta: int) -> None:
        cells[:] = [pos + delta if start <= pos < end else pos for pos in cells]

    def divide(start: int, end: int) -> None:
        cells[:] = [pos // ga_n if start <= pos < end else pos for pos in cells]

    for _ in range(n_tokens):
        while n_past_se >= ga_i + ga_w:
            ib = (ga_n * ga_i) // ga_w
            bd = (ga_w // ga_n) * (ga_n - 1)
            dd = (ga_w // ga_n) - ib * bd - ga_w
            add(ga_i, n_past_se, ib * bd)
            divide(ga_i + ib * bd, ga_i + ib * bd + ga_w)
            add(ga_i + ib * bd + ga_w, n_past_se + ib * bd, dd)
            n_past_se -= bd
            ga_i += ga_w // ga_n
        cells.append(n_past_se)
        n_past_se += 1
    return cells, n_past_se, ga_i


@given(shape=SHAPES, n_tokens=st.integers(0, 300))
def test_positions_are_those_of_the_server_of_2024(shape, n_tokens):
    factor, width = shape
    state, cells = GroupAttention(factor, width), []
    for _ in range(n_tokens):
        while (fold := state.fold()) is not None:
            cells = [pos + fold.add_delta if fold.add_start <= pos < fold.add_end else pos for pos in cells]
            cells = [pos // factor if fold.divide_start <= pos < fold.divide_end else pos for pos in cells]
            cells = [pos + fold.rest_delta if fold.rest_start <= pos < fold.rest_end else pos for pos in cells]
        assert state.room > 0
        cells.append(state.pos)
        state.pos += 1
    assert (cells, state.pos, state.ga_i) == positions_of_2024(n_tokens, factor, width)


@given(shape=SHAPES, n_tokens=st.integers(1, 300))
def test_positions_never_go_back_and_stay_small(shape, n_tokens):
    factor, width = shape
    cells, n_past, _ = positions_of_2024(n_tokens, factor, width)
    assert cells == sorted(cells) and cells[-1] == n_past - 1
    assert n_past <= n_tokens // factor + 2 * width


@pytest.mark.covers("B04")
@pytest.mark.parametrize("n_batch", [7, 64])
@pytest.mark.parametrize(("n_group", "group_width"), [(2, 8), (4, 16), (4, 64)])
def test_the_engine_folds_while_it_reads_and_while_it_writes(n_group, group_width, n_batch):
    d = Driver(FakeBackend(n_ctx=1024, n_slots=2, n_batch=n_batch), n_group=n_group, group_width=group_width)
    tasks = {d.post("x" * n, n_predict=60): "x" * n for n in (3, group_width, 100, 150)}
    d.finish()
    for task, prompt in tasks.items():
        assert d.text(task) == alone(prompt, 60)
    for seq in range(2):
        positions = [cell.pos for cell in d.backend.cells[seq]]
        assert positions == positions_of_2024(len(positions), n_group, group_width)[0][: len(positions)] or max(
            positions
        ) < len(positions)
    assert d.is_clean()


def test_a_folded_slot_starts_anew_for_the_next_task():
    d = Driver(FakeBackend(n_ctx=512), n_group=4, group_width=16)
    for prompt in ("a prompt that is folded a few times", "a prompt that is folded once more"):
        task = d.post(prompt, n_predict=20)
        d.finish()
        assert d.text(task) == alone(prompt, 20) and d.outcomes[task].final.timings.cache_n == 0
