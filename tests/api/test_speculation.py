"""Speculative decoding as clients see it: the same answers, several tokens in a chunk, counts in `timings`."""

from __future__ import annotations

import json

import pytest

from server.engine.seam.config import SpecConfig
from tests.fakes import FakeBackend
from tests.unit.engine.speculation.test_speculation import POEM, alone, poet

DRAFTING = {"spec": SpecConfig(lookup=True, min_gain=0.0)}


@pytest.fixture
def api(make_api):
    return make_api(FakeBackend(poet), ("--metrics",), **DRAFTING).start()


def test_an_answer_tells_how_its_drafts_fared(api):
    body = api.post("/completion", {"prompt": POEM, "n_predict": 80}).json()
    assert body["content"] == alone(POEM, 80, poet) and body["tokens_predicted"] == 80
    timings = body["timings"]
    assert 40 < timings["draft_n_accepted"] <= timings["draft_n"]
    plain = api.post("/completion", {"prompt": POEM, "n_predict": 80, "speculative.n_max": 0}).json()
    assert plain["content"] == body["content"]
    assert "draft_n" not in plain["timings"] and "draft_n_accepted" not in plain["timings"]


@pytest.mark.covers("T01")
@pytest.mark.parametrize("n_probs", [0, 2])
def test_a_stream_has_an_event_for_each_token_also_of_those_that_were_guessed(api, n_probs):
    body = {"prompt": POEM, "n_predict": 80, "stream": True, "n_probs": n_probs}
    *chunks, last = api.post("/completion", body).events()
    assert [len(chunk["tokens"]) for chunk in chunks] == [1] * 80
    assert "".join(chunk["content"] for chunk in chunks) == alone(POEM, 80, poet)
    for chunk in chunks if n_probs else ():
        [probs] = chunk["completion_probabilities"]
        assert [probs["id"]] == chunk["tokens"]
    assert (last["timings"]["predicted_n"], last["timings"]["draft_n_accepted"] > 40) == (80, True)


@pytest.mark.parametrize("is_stream", [False, True])
def test_probabilities_come_for_each_token(api, is_stream):
    body = {"prompt": POEM, "n_predict": 60, "n_probs": 2, "stream": is_stream}
    answer = api.post("/completion", body)
    chunks = answer.events() if is_stream else [answer.json()]
    probs = [item for chunk in chunks for item in chunk.get("completion_probabilities", ())]
    assert "".join(item["content"] for item in probs) == alone(POEM, 60, poet)


def test_openai_logprobs_come_for_each_token(api):
    body = {"prompt": POEM, "max_tokens": 60, "logprobs": 1, "stream": True, "temperature": 0}
    *events, done, _ = api.post("/v1/completions", body).body.decode().split("\n\n")
    assert done == "data: [DONE]"
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["tokens"]]
    assert "".join(choice["text"] for choice in choices) == "".join(tokens) == alone(POEM, 60, poet)


def test_a_stop_word_within_a_chunk(api):
    body = {"prompt": POEM, "n_predict": 100, "stop": ["honey"], "stream": True}
    *chunks, last = api.post("/completion", body).events()
    assert "".join(chunk["content"] for chunk in (*chunks, last)) == alone(POEM, 100, poet).split("honey")[0]
    assert (last["stop_type"], last["stopping_word"]) == ("word", "honey")


@pytest.mark.parametrize(
    ("field", "value"),
    [("speculative.n_max", -2), ("speculative.n_max", "many"), ("speculative.n_min", 1e9), ("speculative.p_min", 1.5)],
)
def test_limits_out_of_range_are_refused(api, field, value):
    answer = api.post("/completion", {"prompt": POEM, field: value})
    assert answer.status == 400 and field in answer.json()["error"]["message"]


def test_the_settings_show_the_limits_in_use(api):
    body = {"prompt": POEM, "n_predict": 2, "speculative.n_min": 3}
    settings = api.post("/completion", body).json()["generation_settings"]
    assert (settings["speculative.n_max"], settings["speculative.n_min"], settings["speculative.p_min"]) == (16, 3, 0.4)


def test_metrics_count_drafts(api):
    timings = api.post("/completion", {"prompt": POEM, "n_predict": 80}).json()["timings"]
    api.settle()
    lines = dict(line.split() for line in api.get("/metrics").body.decode().splitlines() if not line.startswith("#"))
    assert int(lines["llamacpp:spec_decode_num_draft_tokens_total"]) == timings["draft_n"]
    assert int(lines["llamacpp:spec_decode_num_accepted_tokens_total"]) == timings["draft_n_accepted"]
    assert int(lines["llamacpp:spec_decode_num_drafts_total"]) > 0


def test_slots_say_whether_their_task_is_drafted_for(api):
    (slot,) = api.get("/slots").json()
    assert slot["speculative"] is True and slot["params"]["speculative.n_max"] == 16
    api.post("/completion", {"prompt": POEM, "n_predict": 2, "speculative.n_max": 0})
    api.settle()
    (slot,) = api.get("/slots").json()
    assert slot["speculative"] is False
