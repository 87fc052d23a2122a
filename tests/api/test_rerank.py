"""POST /rerank and its aliases over the fake engine: forms, order, templates, classes, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fake_embeddings import FakeEmbeddings, vector_of
from tests.fakes import BOS, EOS, FakeBackend

ALIASES = ["/rerank", "/reranking", "/v1/rerank", "/v1/reranking"]
DOCUMENTS = ["one", "two", "three", "four"]


def start(make_api, pooling: str = "rank", **fields: object):
    backend = FakeBackend()
    backend.embeddings = FakeEmbeddings(backend, pooling=pooling)
    backend.info = replace(backend.info, pooling=pooling, **fields)
    return make_api(backend).start()


def prompt(query: str, document: str) -> list[int]:
    return [BOS, *query.encode(), EOS, *document.encode(), EOS]


def scores(query: str) -> list[float]:
    return [vector_of(prompt(query, document))[0] for document in DOCUMENTS]


def best(query: str) -> list[int]:
    values = scores(query)
    return sorted(range(len(values)), key=lambda i: -values[i])


@pytest.mark.parametrize("path", ALIASES)
def test_documents_are_answered_best_first(make_api, path):
    answer = start(make_api).post(path, {"query": "q", "documents": DOCUMENTS, "model": "m"}).json()
    n_tokens = sum(len(prompt("q", document)) for document in DOCUMENTS)
    assert answer == {
        "model": "m",
        "object": "list",
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        "results": [{"index": i, "relevance_score": scores("q")[i]} for i in best("q")],
    }


def test_only_the_best_are_given_with_their_texts(make_api):
    body = {"query": "q", "documents": ["one", {"text": "two"}, "three", "four"], "top_n": 2, "return_documents": True}
    results = start(make_api).post("/rerank", body).json()["results"]
    assert results == [
        {"index": i, "relevance_score": scores("q")[i], "document": {"text": DOCUMENTS[i]}} for i in best("q")[:2]
    ]


def test_texts_are_answered_in_the_other_form(make_api):
    api = start(make_api)
    answer = api.post("/rerank", {"query": "q", "texts": DOCUMENTS, "return_text": True}).json()
    assert answer == [{"index": i, "score": scores("q")[i], "text": DOCUMENTS[i]} for i in best("q")]
    assert api.post("/rerank", {"query": "q", "texts": DOCUMENTS}).json()[0] == {
        "index": best("q")[0],
        "score": scores("q")[best("q")[0]],
    }


def test_more_to_return_than_there_is_is_all_there_is(make_api):
    assert (
        len(start(make_api).post("/rerank", {"query": "q", "documents": DOCUMENTS, "top_n": 99}).json()["results"]) == 4
    )


def test_a_template_of_the_model_makes_the_prompt_and_texts_stay_texts(make_api):
    meta = {"tokenizer.chat_template.rerank": "<s>judge: {query} | {document}</s>"}
    api = start(make_api, meta=meta)
    api.post("/rerank", {"query": "is {document} </s>", "documents": ["yes <s>"]})
    ((span,),) = api.backend.embeddings.batches
    assert list(span.tokens) == [BOS, *b"judge: is {document} </s> | yes <s>", EOS]


def test_classes_of_the_model_are_named(make_api):
    classes = ("good", "bad", "ugly", "none")
    api = start(make_api, classes=classes)
    (result,) = api.post("/rerank", {"query": "q", "documents": ["one"]}).json()["results"]
    values = vector_of(prompt("q", "one"))
    assert result == {"index": 0, "relevance_score": values[0], "scores": dict(zip(classes, values))}
    assert api.get("/props").json()["embeddings"]["classes"] == list(classes)
    assert api.get("/v1/models").json()["data"][0]["meta"]["classes"] == list(classes)


def test_scores_are_embeddings_too_and_stay_as_they_are(make_api):
    api = start(make_api)
    assert api.post("/embedding", {"content": "hello"}).json()["embedding"] == vector_of([BOS, *b"hello"])


@pytest.mark.parametrize("path", ALIASES)
def test_a_model_that_is_no_reranker_says_so(make_api, path):
    answer = start(make_api, "mean").post(path, {"query": "q", "documents": DOCUMENTS})
    assert answer.status == 501 and "--reranking" in answer.error["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"documents": ["x"]}, "query"),
        ({"query": "", "documents": ["x"]}, "query"),
        ({"query": 5, "documents": ["x"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": "x"}, "documents"),
        ({"query": "q", "documents": ["x", 5]}, "documents[1]"),
        ({"query": "q", "documents": [{"body": "x"}]}, "documents[0]"),
        ({"query": "q", "documents": ["x"], "top_n": 0}, "top_n"),
        ({"query": "q", "documents": ["x"], "top_n": "a"}, "top_n"),
        ({"query": "q", "documents": ["x"], "return_documents": 1}, "return_documents"),
        ({"query": "q", "documents": ["x", "y" * 80]}, "input 1 has 84 tokens"),
        ({"query": "q", "documents": ["x"] * 2049}, "2049"),
        ([], "object"),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(make_api, body, words):
    answer = start(make_api).post("/rerank", body)
    assert answer.status == 400 and words in answer.error["message"]
