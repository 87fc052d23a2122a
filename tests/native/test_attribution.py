"""Removing a span from the cache and from the prompt gives the same scores for an answer, and affects nothing else.
Real libraries, tiny F32 models, both layouts of the cache.
"""

from __future__ import annotations

import pytest

from server.engine.seam.task import PromptProbs, SamplingParams, Task
from server.errors import ApiError
from tests.native.engines import GREEDY, STEM, Engine, in_both_layouts

F32 = {"context_params": {"type_k": 0, "type_v": 0, "flash_attn_type": 0}}


def judge(engine: Engine, prompt: tuple[int, ...], answer: tuple[int, ...], **fields: object) -> list[float]:
    task = Task(
        engine.client.make_id(), (*prompt, *answer), GREEDY, 0, prompt_probs=0, probs_from=len(prompt), **fields
    )
    with engine.client.submit(task, stream=False) as results:
        found = [one for message in results if type(message) is PromptProbs for one in message.probs]
    assert [one.token for one in found] == list(answer)
    return [one.logprob for one in found]


@in_both_layouts
def test_only_the_tokens_of_the_answer_are_judged_and_as_without_a_cache(engine, tiny_model):
    one = engine(tiny_model, n_slots=2, n_ctx=2048, **F32)
    prompt, answer = one.tokens(STEM), one.tokens(STEM + "the moon sang")[len(one.tokens(STEM)) :]
    whole = Task(one.client.make_id(), (*prompt, *answer), GREEDY, 0, cache_prompt=False, prompt_probs=0)
    with one.client.submit(whole, stream=False) as results:
        known = [p.logprob for m in results if type(m) is PromptProbs for p in m.probs][-len(answer) :]
    one.say((*prompt, *answer), 4)
    assert judge(one, prompt, answer) == pytest.approx(known, abs=1e-3)
    assert judge(one, prompt, answer) == pytest.approx(known, abs=1e-3)


@in_both_layouts
def test_what_is_cut_out_leaves_the_conversation_where_it_is(engine, tiny_model):
    one = engine(tiny_model, n_slots=2, n_ctx=2048, **F32)
    prompt = one.tokens("night and day the small fox slept. " * 6 + STEM)
    said = one.say(prompt, 8)
    for start in (1, 9, 30, len(prompt) - 6):
        cut = judge(one, prompt, tuple(said.tokens), cuts=((start, start + 5),), cut_at=len(prompt) - 1)
        assert len(cut) == len(said.tokens)
    again = one.say((*prompt, *said.tokens), 4)
    assert again.final.timings.cache_n >= len(prompt), "the conversation's cells were given up"
    assert one.say(prompt, 8).tokens == said.tokens


@in_both_layouts
def test_a_cut_at_the_end_is_what_the_shorter_prompt_says(engine, tiny_model):
    """Nothing stands behind it that could remember it."""
    one = engine(tiny_model, n_slots=2, n_ctx=2048, **F32)
    prompt = one.tokens(STEM + "the quiet fox slept under")
    answer = one.tokens(STEM + " the tree")[-2:]
    end = len(prompt) - 1
    shorter = (*prompt[: end - 4], *prompt[end:])
    assert judge(one, prompt, answer, cuts=((end - 4, end),), cut_at=end) == pytest.approx(
        judge(one, shorter, answer), abs=1e-2
    )


def test_a_model_with_a_state_refuses_a_cut_and_judges_all_the_same(engine, tiny_mamba_model):
    one = engine(tiny_mamba_model, n_slots=2, n_ctx=1024)
    prompt, answer = one.tokens("once upon a time the dog"), one.tokens("and the moon")[-2:]
    with pytest.raises(ApiError) as refused:
        judge(one, prompt, answer, cuts=((1, 3),), cut_at=4)
    assert refused.value.status == 501 and "exact" in refused.value.message
    assert len(judge(one, prompt, answer)) == 2


def test_streams_go_on_beside_it(engine, tiny_spm_model):
    one = engine(tiny_spm_model, n_slots=3, n_ctx=3072, **F32)
    alone = one.say(STEM, 60, SamplingParams(seed=3, ignore_eos=True)).tokens
    prompt = one.tokens("night and day the small fox slept. " * 8)
    stream = one.task(STEM, 60, SamplingParams(seed=3, ignore_eos=True))
    with one.client.submit(stream, stream=True) as results:
        for start in range(1, 40, 8):
            judge(one, prompt, prompt[1:9], cuts=((start, start + 6),), cut_at=len(prompt) - 1)
        tokens = [token for message in results for token in getattr(message, "tokens", ())]
    assert tokens == alone


@in_both_layouts
def test_where_all_behind_a_cut_is_computed_again_the_answer_is_judged_as_by_the_shorter_prompt(engine, tiny_model):
    one = engine(tiny_model, n_slots=2, n_ctx=2048, **F32)
    prompt = one.tokens("night and day the small fox slept. " * 4 + STEM)
    answer = one.tokens(STEM + " the tree")[-2:]
    one.say(prompt, 2)
    cut = judge(one, prompt, answer, cuts=((20, 24),), cut_at=24)
    assert cut == pytest.approx(judge(one, (*prompt[:20], *prompt[24:]), answer), abs=1e-2)
