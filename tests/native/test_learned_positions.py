"""Models with a learned table of positions: ggml aborts the process for a position beyond the table, so none is used.

Runs in the test process: an abort of ggml would end the tests.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from server.engine.seam.config import SpecConfig
from server.engine.seam.task import Embed, SamplingParams
from server.errors import ApiError
from tests.tiny_gpt2 import tiny_gpt2

N = 64
ENDLESS = SamplingParams(temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def gpt2_model(models_folder: Path) -> Path:
    return tiny_gpt2(models_folder / "tiny_gpt2.gguf", n_positions=N)


@pytest.mark.parametrize(
    "config",
    [
        {"n_ctx": None},
        {"n_ctx": 256},
        {"n_ctx": 1024, "n_slots": 2},
        {"n_ctx": 1024, "shift_context": True},
        {"n_ctx": 1024, "n_slots": 2, "exact": True},
    ],
    ids=["of the model", "larger", "two slots", "context shift", "exact"],
)
def test_a_text_ends_where_the_table_of_positions_ends(engine, reference, gpt2_model: Path, config: dict):
    one, n_slots = engine(gpt2_model, **config), config.get("n_slots", 1)
    assert one.client.info.n_ctx_slot == N
    tasks = [one.task("the dog" + " sang" * i, 300, sampling=ENDLESS) for i in range(n_slots)]
    plain = reference(gpt2_model)
    for task, said in zip(tasks, one.say_all(tasks)):
        assert said.final.stop == "limit" and len(said.tokens) == N - len(task.prompt) + 1
        assert said.tokens[:20] == plain.greedy(task.prompt, 20)


def test_who_asks_for_more_than_the_table_has_is_told_so(engine, gpt2_model: Path, caplog):
    with caplog.at_level(logging.WARNING):
        engine(gpt2_model, n_ctx=1024)
    assert "each slot's context has 64 tokens instead of 1024: the model has no more learned positions" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        engine(gpt2_model, n_ctx=256)  # to which llama.cpp rounds up anyway
    assert "learned positions" not in caplog.text


def test_a_prompt_beyond_the_table_is_refused(engine, gpt2_model: Path):
    one = engine(gpt2_model, n_ctx=512)
    with pytest.raises(ApiError, match=f"has {N} tokens, which exceeds the available context size of {N}") as caught:
        one.say([5] * N)
    assert caught.value.status == 400
    assert one.say([5] * (N - 1), 1).final.n_prompt == N - 1


def test_an_input_for_a_vector_may_be_as_long_as_the_table_and_no_longer(engine, gpt2_model: Path):
    one = engine(gpt2_model, n_ctx=512)

    def embed(n: int):
        with one.client.submit(Embed(one.client.make_id(), ((5,) * n,)), stream=False) as results:
            return next(iter(results))

    assert embed(N).n_rows == (1,)
    with pytest.raises(ApiError, match=f"at most {N}"):
        embed(N + 1)


def test_self_extend_is_refused_since_such_positions_cant_be_divided(engine, gpt2_model: Path):
    with pytest.raises(AssertionError, match="--grp-attn-n"):
        engine(gpt2_model, n_ctx=512, n_group=4, group_width=16)


def test_a_draft_model_with_too_few_positions_is_refused(engine, gpt2_model: Path, tmp_path: Path):
    large = tiny_gpt2(tmp_path / "large.gguf", n_positions=256)
    with pytest.raises(AssertionError, match="64 learned positions, a slot 256 tokens"):
        engine(large, n_ctx=256, spec=SpecConfig(model=str(gpt2_model)))
    assert engine(gpt2_model, n_ctx=64, spec=SpecConfig(model=str(large))).say("the dog", 70, ENDLESS).tokens


def test_models_without_a_table_keep_their_context(engine, tiny_bpe_model: Path):
    assert engine(tiny_bpe_model, n_ctx=4096).client.info.n_ctx_slot == 4096
