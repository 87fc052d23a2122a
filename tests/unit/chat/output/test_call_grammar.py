"""The grammar of tool calls, in all formats: its texts are read as calls that fit the tools' schemas.

Pure: texts are drawn from the grammar by `gbnf_oracle`, read by the parser, and checked by jsonschema. The real library
samples them in `tests/native/test_call_sampling.py`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence

import pytest

from server.chat.named_formats import FUNCTIONARY
from server.chat.output.call_grammar import ToolSchemaError, call_constraint
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


@pytest.mark.parametrize("family", ["hermes", "functions", "python", "harmony", "action"])
def test_with_a_final_schema_the_answer_is_a_call_or_fits_it(family: str):
    form = FORMATS[family]
    answer = {"type": "object", "properties": {"result": {"type": "integer"}}, "required": ["result"]}
    constraint = call_constraint(form, TOOLS, choice="auto", final_schema=answer)
    assert constraint.anchored
    generator = Generator(constraint.grammar)
    rng = random.Random(3)
    kinds = set()
    for _ in range(N_TEXTS):
        events = joined(read(form, TOOLS, behind_reasoning(form, generator.text(rng))))
        kinds.add(type(events[0]))
        if isinstance(events[0], Text):
            assert len(events) == 1
            jsonschema.validate(json.loads(events[0].text), answer)
        else:
            assert_calls_fit(events)
    assert kinds == {Text, ToolCall}


def test_only_the_named_tools_can_be_called():
    constraint = call_constraint(FORMATS["hermes"], TOOLS, choice="required", names=["ping"])
    assert "find" not in constraint.grammar
    with pytest.raises(ToolSchemaError, match="no tool that may be called"):
        call_constraint(FORMATS["hermes"], TOOLS, choice="required", names=["nobody"])


@pytest.mark.parametrize("form", [FORMATS["prompted"], FUNCTIONARY], ids=["split", "one"])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_name_that_begins_text_is_no_name_of_a_tool(form: CallFormat, choice: str):
    with pytest.raises(ToolSchemaError, match="tool 'all': #: this model writes that name before its text"):
        call_constraint(form, [*TOOLS, tool("all")], choice=choice)
    assert call_constraint(form, [*TOOLS, tool("al"), tool("alls")], choice=choice).grammar
    assert call_constraint(FORMATS["hermes"], [tool("all")], choice=choice).grammar


def test_what_is_not_enforced_is_a_warning_with_the_tool_and_the_place_and_refused_under_strict():
    parameters = {"type": "object", "properties": {"x": {"type": "string", "pattern": r"(a)\1"}}}
    tools = [tool("f", parameters)]
    for family in ("hermes", "functions"):
        (warning,) = call_constraint(FORMATS[family], tools, choice="required").warnings
        assert warning.startswith("tool 'f': #/properties/x/pattern: the pattern is not enforced")
        with pytest.raises(ToolSchemaError, match="tool 'f': #/properties/x/pattern") as caught:
            call_constraint(FORMATS[family], tools, choice="required", strict=True)
        assert caught.value.tool == "f"
        tools_of_one = [{"type": "function", "function": {**tools[0]["function"], "strict": True}}]
        with pytest.raises(ToolSchemaError):
            call_constraint(FORMATS[family], tools_of_one, choice="auto")


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "string"},
        {"type": "object", "properties": []},
        {"type": "object", "properties": {"x": False}, "required": ["x"]},
        {"$ref": "#"},
        {"type": "object", "properties": {"x": {"type": "x"}}},
    ],
)
def test_schemas_that_nothing_fits_are_refused_with_the_name_of_their_tool(parameters: dict):
    for family in ("hermes", "functions", "quoteless"):
        with pytest.raises(ToolSchemaError, match="tool 'f': #"):
            call_constraint(FORMATS[family], [tool("ping"), tool("f", parameters)], choice="auto")


def test_rules_of_tools_with_the_same_words_in_them_stay_apart():
    a = tool("a", {"type": "object", "properties": {"b-root": {"type": "integer"}}, "required": ["b-root"]})
    b = tool("a-b", {"type": "object", "properties": {"root": {"type": "boolean"}}, "required": ["root"]})
    for family in FORMATS:
        generator = Generator(call_constraint(FORMATS[family], [a, b], choice="required").grammar)
        rng = random.Random(2)
        for _ in range(5):
            events = joined(read(FORMATS[family], [a, b], behind_reasoning(FORMATS[family], generator.text(rng))))
            assert_calls_fit(events, [a, b])


def test_hundreds_of_tools_have_one_grammar():
    schema = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(8)}, "required": ["p0"]}
    tools = [tool(f"tool_{n}", schema) for n in range(128)]
    for family in ("hermes", "functions", "quoteless"):
        constraint = call_constraint(FORMATS[family], tools, choice="auto")
        assert len(constraint.grammar) < 200_000 and not constraint.warnings


def test_triggers_are_marks_and_names_where_there_is_no_mark():
    def triggers(family: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        constraint = call_constraint(FORMATS[family], [tool("f")], choice="auto")
        return constraint.triggers, constraint.start_triggers

    assert triggers("hermes") == (("<tool_call>",), ())
    assert triggers("functions") == (("<tool_call>", "<function="), ())
    assert triggers("functools") == (("functools[",), ())
    assert triggers("bare") == (("<|python_tag|>",), ('{"name":"f"', '{"name": "f"'))
    assert triggers("prompted") == ((">>>f",), ("f",))
    assert triggers("harmony")[1] == ("to=functions.",)


def test_an_argument_whose_name_a_format_cannot_write_is_refused():
    parameters = {"type": "object", "properties": {"a b>": {"type": "string"}}}
    assert call_constraint(FORMATS["hermes"], [tool("f", parameters)], choice="auto")
    for family in ("functions", "elements"):
        with pytest.raises(ToolSchemaError, match="#/properties/a b>: the name of this argument"):
            call_constraint(FORMATS[family], [tool("f", parameters)], choice="auto")
