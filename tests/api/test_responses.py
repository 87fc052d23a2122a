"""POST /v1/responses over HTTP: items, every field, and the exact form and order of answers.

The fake model's text depends on every token of the prompt. It has no chat template, so the default ChatML is used.
"""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.api.openai_wire import chatml, said
from tests.api.responses_wire import events, response_of
from tests.fakes import FakeBackend
from tests.fakes import answer as answers
from tests.support import wait_until

URL = "/v1/responses"
REPLY = "assistant\n"


def text(words: str, kind: str = "input_text") -> dict:
    return {"type": kind, "text": words}


def message(role: str, *parts: object) -> dict:
    return {"type": "message", "role": role, "content": list(parts)}


def same(response: dict) -> dict:
    """What doesn't change from one request to the next: no ids, no times."""
    changing = ("id", "created_at", "completed_at", "timings", "cache", "usage")
    output = [{**item, "id": "", **({"call_id": ""} if "call_id" in item else {})} for item in response["output"]]
    return {**{name: value for name, value in response.items() if name not in changing}, "output": output}


def ask(api, value: object = "hi", max_output_tokens: int | None = 6, **fields: object) -> dict:
    """A response that must be the same from a stream."""
    body = {"model": "x", "input": value, "max_output_tokens": max_output_tokens, **fields}
    answer = api.post(URL, body)
    assert answer.status == 200, answer
    whole = answer.json()
    streamed = response_of(events(api.post(URL, {**body, "stream": True})))
    assert same(streamed) == same(whole)
    assert streamed["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    return whole


def said_in(response: dict) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def refuse(api, status: int = 400, path: str = URL, **body: object) -> str:
    """What is said about a request that must be refused before the engine hears of it."""
    n_started = len(api.backend.samplers)
    answer = api.post(path, {"input": "hi", "max_output_tokens": 4, **body})
    assert answer.status == status, answer
    assert len(api.backend.samplers) == n_started, "the engine was bothered with it"
    return answer.error["message"]


def talker(make_api, words: str, *argv: str, **options: Any):
    """A server whose model answers with `words`."""
    return make_api(FakeBackend(answers(words, REPLY), **options), argv).start()


# ---- what becomes of items ---------------------------------------------------------------------------------------

FILE = base64.b64encode(b"letter").decode()
HI = message("user", text("hi"))
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
INPUTS: dict[str, tuple[object, list[tuple[str, str]]]] = {
    "a text": ("hi", [("user", "hi")]),
    "a message": ([HI], [("user", "hi")]),
    "a message without a type": ([{"role": "user", "content": "hi"}], [("user", "hi")]),
    "parts": ([message("user", text("a"), text("b"))], [("user", "a\nb")]),
    "two in a row": ([HI, {"role": "user", "content": "there"}], [("user", "hi\nthere")]),
    "a developer": ([{"role": "developer", "content": "be brief"}, HI], [("system", "be brief"), ("user", "hi")]),
    "a system": ([{"role": "system", "content": "be brief"}, HI], [("system", "be brief"), ("user", "hi")]),
    "an assistant": (
        [HI, message("assistant", text("a", "output_text"), {"type": "refusal", "refusal": "b"}), HI],
        [("user", "hi"), ("assistant", "a\nb"), ("user", "hi")],
    ),
    "what it thought": (
        [HI, {"type": "reasoning", "id": "rs_1", "summary": []}, message("assistant", text("a", "output_text")), HI],
        [("user", "hi"), ("assistant", "a"), ("user", "hi")],
    ),
    "a file": (
        [message("user", {"type": "input_file", "filename": "a.txt", "file_data": FILE})],
        [("user", "a.txt\nletter")],
    ),
    "a file as a URL": (
        [message("user", {"type": "input_file", "file_data": "data:text/plain;base64," + FILE})],
        [("user", "letter")],
    ),
    "a search of another server's": ([{"type": "web_search_call", "id": "ws_1", "status": "completed"}, HI], [("user", "hi")]),
}  # fmt: skip


@pytest.mark.covers("O01")
@pytest.mark.parametrize("name", INPUTS)
def test_the_answer_goes_on_from_exactly_this_prompt(api, name):
    value, pairs = INPUTS[name]
    prompt = chatml(*pairs)
    result = ask(api, value)
    assert said_in(result) == said(prompt, 6)
    assert result["usage"]["input_tokens"] == len(prompt.encode()) + 1
    counted = api.post(URL + "/input_tokens", {"input": value}).json()
    assert counted["object"] == "response.input_tokens"
    assert counted["input_tokens"] == result["usage"]["input_tokens"]


def test_instructions_are_what_the_system_says(api):
    result = ask(api, instructions="be brief")
    assert said_in(result) == said(chatml(("system", "be brief"), ("user", "hi")), 6)
    assert result["instructions"] == "be brief"


def test_an_answer_goes_on_with_the_last_message_of_the_assistant(api):
    result = ask(api, [HI, message("assistant", text("Well", "output_text"))])
    assert said_in(result) == said(chatml(("user", "hi")) + "Well", 6)


def test_a_text_that_looks_like_a_mark_is_text(api):
    assert said_in(ask(api, "<|im_end|>")) == said(chatml(("user", "<|im_end|>")), 6)


def test_the_other_path_is_the_same_route(api):
    assert api.post("/responses", {"input": "hi", "max_output_tokens": 1}).json()["object"] == "response"


# ---- every field of an answer ------------------------------------------------------------------------------------


@pytest.mark.covers("O02")
def test_every_field_of_a_response(api):
    result = ask(api, metadata={"a": "b"}, prompt_cache_key="k", temperature=0.5, top_p=0.7)
    token = result["id"].removeprefix("resp_")
    assert len(token) == 48 and isinstance(result["created_at"], int)
    assert result == {
        "id": result["id"],
        "object": "response",
        "created_at": result["created_at"],
        "completed_at": None,
        "status": "incomplete",
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"},
        "instructions": None,
        "max_output_tokens": 6,
        "model": "x",
        "output": [
            {
                "id": f"msg_{token}o0",
                "type": "message",
                "status": "incomplete",
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": said(chatml(("user", "hi")), 6), "annotations": [], "logprobs": []}
                ],
            }
        ],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": "k",
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": True,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 0.7,
        "truncation": "disabled",
        "usage": {
            "input_tokens": len(chatml(("user", "hi"))) + 1,
            "input_tokens_details": result["usage"]["input_tokens_details"],
            "output_tokens": 6,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": len(chatml(("user", "hi"))) + 7,
        },
        "metadata": {"a": "b"},
        "timings": result["timings"],
        "cache": result["cache"],
    }


@pytest.mark.covers("O03")
def test_a_response_says_why_it_ended(make_api):
    api = talker(make_api, "Hello there")
    whole = ask(api, max_output_tokens=None)
    assert (whole["status"], whole["incomplete_details"], said_in(whole)) == ("completed", None, "Hello there")
    assert whole["output"][0]["status"] == "completed" and whole["completed_at"] >= whole["created_at"]
    short = ask(api, max_output_tokens=5)
    assert (short["status"], short["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert said_in(short) == "Hello" and short["output"][0]["status"] == "incomplete"
    stopped = ask(api, max_output_tokens=None, stop=["lo"])
    assert (stopped["status"], said_in(stopped)) == ("completed", "Hel")


def test_an_empty_answer_has_no_items(make_api):
    assert ask(talker(make_api, ""))["output"] == []


def test_what_was_cached_is_told(make_api):
    api = make_api(FakeBackend()).start()
    first, second = (api.post(URL, {"input": "x" * 50, "max_output_tokens": 1}).json()["usage"] for _ in range(2))
    cached = [usage["input_tokens_details"]["cached_tokens"] for usage in (first, second)]
    assert cached == [0, first["input_tokens"] - 1]


@pytest.mark.covers("O04")
def test_logprobs_are_those_of_the_text(api):
    result = ask(api, include=["message.output_text.logprobs"], top_logprobs=2)
    [part] = result["output"][0]["content"]
    assert "".join(one["token"] for one in part["logprobs"]) == part["text"]
    assert all(len(one["top_logprobs"]) == 2 and one["logprob"] <= 0 and one["bytes"] for one in part["logprobs"])
    found = events(api.post(URL, {"input": "hi", "max_output_tokens": 6, "top_logprobs": 2, "stream": True}))
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert [one["token"] for event in deltas for one in event["logprobs"]] == list(part["text"])


def test_logprobs_that_would_fill_the_memory_end_the_stream(make_api):
    api = make_api(FakeBackend(n_ctx=8192)).start()
    api.server._server.budget.n_max = 3_000_000
    body = {"input": "hi", "max_output_tokens": 4000, "top_logprobs": 2, "stream": True}
    response = response_of(events(api.post(URL, body)))
    assert response["status"] == "failed" and 100 < response["output"][0]["content"][0]["text"].count("") < 3000
    assert response_of(events(api.post(URL, {**body, "max_output_tokens": 20})))["status"] == "incomplete"
    begun = api.post(URL, {**body, "stream": False, "background": True}).json()
    wait_until(lambda: "response" not in api.own_threads(), "the response to end")
    api.server._server.budget.n_max = 1 << 30  # to read what there is takes memory, too
    assert api.get(f"{URL}/{begun['id']}").json()["status"] == "failed"
    wait_until(lambda: api.server._server.budget.n_used == 0, "all memory to be given back")


def test_a_stream_begins_before_its_prompt_has_been_read(make_api):
    api = make_api(FakeBackend()).start()
    api.backend.hold()
    with api.begin({"input": "hi", "max_output_tokens": 2, "stream": True}, path=URL) as sock:
        seen = b""
        while b"response.in_progress" not in seen:
            seen += sock.recv(65536)
        assert b"output_item" not in seen
        api.backend.go()
        while b"event: response.incomplete" not in seen:
            seen += sock.recv(65536)


def test_a_prompt_that_is_too_long_is_refused_before_a_stream_begins(make_api):
    api = make_api(FakeBackend(n_ctx=256)).start()
    answer = api.post(URL, {"input": "x" * 300, "stream": True})
    assert answer.status == 400 and "exceeds the available context size" in answer.error["message"]


def test_the_oldest_turns_are_left_out_where_that_is_wanted(make_api):
    api = make_api(FakeBackend(n_ctx=512)).start()
    turns = [one for i in range(9) for one in (message("user", text(f"{i}" * 40)), message("assistant", text("a")))]
    system = {"role": "developer", "content": "be brief"}
    assert api.post(URL, {"input": [system, *turns, HI], "max_output_tokens": 6}).status == 400
    result = ask(api, [system, *turns, HI], truncation="auto")
    n_kept = (512 - 6 - len(chatml(("system", "be brief"), ("user", "hi"))) - 1) // len(
        chatml(("user", "0" * 40), ("assistant", "a"))[:-22]
    )
    pairs = [pair for i in range(9 - n_kept, 9) for pair in (("user", f"{i}" * 40), ("assistant", "a"))]
    assert said_in(result) == said(chatml(("system", "be brief"), *pairs, ("user", "hi")), 6) and 0 < n_kept < 9
    assert result["warnings"] == [f"truncation: left out {2 * (9 - n_kept)} messages that don't fit into the context"]
    assert "warnings" not in ask(api, truncation="auto") and "warnings" not in ask(api, "x" * 300, truncation="auto")
    alone = api.post(URL, {"input": [*turns, message("user", text("x" * 500))], "truncation": "auto"})
    assert alone.status == 400 and "exceeds the available context size" in alone.error["message"]


def test_an_engine_that_fails_ends_the_stream_as_clients_expect_it(make_api):
    api = make_api(FakeBackend()).start()
    api.backend.fail_at = {4: -3}
    response = response_of(events(api.post(URL, {"input": "hi", "max_output_tokens": 50, "stream": True})))
    assert response["status"] == "failed" and response["error"]["code"] == "server_error"
    assert response["error"]["message"] and response["output"][0]["status"] == "incomplete"
    assert api.get(f"{URL}/{response['id']}").json() == response


def test_a_client_that_leaves_frees_the_slot_and_nothing_is_stored(make_api):
    api = make_api(FakeBackend()).start()
    with api.begin({"input": "hi", "stream": True, "ignore_eos": True}, path=URL) as sock:
        seen = b""
        while b"output_text.delta" not in seen:
            seen += sock.recv(65536)
    api.settle()
    assert api.is_idle() and not api.context.stored._by_key


@pytest.mark.covers("O05")
def test_a_schema_binds_the_text(api):
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    for given, words in ((form, '\\"a\\"'), ({"type": "json_object"}, "{"), ({"type": "text"}, "")):
        result = ask(api, text={"format": given, "verbosity": "low"})
        grammar = api.backend.samplers[-1].grammar
        assert words in grammar and bool(grammar) == bool(words)
        assert result["text"] == {"format": given, "verbosity": "low"}


def test_what_does_nothing_is_named(api):
    result = ask(
        api,
        [{"type": "mcp_list_tools"}, HI],
        colour="red",
        client_metadata={"x": "y"},
        safety_identifier="me",
        tools=[{"type": "web_search"}, {"type": "namespace", "name": "n", "tools": []}],
    )
    assert result["warnings"] == [
        "tools: ignored, because this server doesn't have these types: 'web_search', 'namespace'",
        "input: ignored, because this server doesn't have these tools: 'mcp_list_tools'",
        "unknown and ignored: 'colour'",
        "client_metadata has no effect: the server identifies clients by API key and address",
        "safety_identifier has no effect: the server identifies clients by API key and address",
    ]


# ---- what is refused ---------------------------------------------------------------------------------------------


def items(*values: object) -> dict:
    return {"input": list(values)}


def part_of(*parts: object) -> dict:
    return items(message("user", *parts))


TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
CUSTOM = {"type": "custom", "name": "f"}
WRONG: dict[str, tuple[dict, str]] = {
    "nothing": ({"input": None}, "input: a text or a list of items"),
    "an empty list": ({"input": []}, "input: it has no message to answer"),
    "a number": ({"input": 1}, "input is neither a text nor a list of items"),
    "a number for an item": (items(1), "input[0] is not an object"),
    "an item without a type": (items({}), "input[0].type: 'None' is unknown"),
    "a strange item": (items(HI, {"type": "hologram"}), "input[1].type: 'hologram' is unknown"),
    "a type that is a list": (items({"type": []}), "input[0].type: '[]' is unknown"),
    "a role": (items({"role": "tool", "content": "x"}), "input[0].role: 'tool' is unknown"),
    "no content": (items({"role": "user"}), "input[0].content is neither a text nor a list"),
    "a part": (part_of("x"), "input[0].content[0] is not an object"),
    "a part without a type": (part_of({}), "input[0].content[0].type: 'None' is unknown"),
    "a text": (items(HI, message("user", text(1))), "input[1].content[0].text is not a string"),
    "blind": (part_of({"type": "input_image", "image_url": "data:x"}), "input[0].content[0]: this model can't see"),
    "deaf": (part_of({"type": "input_audio", "input_audio": {"data": ""}}), "input[0].content[0]: this model can't"),
    "an image elsewhere": (part_of({"type": "input_image", "file_id": "f"}), "input[0].content[0]: this server stores no files"),
    "a file elsewhere": (part_of({"type": "input_file", "file_id": "f"}), "input[0].content[0]: this server can't fetch files"),
    "a PDF": (
        part_of({"type": "input_file", "file_data": base64.b64encode(b"%PDF\xff").decode()}),
        "input[0].content[0]: only text files (UTF-8) are supported",
    ),
    "a file that is no base64": (part_of({"type": "input_file", "file_data": "!"}), "file_data is not base64"),
    "a file's name": (part_of({"type": "input_file", "file_data": FILE, "filename": 1}), "content[0].filename is not"),
    "a call without a name": (items({**CALL, "name": None}), "input[0].name is not a string"),
    "a call without an id": (items({**CALL, "call_id": 1}), "input[0].call_id is not a string"),
    "a call's arguments": (items({**CALL, "arguments": {}}), "input[0].arguments is not a string"),
    "a custom call's input": (
        items({"type": "custom_tool_call", "call_id": "x", "name": "f"}),
        "input[0].input is not a string",
    ),
    "a result without a call": (items({"type": "function_call_output", "output": ""}), "input[0].call_id is not"),
    "a result": (items({"type": "function_call_output", "call_id": "x"}), "input[0].output is neither"),
    "a result's part": (
        items({"type": "function_call_output", "call_id": "x", "output": [{"type": "x"}]}),
        "input[0].output[0].type: 'x' is unknown",
    ),
    "a thought": (items({"type": "reasoning", "summary": [1]}), "input[0].summary[0].text is not a string"),
    "thoughts": (items({"type": "reasoning", "content": "x"}), "input[0].content: give a list"),
    "a reference without an id": (items({"type": "item_reference"}), "input[0].id is not a string"),
    "instructions": ({"instructions": ["x"]}, "instructions: ['x'] is not a string"),
    "no room": ({"max_output_tokens": 0}, "max_output_tokens: 0 is out of range"),
    "truncation": ({"truncation": "some"}, "truncation: 'some' is unknown"),
    "include": ({"include": [1]}, "include: [1] is not a list of strings"),
    "a prompt of another server": ({"prompt": {"id": "x"}}, "prompt: this server stores no prompts"),
    "too many logprobs": ({"top_logprobs": 101}, "top_logprobs: 101 is out of range"),
    "too much metadata": ({"metadata": {str(i): "" for i in range(17)}}, "metadata: at most 16"),
    "metadata": ({"metadata": {"a": 1}}, "metadata: 'a' must be a name"),
    "long metadata": ({"metadata": {"a": "x" * 513}}, "metadata: 'a' must be a name"),
    "a metadata name": ({"metadata": {"a" * 65: "x"}}, "metadata: '" + "a" * 64 + "' must be a name"),
    "an effort": ({"reasoning": {"effort": 1}}, "reasoning.effort is not a string"),
    "reasoning": ({"reasoning": "high"}, "reasoning: 'high' is not an object"),
    "a format": ({"text": {"format": {"type": "xml"}}}, "text.format.type: 'xml' is unknown"),
    "a format that is a text": ({"text": {"format": "json"}}, "text.format is not an object"),
    "a schema": ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema is not an object"),
    "strict": ({"text": {"format": {"type": "json_schema", "schema": {}, "strict": 1}}}, "text.format.strict is neither"),
    "a schema that is none": (
        {"text": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}},
        "text.format.schema: ",
    ),
    "tools": ({"tools": {}}, "tools: give a list"),
    "a tool": ({"tools": ["f"]}, "tools[0] is not an object"),
    "a tool without a type": ({"tools": [{"name": "f"}]}, "tools[0].type is not a string"),
    "a tool without a name": ({"tools": [{"type": "function"}]}, "tools[0].name"),
    "a tool's schema": ({"tools": [{**TOOL, "parameters": {"type": "string"}}]}, "tools[0].parameters.type"),
    "a tool's strictness": ({"tools": [{**TOOL, "strict": "yes"}]}, "tools[0].strict is not true or false"),
    "a tool twice": ({"tools": [TOOL, CUSTOM]}, "tools[1]: the name 'f' is taken"),
    "a custom tool's format": ({"tools": [{**CUSTOM, "format": 1}]}, "tools[0].format is not an object"),
    "a custom tool's kind of format": ({"tools": [{**CUSTOM, "format": {"type": "xml"}}]}, "tools[0].format.type"),
    "a syntax": (
        {"tools": [{**CUSTOM, "format": {"type": "grammar", "definition": "x", "syntax": "ebnf"}}]},
        "tools[0].format.syntax: 'ebnf' is unknown; use one of regex, lark",
    ),
    "a grammar without rules": (
        {"tools": [{**CUSTOM, "format": {"type": "grammar", "syntax": "lark"}}]},
        "tools[0].format.definition is not a string",
    ),
    "an expression": (
        {"tools": [{**CUSTOM, "format": {"type": "grammar", "syntax": "regex", "definition": "("}}]},
        "tools: ",
    ),
    "a custom tool without a name": ({"tools": [{"type": "custom"}]}, "tools[0].name"),
    "a choice": ({"tools": [TOOL], "tool_choice": "all"}, "tool_choice: 'all' is unknown"),
    "a choice that is a list": ({"tools": [TOOL], "tool_choice": []}, "tool_choice: '[]' is unknown"),
    "a choice of nothing": ({"tool_choice": "required"}, "tool_choice: there are no tools"),
    "a choice of another server's": (
        {"tools": [TOOL], "tool_choice": {"type": "web_search"}},
        "tool_choice.type: 'web_search' is unknown",
    ),
    "a choice of a stranger": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}},
        "tool_choice.name: there is no function 'g'",
    ),
    "a mode": (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "some", "tools": [TOOL]}},
        "tool_choice.mode: 'some' is unknown",
    ),
    "allowed tools": (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}},
        "tool_choice.tools: at least one of the tools",
    ),
    "a conversation and a response": (
        {"conversation": "conv_1", "previous_response_id": "resp_1"},
        "conversation and previous_response_id can't be used together",
    ),
    "a conversation": ({"conversation": 1}, "conversation is neither an id nor an object with one"),
    "the background without a store": ({"background": True, "store": False}, "background: "),
}  # fmt: skip
NOT_COUNTED = ("format", "strict", "a schema", "an expression", "background")  # about answers


@pytest.mark.covers("O06")
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_with_its_place(api, name):
    body, message = WRONG[name]
    assert message in refuse(api, **body)
    if not any(word in name for word in NOT_COUNTED) or "custom" in name:
        assert message in refuse(api, path=URL + "/input_tokens", **body)


STRANGERS: dict[str, tuple[dict, str]] = {
    "a response": ({"previous_response_id": "resp_x"}, "previous_response_id: there is no response 'resp_x'"),
    "a conversation": ({"conversation": {"id": "conv_x"}}, "conversation: there is no conversation 'conv_x'"),
    "an item": (items({"type": "item_reference", "id": "msg_1"}), "input[0]: there is no stored item 'msg_1'"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_not_stored_is_a_404(api, name):
    body, message = STRANGERS[name]
    assert message in refuse(api, 404, **body)


MANY: dict[str, tuple[dict, str]] = {
    "items": ({"input": [HI] * 20_001}, "input: 20001 are too many"),
    "tools": ({"tools": [{**TOOL, "name": f"f{i}"} for i in range(1025)]}, "1025 are too many"),
    "arguments": (items(HI, {**CALL, "arguments": "x" * (2 << 20)}, {**CALL, "arguments": "x"}), "are too many"),
}


@pytest.mark.parametrize("name", MANY)
def test_too_many_of_anything_are_refused(api, name):
    body, message = MANY[name]
    assert message in refuse(api, **body)


VALUES = [None, True, 0, -1, 1.5, 10**30, "", "x", [], [[]], [{}], {}, {"type": []}, {"type": "text", "text": {}}]
NAMES = ("input", "instructions", "previous_response_id", "conversation", "store", "max_output_tokens", "reasoning",
         "text", "tools", "tool_choice", "parallel_tool_calls", "truncation", "include", "top_logprobs", "metadata",
         "prompt_cache_key", "stream_options", "prompt", "stream", "user", "client_metadata", "model")  # fmt: skip
ITEM_FIELDS = ("type", "id", "status", "role", "content", "call_id", "name", "arguments", "input", "output", "summary",
               "encrypted_content")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_any_type_is_taken_or_refused(api, name):
    for value in VALUES:
        for path in (URL, URL + "/input_tokens"):
            answer = api.post(path, {"input": "hi", "max_output_tokens": 1, name: value})
            assert answer.status in (200, 400, 404), (value, answer)


@pytest.mark.parametrize("kind", ["message", "reasoning", "function_call", "function_call_output", "custom_tool_call",
                                  "custom_tool_call_output", "item_reference", "web_search_call"])  # fmt: skip
def test_an_item_with_values_of_any_type_is_taken_or_refused(api, kind):
    for name in ITEM_FIELDS:
        for value in VALUES:
            item = {"type": kind, "role": "assistant", "content": "x", "call_id": "x", "name": "f", "arguments": "{}"}
            item |= {"input": "x", "output": "x", "summary": [], name: value}
            if kind == "reasoning":
                item.pop("content", None) if name != "content" else None
            answer = api.post(URL + "/input_tokens", {"input": [item, HI]})
            assert answer.status in (200, 400, 404), (item, answer)
