"""Hostile tools: huge, deep, many, with names that look like marks. Each is answered or refused with 400, and the
server stays alive.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.api.conftest import Api
from tests.fakes import FakeBackend
from tests.tiny_models import CHATML

GOOD = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(parameters: object = GOOD, name: object = "f", **more: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def nested(depth: int, kind: str = "properties") -> Any:
    """A schema so many levels deep, as text: `json.dumps` would give up before the server does."""
    left, right = {
        "properties": ('{"type":"object","properties":{"a":', "}}"),
        "items": ('{"type":"array","items":', "}"),
        "anyOf": ('{"anyOf":[{"type":"null"},', "]}"),
        "not": ('{"not":', "}"),
    }[kind]
    return left * depth + '{"type":"string"}' + right * depth


def members(n: int, schema: object) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": schema for i in range(n)}}


LOOP = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/x"}},
    "required": ["a"],
    "$defs": {"x": {"$ref": "#/$defs/x"}},
}
TREE = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/x"}},
    "$defs": {"x": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/x"}, {"type": "null"}]}}},
}
BLOWN_UP = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/d0"}},
    "$defs": {
        f"d{i}": {"type": "object", "properties": {k: {"$ref": f"#/$defs/d{i + 1}"} for k in "abcdefgh"}}
        for i in range(40)
    }
    | {"d40": {"type": "string"}},
}
HOSTILE: dict[str, list[dict[str, Any]]] = {
    "a schema of ten megabytes": [tool({"type": "object", "description": "x" * 10_000_000})],
    "an enum of ten megabytes": [
        tool({"type": "object", "properties": {"a": {"enum": [f"value {i}" for i in range(700_000)]}}})
    ],
    "an enum of a megabyte": [
        tool({"type": "object", "properties": {"a": {"enum": [f"value {i}" for i in range(70_000)]}}})
    ],
    "a thousand tools": [tool(name=f"f{i}") for i in range(1000)],
    "a thousand tools of some size": [
        tool(members(8, {"type": "string", "maxLength": 30}), f"f{i}") for i in range(1000)
    ],
    "more than a thousand tools": [tool(name=f"f{i}") for i in range(1100)],
    "ten thousand properties": [tool(members(10_000, {"type": "string"}))],
    "a thousand properties with patterns": [tool(members(1000, {"type": "string", "pattern": "^(a|b)*[^c]{1,90}x$"}))],
    "patterns that blow up": [tool(members(20, {"type": "string", "pattern": "((((a{9}){9}){9}){9}){9}"}))],
    "a text of a billion characters": [tool(members(3, {"type": "string", "minLength": 10**9}))],
    "a list of a billion items": [tool(members(3, {"type": "array", "minItems": 10**9, "items": {"type": "object"}}))],
    "numbers of a thousand digits": [tool(members(3, {"type": "integer", "minimum": 10**1000, "maximum": 10**1001}))],
    "a reference to itself": [tool(LOOP)],
    "a schema that contains itself": [tool(TREE)],
    "references that blow up": [tool(BLOWN_UP)],
    "a tool like a mark": [tool(name="<tool_call>")],
    "a tool with a quotation mark": [tool(name='f"')],
    "a tool with a new line": [tool(name="f\ng")],
    "a tool of blanks": [tool(name=" ")],
    "a tool without letters": [tool(name="")],
    "a tool in another script": [tool(name="名前")],
    "a tool with a zero": [tool(name="f\0")],
    "a tool with half a character": [tool(name="f\ud800")],
    "a long name": [tool(name="f" * 100_000)],
    "two tools of one name": [tool(), tool()],
    "names that are words of JSON": [
        tool(name=name) for name in ("null", "true", "name", "arguments", "tool_call", "functions", "all")
    ],
    "marks in properties": [
        tool(
            {
                "type": "object",
                "properties": {
                    mark: {"type": "string"} for mark in ("</parameter>", '"', "\n", "<|im_end|>", "", "'", "=")
                },
            }
        )
    ],
    "marks in enums": [
        tool(
            {
                "type": "object",
                "properties": {"a": {"enum": ["</tool_call>", "<|im_end|>", '"', "\n</parameter>\n", "\0"]}},
            }
        )
    ],
    "half characters": [tool({"type": "object", "properties": {"a\udc00": {"enum": ["\ud800"]}}})],
    "no schema": [tool(None)],
    "a schema of another kind": [tool({"type": "string"})],
    "a schema that nothing fits": [tool({"type": "object", "properties": {"a": False}, "required": ["a"]})],
    "a schema that is a list": [tool([])],
    "a description of ten megabytes": [tool(description="x" * 10_000_000)],
}
CHOICES = ("auto", "required", {"type": "function", "function": {"name": "f"}})


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    """A server whose model knows ChatML and no tools."""
    backend = FakeBackend(n_ctx=8192, n_slots=2)
    backend.info = replace(backend.info, meta={"tokenizer.chat_template": CHATML})
    one = Api(backend).start()
    yield one
    one.stop()
    one.wait_for_threads()


def check(api: Any, body: bytes) -> int:
    """The status, which is no fault of the server's."""
    answer = api.send("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    assert answer.status in (200, 400, 413), answer
    if answer.status != 200:
        assert len(answer.error["message"]) < 2000
    return answer.status


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tools_are_answered_or_refused(api, name: str):
    for choice in CHOICES:
        body = {
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 4,
            "tools": HOSTILE[name],
            "tool_choice": choice,
        }
        check(api, json.dumps(body).encode())
    assert api.get("/health").status == 200


@pytest.mark.parametrize("kind", ["properties", "items", "anyOf", "not"])
@pytest.mark.parametrize("depth", [30, 200, 900, 100_000])
def test_deep_schemas_are_answered_or_refused(api, kind: str, depth: int):
    schema = f'{{"type":"object","properties":{{"a":{nested(depth, kind)}}}}}'
    text = '{"messages":[{"role":"user","content":"hi"}],"max_tokens":4,"tool_choice":"required","tools":['
    text += f'{{"type":"function","function":{{"name":"f","parameters":{schema}}}}}]}}'
    check(api, text.encode())
    assert api.get("/health").status == 200
