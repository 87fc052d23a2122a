"""Tool calls and reasoning through the real program and library. The models recite answers in the format of a model
family, whose marks are control tokens or ordinary text, in tokens that end anywhere.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from server.chat.output.write_calls import WrittenCall, write_calls
from server.chat.template import ChatTemplate
from tests.call_templates import CALL_TEMPLATES
from tests.reciting_models import recite_answers
from tests.support import NO_PROXY, PATIENCE, events, start_server

MARKS = {  # of the families whose vocabularies have them as tokens of their own
    "hermes": ("<think>", "</think>", "<tool_call>", "</tool_call>"),
    "qwen3-coder": ("<think>", "</think>", "<tool_call>", "</tool_call>"),
    "mistral": ("[TOOL_CALLS]",),
    "deepseek": ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    "gemma": ("<|tool_call>", "<tool_call|>"),
    "apertus": ("<|tools_prefix|>", "<|tools_suffix|>"),
}
# where a grammar holds, objects without a schema are JSON, which is not how Gemma writes them: it gets the first two
ARGUMENTS = {"city": 'Zürich "1"\n世界 \\ 😀', "days": 3, "where": {"list": [1, None, True], "text": "{}"}}
PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}, "where": {"type": "object"}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": PROPERTIES}}},
    {"type": "function", "function": {"name": "clock"}},
]
THOUGHT, TEXT = "They want <b>it</b>.", "Let me see."


@pytest.fixture(scope="module", params=[(name, is_token) for name in MARKS for is_token in (True, False)], ids=str)
def family(request, libs_folder, tmp_path_factory) -> Iterator[tuple[str, dict[str, Any]]]:
    """A server of a model of a family, and what its message has to hold."""
    name, is_token = request.param
    form = ChatTemplate(CALL_TEMPLATES[name], "", "").call_format
    thinks = (
        form.reasoning and name != "deepseek"
    )  # there the prompt begins the thought, and here it goes on with a cue
    thought = form.reasoning.open + THOUGHT + form.reasoning.close if thinks else ""
    arguments = {key: value for key, value in ARGUMENTS.items() if key != "where" or name != "gemma"}
    call = WrittenCall("weather", arguments, form.ids.prefix + string.ascii_letters[: form.ids.n_letters])
    said = f"{thought}{TEXT}\n{write_calls(form, [call])}"
    path = tmp_path_factory.mktemp("calls") / "family.gguf"
    recite_answers(path, {1: said}, template=CALL_TEMPLATES[name], control=MARKS[name] if is_token else ())
    expected = {"content": TEXT, "reasoning_content": THOUGHT if thought else None, "arguments": arguments}
    with start_server(["-m", path, "-c", 8192, "-np", 2, "-t", 1]) as running:
        yield running.url + "/v1/chat/completions", expected
        print(running.log)


def ask(url: str, **fields: object) -> requests.Response:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS, "temperature": 0, **fields}
    answer = requests.post(url, json=body, timeout=PATIENCE, proxies=NO_PROXY, stream=bool(fields.get("stream")))
    assert answer.status_code == 200, answer.text
    return answer


def check(message: dict[str, Any], expected: dict[str, Any]) -> None:
    [call] = message["tool_calls"]
    assert call["id"] and call["type"] == "function" and call["function"]["name"] == "weather"
    said = {name: message.get(name) for name in ("content", "reasoning_content")}
    assert {**said, "arguments": json.loads(call["function"]["arguments"])} == expected


def test_a_message_with_thought_text_and_call(family):
    url, expected = family
    answer = ask(url, n=2).json()
    for choice in answer["choices"]:
        check(choice["message"], expected)
        assert choice["finish_reason"] == "tool_calls"
    n_thought = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert (n_thought > 0) == bool(expected["reasoning_content"])


def test_the_same_message_from_a_stream(family):
    url, expected = family
    message: dict[str, Any] = {}
    finish = None
    for chunk in events(ask(url, stream=True)):
        for choice in chunk["choices"] if chunk != "[DONE]" else ():
            finish = choice["finish_reason"] or finish
            delta = choice["delta"]
            for name in ("content", "reasoning_content"):
                if delta.get(name):
                    message[name] = message.get(name, "") + delta[name]
            for part in delta.get("tool_calls", ()):
                if "id" in part:
                    message.setdefault("tool_calls", []).append(part)
                else:
                    message["tool_calls"][-1]["function"]["arguments"] += part["function"]["arguments"]
    check(message, expected)
    assert finish == "tool_calls"


def test_a_stop_word_of_the_text_ends_neither_thought_nor_call(family):
    url, expected = family
    check(ask(url, stop=["want", "Zür", "}", "\\n"]).json()["choices"][0]["message"], expected)
    [choice] = ask(url, stop=["see"]).json()["choices"]
    assert choice["message"]["content"] == "Let me " and choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]
