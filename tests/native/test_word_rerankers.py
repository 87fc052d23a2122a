"""Rerankers that answer in words: the score is the softmax over the logits of "yes" and "no" after the question."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest

from server.engine.seam.task import Embed, SamplingParams
from server.errors import ApiError
from tests.native.engines import Engine
from tests.tiny_gpt2 import tiny_gpt2
from tests.tiny_models import WORDS

TEMPLATE = "is {document} about {query}?"
RANK = 4


@pytest.fixture(scope="module")
def ranker(models_folder: Path) -> Path:
    return tiny_gpt2(models_folder / "word_ranker.gguf", n_positions=512, words=("yes", "no"), rerank_template=TEMPLATE)


def ask(one: Engine, *inputs: Sequence[int]) -> list[list[float]]:
    with one.client.submit(Embed(one.client.make_id(), tuple(map(tuple, inputs))), stream=False) as results:
        answer = next(iter(results))
    assert (answer.pooling, answer.width) == ("rank", 2)
    numbers = array("f", answer.vectors).tolist()
    return [numbers[i : i + 2] for i in range(0, len(numbers), 2)]


def texts(one: Engine, n: int) -> list[tuple[int, ...]]:
    """`n` inputs of all lengths up to 60 words."""
    return [one.tokens(" ".join(WORDS[(i * 7 + k) % len(WORDS)] for k in range(1 + i * 13 % 60))) for i in range(n)]


@pytest.mark.parametrize(
    "config", [{}, {"n_ubatch": 16}, {"n_slots": 3, "n_ctx": 2048}], ids=["whole", "in parts", "slots"]
)
def test_scores_are_those_of_the_model_s_own_logits(engine, reference, ranker: Path, config: dict):
    one, plain = engine(ranker, **{"n_ctx": 512, **config}), reference(ranker)
    assert one.client.info.pooling == "rank" and one.client.info.classes == ("yes", "no")
    yes, no = (one.client.vocab.tokenize(word, False, False) for word in ("yes", "no"))
    inputs = texts(one, 20)
    found = ask(one, *inputs)
    for tokens, scores in zip(inputs, found):
        logits = plain.logits(tokens)
        chance = 1 / (1 + math.exp(logits[no[0]] - logits[yes[0]]))
        assert scores == [pytest.approx(chance, abs=1e-3), pytest.approx(1 - chance, abs=1e-3)]
    chances = sorted(scores[0] for scores in found)
    assert chances[-1] - chances[0] > 0.1 and len(set(chances)) == 20


def test_the_same_chances_as_those_of_the_next_token(engine, ranker: Path):
    one = engine(ranker, n_ctx=512)
    tokens = one.tokens("is the dog about the house?")
    said = one.say(tokens, 1, SamplingParams(temperature=0.0, n_probs=one.client.info.n_vocab))
    chances = {token: math.exp(logprob) for token, logprob in said.probs[0].top_logprobs}
    yes, no = (chances[one.client.vocab.tokenize(word, False, False)[0]] for word in ("yes", "no"))
    assert ask(one, tokens)[0][0] == pytest.approx(yes / (yes + no), abs=1e-4)


def test_a_model_asked_for_by_its_pooling_answers_in_words_too(engine, ranker: Path, tmp_path: Path):
    by_option = engine(ranker, n_ctx=512, context_params={"pooling_type": RANK}, embeddings=True)
    by_metadata = engine(
        tiny_gpt2(tmp_path / "rank.gguf", n_positions=512, words=("yes", "no"), pooling=RANK, rerank_template=TEMPLATE),
        n_ctx=512,
    )
    inputs = texts(by_option, 3)
    assert ask(by_option, *inputs) == ask(by_metadata, *inputs)
    assert by_option.say("the dog", 5).tokens == by_metadata.say("the dog", 5).tokens, "and says what it always says"


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"words": ("yes", "no")}, "its metadata has no reranking template"),
        ({"rerank_template": TEMPLATE}, "'yes' and 'no' aren't single tokens"),
        ({"rerank_template": TEMPLATE, "words": ("yes",)}, "'yes' and 'no' aren't single tokens"),
    ],
    ids=["no template", "no words", "one word"],
)
def test_what_cant_be_asked_is_refused_when_it_is_asked(engine, tmp_path: Path, fields: dict, words: str):
    one = engine(tiny_gpt2(tmp_path / "rank.gguf", n_positions=512, pooling=RANK, **fields), n_ctx=512)
    with pytest.raises(ApiError, match=words) as caught:
        ask(one, *texts(one, 2))
    assert caught.value.status == 400
    assert one.say("the dog", 3).tokens
