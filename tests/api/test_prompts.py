"""Prompts as today's clients send them: forms that the documents don't have, several answers, progress, timings.

`test_completion.py` tests the documented forms and single fields.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from server.api.serialize import make_timings_json
from server.engine.seam.task import Timings
from tests.fakes import BOS, EOS, FakeBackend, letters, said_by


def said(tokens: list[int], n: int) -> str:
    return bytes(said_by(letters, tokens, n)).decode()


def text(prompt: str) -> list[int]:
    return [BOS, *prompt.encode()]


# ---- forms of prompts --------------------------------------------------------------------------------------------


@pytest.mark.covers("Q01")
@pytest.mark.parametrize(
    ("prompt", "sequences"),
    [
        ({"prompt_string": "one"}, None),
        ([{"prompt_string": "one"}], [text("one")]),
        (
            [{"prompt_string": "one"}, "two", [104, 105], ["th", 114]],
            [text("one"), text("two"), [104, 105], text("thr")],
        ),
        ([[104, "i"], [BOS]], [list(b"hi"), [BOS]]),
        (["one", "two"], [text("one"), text("two")]),
        (["one", 116], None),
    ],
    ids=repr,
)
def test_one_prompt_gets_an_object_and_several_get_a_list_in_their_order(api, prompt, sequences):
    answer = api.post("/completion", {"prompt": prompt, "n_predict": 4}).json()
    if sequences is None:
        assert answer["content"] == said(text("one" if isinstance(prompt, dict) else "onet"), 4)
        assert answer["prompt"] == prompt
        return
    assert [one["content"] for one in answer] == [said(tokens, 4) for tokens in sequences]
    assert [one["index"] for one in answer] == list(range(len(sequences)))
    assert [one["tokens_evaluated"] for one in answer] == [len(tokens) for tokens in sequences]


@pytest.mark.parametrize(
    "prompt",
    [
        [{"prompt_string": 5}],
        [{}],
        [[104], {"x": "y"}],
        [["a", [1]]],
        [[1.5]],
        ["a", None],
        [None, "a"],
        [[True]],
        [["a", {"prompt_string": "x"}]],
    ],
    ids=repr,
)
def test_what_is_no_list_of_prompts_is_refused(api, prompt):
    assert "prompt" in api.refuse(prompt=prompt)["message"]


def test_a_prompt_with_media_needs_a_projector(api):
    message = api.refuse(prompt={"prompt_string": "<__media__>", "multimodal_data": ["AAAA"]})["message"]
    assert message.startswith("prompt.multimodal_data[0]: ") and "--mmproj" in message


def test_there_is_a_limit_to_the_number_of_prompts(api):
    assert "1024" in api.refuse(prompt=["x"] * 1025)["message"]


def test_many_prompts_on_two_slots_are_all_answered_in_order(api):
    prompts = [f"prompt {i}" for i in range(30)]
    answers = api.post("/completion", {"prompt": prompts, "n_predict": 3}).json()
    assert [answer["content"] for answer in answers] == [said(text(prompt), 3) for prompt in prompts]


# ---- several answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["n_cmpl", "n"])
def test_each_of_several_prompts_may_have_several_answers(api, name):
    answers = api.post("/completion", {"prompt": ["one", "two"], "n_predict": 2, name: 2, "seed": 4}).json()
    assert [answer["index"] for answer in answers] == [0, 1, 2, 3]
    assert [answer["content"] for answer in answers] == [said(text(t), 2) for t in ("one", "one", "two", "two")]
    assert [answer["generation_settings"]["seed"] for answer in answers] == [4, 5, 4, 5]


def test_several_answers_in_one_stream_are_told_apart(api):
    events = api.stream("one", 3, n_cmpl=3)
    for index in range(3):
        own = [event for event in events if event["index"] == index]
        assert "".join(event["content"] for event in own) == said(text("one"), 3)
        assert [event["stop"] for event in own] == [False] * (len(own) - 1) + [True]


@pytest.mark.parametrize("n", [0, 129, "two", 1.5])
def test_a_wrong_number_of_answers_is_refused(api, n):
    assert "n_cmpl" in api.refuse(n_cmpl=n)["message"]


# ---- fields of answers -------------------------------------------------------------------------------------------


def test_wanted_fields_are_flat_and_hold_for_every_answer(api):
    fields = ["index", "generation_settings/n_predict", "timings/predicted_n", "stop_type", "timings/none", "content/x"]
    answers = api.post("/completion", {"prompt": ["one", "two"], "n_predict": 3, "response_fields": fields}).json()
    assert answers == [
        {"index": i, "generation_settings/n_predict": 3, "timings/predicted_n": 3, "stop_type": "limit"}
        for i in range(2)
    ]


def test_tokens_are_in_every_piece_of_a_stream_and_in_the_plain_answer_only_when_wanted(api):
    expected = said_by(letters, text("one"), 5)
    for fields in ({}, {"return_tokens": True}, {"n_probs": 1}):
        events = api.stream("one", 5, **fields)
        assert [token for event in events[:-1] for token in event["tokens"]] == expected
        assert events[-1]["tokens"] == []
    assert api.complete("one", 5)["tokens"] == []
    assert api.complete("one", 5, return_tokens=True)["tokens"] == expected


def test_no_tokens_are_predicted_when_none_are_wanted(make_api):
    api = make_api(FakeBackend()).start()
    result = api.complete("some words", 0, return_tokens=True)
    assert (result["content"], result["tokens"], result["tokens_predicted"]) == ("", [], 0)
    assert (result["stop_type"], result["tokens_evaluated"], result["tokens_cached"]) == ("limit", 11, 11)
    assert api.complete("some words", 1)["timings"]["prompt_n"] == 1, "but the prompt is in the cache"


def test_the_settings_shown_are_those_that_took_effect(api):
    """What a request said in its own way is shown as what was done about it."""
    settings = api.complete("one", 1, ignore_eos=True, logit_bias=[["a", -0.5]])["generation_settings"]
    assert settings["ignore_eos"] is True and settings["logit_bias"] == [[97, -0.5], [EOS, False]]
    assert api.complete("one", 1, logit_bias=[["5", 2]])["generation_settings"]["logit_bias"] == [[53, 2.0]], "a text"
    assert api.complete("one", 1, logit_bias={"5": 2})["generation_settings"]["logit_bias"] == [[5, 2.0]], "an id"
    settings = api.complete("one", 1, penalty_prompt="ab", samplers="kpt")["generation_settings"]
    assert (settings["penalty_prompt_tokens"], settings["use_penalty_prompt_tokens"]) == ([97, 98], True)
    assert settings["samplers"] == ["top_k", "top_p", "temperature"]


# ---- progress ----------------------------------------------------------------------------------------------------


def test_progress_begins_at_what_is_cached_and_ends_at_the_total(make_api):
    api = make_api(FakeBackend(n_batch=8)).start()
    api.complete("a prompt of some length", 0)
    for more, n_cached in (("", 23), (" and more of it", 24), ("", 38)):
        prompt = "a prompt of some length" + (more or (" and more of it" if n_cached == 38 else ""))
        events = api.stream(prompt, 1, return_progress=True)
        progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
        total = len(text(prompt))
        assert (progress[0]["processed"], progress[0]["cache"]) == (n_cached, n_cached)
        assert progress[-1]["processed"] == total and {p["total"] for p in progress} == {total}
        assert [p["processed"] for p in progress] == sorted(p["processed"] for p in progress)
        assert all(p["time_ms"] >= 0 and p["cache"] == n_cached for p in progress)


def test_there_is_no_progress_in_a_plain_answer_nor_unasked(api):
    assert "prompt_progress" not in api.complete("one", 2, return_progress=True)
    assert not any("prompt_progress" in event for event in api.stream("one", 2))


# ---- timings -----------------------------------------------------------------------------------------------------


def test_rates_are_over_the_steps_between_tokens():
    timings = make_timings_json(Timings(cache_n=3, prompt_n=10, prompt_ms=50.0, predicted_n=5, predicted_ms=80.0))
    assert (timings["prompt_per_second"], timings["prompt_per_token_ms"]) == (200.0, 5.0)
    assert (timings["predicted_per_second"], timings["predicted_per_token_ms"]) == (50.0, 20.0)
    assert timings["cache_n"] == 3


@pytest.mark.parametrize(("n", "ms"), [(0, 0.0), (1, 0.0), (1, 5.0), (2, 0.0)])
def test_without_a_step_or_time_the_rate_is_zero(n, ms):
    timings = make_timings_json(Timings(0, n, 0.0, n, ms))
    assert all(math.isfinite(value) for value in timings.values())
    if n < 2 or not ms:
        assert timings["predicted_per_second"] == 0.0


@pytest.mark.parametrize(
    "fields",
    [{"n_predict": 0}, {"n_predict": 1}, {"n_predict": 2}, {"prompt": []}, {"n_predict": 3, "cache_prompt": False}],
    ids=repr,
)
def test_timings_are_numbers_whatever_was_asked(api, fields):
    for stream in (False, True):
        body = {"prompt": "one", **fields, "stream": stream, "n_predict": fields.get("n_predict", 1)}
        answer = api.post("/completion", body)
        timings = (answer.events()[-1] if stream else answer.json())["timings"]
        assert all(type(value) in (int, float) and math.isfinite(value) for value in timings.values()), timings
        if body["n_predict"] == 1:
            assert timings["predicted_per_second"] == 0


# ---- both generations side by side -------------------------------------------------------------------------------


@pytest.mark.covers("X2", "X3")
def test_old_and_new_fields_say_the_same(api):
    for fields in ({"n_predict": 3}, {"n_predict": 30, "stop": [said(text("one"), 5)[-2:]]}):
        result = api.complete("one", **{**fields, "n_probs": 2})
        kinds = {kind for kind in ("eos", "limit", "word") if result[f"stopped_{kind}"]}
        assert kinds == {result["stop_type"]}
        for item in result["completion_probabilities"]:
            assert item["content"] == item["token"] and len(item["probs"]) == len(item["top_logprobs"]) == 2
            assert [prob["tok_str"] for prob in item["probs"]] == [top["token"] for top in item["top_logprobs"]]
            assert item["probs"][0]["prob"] == pytest.approx(math.exp(item["top_logprobs"][0]["logprob"]))


@pytest.mark.covers("C09", "X4")
def test_the_model_is_named_by_its_alias_if_it_has_one(make_api):
    for argv, name in (((), "fake.gguf"), (("-a", "gpt-4,other"), "gpt-4")):
        api = make_api(None, argv).start()
        result = api.complete("one", 1)
        assert result["model"] == result["generation_settings"]["model"] == name
        assert api.get("/slots").json()[0]["model"] == name
        assert api.get("/v1/models").json()["data"][0]["id"] == name


@pytest.mark.covers("X5", "X6")
def test_a_slot_has_the_old_flat_keys_and_the_new_ones(api):
    result = api.complete("one", 3, temperature=0.25, id_slot=1)
    slot = api.get("/slots").json()[1]
    assert slot["temperature"] == slot["params"]["temperature"] == 0.25
    assert slot["state"] == int(slot["is_processing"]) == 0 and slot["task_id"] == slot["id_task"] >= 0
    (token,) = slot["next_token"]
    assert token["num_tokens_predicted"] == token["n_decoded"] == result["tokens_predicted"] == 3
    assert (token["stopped_limit"], token["has_next_token"], token["n_remain"]) == (True, False, 0)


@pytest.mark.covers("X10")
def test_the_prompt_comes_back_as_it_was_sent(make_api):
    prompt = ["on", 101]
    for argv in ((), ("-v",)):
        result = make_api(None, argv).start().complete(prompt, 1)
        assert result["prompt"] == prompt
        assert result.get("__prompt_processed") == ("one" if argv else None)


@pytest.mark.covers("C35")
def test_the_command_line_s_limit_holds_for_every_kind_of_request(make_api):
    api = make_api(None, ("--max-predict", "4")).start()
    for fields in ({}, {"n_predict": -1}, {"n_predict": 100}, {"max_tokens": 9}):
        result = api.post("/completion", {"prompt": "one", **fields}).json()
        assert result["tokens_predicted"] == result["generation_settings"]["n_predict"] == 4
    assert api.complete("one", 2)["tokens_predicted"] == 2
    chat = {"messages": [{"role": "user", "content": "one"}], "max_tokens": 50}
    assert api.post("/v1/chat/completions", chat).json()["usage"]["completion_tokens"] == 4


@pytest.mark.covers("C36")
@pytest.mark.parametrize("flag", ["--slots-endpoint-disable", "--no-slots"])
def test_slots_can_be_hidden(make_api, flag):
    api = make_api(None, (flag,)).start()
    answer = api.get("/slots")
    assert (answer.status, answer.error["type"]) == (501, "not_supported_error")
    assert answer.error["message"].startswith("This server does not support slots endpoint.")
    assert "slots" not in api.get("/health?include_slots").json()


# ---- limits of time ----------------------------------------------------------------------------------------------


def test_a_text_that_takes_too_long_ends_once_there_is_a_line_break(make_api):
    def lines(history):
        return 10 if len(history) % 50 == 0 else 97

    api = make_api(FakeBackend(lines, n_ctx=100_000)).start()
    result = api.complete("one", 50_000, t_max_predict_ms=1)
    assert result["stop_type"] == "limit" and 40 < result["tokens_predicted"] < 50_000
    assert api.complete("one", 100, t_max_predict_ms=3_600_000)["tokens_predicted"] == 100
    without = make_api(FakeBackend(lambda history: 97, n_ctx=100_000)).start()
    assert without.complete("one", 2000, t_max_predict_ms=1)["tokens_predicted"] == 2000


def test_a_prompt_that_takes_too_long_ends_without_text(make_api):
    api = make_api(FakeBackend(n_ctx=10_000, n_batch=2)).start()
    result = api.complete("x" * 8000, 5, t_max_prompt_ms=1)
    assert (result["content"], result["tokens_predicted"], result["stop_type"]) == ("", 0, "limit")
    assert api.complete("x" * 8000, 5, t_max_prompt_ms=-1)["tokens_predicted"] == 5


# ---- numbers too large for anything ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt": "x", "logit_bias": [[5, 1%s]]}',
        '{"prompt": "x", "logit_bias": [[1%s, 1]]}',
        '{"prompt": "x", "logit_bias": {"5": -1%s}}',
        '{"prompt": [1%s]}',
        '{"prompt": "x", "seed": 1%s}',
        '{"prompt": "x", "temperature": 1%s}',
        '{"prompt": "x", "stop": [1%s]}',
        '{"prompt": "x", "penalty_prompt": [1%s]}',
        '{"prompt": "x", "id_slot": -1%s}',
    ],
)
def test_huge_numbers_are_a_mistake_of_the_client(api, body):
    answer = api.post("/completion", (body % ("0" * 400)).encode())
    assert answer.status == 400 and len(answer.error["message"]) < 300, answer


def test_huge_scales_of_adapters_are_a_mistake_of_the_client(make_api):
    backend = FakeBackend()
    backend.adapters = ("a.gguf",)
    backend.info = replace(backend.info, adapters=backend.adapters)
    api = make_api(backend).start()
    scale = int("1" + "0" * 400)
    assert api.post("/lora-adapters", [{"id": 0, "scale": scale}]).status == 400
    assert api.post("/completion", {"prompt": "x", "lora": [{"id": 0, "scale": scale}]}).status == 400
    assert json.loads(api.get("/lora-adapters").body)[0]["scale"] == 0.0
