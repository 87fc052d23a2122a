"""Random messages and templates in Ollama's requests: a result or an ApiError, never another exception."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from server.api.dialects.ollama import keep_alive, read_tools, read_turns, read_wish
from server.api.dialects.ollama_generate import fill_template
from server.api.request.media import Files
from server.errors import ApiError
from tests.fuzzing import fuzz

VALUES = {".System": "s", ".Prompt": "p", ".Response": ""}
BLIND = SimpleNamespace(info=SimpleNamespace(vision=False, audio=False))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
calls = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "function": st.fixed_dictionaries({}, optional={"name": json_values, "arguments": json_values}),
    },
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]) | json_values},
    optional={
        **dict.fromkeys(("content", "thinking", "images", "tool_name", "name", "tool_call_id"), json_values),
        "tool_calls": st.lists(calls | json_values, max_size=3) | json_values,
    },
)
actions = st.sampled_from(
    ["{{", "}}", "{{ if .System }}", "{{ else }}", "{{- end -}}", "{{.Prompt}}", "{{ .Response }}", " -", "{", "x\n"]
)


@fuzz(300)
@given(st.lists(messages | json_values, max_size=5) | json_values)
def test_messages(value):
    try:
        turns = read_turns(value, Files(BLIND))
    except ApiError:
        return
    assert len(turns) == len(value)
    for turn in turns:
        assert isinstance(turn["role"], str) and isinstance(turn["content"], str)
        for call in turn.get("tool_calls", ()):
            assert isinstance(call["id"], str) and isinstance(call["function"]["arguments"], dict)


@fuzz(300)
@given(st.lists(actions | st.text(max_size=3), max_size=30).map("".join))
def test_templates(source):
    try:
        segments = fill_template(source, VALUES)
    except ApiError as error:
        assert error.status == 400 and error.message.startswith("template: ")
        return
    assert all(text in VALUES.values() for text, is_user in segments if is_user)


@fuzz(200)
@given(json_values)
def test_single_values(value):
    others = {"tool_choice": None, "functions": None, "function_call": None, "parallel_tool_calls": True}
    readers = (
        partial(keep_alive, SimpleNamespace(keep=lambda seconds: True)),
        read_wish,
        lambda tools: read_tools({**others, "tools": tools}),
    )
    for read in readers:
        try:
            read(value)
        except ApiError as error:
            assert error.status == 400
