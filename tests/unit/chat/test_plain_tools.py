"""Templates that walk through schemas get simplified ones that they can read; others get what the client sent."""

from __future__ import annotations

import json

import pytest

from server.chat.jinja import TemplateError
from server.chat.plain_tools import simplify_schema, simplify_tools
from server.chat.template import ChatTemplate

USER = [{"role": "user", "content": "hi"}]
PICKY = """{% macro kind(spec) %}{{ {"string": "str", "integer": "int"}[spec.type] or
    ("list of " + kind(spec["items"]) if spec.type == "array" else
     "dict" if spec.type == "object" else kind({"type": spec.type}))}}{% endmacro %}
{% for tool in tools %}{{ tool.function.name + ": " + tool.function.description }}
{%- for name, spec in tool.function.parameters.properties | items %} {{ name }}={{ spec.description + kind(spec) }}
{%- endfor %}{% endfor %}"""
WAYS = {
    "no type": {},
    "null or text": {"anyOf": [{"type": "null"}, {"type": "string"}]},
    "a list of types": {"type": ["null", "integer"]},
    "a reference": {"$ref": "#/$defs/D"},
    "only null": {"type": "null"},
    "words": {"enum": ["a", "b"]},
    "a list of anything": {"type": "array", "description": "some "},
    "an odd type": {"type": 5},
    "odd ways": {"anyOf": [5, None, {"anyOf": []}]},
}


def prompt(source: str, tools: list) -> str:
    return "".join(text for text, _ in ChatTemplate(source, "", "").render(USER, True, {"tools": tools}))


def tool(**function: object) -> dict:
    return {"type": "function", "function": {"name": "f", **function}}


def test_a_template_that_takes_tools_as_they_are_gets_them_so():
    tools = [tool(), tool(parameters={"type": "object", "properties": {"a": {}}})]
    assert prompt("{{ tools | tojson }}", tools) == json.dumps(tools)


@pytest.mark.parametrize("spec", WAYS.values(), ids=WAYS)
def test_a_template_that_would_fail_gets_simple_schemas(spec):
    shown = prompt(PICKY, [tool(parameters={"type": "object", "properties": {"a": spec}})])
    assert " a=" in shown


@pytest.mark.parametrize(
    "tools", [[tool()], [tool(parameters=None)], [tool(parameters={})], [{}], [{"function": 5}]], ids=str
)
def test_what_is_left_out_of_tools_is_filled_in(tools):
    assert simplify_tools(tools)[0]["function"]["parameters"]["properties"] == {}
    assert simplify_tools(tools)[0]["function"]["description"] == ""
    assert json.dumps(tools) == json.dumps([{**one} for one in tools])


def test_a_template_that_fails_for_another_reason_says_so():
    with pytest.raises(TemplateError, match="never"):
        prompt("{{ raise_exception('never') }}", [tool()])


def test_schemas_of_any_depth_end():
    deep: object = {"type": "string"}
    for _ in range(500):
        deep = {"type": "object", "properties": {"a": deep}, "items": [deep]}
    assert simplify_schema(deep)["type"] == "object"
