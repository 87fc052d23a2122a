"""Vertex AI's predictions over HTTP: the routes that instances can reach, and errors."""

from __future__ import annotations

import json
from unittest.mock import patch

import pytest

from server.api.vertex import MAX_INSTANCES, make_word
from server.errors import StartError
from server.options import parser
from server.options.vertex import read_vertex
from tests.api.conftest import Api
from tests.fakes import FakeBackend, FakeVocab
from tests.support import wait_until

HI = [{"role": "user", "content": "hi"}]
CHAT = {"messages": HI, "max_tokens": 4, "seed": 1}


@pytest.fixture
def make_vertex(make_api, monkeypatch):
    """A server as Vertex AI would start it."""

    def make(*argv: str, backend: FakeBackend | None = None, vocab: FakeVocab | None = None, **environ: str) -> Api:
        variables = {"AIP_MODE": "PREDICTION", **environ}
        reads = patch.object(
            parser, "read_vertex", lambda _, port: {**read_vertex(variables, port), "port": 0}
        )  # the port is a test's own
        with reads:
            return make_api(backend or FakeBackend(n_slots=2), argv, vocab=vocab).start()

    return make


def predict(api: Api, *instances: object, **more: object) -> list:
    answer = api.post("/predict", {"instances": list(instances), **more})
    assert answer.status == 200, answer
    assert set(answer.json()) == {"predictions"}
    return answer.json()["predictions"]


def text_of(prediction: dict) -> str:
    return prediction["choices"][0]["message"]["content"]


@pytest.mark.covers("V03")
def test_health_is_where_vertex_asks_and_needs_no_key(make_vertex):
    api = make_vertex("--api-key", "k", AIP_HEALTH_ROUTE="/ping", AIP_PREDICT_ROUTE="/v1/endpoints/1:predict")
    assert api.get("/ping").json() == api.get("/health").json()
    assert api.post("/v1/endpoints/1:predict", {"instances": []}).status == 401
    answer = api.send("POST", "/v1/endpoints/1:predict", {"instances": []}, {"Authorization": "Bearer k"})
    assert answer.json() == {"predictions": []}
    assert api.post("/predict", {}).status == 404


def test_health_may_be_asked_where_it_is_anyway_and_nothing_else_may_be_hidden(make_vertex):
    assert make_vertex(AIP_HEALTH_ROUTE="/health").get("/health").status == 200
    with pytest.raises(StartError, match="AIP_PREDICT_ROUTE: /completion is already a route"):
        make_vertex(AIP_PREDICT_ROUTE="/completion")


def test_without_vertex_there_are_no_predictions(api):
    assert api.post("/predict", {"instances": []}).status == 404


@pytest.mark.covers("V04")
def test_an_instance_is_answered_as_its_route_answers_it(make_vertex):
    api = make_vertex()
    alone = api.post("/v1/chat/completions", CHAT).json()
    found = predict(
        api,
        {"@requestFormat": "chatCompletions", **CHAT},
        CHAT,
        {"@requestFormat": "/v1/chat/completions", "stream": True, **CHAT},
        {"@requestFormat": "completions", "prompt": "x", "max_tokens": 2},
        {"prompt": "x", "max_tokens": 2},
        {"@requestFormat": "messages", "messages": HI, "max_tokens": 2},
        {"@requestFormat": "tokenize", "content": "ab"},
        {"@requestFormat": "chatCompletionsInputTokens", "messages": HI},
    )
    assert [text_of(one) for one in found[:3]] == [text_of(alone)] * 3
    assert {one["object"] for one in found[3:5]} == {"text_completion"}
    assert found[5]["type"] == "message" and found[6] == {"tokens": [97, 98]}
    assert found[7]["input_tokens"] == alone["usage"]["prompt_tokens"]


def test_infill_does_not_stream_here_even_where_it_does_by_itself(make_vertex):
    vocab = FakeVocab({"pre": 1, "suf": 2, "mid": 3})
    api = make_vertex("--compat", "2024", vocab=vocab)
    [found] = predict(api, {"@requestFormat": "infill", "input_prefix": "a", "input_suffix": "b", "n_predict": 2})
    assert found["tokens_predicted"] == 2 and found["stop"] is True
    api.settle()
    assert api.is_idle()


@pytest.mark.covers("V04")
def test_a_fault_is_the_prediction_of_its_instance_alone(make_vertex):
    api = make_vertex()
    found = predict(
        api,
        5,
        {"@requestFormat": "magic", **CHAT},
        {"@requestFormat": ["x"], **CHAT},
        {"@requestFormat": "/props"},
        {"messages": []},
        {"@requestFormat": "messages", "messages": HI},
        {},
        CHAT,
    )
    for bad in found[:5] + found[6:7]:
        assert bad["error"]["code"] == 400 and bad["error"]["type"] == "invalid_request_error"
    assert "is unknown; use one of chatCompletions" in found[1]["error"]["message"]
    assert found[5] == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "max_tokens: this field is required"},
    }
    assert text_of(found[7])


@pytest.mark.parametrize("body", [{}, {"instances": {}}, {"instances": "x"}, [], {"instances": [CHAT] * 129}])
def test_what_is_no_list_of_instances_is_refused(make_vertex, body):
    answer = make_vertex().post("/predict", body)
    assert answer.status == 400 and answer.error["type"] == "invalid_request_error"


def test_instances_are_computed_beside_each_other_and_stay_in_order(make_vertex):
    api = make_vertex(backend=FakeBackend(n_slots=4))
    prompts = [chr(97 + i) * (1 + i % 5) for i in range(20)]
    alone = [api.post("/v1/completions", {"prompt": prompt, "max_tokens": 5}).json() for prompt in prompts]
    found = predict(api, *({"prompt": prompt, "max_tokens": 5} for prompt in prompts))
    assert [one["choices"][0]["text"] for one in found] == [one["choices"][0]["text"] for one in alone]


def test_a_client_that_leaves_takes_all_instances_along(make_vertex):
    api = make_vertex()
    api.backend.hold()
    with api.begin({"instances": [CHAT] * MAX_INSTANCES}, path="/predict"):
        api.wait_for_decode()
    api.backend.go()
    wait_until(lambda: api.n_requests == 0 and api.is_idle(), "all instances to end", 30)
    api.settle()


def test_what_else_a_body_says_is_named_in_the_head(make_vertex):
    answer = make_vertex().post("/predict", {"instances": [], "parametres": {}})
    assert answer.headers["x-warnings"] == "unknown and ignored: 'parametres'"


def test_words_for_routes():
    assert [make_word(path) for path in ("/v1/chat/completions", "/apply-template", "/v1/messages/count_tokens")] == [
        "chatCompletions",
        "applyTemplate",
        "messagesCountTokens",
    ]
    json.dumps(make_word("/x"))
