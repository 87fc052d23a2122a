"""POST /v1/messages over HTTP: blocks, every field, and the exact form of answers and errors.

The fake model's text depends on every token of the prompt. It has no chat template, so the default ChatML is used.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.anthropic_wire import events, message_of
from tests.api.openai_wire import chatml, said
from tests.fakes import FakeBackend
from tests.fakes import answer as answers

URL = "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
REPLY = "assistant\n"


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*blocks: object) -> dict:
    return {"role": "user", "content": list(blocks)}


def ask(api, messages: object = HI, max_tokens: int = 6, **fields: object) -> dict:
    """A message that must be the same from a stream, but for its id and what is cached by then."""
    body = {"model": "x", "messages": messages, "max_tokens": max_tokens, **fields}
    answer = api.post(URL, body)
    assert answer.status == 200, answer
    whole = answer.json()
    assert whole["id"].startswith("msg_") and (whole["type"], whole["role"]) == ("message", "assistant")
    streamed = message_of(events(api.post(URL, {**body, "stream": True})))
    assert {**streamed, "id": "", "usage": 0} == {**whole, "id": "", "usage": 0}
    for usage in (whole["usage"], streamed["usage"]):
        assert usage["cache_creation_input_tokens"] == 0
    assert n_input(streamed) == n_input(whole)
    return whole


def n_input(message: dict) -> int:
    usage = message["usage"]
    return usage["input_tokens"] + usage["cache_read_input_tokens"]


def refuse(api, status: int = 400, path: str = URL, **body: object) -> str:
    """What is said about a request that must be refused before the engine hears of it."""
    n_started = len(api.backend.samplers)
    answer = api.post(path, {"messages": HI, "max_tokens": 4, **body})
    assert answer.status == status, answer
    assert len(api.backend.samplers) == n_started, "the engine was bothered with it"
    error = answer.json()
    assert error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
    return error["error"]["message"]


def talker(make_api, words: str, *argv: str, **options: Any):
    """A server whose model answers with `words`."""
    return make_api(FakeBackend(answers(words, REPLY), **options), argv).start()


# ---- what becomes of blocks --------------------------------------------------------------------------------------

RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "12"}
DOCUMENT = {"type": "document", "title": "A", "source": {"type": "text", "media_type": "text/plain", "data": "letter"}}
NESTED = {"type": "document", "source": {"type": "content", "content": [text("x"), text("y")]}}
FOUND = {"type": "search_result", "title": "A", "source": "here", "content": [text("b")]}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}
CONVERSATIONS: dict[str, tuple[object, list[dict], list[tuple[str, str]]]] = {
    "a string": (None, HI, [("user", "hi")]),
    "a block": (None, [user(text("hi"))], [("user", "hi")]),
    "blocks": (None, [user(text("a"), text("b"))], [("user", "a\nb")]),
    "nothing": (None, [user()], [("user", "")]),
    "a system": ("be brief", HI, [("system", "be brief"), ("user", "hi")]),
    "a system in blocks": ([text("be"), {**text("brief"), "cache_control": {"type": "ephemeral"}}], HI,
                           [("system", "be\nbrief"), ("user", "hi")]),
    "a note to whoever sends the bill": ([text("x-anthropic-billing-header: cch=1;"), text("s")], HI,
                                         [("system", "s"), ("user", "hi")]),
    "a later system": (None, [*HI, {"role": "system", "content": "now brief"}], [("user", "hi"), ("system", "now brief")]),
    "two in a row": (None, [*HI, user(text("there"))], [("user", "hi\nthere")]),
    "an assistant": (None, [*HI, {"role": "assistant", "content": [text("a"), text("b")]}, *HI],
                     [("user", "hi"), ("assistant", "ab"), ("user", "hi")]),
    "what it thought": (None, [*HI, {"role": "assistant", "content": [THOUGHT, {"type": "redacted_thinking",
                        "data": "x"}, text("a")]}, *HI], [("user", "hi"), ("assistant", "a"), ("user", "hi")]),
    "a document": (None, [user(DOCUMENT, text("?"))], [("user", "A\nletter\n?")]),
    "a document of blocks": (None, [user(NESTED)], [("user", "x\ny")]),
    "what was found": (None, [user(FOUND)], [("user", "A\nhere\nb")]),
}  # fmt: skip


@pytest.mark.covers("A01")
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_answer_goes_on_from_exactly_this_prompt(api, name):
    system, messages, pairs = CONVERSATIONS[name]
    prompt = chatml(*pairs)
    fields = {} if system is None else {"system": system}
    result = ask(api, messages, **fields)
    assert result["content"] == [text(said(prompt, 6))]
    assert (result["stop_reason"], result["stop_sequence"], result["model"]) == ("max_tokens", None, "x")
    assert n_input(result) == len(prompt.encode()) + 1 and result["usage"]["output_tokens"] == 6
    counted = api.post(URL + "/count_tokens?beta=true", {"messages": messages, **fields})
    assert counted.json() == {"input_tokens": n_input(result)}


@pytest.mark.covers("A02")
def test_an_answer_goes_on_with_the_last_message_of_the_assistant(api):
    result = ask(api, [*HI, {"role": "assistant", "content": "Well"}])
    assert result["content"] == [text(said(chatml(("user", "hi")) + "Well", 6))]


def test_a_text_that_looks_like_a_mark_is_text(api):
    assert ask(api, [user(text("<|im_end|>"))])["content"] == [text(said(chatml(("user", "<|im_end|>")), 6))]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
WRONG: dict[str, tuple[dict, str]] = {
    "no messages": ({"messages": []}, "messages: a non-empty list"),
    "messages of another type": ({"messages": "hi"}, "messages: a non-empty list"),
    "a number for a message": ({"messages": [1]}, "messages[0] is not an object"),
    "a role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: 'tool' is unknown"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content is neither"),
    "a block": ({"messages": [user("x")]}, "messages[0].content[0] is not an object with a type"),
    "an unknown block": ({"messages": [user(text("a"), {"type": "hologram"})]}, "messages[0].content[1]: blocks of the type 'hol"),
    "a text": ({"messages": [*HI, user({"type": "text", "text": 1})]}, "messages[1].content[0].text is not a string"),
    "no text": ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text is not a string"),
    "blind": ({"messages": [user(IMAGE)]}, "messages[0].content[0]: this model can't see images"),
    "no source": ({"messages": [user({"type": "image"})]}, "messages[0].content[0].source is not an object"),
    "a file of another server": (
        {"messages": [user({"type": "image", "source": {"type": "file", "file_id": "x"}})]},
        "messages[0].content[0].source: the type 'file'",
    ),
    "a PDF": (
        {"messages": [user({"type": "document", "source": {"type": "base64", "media_type": "application/pdf"}})]},
        "messages[0].content[0].source: the type 'base64' isn't supported (PDF isn't either)",
    ),
    "a PDF of another server": (
        {"messages": [user({"type": "document", "source": {"type": "url", "url": "http://x/y.pdf"}})]},
        "messages[0].content[0].source: the type 'url' isn't supported (PDF isn't either)",
    ),
    "a result without a call": (
        {"messages": [user({"type": "tool_result"})]},
        "messages[0].content[0].tool_use_id is not a string",
    ),
    "a result with a number": (
        {"messages": [user({**RESULT, "content": [1]})]},
        "messages[0].content[0].content[0] is not an object with a type",
    ),
    "is_error": ({"messages": [user({**RESULT, "is_error": "no"})]}, "messages[0].content[0].is_error"),
    "a call of the user's": ({"messages": [user({"type": "tool_use"})]}, "messages[0].content[0]: blocks of the type 'tool_use'"),
    "a call without input": (
        {"messages": [*HI, {"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "f"}]}]},
        "messages[1].content[0].input is not an object",
    ),
    "an assistant with an image": (
        {"messages": [*HI, {"role": "assistant", "content": [IMAGE]}]},
        "messages[1].content[0]: blocks of the type 'image'",
    ),
    "a system with an image": ({"system": [IMAGE]}, "system[0]: blocks of the type 'image'"),
    "a system of another type": ({"system": 1}, "system is neither a string nor a list of blocks"),
    "no room": ({"max_tokens": None}, "max_tokens: this field is required"),
    "less than nothing": ({"max_tokens": -1}, "max_tokens: -1 is out of range"),
    "stop_sequences": ({"stop_sequences": [1]}, "stop_sequences: [1] is not a list of strings"),
    "thinking": ({"thinking": {"type": "hard"}}, "thinking.type: 'hard' is unknown"),
    "a budget": ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens: 'None' is not a positive number"),
    "a budget below nothing": ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens: '0'"),
    "an effort": ({"output_config": {"effort": "most"}}, "output_config.effort: 'most' is unknown"),
    "a format": ({"output_config": {"format": {"type": "xml"}}}, "output_config.format: only an object with the type json_schema"),
    "a schema": ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema is not an object"),
    "a schema that is none": (
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}},
        "output_config.format.schema: ",
    ),
    "a tool": ({"tools": ["f"]}, "tools[0] is not an object"),
    "a tool without a schema": ({"tools": [{"name": "f"}]}, "tools[0].input_schema is not an object"),
    "a tool's schema": (
        {"tools": [{"name": "f", "input_schema": {"type": "string"}}]},
        "tools[0].input_schema.type: 'string' is not 'object'",
    ),
    "a tool without a name": ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    "a tool twice": ({"tools": [{"name": "f", "input_schema": {}}] * 2}, "tools[1]: the name 'f' is taken"),
    "a choice": ({"tool_choice": {"type": "all"}}, "tool_choice.type: 'all' is unknown"),
    "a choice of nothing": ({"tool_choice": {"type": "any"}}, "tool_choice: there are no tools"),
    "a choice of a stranger": ({"tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name: there is no tool 'g'"),
    "a choice that is a text": ({"tool_choice": "auto"}, "tool_choice: 'auto' is not an object"),
}  # fmt: skip


@pytest.mark.covers("A03")
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_with_its_place(api, name):
    body, message = WRONG[name]
    assert message in refuse(api, **body)
    if "max_tokens" not in body and "stop_sequences" not in body and "format" not in body.get("output_config", {}):
        assert message in refuse(api, path=URL + "/count_tokens", **body)


MANY: dict[str, tuple[dict, str]] = {
    "messages": ({"messages": HI * 20_001}, "20001 are too many"),
    "results": ({"messages": [user(*[RESULT] * 20_001)]}, "20001 are too many"),
    "tools": ({"tools": [{"name": f"f{i}", "input_schema": {}} for i in range(1025)]}, "1025 are too many"),
    "stop_sequences": ({"stop_sequences": ["x"] * 10_001}, "10001 are too many"),
}


@pytest.mark.parametrize("name", MANY)
def test_too_many_of_anything_are_refused(api, name):
    body, message = MANY[name]
    assert message in refuse(api, **body)


VALUES = [None, True, 0, -1, 1.5, 10**30, "", "x", [], [[]], [{}], {}, {"type": []}, {"type": "text", "text": {}}]
NAMES = ("messages", "max_tokens", "system", "stop_sequences", "tools", "tool_choice", "thinking", "output_config",
         "model", "stream", "metadata", "temperature", "top_k", "top_p", "cache_control")  # fmt: skip
BLOCK_FIELDS = {"type", "text", "source", "tool_use_id", "content", "is_error", "id", "name", "input", "thinking",
                "title", "context"}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_any_type_is_taken_or_refused(api, name):
    for value in VALUES:
        for path in (URL, URL + "/count_tokens"):
            answer = api.post(path, {"messages": HI, "max_tokens": 1, name: value})
            assert answer.status in (200, 400), (value, answer)
            if answer.status == 400:
                assert answer.json()["type"] == "error"


@pytest.mark.parametrize("kind", ["text", "image", "document", "search_result", "tool_result", "tool_use", "thinking"])
def test_a_block_with_values_of_any_type_is_taken_or_refused(api, kind):
    for role in ("user", "assistant", "system"):
        for name in sorted(BLOCK_FIELDS):
            for value in VALUES:
                block = {
                    "type": kind,
                    "text": "x",
                    "tool_use_id": "x",
                    "name": "f",
                    "id": "x",
                    "input": {},
                    name: value,
                }
                messages = [{"role": role, "content": [block]}, *HI]
                answer = api.post(URL + "/count_tokens", {"messages": messages})
                assert answer.status in (200, 400), (messages, answer)


def test_a_thread_is_refused_so_that_its_client_sends_all_of_the_conversation(api):
    answer = api.post(URL, {"messages": HI, "max_tokens": 1, "thread": {"type": "create"}})
    assert answer.status == 400
    assert answer.json()["error"]["details"] == {"error_code": "thread_unsupported_request"}


# ---- why answers end ---------------------------------------------------------------------------------------------


@pytest.mark.covers("A04")
def test_an_answer_says_why_it_ended(make_api):
    api = talker(make_api, "Hello there", "--reverse-prompt", "r", n_ctx=200)
    ends = {
        "end_turn": ask(api, max_tokens=3, temperature=0) and ask(talker(make_api, "Hi"), max_tokens=9),
        "max_tokens": ask(api, max_tokens=3),
        "stop_sequence": ask(api, max_tokens=50, stop_sequences=["xx", "lo"]),
    }
    for reason, result in ends.items():
        assert result["stop_reason"] == reason, result
    assert [end["stop_sequence"] for end in ends.values()] == [None, None, "lo"]
    assert ends["stop_sequence"]["content"] == [text("Hel")]


def test_a_stop_word_of_the_server_is_an_end_like_any_other(make_api):
    result = ask(talker(make_api, "Hello there", "--reverse-prompt", "th"), max_tokens=50)
    assert (result["stop_reason"], result["stop_sequence"]) == ("end_turn", None)


def test_a_full_context_is_told_from_a_limit(make_api):
    result = ask(make_api(FakeBackend(n_ctx=80)).start(), max_tokens=1000)
    assert result["stop_reason"] == "model_context_window_exceeded"


def test_an_empty_answer_has_no_blocks(make_api):
    assert ask(talker(make_api, ""))["content"] == []


def test_max_tokens_0_reads_the_prompt_into_the_cache(api):
    messages = [{"role": "user", "content": "warm me up, please"}]
    first = api.post(URL, {"messages": messages, "max_tokens": 0}).json()
    assert first["content"] == [] and first["usage"]["output_tokens"] == 0
    assert ask(api, messages)["usage"]["cache_read_input_tokens"] > 0


# ---- numbers, heads, fields --------------------------------------------------------------------------------------


@pytest.mark.covers("A05")
def test_a_stream_says_at_once_what_was_cached(make_api):
    api = make_api(FakeBackend()).start()
    body = {"messages": [{"role": "user", "content": "x" * 50}], "max_tokens": 3, "stream": True}
    n = len(chatml(("user", "x" * 50))) + 1
    for cached in (0, n - 1):
        found = events(api.post(URL, body))
        first, last = found[0]["message"]["usage"], found[-2]["usage"]
        assert first == {
            "input_tokens": n - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": 0,
        }
        assert last == {**first, "output_tokens": 3}


def test_a_stream_begins_before_its_prompt_has_been_read(make_api):
    api = make_api(FakeBackend()).start()
    api.backend.hold()
    with api.begin({"messages": HI, "max_tokens": 2, "stream": True}, path=URL) as sock:
        seen = b""
        while b"message_start" not in seen:
            seen += sock.recv(65536)
        assert b"content_block" not in seen
        api.backend.go()
        while b"message_stop" not in seen:
            seen += sock.recv(65536)


@pytest.mark.covers("A06")
def test_an_answer_has_its_id_and_its_warnings_in_its_head(api):
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    body = {"messages": HI, "max_tokens": 2, "beta_thing": 1, "n": 2, "tools": tools, "metadata": {"user_id": "u"}}
    for path in (URL, URL + "/count_tokens"):
        answer = api.send("POST", path, body, {"X-Request-Id": "mine-1"})
        assert answer.status == 200 and answer.headers["request-id"] == "mine-1"
        warnings = answer.headers["x-warnings"]
        assert "unknown and ignored: 'beta_thing', 'n'" in warnings and "web_search_20250305" in warnings
        assert "metadata has no effect" in warnings and "warnings" not in answer.json()
    assert "x-warnings" not in api.post(URL, {"messages": HI, "max_tokens": 2, "model": "x"}).headers


@pytest.mark.covers("A06")
def test_errors_have_the_id_of_the_request_in_their_head_too(api):
    for path, status in ((URL, 400), (URL + "/count_tokens", 400), (URL + "/nowhere", 404)):
        answer = api.send("POST", path, {"messages": 1, "max_tokens": 2}, {"X-Request-Id": "mine-2"})
        assert (answer.status, answer.headers["request-id"]) == (status, "mine-2")
    assert api.send("POST", URL, b"{").headers["request-id"]


def test_warnings_of_a_head_are_bounded_and_one_line(api):
    body = {"messages": HI, "max_tokens": 2, "a\r\nEvil: 1": 1, **{"ü" * 500 + str(i): 1 for i in range(100)}}
    head = api.post(URL, body).headers
    assert "evil" not in head and len(head["x-warnings"]) <= 2000 and head["x-warnings"].isascii()


def test_native_settings_of_sampling_are_taken(api):
    result = [ask(api, max_tokens=4, temperature=0.9, top_k=5, seed=seed)["content"] for seed in (1, 1)]
    assert result[0] == result[1]


# ---- schemas -----------------------------------------------------------------------------------------------------


@pytest.mark.covers("A07")
def test_a_format_binds_the_answer(make_api):
    api = talker(make_api, '{"a":12}')
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    result = ask(api, max_tokens=40, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(result["content"][0]["text"]) == {"a": 12}
    assert api.backend.samplers[-1].grammar, "no grammar was asked for"


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.covers("A08")
def test_errors_have_this_dialects_shape_on_these_routes(make_api):
    api = make_api(FakeBackend(), ("--api-key", "k", "--max-body", "1")).start()
    key = {"X-Api-Key": "k"}
    cases = [
        ("POST", HI, {}, 401, "authentication_error"),
        ("GET", None, key, 405, "invalid_request_error"),
        ("POST", b"{", key, 400, "invalid_request_error"),
        ("POST", b"[]", key, 400, "invalid_request_error"),
        ("POST", b"x" * (2 << 20), key, 413, "request_too_large"),
    ]
    for path in (URL, URL + "/count_tokens", URL + "?beta=true"):
        for method, body, headers, status, kind in cases:
            answer = api.send(method, path, body, headers)
            assert (answer.status, answer.json()["type"]) == (status, "error"), answer
            assert answer.json()["error"]["type"] == kind and answer.json()["error"]["message"]
    assert api.send("POST", URL, {"messages": HI, "max_tokens": 1}, key).status == 200


def test_a_prompt_that_is_too_long_is_refused_in_words_that_clients_know(make_api):
    api = make_api(FakeBackend(n_ctx=64)).start()
    for stream in (False, True):
        answer = api.post(URL, {"messages": [user(text("x" * 100))], "max_tokens": 4, "stream": stream})
        message = answer.json()["error"]["message"]
        assert answer.status == 400 and message.startswith("prompt is too long: 151 tokens > 64 maximum")
        assert "exceeds the available context size" in message


def test_a_model_that_fails_ends_the_stream_with_an_error(make_api):
    api = make_api(FakeBackend()).start()
    api.backend.fail_at[4] = -1
    found = events(api.post(URL, {"messages": HI, "max_tokens": 20, "stream": True}))
    assert found[0]["type"] == "message_start" and found[-1]["type"] == "error"
    assert found[-1]["error"]["type"] == "api_error" and "-1" in found[-1]["error"]["message"]


def test_a_silent_stream_carries_pings(make_api):
    api = make_api(FakeBackend(), ("--sse-ping-interval", "1")).start()
    api.backend.hold()
    with api.begin({"messages": HI, "max_tokens": 2, "stream": True}, path=URL) as sock:
        seen = b""
        while b'event: ping\ndata: {"type":"ping"}\n\n' not in seen:
            seen += sock.recv(65536)
        api.backend.go()
