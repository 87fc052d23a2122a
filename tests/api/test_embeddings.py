"""POST /embedding, /embeddings and /v1/embeddings over the fake engine: forms of input and output, numbers, refusals."""

from __future__ import annotations

import base64
import math
import socket
import struct
from dataclasses import replace

import pytest

from tests.api.conftest import Api
from tests.fake_embeddings import FakeEmbeddings, vector_of
from tests.fakes import BOS, FakeBackend, FakeVocab

HELLO = [BOS, *b"hello"]


def unit(tokens: list[int], n: int = 4) -> list[float]:
    """The fake model's vector, at length 1."""
    values = vector_of(tokens)[:n]
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values]


def close(values: list[float]) -> list[float]:
    return pytest.approx(values, rel=1e-6)


def with_pooling(make_api, pooling: str, *argv: str, **fields: object):
    backend = FakeBackend()
    backend.embeddings = FakeEmbeddings(backend, pooling=pooling)
    backend.info = replace(backend.info, pooling=pooling, **fields)
    return make_api(backend, argv).start()


# ---- shapes ------------------------------------------------------------------------------------------------------


@pytest.mark.covers("E05", "X7")
@pytest.mark.parametrize("field", ["content", "input"])
def test_one_string_gives_the_object_of_2024(api, field):
    answer = api.post("/embedding", {field: "hello"}).json()
    assert answer == {"embedding": close(unit(HELLO))}


@pytest.mark.covers("X7")
def test_a_list_gives_the_list_of_today(api):
    answer = api.post("/embedding", {"content": ["hello", "world"]}).json()
    assert answer == [
        {"index": 0, "embedding": [close(unit(HELLO))]},
        {"index": 1, "embedding": [close(unit([BOS, *b"world"]))]},
    ]
    assert api.post("/embedding", {"content": ["hello"]}).json() == answer[:1]
    assert api.post("/embedding", {"content": HELLO}).json() == answer[:1]


def test_the_plural_always_gives_the_list(api):
    assert api.post("/embeddings", {"content": "hello"}).json() == [{"index": 0, "embedding": [close(unit(HELLO))]}]


@pytest.mark.covers("E06", "Q38")
@pytest.mark.parametrize("format", [{}, {"encoding_format": "float"}])
def test_openai_s_answer(api, format):
    answer = api.post("/v1/embeddings", {"input": "hello", "model": "GPT-4", **format}).json()
    assert answer == {
        "object": "list",
        "model": "GPT-4",
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
        "data": [{"object": "embedding", "index": 0, "embedding": close(unit(HELLO))}],
    }


@pytest.mark.covers("Q38")
def test_base64_is_the_same_numbers(api):
    answer = api.post("/v1/embeddings", {"input": "hello", "encoding_format": "base64"}).json()
    assert list(struct.unpack("<4f", base64.b64decode(answer["data"][0]["embedding"]))) == close(unit(HELLO))


@pytest.mark.covers("Q37")
@pytest.mark.parametrize(
    ("value", "inputs"),
    [
        ("hello", [HELLO]),
        (["hello"], [HELLO]),
        (["hello", "you"], [HELLO, [BOS, *b"you"]]),
        ([104, 105], [[104, 105]]),
        ([[104, 105], [1]], [[104, 105], [1]]),
        (["a", [104, "b"]], [[BOS, 97], [104, 98]]),
        (["a", 7], [[BOS, 97, 7]]),
    ],
)
def test_every_form_of_the_input(api, value, inputs):
    answer = api.post("/v1/embeddings", {"input": value}).json()
    assert [item["embedding"] for item in answer["data"]] == [close(unit(tokens)) for tokens in inputs]
    assert [item["index"] for item in answer["data"]] == list(range(len(inputs)))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, inputs))


def test_many_inputs_keep_their_order(api):
    texts = [f"text {i}" for i in range(300)]
    answer = api.post("/v1/embeddings", {"input": texts}).json()
    assert [item["embedding"] for item in answer["data"]] == [close(unit([BOS, *text.encode()])) for text in texts]


def test_texts_in_content_are_answered_natively_on_openai_s_route_too(api):
    assert api.post("/v1/embeddings", {"content": "hello"}).json() == [{"index": 0, "embedding": [close(unit(HELLO))]}]


def test_without_pooling_each_token_has_a_vector_as_the_model_made_it(make_api):
    api = with_pooling(make_api, "none")
    rows = [close(vector_of(HELLO[: i + 1])) for i in range(len(HELLO))]
    assert api.post("/embedding", {"content": "hello"}).json() == {"embedding": rows}
    assert api.post("/embeddings", {"content": ["hello"]}).json() == [{"index": 0, "embedding": rows}]
    answer = api.post("/v1/embeddings", {"input": "hello"})
    assert answer.status == 400 and "--pooling none" in answer.error["message"]


# ---- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        (2, lambda v: math.sqrt(sum(x * x for x in v))),
        (1, sum),
        (0, lambda v: max(v) / 32760),
        (-1, lambda v: 1.0),
        (3, lambda v: sum(x**3 for x in v) ** (1 / 3)),
        (300, lambda v: max(v)),
    ],
)
def test_embeddings_are_normalised_as_asked_for(api, kind, norm):
    values = vector_of(HELLO)
    answer = api.post("/embedding", {"content": "hello", "embd_normalize": kind}).json()
    assert answer["embedding"] == pytest.approx(
        [value / norm(values) for value in values], rel=1e-3 if kind > 99 else 1e-6
    )


def test_the_server_s_normalisation_is_the_default(make_api):
    api = with_pooling(make_api, "mean", "--embd-normalize", "-1")
    assert api.post("/embedding", {"content": "hello"}).json()["embedding"] == close(vector_of(HELLO))
    assert api.post("/embedding", {"content": "hello", "embd_normalize": 2}).json()["embedding"] == close(unit(HELLO))


def test_dimensions_cut_and_normalise_anew(api):
    answer = api.post("/v1/embeddings", {"input": "hello", "dimensions": 3}).json()
    assert answer["data"][0]["embedding"] == close(unit(HELLO, 3))


def test_numbers_that_are_not_finite_are_an_error_of_the_server(make_api):
    backend = FakeBackend()
    backend.embeddings._vector = lambda tokens: struct.pack("4f", 1.0, math.nan, 0.0, 0.0)
    answer = make_api(backend).start().post("/v1/embeddings", {"input": "x"})
    assert answer.status == 500 and "not finite" in answer.error["message"]


# ---- empty texts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", {"prompt_string": ""}, [""]], ids=repr)
def test_an_empty_text_is_what_the_model_adds_to_every_text(api, text):
    data = api.post("/v1/embeddings", {"input": ["hello", text, "hello"]}).json()["data"]
    assert [row["embedding"] for row in data] == [close(unit(HELLO)), close(unit([BOS])), close(unit(HELLO))]
    if text == "":
        assert api.post("/embedding", {"input": text}).json() == {"embedding": close(unit([BOS]))}


@pytest.mark.parametrize(("value", "name"), [("", "input"), (["x", ""], "input[1]"), ([[""]], "input[0]")], ids=repr)
def test_an_empty_text_is_refused_where_the_model_adds_nothing(make_api, monkeypatch, value, name):
    tokenize = FakeVocab.tokenize
    monkeypatch.setattr(FakeVocab, "tokenize", lambda self, text, add, parse: tokenize(self, text, False, parse))
    answer = make_api().start().post("/v1/embeddings", {"input": value})
    assert answer.status == 400 and f"{name}: the text is empty" in answer.error["message"]


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "required"),
        ({"input": None}, "required"),
        ({"input": []}, "empty"),
        ({"input": ["fine", []]}, "input[1]: the text is empty"),
        ({"input": 5}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": [{"a": 1}]}, "input[0]"),
        ({"input": [1, 99999]}, "no token 99999"),
        ({"input": [True]}, "input[0]"),
        ({"input": [[1], [-1]]}, "input[1]"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "encoding_format": 5}, "encoding_format"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "dimensions": 5}, "5 is too many, this model's vectors have 4"),
        ({"input": "x", "embd_normalize": -2}, "embd_normalize"),
        ({"input": "x", "model": 5}, "model"),
        ({"input": ["x"] * 2049}, "at most 2048"),
        ([], "object"),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(api, body, words):
    answer = api.post("/v1/embeddings", body)
    assert answer.status == 400 and words in answer.error["message"]


@pytest.mark.covers("B15")
def test_an_input_longer_than_the_model_takes_is_refused_with_the_numbers(api):
    answer = api.post("/v1/embeddings", {"input": ["fine", "x" * 100]})
    error = answer.error
    assert answer.status == 400 and error["type"] == "exceed_context_size_error"
    assert "input 1 has 101 tokens" in error["message"] and "at most 64" in error["message"]
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (101, 64)


def test_a_model_without_eyes_refuses_images_with_their_place(api):
    answer = api.post("/embedding", {"content": "[img-1]", "image_data": [{"id": 1, "data": ""}]})
    assert answer.status == 400
    assert answer.json()["error"]["message"].startswith("image_data[0]: this model can't take images or sounds")


# ---- beside completions ------------------------------------------------------------------------------------------


@pytest.mark.covers("C28")
@pytest.mark.parametrize("argv", [(), ("--embedding",), ("--embeddings",)])
def test_one_server_answers_completions_and_embeddings(make_api, argv):
    api = make_api(FakeBackend(), argv).start()
    answers = api.at_the_same_time(
        lambda: api.complete("hello"),
        lambda: api.post("/v1/embeddings", {"input": ["hello"] * 40}).json(),
        lambda: api.complete("hello"),
    )
    assert answers[0]["content"] == answers[2]["content"] != ""
    assert len(answers[1]["data"]) == 40


def test_a_model_that_only_embeds_says_so(make_api):
    api = with_pooling(make_api, "mean", is_generative=False)
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    for path, body in (
        ("/completion", {"prompt": "x"}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", chat),
        ("/completion", {"prompt": "x", "system_prompt": "be kind"}),
    ):
        answer = api.post(path, body)
        assert answer.status == 501 and "/v1/embeddings" in answer.error["message"], path
    assert api.post("/v1/embeddings", {"input": "hello"}).status == 200
    assert api.get("/props").json()["embeddings"] == {"pooling": "mean", "classes": [], "is_generative": False}
    assert api.get("/health").status == 200 and api.get("/slots").status == 200


def held(api: Api) -> socket.socket:
    """The connection of a request named `mine` for twenty texts, the first of which are being computed."""
    api.backend.hold()
    sock = api.connect()
    body = b'{"input": ["' + b'", "'.join([b"x" * 30] * 20) + b'"]}'
    sock.sendall(
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: mine\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body) + body
    )
    api.wait_for_decode()
    return sock


def test_a_client_that_hangs_up_takes_its_request_along(make_api):
    api = make_api(FakeBackend()).start()
    sock = held(api)
    sock.close()
    api.backend.go()
    api.settle()
    assert api.n_requests == 0
    n = len(api.backend.embeddings.batches)
    assert api.post("/v1/embeddings", {"input": "x"}).status == 200
    assert len(api.backend.embeddings.batches) == n + 1, "nothing else was left to do"


def test_a_request_can_be_aborted_by_its_id(make_api):
    api = make_api(FakeBackend()).start()
    sock = held(api)
    assert api.post("/v1/abort", {"id": "mine"}).json()["stopped"] is True
    assert sock.recv(65536).startswith(b"HTTP/1.1 409 ")
    assert api.post("/v1/abort", {"id": "mine"}).json()["stopped"] is False
    api.backend.go()
    sock.close()
    api.settle()
    assert api.n_requests == 0
