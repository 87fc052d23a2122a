"""How far a sequence can be rolled back, and the limits of its cost."""

from __future__ import annotations

import pytest

from server.engine.cache.rollback import MAX_BACK, MAX_BYTES, Rollback, count_back
from server.engine.seam.config import EngineConfig, SpecConfig
from server.engine.slots.planner import Span
from server.model_files.memory_plan import Wish, count_cache_bytes
from server.model_files.shape import Layer, Shape

GUESSES = SpecConfig(lookup=True)


def shape(state: int = 1000, can_go_back: bool = True) -> Shape:
    return Shape((Layer(1, state=state), Layer(1, k=64, v=64)), 1, 1, 0, 1024, 64, 64, 2, 64, 100, 0, can_go_back)


def back(shape: Shape | None, **config) -> int:
    return count_back(EngineConfig("", "", **{"spec": GUESSES, **config}), shape)


def test_older_states_are_kept_where_there_are_guesses_and_the_model_can():
    assert back(shape()) == MAX_BACK
    assert back(shape(), n_ubatch=6) == 4 and back(shape(), n_ubatch=1) == back(shape(), n_batch=2) == 0


@pytest.mark.parametrize(
    "config", [{"spec": SpecConfig()}, {"exact": True}, {"n_group": 2}], ids=["no guesses", "exact", "self-extend"]
)
def test_none_are_kept_where_nothing_is_guessed(config):
    assert back(shape(), **config) == back(shape(can_go_back=False)) == back(None) == 0


def test_their_memory_is_bounded_and_planned():
    assert back(shape(MAX_BYTES // 3)) == 3 and back(shape(MAX_BYTES // 3), n_slots=4) == 0
    one, more = (count_cache_bytes(shape().layers, Wish(n_slots=2, n_back=n), 512) for n in (0, 5))
    assert more - one == 5 * 1000 * 3, "a sequence for each slot, and the system prompt's"


def test_only_the_latest_batch_can_be_gone_back_through_and_once():
    rollback = Rollback(4)
    rollback.note([Span(0, 0, 0, [1] * 3, True), Span(1, 1, 0, [1] * 9, True)])
    assert not rollback.take(0, 3) and rollback.take(1, 4)
    rollback.note([Span(0, 0, 3, [1] * 3, True), Span(1, 1, 5, [1], True)])
    assert rollback.take(0, 2) and not rollback.take(0, 1) and not rollback.take(1, 1)


def test_a_sequence_that_was_filled_otherwise_can_go_back_nowhere():
    rollback = Rollback(4)
    rollback.note([Span(0, 0, 0, [1] * 3, True)])
    rollback.forget(0)
    assert rollback.take(0, 0) and not rollback.take(0, 1)
