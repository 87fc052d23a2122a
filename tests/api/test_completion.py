"""POST /completion over HTTP: every form of the prompt, every field, every field of the answer, streamed and whole."""

from __future__ import annotations

import json
import math

import pytest

from server.api.request import sampling, schema
from server.api.request.schema import COMPLETION_FIELDS, SAMPLING_FIELDS, Field
from server.engine.seam.task import SamplingParams
from server.errors import ApiError
from tests.fakes import BOS, EOS, N_VOCAB, FakeBackend, answer, letters, said_by


def said(prompt: list[int], n: int) -> str:
    """The text that the fake model gives to these tokens."""
    return bytes(said_by(letters, prompt, n)).decode()


def with_bos(text: str) -> list[int]:
    return [BOS, *text.encode()]


# ---- prompts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("hello", with_bos("hello")),
        ("", [BOS]),
        ("héllo 😀", with_bos("héllo 😀")),
        ("a<s>b", [BOS, 97, BOS, 98]),
        ([104, 105], [104, 105]),
        ([BOS, 104, 105], [BOS, 104, 105]),
        (["hello"], with_bos("hello")),
        (["he", 108, 108, "o"], with_bos("hello")),
        ([104, "ello"], list(b"hello")),
    ],
    ids=repr,
)
def test_a_prompt_in_each_form_is_these_tokens(api, prompt, tokens):
    result = api.complete(prompt, 6)
    assert result["content"] == said(tokens, 6)
    assert result["tokens_evaluated"] == len(tokens)
    assert result["prompt"] == prompt


def test_an_empty_list_is_an_empty_prompt(api):
    result = api.complete([], 6)
    assert (result["content"], result["tokens_predicted"], result["tokens_evaluated"]) == ("", 0, 0)


@pytest.mark.parametrize("prompts", [["one", "two", "three"], [[104, 105], [106]], ["one", [104, 105]]], ids=repr)
def test_a_list_of_prompts_gets_a_list_of_answers_in_its_order(api, prompts):
    results = api.post("/completion", {"prompt": prompts, "n_predict": 5}).json()
    assert [result["index"] for result in results] == list(range(len(prompts)))
    for prompt, result in zip(prompts, results):
        assert result["content"] == said(with_bos(prompt) if isinstance(prompt, str) else prompt, 5)


@pytest.mark.parametrize(
    "prompt",
    [5, True, 1.5, {}, {"text": "x"}, [True], [1.5], [None], [-1], [N_VOCAB], [2**40], ["a", N_VOCAB]],
    ids=repr,
)
def test_what_is_no_prompt_is_refused(api, prompt):
    assert "prompt" in api.refuse(prompt=prompt)["message"]


def test_a_missing_prompt_is_refused(api):
    for body in ({"n_predict": 1}, {"prompt": None}):
        answer = api.post("/completion", body)
        assert answer.status == 400 and "prompt" in answer.error["message"]


@pytest.mark.parametrize("body", [[], "text", 5, None, True], ids=repr)
def test_a_body_that_is_no_object_is_refused(api, body):
    answer = api.post("/completion", b"null" if body is None else body)
    assert answer.status == 400 and answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"prompt=x", b'{"prompt": "\xff"}', b'{"prompt": NaN}'])
def test_a_body_that_is_no_json_is_refused(api, body):
    assert api.post("/completion", body).error["code"] == 400


def test_the_content_type_does_not_matter(api):
    for content_type in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json; charset=utf-8"}):
        assert api.send("POST", "/completion", {"prompt": "x", "n_predict": 1}, content_type).status == 200


# ---- every field -------------------------------------------------------------------------------------------------

FIELDS = (*SAMPLING_FIELDS, *COMPLETION_FIELDS)
WRONG_TYPES = {
    int: ("many", 1.5, True, [1], {}),
    float: ("much", True, [1.0], {}),
    bool: (1, 0, "true", []),
    str: (5, True, ["x"], {}),
}
WRONG_LISTS = {
    "stop": (5, True, [5], ["a", 5], {"a": 1}),
    "samplers": (5, ["no_such_sampler"], [5], True, "z"),
    "logit_bias": (
        5,
        True,
        [5],
        [[1]],
        [[1, 2, 3]],
        [[1, "x"]],
        [[1, True]],
        [[None, 1]],
        [[N_VOCAB, 1]],
        [[-1, 1]],
        {str(N_VOCAB): 1},
        {"5": "x"},
    ),
    "dry_sequence_breakers": (5, [5], True),
    "penalty_prompt": (5, [N_VOCAB], ["x"], True),
    "lora": (5, [5], [{"id": 0}], [{"scale": 1}], True),
    "response_fields": (5, [5], True),
}


def named(fields: tuple[Field, ...], *kinds: type) -> list:
    """The rows of these kinds, under every name that a request may use."""
    return [
        pytest.param(field, name, id=name)
        for field in fields
        if field.kind in kinds
        for name in (field.name, *field.aliases)
    ]


@pytest.mark.parametrize(("field", "name"), named(FIELDS, int, float, bool, str))
def test_a_wrong_type_is_refused_by_name_and_value(api, field, name):
    for value in WRONG_TYPES[field.kind]:
        message = api.refuse(**{"n_predict": None, name: value})["message"]
        assert message.startswith(f"{name}: ") and str(value) in message and " is not " in message, message


@pytest.mark.parametrize(("field", "name"), named(FIELDS, int, float))
def test_a_value_out_of_range_is_refused_with_the_limits(api, field, name):
    step = 1 if field.kind is int else 0.001
    for value in (field.low - step, field.high + step):
        if math.isfinite(value) and value not in (field.low, field.high):
            message = api.refuse(**{"n_predict": None, name: value})["message"]
            assert message.startswith(f"{name}: {value!r} is out of range"), message
            assert all(f"{limit:.10g}" in message for limit in (field.low, field.high) if math.isfinite(limit))


@pytest.mark.parametrize(("field", "name"), named(FIELDS, int, float))
def test_the_limits_themselves_are_allowed(field, name):
    for value in (field.low, field.high):
        if math.isfinite(value):
            assert schema.read({name: value}, [field]) == {field.name: value}


@pytest.mark.parametrize("value", [10**30, -(10**30), 10**400, 1e308])
def test_huge_numbers_are_refused_not_computed_with(api, value):
    for name in ("n_predict", "top_k", "seed", "temperature", "id_slot"):
        assert name in api.refuse(**{name: value})["message"]


@pytest.mark.parametrize(("field", "name"), named(FIELDS, list))
def test_a_wrong_list_is_refused_by_name(api, field, name):
    for value in WRONG_LISTS[field.name]:
        assert name in api.refuse(**{name: value})["message"], value


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_null_is_the_default(field):
    for name in (field.name, *field.aliases):
        assert schema.read({name: None}, [field]) == schema.read({}, [field]) == {field.name: field.default}


def test_unknown_fields_are_ignored(api):
    assert api.complete("x", 2, model="gpt-3.5-turbo", no_such_field={"a": [1]})["content"] == said(with_bos("x"), 2)


@pytest.mark.parametrize(("sent", "read"), [(5.0, 5), (-1.0, -1)])
def test_a_whole_number_may_be_written_with_a_point(sent, read):
    field = next(field for field in COMPLETION_FIELDS if field.name == "n_predict")
    assert schema.read({"n_predict": sent}, [field]) == {"n_predict": read}


def other_value(field: Field) -> object:
    """An allowed value that isn't the default."""
    if field.kind is bool:
        return not field.default
    if field.kind is str:
        return 'root ::= "a"'
    middle = {int: 1, float: 0.25}[field.kind]
    return middle if middle != field.default else middle * 2


@pytest.mark.parametrize("field", SAMPLING_FIELDS, ids=lambda field: field.name)
def test_every_sampling_field_reaches_the_engine(api, field):
    value = other_value(field)
    assert api.complete("x", 1, **{field.name: value})["generation_settings"][field.name] == value
    for alias in field.aliases:
        assert api.complete("x", 1, **{alias: value})["generation_settings"][field.name] == value


def test_without_fields_the_settings_are_the_defaults(api):
    settings = api.complete("x", 1)["generation_settings"]
    for field in SAMPLING_FIELDS:
        assert settings[field.name] == field.default, field.name
    assert settings["samplers"] == list(SamplingParams().samplers)


@pytest.mark.covers("Q25")
def test_a_seed_is_kept_and_without_one_a_real_one_is_drawn_and_reported(api):
    assert api.complete("x", 1, seed=42)["generation_settings"]["seed"] == 42
    drawn = [api.complete("x", 1, seed=-1)["generation_settings"]["seed"] for _ in range(3)]
    assert all(0 <= seed < 2**32 for seed in drawn) and len(set(drawn)) == 3


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (["top_k", "temperature"], ["top_k", "temperature"]),
        (["typ_p", "temp"], ["typical_p", "temperature"]),
        (["top_k", "top_k"], ["top_k", "top_k"]),
        ([], []),
        ("kpt", ["top_k", "top_p", "temperature"]),
    ],
)
def test_samplers_are_taken_in_their_order_under_all_their_names(api, sent, read):
    assert api.complete("x", 1, samplers=sent)["generation_settings"]["samplers"] == read


@pytest.mark.parametrize(
    "field, item, most", [("dry_sequence_breakers", "?", 100), ("samplers", "top_k", 100), ("stop", "?", 10_000)]
)
def test_lists_that_cost_the_engine_time_have_an_end(api, field, item, most):
    assert api.complete("x", 1, **{field: [item] * most})["content"]
    answer = api.post("/completion", {"prompt": "x", field: [item] * (most + 1)})
    assert answer.status == 400 and field in answer.error["message"] and str(most) in answer.error["message"]


class LargeVocab:
    """As many tokens as a model of today has, of which many end with `e` and none with `#`."""

    n_tokens = 200_000

    def piece(self, token: int) -> bytes:
        return b" the" if token % 10 == 0 else b" dog"


DRY = {"dry_multiplier": 0.8, "temperature": 0.0}


def test_breakers_are_looked_for_once_each_and_as_far_as_llama_cpp_looks(api):
    sent = ["\n", "x" * 100_000, "\n", "\u00e9" * 50]
    settings = api.complete("x", 1, dry_sequence_breakers=sent, **DRY)["generation_settings"]
    assert settings["dry_sequence_breakers"] == ["\n", "x" * 40, "\u00e9" * 20]
    assert api.complete("x", 1, dry_sequence_breakers=sent)["generation_settings"]["dry_sequence_breakers"] == sent


@pytest.mark.parametrize(
    "texts, is_taken",
    [
        (SamplingParams().dry_sequence_breakers, True),
        (["#" * 40, "# # #", "###\n"], True),
        ([], True),
        ([f"{i}:" for i in range(100)], False),
        (["e" * 40], False),
        (["e " * 20] * 100, False),
        (["e" * 100_000] * 100, False),
    ],
)
def test_breakers_that_take_long_to_look_for_are_refused(texts, is_taken):
    """What it costs depends on how many tokens end as a breaker begins, and on how much is left of it then."""
    if is_taken:
        assert sampling.cut_dry_breakers(texts, LargeVocab()) == tuple(texts)
        return
    with pytest.raises(ApiError, match="dry_sequence_breakers: searching 200000 tokens for") as caught:
        sampling.cut_dry_breakers(texts, LargeVocab())
    assert caught.value.status == 400


def test_more_biases_than_tokens_are_refused(api):
    assert api.complete("x", 1, logit_bias=[[i % 256, -1] for i in range(N_VOCAB)])["content"]
    answer = api.post("/completion", {"prompt": "x", "logit_bias": [[i % 256, -1] for i in range(N_VOCAB + 1)]})
    assert answer.status == 400 and "logit_bias" in answer.error["message"]


@pytest.mark.covers("Q27")
@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ([[5, 1.5]], [[5, 1.5]]),
        ([[5, False]], [[5, False]]),
        ([["ab", -0.5]], [[97, -0.5], [98, -0.5]]),
        ({"5": -100, "7": 1}, [[5, -100.0], [7, 1.0]]),
        ({"a": False}, [[97, False]]),
        ([], []),
        ([["5", 2]], [[53, 2.0]]),
    ],
)
def test_logit_bias_in_each_form(api, sent, read):
    assert api.complete("x", 1, logit_bias=sent)["generation_settings"]["logit_bias"] == read


@pytest.mark.parametrize(("sent", "read"), [("end", ["end"]), (["a", "b"], ["a", "b"]), ([], [])])
def test_stop_is_a_list_or_one_string(api, sent, read):
    assert api.complete("x", 1, stop=sent)["generation_settings"]["stop"] == read


def test_n_predict_has_three_names_and_the_documents_one_wins(api):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = api.post("/completion", {"prompt": "x", name: 3})
        assert answer.json()["tokens_predicted"] == 3
    assert api.complete("x", 2, max_tokens=5, max_completion_tokens=4)["tokens_predicted"] == 2


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/completion", {"prompt": "x"}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
@pytest.mark.parametrize(("old", "new", "n"), [(5, 3, 3), (3, 5, 5), (3, None, 3)])
def test_the_newer_name_of_the_limit_wins(api, path, prompt, old, new, n):
    answer = api.post(path, {**prompt, "max_tokens": old, "max_completion_tokens": new, "ignore_eos": True}).json()
    assert (answer["usage"]["completion_tokens"] if "usage" in answer else answer["tokens_predicted"]) == n


@pytest.mark.parametrize("prefix", ["", "/llm"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_client_with_a_wrong_base_url_is_told_the_right_one(make_api, prefix, method):
    api = make_api(None, ("--api-prefix", prefix) if prefix else ()).start()
    for path in ("/v1", "/v1/", "/v1/v1/models", "/api/strange", "/api", "/v1/no/such/route"):
        for asked in {path, prefix + path}:
            answer = api.send(method, asked, {} if method == "POST" else None)
            assert answer.status == 404 and f"base URL {prefix}/v1" in answer.error["message"]
    assert "chat/completions" in api.send(method, prefix + "/v1", None).error["message"]
    assert "base URL" not in api.send(method, prefix + "/no/such/route", None).error["message"]


@pytest.mark.covers("Q30")
def test_a_slot_may_be_chosen_under_both_names(api):
    for name in ("id_slot", "slot_id"):
        for id_slot in (0, 1):
            result = api.complete("x", 1, **{name: id_slot})
            assert (result["id_slot"], result["slot_id"]) == (id_slot, id_slot)
    error = api.refuse(id_slot=2)
    assert "id_slot" in error["message"] and "2" in error["message"]


@pytest.mark.covers("Q31")
def test_cache_prompt_decides_whether_the_prompt_is_reused(make_api):
    api = make_api(FakeBackend()).start()
    for cache_prompt, n_evaluated in ((True, 11), (True, 1), (False, 11), (True, 1)):
        result = api.complete("some words", 3, cache_prompt=cache_prompt)
        assert result["timings"]["prompt_n"] == n_evaluated
        assert result["timings"]["cache_n"] == 11 - n_evaluated
        assert result["content"] == said(with_bos("some words"), 3)


def test_several_answers_to_one_prompt(api):
    results = api.post("/completion", {"prompt": "x", "n_predict": 3, "n_cmpl": 3, "seed": 9}).json()
    assert [result["index"] for result in results] == [0, 1, 2]
    assert [result["content"] for result in results] == [said(with_bos("x"), 3)] * 3
    assert [result["generation_settings"]["seed"] for result in results] == [9, 10, 11]


# ---- the answer --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speaking():
    """A server whose model answers every question with the same sentence."""
    from tests.api.conftest import Api

    one = Api(FakeBackend(answer("Fine, thanks.\nAnd héllo 😀 end"), n_ctx=512), ("--alias", "speaker")).start()
    yield one
    one.stop()
    one.wait_for_threads()


@pytest.mark.covers("R01", "R02")
def test_content_is_the_text_without_the_stop_word_and_stop_is_true(speaking):
    result = speaking.complete("how?", -1, stop=["And"])
    assert (result["content"], result["stop"]) == ("Fine, thanks.\n", True)


@pytest.mark.covers("R03")
def test_the_settings_as_they_took_effect(speaking):
    result = speaking.complete("how?", 3, temperature=0.25, stop=["x"], logit_bias=[["é", -1]])
    settings = result["generation_settings"]
    assert (settings["n_ctx"], settings["model"], settings["temperature"]) == (512, "speaker", 0.25)
    assert (settings["n_predict"], settings["stop"], settings["stream"]) == (3, ["x"], False)
    assert settings["logit_bias"] == [[0xC3, -1.0], [0xA9, -1.0]]
    assert "prompt" not in settings


@pytest.mark.covers("R04", "R05", "R11", "R12", "R13", "R16")
def test_model_prompt_counts_and_slot(speaking, api):
    result = speaking.complete("how?", 5)
    assert (result["model"], result["prompt"]) == ("speaker", "how?")
    assert (result["tokens_evaluated"], result["tokens_predicted"], result["tokens_cached"]) == (5, 5, 9)
    assert (result["id_slot"], result["slot_id"], result["index"]) == (0, 0, 0)
    assert api.complete("x", 1)["model"] == "fake.gguf", "the path where there is no alias"


@pytest.mark.covers("R06", "R07", "R08", "R09")
@pytest.mark.parametrize(
    ("fields", "stop_type", "word"),
    [
        ({"n_predict": -1}, "eos", ""),
        ({"n_predict": 4}, "limit", ""),
        ({"n_predict": -1, "stop": ["thanks", "end"]}, "word", "thanks"),
    ],
)
def test_why_the_text_ended_in_both_generations_of_fields(speaking, fields, stop_type, word):
    result = speaking.complete("how?", **fields)
    assert (result["stop_type"], result["stopping_word"]) == (stop_type, word)
    assert [result[f"stopped_{kind}"] for kind in ("eos", "limit", "word")] == [
        stop_type == kind for kind in ("eos", "limit", "word")
    ]


def test_only_a_chat_in_which_an_answer_comes_back_may_get_other_tokens(speaking):
    def may_respell(path: str, **body) -> bool:
        assert speaking.post(path, {"max_tokens": 1, **body}).status == 200
        return speaking.client.get_task(max(slot.id_task for slot in speaking.client.snapshot.slots)).may_respell

    said = [{"role": "user", "content": "how?"}, {"role": "assistant", "content": "so"}]
    chat = "/v1/chat/completions"
    for messages, expected in ((said[:1], False), (said, True), ([*said, *said[:1]], True)):
        assert may_respell(chat, messages=messages) == expected
        assert not may_respell(chat, messages=messages, cache_prompt=False)
    for prompt in ("how?", [1, 2], {"prompt_string": "how?"}):
        assert not may_respell("/completion", prompt=prompt), "what a text becomes doesn't depend on earlier ones"


@pytest.mark.covers("R10")
def test_timings_have_all_their_fields_and_add_up(speaking):
    timings = speaking.complete("how?", 6, cache_prompt=False)["timings"]
    assert set(timings) == {
        "cache_n",
        "prompt_n",
        "prompt_ms",
        "prompt_per_token_ms",
        "prompt_per_second",
        "predicted_n",
        "predicted_ms",
        "predicted_per_token_ms",
        "predicted_per_second",
    }
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (0, 5, 6)
    assert all(isinstance(value, (int, float)) and math.isfinite(value) and value >= 0 for value in timings.values())
    again = speaking.complete("how?", 6)
    assert again["timings"]["cache_n"] == 4
    assert again["cache"] == {"source": "slot", "reason": "the last token is evaluated again", "first_difference": None}
    other = speaking.complete("how!", 2)["cache"]["first_difference"]
    said = {name: other[name] for name in ("position", "before", "prompt", "cached", "rows_lost")}
    assert said == {"position": 4, "before": "<s>how", "prompt": ["!"], "cached": list("?Fine,"), "rows_lost": 0}
    none = speaking.complete("how?", 0)["timings"]
    assert (none["predicted_n"], none["predicted_per_second"]) == (0, 0)


@pytest.mark.covers("R14")
def test_truncated_says_that_the_context_was_full(make_api):
    api = make_api(FakeBackend(n_ctx=32)).start()
    assert api.complete("x" * 20, 5)["truncated"] is False
    result = api.complete("x" * 20, -1)
    assert (result["truncated"], result["stopped_limit"], result["tokens_cached"]) == (True, True, 32)


@pytest.mark.covers("R15", "Q28")
def test_probabilities_of_every_token_in_both_generations_of_fields(speaking):
    result = speaking.complete("how?", 4, n_probs=3)
    items = result["completion_probabilities"]
    assert [item["content"] for item in items] == list("Fine")
    for item in items:
        assert item["token"] == item["content"] and item["bytes"] == [item["id"]]
        assert [set(prob) for prob in item["probs"]] == [{"tok_str", "prob"}] * 3
        assert [set(top) for top in item["top_logprobs"]] == [{"id", "token", "bytes", "logprob"}] * 3
        assert item["probs"][0] == {"tok_str": item["content"], "prob": 1.0} and item["logprob"] == 0.0
    assert "completion_probabilities" not in speaking.complete("how?", 4)
    after = speaking.complete("how?", 1, n_probs=2, post_sampling_probs=True)["completion_probabilities"][0]
    assert after["prob"] == 1.0 and "top_logprobs" not in after
    assert [top["prob"] for top in after["top_probs"]] == [1.0], "the other token has none"


def test_probabilities_belong_to_the_text_not_to_its_stop_word(speaking):
    result = speaking.complete("how?", 4, n_probs=1, stop=["ne"])
    assert result["content"] == "Fi" and [one["content"] for one in result["completion_probabilities"]] == ["F", "i"]


def test_bytes_that_are_no_character_of_their_own_are_shown_as_bytes(speaking):
    result = speaking.complete("how?", 21, n_probs=1)
    assert result["content"].endswith("hé")
    assert [item["bytes"] for item in result["completion_probabilities"][-2:]] == [[0xC3], [0xA9]]


def test_tokens_are_given_when_asked_for(speaking):
    assert speaking.complete("how?", 4)["tokens"] == []
    assert speaking.complete("how?", 4, return_tokens=True)["tokens"] == list(b"Fine")
    assert speaking.complete("how?", -1, return_tokens=True)["tokens"][-1] == EOS


def test_a_line_break_in_the_text_is_reported(speaking):
    assert speaking.complete("how?", 4)["has_new_line"] is False
    assert speaking.complete("how?", -1)["has_new_line"] is True
    for fields in ({}, {"n_probs": 1}):
        assert speaking.stream("how?", -1, **fields)[-1]["has_new_line"] is True


def test_only_the_wanted_fields_are_sent(speaking):
    result = speaking.complete("how?", 4, response_fields=["content", "timings/prompt_n", "no/such"])
    assert result == {"content": "Fine", "timings/prompt_n": result["timings/prompt_n"]}


def test_a_multibyte_character_is_finished_beyond_the_limit(speaking):
    result = speaking.complete("how?", 20)
    assert result["content"].endswith("hé") and result["tokens_predicted"] == 21


def test_both_paths_answer(speaking):
    body = {"prompt": "how?", "n_predict": 4}
    assert speaking.post("/completions", body).json()["content"] == "Fine"


# ---- streams -----------------------------------------------------------------------------------------------------


@pytest.mark.covers("B08", "Q10")
def test_every_event_has_content_and_stop_and_only_the_last_stops(speaking):
    answer = speaking.post("/completion", {"prompt": "how?", "n_predict": -1, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert b"[DONE]" not in answer.body and b"\r" not in answer.body
    events = answer.events()
    assert all(isinstance(event["content"], str) and isinstance(event["stop"], bool) for event in events)
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    assert answer.body.count(b"\n\n") == len(events) == answer.body.count(b"data: ")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n_predict": 5},
        {"stop": ["And"]},
        {"stop": ["😀 end"]},
        {"stop": ["never", "tha", "thanks"]},
        {"n_predict": 0},
        {"n_predict": 1},
        {"n_predict": 20},
        {"stop": ["Fine"]},
    ],
    ids=repr,
)
def test_the_streamed_text_is_the_plain_text(speaking, fields):
    fields = {"n_predict": -1, **fields}
    plain = speaking.complete("how?", **fields)
    events = speaking.stream("how?", **fields)
    assert "".join(event["content"] for event in events) == plain["content"]
    assert [token for event in events for token in event["tokens"]] == speaking.complete(
        "how?", return_tokens=True, **fields
    )["tokens"]
    skip = ("content", "timings", "tokens", "generation_settings")
    assert {name: value for name, value in events[-1].items() if name not in skip} == {
        name: value for name, value in plain.items() if name not in skip
    }
    assert events[-1]["generation_settings"]["stream"] is True


def test_no_event_shows_a_part_of_a_character_or_of_a_stop_word(speaking):
    events = speaking.stream("how?", -1, stop=["😀 end"])
    assert not any("\ufffd" in event["content"] or "😀" in event["content"] for event in events)


def test_probabilities_come_with_the_tokens_of_their_event(speaking):
    events = speaking.stream("how?", 4, n_probs=1)
    items = [item for event in events[:-1] for item in event["completion_probabilities"]]
    assert [item["content"] for item in items] == list("Fine")


def test_timings_come_with_every_event_when_asked_for(speaking):
    events = speaking.stream("how?", 4, timings_per_token=True)
    assert [event["timings"]["predicted_n"] for event in events] == [1, 2, 3, 4, 4]
    assert all("timings" not in event for event in speaking.stream("how?", 4)[:-1])


def test_progress_of_the_prompt_is_reported_when_asked_for(make_api):
    api = make_api(FakeBackend(n_batch=4)).start()
    events = api.stream("0123456789", 2, return_progress=True)
    progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert [(p["total"], p["cache"], p["processed"]) for p in progress] == [
        (11, 0, 0),
        (11, 0, 4),
        (11, 0, 8),
        (11, 0, 11),
    ]
    assert all(event["content"] == "" and event["stop"] is False for event in events if "prompt_progress" in event)
    assert "".join(event["content"] for event in events) == said(with_bos("0123456789"), 2)


def test_a_list_of_prompts_in_one_stream(api):
    events = api.stream(["one", "two"], 5)
    for index, prompt in enumerate(("one", "two")):
        mine = [event for event in events if event["index"] == index]
        assert "".join(event["content"] for event in mine) == said(with_bos(prompt), 5)
        assert [event["stop"] for event in mine] == [False] * (len(mine) - 1) + [True]


def test_an_error_before_the_first_event_has_its_own_status(make_api):
    api = make_api(FakeBackend(n_ctx=64)).start()
    for body, word in (
        ({"prompt": "x" * 99}, "context"),
        ({"prompt": "x", "grammar": "root ::= ("}, "grammar"),
        ({"prompt": "x", "top_k": "x"}, "top_k"),
        ({"prompt": "x", "id_slot": 7}, "id_slot"),
    ):
        answer = api.post("/completion", {**body, "stream": True})
        assert answer.status == 400 and word in answer.error["message"]
    error = api.post("/completion", {"prompt": "x" * 99, "stream": True}).error
    assert (error["type"], error["n_prompt_tokens"], error["n_ctx"]) == ("exceed_context_size_error", 100, 64)


@pytest.mark.covers("E20")
def test_a_grammar_that_cannot_be_parsed(api):
    for grammar in ("root ::= (", "no grammar", 'start ::= "a"'):
        error = api.refuse(grammar=grammar)
        assert (error["code"], error["type"]) == (400, "invalid_request_error")
        assert error["message"].startswith("Failed to parse grammar")


def test_an_error_after_the_first_event_is_the_last_event(make_api):
    api = make_api(FakeBackend()).start()
    api.backend.fail_at[4] = -1
    answer = api.post("/completion", {"prompt": "x", "n_predict": 9, "stream": True})
    events = answer.events()
    assert answer.status == 200
    assert "".join(event["content"] for event in events) == said(with_bos("x"), 3)
    assert (events[-1]["error"]["code"], events[-1]["content"], events[-1]["stop"]) == (500, "", True)
    assert [line for line in answer.body.decode().split("\n") if line.startswith("error: ")]
    assert api.complete("x", 3)["content"] == said(with_bos("x"), 3)


def test_a_plain_request_that_fails_gets_the_status_of_its_failure(make_api):
    api = make_api(FakeBackend()).start()
    api.backend.fail_at[2] = -3
    answer = api.post("/completion", {"prompt": "x", "n_predict": 9})
    assert answer.status == 500 and "-3" in answer.error["message"]


# ---- many at once ------------------------------------------------------------------------------------------------


@pytest.mark.covers("E02")
def test_more_clients_than_slots_are_all_served_completely(make_api):
    api = make_api(FakeBackend(n_ctx=4096, n_slots=4, n_batch=64)).start()

    def ask(i: int):
        prompt, n = f"a common beginning, then client {i % 7} says {i}", 5 + i % 11
        if i % 2:
            return prompt, n, api.complete(prompt, n, cache_prompt=i % 3 > 0)["content"]
        return prompt, n, "".join(event["content"] for event in api.stream(prompt, n, cache_prompt=i % 3 > 0))

    for prompt, n, text in api.at_the_same_time(*(lambda i=i: ask(i) for i in range(40))):
        assert text == said(with_bos(prompt), n)
    assert api.is_idle()


def test_a_full_queue_refuses_with_503(make_api):
    api = make_api(FakeBackend(n_ctx=64), max_queue=1, shift_context=True).start()
    with api.begin({"prompt": "endless", "stream": True}):
        api.wait_for(n_processing=1)
        with api.begin({"prompt": "waiting"}):
            api.wait_for(n_processing=1, n_deferred=1)
            answer = api.post("/completion", {"prompt": "one too many"})
            assert answer.status == 503 and answer.error["type"] == "unavailable_error"
    api.wait_for(0, 0)


def test_prompts_are_kept_in_a_folder_when_asked_for(make_api, tmp_path):
    folder = tmp_path / "prompts"
    api = make_api(FakeBackend(), ("--log-prompts-dir", str(folder))).start()
    api.complete("héllo", 1)
    api.complete([1, 2, 3], 1)
    texts = [path.read_text("utf-8") for path in sorted(folder.iterdir())]
    assert texts[0] == "héllo" and json.loads(texts[1]) == [1, 2, 3]
    folder.rename(tmp_path / "moved")
    folder.write_text("a file is in the way")
    assert api.complete("still served", 1)["stop"] is True
