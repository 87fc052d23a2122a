"""The grammar of calls, in all shapes: what it writes is read as calls that fit their tools' schemas.

Pure: texts are drawn from the grammar by `gbnf_oracle`, read by the parser, and judged by jsonschema. The real library
samples them in `tests/native/test_call_sampling.py`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence

import pytest

from server.chat.output.call_grammar import call_constraint
from server.chat.output.events import Event, Text, ToolCall
from server.chat.output.formats import CallFormat, ChannelCall, JsonCall, KeyedCall, NamedCall
from tests.support import need
from tests.unit.chat.output.call_formats import FORMATS, tool
from tests.unit.chat.output.reading import joined, read
from tests.unit.grammar.gbnf_oracle import Generator

try:
    import jsonschema
except ImportError:
    jsonschema = None

NESTED = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "n": {"type": "integer", "minimum": 2},
        "o": {"type": "object", "properties": {"k": {"type": "array", "items": {"type": "string"}}}},
    },
    "required": ["city"],
}
MIXED = {
    "type": "object",
    "properties": {
        "a": {"type": ["string", "null"]},
        "b": {"enum": ["x", "y<z", 3, None, True]},
        "c": {"type": "string", "pattern": "^[a-z]{2,4}$"},
        "d": {"type": "string", "minLength": 2, "maxLength": 20},
        "e": {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 5}]},
        "f": {},
        "g": {"type": "boolean"},
    },
    "required": ["g", "e"],
}
RECURSIVE = {
    "type": "object",
    "properties": {"node": {"$ref": "#/$defs/n"}},
    "$defs": {
        "n": {
            "type": "object",
            "properties": {"v": {"type": "number"}, "next": {"$ref": "#/$defs/n"}},
            "required": ["v"],
        }
    },
    "required": ["node"],
}
TOOLS = [tool("find", NESTED), tool("find_all", MIXED), tool("ping"), tool("make-tree", RECURSIVE)]
N_TEXTS = 40
JSON_SHAPES = (ChannelCall, JsonCall, KeyedCall, NamedCall)
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


@pytest.fixture(autouse=True)
def judge():
    need(jsonschema is not None, "the package jsonschema isn't installed (requirements-dev.txt)")


def assert_calls_fit(events: Sequence[Event], tools: Sequence[dict] = TOOLS) -> None:
    schemas = {each["function"]["name"]: each["function"].get("parameters", {"maxProperties": 0}) for each in tools}
    calls = [event for event in events if isinstance(event, ToolCall)]
    assert calls and len({call.id for call in calls}) == len(calls)
    for call in calls:
        jsonschema.Draft202012Validator(schemas[call.name]).validate(json.loads(call.arguments))


def behind_reasoning(form: CallFormat, text: str) -> str:
    opened = form.reasoning is not None and form.reasoning.is_opened
    return f"hm{form.reasoning.close}{text}" if form.reasoning and opened else text


@pytest.mark.parametrize("parallel", [True, False], ids=["many", "one"])
@pytest.mark.parametrize("family", FORMATS)
def test_required_calls_are_nothing_but_calls_that_fit(family: str, parallel: bool):
    form = FORMATS[family]
    generator = Generator(call_constraint(form, TOOLS, choice="required", parallel=parallel).grammar)
    rng = random.Random(1)
    for _ in range(N_TEXTS):
        events = joined(read(form, TOOLS, behind_reasoning(form, generator.text(rng))))
        assert not [event for event in events if isinstance(event, Text)]
        assert_calls_fit(events)
        assert parallel or len([event for event in events if isinstance(event, ToolCall)]) == 1


@pytest.mark.parametrize("choice", ["required", "auto"])
@pytest.mark.parametrize("family", [name for name, form in FORMATS.items() if isinstance(form.call, JSON_SHAPES)])
def test_arguments_have_the_white_space_of_templates(family: str, choice: str):
    """Else a call that comes back in the next prompt is another text than the one in the cache."""
    form = FORMATS[family]
    tools = [tool("find_all", MIXED)]
    generator = Generator(call_constraint(form, tools, choice=choice).grammar)
    rng = random.Random(1)
    seen = ""
    for _ in range(N_TEXTS):
        for event in joined(read(form, tools, behind_reasoning(form, generator.text(rng)))):
            if isinstance(event, ToolCall):
                bare = STRING.sub("", event.arguments)
                assert bare == re.sub(r"\s*([,:])\s*", r"\1 ", re.sub(r"\s", "", bare))
                seen += bare
    assert ", " in seen and ": " in seen


@pytest.mark.parametrize("family", FORMATS)
def test_from_a_trigger_on_there_are_calls_that_fit(family: str):
    form = FORMATS[family]
    constraint = call_constraint(form, TOOLS, choice="auto")
    assert not constraint.anchored
    generator = Generator(constraint.grammar)
    rng = random.Random(1)
    for _ in range(N_TEXTS):
        text = generator.text(rng)
        assert text.startswith((*constraint.triggers, *constraint.start_triggers)) or form.at_start
        text = text if form.opening or not text.startswith(constraint.triggers) else f"So: {text}"
        before = "<|channel|>final<|message|>So:<|end|>" if text.startswith("<|start|>assistant ") else ""
        events = joined(read(form, TOOLS, behind_reasoning(form, before + text)))
        assert [event.text for event in events if isinstance(event, Text)] in ([], ["So:"])
        assert_calls_fit(events)
