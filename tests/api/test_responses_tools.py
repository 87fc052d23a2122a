"""Tool calls, results and reasoning in POST /v1/responses over HTTP, and the request of a coding agent.

The fake model recites answers in the form of the template of `test_tool_calls`, one letter at a time.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.api.responses_wire import events, response_of
from tests.api.test_responses import REPLY, same, text
from tests.api.test_tool_calls import ARGUMENTS, CALL, PARAMETERS, TEMPLATE, THOUGHT, written
from tests.fakes import FakeBackend
from tests.fakes import answer as answers

URL = "/v1/responses"
WEATHER = {"type": "function", "name": "weather", "description": "x", "parameters": PARAMETERS, "strict": False}
CLOCK = {"type": "function", "name": "clock"}
PATCH = {"type": "custom", "name": "patch", "description": "Changes files."}
TOOLS = [WEATHER, CLOCK, PATCH]
THOUGHTS = "It's about <b>weather</b>."
PATCHED = written("patch", '{"input": "*** \\"a\\"\\n+ü"}')


@pytest.fixture
def talker(make_api):
    """`talker(text, options...)`: a server whose model says this."""

    def make(words: str, *argv: str, template: str = TEMPLATE, n_ctx: int = 8192):
        backend = FakeBackend(answers(words, REPLY), n_ctx=n_ctx)
        backend.info = replace(backend.info, meta={"tokenizer.chat_template": template})
        return make_api(backend, argv).start()

    return make


def ask(api, value: object = "hi", **fields: object) -> dict:
    """A response that must be the same from a stream."""
    body = {"input": value, "max_output_tokens": 400, "tools": TOOLS, **fields}
    answer = api.post(URL, body)
    assert answer.status == 200, answer
    whole = answer.json()
    assert same(response_of(events(api.post(URL, {**body, "stream": True})))) == same(whole)
    return whole


def called(response: dict) -> list[tuple[str, object]]:
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    return [(item["name"], json.loads(item["arguments"])) for item in calls]


def kinds(response: dict) -> list[str]:
    return [item["type"] for item in response["output"]]


def prompt_of(api, value: object, **fields: object) -> str:
    """The prompt as the model gets it."""
    answer = api.post(URL, {"input": value, "max_output_tokens": 1, "tools": TOOLS, **fields})
    assert answer.status == 200, answer
    return bytes(token for token in api.backend.history(0) if token < 256).decode()


# ---- calls -------------------------------------------------------------------------------------------------------


@pytest.mark.covers("O08")
def test_every_field_of_a_call(talker):
    [item] = ask(talker(CALL))["output"]
    assert item == {
        "id": item["id"],
        "type": "function_call",
        "status": "completed",
        "call_id": item["call_id"],
        "name": "weather",
        "arguments": ARGUMENTS,
    }
    assert item["id"].startswith("fc_") and item["call_id"] and item["call_id"] != item["id"]


def test_arguments_are_streamed_as_they_are_written(talker):
    found = events(talker(CALL).post(URL, {"input": "hi", "tools": TOOLS, "stream": True}))
    deltas = [event["delta"] for event in found if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == ARGUMENTS and len(deltas) > 5


def test_a_tool_that_takes_text_gets_text(talker):
    [item] = ask(talker(PATCHED))["output"]
    assert item == {
        "id": item["id"],
        "type": "custom_tool_call",
        "status": "completed",
        "call_id": item["call_id"],
        "name": "patch",
        "input": '*** "a"\n+ü',
    }


TRANSCRIPTS = {
    "a text before": ("Let me see.\n" + CALL, ["message", "function_call"]),
    "two calls": (CALL + "\n" + written("clock"), ["function_call", "function_call"]),
    "calls of both kinds": (CALL + "\n" + PATCHED, ["function_call", "custom_tool_call"]),
    "thinking and a text": (THOUGHT + "Yes.", ["reasoning", "message"]),
    "thinking and a call": (THOUGHT + written("clock"), ["reasoning", "function_call"]),
    "thinking, a text and a call": (THOUGHT + "Yes.\n" + PATCHED, ["reasoning", "message", "custom_tool_call"]),
    "no tool of ours": (written("delete_all"), ["message"]),
    "a text behind": (written("clock") + "\nDone.", ["function_call", "message"]),
    "a text between": ("One." + written("clock") + "\nTwo." + written("clock"), ["message", "function_call"] * 2),
}


@pytest.mark.covers("O07")
@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_what_a_model_writes_becomes_items_in_its_order(talker, name):
    said, expected = TRANSCRIPTS[name]
    result = ask(talker(said))
    assert kinds(result) == expected and result["status"] == "completed"
    assert [item["id"][-2:] for item in result["output"]] == [f"o{i}" for i in range(len(expected))]


@pytest.mark.parametrize("said", [CALL, PATCHED])
def test_a_call_that_is_cut_off_is_incomplete(talker, said):
    result = ask(talker(said), max_output_tokens=len(said.encode()) - 30)
    assert result["status"] == "incomplete"
    [item] = result["output"]
    assert item["status"] == "incomplete" and ARGUMENTS.startswith(item.get("arguments", ""))
    api = talker("Fine.")
    assert "tool_call>\n{" not in prompt_of(api, ["hi", item][1:] + [{"role": "user", "content": "go on"}], tools=[])


@pytest.mark.covers("O09")
def test_tool_choice_says_which_calls_there_may_be(talker):
    api = talker("x")

    def grammar_of(choice: object, **fields: object) -> str:
        ask(api, tool_choice=choice, **fields)
        return api.backend.samplers[-1].grammar

    auto, required = grammar_of("auto"), grammar_of("required")
    assert auto and required != auto and all(name in required for name in ("weather", "clock", "patch"))
    for kind, name in (("function", "clock"), ("custom", "patch")):
        certain = grammar_of({"type": kind, "name": name})
        assert name in certain and "weather" not in certain
    some = [{"type": "function", "name": "clock"}, {"type": "custom", "name": "patch"}, {"type": "web_search"}]
    for mode, all_of_them in (("auto", auto), ("required", required)):
        allowed = grammar_of({"type": "allowed_tools", "mode": mode, "tools": some})
        assert "clock" in allowed and "patch" in allowed and "weather" not in allowed
        assert grammar_of(mode, parallel_tool_calls=False) not in ("", all_of_them)
    assert grammar_of("none") == "" and kinds(ask(talker(CALL), tool_choice="none")) == ["message"]


def test_a_regular_expression_binds_what_a_tool_gets(talker):
    form = {"type": "grammar", "syntax": "regex", "definition": "a+|b"}
    api = talker("x")
    ask(api, tools=[{**PATCH, "format": form}], tool_choice="required")
    assert '"a"' in (bound := api.backend.samplers[-1].grammar) and '"b"' in bound


def test_the_model_is_told_of_a_grammar_that_binds_nothing(talker):
    form = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"+'}
    assert 'to follow this Lark grammar:\\nstart: \\"x\\"+' in prompt_of(
        talker("x"), "hi", tools=[{**PATCH, "format": form}]
    )


@pytest.mark.covers("O11")
def test_calls_and_their_results_come_back_into_the_prompt(talker):
    call = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": '{"city": "Bern"}'}
    custom = {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": 'a "b"\n'}
    value = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": THOUGHTS}]},
        {"type": "message", "role": "assistant", "content": [text("Let me see.", "output_text")]},
        call,
        custom,
        {"type": "function_call_output", "call_id": "c1", "output": [text("rain")]},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
        {"role": "user", "content": "And now?"},
    ]
    prompt = prompt_of(talker("Fine."), value)
    said = THOUGHT + "Let me see." + written("weather", '{"city": "Bern"}')
    said += written("patch", '{"input": "a \\"b\\"\\n"}')
    assert (
        f"<|im_start|>assistant\n{said}<|im_end|>\n<|im_start|>tool\nrain<|im_end|>\n<|im_start|>tool\ndone" in prompt
    )
    assert "<|im_start|>user\nAnd now?<|im_end|>" in prompt


# ---- reasoning ---------------------------------------------------------------------------------------------------


@pytest.mark.covers("O10")
def test_what_a_model_thinks_comes_as_it_is_or_as_a_summary(talker):
    api = talker(THOUGHT + "Yes.")
    plain = ask(api)["output"][0]
    assert plain == {
        "id": plain["id"],
        "type": "reasoning",
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": THOUGHTS}],
    }
    for wish in ({"summary": "auto"}, {"generate_summary": "concise"}):
        told = ask(api, reasoning=wish)["output"][0]
        assert told["summary"] == [{"type": "summary_text", "text": THOUGHTS}] and "content" not in told
    assert ask(api, reasoning={"summary": "none"})["output"][0]["content"]
    assert ask(api)["usage"]["output_tokens_details"]["reasoning_tokens"] > 20


def test_what_it_thought_comes_back_whichever_part_of_it_a_client_keeps(talker):
    api = talker(THOUGHT + "Yes.")
    include = ["reasoning.encrypted_content"]
    [plain, said] = ask(api, include=include)["output"]
    [told, _] = ask(api, include=include, reasoning={"summary": "auto"})["output"]
    kept = [plain, told, {**told, "content": plain["content"]}]
    kept += [{**plain, "content": None}, {**told, "summary": []}, {**plain, "encrypted_content": "of another server"}]
    for reasoning in kept:
        prompt = prompt_of(api, ["hi", reasoning, said, "?"][1:3] + [{"role": "user", "content": "?"}])
        assert f"<|im_start|>assistant\n{THOUGHT}Yes.<|im_end|>" in prompt, reasoning
    for strange in ("gAAAA", "unsealed:!", "unsealed:/w=="):
        assert THOUGHTS not in prompt_of(
            api, [{**told, "summary": [], "encrypted_content": strange}, said, {"role": "user", "content": "?"}]
        )


def test_an_effort_goes_to_the_template(talker):
    api = talker("x", template="{{ reasoning_effort | default('none given') }}" + TEMPLATE)
    assert prompt_of(api, "hi").startswith("none given")
    for effort in ("low", "medium", "high"):
        assert prompt_of(api, "hi", reasoning={"effort": effort}).startswith(effort)
    assert ask(api, reasoning={"effort": "low"})["reasoning"] == {"effort": "low", "summary": None}
    assert "reasoning_effort has no effect" in str(ask(talker("x"), reasoning={"effort": "high"})["warnings"])


def test_thinking_can_be_switched_off_and_bounded(talker):
    api = talker("x")
    off = "<think>\n\n</think>\n\n"
    for fields in ({"reasoning": {"effort": "none"}}, {"enable_thinking": False},
                   {"chat_template_kwargs": {"enable_thinking": False}}):  # fmt: skip
        assert prompt_of(api, "hi", **fields).endswith(off), fields
    assert off not in prompt_of(api, "hi")
    long = "<think>\n" + "hm " * 100 + "\n</think>\n\nYes."
    result = ask(talker(long), tools=[], reasoning_budget_tokens=12)
    assert len(result["output"][0]["content"][0]["text"]) < 40


# ---- coding agents -----------------------------------------------------------------------------------------------


def agents_request() -> dict:
    """What a coding agent sends in its second turn: rules as a developer's messages, tools of several types, what the
    model has thought as a summary that nothing else is kept of, calls and their results."""
    schema = {
        "type": "object",
        "properties": {
            "cmd": {"type": "string", "description": "Shell command to execute."},
            "yield_time_ms": {"type": "number", "description": "Wait before yielding output."},
            "prefix_rule": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["cmd"],
        "additionalProperties": False,
    }
    advice = "Read before you write, say what you have done, and never guess a path. " * 32
    tools = [
        {"type": "function", "name": f"tool_{i}", "description": advice, "strict": False, "parameters": schema}
        for i in range(8)
    ]
    inner = {"type": "function", "name": "close", "strict": False, "parameters": schema}
    patch = {
        "type": "custom",
        "name": "apply_patch",
        "description": advice,
        "format": {
            "type": "grammar",
            "syntax": "lark",
            "definition": 'start: begin_patch hunk+ end_patch\nbegin_patch: "*** Begin Patch" LF',
        },
    }
    return {
        "model": "an-agents-favourite",
        "instructions": "You are an agent.",
        "input": [
            {"type": "message", "id": "msg_a", "role": "developer", "content": [text(advice * 4)]},
            {"type": "message", "id": "msg_b", "role": "developer", "content": [text("<skills>" + advice)]},
            {"type": "message", "id": "msg_c", "role": "user", "content": [text("<environment_context>")]},
            {"type": "message", "id": "msg_d", "role": "user", "content": [text("Go.")]},
            {"type": "reasoning", "id": "rs_a", "summary": [{"type": "summary_text", "text": "Look first."}],
             "content": None, "encrypted_content": "unsealed:TG9vayBmaXJzdC4="},
            {"type": "message", "status": "completed", "id": "msg_e", "role": "assistant", "content": [
                {"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]},
            {"type": "function_call", "id": "fc_a", "name": "tool_1", "arguments": '{"cmd": "ls"}', "call_id": "call_a"},
            {"type": "function_call_output", "call_id": "call_a", "output": "a.txt\n"},
        ],
        "tools": [*tools, patch, {"type": "namespace", "name": "agents", "tools": [inner]},
                  {"type": "web_search", "external_web_access": False}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "01a22bb0",
        "client_metadata": {"installation_id": "x"},
    }  # fmt: skip


@pytest.mark.covers("O17")
def test_a_coding_agents_request_is_answered_and_its_next_turn_finds_it_in_the_cache(talker):
    body = agents_request()
    assert 30_000 < len(json.dumps(body)) < 60_000
    api = talker(THOUGHT + written("tool_2", '{"cmd": "cat a.txt"}'), n_ctx=120_000)
    first = response_of(events(api.post(URL, body)))
    assert kinds(first) == ["reasoning", "function_call"] and called(first) == [("tool_2", {"cmd": "cat a.txt"})]
    assert first["output"][0]["summary"][0]["text"] == THOUGHTS and not first["store"]
    assert api.get(f"{URL}/{first['id']}").status == 404
    call = {name: value for name, value in first["output"][1].items() if name not in ("status",)}
    body["input"] += [first["output"][0], call]
    body["input"] += [{"type": "function_call_output", "call_id": call["call_id"], "output": "x"}]
    usage = response_of(events(api.post(URL, body)))["usage"]
    n_before = first["usage"]["input_tokens"]
    assert usage["input_tokens_details"]["cached_tokens"] >= n_before > 20_000
