"""Tool calls, results and reasoning in POST /v1/messages over HTTP, and a request as large as those of coding agents.

The fake model recites answers in the form of the template of `test_tool_calls`, one letter at a time.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.api.anthropic_wire import events, message_of
from tests.api.test_tool_calls import ARGUMENTS, CALL, PARAMETERS, REPLY, TEMPLATE, THOUGHT, written
from tests.fakes import FakeBackend
from tests.fakes import answer as answers

URL = "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
WEATHER = {"name": "weather", "description": "x", "input_schema": PARAMETERS, "cache_control": {"type": "ephemeral"}}
CLOCK = {"type": "custom", "name": "clock", "input_schema": {"type": "object", "properties": {}}}
TOOLS = [WEATHER, CLOCK]
THINKS = {"type": "thinking", "thinking": "It's about <b>weather</b>.", "signature": "unsigned"}


@pytest.fixture
def talker(make_api):
    """`talker(text, options...)`: a server whose model says this."""

    def make(text: str, *argv: str, template: str = TEMPLATE, n_ctx: int = 8192):
        backend = FakeBackend(answers(text, REPLY), n_ctx=n_ctx)
        backend.info = replace(backend.info, meta={"tokenizer.chat_template": template})
        return make_api(backend, argv).start()

    return make


def ask(api, messages=HI, **fields: object) -> dict:
    """A message that must be the same from a stream but for ids and what is cached by then."""
    body = {"messages": messages, "max_tokens": 400, "tools": TOOLS, **fields}
    answer = api.post(URL, body)
    assert answer.status == 200, answer
    whole = answer.json()
    streamed = message_of(events(api.post(URL, {**body, "stream": True})))
    assert without_ids(streamed) == without_ids(whole)
    return whole


def without_ids(message: dict) -> dict:
    blocks = [{**block, "id": ""} if "id" in block else block for block in message["content"]]
    return {**message, "content": blocks, "id": "", "usage": message["usage"]["output_tokens"]}


def called(message: dict) -> list[tuple[str, object]]:
    return [(block["name"], block["input"]) for block in message["content"] if block["type"] == "tool_use"]


def kinds(message: dict) -> list[str]:
    return [block["type"] for block in message["content"]]


def prompt_of(api, messages: list[dict], **fields: object) -> str:
    """The prompt as the model gets it."""
    n_before = len(api.backend.samplers)
    answer = api.post(URL, {"messages": messages, "max_tokens": 0, "tools": TOOLS, **fields})
    assert answer.status == 200, answer
    assert len(api.backend.samplers) >= n_before
    return bytes(token for token in api.backend.history(0) if token < 256).decode()


# ---- calls -------------------------------------------------------------------------------------------------------


@pytest.mark.covers("A09")
def test_every_field_of_a_call(talker):
    result = ask(talker(CALL))
    [block] = result["content"]
    assert block == {"type": "tool_use", "id": block["id"], "name": "weather", "input": json.loads(ARGUMENTS)}
    assert block["id"] and (result["stop_reason"], result["stop_sequence"]) == ("tool_use", None)


def test_arguments_are_streamed_as_they_are_written(talker):
    found = events(talker(CALL).post(URL, {"messages": HI, "max_tokens": 400, "tools": TOOLS, "stream": True}))
    deltas = [event["delta"]["partial_json"] for event in found if event["type"] == "content_block_delta"]
    assert "".join(deltas) == ARGUMENTS and len(deltas) > 5


TRANSCRIPTS = {
    "a text before": ("Let me see.\n" + CALL, ["text", "tool_use"], 1),
    "two calls": (CALL + "\n" + written("clock"), ["tool_use", "tool_use"], 2),
    "thinking and a text": (THOUGHT + "Yes.", ["thinking", "text"], 0),
    "thinking and a call": (THOUGHT + written("clock"), ["thinking", "tool_use"], 1),
    "thinking, a text and a call": (THOUGHT + "Yes.\n" + written("clock"), ["thinking", "text", "tool_use"], 1),
    "no tool of ours": (written("delete_all"), ["text"], 0),
    "a text behind": (written("clock") + "\nDone.", ["tool_use", "text"], 1),
    "a text between": ("One." + written("clock") + "\nTwo." + written("clock"), ["text", "tool_use"] * 2, 2),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_what_a_model_writes_becomes_blocks_in_its_order(talker, name):
    said, expected, n_calls = TRANSCRIPTS[name]
    result = ask(talker(said))
    assert kinds(result) == expected and len(called(result)) == n_calls
    assert result["stop_reason"] == ("tool_use" if n_calls else "end_turn")
    assert "thinking" not in expected or result["content"][0] == THINKS


def test_a_call_that_is_cut_off_is_none_in_a_whole_answer(talker):
    result = ask(talker(CALL), max_tokens=len(CALL) - 30)
    assert (result["content"], result["stop_reason"]) == ([], "max_tokens")


@pytest.mark.covers("A10")
def test_tool_choice_says_which_calls_there_may_be(talker):
    api = talker("x")

    def grammar_of(kind: str, **fields: object) -> str:
        ask(api, tool_choice={"type": kind, **fields})
        return api.backend.samplers[-1].grammar

    auto, any_one, certain = grammar_of("auto"), grammar_of("any"), grammar_of("tool", name="clock")
    assert auto and any_one != auto and "weather" in any_one and "clock" in any_one
    assert "weather" not in certain and "clock" in certain
    for kind, many in (("auto", auto), ("any", any_one)):
        assert grammar_of(kind, disable_parallel_tool_use=True) not in ("", many)
    assert grammar_of("none") == "" and called(ask(talker(CALL), tool_choice={"type": "none"})) == []


@pytest.mark.covers("A11")
def test_a_call_and_its_result_come_back_into_the_prompt(talker):
    api = talker("Fine.")
    call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}}
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "rain"}]},
        {"type": "text", "text": "And now?"},
    ]
    talk = [*HI, {"role": "assistant", "content": [THINKS, {"type": "text", "text": "Let me see."}, call]}]
    prompt = prompt_of(api, [*talk, {"role": "user", "content": results}])
    assert THOUGHT + "Let me see." + written("weather", '{"city": "Bern"}') in prompt
    assert "<|im_start|>tool\nrain<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>" in prompt


@pytest.mark.parametrize(
    ("content", "shown"),
    [("no city", "Error:\nno city"), ([{"type": "text", "text": "x"}], "Error:\nx"), (None, "Error:")],
)
def test_a_result_that_is_an_error_says_so(talker, content, shown):
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True, "content": content}
    assert f"<|im_start|>tool\n{shown}<|im_end|>" in prompt_of(
        talker("x"), [*HI, {"role": "user", "content": [result]}]
    )


# ---- thinking ----------------------------------------------------------------------------------------------------


@pytest.mark.covers("A12")
def test_thinking_is_switched_as_the_template_can(talker):
    api = talker("x")
    off = "<think>\n\n</think>\n\n"
    assert prompt_of(api, HI, thinking={"type": "disabled"}).endswith(off)
    for thinking in (None, {"type": "adaptive"}, {"type": "enabled", "budget_tokens": 1024}):
        assert not prompt_of(api, HI, thinking=thinking).endswith(off)


def test_a_budget_ends_the_thinking(talker):
    long = "<think>\n" + "hm " * 100 + "\n</think>\n\nYes."
    result = ask(talker(long), tools=[], thinking={"type": "enabled", "budget_tokens": 12})
    assert len(result["content"][0]["thinking"]) < 40
    assert result["usage"]["output_tokens_details"]["thinking_tokens"] < 40


def test_thinking_that_is_not_to_be_shown_is_an_empty_block(talker):
    result = ask(talker(THOUGHT + "Yes."), thinking={"type": "adaptive", "display": "omitted"})
    assert result["content"] == [{**THINKS, "thinking": ""}, {"type": "text", "text": "Yes."}]


def test_an_effort_goes_to_the_template(talker):
    template = "{{ reasoning_effort | default('none given') }}" + TEMPLATE
    api = talker("x", template=template)
    assert prompt_of(api, HI).startswith("none given")
    for effort in ("low", "medium", "high"):
        assert prompt_of(api, HI, output_config={"effort": effort}).startswith(effort)
    warnings = talker("x").post(URL, {"messages": HI, "max_tokens": 1, "output_config": {"effort": "high"}})
    assert "reasoning_effort has no effect" in warnings.headers["x-warnings"]


# ---- coding agents -----------------------------------------------------------------------------------------------


def agents_request() -> dict:
    """What a coding agent sends in its second turn: 24 tools, a long system's text in blocks, marks for caches, its
    thinking, calls and their results, a system's message at the end."""
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "The absolute path of the file."},
            "limit": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
            "mode": {"type": "string", "enum": ["content", "count"], "default": "count"},
            "edits": {"type": "array", "minItems": 1, "items": {"type": "object", "properties": {"old": {"type": "string"}},
                      "required": ["old"], "additionalProperties": False}},
        },
        "required": ["path"],
        "additionalProperties": False,
    }  # fmt: skip
    advice = "Read before you write, say what you have done, and never guess a path. " * 32
    tools = [
        {"name": f"Tool{i}", "description": advice, "input_schema": schema, "eager_input_streaming": True}
        for i in range(24)
    ]
    call = {
        "type": "tool_use",
        "id": "toolu_01",
        "name": "Tool3",
        "input": {"path": "/a"},
        "caller": {"type": "direct"},
    }
    result = {"type": "tool_result", "tool_use_id": "toolu_01", "content": "1\tx = 1\n", "is_error": False, **cached}
    return {
        "model": "an-agents-favourite",
        "max_tokens": 64_000,
        "stream": True,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: version=1; cch=00000;"},
            {"type": "text", "text": "You are an agent.", **cached},
            {"type": "text", "text": advice * 4, **cached},
        ],
        "tools": tools,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "<reminder>\n" + advice}, {"type": "text", "text": "Go."}]},
            {"role": "system", "content": "Available agents: " + advice},
            {"role": "assistant", "content": [{**THINKS, "signature": "EqQB"}, call]},
            {"role": "user", "content": [result, {"type": "text", "text": "<reminder>x</reminder>"}]},
        ],
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": '{"device_id":"x"}'},
        "temperature": 1,
    }  # fmt: skip


@pytest.mark.covers("A13")
def test_a_coding_agents_request_is_answered_and_its_next_turn_finds_it_in_the_cache(talker):
    body = agents_request()
    assert 70_000 < len(json.dumps(body)) < 90_000
    api = talker(THOUGHT + written("Tool5", '{"path": "/b"}'), n_ctx=120_000)
    path = URL + "?beta=true"
    answer = api.send("POST", path, json.dumps(body).encode(), {"anthropic-beta": "interleaved-thinking-2025-05-14"})
    first = message_of(events(answer))
    assert kinds(first) == ["thinking", "tool_use"] and called(first) == [("Tool5", {"path": "/b"})]
    assert first["stop_reason"] == "tool_use" and first["usage"]["cache_read_input_tokens"] == 0
    result = {"type": "tool_result", "tool_use_id": first["content"][1]["id"], "content": "y = 2"}
    body["messages"] += [{"role": "assistant", "content": first["content"]}, {"role": "user", "content": [result]}]
    body["system"][0]["text"] = "x-anthropic-billing-header: version=1; cch=fffff;"
    second = message_of(events(api.post(path, body)))
    usage = second["usage"]
    assert usage["input_tokens"] < 200 and usage["cache_read_input_tokens"] >= first["usage"]["input_tokens"]
    assert api.post(URL + "/count_tokens?beta=true", body).json()["input_tokens"] == (
        usage["input_tokens"] + usage["cache_read_input_tokens"]
    )
