"""A hybrid model that goes back after wrong drafts: the same tokens as without drafts, and as in a reference."""

from __future__ import annotations

import random

import pytest

from server.engine.cache.rollback import MAX_BACK
from server.engine.seam.config import SpecConfig
from server.engine.seam.task import SamplingParams
from server.model_files.shape_reader import read_shape
from tests.native.engines import GREEDY, PROMPTS, in_both_layouts

EAGER = SpecConfig(lookup=True, answers=True, ngram=1, min_gain=0.0)
SAMPLED = SamplingParams(seed=7, temperature=1.2, top_k=20)


@pytest.fixture(params=["tiny_lfm2_model", "tiny_qwen35_model"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def config(model):
    return {"n_slots": 3, "n_ctx": 3072, "checkpoint_step": 64, "shape": read_shape(model)}


@pytest.mark.covers("G02")
@in_both_layouts
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_tokens_are_those_of_plain_decoding_alone_and_in_company(engine, model, config, sampling):
    one, other = engine(model, spec=EAGER, **config), engine(model, **config)
    assert one.backend.n_rollback == MAX_BACK and other.backend.n_rollback == 0
    expected = [other.say(prompt, 40, sampling, cache_prompt=False).tokens for prompt in PROMPTS]
    said = [one.say(prompt, 40, sampling, cache_prompt=False) for prompt in PROMPTS]
    assert [answer.tokens for answer in said] == expected
    timings = [answer.final.timings for answer in said]
    assert sum(one.draft_n for one in timings) > sum(one.draft_n_accepted for one in timings) > 0, "some were wrong"
    for _ in range(2):
        said = one.say_all([one.task(prompt, 40, sampling) for prompt in PROMPTS])
        assert [answer.tokens for answer in said] == expected


def test_the_tokens_are_the_reference_s(engine, model, config, reference):
    one, other = engine(model, spec=EAGER, **config), reference(model)
    for prompt in PROMPTS[:3]:
        assert one.say(prompt, 24).tokens[:24] == other.greedy(one.tokens(prompt), 24)


@pytest.mark.covers("G02")
def test_prompts_that_leave_the_text_anywhere_near_its_end_are_answered_as_if_they_were_new(engine, model, config):
    """The states behind the latest batch are others' or older ones; only copies lead back there."""
    one = engine(model, spec=EAGER, **{**config, "n_slots": 1})
    rng = random.Random(2)
    text = list(one.tokens(PROMPTS[0] * 3))
    for _ in range(40):
        said = one.say(text, rng.randrange(1, 30))
        whole = [*text, *said.tokens]
        text = whole[: len(whole) - rng.randrange(0, 14)] + rng.choices(whole, k=rng.randrange(1, 5))
        text = text[-900:]
        again = one.say(text, 12)
        assert again.tokens == one.say(text, 12, cache_prompt=False, draft_n_max=0).tokens


def test_other_recurrent_models_get_no_guesses(engine, tiny_jamba_model):
    one = engine(tiny_jamba_model, spec=EAGER, shape=read_shape(tiny_jamba_model))
    assert one.backend.n_rollback == 0 and one.say(PROMPTS[0], 20).final.timings.draft_n == -1
