"""What may be the arguments of a call that models write as JSON: an object, null, or a string with one of them."""

from __future__ import annotations

import pytest

from server.chat.output.events import Text, ToolCall
from tests.unit.chat.output.call_formats import FORMATS, tool
from tests.unit.chat.output.reading import cuts, joined, read

TOOLS = [tool("find")]
CALLS = {  # by family: a call with the place of its arguments
    "hermes": '<tool_call>\n{"name": "find", "arguments": %s}\n</tool_call>',
    "generic": '<tool_call>{"arguments": %s, "name": "find"}</tool_call>',
    "keyed": '<|tools_prefix|>[{"find": %s}]<|tools_suffix|>',
    "list": '[TOOL_CALLS][{"name": "find", "arguments": %s, "id": "abcdefgh1"}]',
    "bare": '{"name": "find", "parameters": %s}',
}
OTHERS = ["5", "-1.5", '[{"n": 1}]', "true", '"Paris"', r'"\n [1]"', r'"\"5\""', "'\"5\"'", f'"{" " * 70}{{}}"']


@pytest.mark.parametrize("value", OTHERS)
@pytest.mark.parametrize("family", CALLS)
def test_a_call_whose_arguments_are_no_object_stays_text(family: str, value: str):
    text = CALLS[family] % value
    for name, pieces in cuts(text).items():
        assert joined(read(FORMATS[family], TOOLS, pieces)) == [Text(text)], name


@pytest.mark.parametrize(
    "value, arguments",
    [
        ('{"n": 1}', '{"n": 1}'),
        (r'"{\"n\": 1}"', '{"n": 1}'),
        (r'"\n {\"n\": 1}"', '{"n": 1}'),
        ("null", "{}"),
        ('" null "', "{}"),
        ('""', "{}"),
    ],
)
@pytest.mark.parametrize("family", CALLS)
def test_an_object_may_be_in_a_string_or_missing(family: str, value: str, arguments: str):
    for name, pieces in cuts(CALLS[family] % value).items():
        [call] = joined(read(FORMATS[family], TOOLS, pieces))
        assert isinstance(call, ToolCall) and (call.name, call.arguments) == ("find", arguments), name
