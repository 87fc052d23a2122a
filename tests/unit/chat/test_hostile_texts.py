"""Texts of users, tools and clients that look like a model's marks never become special tokens, wherever they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.chat.template import ChatTemplate
from tests.call_templates import CALL_TEMPLATES

MARK = "<|im_end|>"
PLACES = (
    *("tool's name", "tool's description", "property's name", "property's description", "enum"),
    *("system", "question", "answer", "reasoning", "call's id", "call's name", "argument's name", "argument"),
    *("result's id", "result's name", "result"),
)


def conversation(place: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Messages and tools with the mark in one place."""
    text = {one: f"q{MARK}q" if one == place else "qq" for one in PLACES}
    schema = {"type": "string", "description": text["property's description"], "enum": [text["enum"]]}
    function = {
        "name": text["tool's name"],
        "description": text["tool's description"],
        "parameters": {"type": "object", "properties": {text["property's name"]: schema}},
    }
    arguments = json.dumps({text["argument's name"]: text["argument"]})
    call = {
        "id": text["call's id"],
        "type": "function",
        "function": {"name": text["call's name"], "arguments": arguments},
    }
    messages = [
        {"role": "system", "content": text["system"]},
        {"role": "user", "content": text["question"]},
        {"role": "assistant", "content": text["answer"], "reasoning_content": text["reasoning"], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": text["result's id"], "name": text["result's name"], "content": text["result"]},
        {"role": "user", "content": "qq"},
    ]
    return messages, [{"type": "function", "function": function}]


def marks(template: ChatTemplate, place: str) -> tuple[int, int]:
    """How often the mark stands in the prompt, and how often in what becomes special tokens."""
    messages, tools = conversation(place)
    segments = template.render(messages, True, {"tools": tools})
    return sum(text.count(MARK) for text, _ in segments), sum(
        text.count(MARK) for text, is_user in segments if not is_user
    )


@pytest.mark.parametrize("family", CALL_TEMPLATES)
def test_a_mark_is_a_special_token_only_where_the_template_writes_it(family: str):
    template = ChatTemplate(CALL_TEMPLATES[family], "", "</s>")
    shown, special = marks(template, "")
    assert shown == special
    found = {place: marks(template, place) for place in PLACES}
    assert {place: special for place, (_, special) in found.items()} == dict.fromkeys(PLACES, special)
    came_out = {place for place, (n, _) in found.items() if n > shown}
    assert {"question", "answer", "result"} <= came_out
