"""Embeddings with the real libraries on tiny models: the same numbers in any batch, up to the longest input, beside
streams.

The reference is the vector of the same input alone. tests/e2e compares a real model with published numbers. Needs the
native libraries; runs in the test process, without HTTP.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Sequence

import pytest

from server.engine.seam.task import Embed, Embedded
from server.errors import ApiError
from tests.native.engines import STEM, Engine
from tests.support import PATIENCE
from tests.tiny_models import WORDS

POOLING = {"none": 0, "mean": 1, "cls": 2, "last": 3}


def ask(one: Engine, *inputs: Sequence[int]) -> Embedded:
    with one.client.submit(Embed(one.client.make_id(), tuple(map(tuple, inputs))), stream=False) as results:
        return next(iter(results))


def vectors(one: Engine, *inputs: Sequence[int]) -> list[list[float]]:
    answer = ask(one, *inputs)
    numbers = array("f", answer.vectors).tolist()
    assert len(numbers) == answer.width * sum(answer.n_rows)
    return [numbers[i : i + answer.width] for i in range(0, len(numbers), answer.width)]


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """1 - cosine."""
    product, norms = sum(x * y for x, y in zip(a, b)), sum(x * x for x in a) * sum(y * y for y in b)
    return 1.0 - product / math.sqrt(norms)


def texts(one: Engine, n: int) -> list[tuple[int, ...]]:
    """`n` inputs of all lengths up to 60 words."""
    return [one.tokens(" ".join(WORDS[(i * 7 + k) % len(WORDS)] for k in range(1 + i * 13 % 60))) for i in range(n)]


@pytest.mark.parametrize("model", ["bert_embed_model", "tiny_spm_model", "tiny_bpe_model"])
def test_an_input_has_the_same_vector_in_any_company(engine, request, model):
    one = engine(request.getfixturevalue(model))
    inputs = texts(one, 40)
    alone = [vectors(one, tokens)[0] for tokens in inputs]
    together = vectors(one, *inputs)
    assert max(map(distance, alone, together)) < 1e-5
    assert min(map(distance, together, together[1:])) > 1e-5, "and another one than its neighbour"


@pytest.mark.covers("B15")
def test_inputs_up_to_the_model_s_context_work_whatever_the_batch_size(engine, bert_embed_model):
    one = engine(bert_embed_model, n_ctx=None, n_batch=64, n_ubatch=32)
    words = one.tokens(" ".join(WORDS[i % len(WORDS)] for i in range(600)))
    assert len(vectors(one, words[:512])[0]) == 32
    with pytest.raises(ApiError, match="513 tokens.* at most 512"):
        ask(one, words[:513])
    with pytest.raises(ApiError, match="at most 512"):
        ask(engine(bert_embed_model, n_ctx=4096), words[:513])
    with pytest.raises(ApiError, match="at most 100"):
        ask(engine(bert_embed_model, n_ctx=100), words[:101])


def test_a_long_input_of_a_generative_model_is_the_same_in_parts(engine, tiny_spm_model):
    whole, parts = engine(tiny_spm_model, n_ctx=1024), engine(tiny_spm_model, n_ctx=1024, n_ubatch=32)
    inputs = [whole.tokens(STEM * 20), *texts(whole, 5), whole.tokens(STEM * 12)]
    assert len(inputs[0]) > 400
    assert max(map(distance, vectors(whole, *inputs), vectors(parts, *inputs))) < 1e-4
    with pytest.raises(ApiError, match="at most 1024"):
        ask(parts, list(inputs[0]) * 3)


@pytest.mark.parametrize("pooling", POOLING)
def test_pooling_makes_of_the_tokens_what_its_name_says(engine, bert_embed_model, tiny_spm_model, pooling):
    for model in (bert_embed_model, tiny_spm_model):
        by_token = engine(model, context_params={"pooling_type": POOLING["none"]})
        tokens = texts(by_token, 9)[8]
        rows = vectors(by_token, tokens)
        assert len(rows) == len(tokens)
        expected = {
            "none": rows,
            "cls": rows[:1],
            "last": rows[-1:],
            "mean": [[sum(column) / len(rows) for column in zip(*rows)]],
        }[pooling]
        one = engine(model, context_params={"pooling_type": POOLING[pooling]})
        assert one.client.info.pooling == pooling == ask(one, tokens).pooling
        assert max(map(distance, vectors(one, tokens), expected)) < 1e-5


def test_a_generative_model_that_names_no_pooling_gives_the_last_token_s(engine, tiny_spm_model):
    one = engine(tiny_spm_model)
    assert one.client.info.is_generative and one.client.info.pooling == "last"
    assert ask(one, one.tokens(STEM)).n_rows == (1,)


def test_pooling_over_a_whole_text_of_a_generative_model_needs_a_large_enough_ubatch(engine, tiny_spm_model):
    one = engine(tiny_spm_model, n_ubatch=64, context_params={"pooling_type": POOLING["mean"]})
    with pytest.raises(ApiError, match="at most 64 .*--ubatch-size"):
        ask(one, one.tokens(STEM * 4))


@pytest.mark.covers("C28")
@pytest.mark.parametrize("embeddings", [True, False], ids=["at start", "at the first request"])
def test_text_is_the_same_while_embeddings_are_computed(engine, tiny_spm_model, embeddings):
    one = engine(tiny_spm_model, n_slots=2, embeddings=embeddings)
    assert (one.backend._embeddings is not None) is embeddings
    alone = one.say(STEM, 60, cache_prompt=False).text
    inputs = texts(one, 60)
    found: list[list[list[float]]] = []
    thread = threading.Thread(target=lambda: found.append(vectors(one, *inputs)), daemon=True)
    thread.start()
    tasks = [one.task(STEM, 60, cache_prompt=False) for _ in range(4)]
    assert {said.text for said in one.say_all(tasks)} == {alone}
    thread.join(PATIENCE)
    assert max(map(distance, found[0], vectors(one, *inputs))) < 1e-5


def test_a_reranker_gives_one_score_for_each_input(engine, bert_rerank_model):
    one = engine(bert_rerank_model)
    assert one.client.info.pooling == "rank" and not one.client.info.is_generative
    inputs = texts(one, 12)
    scores = vectors(one, *inputs)
    assert [len(row) for row in scores] == [1] * 12 and len({row[0] for row in scores}) == 12
    assert [vectors(one, tokens)[0][0] for tokens in inputs] == [pytest.approx(row[0], abs=1e-4) for row in scores]


def test_a_model_with_named_classes_gives_a_score_for_each(engine, bert_classes_model):
    one = engine(bert_classes_model)
    assert one.client.info.classes == ("yes", "no", "maybe")
    scores = vectors(one, *texts(one, 5))
    assert [len(row) for row in scores] == [3] * 5 and len({score for row in scores for score in row}) == 15


def test_closing_while_embeddings_are_computed_ends_in_time(engine, bert_embed_model):
    one = engine(bert_embed_model)
    inputs = texts(one, 60) * 30
    errors: list[ApiError] = []

    def run() -> None:
        try:
            ask(one, *inputs)
        except ApiError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while not one.client._results:
        pass
    one.client.close()
    thread.join(PATIENCE)
    assert not thread.is_alive() and [error.status for error in errors] in ([], [503])
