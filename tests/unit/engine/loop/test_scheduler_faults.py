"""Failures in the loop: only the tasks concerned fail, all others get the right text, and nothing is left."""

from __future__ import annotations

import logging

import pytest

from server.engine.cache import prompt_cache
from server.engine.seam.task import SamplingParams
from server.engine.slots.backend import DECODE_ABORTED, DECODE_NO_ROOM
from tests.fakes import FakeBackend, letters
from tests.unit.engine.driving import Driver, alone

PROMPTS = ("the first prompt", "another", "a third and longer prompt of the same kind", "b")


def driver(
    n_slots: int = 4,
    n_ctx_slot: int = 256,
    n_batch: int = 16,
    n_cells: int | None = None,
    can_trim: bool = True,
    reply=letters,
    **config,
) -> Driver:
    return Driver(FakeBackend(reply, n_ctx_slot * n_slots, n_slots, n_cells, True, can_trim, n_batch), **config)


def run_all(d: Driver, n_predict: int = 6) -> dict[int, str]:
    """Four tasks that join one after the other; their ids with the texts they should get."""
    expected = {}
    for prompt in PROMPTS:
        expected[d.post(prompt, n_predict=n_predict)] = alone(prompt, n_predict)
        d.step()
    d.finish()
    return expected


def texts(d: Driver) -> dict[int, str]:
    return {id_task: d.text(id_task) for id_task in d.outcomes}


# ---- llama_decode says no ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [DECODE_NO_ROOM, DECODE_ABORTED])
@pytest.mark.parametrize("call", range(1, 12))
def test_one_lack_of_room_or_one_abort_harms_nobody(code, call):
    d = driver()
    d.backend.fail_at[call] = code
    expected = run_all(d)
    assert expected == texts(d)
    assert d.is_clean() and not d.backend.fail_at


@pytest.mark.parametrize("code", [-1, -3])
@pytest.mark.parametrize("call", range(1, 12))
def test_one_error_fails_at_most_the_task_that_was_alone_in_the_batch(code, call):
    d = driver()
    d.backend.fail_at[call] = code
    expected = run_all(d)
    failed = [id_task for id_task in expected if d.outcomes[id_task].failure]
    n_in_batch = len(d.backend.batches[call - 1])
    assert len(failed) == (n_in_batch == 1)
    for id_task in expected:
        if id_task in failed:
            failure = d.outcomes[id_task].failure
            assert failure.status == 500 and f"code {code}" in failure.message
        else:
            assert d.text(id_task) == expected[id_task]
    assert d.is_clean()


@pytest.mark.parametrize("code", [-1, -3])
def test_a_task_that_cannot_be_decoded_fails_alone(code):
    d = driver()
    d.backend.refuse = lambda spans: code if any(ord("#") in span.tokens for span in spans) else 0
    good = [d.post(prompt, n_predict=9) for prompt in PROMPTS[:3]]
    d.step(3)
    bad = d.post("a prompt of two batches, and here # it is", n_predict=9)
    d.finish()
    assert [d.text(task) for task in good] == [alone(prompt, 9) for prompt in PROMPTS[:3]]
    assert d.outcomes[bad].failure.status == 500
    assert d.backend.history(3) == [], "what the failed task computed is given up"
    again = d.post("here it is", n_predict=9)
    d.finish()
    assert d.text(again) == alone("here it is", 9)


def test_a_batch_that_is_too_large_for_the_cache_is_tried_in_smaller_parts():
    d = driver(n_slots=1, n_batch=64)
    d.backend.refuse = lambda spans: DECODE_NO_ROOM if sum(map(len, spans)) > 9 else 0
    task = d.post("x" * 40, n_predict=5)
    d.finish()
    assert d.text(task) == alone("x" * 40, 5)
    assert [rows[0][1] for rows in map(d.rows, range(3))] == [40, 20, 10]


def test_for_room_the_idle_slot_unused_for_longest_is_given_up():
    d = driver(n_slots=3, n_cells=60)
    for id_slot, prompt in ((1, "a" * 20), (0, "b" * 20)):
        d.post(prompt, n_predict=1, id_slot=id_slot)
        d.clock.now += 1
        d.finish()
    task = d.post("c" * 18, n_predict=10, id_slot=2)
    d.finish()
    assert d.text(task) == alone("c" * 18, 10)
    assert d.backend.history(1) == [] and len(d.backend.history(0)) == 20


def test_without_room_for_one_row_that_task_fails_and_says_so():
    d = driver(n_slots=2, n_cells=40)
    first = d.post("a" * 20, n_predict=100)
    d.step(2)
    second = d.post("b" * 15, n_predict=3)
    d.finish()
    assert d.outcomes[first].failure.status == 500
    assert "KV cache" in d.outcomes[first].failure.message and "room" in d.outcomes[first].failure.message
    assert d.text(second) == alone("b" * 15, 3)
    assert d.is_clean() and d.backend.n_used <= 40


def test_lack_of_room_for_a_while_costs_only_time():
    d = driver(n_slots=4, n_cells=200)
    for id_slot in range(4):
        d.post(f"{id_slot}" * 40, n_predict=5, id_slot=id_slot)
        d.finish()
    assert run_all(d) == {task: text for task, text in texts(d).items() if task >= 4}


def test_after_an_abort_a_model_that_cannot_trim_loses_only_that_task():
    d = driver(n_slots=1, n_batch=8, can_trim=False)
    lost = d.post("x" * 20, n_predict=5)
    d.step()
    d.backend.fail_at[2] = DECODE_ABORTED
    d.finish()
    assert d.outcomes[lost].failure.status == 500 and "again" in d.outcomes[lost].failure.message
    again = d.post("x" * 20, n_predict=5)
    d.finish()
    assert d.text(again) == alone("x" * 20, 5)


@pytest.mark.parametrize("code", [DECODE_NO_ROOM, -1])
def test_a_model_that_cannot_trim_loses_only_the_task_that_failed(code):
    d = driver(n_slots=2, can_trim=False)
    d.backend.refuse = lambda spans: code if any(ord("#") in span.tokens for span in spans) else 0
    bad = d.post("two batches of prompt, and # in the second", n_predict=9)
    good = d.post("a prompt that waits", n_predict=9)
    d.run()
    assert d.outcomes[bad].failure.status == 500
    assert d.text(good) == alone("a prompt that waits", 9)
    assert d.is_clean()


def test_a_model_that_cannot_trim_gives_everybody_the_right_text():
    d = driver(can_trim=False)
    first = run_all(d)
    second = run_all(d)
    assert {**first, **second} == texts(d)


# ---- exceptions --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Tracebacks that are expected here stay out of the report; tests may look at them."""
    caplog.set_level(logging.CRITICAL, "llama_srv")


def test_an_exception_in_decode_fails_who_was_running_and_nobody_after():
    d = driver(n_slots=2)
    tasks = [d.post(prompt, n_predict=5) for prompt in PROMPTS]
    d.backend.fail_at[3] = RuntimeError("out of the blue")
    d.run()
    assert [bool(d.outcomes[task].failure) for task in tasks] == [True, True, False, False]
    assert all(d.outcomes[task].failure.status == 500 for task in tasks[:2])
    assert [d.text(task) for task in tasks[2:]] == [alone(prompt, 5) for prompt in PROMPTS[2:]]
    assert d.is_clean()


def test_an_exception_in_one_sampler_fails_that_task_alone():
    def reply(history):
        if ord("#") in history and len(history) > 8:
            raise RuntimeError("out of the blue")
        return letters(history)

    d = driver(reply=reply)
    good = [d.post(prompt, n_predict=9) for prompt in PROMPTS[:2]]
    bad = d.post("sam#le", n_predict=9)
    good.append(d.post(PROMPTS[2], n_predict=9))
    d.run()
    assert d.outcomes[bad].failure.status == 500
    assert [d.text(task) for task in good] == [alone(prompt, 9) for prompt in PROMPTS[:3]]
    assert d.is_clean()


def test_an_exception_while_a_sampler_is_made_fails_that_task_alone(monkeypatch):
    d = driver()
    make = d.backend.make_sampler

    def new_sampler(stages, grammar, waits=False):
        if grammar == "broken":
            raise RuntimeError("out of the blue")
        return make(stages, grammar)

    monkeypatch.setattr(d.backend, "make_sampler", new_sampler)
    bad = d.post("one", sampling=SamplingParams(grammar="broken"))
    good = d.post("two", n_predict=4)
    d.run()
    assert d.outcomes[bad].failure.status == 500
    assert d.text(good) == alone("two", 4)


def test_a_grammar_that_cannot_be_parsed_is_the_client_s_mistake():
    d = driver()
    bad = d.post("one", sampling=SamplingParams(grammar="bad"))
    good = d.post("two", n_predict=4)
    d.finish()
    assert (d.outcomes[bad].failure.status, d.outcomes[bad].failure.message) == (400, "Failed to parse grammar")
    assert d.text(good) == alone("two", 4)


def test_no_task_stays_without_an_answer_when_it_cannot_be_placed(monkeypatch):
    d = driver(n_slots=2)
    choose, calls = prompt_cache.choose_slot, []

    def choose_slot(*args):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("out of the blue")
        return choose(*args)

    monkeypatch.setattr(prompt_cache, "choose_slot", choose_slot)
    tasks = [d.post(prompt, n_predict=5) for prompt in PROMPTS]
    d.run()
    assert all(d.outcomes[task].ends for task in tasks)
    assert d.is_clean()
