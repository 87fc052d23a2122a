"""Reasoning and tool calls in transcripts of every format, fed whole, in parts and letter by letter.

Pure. Each family's transcripts have the same content: one call of `find` with nested values, quotes, line ends and
letters beyond ASCII, and one of `ping` without arguments.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat.output.events import End, Event, Reasoning, Text, ToolCall
from server.chat.output.formats import PythonCall, QuotelessCall, Tags
from server.chat.output.heads import start_head
from server.chat.output.parser import OutputParser
from server.chat.output.write_calls import WrittenCall, write_calls
from server.engine.seam.task import STOP_ABORT, STOP_EOS, STOP_LIMIT, STOP_WORD, Piece
from server.records import replace
from tests.unit.chat.output.call_formats import ELEMENTS, FORMATS, tool
from tests.unit.chat.output.reading import cuts, final, joined, read

ARGUMENTS = {"city": 'Łódź "a"\n<b>\\', "n": 3, "o": {"k": [1.5, "s", True, None, {}]}}
TOOLS = [
    tool(
        "find",
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "n": {"type": "integer"}, "o": {"type": "object"}},
        },
    ),
    tool("ping"),
    tool("ping_all"),
]
FIND = r'{"city": "Łódź \"a\"\n<b>\\", "n": 3, "o": {"k": [1.5, "s", true, null, {}]}}'
O = '{"k": [1.5, "s", true, null, {}]}'  # noqa: E741
CITY = 'Łódź "a"\n<b>\\'

# family: (find, ping, both); what stands before them is `before`'s affair
WRITTEN = {
    "generic": (
        f'<tool_call>\n{{"name": "find", "arguments": {FIND}}}\n</tool_call>',
        '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>',
        "{0}\n{1}",
    ),
    "keyed": (f'{{"find": {FIND}}}', '{"ping": {}}', "<|tools_prefix|>[{0}, {1}]<|tools_suffix|>"),
    "list": (
        f'{{"name": "find", "arguments": {FIND}, "id": "abcdefgh1"}}',
        '{"name": "ping", "arguments": {}, "id": "abcdefgh2"}',
        "[TOOL_CALLS][{0}, {1}]",
    ),
    "action": (
        f'{{"tool_call_id": "0", "tool_name": "find", "parameters": {FIND}}}',
        '{"tool_call_id": "1", "tool_name": "ping", "parameters": {}}',
        "<|START_ACTION|>[\n    {0},\n    {1}\n]<|END_ACTION|>",
    ),
    "functools": (
        f'{{"name": "find", "arguments": {FIND}}}',
        '{"name": "ping", "arguments": {}}',
        " functools[{0}, {1}]",
    ),
    "numbered": (
        f"<|tool_call_begin|>functions.find:0<|tool_call_argument_begin|>{FIND}<|tool_call_end|>",
        "<|tool_call_begin|>functions.ping:1<|tool_call_argument_begin|>{}<|tool_call_end|>",
        "<|tool_calls_section_begin|>{0}{1}<|tool_calls_section_end|>",
    ),
    "later id": (
        f"[TOOL_CALLS]find[CALL_ID]abcdefgh1[ARGS]{FIND}",
        "[TOOL_CALLS]ping[CALL_ID]abcdefgh2[ARGS]{}",
        "{0}{1}",
    ),
    "first id": (
        f"<|tool_call:begin|>a1<|tool_call:name|>find<|tool_call:args|>{FIND}<|tool_call:end|>",
        "<|tool_call:begin|>a2<|tool_call:name|>ping<|tool_call:args|>{}<|tool_call:end|>",
        "<|begin|>assistant<|tool_calls|>{0}{1}",
    ),
    "fenced": (
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>find\n```json\n{FIND}\n```<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>ping\n```json\n{}\n```<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>{0}\n{1}<｜tool▁calls▁end｜>",
    ),
    "function": (f"<function=find>{FIND}</function>", "<function=ping>{}</function>", "{0}{1}"),
    "functions": (
        "<tool_call>\n<function=find>\n"
        f"<parameter=city>\n{CITY}\n</parameter>\n<parameter=n>\n3\n</parameter>\n<parameter=o>\n{O}\n</parameter>\n"
        "</function>\n</tool_call>",
        "<tool_call>\n<function=ping>\n</function>\n</tool_call>",
        "{0}\n{1}",
    ),
    "pairs": (
        f"<tool_call>find\n<arg_key>city</arg_key>\n<arg_value>{CITY}</arg_value>\n<arg_key>n</arg_key>\n"
        f"<arg_value>3</arg_value>\n<arg_key>o</arg_key>\n<arg_value>{O}</arg_value>\n</tool_call>",
        "<tool_call>ping\n</tool_call>",
        "{0}\n{1}",
    ),
    "invoke": (
        f'<｜DSML｜invoke name="find">\n<｜DSML｜parameter name="city" string="true">{CITY}</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="n" string="false">3</｜DSML｜parameter>\n'
        f'<｜DSML｜parameter name="o" string="false">{O}</｜DSML｜parameter>\n</｜DSML｜invoke>',
        '<｜DSML｜invoke name="ping">\n</｜DSML｜invoke>',
        "<｜DSML｜function_calls>\n{0}\n{1}\n</｜DSML｜function_calls>",
    ),
    "kinds": (
        '<|open|>call tool="find" index="1"<|sep|><|open|>argument key="city" type="string"<|sep|>'
        f'{CITY}<|close|>argument<|sep|><|open|>argument key="n" type="number"<|sep|>3<|close|>argument<|sep|>'
        f'<|open|>argument key="o" type="object"<|sep|>{O}<|close|>argument<|sep|><|close|>call<|sep|>',
        '<|open|>call tool="ping" index="2"<|sep|><|close|>call<|sep|>',
        "<|open|>tools<|sep|>{0}{1}<|close|>tools<|sep|><|close|>message<|sep|>",
    ),
    "cdata": (
        f'<function name="find"><param name="city"><![CDATA[{CITY}]]></param><param name="n">3</param>'
        f'<param name="o">{O}</param></function>',
        '<function name="ping"></function>',
        "{0}\n{1}",
    ),
    "elements": (
        f"[<invoke name=find>[<city>{CITY}[</city>[<n>3[</n>[<o>[<k>[<item>1.5[</item>[<item>s[</item>"
        "[<item>true[</item>[<item>null[</item>[<item>{}[</item>[</k>[</o>[</invoke>",
        "[<invoke name=ping>[</invoke>",
        "[<tool_call>\n{0}\n{1}\n[</tool_call>",
    ),
    "python": (
        f"find(city={CITY!r}, n=3, o={ {'k': [1.5, 's', True, None, {}]} })",
        "ping()",
        "<|tool_call_start|>[{0}, {1}]<|tool_call_end|>",
    ),
    "quoteless": (
        f'<|tool_call>call:find{{city:<|"|>{CITY}<|"|>,n:3,o:{{k:[1.5,<|"|>s<|"|>,true,null,{{}}]}}}}<tool_call|>',
        "<|tool_call>call:ping{}<tool_call|>",
        "{0}{1}",
    ),
    "prompted": (f">>>find\n{FIND}", ">>>ping\n{}", "{0}{1}"),
}
WRITTEN["hermes"] = WRITTEN["generic"]
BEFORE = {  # reasoning and text as these families write them
    "action": ("<|START_THINKING|>Hm < m.<|END_THINKING|>", "<|START_RESPONSE|>So: <b>!<|END_RESPONSE|>"),
    "first id": ("<|think|>Hm < m.<|end|>", "<|begin|>assistant<|content|>So: <b>!<|end|>"),
    "kinds": ("Hm < m.<|close|>think<|sep|>", "<|open|>response<|sep|>So: <b>!<|close|>response<|sep|>"),
    "prompted": ("", "all\nSo: <b>!"),
}


def filled(family: str) -> str:
    find, ping, both = WRITTEN[family]
    return both.replace("{0}", find).replace("{1}", ping)


def before(family: str) -> tuple[str, str]:
    """Reasoning and text, as an answer begins with them."""
    tags = FORMATS[family].reasoning
    thinking = "" if tags is None else f"{'' if tags.is_opened else tags.open}Hm < m.{tags.close}"
    return BEFORE.get(family, (thinking, "So: <b>!\n\n"))


def calls_of(events: Sequence[Event]) -> list[tuple[int, str, object]]:
    return [(event.index, event.name, json.loads(event.arguments)) for event in events if isinstance(event, ToolCall)]


BOTH = [(0, "find", ARGUMENTS), (1, "ping", {})]


@pytest.mark.parametrize("family", WRITTEN)
def test_reasoning_text_and_calls_of_every_shape_come_apart_however_they_are_cut(family: str):
    thinking, text = before(family)
    answer = thinking + text + filled(family)
    whole = joined(read(FORMATS[family], TOOLS, answer))
    assert calls_of(whole) == BOTH
    assert [event for event in whole if not isinstance(event, ToolCall)] == [
        *([Reasoning("Hm < m.")] if thinking else []),
        Text("So: <b>!"),
    ]
    for name, pieces in cuts(answer).items():
        assert joined(read(FORMATS[family], TOOLS, pieces)) == whole, name


@pytest.mark.parametrize("family", WRITTEN)
def test_calls_without_text_and_text_without_calls(family: str):
    form = FORMATS[family]
    thinking, text = before(family)
    for pieces in cuts(filled(family)).values():
        answer = thinking if form.reasoning and form.reasoning.is_opened else ""
        events = joined(read(form, TOOLS, [answer, *pieces]))
        assert calls_of(events) == BOTH and not [event for event in events if isinstance(event, Text)]
    for pieces in cuts(thinking + text).values():
        events = joined(read(form, TOOLS, pieces))
        assert "".join(event.text for event in events if isinstance(event, Text)).strip() == "So: <b>!"


@pytest.mark.parametrize("family", sorted(WRITTEN.keys() - {"list"}))  # where the id comes last, all waits for it
def test_the_arguments_stream_and_start_with_the_name(family: str):
    thinking, _ = before(family)
    events = read(FORMATS[family], TOOLS, list(thinking + filled(family)))
    calls = [event for event in events if isinstance(event, ToolCall)]
    first = [call for call in calls if call.name]
    assert [(call.index, call.name, bool(call.id)) for call in first] == [(0, "find", True), (1, "ping", True)]
    assert [call.index for call in calls] == sorted(call.index for call in calls)
    assert len([call for call in calls if call.index == 0]) > 10


@pytest.mark.parametrize("family", WRITTEN)
def test_each_beginning_of_an_answer_leaks_no_mark_and_shows_no_half_call_as_whole(family: str):
    form = FORMATS[family]
    thinking, text = before(family)
    calls = filled(family).removesuffix("<|close|>message<|sep|>")
    start = thinking + (text if family == "prompted" else "")
    whole = [event.arguments for event in joined(read(form, TOOLS, start + calls)) if isinstance(event, ToolCall)]
    for n in range(1, len(calls)):
        events = joined(read(form, TOOLS, start + calls[:n], stop=STOP_LIMIT))
        cut = len(start) + max(n - 4, 0)
        said = (start + calls[:n])[:cut], (start + calls[:n])[cut:]
        assert joined(read(form, TOOLS, said[0], stop=STOP_LIMIT, last=said[1])) == events, said
        written = [event for event in events if isinstance(event, ToolCall)]
        for call, (_, name, _), arguments in zip(written, BOTH, whole):
            assert call.name == name and arguments.startswith(call.arguments)
        if len(written) == 2:
            assert written[0].arguments == whole[0]
        if written:
            assert [event.text for event in events if isinstance(event, Text)] in ([], ["So: <b>!"])


HERMES = FORMATS["hermes"]


@pytest.mark.parametrize(
    "text",
    [
        "A <tool_call> is a tag.",
        "<tool_call>",
        "<tool_call",
        "</tool_call>",
        '<tool_call>\n{"name": "nobody", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "pin", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": 3}\n</tool_call>',
        '<tool_call>\n{"arguments": {}}\n</tool_call>',
        '<tool_call>\n["ping"]\n</tool_call>',
        '<tool_call>\n{"name" "ping"}',
        '<tool_call>{"name": "ping"',
        "if a<b: <t <to <tool <tool_ c\n\n",
        "I <think> so, and </think> not.",
        '{"name": "ping", "arguments": {}}',
    ],
)
def test_what_only_looks_like_a_call_stays_text(text: str):
    for name, pieces in cuts(text).items():
        assert joined(read(HERMES, TOOLS, pieces)) == [Text(text)], name


@pytest.mark.parametrize(
    "written, arguments",
    [
        ('{"name": "find", "arguments": {"city": "a"}}', '{"city": "a"}'),
        ('{"name":"find","arguments":{}}', "{}"),
        ('{"name": "find", "parameters": {"city": "a"}}', '{"city": "a"}'),
        ('{"name": "find", "arguments": {"city": "a"}}}', '{"city": "a"}'),
        ('{"name": "find", "arguments": {"city": "a"}', '{"city": "a"}'),
        ('{"name": "find"}', "{}"),
        ('{"name": "find", "arguments": null}', "{}"),
        (r'{"name": "find", "arguments": "{\"city\": \"a\"}"}', '{"city": "a"}'),
        ('{"arguments": {"city": "a"}, "name": "find"}', '{"city": "a"}'),
        ('{"type": "function", "name": "find", "arguments": {"n": 1}, "more": [{}]}', '{"n": 1}'),
        (
            "{'name': 'find', 'arguments': {'city': 'a\"b', 'n': None, 'o': [True, ]}}",
            r'{"city": "a\"b", "n": null, "o": [true ]}',
        ),
        ('{name: "find", arguments: {city: "a\nb\tc", n: 1,}}', r'{"city": "a\nb\tc", "n": 1}'),
        (r'{"name": "find", "arguments": {"city": "\'\x41\d\u00e9\/"}}', r'{"city": "' + r"'\u0041\\d\u00e9\/" + '"}'),
    ],
)
def test_calls_that_are_nearly_json_become_json(written: str, arguments: str):
    for name, pieces in cuts(f"<tool_call>\n{written}\n</tool_call>").items():
        events = joined(read(HERMES, TOOLS, pieces))
        assert events == [ToolCall(0, "new0", "find", arguments)], name
        json.loads(arguments)


def test_a_call_that_breaks_off_in_the_middle_gives_the_rest_as_text():
    for pieces in cuts('<tool_call>{"name": "find", "arguments": {"city": "a" "b"}}</tool_call>').values():
        events = joined(read(HERMES, TOOLS, pieces))
        assert events == [ToolCall(0, "new0", "find", '{"city": "a" '), Text('"b"}}</tool_call>')]


def test_text_between_and_behind_calls_stays():
    call = '<tool_call>{"name": "ping", "arguments": {}}</tool_call>'
    for pieces in cuts(f"One \n{call}\nTwo.\n\n{call}  Three ").values():
        assert joined(read(HERMES, TOOLS, pieces)) == [
            Text("One"),
            ToolCall(0, "new0", "ping", "{}"),
            Text("Two."),
            ToolCall(1, "new1", "ping", "{}"),
            Text("Three "),
        ]


def test_ids_of_the_model_are_kept_unless_they_are_numbers_or_come_twice():
    form = FORMATS["list"]
    call = '{{"name": "ping", "arguments": {{}}, "id": "{0}"}}'
    text = "[TOOL_CALLS][" + ", ".join(map(call.format, ("abcdefgh1", "abcdefgh1", "000000007"))) + "]"
    assert [event.id for event in joined(read(form, TOOLS, text)) if isinstance(event, ToolCall)] == [
        "abcdefgh1",
        "new0",
        "new1",
    ]
    numbered = joined(read(FORMATS["numbered"], TOOLS, filled("numbered")))
    assert [event.id for event in numbered if isinstance(event, ToolCall)] == ["functions.find:0", "functions.ping:1"]


@pytest.mark.parametrize(
    "value, schema, expected",
    [
        ("3", {"type": "string"}, "3"),
        ("3", {"type": "integer"}, 3),
        ("3", {}, 3),
        ("3", {"type": ["string", "null"]}, "3"),
        ("null", {"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        ("None", {"type": ["string", "null"]}, None),
        ("True", {"type": "boolean"}, True),
        ("True", {"type": "string"}, "True"),
        ('"quoted"', {"type": ["string", "null"]}, '"quoted"'),
        ("{'a': [1, 'x', True]}", {"type": "object"}, {"a": [1, "x", True]}),
        ("[1, 2", {"type": "array"}, "[1, 2"),
        ("NaN", {"type": "number"}, "NaN"),
        ("2", {"enum": ["1", "2"]}, "2"),
        ("2", {"$ref": "#/$defs/t"}, "2"),
        ("", {"type": "string"}, ""),
        (" a ", {"type": "string"}, " a "),
        ("\n a\n", {"type": "string"}, "\n a\n"),
    ],
)
def test_parameters_become_what_the_schema_says(value: str, schema: dict, expected: object):
    tools = [tool("f", {"type": "object", "properties": {"x": schema}, "$defs": {"t": {"type": "string"}}})]
    text = f"<tool_call>\n<function=f>\n<parameter=x>\n{value}\n</parameter>\n</function>\n</tool_call>"
    for name, pieces in cuts(text).items():
        assert calls_of(joined(read(FORMATS["functions"], tools, pieces))) == [(0, "f", {"x": expected})], name


def test_a_closing_tag_within_a_text_ends_it_only_where_the_format_goes_on():
    text = (
        "<tool_call><function=find><parameter=city>\na</parameter> b\n</parameter>\n\n</parameter>\n"
        "<parameter=n>\n1\n</parameter></function></tool_call>"
    )
    for name, pieces in cuts(text).items():
        events = joined(read(FORMATS["functions"], TOOLS, pieces))
        assert calls_of(events) == [(0, "find", {"city": "a</parameter> b\n</parameter>\n", "n": 1})], name


def test_arguments_of_a_python_call_may_have_no_names():
    text = "<|tool_call_start|>[find('a', 2, o=dict), ping_all( ), find(city=\"it's\", n=-1e3)]<|tool_call_end|>"
    for name, pieces in cuts(text).items():
        assert calls_of(joined(read(FORMATS["python"], TOOLS, pieces))) == [
            (0, "find", {"city": "a", "n": 2, "o": "dict"}),
            (1, "ping_all", {}),
            (2, "find", {"city": "it's", "n": -1e3}),
        ], name


def test_bare_calls_are_calls_at_the_beginning_only():
    form = FORMATS["bare"]
    call = '{"name": "find", "parameters": {"city": "a"}}'
    expected = ToolCall(0, "new0", "find", '{"city": "a"}')
    for text, events in {
        call: [expected],
        f" \n{call}": [expected],
        f"<|python_tag|>{call}": [expected],
        f"Well: {call}": [Text(f"Well: {call}")],
        '{"name": "find", "age": 3}': [Text('{"name": "find", "age": 3}')],
        '{"a": [1, {"name": "ping"}]}': [Text('{"a": [1, {"name": "ping"}]}')],
        "{": [Text("{")],
    }.items():
        for name, pieces in cuts(text).items():
            assert joined(read(form, TOOLS, pieces)) == events, (name, text)


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>A < b<|return|>",
            [Reasoning("Hm."), Text("A < b")],
        ),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.find "
            '<|constrain|>json<|message|>{"n": 1}<|call|>',
            [Reasoning("Hm."), ToolCall(0, "new0", "find", '{"n": 1}')],
        ),
        (' to=functions.find<|channel|>commentary json<|message|>{"n": 1}', [ToolCall(0, "new0", "find", '{"n": 1}')]),
        (
            "<|channel|>commentary<|message|>First.<|end|><|start|>assistant<|channel|>commentary to=functions.ping"
            "<|message|>{}<|end|><|start|>assistant<|channel|>commentary to=functions.ping<|message|>{}<|call|>",
            [Text("First."), ToolCall(0, "new0", "ping", "{}"), ToolCall(1, "new1", "ping", "{}")],
        ),
        (
            "<|channel|>commentary to=functions.no<|message|>{}",
            [Text("<|channel|>commentary to=functions.no<|message|>{}")],
        ),
        ("Just text <|start", [Text("Just text <|start")]),
        ("", []),
    ],
)
def test_messages_of_harmony_are_reasoning_text_or_calls_by_their_heads(text: str, expected: list[Event]):
    for name, pieces in cuts(text).items():
        assert joined(read(FORMATS["harmony"], TOOLS, pieces)) == expected, name


# ---- reasoning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, text, expected",
    [
        ("hermes", "<think>\nHm.\n</think>\n\nA", [Reasoning("Hm."), Text("A")]),
        ("hermes", "\n <think>Hm.</think>A", [Reasoning("Hm."), Text("A")]),
        ("hermes", "<think>\n\n</think>\n\nA\n", [Text("A\n")]),
        ("hermes", "<think>\nHm. </thin </think", [Reasoning("Hm. </thin </think")]),
        ("hermes", "A <think>b</think>", [Text("A <think>b</think>")]),
        ("hermes", " A", [Text(" A")]),
        ("pairs", "Hm.\n</think>\nA", [Reasoning("Hm."), Text("A")]),
        ("pairs", "<think>Hm.</think>A", [Reasoning("Hm."), Text("A")]),
        ("pairs", "Hm. <tool_call>ping", [Reasoning("Hm. <tool_call>ping")]),
        ("quoteless", "<|channel>thought\nHm.<channel|>A", [Reasoning("Hm."), Text("A")]),
    ],
)
def test_reasoning_is_split_off_at_the_beginning(family: str, text: str, expected: list[Event]):
    for name, pieces in cuts(text).items():
        assert joined(read(FORMATS[family], TOOLS, pieces)) == expected, name
        assert joined(read(FORMATS[family], [], pieces)) == expected, name


@pytest.mark.parametrize("family", ["hermes", "pairs", "action", "harmony"])
def test_reasoning_that_is_not_split_off_stays_as_it_is(family: str):
    tags = FORMATS[family].reasoning
    assert tags is not None
    opened = "" if tags.is_opened else tags.open.removeprefix(FORMATS[family].opening)
    text = f"{opened}Hm.{tags.close}"
    for pieces in cuts(text).values():
        assert joined(read(FORMATS[family], TOOLS, pieces, reasoning="none")) == [Text(text)]
        both = read(FORMATS[family], TOOLS, pieces, reasoning="legacy")
        assert "".join(event.text for event in both if isinstance(event, Text)) == text
        assert "".join(event.text for event in both if isinstance(event, Reasoning)) == "Hm."


def test_without_calls_to_be_parsed_calls_stay_text():
    text = filled("hermes")
    assert joined(read(HERMES, TOOLS, text, parse_calls=False)) == [Text(text)]
    assert joined(read(HERMES, [], text)) == [Text(text)]


ENDED = Tags("", "\n[ANSWER]\n", is_opened=True, ends_at="<tool_call>\n{")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('So.\n<tool_call>\n{"name": "ping"}\n</tool_call>', [Reasoning("So."), ToolCall(0, "new0", "ping", "{}")]),
        ("<tool_call> it is\n[ANSWER]\nYes", [Reasoning("<tool_call> it is"), Text("Yes")]),
        (
            'a\n[ANSWER]\n<tool_call>\n{"name": "ping"}\n</tool_call>',
            [Reasoning("a"), ToolCall(0, "new0", "ping", "{}")],
        ),
        ("a\n<tool_call>\n{}", [Reasoning("a"), Text("<tool_call>\n{}")]),
    ],
    ids=["a call", "a look-alike", "behind its mark", "no call"],
)
def test_a_call_may_end_the_reasoning(text: str, expected: list[object]):
    form = replace(HERMES, reasoning=ENDED)
    for pieces in cuts(text).values():
        assert joined(read(form, TOOLS, pieces)) == expected, pieces
    if "[ANSWER]" not in text:
        assert joined(read(form, [], text)) == [Reasoning(text)], "without tools nothing is a call"
    kept = joined(read(form, TOOLS, text, reasoning="none"))
    assert [event for event in kept if isinstance(event, ToolCall)] == [
        one for one in expected if type(one) is ToolCall
    ]


# ---- the end of an answer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, text, arguments",
    [
        ("pairs", "x</think><tool_call>ping", "{}"),
        ("pairs", "x</think><tool_call>find\n<arg_key>n</arg_key>\n<arg_value>1</arg_value>", '{"n": 1}'),
        ("pairs", "x</think><tool_call>find\n<arg_key>n</arg_key>\n<arg_value>1</arg_value>\n</tool_", '{"n": 1}'),
        ("later id", "[TOOL_CALLS]ping[CALL_ID]abcdefgh1[ARGS]", "{}"),
        ("hermes", '<tool_call>{"name": "find", "arguments": {"o": {"k": [1, 2', '{"o": {"k": [1, 2]}}'),
        ("python", "<|tool_call_start|>[find(city='a', n=12", '{"city": "a", "n": 12}'),
    ],
)
def test_a_text_that_the_model_ends_itself_ends_its_call(family: str, text: str, arguments: str):
    for pieces in cuts(text).values():
        calls = [event for event in joined(read(FORMATS[family], TOOLS, pieces)) if isinstance(event, ToolCall)]
        assert [call.arguments for call in calls] == [arguments]


@pytest.mark.parametrize("stop", [STOP_LIMIT, STOP_ABORT])
def test_a_call_that_is_cut_off_keeps_the_beginning_of_its_arguments(stop: str):
    text = "x</think><tool_call>find\n<arg_key>n</arg_key>\n<arg_value>1</arg_value>\n<arg_"
    for pieces in cuts(text).values():
        events = joined(read(FORMATS["pairs"], TOOLS, pieces, stop=stop))
        assert events == [Reasoning("x"), ToolCall(0, "new0", "find", '{"n": 1')]


@pytest.mark.parametrize("family", sorted(WRITTEN.keys() - {"prompted"}))  # whose mark is too short
def test_a_head_that_is_cut_off_is_not_shown(family: str):
    thinking, text = before(family)[0], filled(family).lstrip().removeprefix("<|begin|>assistant")
    mark = start_head(FORMATS[family]).parts[0].text
    assert text.startswith(mark)
    for n in range(len(mark), len(text) - len("<|close|>message<|sep|>")):
        events = read(FORMATS[family], TOOLS, thinking + text[:n], stop=STOP_LIMIT)
        assert not any(isinstance(event, Text) and event.text for event in events), text[:n]


BROKEN = [
    ("hermes", '<tool_call><tool_call>\n{"name": "ping", "<tool_call>: {}}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "ping", "arguments: {}}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "ping<tool_call>'),
    ("hermes", '<tool_call>\n{"arguments": {"city": "a}, find}}\n<tool_call>\n{'),
    ("keyed", '<|tools_prefix|>[{"ping: {}}]<|tools_suffix|>'),
    ("keyed", '<|tools_prefix|>[{"ping<|tools_prefix|>[{'),
    ("list", '[TOOL_CALLS][{"name": "ping", "arguments: {}}][TOOL_CALLS][{"name'),
    ("bare", '<|python_tag|>{"name": "ping", "parameters: {}}<|python_tag|>{"na'),
    ("later id", "[TOOL_CALLS]find[TOOL_CALLS]?"),
    ("fenced", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁call▁begin｜>"),
    ("functions", "<tool_call>\n<function=find\n<tool_call>?"),
    ("pairs", "<tool_call>fin</tool_call>"),
    ("python", "<|tool_call_start|>[find<|tool_call_end|>"),
    ("quoteless", "<|tool_call>call:find<tool_call|>"),
]


@pytest.mark.parametrize("stop", [STOP_LIMIT, STOP_ABORT, STOP_WORD, STOP_EOS])
@pytest.mark.parametrize("family, text", BROKEN)
def test_a_broken_head_with_other_marks_in_it_is_shown_at_every_end(family: str, text: str, stop: str):
    for name, pieces in cuts(text).items():
        assert joined(read(FORMATS[family], TOOLS, pieces, stop=stop, reasoning="none")) == [Text(text)], name


@pytest.mark.parametrize("stop", [STOP_LIMIT, STOP_ABORT, STOP_WORD, STOP_EOS])
def test_a_broken_head_behind_a_call_is_shown_at_every_end(stop: str):
    for text in (text for family, text in BROKEN if family == "hermes"):
        for pieces in cuts(f'<tool_call>{{"name": "ping", "arguments": {{}}}}</tool_call>\n{text}').values():
            assert joined(read(HERMES, TOOLS, pieces, stop=stop)) == [ToolCall(0, "new0", "ping", "{}"), Text(text)]


@pytest.mark.parametrize("end", ["<|end|>", "<|call|>", "<|channel|>x", "<|start|>assistant"])
def test_a_message_without_its_mark_is_shown_at_every_end(end: str):
    for pieces in cuts(f'<|channel|>commentary to=functions.find {{"city": "a"}}{end}').values():
        shown = [joined(read(FORMATS["harmony"], TOOLS, pieces, stop=stop)) for stop in (STOP_LIMIT, STOP_EOS)]
        assert shown[0] == shown[1] and str(shown[0]).count("commentary") == 1


def test_text_that_comes_with_the_end_is_read_as_well():
    parser = OutputParser(HERMES, TOOLS, parse_calls=True, reasoning="split", new_id=lambda: "x")
    parser.feed(Piece(1, (1,), "<tool_call>"))
    events = parser.feed(final(text='{"name": "ping", "arguments": {}}</tool_call>'))
    assert events[:-1] == (ToolCall(0, "x", "ping", "{}"),) and isinstance(events[-1], End)


def test_tokens_come_with_the_events_of_their_piece_also_while_text_is_held():
    parser = OutputParser(HERMES, TOOLS, parse_calls=True, reasoning="split", new_id=lambda: "x")
    texts = ["<think>", "Hm", "</thi", "nk>", "A ", "<tool", '_call>{"name": "ping"', ", ", '"arguments": {}}', "!"]
    tokens = []
    for n, text in enumerate(texts):
        events = parser.feed(Piece(1, (n,), text))
        tokens.append([event.tokens for event in events if isinstance(event, (Text, Reasoning, ToolCall))])
    assert [token for row in tokens for token in row if token] == [(n,) for n in range(len(texts))]


# ---- foreign text ------------------------------------------------------------------------------------------------

SNIPPETS = sorted(
    {
        snippet
        for family in FORMATS
        if family in WRITTEN
        for snippet in (*before(family), *WRITTEN[family][:2], filled(family), filled(family)[:25])
    }
    | {"<", "[", "{", "}", "]", '"', "'", "\\", "\n", "  ", "ping", "find", ":", ",", "=", "(", ")", "x", "é", "null"}
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=5)), max_size=12),
    st.data(),
)
def test_foreign_text_gives_the_same_events_in_any_pieces_and_loses_none(
    family: str, parts: list[str], data: st.DataObject
):
    text = "".join(parts)
    reasoning = data.draw(st.sampled_from(["split", "none"]))
    rng = random.Random(data.draw(st.integers(0, 1000)))
    pieces = []
    at = 0
    while at < len(text):
        n = rng.choice((1, 1, 2, 3, 8, 40))
        pieces.append(text[at : at + n])
        at += n
    form = FORMATS[family]
    whole = joined(read(form, TOOLS, text, reasoning=reasoning))
    assert joined(read(form, TOOLS, pieces, reasoning=reasoning)) == whole
    if not any(isinstance(event, (ToolCall, Reasoning)) for event in whole) and reasoning == "none":
        shown = "".join(event.text for event in whole if isinstance(event, Text))
        silent = [mark for tags in [form.content] if tags for mark in (tags.open, tags.close)] + list(form.silent)
        ends = {part for mark in filter(str.strip, silent) for part in (mark.strip()[:3], mark.strip()[-3:])}
        # the beginning of a mark may be in the prompt
        if not any(end in text for end in ends) and family != "harmony":
            assert shown == text.removeprefix(form.opening) or shown == text


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**12), 10**12),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.from_regex("[a-z_]{1,8}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=8,
)
TEXTS = st.text(st.sampled_from("abcäß字 \n\t\"'\\<>/[]{}()|,:=#-0123456789"), max_size=30)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), TEXTS, VALUES, st.booleans())
def test_calls_that_are_written_in_a_format_are_read_back(family: str, city: str, value: object, has_two: bool):
    form = FORMATS[family]
    if isinstance(form.call, (PythonCall, QuotelessCall)) or family == "cdata":
        city = city.replace("\n", " ")
    tools = [tool("find", {"properties": {"city": {"type": "string"}, "v": {"type": "object"}}}), tool("ping")]
    arguments = {"city": city, "v": {"x": value}}
    calls = [WrittenCall("find", arguments, "abcdefgh1", 0)]
    calls += [WrittenCall("ping", {}, "abcdefgh2", 1)] if has_two and form.can_be_many else []
    text = write_calls(form, calls)
    text = text.removeprefix(form.opening) if form.opening else text
    start = f"x{form.reasoning.close}" if form.reasoning and form.reasoning.is_opened else ""
    for pieces in ([start + text], list(start + text)):
        events = joined(read(form, tools, pieces))
        assert calls_of(events) == [(n, call.name, call.arguments) for n, call in enumerate(calls)], text


@pytest.mark.parametrize("start", ["", "<tool_call>", '<tool_call>{"name": "find", "arguments": {"city": ', "<think>"])
@pytest.mark.parametrize("family", ["hermes", "functions", "python", "harmony", "elements"])
def test_long_hostile_texts_are_read_once_and_little_of_them_is_held(family: str, start: str):
    """Were they read again with each piece, this would take minutes."""
    numbers = count()
    for unit in (
        "[",
        '{"a":',
        "<tool_call>",
        '<tool_call>{"a": "',
        " ",
        "\\",
        "</parameter>\n<x",
        "'",
        "<|channel|>",
        "(",
        "[<a>",
    ):
        text = start + unit * (60_000 // len(unit))
        for size in (7, 30_000):
            parser = OutputParser(
                FORMATS[family], TOOLS, parse_calls=True, reasoning="split", new_id=lambda: f"{next(numbers)}x"
            )
            for i in range(0, len(text), size):
                parser.feed(Piece(1, (1,), text[i : i + size]))
                reader = parser._reader
                assert len(reader.text) - reader.at < 20_000 + size, unit
            parser.feed(final(STOP_LIMIT))


def test_elements_within_elements_become_objects_and_lists_by_the_schema():
    properties = {"o": {"type": "object"}, "l": {"type": "array", "items": {"type": "string"}}, "e": {"type": "array"}}
    tools = [tool("f", {"properties": properties})]
    text = (
        "[<tool_call>[<invoke name=f>[<o>[<a>[<b>1[</b>[</a>[<c>x y[</c>[</o>"
        "[<l>[<item>1[</item>[</l>[<e>[</e>[</invoke>[</tool_call>"
    )
    for pieces in cuts(text).values():
        events = joined(read(ELEMENTS, tools, pieces))
        assert calls_of(events) == [(0, "f", {"o": {"a": {"b": 1}, "c": "x y"}, "l": ["1"], "e": []})]


def test_schemas_that_branch_without_end_are_looked_at_once():
    branches = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{m}"} for m in range(40)]} for n in range(40)}
    tools = [tool("f", {"properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": branches})]
    text = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
    assert calls_of(joined(read(FORMATS["functions"], tools, text))) == [(0, "f", {"x": 1})]
