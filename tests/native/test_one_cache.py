"""One unified cache, all of which each slot may use, with the real library: long texts that together overflow it equal
those of each request alone.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.engine.seam.config import SpecConfig
from server.engine.seam.task import SamplingParams
from tests.native.engines import GREEDY, PROMPTS, STEM, Engine, Said
from tests.native.test_streams import F32, window_model

__all__ = ["window_model"]  # a fixture
pytestmark = pytest.mark.covers("T19")

SEEDED = SamplingParams(temperature=0.9, seed=7)
N_CTX = 512


def whole(engine, model, n_slots: int = 3, **config) -> Engine:
    return engine(model, **{"n_slots": n_slots, "n_ctx": N_CTX, "kv_unified": True, "context_params": F32, **config})


def assert_same_as_alone(one: Engine, n: int, sampling: SamplingParams = GREEDY, **fields) -> None:
    prompts = [prompt for prompt in PROMPTS if len(one.tokens(prompt)) > 2][:5]
    lengths = [min(n, N_CTX - len(one.tokens(prompt)) - i) for i, prompt in enumerate(prompts)]
    alone = [one.say(prompt, n, sampling, cache_prompt=False, **fields).tokens for prompt, n in zip(prompts, lengths)]
    assert one.backend.info.n_ctx_slot == N_CTX
    n_moved = count_states(one)
    tasks = [one.task(prompt, n, sampling, **fields) for prompt, n in zip(prompts, lengths)]
    assert [said.tokens for said in one.say_all(tasks)] == alone
    assert n_moved()


def count_states(one: Engine):
    """How often a state has been put back since now."""
    calls = []
    set_state = one.backend.set_state
    one.backend.set_state = lambda seq, state: calls.append(set_state(seq, state)) or calls[-1]
    return lambda: calls.count(True)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_long_texts_that_overflow_the_cache_together_are_those_of_each_alone(engine, tiny_model, sampling):
    assert_same_as_alone(whole(engine, tiny_model), 400, sampling)


def test_so_are_those_of_models_with_windows(engine, window_model):
    assert_same_as_alone(whole(engine, window_model), 300)


def test_so_are_those_of_models_with_states(engine, tiny_jamba_model):
    one = whole(engine, tiny_jamba_model)
    prompts = [prompt for prompt in PROMPTS if len(one.tokens(prompt)) > 2][:5]
    alone = [one.say(prompt, 300, replace(GREEDY, n_probs=2), cache_prompt=False) for prompt in prompts]
    n_moved = count_states(one)
    together = one.say_all([one.task(prompt, 300) for prompt in prompts])
    lengths = [clear_length(said) for said in alone]
    assert [said.tokens[:n] for said, n in zip(together, lengths)] == [
        said.tokens[:n] for said, n in zip(alone, lengths)
    ]
    assert n_moved() and max(lengths) > 200


def clear_length(said: Said) -> int:
    """Tokens before the first that leads by so little that a step's other rows can turn it (this model's weights are
    random, and its states add up what each step rounds)."""
    leads = [one.top_logprobs[0][1] - one.top_logprobs[1][1] for one in said.probs]
    return next((i for i, lead in enumerate(leads) if lead < 0.01), len(leads))


def test_so_are_texts_with_guesses(engine, tiny_spm_model):
    assert_same_as_alone(whole(engine, tiny_spm_model, spec=SpecConfig(lookup=True, ngram=2, n_max=8)), 400)


def test_so_are_texts_whose_context_is_shifted(engine, tiny_spm_model):
    one = whole(engine, tiny_spm_model, shift_context=True)
    alone = [one.say(prompt, 700, n_keep=8, cache_prompt=False).tokens for prompt in PROMPTS[:3]]
    tasks = [one.task(prompt, 700, n_keep=8) for prompt in PROMPTS[:3]]
    assert [said.tokens for said in one.say_all(tasks)] == alone


def test_answers_to_one_prompt_share_it_until_one_of_them_waits(engine, tiny_spm_model):
    one = whole(engine, tiny_spm_model)
    prompt = STEM * 12
    n = N_CTX - len(one.tokens(prompt)) - 1
    alone = one.say(prompt, n, cache_prompt=False).tokens
    assert [said.tokens for said in one.say_all([one.task(prompt, n) for _ in range(3)])] == [alone] * 3


def test_a_slot_has_the_whole_unless_it_is_told_otherwise(engine, tiny_spm_model):
    assert whole(engine, tiny_spm_model, n_ctx_slot=200).client.info.n_ctx_slot == 200
    opened = engine(tiny_spm_model, n_slots=3, n_ctx=None, kv_unified=True).client.info
    assert opened.n_ctx == 3 * opened.n_ctx_train and opened.n_ctx_slot == opened.n_ctx_train
    assert engine(tiny_spm_model, n_slots=2, n_ctx=512).client.info.n_ctx_slot == 256


@pytest.mark.parametrize("n_slots", [1, 2])
def test_shifting_beside_the_system_prompt_has_room(engine, tiny_spm_model, n_slots):
    one = whole(engine, tiny_spm_model, n_slots=n_slots, shift_context=True)
    one.client.run_command("system_prompt", tokens=one.tokens(STEM))
    prompt = one.tokens("the moon")[1:]
    alone = one.say(prompt, 700, cache_prompt=False)
    assert alone.final.truncated and alone.final.n_predicted == 700
    assert [said.tokens for said in one.say_all([one.task(prompt, 700) for _ in range(2)])] == [alone.tokens] * 2
