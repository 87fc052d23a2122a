"""Random calls in each family's format, written and read again, complete and incomplete, however the text is split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.chat.output.events import Event, Reasoning, Text, ToolCall
from server.chat.output.formats import CallFormat, ChannelCall, QuotelessCall
from server.chat.output.heads import find_heads
from server.chat.output.parser import REASONING, OutputParser
from server.chat.output.write_calls import WrittenCall, write_calls
from server.chat.template import ChatTemplate
from server.engine.seam.task import STOP_EOS, STOP_LIMIT, STOP_WORD, Final, Piece, Timings
from tests.call_templates import CALL_TEMPLATES
from tests.fuzzing import fuzz

FORMATS = {name: ChatTemplate(template, "", "</s>").call_format for name, template in CALL_TEMPLATES.items()}
NAMES = ("f", "get_weather", "send-mail", "a.b", "x" * 64, "tool_call", "name")
KEYS = ("city", "n", "isOpen", "parameter", "arguments", "name", "naïve")
MARKS = (
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "<function=f>", "</function>"),
    *("</parameter>", "<parameter=n>", "</arg_value>", "<|tool_call_end|>", "<|im_end|>", "<|channel|>", "<|message|>"),
    *(
        "{",
        "}",
        "[",
        "]",
        '"',
        "'",
        "\\",
        ",",
        ":",
        "=",
        "\n",
        " ",
        "<",
        "</",
        "<|",
        "|>",
        "functions.",
        "null",
        "1e9",
        "é",
    ),
)
TEXTS = st.lists(st.sampled_from([*MARKS, "a", "b c", "1", "true", "世界", "😀"]), max_size=4).map("".join)
VALUES = st.recursive(
    TEXTS | st.integers(-(10**9), 10**9) | st.sampled_from([True, False, None, 0.5, -1.25, 1e30]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=5,
)
CALL = st.tuples(st.sampled_from(NAMES), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
CUTS = st.lists(st.integers(1, 400), max_size=12)


def tools_of(calls: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Tools whose arguments have the kinds of these calls'."""
    found: dict[str, dict[str, set[str]]] = {name: {} for name, _ in calls}
    for name, arguments in calls:
        for key, value in arguments.items():
            found[name].setdefault(key, set()).add(KINDS.get(type(value), "null"))
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "parameters": {
                    "type": "object",
                    "properties": {key: {"type": sorted(kinds)} for key, kinds in keys.items()},
                },
            },
        }
        for name, keys in found.items()
    ]


def pieces(text: str, cuts: Sequence[int]) -> Iterator[str]:
    places = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    return (text[start:end] for start, end in zip(places, places[1:]))


class Heard:
    """What an answer's events add up to."""

    def __init__(self) -> None:
        self.texts: list[list[str]] = []
        self.calls: list[list[str]] = []
        self.n = 0

    def next_id(self) -> str:
        self.n += 1
        return f"id{self.n}"

    def add(self, event: Event) -> None:
        if isinstance(event, ToolCall):
            if event.name:
                assert event.index == len(self.calls)
                self.calls.append([event.name, ""])
            assert event.index == len(self.calls) - 1
            self.calls[-1][1] += event.arguments
        elif isinstance(event, (Text, Reasoning)) and event.text:
            kind = type(event).__name__
            if not self.texts or self.texts[-1][0] != kind:
                self.texts.append([kind, ""])
            self.texts[-1][1] += event.text


def hear(
    form: CallFormat, tools: list[dict[str, Any]], parts: Iterator[str], reasoning: str = "split", stop: str = STOP_EOS
) -> Heard:
    """All events of a text that comes in these parts."""
    heard = Heard()
    parser = OutputParser(form, tools, parse_calls=True, reasoning=reasoning, new_id=heard.next_id)
    for part in parts:
        for event in parser.feed(Piece(1, (1,), part)):
            heard.add(event)
    for event in parser.feed(Final(1, 0, "", stop, "", 1, 1, 0, False, Timings(1, 2, 3.0, 4, 5.0))):
        heard.add(event)
    return heard


def can_write(form: CallFormat, arguments: dict[str, Any]) -> bool:
    """Whether a text can say these arguments so that there is one way to read it."""
    if isinstance(form.call, QuotelessCall):
        return form.call.quote not in json.dumps(arguments, ensure_ascii=False).replace('\\"', '"')
    return True


@pytest.mark.parametrize("family", FORMATS)
@fuzz(40)
@given(st.lists(CALL, min_size=1, max_size=3), CUTS)
def test_what_is_written_is_read(family: str, calls: list[tuple[str, dict[str, Any]]], cuts: list[int]):
    form = FORMATS[family]
    calls = [call for call in calls if can_write(form, call[1])][: 3 if form.can_be_many else 1]
    if not calls:
        return
    text = write_calls(form, [WrittenCall(*call, f"call{i:05d}", i) for i, call in enumerate(calls)])
    heard = hear(form, tools_of(calls), pieces(text, cuts))
    assert [(name, json.loads(arguments)) for name, arguments in heard.calls] == calls, text
    assert not heard.texts, text


@pytest.mark.parametrize("family", FORMATS)
@fuzz(40)
@given(
    st.lists(CALL, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 12), st.sampled_from(MARKS)), max_size=4),
    st.sampled_from(REASONING),
    st.sampled_from([STOP_EOS, STOP_WORD, STOP_LIMIT]),
)
@example([("f", {})], [(0, 0, "<tool_call>"), (38, 10, "<tool_call>")], "none", STOP_LIMIT)
def test_broken_calls_are_read_the_same_in_any_pieces(
    family: str, calls: list[tuple[str, dict[str, Any]]], breaks: list[tuple[int, int, str]], reasoning: str, stop: str
):
    form = FORMATS[family]
    text = write_calls(form, [WrittenCall(*call, f"call{i:05d}", i) for i, call in enumerate(calls)])
    for at, n, mark in breaks:
        at %= len(text) + 1
        text = text[:at] + mark + text[at + n :]
    tools = tools_of(calls)
    whole = hear(form, tools, iter([text]), reasoning, stop)
    by_byte = hear(form, tools, iter(text), reasoning, stop)
    assert by_byte.calls == whole.calls
    for kind in ("Text", "Reasoning"):
        assert said(by_byte, kind) == said(whole, kind)
    for name, _ in whole.calls:
        assert name in NAMES
    if not whole.calls and reasoning == "none" and not isinstance(form.call, ChannelCall) and not form.content:
        shown, everything = said(whole, "Text"), "".join(text.split())
        assert everything.startswith("".join(shown.split()))
        lost = everything.removeprefix("".join(shown.split()))
        if stop != STOP_LIMIT or not is_begun_call(form, lost):
            assert shown.split() == text.split()


def is_begun_call(form: CallFormat, text: str) -> bool:
    """Whether this text, which a limit has ended, may be a call that is cut off: it has the mark of a beginning, and no
    other mark of calls. White space is left out."""
    before, after = (
        [mark for mark in ("".join(each.split()) for each in texts) if len(mark) > 3 and not mark[0].isalnum()]
        for texts in ((form.before_all, form.before_call), (form.after_call, form.after_all))
    )
    is_once = all(text.count(mark) < 2 for mark in before) and not any(mark in text for mark in after)
    return is_once and text.startswith(tuple(find_heads(form)))


def said(heard: Heard, kind: str) -> str:
    return "".join(text for one, text in heard.texts if one == kind)
