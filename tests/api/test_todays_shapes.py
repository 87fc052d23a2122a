"""What clients of today's llama-server need and no other test covers: see docs/ACCEPTANCE.md from T01 on."""

from __future__ import annotations

import json
import time

import pytest

from server.engine.seam.config import SpecConfig
from server.records import replace
from tests.fake_embeddings import FakeEmbeddings
from tests.fakes import BOS, FakeBackend

QUESTION = [{"role": "user", "content": "hi"}]


def chat(api, **fields: object) -> dict:
    answer = api.post("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 4, **fields})
    assert answer.status == 200, answer
    return answer.json()


def chunks(answer) -> list[dict]:
    return [json.loads(event.removeprefix("data: ")) for event in answer.body.decode().split("\n\n")[:-2]]


@pytest.mark.covers("T02")
def test_timings_are_numbers_and_what_the_cache_did_stands_beside_them(make_api):
    api = make_api(FakeBackend()).start()
    for answer in (api.complete("x", 3), chat(api), api.stream("x", 3)[-1]):
        assert {type(value) for value in answer["timings"].values()} <= {int, float}
        assert set(answer["cache"]) == {"source", "reason", "first_difference"}


@pytest.mark.covers("T03")
def test_progress_of_a_prompt_comes_with_its_timings(make_api):
    api = make_api(FakeBackend()).start()
    body = {"messages": QUESTION, "max_tokens": 2, "stream": True, "return_progress": True}
    for events in (api.stream("x" * 50, 2, return_progress=True), chunks(api.post("/v1/chat/completions", body))):
        told = [event for event in events if "prompt_progress" in event]
        assert told
        for event in told:
            progress, timings = event["prompt_progress"], event["timings"]
            assert (timings["cache_n"], timings["predicted_n"]) == (progress["cache"], 0)
            assert timings["prompt_n"] == progress["processed"] - progress["cache"]


@pytest.mark.covers("T04")
def test_drafts_are_counted_wherever_something_guesses_also_where_it_guessed_nothing(make_api):
    api = make_api(FakeBackend(lambda history: len(history) * 37 % 90 + 33), spec=SpecConfig(lookup=True)).start()
    assert api.complete("x", 2)["timings"]["draft_n"] == 0
    assert "draft_n" not in api.complete("x", 2, **{"speculative.n_max": 0})["timings"]
    assert "draft_n" not in make_api(FakeBackend()).start().complete("x", 2)["timings"]


@pytest.mark.covers("T05")
def test_a_request_may_ask_for_what_verbose_shows(make_api):
    api = make_api(FakeBackend()).start()
    assert chat(api, verbose=True)["__verbose"]["tokens_predicted"] == 4
    assert "__prompt_processed" in api.complete("x", 1, verbose=True)
    assert "__verbose" not in chat(api) and "__prompt_processed" not in api.complete("x", 1)
    assert "verbose" in api.refuse(verbose="much")["message"]


@pytest.mark.covers("T06")
def test_the_page_can_be_switched_off(make_api):
    api = make_api(FakeBackend(), ("--no-ui",)).start()
    assert (api.get("/").status, api.get("/completion.js").status, api.get("/health").status) == (404, 404, 200)


@pytest.mark.covers("T07")
@pytest.mark.parametrize(
    "options, expected",
    [
        (("-n", "5"), [3, 9, 5]),
        (("--max-predict", "5"), [3, 5, 5]),
        (("-n", "4", "--max-predict", "5"), [3, 5, 4]),
        (("-n", "5", "--compat", "2024"), [3, 5, 5]),
        (("-n", "5", "--max-predict", "7", "--compat", "2024"), [3, 7, 5]),
    ],
)
def test_the_server_has_a_default_and_a_limit_for_the_length_of_texts(make_api, options, expected):
    api = make_api(FakeBackend(), options).start()
    assert [api.complete("x", n)["tokens_predicted"] for n in (3, 9, -1)] == expected


@pytest.mark.covers("T08")
def test_tokens_without_any_probability_are_left_out_after_sampling(make_api):
    api = make_api(FakeBackend()).start()
    item = api.complete("x", 1, n_probs=5, post_sampling_probs=True)["completion_probabilities"][0]
    assert item["top_probs"] and all(top["prob"] > 0 for top in item["top_probs"])


@pytest.mark.covers("T09")
def test_options_is_answered_with_200(make_api):
    answer = make_api(FakeBackend()).start().send("OPTIONS", "/v1/chat/completions")
    assert (answer.status, answer.body) == (200, b"") and "POST" in answer.headers["allow"]


@pytest.mark.covers("T10")
@pytest.mark.parametrize("n", [200, 20_000])
def test_errors_of_texts_that_are_too_long_say_so_in_the_words_that_clients_look_for(make_api, n):
    api = make_api(FakeBackend(n_ctx=100)).start()
    error = api.refuse(prompt="x" * n)
    assert "exceeds the available context size" in error["message"]
    assert error["type"] == "exceed_context_size_error" and error["n_prompt_tokens"] > error["n_ctx"] == 100
    backend = FakeBackend(n_ctx=100)
    backend.embeddings = FakeEmbeddings(backend, pooling="mean")
    answer = make_api(backend, ("--embeddings",)).start().post("/v1/embeddings", {"input": "x" * 200})
    assert answer.status == 400 and "too large to process" in answer.error["message"]


@pytest.mark.covers("T11")
def test_the_fingerprint_begins_as_llama_server_s_does(make_api):
    assert chat(make_api(FakeBackend()).start())["system_fingerprint"].startswith("b")


@pytest.mark.covers("T12")
def test_metrics_tell_when_the_process_began_and_rates_leave_out_first_tokens(make_api):
    api = make_api(FakeBackend(), ("--metrics",)).start()
    api.complete("x", 1)
    answer = api.get("/metrics")
    assert abs(int(answer.headers["process-start-time-unix"]) - time.time()) < 3600
    assert "llamacpp:predicted_tokens_seconds 0\n" in answer.body.decode(), "a text of one token took no time"


@pytest.mark.covers("T13")
def test_embeddings_take_texts_and_lists_of_tokens_in_one_list(make_api):
    backend = FakeBackend()
    backend.embeddings = FakeEmbeddings(backend, pooling="mean")
    api = make_api(backend, ("--embeddings",)).start()
    data = api.post("/v1/embeddings", {"input": ["hello", [BOS, *b"hello"], "world"]}).json()["data"]
    assert data[0]["embedding"] == data[1]["embedding"] != data[2]["embedding"]


@pytest.mark.covers("T14")
def test_two_messages_of_the_assistant_at_the_end_are_refused(make_api):
    api = make_api(FakeBackend()).start()
    said = {"role": "assistant", "content": "well"}
    for messages, status in (
        ([*QUESTION, said], 200),
        ([*QUESTION, said, said], 400),
        ([*QUESTION, said, *QUESTION], 200),
    ):
        assert api.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1}).status == status


@pytest.mark.covers("T15")
def test_health_is_told_below_v1_too_and_needs_no_key(make_api):
    api = make_api(FakeBackend(), ("--api-key", "k", "--slots")).start()
    for query in ("", "?include_slots", "?fail_on_no_slot"):
        told, known = api.get("/v1/health" + query), api.get("/health" + query)
        assert (told.status, told.json()) == (200, known.json())


@pytest.mark.covers("T16")
def test_a_shown_prompt_begins_with_the_bos_that_the_template_wrote_and_it_is_read_once(make_api):
    backend = FakeBackend()
    backend.info = replace(backend.info, bos_token="<s>")
    template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    api = make_api(backend, ("--chat-template", template)).start()
    assert api.post("/apply-template", {"messages": QUESTION}).json() == {"prompt": "<s>[hi]"}
    answer = chat(api, verbose=True)
    assert answer["__verbose"]["prompt"] == "<s>[hi]"
    assert answer["usage"]["prompt_tokens"] == len("[hi]") + 1
    assert api.complete("<s>[hi]", 1)["prompt"] == "<s>[hi]"
