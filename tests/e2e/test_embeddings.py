"""Embeddings through the whole program with its engine process: beside streams, and when the engine dies meanwhile.

Tiny models that the tests write. `test_minilm.py` compares the numbers of a real model.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading

import pytest

from tests.e2e.test_kills import engine_pid, metric
from tests.support import PATIENCE, ServerProcess, run_command, wait_until
from tests.tiny_gpt2 import tiny_gpt2
from tests.tiny_models import WORDS

TEXTS = [" ".join(WORDS[(7 * i + k) % len(WORDS)] for k in range(1 + i % 50)) for i in range(600)]


def embeddings(server: ServerProcess) -> list[list[float]]:
    answer = server.post("/v1/embeddings", {"input": TEXTS})
    assert answer.status_code == 200, answer.text
    return [item["embedding"] for item in answer.json()["data"]]


def assert_alike(found: list[list[float]], expected: list[list[float]]) -> None:
    assert len(found) == len(expected) == len(TEXTS)
    assert min(sum(map(float.__mul__, a, b)) for a, b in zip(found, expected)) > 0.9999


@pytest.mark.covers("C28")
def test_text_and_embeddings_at_the_same_time(serve, tiny_spm_model):
    server = serve("-m", tiny_spm_model, "-np", 2, "-c", 2048, "-t", 1, "--embeddings")
    fields = {"n_predict": 200, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    text, expected = server.complete("once upon a time", **fields)["content"], embeddings(server)
    found: list[list[list[float]]] = []
    thread = threading.Thread(target=lambda: found.append(embeddings(server)), daemon=True)
    thread.start()
    for _ in range(3):
        assert server.complete("once upon a time", **fields)["content"] == text
    thread.join(PATIENCE)
    assert_alike(found[0], expected)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: finds the engine's process in /proc")
@pytest.mark.parametrize("name", ["bert_embed_model", "tiny_spm_model"])
def test_an_engine_that_is_killed_costs_no_request_its_embeddings(serve, request, name):
    server = serve("-m", request.getfixturevalue(name), "-t", 1, "--metrics")
    expected = embeddings(server)
    n_before = metric(server, "prompt_tokens_total")
    found: list[list[list[float]]] = []
    thread = threading.Thread(target=lambda: found.append(embeddings(server)), daemon=True)
    thread.start()
    wait_until(lambda: metric(server, "prompt_tokens_total") > n_before, "the request to be in work", every=0.002)
    os.kill(engine_pid(server), signal.SIGKILL)
    thread.join(PATIENCE)
    assert_alike(found[0], expected)
    wait_until(lambda: metric(server, "engine_restarts_total") == 1, "another engine")


def test_a_reranker_from_its_own_metadata(serve, bert_rerank_model):
    server = serve("-m", bert_rerank_model, "-t", 1)
    body = {"query": "the cat", "documents": ["the dog", "the cat is", "a"], "top_n": 2, "return_documents": True}
    results = server.post("/v1/rerank", body).json()["results"]
    assert len(results) == 2 and results[0]["relevance_score"] >= results[1]["relevance_score"]
    assert all(result["document"]["text"] == body["documents"][result["index"]] for result in results)
    alone = server.post("/rerank", {**body, "documents": [results[0]["document"]["text"]]}).json()["results"][0]
    assert alone["relevance_score"] == pytest.approx(results[0]["relevance_score"], abs=1e-4)


@pytest.mark.parametrize("argv", [["--reranking"], ["--pooling", "rank"]])
def test_a_model_that_cannot_rank_is_refused_at_start(tiny_spm_model, argv):
    done = run_command(["-m", tiny_spm_model, *argv])
    assert done.returncode == 2 and "no classification head" in done.stderr and done.stderr.count("\n") == 1


def test_classes_and_the_template_of_a_reranker_come_from_its_metadata(serve, bert_classes_model):
    server = serve("-m", bert_classes_model, "-t", 1)
    document, query = "a dog [SEP]", "the cat"
    answer = server.post("/v1/rerank", {"query": query, "documents": [document]}).json()
    (result,) = answer["results"]
    assert list(result["scores"]) == ["yes", "no", "maybe"] == server.get("/props").json()["embeddings"]["classes"]
    assert result["relevance_score"] == result["scores"]["yes"]

    def tokens(text: str, parse_special: bool = True) -> list[int]:
        body = {"content": text, "add_special": False, "parse_special": parse_special}
        return server.post("/tokenize", body).json()["tokens"]

    prompt = [
        *tokens("[CLS]"),
        *tokens("is a dog [SEP]", False),
        *tokens("[SEP]"),
        *tokens("the cat"),
        *tokens("[SEP]"),
    ]
    assert answer["usage"]["prompt_tokens"] == len(prompt), "what a document writes is no separator"
    scores = server.post("/embedding", {"content": prompt}).json()[0]["embedding"][0]
    assert scores == pytest.approx(list(result["scores"].values()), abs=1e-5)


@pytest.mark.parametrize("argv", [[], ["--reranking"]])
def test_a_model_without_a_head_is_asked_and_answers_in_words(serve, tmp_path, argv):
    model = tiny_gpt2(
        tmp_path / "ranker.gguf", n_positions=512, words=("yes", "no"), rerank_template="is {document} about {query}?"
    )
    server = serve("-m", model, "-t", 1, *argv)
    body = {"query": "the house", "documents": ["the dog", "a bird came home", "water"], "return_documents": True}
    results = server.post("/v1/rerank", body).json()["results"]
    assert [one["relevance_score"] for one in results] == sorted(
        (one["relevance_score"] for one in results), reverse=True
    )
    for one in results:
        prompt = f"is {one['document']['text']} about the house?"
        answer = server.post(
            "/completion", {"prompt": prompt, "n_predict": 1, "temperature": -1, "n_probs": 999}
        ).json()
        token = answer["completion_probabilities"][0]  # more are said if the first is half a character
        chances = {top["token"]: math.exp(top["logprob"]) for top in token["top_logprobs"]}
        assert one["relevance_score"] == pytest.approx(chances["yes"] / (chances["yes"] + chances["no"]), abs=1e-3)
        assert one["scores"]["no"] == pytest.approx(1 - one["relevance_score"], abs=1e-5)
