"""Random tools in each family's format: every text of the grammar that requires a call is read as valid calls."""

from __future__ import annotations

import os
from typing import Any

import pytest

from server.chat.output.call_grammar import call_constraint
from tests.call_templates import CALL_TEMPLATES
from tests.fuzzing import LONG_FACTOR
from tests.random_calls import body_of, judge
from tests.unit.chat.output.test_calls_fuzz import FORMATS, hear
from tests.unit.grammar.test_json_schema import random_texts

N_BODIES = 3 * (LONG_FACTOR if os.environ.get("LLAMA_SRV_TEST_LONG") == "1" else 1)


def check(family: str, body: dict[str, Any], seed: object) -> None:
    """Texts of the grammar, read and judged."""
    form, choice = FORMATS[family], body["tool_choice"]
    names = [choice["function"]["name"]] if isinstance(choice, dict) else None
    body = {**body, "parallel_tool_calls": body.get("parallel_tool_calls", True) and names is None}
    parallel = body["parallel_tool_calls"]
    made = call_constraint(form, body["tools"], choice="required", names=names, parallel=parallel)
    assert made.anchored
    for text in random_texts(made.grammar, seed, 4, size=200):
        heard = hear(form, body["tools"], iter(text))
        calls = [
            {"id": str(i), "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(heard.calls, start=1)
        ]
        content = "".join(part for _, part in heard.texts)
        message = {"content": content or None, "tool_calls": calls}
        judge(body, {"message": message, "finish_reason": "tool_calls"})


@pytest.mark.parametrize("family", CALL_TEMPLATES)
def test_whatever_a_grammar_of_calls_allows_is_calls_that_fit(family: str):
    for seed in range(N_BODIES):
        check(family, body_of(f"{family} {seed}"), seed)


NUMBER = {"type": "integer", "minimum": 5, "maximum": 9}
PROPERTIES: dict[str, dict[str, Any]] = {
    "an argument of two words": {"two words": NUMBER, "two": NUMBER, "a=b": NUMBER, "a": NUMBER},
    "a text like a number": {"a": {"enum": [0, "1", "one"]}, "b": {"anyOf": [NUMBER, {"enum": ["1", "one"]}]}},
    "a text like an object": {
        "a": {"anyOf": [{"type": "object", "properties": {"n": NUMBER}, "required": ["n"]}, {"enum": ["{}", "[]"]}]}
    },
    "a text like a word of JSON": {"a": {"enum": ["true", "null", "None", 1]}, "b": {"enum": [True, "false", None]}},
    "a text like a mark": {"a": {"enum": ["</parameter>", "</arg_value>", "\n", "", " ", "<tool_call>", "x"]}},
}


@pytest.mark.parametrize("family", CALL_TEMPLATES)
@pytest.mark.parametrize("name", PROPERTIES)
def test_arguments_that_could_be_misread_are_not(family: str, name: str):
    schema = {"type": "object", "properties": PROPERTIES[name], "required": list(PROPERTIES[name])}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    for seed in range(3):
        check(family, {"tools": [tool], "tool_choice": "required"}, seed)
