"""The tool call format is found from templates of all families; it writes and reads their calls."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from server.chat.find_format import find_format
from server.chat.named_formats import FAMILIES as FAMILY_MARKS
from server.chat.named_formats import FORMATS
from server.chat.output.call_grammar import call_constraint
from server.chat.output.events import Reasoning, ToolCall
from server.chat.output.formats import GENERIC, IdForm, JsonCall, ParameterCall, Tags
from server.chat.output.write_calls import WrittenCall, write_calls
from server.chat.template import BuiltinTemplate, ChatTemplate
from server.records import replace
from tests.support import ROOT
from tests.unit.chat.family_templates import FAMILIES, FIREFUNCTION, NAMED, NO_CALLS, calls, chat, json_call, show
from tests.unit.chat.family_templates import GENERIC as KNOWS_NOTHING
from tests.unit.chat.output.reading import cuts, joined, read
from tests.unit.grammar.gbnf_oracle import Generator

USER = {"role": "user", "content": "hi"}
PROPERTIES = {"city": {"type": "string"}, "n": {"type": "integer"}, "rest": {"type": "object"}}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": PROPERTIES}}}
    for name in ("weather", "look_up")
]
ARGUMENTS: list[dict[str, Any]] = [
    {"city": "Oslo", "n": 7},
    {},
    {"city": "a <b>\nRöm 日本"},
    {"rest": {"x": [1, {"y": 2}]}},
]
ALL = {**FAMILIES, "firefunction": FIREFUNCTION}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, "<s>", "</s>")


def prompt(source: str, *messages: dict[str, Any], **extra: object) -> str:
    return "".join(text for text, _ in template(source).render([USER, *messages], True, extra))


def called(*some: WrittenCall) -> list[dict[str, Any]]:
    """A message with these calls, and their results."""
    message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": json.dumps(one.arguments)}}
            for one in some
        ],
    }
    return [message, *({"role": "tool", "tool_call_id": one.id, "content": "mild"} for one in some)]


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


# ---- families ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ALL)
def test_the_format_of_each_family_is_found(family):
    found = template(ALL[family]).call_format
    assert (found.family, found.is_native) == (family, True)


@pytest.mark.parametrize("family", NAMED)
def test_formats_that_a_template_does_not_show_are_known_by_name(family):
    found = template(NAMED[family]).call_format
    assert (found.family, found.is_native) == (family, True)


def test_every_named_family_has_a_template_here():
    named = {name for _, name in FAMILY_MARKS} | {found.family for _, found in FORMATS}
    assert named == set(ALL) | set(NAMED)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_what_is_found_writes_the_templates_own_calls_and_reads_them(family, arguments):
    found = template(ALL[family]).call_format
    some = [WrittenCall("weather", arguments, "abcdefgh1", 0), WrittenCall("look_up", {"n": 3}, "abcdefgh2", 1)]
    some = some if found.can_be_many else some[:1]
    written = write_calls(found, some)
    shown = prompt(ALL[family], *called(*some), tools=TOOLS)
    is_plain = not isinstance(found.call, ParameterCall) and family not in ("lfm2", "gemma")
    if is_plain or not arguments.get("rest") and "\n" not in str(arguments.get("city")):
        assert squeezed(written) in squeezed(shown)
    thought = found.reasoning.close if found.reasoning and found.reasoning.is_opened else ""
    for pieces in cuts(thought + written).values():
        events = [event for event in joined(read(found, TOOLS, pieces)) if isinstance(event, ToolCall)]
        assert [(event.name, json.loads(event.arguments)) for event in events] == [
            (one.name, one.arguments) for one in some
        ]


@pytest.mark.parametrize("family", {**ALL, **NAMED, "generic": KNOWS_NOTHING})
def test_what_the_grammar_of_a_template_writes_is_read_as_calls(family):
    made = template({**ALL, **NAMED, "generic": KNOWS_NOTHING}[family])
    tags = made.find_reasoning_tags("".join(text for text, _ in made.render([USER], True, {})))
    found = replace(made.call_format, reasoning=tags)
    generator, luck = Generator(call_constraint(found, TOOLS, choice="required").grammar), random.Random(3)
    for _ in range(5):
        thought = tags.close if tags and tags.is_opened else ""
        events = joined(read(found, TOOLS, thought + generator.text(luck)))
        assert events and all(isinstance(event, ToolCall) for event in events)
        assert all(isinstance(json.loads(event.arguments), dict) for event in events)


@pytest.mark.parametrize("family", {**ALL, **NAMED})
def test_a_required_call_behind_reasoning_is_read_as_one(family):
    found = template({**ALL, **NAMED}[family]).call_format
    if found.reasoning is None:
        return
    tags = found.reasoning
    thought = ("" if tags.is_opened else tags.open.removeprefix(found.opening)) + "hm" + tags.close
    generator, luck = Generator(call_constraint(found, TOOLS, choice="required").grammar), random.Random(5)
    for _ in range(5):
        written = generator.text(luck)
        for pieces in cuts(thought + written).values():
            events = joined(read(found, TOOLS, pieces))
            assert type(events[0]) is Reasoning and events[0].text == "hm", written
            assert len(events) > 1 and all(isinstance(event, ToolCall) for event in events[1:]), written


def test_a_text_that_arguments_are_joined_with_is_not_taken_for_theirs():
    odd = calls(show("call ", "c.function.name", " with ", "c.function.arguments | tojson | upper"))
    assert template(chat(odd)).call_format == GENERIC


def test_one_call_at_most_is_what_a_template_shows_or_refuses():
    assert not template(FAMILIES["llama-3"]).call_format.can_be_many
    assert not template(FAMILIES["gigachat"]).call_format.can_be_many
    assert template(FAMILIES["hermes"]).call_format.can_be_many


def test_calls_without_a_mark_are_calls_only_at_the_start():
    assert [family for family in ALL if template(ALL[family]).call_format.at_start] == ["llama-3"]
    assert template(FAMILIES["llama-3"]).call_format.also_before == ("<|python_tag|>",)


def test_marks_of_kinds_of_values_are_told_apart():
    assert template(FAMILIES["deepseek-dsml"]).call_format.call.string_mark == ("true", "false")
    source = FAMILIES["deepseek-dsml"].replace(
        "'true' if v is string else 'false'",
        "'text' if v is string else 'flag' if v is boolean else 'nil' if v is none else 'number' if v is number "
        "else 'object' if v is mapping else 'list'",
    )
    found = template(source).call_format
    assert found.call.string_mark == ("text", "number", "flag", "nil", "object", "list")


def test_a_template_without_calls_has_the_generic_form():
    assert template(KNOWS_NOTHING).call_format == GENERIC == BuiltinTemplate("x", lambda pairs, add: "").call_format


def test_a_template_for_tools_says_how_calls_are_written():
    both = ChatTemplate(NO_CALLS, "", "", FAMILIES["mistral"])
    assert both.call_format.family == "mistral"


def test_finding_a_format_costs_nothing_before_it_is_needed(monkeypatch):
    asked = []
    monkeypatch.setattr("server.chat.template.find_format", lambda probe: asked.append(probe) or find_format(probe))
    made = template(FAMILIES["hermes"])
    made.render([USER], True, {})
    assert asked == []
    assert made.call_format is made.call_format and len(asked) == 1


# ---- docs/tools.md -----------------------------------------------------------------------------------------------


def code(text: str) -> str:
    """As it stands in a table of Markdown; ↵ is a line break."""
    shown = text.replace("\n", "↵").replace("|", "\\|")
    return f"```` {shown} ````" if "`" in shown else f"`{shown}`" if shown else ""


def doc_row(family: str, models: str) -> str:
    """The family's row in docs/tools.md."""
    found = template({**NAMED, **ALL, "generic": KNOWS_NOTHING}[family]).call_format
    sample = "a1b2c3d4e5"[: found.ids.n_letters] if not found.ids.prefix else "a1b2c3d4e"
    written = write_calls(found, [WrittenCall("f", {"x": "a"}, sample, 0)])
    tags = (found.reasoning.open, found.reasoning.close) if found.reasoning else ()
    ids = found.ids
    shown = code(ids.pattern) or ("" if ids.prefix else f"{ids.n_letters} letters and digits")
    cells = (family, models, code(written), " ".join(code(tag.strip()) for tag in tags), shown)
    return "| " + " | ".join(cells) + " |"


def test_the_table_of_families_in_the_documents_is_true():
    page = (ROOT / "docs" / "tools.md").read_text("utf-8")
    rows = [line for line in page.split("\n") if re.match(r"\| [a-z][\w.-]* \| [^|]* \| `", line)]
    families = {row.split(" | ")[0][2:]: row.split(" | ")[1] for row in rows}
    assert set(families) == {*ALL, *NAMED, "generic"}
    assert [row for row in rows if row != doc_row(row.split(" | ")[0][2:], row.split(" | ")[1])] == []


# ---- ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "ids"),
    [
        ("hermes", IdForm()),
        ("mistral", IdForm("", 9)),
        ("mistral-ids", IdForm("", 9)),
        ("mistral-args", IdForm()),
        ("kimi-k2", IdForm(pattern="functions.{name}:{index}")),
    ],
)
def test_ids_have_the_form_that_the_template_wants(family, ids):
    assert template(FAMILIES[family]).call_format.ids == ids


def test_ids_that_only_count_are_known():
    assert template(FAMILIES["command-r"]).call_format.call == JsonCall(
        "tool_name", "parameters", "tool_call_id", id_first=True, id_is_number=True
    )


def test_strange_ids_become_short_ones_where_the_template_refuses_others():
    [message, result] = called(WrittenCall("weather", {}, "call_" + "x" * 24))
    shown = prompt(FAMILIES["mistral"], message, result, tools=TOOLS)
    assert "call_x" not in shown and shown == prompt(FAMILIES["mistral"], message, result, tools=TOOLS)
    assert "call_x" in prompt(FAMILIES["apriel"], message, result, tools=TOOLS)
    [message, result] = called(WrittenCall("weather", {}, "abcdefgh1"))
    assert "abcdefgh1" in prompt(FAMILIES["mistral"], message, result, tools=TOOLS)


# ---- reasoning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "tags"),
    [
        ("hermes", ("<think>\n", "\n</think>\n\n")),
        ("glm", ("<think>", "</think>\n")),
        ("seed-oss", ("<seed:think>", "</seed:think>")),
        ("minimax-m3", ("<mm:think>", "</mm:think>")),
        ("mistral-args", ("[THINK]", "[/THINK]")),
        ("command-r", ("<|START_THINKING|>", "<|END_THINKING|>")),
        ("gemma", ("<|channel>thought\n", "\n<channel|>")),
        ("nemotron", ("<think>\n", "\n</think>\n\n")),  # rendered nowhere, but begun at the end of the prompt
        ("apertus", ("<|inner_prefix|>", "<|inner_suffix|>")),
        ("apriel", ("Here are my reasoning steps:\n", "\n[BEGIN FINAL RESPONSE]\n")),
        ("functionary-3.1", None),
    ],
)
def test_the_tags_of_reasoning_are_found(family, tags):
    found = template(FAMILIES[family]).call_format.reasoning
    assert tags == (None if found is None else (found.open, found.close))


def test_tags_that_a_template_takes_out_of_what_comes_back_are_those_of_its_model():
    source = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    assert template(source).call_format.reasoning == Tags("<think>\n", "\n</think>\n\n")


@pytest.mark.parametrize(
    ("source", "end", "is_opened"),
    [
        (FAMILIES["hermes"], "", False),
        (FAMILIES["qwen3-coder"], "", True),
        (
            FAMILIES["qwen3-coder"].replace('<think>\\n" }}{% endif %}', '<think>\\n\\n</think>\\n\\n" }}{% endif %}'),
            "",
            False,
        ),
        (FAMILIES["hermes"], "<think>\nhm", True),
        (FAMILIES["hermes"], "well", False),
        (FAMILIES["hermes"], "<think>hm</think>yes", False),
        (FAMILIES["qwen3-coder"], "hm\n</think>\n\nyes", False),
    ],
)
def test_whether_reasoning_is_open_is_known_from_the_end_of_the_prompt(source, end, is_opened):
    tags = template(source).find_reasoning_tags(prompt(source), end)
    assert tags is not None and tags.is_opened == is_opened


def test_tags_in_users_text_open_nothing():
    source = FAMILIES["hermes"]
    tags = template(source).find_reasoning_tags(prompt(source, {"role": "user", "content": "what is <think>"}))
    assert tags is not None and not tags.is_opened
    assert template(FAMILIES["functionary-3.1"]).find_reasoning_tags("<think>") is None


# ---- odd templates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        json_call() + "{{ raise_exception('no') if m.tool_calls | length > 1 }}",
        "{% for c in m.tool_calls %}" + json_call() + "{% endfor %}{{ 1 / 0 }}",
        "{{ m.tool_calls }}",
        "{{ m.tool_calls | tojson }}",
        "{% for c in m.tool_calls %}" + "(" * 5000 + "{% endfor %}",
    ],
    ids=lambda body: body[:24],
)
def test_calls_written_in_odd_ways_get_some_format(body):
    assert template(chat(body)).call_format is not None
