"""Models that can't drop a tail restore a copy of their state: fewer tokens are computed again, and the text is the
same.
"""

from __future__ import annotations

import pytest

from tests.fakes import FakeBackend
from tests.unit.engine.driving import Driver, alone

STEM = "once upon a time there was a little girl " * 10


def driver(n_checkpoints: int = 8, checkpoint_step: int = 100, n_batch: int = 64, n_slots: int = 1) -> Driver:
    return Driver(
        FakeBackend(n_ctx=2048 * n_slots, n_slots=n_slots, can_trim=False, n_batch=n_batch),
        n_checkpoints=n_checkpoints,
        checkpoint_step=checkpoint_step,
    )


def ask(d: Driver, prompt: str, n: int = 5, **fields) -> int:
    """The right text; how many tokens of the prompt were reused."""
    task = d.post(prompt, n_predict=n, **fields)
    d.finish()
    assert d.text(task) == alone(prompt, n)
    return d.outcomes[task].final.timings.cache_n


def places(d: Driver) -> list[int]:
    return [one.n for one in d.scheduler.slots[0].checkpoints]


def test_copies_are_made_on_the_way_and_before_the_end():
    d = driver()
    ask(d, STEM)
    assert places(d) == [100, 200, 300, 400, len(STEM) - 4]


def test_the_same_question_again_reads_only_its_end():
    d = driver()
    ask(d, STEM)
    assert ask(d, STEM) == len(STEM) - 4


def test_another_end_goes_back_to_the_copy_before_it():
    d = driver()
    ask(d, STEM)
    assert ask(d, STEM[:250] + "something else") == 200
    assert places(d)[:2] == [100, 200] and places(d)[-1] == 250 + len("something else") - 4


def test_what_goes_on_where_the_text_ended_needs_no_copy():
    d = driver()
    ask(d, STEM)
    longer = STEM + alone(STEM, 4)
    assert ask(d, longer + " and then") == len(longer)


def test_another_beginning_starts_over():
    d = driver()
    ask(d, STEM)
    assert ask(d, "twice " + STEM) == 0
    assert min(places(d)) == 100


def test_there_are_never_more_copies_than_allowed():
    d = driver(n_checkpoints=3, checkpoint_step=50)
    ask(d, STEM)
    assert len(places(d)) == 3 and places(d)[-1] == len(STEM) - 4
    ask(d, STEM + "more " * 50)
    assert len(places(d)) == 3


def test_without_copies_everything_is_read_again():
    d = driver(n_checkpoints=0)
    ask(d, STEM)
    assert places(d) == [] and ask(d, STEM[:250] + "something else") == 0


def test_models_that_can_be_cut_make_none():
    d = Driver(FakeBackend(n_ctx=2048), checkpoint_step=100)
    ask(d, STEM)
    assert places(d) == []


@pytest.mark.parametrize("n", [1, 2, 4, 5, 6, 99, 100, 101, 104, 105, 200])
def test_prompts_of_every_length_are_read_to_their_end(n):
    d = driver()
    ask(d, STEM[:n])
    ask(d, STEM[:n])
    ask(d, STEM[:n] + "x")


def test_several_slots_have_copies_of_their_own():
    d = driver(n_slots=2)
    first, second = d.post(STEM, id_slot=0), d.post("other " + STEM, id_slot=1)
    d.finish()
    assert (d.text(first), d.text(second)) == (alone(STEM, 8), alone("other " + STEM, 8))
    assert ask(d, STEM[:250] + "a", id_slot=0) == 200 and ask(d, "other " + STEM[:250] + "a", id_slot=1) == 200


def test_an_erased_slot_has_no_copies():
    d = driver()
    ask(d, STEM)
    d.answer("erase", id_slot=0)
    assert places(d) == [] and ask(d, STEM) == 0


def test_a_saved_slot_keeps_its_copies(tmp_path):
    d = driver()
    ask(d, STEM)
    d.answer("save", id_slot=0, path=str(tmp_path / "slot"))
    other = driver()
    other.answer("restore", id_slot=0, path=str(tmp_path / "slot"))
    assert ask(other, STEM[:250] + "something else") == 200
