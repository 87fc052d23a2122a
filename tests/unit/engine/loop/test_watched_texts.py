"""Grammars that begin inside a text, and reasoning that is ended, in the loop: with batches, drafts, probabilities, a
full context, and tasks that continue known tokens.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.engine.seam.task import START, STOP_EOS, STOP_LIMIT, STOP_WORD, WORD, SamplingParams, Thinking, Trigger
from server.engine.slots.phases import Begin
from tests.fakes import EOS, FakeBackend, answer
from tests.unit.engine.driving import Driver, alone

LAZY = SamplingParams(temperature=0.0, grammar="g", grammar_lazy=True, grammar_triggers=(Trigger(WORD, "<call>"),))
FIRM = SamplingParams(temperature=0.0, grammar="g")
THINK = Thinking("<think>", "</think>", end_tokens=tuple(b"Enough.</think>"))
OPENED = replace(THINK, is_opened=True)


def driver(text: str = "", language: tuple[str, ...] | None = None, n_slots: int = 1, n_ctx: int = 1024, **config):
    backend = FakeBackend(*([answer(text)] if text else []), n_ctx=n_ctx * n_slots, n_slots=n_slots)
    backend.language = language
    return Driver(backend, **config)


def say(d: Driver, prompt: str = "how?", **fields: object):
    task = d.post(prompt, **{"n_predict": -1, **fields})
    d.finish()
    assert d.is_clean()
    return d.text(task), d.outcomes[task].final


# ---- grammars --------------------------------------------------------------------------------------------------------


def test_text_before_a_call_is_free_and_the_call_is_bound():
    d = driver("well: <call>nonsense", ("<call>good</call>",))
    text, final = say(d, sampling=LAZY)
    assert (text, final.stop) == ("well: <call>good</call>", STOP_EOS)
    assert d.backend.samplers[-1].begins == [Begin("", tuple(b"<call"))]
    assert d.backend.samplers[-1].accepted[-1] == EOS


def test_a_text_without_a_call_never_sees_the_grammar():
    d = driver("just <cal> text", ())
    assert say(d, sampling=LAZY)[0] == "just <cal> text"
    assert d.backend.samplers[-1].begins == []


def test_a_grammar_that_does_not_begin_with_its_trigger_is_refused():
    d = driver("well: <call>x", ("{}",))
    task = d.post("how?", n_predict=-1, sampling=LAZY)
    other = d.post("other", n_predict=3)
    d.finish()
    assert d.outcomes[task].failure.status == 400 and d.text(other) and d.is_clean()


def test_a_firm_grammar_holds_from_the_first_token_unless_the_model_thinks():
    assert say(driver("no", ("!yes",)), sampling=FIRM, reasoning=THINK)[0] == "!yes"
    assert say(driver("<think>no</think>no", ("yes",)), sampling=FIRM, reasoning=THINK)[0] == "<think>no</think>yes"


def test_a_text_cannot_end_in_the_thinking_if_a_firm_grammar_follows():
    text, final = say(driver("hm", ("yes",)), sampling=FIRM, reasoning=OPENED)
    assert (text, final.stop) == ("hm</think>yes", STOP_EOS)
    assert final.n_reasoning == 2 + len("</think>")
    assert say(driver("hm", ("yes",)), sampling=LAZY, reasoning=OPENED)[0] == "hm", "a call may be left out"


def test_a_trigger_in_the_thinking_is_none():
    text, _ = say(driver("<call>a</think><call>b", ("<call>good",)), sampling=LAZY, reasoning=OPENED)
    assert text == "<call>a</think><call>good"


def test_stop_words_end_visible_text_only():
    fields = {"sampling": LAZY, "reasoning": OPENED, "stop": ("!",)}
    text, final = say(driver("a!</think>b <call>!", ("<call>!</call>",)), **fields)
    assert (text, final.stop) == ("a!</think>b <call>!</call>", STOP_EOS)
    text, final = say(driver("a!</think>b! <call>!"), **fields)
    assert (text, final.stop, final.stopping_word) == ("a!</think>b", STOP_WORD, "!")


# ---- the end of the thinking -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget, thought", [(0, ""), (3, "and")])
def test_a_budget_ends_the_thinking_and_its_tokens_count_as_any_other(budget, thought):
    fields = {"sampling": LAZY, "reasoning": replace(OPENED, budget=budget)}
    text, final = say(driver(), n_predict=40, **fields)
    n = budget + len("Enough.</think>")
    assert text == alone("how?", 3)[:budget] + "Enough.</think>" + text[n:]
    assert (final.n_reasoning, final.n_predicted, final.stop, len(text)) == (n, 40, STOP_LIMIT, 40)
    assert text[n:] == alone("how?" + text[:n], 40 - n)
    assert say(driver(), n_predict=budget + 4, **fields)[0] == text[: budget + 4], "n_predict may end it before"


def test_a_budget_is_for_a_thinking_that_the_model_begins_too():
    text, final = say(driver("<think>on and on"), n_predict=40, sampling=LAZY, reasoning=replace(THINK, budget=2))
    assert text.startswith("<think>onEnough.</think>") and final.n_reasoning == 2 + len("Enough.</think>")


def test_forced_tokens_have_probabilities_if_they_are_wanted():
    d = driver(n_slots=2)
    fields = {"reasoning": replace(OPENED, budget=1), "n_predict": 30}
    task = d.post("how?", sampling=replace(LAZY, n_probs=3), **fields)
    plain = d.post("how?", sampling=LAZY, **fields)
    d.finish()
    assert d.text(task) == d.text(plain)
    probs = [probs for piece in d.outcomes[task].pieces for probs in piece.probs]
    assert [one.token for one in probs] == d.outcomes[task].tokens and all(one.logprob <= 0 for one in probs)


def test_the_thinking_of_a_running_task_is_ended_from_outside():
    d = driver()
    task = d.post("how?", n_predict=60, reasoning=OPENED, sampling=FIRM)
    d.step_until(lambda: len(d.outcomes[task].tokens) == 5)
    assert d.answer("end_thinking", id_task=task) == {"at": 5}
    assert d.answer("end_thinking", id_task=task) == {"at": 5}, "once more changes nothing"
    d.finish()
    assert d.text(task).startswith(alone("how?", 5) + "Enough.</think>")
    assert d.answer("end_thinking", id_task=task) == {"at": -1}


def test_who_does_not_think_cannot_be_ended():
    d = driver(n_slots=2)
    plain, optional = d.post("how?", n_predict=50), d.post("how?", n_predict=50, reasoning=THINK, sampling=LAZY)
    d.step(8)
    assert [d.answer("end_thinking", id_task=task)["at"] for task in (plain, optional, 99)] == [-1, -1, -1]
    d.finish()
    assert d.text(plain) == d.text(optional) == alone("how?", 50)


# ---- with everything else --------------------------------------------------------------------------------------------

CASES = {
    "a call": ("well: <call>x", ("<call>good</call>",), {"sampling": LAZY}),
    "thinking, then a call": ("so</think>then <call>x", ("<call>good</call>",), {"sampling": LAZY, "reasoning": OPENED}),
    "opened thinking, then a form": ("<think>so</think>x", ("good",), {"sampling": FIRM, "reasoning": THINK}),
    "no thinking, but a form": ("x", ("good",), {"sampling": FIRM, "reasoning": THINK}),
    "an end in the thinking": ("so", ("good",), {"sampling": FIRM, "reasoning": OPENED}),
    "a budget": ("so and so", ("good",), {"sampling": FIRM, "reasoning": replace(OPENED, budget=4)}),
    "a start": (" {x", ("{good}",), {"sampling": replace(LAZY, grammar_triggers=(Trigger(START, "{"),))}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_task_that_is_taken_up_says_the_rest_whatever_is_known(name):
    text, language, fields = CASES[name]
    whole, final = say(driver(text, language), **fields)
    d = driver(text, language)
    task = d.post("how?", n_predict=-1, **fields)
    d.finish()
    tokens = [token for piece in d.outcomes[task].pieces for token in piece.tokens]
    for n_known in range(1, len(tokens)):
        again = driver(text, language, n_slots=2)
        resumed = again.post("how?", n_predict=-1, resume=tuple(tokens[:n_known]), **fields)
        other = again.post("how?", n_predict=-1, **fields)
        again.finish()
        rest = [token for piece in again.outcomes[resumed].pieces for token in piece.tokens]
        assert rest == tokens[n_known:], n_known
        assert again.outcomes[resumed].final.n_reasoning == final.n_reasoning
        assert again.text(other) == whole and again.is_clean()


def test_an_end_from_outside_is_taken_up_at_its_place():
    d = driver()
    task = d.post("how?", n_predict=60, reasoning=OPENED, sampling=FIRM)
    d.step_until(lambda: len(d.outcomes[task].tokens) == 5)
    d.answer("end_thinking", id_task=task)
    d.finish()
    tokens = d.outcomes[task].tokens
    for n_known in (5, 6, 12, 30):
        again = driver()
        resumed = again.post(
            "how?", n_predict=60, reasoning=OPENED, sampling=FIRM, resume=tuple(tokens[:n_known]), ends_thinking=5
        )
        again.finish()
        assert again.outcomes[resumed].tokens == tokens[n_known:]


@pytest.mark.parametrize("name", CASES)
def test_guesses_change_nothing(name):
    text, language, fields = CASES[name]
    whole, _ = say(driver(text, language), **fields)
    d = driver(text, language)
    d.backend.drafter = FakeBackend(answer(text), n_ctx=1024)
    d = Driver(d.backend)
    assert say(d, **fields)[0] == whole


def test_a_context_that_is_full_is_shifted_before_during_and_behind_the_thinking():
    d = driver(n_ctx=64, shift_context=True)
    text, final = say(d, n_predict=200, reasoning=replace(OPENED, budget=100), sampling=LAZY)
    assert final.truncated and text[100:].startswith("Enough.</think>") and len(text) == 200


def test_many_at_once_say_what_each_says_alone():
    alone_texts = [say(driver(text, language), **fields)[0] for text, language, fields in CASES.values()]
    for (text, language, fields), expected in zip(CASES.values(), alone_texts):
        d = driver(text, language, n_slots=5)
        tasks = [d.post("how?", n_predict=-1, **fields) for _ in range(4)]
        plain = d.post("how?", n_predict=-1)
        d.finish()
        assert [d.text(task) for task in tasks] == [expected] * 4 and d.text(plain) == text
