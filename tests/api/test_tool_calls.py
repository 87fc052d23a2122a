"""Tool calls and reasoning in POST /v1/chat/completions over HTTP: constraints of requests, and the exact form of
answers, streamed and whole.

The fake model recites answers in the form of the template below, one letter at a time.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest

from tests.api.openai_wire import choices, chunks
from tests.fakes import FakeBackend
from tests.fakes import answer as answers

URL = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
REPLY = "assistant\n"
TEMPLATE = """\
{% if tools %}<|im_start|>system
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
For each call write <tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content or '' }}{% for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "x", "parameters": PARAMETERS}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
ARGUMENTS = '{"city": "Zürich \\"1\\"\\n", "days": 3}'


def written(name: str, arguments: str = "{}") -> str:
    """A call as the model writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


CALL = written("weather", ARGUMENTS)
THOUGHT = "<think>\nIt's about <b>weather</b>.\n</think>\n\n"


@pytest.fixture
def talker(make_api):
    """`talker(text, options...)`: a server whose model says this."""

    def make(text: str, *argv: str, n_slots: int = 1, template: str = TEMPLATE):
        backend = FakeBackend(answers(text, REPLY), n_slots=n_slots, n_ctx=8192)
        backend.info = replace(backend.info, meta={"tokenizer.chat_template": template})
        return make_api(backend, argv).start()

    return make


def ask(api, **fields: object) -> dict:
    answer = api.post(URL, {"messages": HI, "tools": TOOLS, **fields})
    assert answer.status == 200, answer
    return answer.json()


def stream(api, **fields: object) -> list[dict]:
    return chunks(api.post(URL, {"messages": HI, "tools": TOOLS, "stream": True, **fields}))


def refuse(api, **fields: object) -> str:
    n_started = len(api.backend.samplers)
    answer = api.post(URL, {"messages": HI, "tools": TOOLS, **fields})
    assert answer.status == 400, answer
    assert len(api.backend.samplers) == n_started, "the engine was bothered with it"
    return answer.error["message"]


def message_of(api, index: int = 0, **fields: object) -> tuple[dict, str]:
    """The message and why it ended, which must be the same from a stream but for the ids of calls."""
    whole = ask(api, **fields)["choices"][index]
    message, finish = put_together(choices(stream(api, **fields), index))
    assert without_ids(message) == without_ids(whole["message"]) and finish == whole["finish_reason"]
    return whole["message"], whole["finish_reason"]


def put_together(parts: list[dict]) -> tuple[dict, str]:
    """The message that a client makes of the chunks of a choice."""
    assert parts[0]["delta"] == {"role": "assistant", "content": None}
    assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
    message: dict = {"role": "assistant", "content": None}
    calls: list[dict] = []
    for part in parts[1:]:
        delta = part["delta"]
        assert len(delta) <= 1, "one thing at a time"
        for name in ("content", "reasoning_content"):
            if delta.get(name):
                message[name] = (message.get(name) or "") + delta[name]
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(calls):
                assert call["id"] and call["type"] == "function" and call["function"]["name"]
                calls.append({"id": call["id"], "type": "function", "function": dict(call["function"])})
            else:
                assert call["index"] == len(calls) - 1 and set(call) == {"index", "function"}
                assert set(call["function"]) == {"arguments"}
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
        if "function_call" in delta:
            old = message.setdefault("function_call", {"name": delta["function_call"].get("name"), "arguments": ""})
            old["arguments"] += delta["function_call"]["arguments"]
    if calls:
        message["tool_calls"] = calls
    if message["content"] is None and not calls and "function_call" not in message:
        message["content"] = ""
    return message, parts[-1]["finish_reason"]


def without_ids(message: dict) -> dict:
    return {**message, "tool_calls": [{**call, "id": ""} for call in message.get("tool_calls", ())]}


def called(message: dict) -> list[tuple[str, object]]:
    """Names and arguments."""
    found = [call["function"] for call in message.get("tool_calls", ())]
    return [(one["name"], json.loads(one["arguments"])) for one in found]


# ---- calls -------------------------------------------------------------------------------------------------------


def test_every_field_of_a_call(talker):
    api = talker(CALL)
    [choice] = ask(api)["choices"]
    [call] = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": None} and choice["finish_reason"] == "tool_calls"
    assert call["id"].startswith("call_") and len(call["id"]) == len("call_") + 24
    assert call == {"id": call["id"], "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}


def test_every_field_of_a_streamed_call(talker):
    parts = choices(stream(talker(CALL)))
    deltas = [part["delta"] for part in parts]
    first = deltas[1]["tool_calls"][0]
    assert first == {
        "index": 0,
        "id": first["id"],
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    rest = [delta["tool_calls"] for delta in deltas[2:-1]]
    assert all(calls == [{"index": 0, "function": {"arguments": calls[0]["function"]["arguments"]}}] for calls in rest)
    assert "".join(calls[0]["function"]["arguments"] for calls in rest) == ARGUMENTS
    assert len(rest) > 5, "arguments come as they are written"
    assert (deltas[-1], parts[-1]["finish_reason"]) == ({}, "tool_calls")


TRANSCRIPTS = {
    "text alone": ("Hello <b>!", "Hello <b>!", "", [], "stop"),
    "a call": (CALL, None, "", [("weather", json.loads(ARGUMENTS))], "tool_calls"),
    "a text before": ("Let me see.\n" + CALL, "Let me see.", "", [("weather", json.loads(ARGUMENTS))], "tool_calls"),
    "two calls": (
        CALL + "\n" + written("clock"),
        None,
        "",
        [("weather", json.loads(ARGUMENTS)), ("clock", {})],
        "tool_calls",
    ),
    "reasoning and a text": (THOUGHT + "Yes.", "Yes.", "It's about <b>weather</b>.", [], "stop"),
    "reasoning and a call": (
        THOUGHT + written("clock"),
        None,
        "It's about <b>weather</b>.",
        [("clock", {})],
        "tool_calls",
    ),
    "no tool of ours": (written("delete_all"), written("delete_all"), "", [], "stop"),
    "like a mark": ("a <tool_box> b <tool_", "a <tool_box> b <tool_", "", [], "stop"),
    "nothing": ("", "", "", [], "stop"),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_what_a_model_writes_is_told_apart(talker, name):
    said, content, reasoning, calls, finish = TRANSCRIPTS[name]
    message, reason = message_of(talker(said))
    assert (message["content"], message.get("reasoning_content", ""), called(message), reason) == (
        content,
        reasoning,
        calls,
        finish,
    )


def test_several_answers_have_calls_of_their_own(talker):
    api = talker(CALL, n_slots=2)
    found = ask(api, n=2)["choices"]
    ids = [choice["message"]["tool_calls"][0]["id"] for choice in found]
    assert len(set(ids)) == 2 and [choice["index"] for choice in found] == [0, 1]
    for index in (0, 1):
        message, finish = message_of(api, index, n=2)
        assert called(message) == [("weather", json.loads(ARGUMENTS))] and finish == "tool_calls"


def test_a_call_that_a_limit_cuts_off_is_no_whole_one(talker):
    api = talker(CALL)
    message, finish = message_of(api, max_tokens=len(CALL.encode()) - 30)
    assert finish == "length"
    arguments = message["tool_calls"][0]["function"]["arguments"]
    assert ARGUMENTS.startswith(arguments) and arguments != ARGUMENTS
    message, finish = message_of(api, max_tokens=20)
    assert finish == "length" and "tool_calls" not in message


def test_calls_stay_in_the_text_where_that_is_wanted(talker):
    api = talker(CALL)
    assert message_of(api, parse_tool_calls=False) == ({"role": "assistant", "content": CALL}, "stop")
    assert message_of(api, tool_choice="none") == ({"role": "assistant", "content": CALL}, "stop")
    assert message_of(api, tools=[]) == ({"role": "assistant", "content": CALL}, "stop")


def test_an_option_leaves_everything_in_the_text(talker):
    api = talker(THOUGHT + CALL, "--skip-chat-parsing")
    assert message_of(api) == ({"role": "assistant", "content": THOUGHT + CALL}, "stop")


@pytest.mark.parametrize("said", [CALL, "Let me see.\n" + CALL], ids=["a call", "a text before"])
def test_the_older_form_is_answered_in_the_older_form(talker, said):
    api = talker(said)
    message, finish = message_of(api, tools=None, functions=[WEATHER["function"], CLOCK["function"]])
    assert message["function_call"] == {"name": "weather", "arguments": ARGUMENTS} and finish == "function_call"
    assert "tool_calls" not in message and message["content"] == (None if said == CALL else "Let me see.")


def test_timings_come_with_parts_of_calls_and_reasoning(talker):
    found = stream(talker(THOUGHT + CALL), timings_per_token=True)
    parts = [chunk for chunk in found if chunk["choices"][0]["delta"].keys() & {"tool_calls", "reasoning_content"}]
    assert len(parts) > 10 and all("timings" in chunk for chunk in parts)


APRIEL = (
    TEMPLATE.replace("<think>", "[BEGIN FINAL RESPONSE]")
    .replace("\n<tool_call>\n{", "\n<tool_calls>[{")
    .replace("}\n</tool_call>{%", "}]</tool_calls>{%")
)


def test_a_call_ends_a_thinking_whose_end_is_written_before_text_only(talker):
    api = talker(
        'So, "weather"!\n<tool_calls>[{"name": "weather", "arguments": {"city": "!"}}]</tool_calls>', template=APRIEL
    )
    for fields in ({}, {"tool_choice": "required"}):
        message, finish = message_of(api, stop=["!"], **fields)
        assert finish == "tool_calls" and called(message) == [("weather", {"city": "!"})]
        assert message["reasoning_content"] == 'So, "weather"!'


# ---- what binds the text -----------------------------------------------------------------------------------------


def bound(api, **fields: object) -> dict:
    """The settings of a request's task."""
    ask(api, max_tokens=1, **fields)
    return max(api.get("/slots").json(), key=lambda slot: slot["id_task"])


FORCED = {"type": "function", "function": {"name": "clock"}}
FLAT = {"type": "function", "name": "clock"}


@pytest.mark.parametrize("choice", ["required", FORCED, FLAT], ids=["required", "named", "named as in Responses"])
def test_where_a_call_is_required_the_grammar_holds_from_the_beginning(talker, choice):
    settings = bound(talker(CALL), tool_choice=choice)
    assert settings["grammar"] and not settings["grammar_lazy"]
    assert ("weather" in settings["grammar"]) == (choice == "required") and "clock" in settings["grammar"]


def test_where_a_call_is_allowed_the_grammar_waits_for_it(talker):
    settings = bound(talker(CALL))
    assert settings["grammar_lazy"] and "weather" in settings["grammar"]
    assert [trigger["value"] for trigger in settings["grammar_triggers"]] == ["<tool_call>"]


def test_stop_words_end_no_call_that_is_required(talker):
    message, finish = message_of(talker(CALL), tool_choice="required", stop=["\n", '"', "days"])
    assert called(message) == [("weather", json.loads(ARGUMENTS))] and finish == "tool_calls"


@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": None}], ids=repr)
def test_where_nothing_can_be_called_no_grammar_holds(talker, fields):
    assert bound(talker("x"), **fields)["grammar"] == ""


def test_allowed_tools_leave_the_others_out(talker):
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [FORCED]}}
    grammar = bound(talker(CALL), tool_choice=allowed)["grammar"]
    assert "clock" in grammar and "weather" not in grammar
    message, finish = message_of(talker(CALL), tool_choice=allowed)
    assert finish == "stop" and message["content"] == CALL, "not one of those that may be called"


@pytest.mark.parametrize(
    "form",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"type": "object", "required": ["zip"]}},
            }
        },
        {"json_schema": {"type": "object", "required": ["zip"]}},
    ],
    ids=["response_format", "json_schema"],
)
def test_a_call_or_a_fitting_answer(talker, form):
    settings = bound(talker(CALL), **form)
    assert not settings["grammar_lazy"] and "weather" in settings["grammar"] and "zip" in settings["grammar"]
    settings = bound(talker(CALL), tool_choice="required", **form)
    assert "zip" not in settings["grammar"]


@pytest.mark.parametrize("form", [{"grammar": 'root ::= "x"'}, {"regex": "x+"}, {"choice": ["x"]}], ids=repr)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_other_forms_and_tools_exclude_each_other(talker, form, choice):
    api = talker("x")
    [name] = form
    assert name in refuse(api, tool_choice=choice, **form)
    assert bound(api, tool_choice="none", **form)["grammar"]


ODD = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a)\\1"}}, "required": ["a"]}


def test_what_cannot_be_kept_of_a_schema_is_told_or_refused_if_strict(talker):
    api = talker("x")
    odd = {"type": "function", "function": {"name": "odd", "parameters": ODD}}
    warnings = ask(api, tools=[CLOCK, odd], max_tokens=1)["warnings"]
    assert any("odd" in line and "pattern" in line for line in warnings)
    odd["function"]["strict"] = True
    assert "odd" in refuse(api, tools=[CLOCK, odd])


def test_a_schema_that_nothing_fits_is_refused_by_the_tools_name(talker):
    never = {"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}
    message = refuse(talker("x"), tools=[CLOCK, {"type": "function", "function": {"name": "odd", "parameters": never}}])
    assert "odd" in message


@pytest.mark.parametrize("path", ["/apply-template", URL + "/input_tokens", URL])
def test_tools_are_checked_on_all_routes_of_chats(talker, path):
    api = talker("x")
    answer = api.post(path, {"messages": HI, "tools": [{"type": "function", "function": {"name": "a b"}}]})
    assert answer.status == 400 and "tools[0].function.name" in answer.error["message"]


# ---- reasoning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "content", "reasoning"),
    [
        ("none", THOUGHT + "Yes.", None),
        ("auto", "Yes.", "It's about <b>weather</b>."),
        ("deepseek", "Yes.", "It's about <b>weather</b>."),
        ("deepseek-legacy", THOUGHT + "Yes.", "It's about <b>weather</b>."),
    ],
)
@pytest.mark.parametrize("tools", [TOOLS, None], ids=["tools", "no tools"])
def test_each_form_of_reasoning(talker, form, content, reasoning, tools):
    api = talker(THOUGHT + "Yes.")
    message, finish = message_of(api, reasoning_format=form, tools=tools)
    assert (message["content"], message.get("reasoning_content"), finish) == (content, reasoning, "stop")


def test_an_option_says_where_reasoning_goes_unless_the_request_does(talker):
    api = talker(THOUGHT + "Yes.", "--reasoning-format", "none")
    assert message_of(api)[0]["content"] == THOUGHT + "Yes."
    assert message_of(api, reasoning_format="auto")[0]["content"] == "Yes."


def test_reasoning_that_the_template_has_begun(talker):
    opened = TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    api = talker(THOUGHT + "Yes.", template=opened)
    message, _ = message_of(api)
    assert (message["content"], message["reasoning_content"]) == ("Yes.", "It's about <b>weather</b>.")


def test_tokens_of_reasoning_are_counted(talker):
    usage = ask(talker(THOUGHT + "Yes."))["usage"]
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] <= len(THOUGHT)
    assert ask(talker("Yes."))["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


@pytest.mark.parametrize("name", ["reasoning_budget_tokens", "thinking_budget_tokens"])
def test_a_budget_ends_the_reasoning_with_its_message(talker, name):
    text = "<think>\n" + 40 * "so " + "\n</think>\n\nYes."
    message, finish = message_of(talker(text), **{name: 12, "reasoning_budget_message": "\nEnough."})
    assert message["reasoning_content"].startswith("so so") and message["reasoning_content"].endswith("\nEnough.")
    assert len(message["reasoning_content"]) < 12 + len("\nEnough.") + 1
    assert finish == "stop"


def test_who_must_not_think_does_not(talker):
    opened = TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    api = talker(THOUGHT + "Yes.", template=opened.partition("{% if enable_thinking")[0] + "{% endif %}")
    whole = ask(api, enable_thinking=False)
    assert "reasoning_content" not in whole["choices"][0]["message"] and "warnings" not in whole
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] <= len("\n</think>\n\n")


def prompt_of(api, **fields: object) -> str:
    return api.post("/apply-template", {"messages": HI, **fields}).json()["prompt"]


CLOSED = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_thinking": False},
        {"reasoning_effort": "none"},
        {"reasoning_budget_tokens": 0},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
    ids=repr,
)
def test_all_ways_to_say_that_it_must_not_think_reach_the_template(talker, fields):
    api = talker("Yes.")
    assert prompt_of(api, **fields).endswith(CLOSED) and not prompt_of(api).endswith(CLOSED)


def test_options_of_reasoning_are_defaults(talker):
    api = talker("Yes.", "--reasoning", "off")
    assert prompt_of(api).endswith(CLOSED)
    assert not prompt_of(api, enable_thinking=True).endswith(CLOSED)
    assert not prompt_of(api, chat_template_kwargs={"enable_thinking": True}).endswith(CLOSED)


# ---- conversations -----------------------------------------------------------------------------------------------


def test_a_call_and_its_result_come_back_to_the_model(talker):
    api = talker("x")
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    for content in ("sunny", [{"type": "text", "text": "sunny"}]):
        messages = [
            *HI,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": content},
        ]
        prompt = prompt_of(api, messages=messages, tools=TOOLS)
        assert written("weather", '{"city": "Rome"}') in prompt and "<|im_start|>tool\nsunny<|im_end|>" in prompt


def test_a_conversation_in_the_older_form_comes_back_too(talker):
    messages = [
        *HI,
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'}},
        {"role": "function", "name": "weather", "content": "sunny"},
    ]
    prompt = prompt_of(talker("x"), messages=messages, functions=[WEATHER["function"]])
    assert written("weather", '{"city": "Rome"}') in prompt and "<|im_start|>tool\nsunny<|im_end|>" in prompt


# ---- probabilities -----------------------------------------------------------------------------------------------


def spoken(logprobs: dict) -> str:
    return b"".join(bytes(one["bytes"]) for one in logprobs["content"]).decode("utf-8", "replace")


@pytest.mark.parametrize("said", [THOUGHT + "Yes, it is.", "naïve 😀!", "Yes.\n" + CALL], ids=repr)
def test_log_probabilities_are_those_of_the_text(talker, said):
    api = talker(said)
    fields = partial(dict, logprobs=True, top_logprobs=1)
    whole = ask(api, **fields())["choices"][0]
    streamed = [part["logprobs"] for part in choices(stream(api, **fields())) if part["logprobs"]]
    assert [one for part in streamed for one in part["content"]] == whole["logprobs"]["content"]
    assert spoken(whole["logprobs"]).strip() == whole["message"]["content"].strip()
