"""POST /v1/chat/completions over HTTP: messages, every field, and the exact form of answers.

The fake model's text depends on every token of the prompt. It has no chat template, so the default ChatML is used.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from server.api.request.text_request import TextRequest
from tests.api.openai_wire import DONE, chatml, choices, chunks, contents, events, said
from tests.fakes import BOS, N_VOCAB, FakeBackend
from tests.fakes import answer as answers
from tests.support import wait_until

URL = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
HI_PROMPT = chatml(("user", "hi"))
REPLY = "assistant\n"  # the end of a ChatML prompt: behind it the made-up models begin to talk


TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]


def ask(api, messages=HI, max_tokens: int | None = 6, **fields: object) -> dict:
    """A plain answer that must succeed."""
    answer = api.post(URL, {"messages": messages, "max_tokens": max_tokens, **fields})
    assert answer.status == 200, answer
    return answer.json()


def text_of(api, messages=HI, **fields: object) -> str:
    return ask(api, messages, **fields)["choices"][0]["message"]["content"]


def stream(api, messages=HI, max_tokens: int | None = 6, **fields: object) -> list[dict]:
    """The chunks of a stream that must end well."""
    return chunks(api.post(URL, {"messages": messages, "max_tokens": max_tokens, "stream": True, **fields}))


def refuse(api, **body: object) -> dict:
    """The error of a request that must be refused before the engine hears of it."""
    n_started = len(api.backend.samplers)
    answer = api.post(URL, {"messages": HI, "max_tokens": 1, **body})
    assert answer.status == 400, answer
    assert len(api.backend.samplers) == n_started, "the engine was bothered with it"
    return answer.error


def talker(make_api, text: str | bytes, *argv: str, **meta: str):
    """A server whose model answers with `text`."""
    backend = FakeBackend(answers(text, REPLY))
    backend.info = replace(backend.info, meta=meta)
    return make_api(backend, argv).start()


# ---- messages ----------------------------------------------------------------------------------------------------


@pytest.mark.covers("Q36")
@pytest.mark.parametrize(
    "pairs",
    [
        [("user", "hi")],
        [("system", "be brief"), ("user", "hi")],
        [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "ç 😀")],
        [("user", "")],
    ],
    ids=repr,
)
def test_the_answer_goes_on_from_exactly_this_prompt(api, pairs):
    messages = [{"role": role, "content": content} for role, content in pairs]
    prompt = chatml(*pairs)
    result = ask(api, messages, 7)
    assert result["choices"][0]["message"] == {"role": "assistant", "content": said(prompt, 7)}
    assert result["usage"]["prompt_tokens"] == len(prompt.encode()) + 1
    assert api.post("/apply-template", {"messages": messages}).json() == {"prompt": prompt}
    tokens = api.post(URL + "/input_tokens", {"messages": messages}).json()
    assert tokens == {"object": "response.input_tokens", "input_tokens": len(prompt.encode()) + 1}


def test_content_in_parts_is_the_same_as_the_text(api):
    for parts, text in ((["hi"], "hi"), (["h", "i"], "h\ni"), (["", "hi"], "hi")):
        content = [{"type": "text", "text": part} for part in parts]
        assert text_of(api, [{"role": "user", "content": content}]) == text_of(api, [{"role": "user", "content": text}])


def test_a_refusal_that_comes_back_is_what_the_assistant_said(api):
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    said_before = [*HI, {"role": "assistant", "content": parts}, *HI]
    assert text_of(api, said_before) == said(chatml(("user", "hi"), ("assistant", "a\nb"), ("user", "hi")), 6)
    parts[1] = {"type": "refusal", "refusal": None}
    assert "messages[1].content[1] has no text" in refuse(api, messages=said_before)["message"]


def test_special_tokens_that_a_user_types_are_only_text(api):
    """With BOS's name in a message the prompt's tokens are bytes, in a prompt they would be BOS."""
    prompt = chatml(("user", "a<s>b</s>"))
    result = ask(api, [{"role": "user", "content": "a<s>b</s>"}], 6)
    assert result["choices"][0]["message"]["content"] == said([BOS, *prompt.encode()], 6)
    assert result["usage"]["prompt_tokens"] == len(prompt.encode()) + 1


def test_an_answer_that_has_begun_is_continued(api):
    messages = [*HI, {"role": "assistant", "content": "Once"}]
    assert text_of(api, messages) == said(HI_PROMPT + "Once", 6)
    assert text_of(api, messages, continue_final_message=True) == said(HI_PROMPT + "Once", 6)
    closed = chatml(("user", "hi"), ("assistant", "Once"))
    assert text_of(api, messages, continue_final_message=False) == said(closed, 6)
    no_prompt = closed.removesuffix("<|im_start|>assistant\n")
    assert text_of(api, messages, add_generation_prompt=False) == said(no_prompt, 6)


def test_bad_messages_are_a_400(api):
    for messages in (
        None,
        [],
        {},
        "hi",
        [5],
        [{"role": "user"}],
        [{"role": 5, "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
    ):
        error = refuse(api, messages=messages)
        assert error["type"] == "invalid_request_error" and "messages" in error["message"]
        for path in ("/apply-template", URL + "/input_tokens"):
            assert api.post(path, {"messages": messages}).error["message"] == error["message"]


def test_without_messages_there_is_no_chat(api):
    answer = api.post(URL, {"prompt": "x"})
    assert answer.status == 400 and "messages" in answer.error["message"]


@pytest.mark.parametrize("body", [[], "text", 5, None, True], ids=repr)
@pytest.mark.parametrize("path", [URL, URL + "/input_tokens", "/apply-template", "/v1/completions"])
def test_a_body_that_is_no_object_is_refused(api, path, body):
    assert api.post(path, b"null" if body is None else body).error["code"] == 400


@pytest.mark.parametrize("path", ["/chat/completions", "/chat/completions/input_tokens"])
def test_the_routes_are_there_without_v1_too(api, path):
    answer = api.post(path, {"messages": HI, "max_tokens": 2})
    assert answer.status == 200 and answer.json()["object"] in ("chat.completion", "response.input_tokens")


# ---- templates ---------------------------------------------------------------------------------------------------

LOOP = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ tools | length if tools else '' }}{{ extra }}"
)


def prompt_of(api, messages=HI, **fields: object) -> str:
    answer = api.post("/apply-template", {"messages": messages, **fields})
    assert answer.status == 200, answer
    return answer.json()["prompt"]


def test_the_models_template_and_that_for_tools(make_api):
    meta = {"tokenizer.chat_template": LOOP, "tokenizer.chat_template.tool_use": "with {{ tools[0].function.name }}"}
    api = talker(make_api, "x", **meta)
    assert prompt_of(api) == "<user>hi"
    assert prompt_of(api, tools=[{"type": "function", "function": {"name": "f"}}]) == "with f"


def test_template_variables_of_a_request(make_api):
    api = talker(make_api, "x", **{"tokenizer.chat_template": LOOP})
    assert prompt_of(api, chat_template_kwargs={"extra": "!"}, tools=TOOLS).endswith("<user>hi2!")


def test_template_variables_of_the_command_line_yield_to_those_of_a_request(make_api):
    api = talker(make_api, "x", "--chat-template-kwargs", '{"extra": "!"}', **{"tokenizer.chat_template": LOOP})
    assert prompt_of(api) == "<user>hi!"
    assert prompt_of(api, chat_template_kwargs={"extra": "?"}) == "<user>hi?"


@pytest.mark.parametrize("argv", [("--chat-template", "{{ 'jinja' }}"), ("--chat-template-file", "FILE")])
def test_a_template_of_the_command_line(make_api, tmp_path, argv):
    file = tmp_path / "t.jinja"
    file.write_text("{{ 'jinja' }}", "utf-8")
    argv = [str(file) if word == "FILE" else word for word in argv]
    assert prompt_of(talker(make_api, "x", *argv, **{"tokenizer.chat_template": LOOP})) == "jinja"


def test_without_jinja_libllama_renders(make_api):
    assert prompt_of(talker(make_api, "x", "--no-jinja")) == "[user]hi[assistant]"


def test_a_model_without_template_is_warned_of_once(make_api, caplog):
    api = talker(make_api, "x")
    with caplog.at_level("WARNING", "llama_srv"):
        assert prompt_of(api) == prompt_of(api) == HI_PROMPT
    assert len([record for record in caplog.records if "ChatML" in record.getMessage()]) == 1


def test_a_template_that_refuses_is_a_400_with_the_message(make_api):
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no answer') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    api = talker(make_api, "x", "--chat-template", source)
    error = refuse(api, messages=[*HI, {"role": "assistant", "content": "x"}, *HI])
    assert "no answer" in error["message"] and error["param"] == "messages[1]"
    assert text_of(api) is not None


def test_a_template_that_cannot_be_compiled_is_the_servers_fault(make_api):
    api = talker(make_api, "x", "--chat-template", "{% for %}")
    answer = api.post(URL, {"messages": HI})
    assert answer.status == 500 and "line 1" in answer.error["message"]
    assert api.complete("x", 1)["stop"] is True


# ---- the plain answer --------------------------------------------------------------------------------------------


@pytest.mark.covers("E07")
def test_every_field_of_a_plain_answer(api):
    result = ask(api, max_tokens=5, model="gpt-3.5-turbo")
    usage = {
        "prompt_tokens": len(HI_PROMPT) + 1,
        "completion_tokens": 5,
        "total_tokens": len(HI_PROMPT) + 6,
        "prompt_tokens_details": {"cached_tokens": result["usage"]["prompt_tokens_details"]["cached_tokens"]},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert result.pop("id").startswith("chatcmpl-") and abs(result.pop("created") - api.context.started) < 10_000
    assert {"prompt_n", "prompt_ms", "predicted_n", "predicted_per_second", "cache_n"} <= set(result.pop("timings"))
    assert set(result.pop("cache")) == {"source", "reason", "first_difference"}
    assert result == {
        "object": "chat.completion",
        "model": "gpt-3.5-turbo",
        "system_fingerprint": "b-fake",
        "usage": usage,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": said(HI_PROMPT, 5)},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
    }


def test_usage_tells_what_came_from_the_cache(make_api):
    api = make_api().start()
    assert ask(api)["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    cached = ask(api)["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached <= len(HI_PROMPT)
    assert ask(api, cache_prompt=False)["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_each_answer_has_its_own_id(api):
    assert ask(api)["id"] != ask(api)["id"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({}, "stop"), ({"max_tokens": 3}, "length"), ({"stop": "lo"}, "stop"), ({"max_tokens": 0}, "length")],
    ids=repr,
)
def test_finish_reasons(make_api, fields, reason):
    api = talker(make_api, "hello")
    fields = {"max_tokens": None, **fields}
    assert ask(api, **fields)["choices"][0]["finish_reason"] == reason
    assert choices(stream(api, **fields))[-1]["finish_reason"] == reason


@pytest.mark.covers("Q35")
def test_any_model_name_is_accepted_and_echoed(api):
    for name in ("gpt-3.5-turbo", "no such model", "größe/😀"):
        assert ask(api, model=name)["model"] == name
        assert {chunk["model"] for chunk in stream(api, model=name)} == {name}
    for body in ({}, {"model": None}, {"model": ""}):
        assert ask(api, **body)["model"] == "fake.gguf"


def test_an_alias_is_the_models_name_in_answers(make_api):
    api = make_api(argv=("-a", "small, large")).start()
    assert ask(api, model="gpt-3.5-turbo")["model"] == ask(api)["model"] == "small"
    assert ask(api, model="large")["model"] == "large"
    assert {chunk["model"] for chunk in stream(api, model="x")} == {"small"}
    models = api.get("/v1/models").json()
    [listed], [named] = models["data"], models["models"]
    assert models["object"] == "list" and (listed["id"], listed["aliases"]) == ("small", ["small", "large"])
    assert (named["name"], named["capabilities"]) == ("small", listed["capabilities"])
    assert api.get("/v1/models/large").json() == listed and api.get("/v1/models/x").status == 404
    assert api.get("/models").json() == models


def test_verbose_shows_the_native_answer(make_api):
    api = talker(make_api, "hello", "-v")
    native = ask(api, max_tokens=None)["__verbose"]
    assert (native["content"], native["prompt"], native["stop_type"]) == ("hello", HI_PROMPT, "eos")
    assert [choice["content"] for choice in ask(api, max_tokens=None, n=2)["__verbose"]] == ["hello", "hello"]
    found = stream(api, max_tokens=None)
    assert found[-1]["__verbose"]["generation_settings"]["stream"] is True
    assert [chunk for chunk in found if "__verbose" in chunk] == found[-1:]


def test_without_verbose_nobody_sees_it(api):
    assert "__verbose" not in ask(api) and not any("__verbose" in chunk for chunk in stream(api))


# ---- the stream --------------------------------------------------------------------------------------------------


def test_every_field_of_a_stream(api):
    found = stream(api, max_tokens=4)
    text = said(HI_PROMPT, 4)
    heads = [
        {name: chunk[name] for name in ("id", "created", "model", "object", "system_fingerprint")} for chunk in found
    ]
    assert heads == [heads[0]] * len(found) and heads[0]["object"] == "chat.completion.chunk"
    deltas = [{"role": "assistant", "content": None}, *({"content": letter} for letter in text), {}]
    assert [choice["delta"] for choice in choices(found)] == deltas
    assert [choice["finish_reason"] for choice in choices(found)] == [None] * 5 + ["length"]
    assert all(choice["logprobs"] is None for choice in choices(found))
    assert not any("usage" in chunk for chunk in found)
    assert [("timings" in chunk, "cache" in chunk) for chunk in found] == [(False, False)] * 5 + [(True, True)]


def test_usage_comes_in_a_chunk_of_its_own(api):
    found = stream(api, stream_options={"include_usage": True})
    assert found[-1]["choices"] == [] and found[-1]["usage"]["completion_tokens"] == 6
    assert found[-1]["usage"]["prompt_tokens"] == len(HI_PROMPT) + 1
    assert not any("usage" in chunk for chunk in found[:-1])
    assert found[-1]["id"] == found[0]["id"]
    for options in ({}, {"include_usage": False}, None, {"other": 1}):
        assert not any("usage" in chunk for chunk in stream(api, stream_options=options))


@pytest.mark.parametrize(
    "text", ["hello", "", "naïve 😀 世界", b"\xff\xfe!", "a\n\nb\r\n", "data: [DONE]\n\n"], ids=repr
)
def test_a_stream_has_the_text_of_the_plain_answer(make_api, text):
    api = talker(make_api, text)
    expected = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    assert ask(api, max_tokens=None)["choices"][0]["message"]["content"] == expected
    found = stream(api, max_tokens=None)
    assert contents(found) == expected
    assert choices(found)[0]["delta"] == {"role": "assistant", "content": None}
    assert choices(found)[-1] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}


def test_several_clients_at_once_get_what_each_gets_alone(api):
    conversations = [[{"role": "user", "content": f"client {i} says hi"}] for i in range(8)]
    alone = [text_of(api, messages, max_tokens=20) for messages in conversations]
    asks = [lambda m=m: text_of(api, m, max_tokens=20) for m in conversations]
    streams = [lambda m=m: contents(stream(api, m, 20)) for m in conversations]
    assert api.at_the_same_time(*asks, *streams) == alone * 2


@pytest.mark.parametrize("n", [1, 2, 5])
def test_several_answers_interleave_with_their_index(api, n):
    plain = ask(api, n=n)
    assert [choice["index"] for choice in plain["choices"]] == list(range(n))
    assert plain["usage"]["completion_tokens"] == 6 * n and plain["usage"]["prompt_tokens"] == len(HI_PROMPT) + 1
    found = stream(api, n=n, stream_options={"include_usage": True})
    usage = found[-1]["usage"]
    assert usage == {**plain["usage"], "prompt_tokens_details": usage["prompt_tokens_details"]}
    for index in range(n):
        mine = choices(found, index)
        assert contents(found, index) == plain["choices"][index]["message"]["content"] == said(HI_PROMPT, 6)
        assert mine[0]["delta"] == {"role": "assistant", "content": None} and mine[-1]["delta"] == {}
        assert [choice["finish_reason"] for choice in mine[:-1]] == [None] * (len(mine) - 1)
        assert not any("role" in choice["delta"] for choice in mine[1:])
    order = [choice["index"] for chunk in found for choice in chunk["choices"]]
    if n > 1:
        assert order != sorted(order), "one answer after the other"
    assert len({chunk["id"] for chunk in found}) == 1


def test_progress_of_the_prompt_comes_behind_the_role(api):
    found = stream(api, [{"role": "user", "content": "x" * 900}], 3, return_progress=True, cache_prompt=False)
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    reports = [chunk for chunk in found if "prompt_progress" in chunk]
    assert reports and all(chunk["choices"][0]["delta"] == {} for chunk in reports)
    assert reports[-1]["prompt_progress"]["processed"] == reports[-1]["prompt_progress"]["total"] > 900


def test_timings_with_each_token_if_asked_for(api):
    assert all("timings" in chunk for chunk in stream(api, timings_per_token=True)[1:])


def test_an_error_before_the_first_chunk_has_its_status(make_api):
    api = make_api().start()
    api.backend.fail_at[1] = -1
    answer = api.post(URL, {"messages": HI, "stream": True})
    assert answer.status == 500 and answer.error["type"] == "server_error"


@pytest.mark.parametrize("path", [URL, "/v1/completions"])
def test_an_error_after_the_first_chunk_is_an_error_event_and_the_last(make_api, path):
    api = make_api().start()
    api.backend.fail_at[4] = -1
    found = events(api.post(path, {"messages": HI, "prompt": "hi", "stream": True, "max_tokens": 9}))
    name, body = found[-1]
    assert name == "error" and body["error"]["code"] == 500 and body["error"]["type"] == "server_error"
    assert DONE not in found and not any(isinstance(event, tuple) for event in found[:-1])
    wait_until(api.is_idle, "the slot to be idle")
    assert text_of(api) == said(HI_PROMPT, 6)


@pytest.mark.parametrize("path", [URL, "/v1/completions"])
def test_a_quiet_stream_is_kept_alive_by_pings(make_api, monkeypatch, path):
    monkeypatch.setattr(TextRequest, "ping_s", 0.01)
    api = make_api().start()
    api.backend.hold()
    body = json.dumps({"messages": HI, "prompt": "hi", "stream": True, "max_tokens": 2}).encode()
    client = api.connect()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    heard = b""
    while heard.count(b": ping\n\n") < 3:
        more = client.recv(4096)
        assert more, heard
        heard += more
    assert heard.startswith(b"HTTP/1.1 200") and b"data:" not in heard
    api.backend.go()
    while not heard.endswith(b"0\r\n\r\n"):
        heard += client.recv(4096)
    assert b"data: [DONE]\n\n" in heard
    client.close()


# ---- fields ------------------------------------------------------------------------------------------------------


@pytest.mark.covers("Q42")
@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me"},
        {"user": 5},
        {"metadata": {"a": "b"}},
        {"store": True},
        {"service_tier": "auto"},
        {"parallel_tool_calls": True},
        {"modalities": ["text"]},
        {"prediction": None},
        {"reasoning_effort": "low"},
        {"no_such_field": [1, {}]},
        {"functions": []},
        {"verbosity": "low"},
        {"prompt_cache_key": "x"},
        {"response_format": {"type": "text"}},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"tools": []},
        {"reasoning_format": "none"},
        {"suffix": None},
        {"echo": None},
        {"prompt": "ignored"},
    ],
    ids=repr,
)
def test_what_is_not_for_this_server_is_ignored(api, fields):
    assert text_of(api, **fields) == said(HI_PROMPT, 6)


NULLABLE = (
    "model",
    "max_completion_tokens",
    "stop",
    "stream",
    "seed",
    "temperature",
    "top_p",
    "n",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "response_format",
    "stream_options",
    "tools",
    "tool_choice",
    "user",
    "metadata",
    "chat_template_kwargs",
    "grammar",
    "json_schema",
    "regex",
    "choice",
)


@pytest.mark.parametrize("name", NULLABLE)
def test_null_is_as_good_as_nothing(api, name):
    assert text_of(api, **{name: None}) == said(HI_PROMPT, 6)


WRONG = {
    "model": (5, True, [], {}),
    "max_tokens": ("many", 1.5, True, [1], -2),
    "max_completion_tokens": ("many", 1.5, True, [1]),
    "stream": ("yes", 1, []),
    "stream_options": (True, "x", [], {"include_usage": "yes"}),
    "temperature": ("hot", True, [1]),
    "top_p": ("x", True, 1.1, -0.1),
    "n": ("two", 0, 1.5, True, 129),
    "seed": ("x", 1.5, True, 2**63, []),
    "stop": (5, True, [5], {"a": "b"}),
    "presence_penalty": ("x", True, []),
    "frequency_penalty": ("x", True, []),
    "logit_bias": (5, True, [5], {"5": "x"}, {str(N_VOCAB): 1}),
    "logprobs": (1, "yes", []),
    "top_logprobs": (3, "x", True, -1, 101, 1.5),
    "tools": ({}, "x", ["x"]),
    "tool_choice": ("required", {"type": "function", "function": {"name": "f"}}, 5),
    "response_format": ("json", 5, [], {}, {"type": 5}, {"type": "xml"}, {"type": "json_schema"}),
    "chat_template_kwargs": ("x", []),
    "add_generation_prompt": ("x", 1),
    "continue_final_message": ("x", 1),
    "reasoning_format": (5, "x"),
    "top_k": ("x", True),
    "cache_prompt": ("x", 1),
    "grammar": (5, True),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values], ids=repr
)
def test_a_field_of_the_wrong_type_is_refused_by_name(api, name, value):
    error = refuse(api, **{"max_tokens": None, name: value})
    assert name in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_all_names_of_the_limit(api, name):
    assert ask(api, **{"max_tokens": None, name: 3})["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stop", ["lo", ["x", "lo"], ["lo", "zzz"], [""], "", []], ids=repr)
def test_stop_is_a_string_or_a_list(make_api, stop):
    api = talker(make_api, "hello world")
    expected = "hel" if "lo" in stop else "hello world"
    assert text_of(api, max_tokens=None, stop=stop) == expected
    assert contents(stream(api, max_tokens=None, stop=stop)) == expected


def last_settings(api) -> dict:
    """The generation settings of the latest task."""
    slots = api.get("/slots").json()
    return max(slots, key=lambda slot: slot["id_task"])


def test_sampling_fields_reach_the_sampler(make_api):
    api = make_api().start()
    wanted = {
        "temperature": 0.5,
        "top_p": 0.25,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": 7,
        "top_k": 3,
        "min_p": 0.125,
        "mirostat": 2,
        "repeat_penalty": 1.5,
        "ignore_eos": True,
    }
    ask(api, **wanted)
    got = last_settings(api)
    assert {name: got[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("bias", "expected"),
    [({"97": 1}, [[97, 1.0]]), ({"a": -100}, [[97, -100.0]]), ([[97, 1.5]], [[97, 1.5]]), ({}, [])],
    ids=repr,
)
def test_logit_bias_as_an_object_or_pairs(make_api, bias, expected):
    api = make_api().start()
    ask(api, logit_bias=bias)
    assert last_settings(api)["logit_bias"] == expected


@pytest.mark.parametrize(
    ("seed", "used"),
    [(5, 5), (2**32 - 1, 2**32 - 1), (2**32, 0), (2**63 - 1, 2**32 - 1), (-2, 2**32 - 2), (-(2**63) + 1, 1)],
)
def test_seeds_of_64_bits_are_taken(make_api, seed, used):
    api = make_api().start()
    ask(api, seed=seed)
    assert last_settings(api)["seed"] == used


def test_several_answers_have_seeds_of_their_own(make_api):
    api = make_api(FakeBackend(n_slots=2)).start()
    ask(api, seed=5, n=2)
    assert sorted(slot["seed"] for slot in api.get("/slots").json()) == [5, 6]


# ---- log-probabilities -------------------------------------------------------------------------------------------


def token(text: str, logprob: float = 0.0, **more: object) -> dict:
    return {"id": ord(text), "token": text, "bytes": list(text.encode()), "logprob": logprob, **more}


def test_log_probabilities_of_a_chat(make_api):
    api = talker(make_api, "ab")
    logprobs = ask(api, max_tokens=None, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]
    assert logprobs == {
        "refusal": None,
        "content": [
            token("a", top_logprobs=[token("a"), token("b", -10.0)]),
            token("b", top_logprobs=[token("b"), token("c", -10.0)]),
        ],
    }
    found = stream(api, max_tokens=None, logprobs=True, top_logprobs=2)
    streamed = [choice["logprobs"] for choice in choices(found) if choice["logprobs"]]
    assert [one for part in streamed for one in part["content"]] == logprobs["content"]


@pytest.mark.parametrize("fields", [{"logprobs": True}, {"logprobs": True, "top_logprobs": 0}])
def test_log_probabilities_without_rivals(make_api, fields):
    logprobs = ask(talker(make_api, "ab"), max_tokens=None, **fields)["choices"][0]["logprobs"]
    assert logprobs["content"] == [token("a", top_logprobs=[]), token("b", top_logprobs=[])]


@pytest.mark.parametrize("fields", [{}, {"logprobs": False}, {"logprobs": False, "top_logprobs": 0}])
def test_no_log_probabilities_unless_asked_for(api, fields):
    assert ask(api, **fields)["choices"][0]["logprobs"] is None
    assert all(choice["logprobs"] is None for choice in choices(stream(api, **fields)))


def test_the_native_field_gives_log_probabilities_too(make_api):
    logprobs = ask(talker(make_api, "ab"), max_tokens=None, n_probs=2)["choices"][0]["logprobs"]
    assert [len(one["top_logprobs"]) for one in logprobs["content"]] == [2, 2]


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("hello", None),
        ("naïve 😀!", None),
        (b"\xff\xe2\x82", None),
        ("hello world", "lo w"),
        ("hello", "x"),
        ("aab", "ab"),
        ("héé!", "é!"),
    ],
)
def test_log_probabilities_are_those_of_the_text_alone(make_api, text, stop):
    """Neither the end's token nor a stop word's are in them; halves of characters wait for the whole."""
    api = talker(make_api, text)
    fields = {"max_tokens": None, "logprobs": True, "stop": stop}
    plain = ask(api, **fields)["choices"][0]
    told = plain["message"]["content"]
    spoken = b"".join(bytes(one["bytes"]) for one in plain["logprobs"]["content"])
    assert spoken.decode("utf-8", "replace") == told
    found = choices(stream(api, **fields))
    for choice in found[1:-1]:
        part = b"".join(bytes(one["bytes"]) for one in choice["logprobs"]["content"])
        assert part.decode("utf-8", "replace") == choice["delta"]["content"]
    assert found[-1]["logprobs"] is None and contents([{"choices": found}]) == told


def test_probabilities_after_sampling_are_allowed(api):
    assert ask(api, n_probs=1, post_sampling_probs=True)["choices"][0]["logprobs"]["content"]
