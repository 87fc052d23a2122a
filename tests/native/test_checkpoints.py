"""A recurrent and a hybrid model through the whole engine: states are restored from copies, and the text equals the
reference's.
"""

from __future__ import annotations

import pytest

from tests.native.engines import STEM

TEXTS = [STEM * 4 + name for name in ("the moon", "the star", "the cat")]


@pytest.fixture(params=["tiny_mamba_model", "tiny_jamba_model"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def mamba(engine, model):
    return engine(model, n_ctx=2048, n_batch=64, checkpoint_step=64)


def test_the_text_is_the_reference_s(mamba, reference, model):
    other = reference(model)
    for text in TEXTS:
        assert mamba.say(text, 12).tokens[:12] == other.greedy(mamba.tokens(text), 12)


def test_the_same_question_again_reads_only_its_end(mamba):
    first, again = mamba.say(TEXTS[0], 20), mamba.say(TEXTS[0], 20)
    assert again.text == first.text and again.final.timings.prompt_n == 4


def test_another_end_goes_back_to_a_copy(mamba):
    alone = [mamba.say(text, 20, cache_prompt=False).text for text in TEXTS]
    assert len(set(alone)) == len(TEXTS)
    for _ in range(2):
        for text, expected in zip(TEXTS, alone, strict=True):
            said = mamba.say(text, 20)
            assert said.text == expected
    n = said.final.timings.cache_n
    assert n >= 64 and said.final.timings.prompt_n < 64


def test_several_at_once_say_what_they_say_alone(engine, model):
    one = engine(model, n_slots=3, n_ctx=6144, n_batch=64, checkpoint_step=64)
    alone = [one.say(text, 20, cache_prompt=False).text for text in TEXTS]
    for _ in range(2):
        assert [said.text for said in one.say_all([one.task(text, 20) for text in TEXTS])] == alone


def test_a_saved_slot_keeps_its_copies(engine, model, tmp_path):
    first = engine(model, n_ctx=2048, checkpoint_step=64)
    expected = first.say(TEXTS[1], 20, cache_prompt=False).text
    first.say(TEXTS[0], 20)
    first.client.run_command("save", id_slot=0, path=str(tmp_path / "slot"))
    second = engine(model, n_ctx=2048, checkpoint_step=64)
    second.client.run_command("restore", id_slot=0, path=str(tmp_path / "slot"))
    said = second.say(TEXTS[1], 20)
    assert said.text == expected and said.final.timings.cache_n >= 64
