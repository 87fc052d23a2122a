"""The loop over the fake backend, step by step: mixed batches, the right text for every task, order, limits, context.

The fake's next token depends on everything in the cache for the sequence, so each comparison of a text checks
positions, prefix reuse, sharing, shifting and batch rows at once.
"""

from __future__ import annotations

import random

import pytest

from server.engine.seam.task import STOP_EOS, STOP_LIMIT, STOP_WORD, SamplingParams
from tests.fakes import BOS, EOS, FakeBackend, answer, letters
from tests.unit.engine.driving import Clock, Driver, alone


def driver(n_slots: int = 1, n_ctx_slot: int = 1024, reply=letters, n_batch: int = 512, **config) -> Driver:
    return Driver(FakeBackend(reply, n_ctx_slot * n_slots, n_slots, n_batch=n_batch), **config)


# ---- one task ----------------------------------------------------------------------------------------------------


def test_a_task_gets_the_text_the_model_says():
    d = driver()
    task = d.post("hello", n_predict=12)
    d.finish()
    assert d.text(task) == alone("hello", 12)
    final = d.outcomes[task].final
    assert (final.stop, final.n_prompt, final.n_predicted, final.truncated) == (STOP_LIMIT, 5, 12, False)
    assert final.n_cached == 5 + 12 - 1, "the last token is not evaluated"
    assert (final.timings.prompt_n, final.timings.predicted_n, final.timings.cache_n) == (5, 12, 0)
    assert d.is_clean()


def test_each_token_is_told_in_the_step_that_draws_it():
    d = driver()
    task = d.post("hello", n_predict=3)
    d.step()
    assert len(d.outcomes[task].pieces) == 1
    d.step()
    assert len(d.outcomes[task].pieces) == 2


def test_the_end_of_the_text_ends_the_task_and_is_no_text():
    d = driver(reply=answer("fine"))
    task = d.post("how?", n_predict=-1)
    d.finish()
    assert d.text(task) == "fine"
    final = d.outcomes[task].final
    assert (final.stop, final.stopping_word, final.n_predicted) == (STOP_EOS, "", 5)
    assert d.outcomes[task].pieces[-1].tokens == (EOS,)


def test_a_stop_string_across_tokens_ends_the_task_and_is_not_shown():
    d = driver(reply=answer("one two STOP three"))
    task = d.post("count?", n_predict=-1, stop=("STOP", "never"))
    d.finish()
    assert d.text(task) == "one two "
    assert (d.outcomes[task].final.stop, d.outcomes[task].final.stopping_word) == (STOP_WORD, "STOP")
    assert "S" not in "".join(piece.text for piece in d.outcomes[task].pieces)


def test_text_held_back_for_a_stop_string_comes_with_the_end():
    d = driver(reply=answer("one STO"))
    task = d.post("count?", n_predict=-1, stop=("STOP",))
    d.finish()
    assert d.text(task) == "one STO" and d.outcomes[task].final.text == "STO"
    assert d.outcomes[task].final.stop == STOP_EOS


def test_a_stop_string_that_is_complete_only_at_the_end_of_the_text():
    d = driver(reply=answer(b"one \xe2"))
    task = d.post("count?", n_predict=-1, stop=("\ufffd",))
    d.finish()
    assert (d.text(task), d.outcomes[task].final.stop) == ("one ", STOP_WORD)


def test_a_stop_string_in_the_prompt_stops_nothing():
    d = driver(reply=answer("fine"))
    task = d.post("STOP?", n_predict=-1, stop=("STOP",))
    d.finish()
    assert d.text(task) == "fine"


def test_n_predict_is_exact():
    for n in (1, 2, 7):
        d = driver()
        task = d.post("hello", n_predict=n)
        d.finish()
        assert (len(d.outcomes[task].tokens), d.outcomes[task].final.stop) == (n, STOP_LIMIT)


@pytest.mark.covers("Q08")
@pytest.mark.parametrize(
    ("said", "n_predict", "text", "n_predicted"),
    [
        ("é!", 1, "é", 2),
        ("€!", 1, "€", 3),
        ("😀!", 1, "😀", 4),
        ("a😀!", 2, "a😀", 5),
        ("ab", 1, "a", 1),
        (b"\xe2!", 1, "\ufffd!", 2),
    ],
)
def test_the_limit_waits_for_the_end_of_a_character(said, n_predict, text, n_predicted):
    d = driver(reply=answer(said))
    task = d.post("x?", n_predict=n_predict)
    d.finish()
    assert (d.text(task), d.outcomes[task].final.n_predicted) == (text, n_predicted)
    assert d.outcomes[task].final.stop == STOP_LIMIT


def test_a_limit_inside_endless_broken_bytes_is_a_limit_all_the_same():
    d = driver(reply=lambda history: 0xE2)
    task = d.post("x", n_predict=3)
    d.finish()
    assert d.outcomes[task].final.n_predicted <= 3 + 4


def test_n_predict_zero_only_reads_the_prompt_into_the_cache():
    d = driver()
    first = d.post("some prompt", n_predict=0)
    d.finish()
    final = d.outcomes[first].final
    assert (d.text(first), final.stop, final.n_predicted, final.n_cached) == ("", STOP_LIMIT, 0, 11)
    second = d.post("some prompt", n_predict=4)
    d.finish()
    assert d.text(second) == alone("some prompt", 4)
    assert d.outcomes[second].final.timings.prompt_n == 1, "all but the last token were in the cache"


def test_an_empty_prompt_ends_at_once_without_text():
    d = driver()
    task = d.post("", n_predict=5)
    d.finish()
    assert (d.text(task), d.outcomes[task].final.n_predicted, d.backend.batches) == ("", 0, [])
    assert d.is_clean()


def test_probabilities_come_with_each_token_when_asked_for():
    d = driver()
    task = d.post("hi", n_predict=3, sampling=SamplingParams(temperature=0, n_probs=2))
    d.finish()
    for piece in d.outcomes[task].pieces:
        assert [probs.token for probs in piece.probs] == list(piece.tokens)
        assert len(piece.probs[0].top) == len(piece.probs[0].top_logprobs) == 2


def test_the_penalties_are_told_the_end_of_the_prompt():
    d = driver()
    d.post("abcdefgh", n_predict=1, sampling=SamplingParams(repeat_last_n=3))
    d.post("abcdefgh", n_predict=1, sampling=SamplingParams(repeat_last_n=0))
    d.post("abcdefgh", n_predict=1, sampling=SamplingParams(repeat_last_n=4, penalty_prompt=(1, 2)))
    d.finish()
    assert [sampler.accepted[:-1] for sampler in d.backend.samplers] == [list(b"fgh"), [], [1, 2]]


def test_progress_tells_every_part_of_the_prompt():
    d = driver(n_batch=4)
    task = d.post("0123456789", n_predict=1, progress=True)
    d.finish()
    assert [(p.n_prompt, p.n_cached, p.n_processed) for p in d.outcomes[task].progress] == [
        (10, 0, 0),
        (10, 0, 4),
        (10, 0, 8),
        (10, 0, 10),
    ]


def test_times_are_those_of_the_clock():
    clock = Clock()
    d = Driver(FakeBackend(), clock)
    task = d.post("abc", n_predict=3)

    def tick(spans):
        clock.now += 0.5
        return 0

    d.backend.refuse = tick
    d.finish()
    timings = d.outcomes[task].final.timings
    assert (timings.prompt_ms, timings.predicted_ms) == (500.0, 1000.0)


# ---- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.covers("B06")
def test_a_new_prompt_is_read_at_once_and_joins_the_batches_of_a_running_text():
    d = driver(n_slots=2)
    first = d.post("first", n_predict=20)
    d.step(2)
    second = d.post("the second", n_predict=20)
    d.step()
    assert d.rows() == [(1, 10, True)]
    d.step()
    assert d.rows() == [(0, 1, True), (1, 1, True)]
    d.finish()
    assert (d.text(first), d.text(second)) == (alone("first", 20), alone("the second", 20))


def test_all_tasks_of_a_request_begin_with_the_same_step():
    d = driver(n_slots=4)
    ids = d.post_together("one", "and two", "three")
    d.step()
    assert sorted(d.rows()) == [(0, 3, True), (1, 7, True), (2, 5, True)]
    d.finish()
    assert [d.text(id_task) for id_task in ids] == [alone("one", 8), alone("and two", 8), alone("three", 8)]


def test_a_long_prompt_stalls_no_running_text():
    d = driver(n_slots=2, n_batch=8)
    first = d.post("ab", n_predict=30)
    d.step(2)
    second = d.post("x" * 100, n_predict=3)
    for _ in range(12):
        d.step()
        assert d.rows() == [(1, 8, False)]
        said = len(d.outcomes[first].tokens)
        d.step()
        assert d.rows() == [(0, 1, True)] and len(d.outcomes[first].tokens) == said + 1
    d.finish()
    assert (d.text(first), d.text(second)) == (alone("ab", 30), alone("x" * 100, 3))


def test_prompts_larger_than_a_batch_are_read_in_parts():
    d = driver(n_batch=16)
    task = d.post("0123456789" * 5, n_predict=2)
    d.finish()
    assert [d.rows(i) for i in range(5)] == [[(0, 16, False)]] * 3 + [[(0, 2, True)], [(0, 1, True)]]
    assert d.text(task) == alone("0123456789" * 5, 2)


@pytest.mark.parametrize("is_split", [True, False])
def test_prompts_are_read_in_the_order_of_their_coming_whatever_their_slots(is_split):
    d = Driver(FakeBackend(n_ctx=768, n_slots=3, n_batch=16, is_split=is_split))
    first = d.post("a" * 30, n_predict=1, id_slot=2)
    second = d.post("b" * 30, n_predict=1, id_slot=0)
    d.finish()
    assert [d.rows(i) for i in range(len(d.backend.batches))] == (
        [[(2, 16, False)], [(2, 14, True)], [(0, 16, False)], [(0, 14, True)]]
        if is_split
        else [[(2, 16, False)], [(2, 14, True), (0, 2, False)], [(0, 16, False)], [(0, 12, True)]]
    )
    d.finish()
    assert (d.text(first), d.text(second)) == (alone("a" * 30, 1), alone("b" * 30, 1))


def test_of_prompts_that_come_together_those_beside_the_running_texts_are_read_first():
    d = Driver(FakeBackend(n_ctx=256 * 6, n_slots=6, is_split=True), group_part=8)
    running = d.post("this one runs", n_predict=60, id_slot=3)
    d.step(2)
    together = [d.post(f"{i}" * (20 + i), n_predict=30, id_slot=slot) for i, slot in enumerate((0, 5, 1, 2, 4))]
    d.finish()
    first_rows = {}
    for n, batch in enumerate(d.backend.batches):
        for span in batch:
            first_rows.setdefault(span.seq, n)
    order = sorted(first_rows, key=first_rows.get)
    assert order[0] == 3 and all(min(abs(seq - other) for other in order[:i]) == 1 for i, seq in enumerate(order) if i)
    assert d.text(running) == alone("this one runs", 60)
    assert [d.text(task) for task in together] == [alone(f"{i}" * (20 + i), 30) for i in range(5)]


def test_a_prompt_that_came_first_is_not_put_behind_one_beside_the_running_texts():
    d = Driver(FakeBackend(n_ctx=256 * 6, n_slots=6, is_split=True))
    d.post("this one runs", n_predict=60, id_slot=0)
    d.step(2)
    first = d.post("a" * 20, n_predict=30, id_slot=5)
    d.scheduler._receive(False)
    d.clock.now += 1
    second = d.post("b" * 20, n_predict=30, id_slot=1)
    d.step_until(lambda: d.outcomes[first].pieces or d.outcomes[second].pieces)
    assert d.outcomes[first].pieces and not d.outcomes[second].pieces


def test_without_continuous_batching_a_prompt_waits_until_nothing_runs():
    d = driver(n_slots=2, cont_batching=False)
    first = d.post("first", n_predict=3)
    d.step()
    second = d.post("second", n_predict=3)
    d.step_until(lambda: d.outcomes[first].ends)
    assert d.outcomes[second].pieces == []
    d.finish()
    assert d.text(second) == alone("second", 3)


# ---- the right text for everybody --------------------------------------------------------------------------------


def random_prompts(rng: random.Random, n: int) -> list[list[int]]:
    """Prompts in families that share beginnings of all lengths, some of them equal, some a beginning of another."""
    stems = [[BOS] + [rng.randrange(97, 123) for _ in range(rng.choice((0, 3, 40)))] for _ in range(3)]
    prompts: list[list[int]] = []
    for _ in range(n):
        stem = rng.choice(stems + prompts[-3:])
        stem = stem[: rng.randrange(1, len(stem) + 1)]
        prompts.append(stem + [rng.randrange(97, 123) for _ in range(rng.choice((0, 1, 5, 50)))])
    return prompts


@pytest.mark.parametrize("cache_prompt", [True, False, None], ids=["cache", "no cache", "some with cache"])
@pytest.mark.parametrize("n_slots", [1, 2, 5])
@pytest.mark.parametrize("seed", range(6))
def test_many_at_once_get_the_text_that_each_gets_alone(n_slots, cache_prompt, seed):
    rng = random.Random(f"{seed} {n_slots} {cache_prompt}")
    d = driver(n_slots=n_slots, n_batch=rng.choice((n_slots, 7, 64)))
    expected: dict[int, str] = {}
    for prompt in random_prompts(rng, 24):
        n = rng.randrange(0, 12)
        use_cache = rng.random() < 0.5 if cache_prompt is None else cache_prompt
        expected[d.post(prompt, n_predict=n, cache_prompt=use_cache)] = alone(prompt, n)
        d.step(rng.choice((0, 0, 1, 5, 40)))
    d.finish()
    assert {id_task: d.text(id_task) for id_task in expected} == expected
    assert d.is_clean()


@pytest.mark.covers("B02")
def test_the_same_prompt_again_evaluates_only_its_last_token():
    d = driver()
    prompt = "a prompt of some length"
    for n_evaluated in (len(prompt), 1, 1):
        task = d.post(prompt, n_predict=5)
        d.finish()
        assert d.outcomes[task].final.timings.prompt_n == n_evaluated
        assert d.text(task) == alone(prompt, 5)


def test_a_conversation_evaluates_only_what_is_new():
    d = driver(n_slots=2)
    prompt = "user: hi\nbot:"
    for _ in range(4):
        task = d.post(prompt, n_predict=6)
        d.finish()
        assert d.text(task) == alone(prompt, 6)
        prompt += d.text(task)
        before = len(prompt)
        prompt += "\nuser: and?\nbot:"
    assert d.outcomes[task].final.timings.prompt_n <= len(prompt) - before + 1


def test_without_cache_prompt_the_whole_prompt_is_evaluated():
    d = driver()
    for _ in range(2):
        task = d.post("a prompt of some length", n_predict=5, cache_prompt=False)
        d.finish()
        assert d.outcomes[task].final.timings.prompt_n == 23


def test_a_new_conversation_takes_an_empty_slot_rather_than_another_s_cache():
    d = driver(n_slots=2)
    first = [BOS, *b"a long conversation with one user"]
    for prompt in (first, [BOS, *b"something else entirely"], first):
        d.clock.now += 1
        task = d.post(prompt, n_predict=4)
        d.finish()
        assert d.text(task) == alone(prompt, 4)
    assert d.outcomes[task].final.timings.prompt_n == 1, "the first conversation's cache was thrown away"


def test_a_running_neighbour_s_prompt_is_shared():
    d = driver(n_slots=2)
    system = "you are a helpful assistant of few words. "
    first = d.post(system + "hi", n_predict=30)
    d.step(2)
    second = d.post(system + "who?", n_predict=30)
    d.finish()
    assert d.outcomes[second].final.timings.prompt_n == len("who?")
    assert (d.text(first), d.text(second)) == (alone(system + "hi", 30), alone(system + "who?", 30))


# ---- order, pinned slots, bounds ---------------------------------------------------------------------------------


def test_tasks_are_served_in_order_of_arrival():
    d = driver(n_slots=2)
    tasks = [d.post(f"task {i}", n_predict=2 + i % 3) for i in range(9)]
    started: list[int] = []
    while d.unfinished:
        d.step()
        running = sorted(slot.run.task.id for slot in d.scheduler.slots if slot.run is not None)
        started += [id_task for id_task in running if id_task not in started]
        started += [id_task for id_task in tasks if d.outcomes[id_task].ends and id_task not in started]
    assert started == tasks


@pytest.mark.covers("B03")
def test_more_tasks_than_slots_wait_and_are_all_answered():
    d = driver(n_slots=2)
    tasks = [d.post(f"task {i}", n_predict=3) for i in range(20)]
    d.step()
    assert (d.snapshot.n_processing, d.snapshot.n_deferred) == (2, 18)
    d.finish()
    assert [d.text(task) for task in tasks] == [alone(f"task {i}", 3) for i in range(20)]


def test_a_pinned_task_runs_on_its_slot():
    d = driver(n_slots=3)
    tasks = [d.post(f"task {i}", n_predict=3, id_slot=slot) for i, slot in enumerate((2, 0, 1, 2))]
    d.finish()
    assert [d.outcomes[task].final.id_slot for task in tasks] == [2, 0, 1, 2]


def test_a_task_pinned_to_a_busy_slot_lets_others_pass_but_keeps_its_place():
    d = driver(n_slots=2)
    busy = d.post("busy", n_predict=20, id_slot=0)
    d.step()
    pinned = d.post("pinned", n_predict=2, id_slot=0)
    later_pinned = d.post("later", n_predict=2, id_slot=0)
    free = d.post("free", n_predict=2)
    d.step_until(lambda: d.outcomes[free].ends)
    assert not d.outcomes[pinned].pieces and not d.outcomes[busy].ends
    d.step_until(lambda: d.outcomes[pinned].ends)
    assert not d.outcomes[later_pinned].ends
    d.finish()
    assert d.text(later_pinned) == alone("later", 2)
    assert d.outcomes[free].final.id_slot == 1


def test_a_pinned_task_gets_its_slot_before_tasks_that_came_later():
    d = driver(n_slots=2)
    d.post("busy", n_predict=6, id_slot=0)
    d.step()
    pinned = d.post("pinned", n_predict=2, id_slot=0)
    later = [d.post(f"later {i}", n_predict=30) for i in range(3)]
    d.step_until(lambda: d.outcomes[pinned].ends)
    assert [bool(d.outcomes[task].pieces) for task in later] == [True, False, False]
    d.finish()


def test_a_slot_that_does_not_exist_is_refused_by_number():
    d = driver(n_slots=2)
    task = d.post("x", id_slot=2)
    d.finish()
    assert d.outcomes[task].failure.status == 400
    assert "id_slot" in d.outcomes[task].failure.message and "2" in d.outcomes[task].failure.message


def test_a_full_queue_refuses_with_503_and_serves_the_others():
    d = driver(n_slots=1, max_queue=2)
    tasks = [d.post("running", n_predict=3)]
    d.step()
    tasks += [d.post(f"waiting {i}", n_predict=3) for i in range(2)]
    refused = d.post("one too many")
    d.finish()
    assert d.outcomes[refused].failure.status == 503 and "wait" in d.outcomes[refused].failure.message
    assert all(d.outcomes[task].final for task in tasks)
    again = d.post("later", n_predict=1)
    d.finish()
    assert d.outcomes[again].final, "the queue has room again"


def test_idle_slots_are_no_queue():
    d = driver(n_slots=3, max_queue=0)
    tasks = [d.post(f"task {i}", n_predict=3) for i in range(3)]
    refused = d.post("one too many")
    d.finish()
    assert [d.text(task) for task in tasks] == [alone(f"task {i}", 3) for i in range(3)]
    assert d.outcomes[refused].failure.status == 503


# ---- context -----------------------------------------------------------------------------------------------------


def test_a_prompt_that_does_not_fit_is_refused_with_numbers():
    d = driver(n_slots=2, n_ctx_slot=32)
    for n in (32, 100):
        task = d.post("x" * n)
        d.finish()
        failure = d.outcomes[task].failure
        assert (failure.status, failure.type) == (400, "exceed_context_size_error")
        assert failure.extra == {"n_prompt_tokens": n, "n_ctx": 32}
    fits = d.post("x" * 31, n_predict=1)
    d.finish()
    assert d.text(fits) == alone("x" * 31, 1)


def test_without_shift_the_text_ends_where_the_context_does():
    d = driver(n_ctx_slot=32)
    task = d.post("0123456789", n_predict=-1)
    d.finish()
    final = d.outcomes[task].final
    assert d.text(task) == alone("0123456789", 32 - 10 + 1)
    assert (final.stop, final.truncated, final.n_cached) == (STOP_LIMIT, True, 32)


def shifted(prompt: list[int], n: int, n_ctx: int, n_keep: int) -> str:
    """The text of a sequence that is shifted by half of what isn't kept whenever it is full."""
    history, said = list(prompt), []
    for _ in range(n):
        said.append(letters(history))
        if len(history) == n_ctx:
            del history[n_keep : n_keep + (n_ctx - n_keep) // 2]
        history.append(said[-1])
    return bytes(said).decode()


@pytest.mark.covers("B05", "Q09")
@pytest.mark.parametrize(("n_keep", "kept"), [(0, 0), (4, 4), (-1, 10)])
def test_with_shift_the_text_goes_on(n_keep, kept):
    d = driver(n_ctx_slot=32, shift_context=True)
    prompt = list(b"0123456789")
    task = d.post(prompt, n_predict=100, n_keep=n_keep)
    d.finish()
    final = d.outcomes[task].final
    assert (final.n_predicted, final.truncated, final.stop) == (100, True, STOP_LIMIT)
    assert d.text(task) == shifted(prompt, 100, 32, kept)
    assert d.backend.history(0)[:kept] == prompt[:kept]


def test_a_shift_on_one_slot_changes_nobody_else_s_text():
    d = driver(n_slots=3, n_ctx_slot=48, shift_context=True)
    stem = "a beginning that all of them share "
    tasks = {
        d.post(stem + name, n_predict=n, n_keep=keep): (stem + name, n, keep)
        for name, n, keep in (("a", 90, 0), ("b", 10, 0), ("c", 70, 8))
    }
    d.finish()
    for task, (prompt, n, keep) in tasks.items():
        assert d.text(task) == shifted(list(prompt.encode()), n, 48, keep)
    again = d.post(stem + "b", n_predict=8)
    d.finish()
    assert d.text(again) == alone(stem + "b", 8)


def test_where_the_model_cannot_shift_the_text_ends_instead():
    d = Driver(FakeBackend(n_ctx=32, can_shift=False), shift_context=True)
    task = d.post("0123456789", n_predict=100)
    d.finish()
    assert (d.outcomes[task].final.stop, d.outcomes[task].final.truncated) == (STOP_LIMIT, True)


def test_with_shift_an_over_long_prompt_is_cut_in_the_middle():
    d = driver(n_ctx_slot=32, shift_context=True)
    prompt = list(range(97, 97 + 100))
    task = d.post(prompt, n_predict=1, n_keep=8)
    d.finish()
    final = d.outcomes[task].final
    used = d.backend.history(0)
    assert used[:8] == prompt[:8] and used[8:] == prompt[-(len(used) - 8) :]
    assert final.truncated and final.n_prompt == len(used) < 32
    assert d.text(task) == alone(used, 1)


# ---- what the outside sees ---------------------------------------------------------------------------------------


def test_counters_add_up():
    d = driver(n_slots=2)
    for prompt, n in (("abcdef", 3), ("abcdef", 0), ("xyz", 5)):
        d.post(prompt, n_predict=n)
        d.finish()
    assert d.snapshot.n_predicted_tokens == 8
    assert (
        d.snapshot.n_prompt_tokens == sum(d.outcomes[task].final.timings.prompt_n for task in d.outcomes) == 6 + 1 + 3
    )
    assert d.snapshot.n_steps == len(d.backend.batches)
    assert d.snapshot.kv_used == d.backend.n_used
    assert d.snapshot.n_ctx == d.backend.info.n_ctx


def test_the_snapshot_shows_slots_at_work_and_afterwards():
    d = driver(n_slots=2, reply=answer("fine words", end="?"))
    task = d.post("how?", n_predict=20, stop=("word",))
    d.step(2)
    slot = d.scheduler.slots[0].make_state()
    assert (slot.id_task, slot.is_processing, slot.has_next_token) == (task, True, True)
    assert (slot.n_prompt, slot.n_prompt_done, slot.n_decoded, slot.n_remain) == (4, 4, 2, 18)
    assert (d.snapshot.n_processing, d.snapshot.n_idle) == (1, 1)
    d.finish()
    slot = d.snapshot.slots[0]
    assert (slot.id_task, slot.is_processing, slot.has_next_token) == (task, False, False)
    assert (slot.stop, slot.stopping_word, slot.n_decoded) == (STOP_WORD, "word", 9)


def test_a_slot_is_shown_at_work_while_its_first_batch_is_decoded():
    d = driver(n_slots=1)
    shown: list[tuple[int, int]] = []

    def look(spans) -> int:
        shown.append((d.snapshot.n_processing, d.snapshot.n_deferred))
        return 0

    d.backend.refuse = look
    for _ in range(2):
        d.post("a prompt that takes a while", n_predict=2)
    d.finish()
    assert shown == [(1, 1)] * 2 + [(1, 0)] * 2


def test_a_snapshot_comes_with_every_change_of_slots_or_queue_and_else_only_now_and_then():
    d = driver()
    d.post("a", n_predict=50)
    d.step()
    n = len(d.snapshots)
    d.step(20)
    assert len(d.snapshots) == n, "nothing has changed and no time has passed"
    d.clock.now += 1.0
    d.step()
    assert len(d.snapshots) == n + 1


def test_cells_shared_by_slots_are_counted_once():
    d = driver(n_slots=3)
    stem = "a beginning that all of them share "
    for name in "abc":
        d.post(stem + name, n_predict=40)
        d.step(2)
    assert d.scheduler.snapshot().kv_used == d.backend.n_used < 3 * len(stem)
    d.finish()
    assert d.snapshot.kv_used == d.backend.n_used
