"""Speculative decoding over the fake backend: the same answers in fewer steps, with a consistent state after each.

The fake's next token depends on everything in its cache, so a draft that stays in the cache changes the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from server.engine.seam.config import SpecConfig
from server.engine.seam.task import STOP_EOS, STOP_LIMIT, STOP_WORD, SamplingParams
from tests.fakes import EOS, FakeBackend, letters, said_by
from tests.unit.engine.driving import Clock, Driver, alone

POEM = "the owl and the pussycat went to sea in a beautiful pea green boat, they took some honey, and plenty of money. "
LOOKUP = SpecConfig(lookup=True)
MODEL = SpecConfig(n_max=6)


def poet(history: Sequence[int]) -> int:
    """A model that says the poem over and over, wherever it is in it."""
    said = bytes(token for token in history if token < 256).decode()
    for n in range(min(len(said), 40), 0, -1):
        at = (POEM * 2).find(said[-n:])
        if at >= 0:
            return ord((POEM * 3)[at + n])
    return ord(POEM[0])


def driver(
    reply: Callable = poet,
    spec: SpecConfig = LOOKUP,
    drafter: Callable | None = None,
    n_slots: int = 1,
    n_ctx_slot: int = 1024,
    n_batch: int = 512,
    **config,
) -> Driver:
    backend = FakeBackend(
        reply,
        n_ctx_slot * n_slots,
        n_slots,
        n_batch=n_batch,
        **{name: config.pop(name) for name in ("n_cells", "can_trim", "is_split") if name in config},
    )
    if drafter is not None:
        backend.drafter = FakeBackend(drafter, n_ctx_slot * n_slots, n_slots)
    return Driver(backend, spec=spec, **config)


def n_rows(d: Driver) -> int:
    return sum(len(span) for batch in d.backend.batches for span in batch)


def same_books(d: Driver) -> bool:
    return all(d.backend.history(slot.seq) == slot.tokens for slot in d.scheduler.slots)


# ---- fewer steps, the same answer --------------------------------------------------------------------------------


def test_text_that_repeats_its_prompt_takes_fewer_steps_and_is_the_same():
    d = driver()
    task = d.post(POEM, n_predict=100)
    d.finish()
    assert d.text(task) == alone(POEM, 100, poet)
    assert len(d.backend.batches) < 50
    final = d.outcomes[task].final
    assert (final.n_predicted, final.n_cached, final.stop) == (100, len(POEM) + 99, STOP_LIMIT)
    assert final.timings.draft_n_accepted > 50 and final.timings.draft_n >= final.timings.draft_n_accepted
    assert same_books(d)


def test_a_step_of_several_tokens_tells_a_piece_for_each():
    d = driver()
    task = d.post(POEM, n_predict=60)
    d.finish()
    pieces = d.outcomes[task].pieces
    assert len(d.backend.batches) < 40, "some steps had several tokens"
    assert [len(piece.tokens) for piece in pieces] == [1] * 60
    assert all(piece.text == bytes(piece.tokens).decode() for piece in pieces)


def test_without_being_asked_for_nothing_is_drafted():
    d = driver(spec=SpecConfig())
    d.post(POEM, n_predict=60)
    d.finish()
    assert all(len(span) == 1 for batch in d.backend.batches[1:] for span in batch)


def test_a_draft_that_is_only_tried_keeps_to_what_the_request_allows():
    d = driver(spec=SpecConfig(lookup=True, min_gain=1000.0))
    d.post(POEM, n_predict=400, draft_n_max=6)
    d.finish()
    drafts = {span.n_draft for batch in d.backend.batches for span in batch}
    assert drafts == {0, 6}


def test_text_that_repeats_nothing_costs_no_rows():
    d = driver(reply=lambda history: 97 + len(history) * 7 % 26 if len(history) % 2 else letters(history))
    task = d.post(POEM, n_predict=200)
    d.finish()
    assert n_rows(d) < len(POEM) + 200 * 1.1
    assert d.outcomes[task].final.n_predicted == 200


def test_guesses_that_looked_dear_for_a_while_are_sent_again_later():
    clock = Clock()
    d = driver(clock=clock, n_ctx_slot=4096)
    is_busy = True

    def take_time(spans) -> int:
        rows = sum(map(len, spans))
        clock.now += 0.01 * (rows * (10 if is_busy and rows > 1 else 1) if rows < 9 or is_busy else 3)
        return 0

    d.backend.refuse = take_time
    task = d.post(POEM, n_predict=2000)
    d.step_until(lambda: len(d.outcomes[task].tokens) > 300)
    assert sum(len(span) > 1 for batch in d.backend.batches[-100:] for span in batch) < 10, "it is given up meanwhile"
    is_busy = False
    n_before = len(d.backend.batches)
    d.finish()
    assert d.text(task) == alone(POEM, 2000, poet) and len(d.backend.batches) - n_before < 1000


def test_a_request_can_switch_drafts_off():
    d = driver()
    d.post(POEM, n_predict=60, draft_n_max=0)
    d.finish()
    assert all(len(span) == 1 for batch in d.backend.batches[1:] for span in batch)


@pytest.mark.parametrize("n_max", [1, 4])
def test_a_request_can_bound_its_drafts(n_max):
    d = driver()
    d.post(POEM, n_predict=60, draft_n_max=n_max)
    d.finish()
    assert max(span.n_draft for batch in d.backend.batches for span in batch) == n_max


def test_drafts_shorter_than_the_least_are_not_sent():
    d = driver()
    d.post(POEM, n_predict=60, draft_n_min=5)
    d.finish()
    assert min(span.n_draft for batch in d.backend.batches for span in batch if span.n_draft) >= 5


@pytest.mark.parametrize("n_batch", [4, 12, 512])
def test_many_sequences_are_drafted_for_in_one_batch(n_batch):
    d = driver(n_slots=4, n_batch=n_batch)
    prompts = [POEM[i * 5 :] + POEM[: i * 9] for i in range(4)]
    tasks = [d.post(prompt, n_predict=50 + i) for i, prompt in enumerate(prompts)]
    d.finish()
    for i, task in enumerate(tasks):
        assert d.text(task) == alone(prompts[i], 50 + i, poet)
    if n_batch > 4:
        assert any(sum(span.n_draft > 0 for span in batch) > 1 for batch in d.backend.batches)


@pytest.mark.parametrize("n_poets", [4, 3])
def test_with_a_stream_for_each_sequence_all_get_equally_many_guesses_or_few(n_poets):
    d = driver(n_slots=4, is_split=True)
    prompts = [POEM] * n_poets + ["42 is no poem at all"] * (4 - n_poets)  # nothing in it comes twice
    tasks = [d.post(prompt, n_predict=30, draft_n_max=-1 if prompt is POEM else 0) for prompt in prompts]
    d.finish()
    assert [d.text(task) for task in tasks] == [alone(prompt, 30, poet) for prompt in prompts]
    guesses = [[span.n_draft for span in batch] for batch in d.backend.batches if len(batch) == 4]
    assert any(map(any, guesses)) if n_poets == 4 else max(map(sum, guesses)) <= 8
    assert all(len(set(batch)) == 1 or sum(batch) <= 8 for batch in guesses)


def test_drafts_go_on_while_another_prompt_is_read():
    d = driver(n_slots=2)
    task = d.post(POEM * 2, n_predict=300)
    d.step(8)
    d.post("x" * 900, n_predict=1)
    d.step(2)
    assert [span.seq for batch in d.backend.batches[-2:] for span in batch] == [1, 0]
    assert d.backend.batches[-1][0].n_draft
    d.finish()
    assert d.text(task) == alone(POEM * 2, 300, poet)


# ---- ends within a draft -----------------------------------------------------------------------------------------


def test_a_stop_string_within_accepted_tokens_ends_the_text_there():
    d = driver()
    task = d.post(POEM, n_predict=-1, stop=("honey",))
    d.finish()
    assert d.text(task) == alone(POEM, 200, poet).split("honey")[0]
    final = d.outcomes[task].final
    assert (final.stop, final.stopping_word) == (STOP_WORD, "honey")
    assert final.n_predicted == len(d.outcomes[task].tokens) == final.n_cached - len(POEM) + 1
    assert bytes(d.outcomes[task].tokens).decode().endswith("honey") and same_books(d)


def test_the_end_of_the_text_within_a_draft_ends_it_there():
    prompt = [*POEM.encode(), EOS, *POEM.encode()]

    def reply(history: Sequence[int]) -> int:
        return EOS if len(history) == len(prompt) + len(POEM) else poet(history)

    d = driver(reply)
    task = d.post(prompt, n_predict=-1)
    d.finish()
    assert d.text(task) == POEM and d.outcomes[task].final.stop == STOP_EOS
    assert d.outcomes[task].final.n_predicted == len(POEM) + 1 and same_books(d)


@pytest.mark.parametrize("n_predict", [1, 2, 3, 17, 60])
def test_never_more_tokens_than_asked_for(n_predict):
    d = driver()
    task = d.post(POEM, n_predict=n_predict)
    d.finish()
    assert d.outcomes[task].final.n_predicted == n_predict == len(d.outcomes[task].tokens)


@pytest.mark.parametrize("is_shifting", [False, True])
def test_at_the_end_of_the_context_drafts_get_short(is_shifting):
    def said(spec: SpecConfig) -> tuple:
        d = driver(spec=spec, n_ctx_slot=len(POEM) + 40, shift_context=is_shifting)
        task = d.post(POEM, n_predict=150)
        d.finish()
        assert same_books(d)
        final = d.outcomes[task].final
        return d.text(task), final.stop, final.n_predicted, final.n_cached, final.truncated, len(d.backend.batches)

    *drafted, n_drafted = said(LOOKUP)
    *plain, n_plain = said(SpecConfig())
    assert drafted == plain and n_drafted < n_plain


def test_a_cancelled_task_leaves_no_guesses_in_the_cache():
    d = driver()
    task = d.post(POEM, n_predict=-1)
    d.step(6)
    d.cancel(task)
    d.step()
    assert same_books(d) and d.is_clean()
    again = d.post(POEM + alone(POEM, 20, poet), n_predict=30)
    d.step_until(lambda: d.outcomes[again].ends)
    assert d.text(again) == alone(POEM + alone(POEM, 20, poet), 30, poet)


def test_drawing_that_fails_within_a_draft_tells_what_came_before_and_fails_that_task_alone():
    d = driver(n_slots=2)
    good = d.post(POEM, n_predict=80)
    bad = d.post(POEM[3:] + POEM[:3], n_predict=80)
    d.step(2)
    sampler, sample = d.backend.samplers[1], d.backend.samplers[1].sample
    n_drawn = len(sampler.accepted)

    def fail_later(row: int) -> int:
        if len(sampler.accepted) >= n_drawn + 30:
            raise RuntimeError("made up")
        return sample(row)

    sampler.sample = fail_later
    d.finish()
    assert d.text(good) == alone(POEM, 80, poet)
    assert d.outcomes[bad].failure.status == 500
    assert d.outcomes[bad].tokens == said_by(poet, (POEM[3:] + POEM[:3]).encode(), len(d.outcomes[bad].tokens))
    assert same_books(d) and d.is_clean()


# ---- faults ------------------------------------------------------------------------------------------------------


def test_without_room_for_guesses_the_text_goes_on_without_them():
    d = driver(n_cells=len(POEM) + 60)
    task = d.post(POEM, n_predict=60)
    d.finish()
    assert d.text(task) == alone(POEM, 60, poet) and same_books(d)


@pytest.mark.parametrize("code", [1, -1, -3])
def test_a_step_that_fails_with_guesses_is_tried_without_them(code):
    d = driver()
    d.backend.refuse = lambda spans: code if any(span.n_draft for span in spans) else 0
    task = d.post(POEM, n_predict=60)
    d.finish()
    assert d.text(task) == alone(POEM, 60, poet)


def test_a_model_that_cannot_drop_the_end_of_a_text_gets_no_drafts():
    d = driver(can_trim=False)
    task = d.post(POEM, n_predict=40)
    d.finish()
    assert d.text(task) == alone(POEM, 40, poet)
    assert len(d.backend.batches) == 41, "the prompt in two parts, for a checkpoint, and one for each further token"


def test_drafts_are_as_short_as_the_model_can_go_back():
    d = driver()
    d.backend.n_rollback = 3
    d = Driver(d.backend, spec=LOOKUP)
    task = d.post(POEM, n_predict=60)
    d.finish()
    assert d.text(task) == alone(POEM, 60, poet)
    assert max(span.n_draft for batch in d.backend.batches for span in batch) == 3


def test_with_self_extend_nothing_is_drafted():
    d = driver(n_group=2, group_width=64)
    d.post(POEM, n_predict=30)
    d.finish()
    assert len(d.backend.batches) >= 30


# ---- what it must not change -------------------------------------------------------------------------------------


def test_probabilities_come_for_every_token_of_a_step():
    d = driver()
    task = d.post(POEM, n_predict=60, sampling=SamplingParams(temperature=0.0, n_probs=3))
    d.finish()
    pieces = d.outcomes[task].pieces
    assert len(d.backend.batches) < 40, "some steps had several tokens"
    assert all(tuple(probs.token for probs in piece.probs) == piece.tokens for piece in pieces)


def test_the_sampler_sees_each_token_once_and_in_order():
    d = driver()
    sampling = SamplingParams(temperature=0.0, repeat_penalty=1.2)
    task = d.post(POEM, n_predict=60, sampling=sampling)
    d.finish()
    assert d.backend.samplers[0].accepted == list(POEM.encode()[-64:]) + d.outcomes[task].tokens


def test_the_time_between_tokens_is_that_of_the_step_shared_by_its_tokens():
    clock = Clock()
    d = driver(clock=clock)
    d.post(POEM, n_predict=61)
    d.step()
    while d.unfinished:
        clock.now += 0.1
        d.step()
    values = d.scheduler.snapshot().histograms["time_between_tokens_seconds"]
    assert sum(values[:-1]) == 60 and values[-1] == pytest.approx(0.1 * (len(d.backend.batches) - 1))


def test_counters_tell_of_drafts():
    d = driver()
    task = d.post(POEM, n_predict=60)
    d.finish()
    snapshot, timings = d.scheduler.snapshot(), d.outcomes[task].final.timings
    assert (snapshot.n_draft_tokens, snapshot.n_draft_accepted) == (timings.draft_n, timings.draft_n_accepted)
    assert 0 < snapshot.n_drafts < 30


# ---- earlier answers ---------------------------------------------------------------------------------------------

EARLIER = SpecConfig(lookup=True, answers=True)


def n_batches(d: Driver, prompt: str, n_predict: int = len(POEM), **fields: object) -> int:
    """How many steps an answer takes, which is checked."""
    before = len(d.backend.batches)
    task = d.post(prompt, n_predict=n_predict, **fields)
    d.finish()
    assert d.text(task) == alone(prompt, n_predict, poet) and same_books(d)
    return len(d.backend.batches) - before


def test_an_earlier_answer_of_the_same_owner_is_guessed_again():
    d = driver(spec=EARLIER, n_slots=2)
    first = n_batches(d, "the owl", owner="ann")
    assert n_batches(d, "I think: the owl", owner="ann") < first / 2


@pytest.mark.covers("G01")
def test_nobody_sees_another_owners_answers_in_how_many_steps_his_own_take():
    def steps(owner: str) -> int:
        d = driver(spec=EARLIER, n_slots=2)
        n_batches(d, "the owl", owner=owner)
        return n_batches(d, "I think: the owl", owner="bob")

    assert steps("ann") == n_batches(driver(spec=LOOKUP), "I think: the owl") > 2 * steps("bob")


def test_without_the_option_or_where_nothing_may_be_kept_earlier_answers_are_forgotten():
    for spec, fields in ((LOOKUP, {}), (EARLIER, {"cache_prompt": False})):
        d = driver(spec=spec)
        n_batches(d, "the owl", **fields)
        assert n_batches(d, "I think: the owl") == n_batches(driver(spec=LOOKUP), "I think: the owl")


def test_the_lines_before_an_answer_tell_which_one_begins():
    d = driver(spec=EARLIER)
    at = POEM.index("they took")
    for start in (0, at, 30):
        n_batches(d, POEM[start : start + 8], 40)
    d.post(POEM[at : at + 8], n_predict=30)
    d.step(2)
    (span,) = d.backend.batches[-1]
    assert span.n_draft and bytes(span.tokens).decode() == POEM[at + 8 : at + 9 + span.n_draft]


# ---- a draft model -----------------------------------------------------------------------------------------------


def test_a_draft_model_that_is_always_right_saves_most_steps():
    d = driver(letters, MODEL, letters)
    task = d.post("some prompt", n_predict=70)
    d.finish()
    assert d.text(task) == alone("some prompt", 70, letters)
    assert len(d.backend.batches) <= 20
    assert d.outcomes[task].final.timings.draft_n_accepted == d.outcomes[task].final.timings.draft_n


def test_a_draft_model_that_is_often_wrong_changes_no_text():
    def hasty(history: Sequence[int]) -> int:
        return letters(history) if len(history) % 8 else 120

    d = driver(letters, MODEL, hasty, n_slots=3)
    tasks = [d.post(f"{i} prompt", n_predict=60 + i) for i in range(3)]
    d.finish()
    for i, task in enumerate(tasks):
        assert d.text(task) == alone(f"{i} prompt", 60 + i, letters)
    assert len(d.backend.batches) < 60


def test_a_draft_model_that_is_never_right_is_hardly_asked():
    d = driver(letters, MODEL, lambda history: 120 if letters(history) != 120 else 121)
    d.post("some prompt", n_predict=400)
    d.finish()
    assert n_rows(d) < 400 * 1.1 + 11
    assert len(d.backend.drafter.batches) < 60


def test_a_draft_model_that_is_unsure_stops_there():
    d = driver(letters, SpecConfig(n_max=6, p_min=0.5), letters)
    d.backend.drafter.certainty = 0.4
    d.post("some prompt", n_predict=20)
    d.finish()
    assert len(d.backend.batches) == 20
    d.post("some prompt", n_predict=20, draft_p_min=0.3)
    d.finish()
    assert len(d.backend.batches) < 30


def test_a_long_prompt_is_read_by_the_draft_model_in_portions():
    d = driver(letters, MODEL, letters)
    task = d.post("p" * 700, n_predict=60)
    d.finish()
    assert d.text(task) == alone("p" * 700, 60, letters)
    assert max(sum(map(len, batch)) for batch in d.backend.drafter.batches) == 32, "its speed isn't known here"
    assert d.outcomes[task].final.timings.draft_n_accepted > 20


def test_the_draft_models_cache_follows_the_next_task_and_a_shift():
    d = driver(letters, MODEL, letters, n_ctx_slot=128, shift_context=True)
    first = d.post("first prompt", n_predict=30)
    d.finish()
    second = d.post("first prompt" + d.text(first) + " and more", n_predict=200)
    d.finish()
    assert len(d.text(second)) == 200 and same_books(d)
    assert d.outcomes[second].final.timings.draft_n_accepted > 100


def test_a_draft_model_that_fails_costs_nothing_but_its_drafts():
    d = driver(letters, MODEL, letters)
    d.backend.drafter.refuse = lambda spans: -1 if len(d.backend.drafter.batches) % 3 == 0 else 0
    task = d.post("some prompt", n_predict=60)
    d.finish()
    assert d.text(task) == alone("some prompt", 60, letters)


def test_what_the_text_itself_does_not_give_the_draft_model_drafts():
    d = driver(poet, SpecConfig(lookup=True, n_max=6), poet)
    task = d.post("the owl", n_predict=2 * len(POEM))
    d.finish()
    assert d.text(task) == alone("the owl", 2 * len(POEM), poet)
    assert len(d.backend.drafter.batches) > 10 and len(d.backend.batches) < len(POEM)


@pytest.mark.parametrize(("ms_per_row", "most"), [(0.05, 512), (0.3, 128), (10.0, 32)])
def test_the_portions_of_a_prompt_fit_into_half_a_stall(ms_per_row, most):
    clock = Clock()
    d = driver(letters, MODEL, letters, clock=clock, n_ctx_slot=4096)

    def take_time(spans) -> int:
        clock.now += ms_per_row * 1e-3 * sum(map(len, spans))
        return 0

    d.backend.drafter.refuse = take_time
    d.post("p" * 3000, n_predict=400)
    d.finish()
    portions = [sum(map(len, batch)) for batch in d.backend.drafter.batches]
    assert max(portions) == most and portions[0] == 32


def test_a_request_may_have_drafts_where_the_server_has_none_and_its_neighbour_still_gets_none():
    d = driver(letters, SpecConfig(n_max=0, min_gain=0.0), letters, n_slots=2)
    without, drafted = d.post("without", n_predict=40), d.post("drafted", n_predict=40, draft_n_max=4)
    d.finish()
    assert d.outcomes[without].final.timings.draft_n == 0 < d.outcomes[drafted].final.timings.draft_n
    assert (d.text(without), d.text(drafted)) == (alone("without", 40), alone("drafted", 40))
