"""Tool calls sampled by llama.cpp: with random logits and a grammar of calls, the text is read as valid calls.

The grammars of all formats and of many schemas load. Sampled texts consist only of calls of the given tools with
arguments that jsonschema accepts. A text that isn't complete after TOKENS_MAX tokens is cut off and must not be read as
more complete calls than it contains.
"""

from __future__ import annotations

import json
import random

import pytest

from ctypes_api.objects import Model
from server.chat.output.call_grammar import call_constraint
from server.chat.output.events import Text, ToolCall
from server.grammar.json_schema.parts import SchemaError
from tests.native.test_json_schema_sampling import Dice, loads
from tests.support import need
from tests.unit.chat.output.call_formats import FORMATS, tool
from tests.unit.chat.output.reading import joined, read
from tests.unit.grammar.json_schema_cases import CASES, UNJUDGED

try:
    import jsonschema
except ImportError:
    jsonschema = None

N_SETS = 4  # of tools for each shape
SCHEMAS = [case for case in CASES if isinstance(case.schema, dict)]


@pytest.fixture(scope="module", autouse=True)
def judge():
    need(jsonschema is not None, "the package jsonschema isn't installed (requirements-dev.txt)")


@pytest.fixture(scope="module")
def dice(model: Model) -> Dice:
    return Dice(model, closing=(b'"', b"}", b"]", b"<", b"|", b")", b">"))


def tools_of(rng: random.Random) -> list[dict]:
    """A few tools with schemas of all kinds: as the arguments, or as one of them."""
    tools = []
    for n in range(rng.randint(1, 3)):
        case = rng.choice(SCHEMAS)
        schema = case.schema
        if schema.get("type") != "object" or rng.random() < 0.3:
            refers = "$ref" in json.dumps(schema)
            if refers:
                continue
            schema = {"type": "object", "properties": {"v": schema, "w": {"type": "string"}}, "required": ["v"]}
        if case.name not in UNJUDGED and "multipleOf" not in str(schema):
            tools.append(tool(f"tool_{n}", schema))
    return [*tools, tool("ping")]


@pytest.mark.parametrize("family", FORMATS)
def test_grammars_from_a_trigger_on_and_those_with_an_answer_load(family: str, model: Model):
    tools = [tool("ping"), tool("find", {"properties": {"a": {"type": "string"}, "b": {"enum": [1, "x"]}}})]
    for final_schema in (None, {"type": "object", "properties": {"c": {"type": "integer"}}}):
        constraint = call_constraint(FORMATS[family], tools, choice="auto", final_schema=final_schema)
        assert loads(model, constraint.grammar)


@pytest.mark.parametrize("family", FORMATS)
def test_sampled_calls_are_calls_that_fit(family: str, dice: Dice):
    form = FORMATS[family]
    for seed in range(N_SETS):
        rng = random.Random(f"{family} {seed}")
        tools = tools_of(rng)
        schemas = {each["function"]["name"]: each["function"].get("parameters", {"maxProperties": 0}) for each in tools}
        try:
            constraint = call_constraint(form, tools, choice="required", parallel=rng.random() < 0.5)
        except SchemaError:
            continue  # a tool that can't be called at all
        made = dice.text(constraint.grammar, (family, seed))
        if made is None:
            continue
        text = made.decode("utf-8", errors="replace")
        start = f"x{form.reasoning.close}" if form.reasoning and form.reasoning.is_opened else ""
        events = joined(read(form, tools, start + text))
        calls = [event for event in events if isinstance(event, ToolCall)]
        assert calls and not [event for event in events if isinstance(event, Text)], (text, events)
        if constraint.warnings:
            continue
        for call in calls:
            schema = schemas[call.name]
            kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
            problems = list(kind(schema, format_checker=kind.FORMAT_CHECKER).iter_errors(json.loads(call.arguments)))
            assert not problems, (text, call, problems)
