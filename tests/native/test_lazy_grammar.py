"""Grammars that begin inside a text, with the real library: triggers within and across tokens, text after a trigger in
the same token, special tokens, reasoning, and a task that another engine continues.

`recite` is a model that writes given tokens, so a test chooses how the text is split. If the grammar requires another
token, all logits are equal, and the lowest allowed token comes.
"""

from __future__ import annotations

import os
import random
import re
from dataclasses import replace

import pytest

from server.engine.llama.draws import Draws
from server.engine.llama.sampler import LlamaSampler
from server.engine.seam.config import SpecConfig
from server.engine.seam.task import START, STOP_EOS, TOKEN, WORD, Piece, SamplingParams, Thinking, Trigger
from server.errors import ApiError
from tests.native.engines import GREEDY, Engine
from tests.tiny_models import recite

OPENED = Thinking("<think>", "</think>", True)
IM_START = 1
SAMPLED = SamplingParams(seed=7, temperature=1.3, ignore_eos=True)
SAMPLINGS = {
    "greedy": GREEDY,
    "dist": SAMPLED,
    "probabilities": replace(SAMPLED, n_probs=3),
    "greedy probabilities": replace(GREEDY, n_probs=3),
    "penalties": replace(SAMPLED, repeat_penalty=1.3, repeat_last_n=20, presence_penalty=0.2, penalize_nl=False),
    "dry": replace(SAMPLED, dry_multiplier=0.8),
    "tail-free": replace(SAMPLED, tfs_z=0.9),
    "xtc": replace(SAMPLED, xtc_probability=0.5, xtc_threshold=0.05),
    "mirostat": replace(SAMPLED, mirostat=2),
    "adaptive-p": replace(
        SAMPLED, adaptive_target=0.3, samplers=("penalties", "top_k", "min_p", "temperature", "adaptive_p")
    ),
}


def lazy(grammar: str, *triggers: str | Trigger, base: SamplingParams = GREEDY) -> SamplingParams:
    rows = tuple(Trigger(WORD, one) if isinstance(one, str) else one for one in triggers)
    return replace(base, grammar=grammar, grammar_lazy=True, grammar_triggers=rows)


@pytest.fixture
def say(libs_folder, tmp_path, engine):
    """`say(words, ...)`: what a model that recites these tokens says under the fields of a task."""

    def say(words: tuple[str, ...], sampling: SamplingParams, **fields: object):
        model = recite(tmp_path / "words.gguf", words)
        return engine(model, n_ctx=128).say("go", 60, sampling, **fields)

    return say


CASES = [
    ("a trigger in the middle of a token", (" text", " x<call>", "bad"), '"<call>" "good"', " text x<call>good"),
    ("a trigger across tokens", (" text", "<ca", "ll", ">", "bad"), '"<call>" "good"', " text<call>good"),
    ("what is behind it fits", (" a", " <ca", "ll", ">b", "ed"), '"<call>" "b" "ed"', " a <call>bed"),
    ("what is behind it does not", (" a", " <ca", "ll", ">b", "ed"), '"<call>" "good"', " a <call>good"),
    ("nor in one token with it", (" a", " b<call>x", "ed"), '"<call>" "good"', " a b<call>good"),
    ("a call that ends goes on with the end", (" a", "<call>", "b", "c"), '"<call>" "b"', " a<call>b"),
    ("look-alikes", (" <cal", "l-", "<<cal", "l >", "<call"), '"<call>" "good"', " <call-<<call ><call"),
    ("letters of all widths", ("\u00e9\u20ac", "\U0001f600<call>", "\u00e9"), '"<call>" "\u00e9"', "é€😀<call>é"),
    ("no call", (" just", " text"), '"<call>"', " just text"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_from_its_trigger_on_the_grammar_holds(say, case):
    _, words, grammar, text = case
    said = say(words, lazy(f"root ::= {grammar}", "<call>"))
    assert (said.text, said.final.stop) == (text, STOP_EOS)
    assert said.text == say(words, lazy(f"root ::= {grammar}", "<call>", base=replace(GREEDY, n_probs=2))).text


def test_half_a_character_before_a_trigger_in_one_token_does_no_harm(say, engine, tmp_path):
    """The token of its last byte and the trigger doesn't exist in any model here; the one before it is cut."""
    text = " \U0001f600<call>"
    said = say((" ", "\U0001f600", "<call>", "x"), lazy('root ::= "<call>" "good"', "\U0001f600<call>"[1:]))
    assert said.text == text + "good"


def test_a_special_token_is_a_trigger_whether_it_is_text_or_not(say):
    words = (" a", "<|im_start|>", "bad")
    grammar = 'root ::= "<|im_start|>" "good"'
    assert say(words, lazy(grammar, Trigger(TOKEN, token=IM_START))).text == " agood"
    shown = say(words, lazy(grammar, "<|im_start|>"), preserved_tokens=(IM_START,))
    assert shown.text == " a<|im_start|>good"
    assert say(words, lazy(grammar, "<|im_start|>")).text == " abad", "it is no visible text"


def test_a_start_is_a_trigger_behind_white_space_only(say):
    sampling = lazy('root ::= "{" "good"', Trigger(START, "{"))
    assert say(("\n", " {", "bad"), sampling).text == "\n {good"
    assert say(("a", " {", "bad"), sampling).text == "a {bad"


def test_stop_words_count_before_a_call_and_not_in_it(say):
    words, sampling = (" a", "!", "<call>", "b!", "c"), lazy('root ::= "<call>" "b!" "c"', "<call>")
    assert say(words, sampling, stop=("!c", "b")).text == " a!<call>b!c"
    assert say(words, sampling, stop=("!",)).text == " a"


def test_a_grammar_that_does_not_begin_with_its_trigger_is_refused(say):
    with pytest.raises(ApiError, match="grammar doesn't allow the text"):
        say((" a", "<ca", "ll>"), lazy('root ::= "x"', "<call>"))
    with pytest.raises(ApiError, match="parse"):
        say((" b",), lazy("root ::= nothing", "<call>"))


# ---- thinking --------------------------------------------------------------------------------------------------------


THINKING_CASES = [
    ("behind its end", (" so", "</think>", "bad"), OPENED, '"yes"', " so</think>yes"),
    ("an end across tokens", (" so", "</th", "ink", ">", "bad"), OPENED, '"yes"', " so</think>yes"),
    ("what is behind it fits", (" so", "</think>\n\n", "bad"), OPENED, '"\\n\\n" "yes"', " so</think>\n\nyes"),
    ("what is behind it does not", (" so", "</thi", "nk>\n\n", "bad"), OPENED, '"yes"', " so</think>yes"),
    ("the end of the text in it", (" so",), OPENED, '"yes"', " so</think>yes"),
    ("begun by the model", ("<think>", " so", "</think>", "bad"), replace(OPENED, is_opened=False), '"yes"',
     "<think> so</think>yes"),
    ("begun by the model across tokens", ("<th", "ink>s", "o</", "think>", "bad"), replace(OPENED, is_opened=False),
     '"yes"', "<think>so</think>yes"),
    ("not begun", ("yes", "bad"), replace(OPENED, is_opened=False), '"yes" "!"', "yes!"),
]  # fmt: skip


@pytest.mark.parametrize("case", THINKING_CASES, ids=lambda case: case[0])
def test_a_firm_grammar_holds_behind_the_thinking(say, case):
    _, words, thinking, grammar, text = case
    said = say(words, replace(GREEDY, grammar=f"root ::= {grammar}"), reasoning=thinking)
    assert (said.text, said.final.stop) == (text, STOP_EOS)


def test_a_trigger_in_the_thinking_is_none(say):
    words, sampling = (" <call>", "bad", "</think>", "\n", "<call> ", "x"), lazy('root ::= "<call>" " good"', "<call>")
    said = say(words, sampling, reasoning=OPENED)
    assert said.text == " <call>bad</think>\n<call> good" and said.final.n_reasoning == 3


def test_the_thinking_is_ended_by_its_budget_and_from_outside(libs_folder, tiny_spm_model):
    one = Engine(libs_folder, tiny_spm_model, n_ctx=512)
    try:
        end = one.tokens("Enough.</think>")[1:]
        free = one.say("the cat", 40)
        thinking = replace(OPENED, budget=5, end_tokens=end)
        said = one.say("the cat", 40, replace(GREEDY, grammar='root ::= "yes" [a-z ]+'), reasoning=thinking)
        assert said.tokens[: 5 + len(end)] == [*free.tokens[:5], *end] and said.final.n_reasoning == 5 + len(end)
        assert said.text.split("</think>")[1].startswith("yes")
        task = one.task("the cat", 400, GREEDY, reasoning=replace(thinking, budget=-1))
        with one.client.submit(task, stream=True) as results:
            events = iter(results)
            pieces = [next(events)]
            at = one.client.run_command("end_thinking", id_task=task.id)["at"]
            pieces += [event for event in events if isinstance(event, Piece)]
        tokens = [token for piece in pieces for token in piece.tokens]
        assert tokens[at : at + len(end)] == list(end)
    finally:
        one.close()


# ---- with everything else --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(libs_folder, tiny_spm_model):
    one = Engine(
        libs_folder,
        tiny_spm_model,
        n_slots=8,
        n_ctx=8 * 256,
        context_params={"type_k": 0, "type_v": 0, "flash_attn_type": 0},
    )
    one.backend._draws = Draws(1)
    yield one
    one.close()


NEVER = 'root ::= "@@@"'
PROMPT = "once upon a time the dog and the moon"
WORDS = '(" " [a-zé😀ïöß]+ | [,.!?])+'


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_lazy_grammar_that_never_begins_changes_nothing(llama, name):
    plain = llama.say(PROMPT, 40, SAMPLINGS[name], cache_prompt=False)
    said = llama.say(PROMPT, 40, lazy(NEVER, "@@@", Trigger(START, "@"), base=SAMPLINGS[name]), cache_prompt=False)
    assert (said.tokens, said.text, said.probs) == (plain.tokens, plain.text, plain.probs)
    thinking = replace(OPENED, is_opened=True)
    said = llama.say(PROMPT, 40, replace(SAMPLINGS[name], grammar=NEVER), cache_prompt=False, reasoning=thinking)
    assert (said.tokens, said.probs) == (plain.tokens, plain.probs)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_task_is_taken_up_before_at_and_behind_its_trigger(llama, name):
    """The trigger is in the middle of a token, with something behind it that the grammar refuses or allows."""
    base = SAMPLINGS[name]
    free = llama.say(PROMPT, 40, base, cache_prompt=False)
    word = next(piece for piece in free.pieces[8:] if len(piece) > 4 and piece[1:].isascii())
    trigger = word[1:3]
    for grammar in (f'root ::= "{trigger}" [a-z]* {WORDS}', f'root ::= "{trigger}" {WORDS}'):
        sampling = lazy(grammar, trigger, base=base)
        task = llama.task(PROMPT, 40, sampling, cache_prompt=False)
        whole = llama.ask(task)
        begins = whole.text.index(trigger)
        near = sum(len("".join(whole.pieces[:n])) <= begins for n in range(1, len(whole.pieces)))
        assert whole.text[:begins] == free.text[:begins]
        for n_known in {1, near - 1, near, near + 1, near + 2, 30}:
            if 0 < n_known < len(whole.tokens):
                resumed = replace(task, id=llama.client.make_id(), resume=tuple(whole.tokens[:n_known]), resume_ms=1.0)
                assert llama.ask(resumed).tokens == whole.tokens[n_known:], (grammar, n_known)


def test_lazy_grammars_are_drawn_ahead_together_with_other_texts_until_they_begin(llama, monkeypatch):
    prompts = [f"{PROMPT} {word}" for word in ("cat", "girl", "boy", "fox", "tree", "river", "house", "night")]
    samplings = [lazy(f'root ::= "the" {WORDS}', "the", base=replace(SAMPLED, seed=i)) if i % 2 else
                 replace(SAMPLED, seed=i) for i in range(8)]  # fmt: skip
    tasks = [llama.task(prompt, 40, sampling, cache_prompt=False) for prompt, sampling in zip(prompts, samplings)]
    alone = [llama.ask(replace(task, id=llama.client.make_id())).tokens for task in tasks]
    ahead = []
    draw_ahead = LlamaSampler.draw_ahead
    monkeypatch.setattr(LlamaSampler, "draw_ahead", lambda self, row: (ahead.append(self), draw_ahead(self, row)))
    assert [said.tokens for said in llama.say_all(tasks)] == alone
    assert any(sampler._text for sampler in ahead)


def test_guesses_change_nothing_before_and_in_a_call(libs_folder, tiny_spm_model):
    one = Engine(libs_folder, tiny_spm_model, n_ctx=512)
    other = Engine(libs_folder, tiny_spm_model, n_ctx=512, spec=SpecConfig(lookup=True))
    try:
        for base in (GREEDY, replace(SAMPLED, temperature=0.3)):
            sampling = lazy(f'root ::= "the" {WORDS}', "the", base=base)
            assert other.say(PROMPT * 3, 120, sampling).tokens == one.say(PROMPT * 3, 120, sampling).tokens
    finally:
        one.close()
        other.close()


LONG = 20 if os.environ.get("LLAMA_SRV_TEST_LONG") == "1" else 1
ENDED_BY = ("o", "e", " m", "th", "oo", "the", "on", "é", "cat", ".", " w", "ï", "h", "\U0001f600")


@pytest.mark.parametrize("seed", range(4 * LONG))
def test_whatever_triggers_wherever_from_there_on_the_text_fits(llama, seed):
    """Random triggers of one to a few letters, thinking that ends anywhere, budgets, heat, in company."""
    rng = random.Random(seed)
    tasks, checks = [], []
    for _ in range(8):
        trigger, close = rng.choice(ENDED_BY), rng.choice(ENDED_BY)
        base = replace(SAMPLED, seed=rng.randrange(2**32), temperature=rng.choice([0.0, 0.7, 1.5, 2.0]),
                       n_probs=rng.choice([0, 0, 2]), ignore_eos=False)  # fmt: skip
        budget = rng.choice([-1, -1, 0, 3])
        end = llama.client.vocab.tokenize(f"!{close}", False, False) if budget >= 0 else ()
        thinking = rng.choice([None, Thinking(".", close, True, budget, tuple(end)), Thinking("was", close)])
        is_lazy = rng.random() < 0.7
        rows = (Trigger(WORD, trigger), Trigger(START, rng.choice(ENDED_BY).strip() or "a")) if is_lazy else ()
        grammar = " | ".join(f'"{row.text}" rest' for row in rows) if is_lazy else "rest"
        sampling = replace(base, grammar=f'root ::= {grammar}\nrest ::= [a-m ]* "?"', grammar_lazy=is_lazy,
                           grammar_triggers=rows)  # fmt: skip
        prompt = f"{PROMPT} {rng.randrange(50)}"
        tasks.append(llama.task(prompt, 40, sampling, cache_prompt=False, reasoning=thinking))
        checks.append((thinking, rows))
    for said, task, (thinking, rows) in zip(llama.say_all(tasks), tasks, checks):
        is_cut = said.final.stop != STOP_EOS
        visible = seen_by_readers(said.text, thinking)
        constrained = visible if not rows or visible is None else bound_part(visible, rows)
        if visible is None or constrained is None:
            assert rows or is_cut, (task, said.text)  # a grammar that isn't lazy can't be left out
            continue
        starts = "|".join(re.escape(row.text) for row in rows)
        assert re.fullmatch(f"(?:{starts})[a-m ]*" + (r"\??" if is_cut else r"\?"), constrained), (task, said.text)


def seen_by_readers(text: str, thinking: Thinking | None) -> str | None:
    """What is behind the thinking; None if it hasn't ended."""
    if thinking is None or not thinking.is_opened and not text.lstrip().startswith(thinking.open):
        return text
    rest = text if thinking.is_opened else text.lstrip()[len(thinking.open) :]
    close = thinking.close.strip()
    return rest.partition(close)[2] if close in rest else None


def bound_part(text: str, rows: tuple[Trigger, ...]) -> str | None:
    """From the trigger on that is complete first; None if none is."""
    for end in range(1, len(text) + 1):
        for begin in range(end):
            word, start = rows
            if text[begin:end] == word.text or text[begin:end] == start.text and not text[:begin].strip():
                return text[begin:]
    return None
