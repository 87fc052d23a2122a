"""Tool calls, results and reasoning in Ollama's API over HTTP.

The fake model recites answers in the form of the template of `test_tool_calls`, one letter at a time.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.api.test_ollama import HI, ask, lines, refuse, text_of
from tests.api.test_tool_calls import ARGUMENTS, CALL, REPLY, TEMPLATE, THOUGHT, TOOLS, written
from tests.fakes import FakeBackend
from tests.fakes import answer as answers

CHAT = "/api/chat"


@pytest.fixture
def talker(make_api):
    """`talker(text)`: a server with one slot, whose model says this."""

    def make(text: str, template: str = TEMPLATE):
        backend = FakeBackend(answers(text, REPLY), n_ctx=8192)
        backend.info = replace(backend.info, meta={"tokenizer.chat_template": template})
        return make_api(backend).start()

    return make


def message_of(api, **fields: object) -> dict:
    """The message, which a stream says in parts: texts of a letter or more, and whole calls."""
    body = {"messages": HI, "tools": TOOLS, **fields}
    whole = ask(api, CHAT, **body)
    found = [line["message"] for line in lines(api.post(CHAT, body))]
    for name in ("content", "thinking"):
        assert "".join(one.get(name, "") for one in found) == whole["message"].get(name, "")
    assert [called(one) for one in found if "tool_calls" in one] == [[call] for call in called(whole["message"])]
    return whole["message"]


def called(message: dict) -> list[tuple[int, str, dict]]:
    calls = message.get("tool_calls", [])
    assert all(call["id"] for call in calls)
    return [(call["function"]["index"], call["function"]["name"], call["function"]["arguments"]) for call in calls]


def prompt_of(api, messages: list[dict], **fields: object) -> str:
    ask(api, CHAT, messages=messages, tools=TOOLS, options={"num_predict": 1}, **fields)
    [slot] = api.get("/slots").json()
    return slot["prompt"]


@pytest.mark.covers("L15")
def test_calls_have_objects_as_arguments(talker):
    message = message_of(talker("Let me see." + CALL + written("clock")))
    assert called(message) == [(0, "weather", json.loads(ARGUMENTS)), (1, "clock", {})]
    assert message["content"].strip() == "Let me see."


def test_a_text_between_calls_comes_between_them(talker):
    api = talker(written("clock") + "and" + CALL)
    found = [line["message"] for line in lines(api.post(CHAT, {"messages": HI, "tools": TOOLS}))]
    kinds = ["call" if "tool_calls" in one else "text" for one in found if one["content"].strip() or len(one) > 2]
    assert kinds[0] == "call" and kinds[-1] == "call" and set(kinds[1:-1]) <= {"text"}


@pytest.mark.covers("L18")
def test_a_choice_of_tools_counts_though_ollama_has_none(talker):
    api = talker(CALL)
    chosen = {"type": "function", "name": "weather"}  # as the AI SDK's provider writes it
    for choice, is_lazy in (("required", False), (chosen, False), ("auto", True), (None, True)):
        assert called(message_of(api, tool_choice=choice)) == [(0, "weather", json.loads(ARGUMENTS))]
        [slot] = api.get("/slots").json()
        assert slot["grammar_lazy"] == is_lazy and ("clock" in slot["grammar"]) == (choice != chosen)
    assert not called(message_of(api, tool_choice="none"))
    for choice in ("sometimes", 1, {**chosen, "name": "x"}):
        assert "tool_choice" in refuse(api, CHAT, messages=HI, tools=TOOLS, tool_choice=choice)


@pytest.mark.parametrize("n", [CALL.index(ARGUMENTS), CALL.index(ARGUMENTS) + 1, len(CALL) - 30])
def test_a_call_that_was_cut_off_is_not_sent(talker, n):
    api = talker(CALL)
    answer = ask(api, CHAT, messages=HI, tools=TOOLS, options={"num_predict": n})
    assert "tool_calls" not in answer["message"] and answer["done_reason"] == "length"
    body = {"messages": HI, "tools": TOOLS, "options": {"num_predict": n}}
    assert not any("tool_calls" in line["message"] for line in lines(api.post(CHAT, body)))


def test_calls_and_results_of_earlier_turns_come_into_the_prompt(talker):
    call = {"function": {"name": "weather", "arguments": {"city": "Bern"}}}
    other = {"function": {"name": "clock", "arguments": {}}}
    prompt = prompt_of(
        talker("x"),
        [
            *HI,
            {"role": "assistant", "content": "", "thinking": "so", "tool_calls": [call, other]},
            {"role": "tool", "tool_name": "clock", "content": "noon"},
            {"role": "tool", "tool_name": "weather", "content": "rain"},
        ],
    )
    assert written("weather", '{"city": "Bern"}') in prompt and written("clock") in prompt
    assert "noon" in prompt and "rain" in prompt and "<think>\nso\n</think>" in prompt


@pytest.mark.covers("L16")
def test_thinking_is_told_from_the_text(talker):
    message = message_of(talker(THOUGHT + "Rain."))
    assert message["thinking"].strip() == "It's about <b>weather</b>." and message["content"].strip() == "Rain."
    api = talker(THOUGHT + "Rain.")
    answer = ask(api, "/api/generate", prompt="hi")
    assert answer["thinking"].strip() == "It's about <b>weather</b>." and text_of(answer).strip() == "Rain."


@pytest.mark.parametrize(("think", "is_off"), [(None, False), (True, False), ("low", False), (False, True)])
def test_thinking_is_switched_on_and_off(talker, think, is_off):
    prompt = prompt_of(talker("x"), HI, think=think)
    assert ("<think>\n\n</think>" in prompt) == is_off


def test_a_wish_about_thinking_that_the_template_does_not_read_is_told(talker):
    plain = "{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}assistant\n"
    api = talker("x", plain)
    assert "think" in api.post(CHAT, {"messages": HI, "think": True}).headers["x-warnings"]
    assert "effort" in talker("x").post(CHAT, {"messages": HI, "think": "high"}).headers["x-warnings"]


def test_a_form_goes_with_tools_and_binds_the_text(talker):
    api = talker(CALL)
    ask(api, CHAT, messages=HI, tools=TOOLS, format={"type": "object", "properties": {"n": {"const": 1}}})
    assert "weather" in api.backend.samplers[-1].grammar
