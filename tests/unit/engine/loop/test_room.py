"""One unified cache, all of which each slot may use: tasks that overflow it together wait for each other, without
effect on their texts.
"""

from __future__ import annotations

import random

import pytest

from server.engine.loop import prefixes
from server.engine.seam.config import SpecConfig
from server.engine.seam.task import CACHE_SHARED
from tests.fake_media import FakeMedia, media, picture_bytes
from tests.fakes import FakeBackend, letters
from tests.unit.engine.driving import Clock, Driver, alone

pytestmark = pytest.mark.covers("T19")


def driver(
    n_slots: int = 3, n_ctx: int = 96, n_batch: int = 16, reply=letters, can_trim: bool = True, **config
) -> Driver:
    backend = FakeBackend(reply, n_ctx, n_slots, can_trim=can_trim, n_batch=n_batch, is_whole=True)
    return Driver(backend, **config)


def n_asides(d: Driver) -> int:
    return d.scheduler._state.meter.n_asides


def is_waiting(d: Driver, id_task: int) -> bool:
    return any(slot.run.task.id == id_task for slot in d.scheduler._state.aside)


@pytest.mark.parametrize("can_trim", [True, False])
@pytest.mark.parametrize("n_slots", [2, 3, 5])
def test_long_texts_that_overflow_the_cache_together_are_those_that_each_gets_alone(n_slots, can_trim):
    d = driver(n_slots, can_trim=can_trim)
    expected = {}
    for i in range(2 * n_slots):
        prompt = f"{i}" * (5 + 7 * i % 40)
        n = 94 - len(prompt)
        expected[d.post(prompt, n)] = alone(prompt, n)
        d.step(i)
    d.finish()
    assert {id_task: d.text(id_task) for id_task in expected} == expected
    assert n_asides(d) and d.is_clean()


def test_the_youngest_waits_and_the_oldest_never_does():
    d = driver(3)
    first, second, third = (d.post(letter * 10, 80) for letter in "abc")
    order = []
    while d.unfinished:
        d.step()
        assert not is_waiting(d, first)
        order += [id_task for id_task in (second, third) if is_waiting(d, id_task) and id_task not in order]
    assert order == [third, second]


def test_whoever_comes_later_does_not_keep_a_waiting_task_waiting():
    d = driver(3, n_ctx=96)
    first, second = d.post("a" * 40, 50), d.post("b" * 40, 50)
    d.step_until(lambda: is_waiting(d, second))
    later = [d.post(letter * 4, 4) for letter in "cdefghijk"]
    d.step_until(lambda: d.outcomes[second].final)
    assert d.outcomes[first].final
    while not d.outcomes[later[-1]].final:
        d.step()
    assert [d.text(id_task) for id_task in (first, second)] == [alone("a" * 40, 50), alone("b" * 40, 50)]


def test_small_requests_are_answered_while_a_large_one_waits():
    d = driver(3, n_ctx=96)
    first, second = d.post("a" * 40, 50), d.post("b" * 45, 50)
    d.step_until(lambda: is_waiting(d, second))
    small = d.post("c" * 4, 4)
    d.step_until(lambda: d.outcomes[small].final)
    assert not d.outcomes[first].final and is_waiting(d, second)
    d.finish()
    assert d.text(small) == alone("c" * 4, 4) and d.text(second) == alone("b" * 45, 50)


def test_a_younger_task_makes_room_for_an_older_one_that_has_waited():
    d = driver(3, n_ctx=96)
    first, second = d.post("a" * 4, 40), d.post("b" * 80, 12)
    d.step_until(lambda: d.outcomes[second].pieces and is_waiting(d, second))
    third = d.post("c" * 4, 80)
    d.step_until(lambda: d.outcomes[first].final)
    assert is_waiting(d, second) and not is_waiting(d, third)
    d.step()
    assert is_waiting(d, third) and not is_waiting(d, second)
    d.finish()
    assert d.text(second) == alone("b" * 80, 12) and d.text(third) == alone("c" * 4, 80)


def asides_of(n_slots: int) -> tuple[int, int]:
    """How often tasks stepped aside, and how many rows all of them had."""
    rng, d = random.Random(n_slots), driver(n_slots, n_ctx=256)
    n_rows = 0
    for i in range(12):
        n_prompt = rng.randrange(1, 200)
        n_predict = rng.randrange(1, 250 - n_prompt)
        n_rows += n_prompt + n_predict
        d.post(chr(97 + i) * n_prompt, n_predict)
    d.finish()
    return n_asides(d), n_rows


@pytest.mark.parametrize("n_slots", [2, 3, 4])
def test_tasks_step_aside_seldom_for_what_is_computed_between(n_slots, monkeypatch):
    n, n_rows = asides_of(n_slots)
    assert 0 < n <= 12 + n_rows // (256 // prefixes.SPARE_PART)
    monkeypatch.setattr(prefixes, "SPARE_PART", 1 << 30)
    assert n < asides_of(n_slots)[0] or n_slots == 2


def test_a_prompt_that_does_not_fit_beside_older_texts_waits_for_them_and_is_read_once():
    d = driver(2, n_ctx=96)
    first, second = d.post("a" * 20, 60), d.post("b" * 80, 10)
    d.finish()
    assert d.text(first) == alone("a" * 20, 60) and d.text(second) == alone("b" * 80, 10)
    assert d.snapshot.n_prompt_tokens == 100 and n_asides(d) == 1


def test_idle_caches_go_before_anybody_waits():
    d = driver(3, n_ctx=96)
    d.post("x" * 40, 4)
    d.finish()
    first = d.post("a" * 30, 40)
    d.finish()
    assert d.text(first) == alone("a" * 30, 40) and not n_asides(d)


def test_forks_of_one_prompt_share_it_and_those_without_room_wait():
    d = driver(4, n_ctx=96)
    ids = d.post_together(*["a" * 40] * 4, n_predict=40)
    d.finish()
    assert {d.text(id_task) for id_task in ids} == {alone("a" * 40, 40)}
    assert [d.outcomes[id_task].final.cache.source for id_task in ids[1:]] == [CACHE_SHARED] * 3
    assert n_asides(d)


def test_slots_that_share_the_system_prompt_come_back_beside_it():
    d = driver(2, n_ctx=96)
    system = tuple(b"you are a system")
    d.answer("system_prompt", tokens=system)
    ids = [d.post(letter * 10, 100) for letter in "ab"]
    d.finish()
    for id_task, letter in zip(ids, "ab"):
        text = alone(system + tuple(letter.encode() * 10), 100)
        said = d.text(id_task)
        assert text.startswith(said) and 16 + 10 + len(said) - 1 == 96 - 16
    assert n_asides(d)


def test_a_system_prompt_has_to_leave_room_for_the_slots():
    d = driver(2, n_ctx=96)
    status, message = d.refusal("system_prompt", tokens=tuple(b"x" * 48))
    assert status == 400 and "48" in message


@pytest.mark.parametrize("n_slots", [1, 2, 3])
def test_contexts_that_are_shifted_go_on_as_they_would_alone(n_slots):
    def said(letters_: str) -> list[str]:
        d = driver(n_slots, n_ctx=64, shift_context=True)
        ids = [d.post(letter * 12, 150, n_keep=5) for letter in letters_]
        d.finish()
        return [d.text(id_task) for id_task in ids]

    assert said("abc") == [said(letter)[0] for letter in "abc"]


def test_a_full_context_that_shares_cells_is_shifted_though_others_fill_the_cache():
    d = driver(2, n_ctx=64, shift_context=True)
    first = d.post("a" * 40, 60)
    d.step_until(lambda: len(d.scheduler.slots[0].tokens) >= 63)
    second = d.post("a" * 40, 60)
    d.finish()
    one = driver(2, n_ctx=64, shift_context=True)
    third = one.post("a" * 40, 60)
    one.finish()
    assert d.text(first) == d.text(second) == one.text(third)


def test_guesses_are_the_first_to_go_and_waiting_tasks_guess_on():
    d = driver(3, spec=SpecConfig(lookup=True, ngram=1, n_max=5))
    ids = {d.post(letter * 10, 80): letter for letter in "abc"}
    d.finish()
    assert {id_task: d.text(id_task) for id_task in ids} == {i: alone(one * 10, 80) for i, one in ids.items()}


def test_a_draft_model_goes_on_when_a_task_comes_back():
    d = Driver(backend := FakeBackend(letters, 96, 3, n_batch=16, is_whole=True))
    backend.drafter = FakeBackend(letters, 96, 3, n_batch=16, is_whole=True)
    d = Driver(backend)
    ids = {d.post(letter * 10, 80): letter for letter in "abc"}
    d.finish()
    assert {id_task: d.text(id_task) for id_task in ids} == {i: alone(one * 10, 80) for i, one in ids.items()}
    assert d.snapshot.n_draft_accepted and n_asides(d)


def test_folded_positions_come_back_as_they_were():
    def said(letters_: str) -> list[str]:
        d = driver(3, n_ctx=96, n_group=2, group_width=8)
        ids = [d.post(letter * 10, 70) for letter in letters_]
        d.finish()
        return [d.text(id_task) for id_task in ids]

    assert said("abc") == [said(letter)[0] for letter in "abc"]


def test_known_tokens_of_a_dead_engine_are_replayed_by_tasks_that_wait_in_between():
    d = driver(2, n_ctx=96)
    known = tuple(alone("b" * 10, 60).encode())
    first, second = d.post("a" * 10, 80), d.post("b" * 10, 80, resume=known)
    d.finish()
    assert d.text(first) == alone("a" * 10, 80)
    assert d.text(second) == alone("b" * 10, 80)[60:]
    assert n_asides(d)


def test_prompts_with_images_wait_like_any_other():
    def said(letters_: str) -> list[str]:
        backend = FakeBackend(letters, 64, 3, n_batch=16, is_whole=True)
        FakeMedia(backend)
        d = Driver(backend)
        ids = [d.post([ord(letter)] * 4 + [-1], 40, media=(media(picture_bytes(9, 9)),)) for letter in letters_]
        d.finish()
        assert len(ids) == 1 or n_asides(d)
        return [d.text(id_task) for id_task in ids]

    assert said("abc") == [said(letter)[0] for letter in "abc"]


# ---- tasks that end while they wait ------------------------------------------------------------------------------


def waiting() -> tuple[Driver, int, int]:
    """Two tasks, the second of which waits."""
    d = driver(2, n_ctx=96)
    ids = d.post("a" * 40, 50), d.post("b" * 40, 50)
    d.step_until(lambda: is_waiting(d, ids[1]))
    return d, *ids


def test_a_waiting_task_can_be_cancelled():
    d, first, second = waiting()
    d.cancel(second)
    d.step_until(lambda: d.outcomes[first].final)
    assert d.text(first) == alone("a" * 40, 50) and not d.outcomes[second].ends
    third = d.post("c", 1)
    d.step_until(lambda: d.outcomes[third].final)
    assert d.is_clean()


def test_when_the_oldest_is_cancelled_the_waiting_one_goes_on():
    d, first, second = waiting()
    d.cancel(first)
    d.step_until(lambda: d.outcomes[second].final)
    assert d.text(second) == alone("b" * 40, 50)


def test_the_time_of_a_waiting_task_may_be_up():
    clock = Clock()
    d = Driver(FakeBackend(letters, 96, 2, n_batch=16, is_whole=True), clock)
    first, second = d.post("a" * 40, 50), d.post("b" * 40, 50, t_max_ms=1000)
    d.step_until(lambda: is_waiting(d, second))
    clock.now = 2.0
    d.step()
    text = d.text(second)
    assert text and alone("b" * 40, 50).startswith(text)
    d.finish()
    assert d.text(first) == alone("a" * 40, 50) and d.is_clean()


def test_the_end_of_the_server_ends_waiting_tasks_with_what_they_have():
    d, first, second = waiting()
    d.close()
    d.step()
    assert d.text(first) and d.text(second) and d.is_clean()


def test_slots_show_what_a_waiting_task_has():
    d, _, second = waiting()
    d.step()
    slot = next(slot for slot in d.snapshot.slots if slot.id_task == second)
    assert slot.is_processing and slot.n_prompt_done == 40 and slot.n_cached >= 40


def test_without_memory_to_wait_in_the_youngest_fails_and_the_others_go_on(monkeypatch):
    d = driver(2, n_ctx=96)
    first, second = d.post("a" * 40, 50), d.post("b" * 40, 50)

    def state(seq):
        raise MemoryError

    monkeypatch.setattr(d.backend, "read_state", state)
    d.finish()
    assert d.outcomes[second].failure.status == 503 and "memory" in d.outcomes[second].failure.message
    assert d.text(first) == alone("a" * 40, 50) and d.is_clean()


def test_a_state_that_does_not_fit_between_others_comes_back_when_they_are_gone():
    d = driver(2, n_ctx=200)
    first, second = d.post("a" * 40, 50), d.post("b" * 40, 50)
    d.step_until(lambda: d.outcomes[second].pieces)
    assert d.scheduler._prefixes.step_aside()
    d.backend.takes_states = False
    d.step(3)
    d.backend.takes_states = True
    d.step_until(lambda: d.outcomes[first].final)
    assert is_waiting(d, second)
    d.finish()
    assert d.text(first) == alone("a" * 40, 50) and d.text(second) == alone("b" * 40, 50)


def test_a_state_that_never_fits_again_fails_its_task_alone():
    d, first, second = waiting()
    d.backend.takes_states = False
    d.finish()
    assert d.text(first) == alone("a" * 40, 50)
    assert d.outcomes[second].failure.status == 500 and d.is_clean()
