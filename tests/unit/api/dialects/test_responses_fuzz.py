"""Random items, tools and choices in requests for a response: messages or an ApiError, never another exception."""

from __future__ import annotations

import json
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from server.api.dialects.response_items import item_of, read_conversation_id, unseal, with_ids
from server.api.dialects.responses import ITEMS, read_format, read_messages, read_tools
from server.api.request.media import Files
from server.errors import ApiError
from tests.fuzzing import fuzz

BLIND = SimpleNamespace(info=SimpleNamespace(vision=False, audio=False))
NOTHING_STORED = SimpleNamespace(stored=SimpleNamespace(get=lambda id_, key_id: None))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
words = st.text(max_size=5)
KINDS = [*ITEMS, "item_reference", "web_search_call", "x"]
PARTS = ["input_text", "output_text", "refusal", "input_image", "input_file", "input_audio", "summary_text", "x"]
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(PARTS) | json_values},
    optional=dict.fromkeys(
        ("text", "refusal", "image_url", "file_data", "filename", "file_id", "input_audio"), words | json_values
    ),
)
contents = words | st.lists(parts | json_values, max_size=3) | json_values
items = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS) | json_values},
    optional={
        **dict.fromkeys(("content", "summary", "output"), contents),
        **dict.fromkeys(
            ("call_id", "name", "arguments", "input", "id", "status", "encrypted_content"), words | json_values
        ),
        "role": st.sampled_from(["user", "assistant", "system", "developer"]) | json_values,
    },
)
tools = st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "custom", "web_search"]) | json_values},
    optional={
        "name": st.sampled_from(["f", "g"]) | json_values,
        "format": st.fixed_dictionaries(
            {"type": st.sampled_from(["text", "grammar"]) | json_values},
            optional={"syntax": st.sampled_from(["regex", "lark"]) | json_values, "definition": words | json_values},
        )
        | json_values,
        **dict.fromkeys(("description", "parameters", "strict"), json_values),
    },
)
choices = st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "custom", "allowed_tools"]) | json_values},
    optional={
        "name": st.sampled_from(["f", "g"]) | json_values,
        "mode": st.sampled_from(["auto", "required"]) | json_values,
        "tools": st.lists(tools | json_values, max_size=2) | json_values,
    },
)


@fuzz(600)
@given(st.lists(items | json_values, max_size=5) | json_values)
def test_items(value):
    try:
        found = with_ids(value, "0")
        messages, _ = read_messages(NOTHING_STORED, {"input": found, "instructions": None}, [], Files(BLIND))
    except ApiError as error:
        assert error.status in (400, 404) and error.message
        return
    for message in messages:
        assert message["role"] in ("user", "assistant", "system", "developer", "tool")
        assert isinstance(message["content"], (str, list))
        for call in message.get("tool_calls", ()):
            assert isinstance(call["id"], str) and isinstance(call["function"]["arguments"], str)
    assert all(one["role"] != two["role"] or one["role"] != "user" for one, two in zip(messages, messages[1:]))


@fuzz(400)
@given(st.lists(tools | json_values, max_size=3) | json_values, choices | json_values, st.booleans())
def test_tools(value, choice, is_parallel):
    try:
        found, customs, _ = read_tools(value, choice, is_parallel)
    except ApiError as error:
        assert error.status == 400
        return
    names = {tool["function"]["name"] for tool in found.shown}
    assert customs <= names and {tool["function"]["name"] for tool in found.callable} <= names
    json.dumps(found.shown)


@fuzz(200)
@given(json_values)
def test_single_values(value):
    unseal(value)
    for read in (read_conversation_id, lambda form: read_format({"format": form}, {})):
        try:
            read(value)
        except ApiError as error:
            assert error.status == 400


@fuzz(200)
@given(
    st.sampled_from(["message", "reasoning", "function_call", "custom_tool_call"]), words.filter(bool), st.booleans()
)
def test_an_item_is_read_as_it_was_written(kind, text, is_summary):
    item = {"id": "x_1", "type": kind, "status": "completed"}
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    if kind == "message":
        item |= {"role": "assistant", "content": [part]}
    elif kind == "reasoning" and is_summary:
        item |= {"summary": [{"type": "summary_text", "text": text}]}
    elif kind == "reasoning":
        item |= {"summary": [], "content": [{"type": "reasoning_text", "text": text}]}
    else:
        item |= {"call_id": "c", "name": "f", "arguments" if kind == "function_call" else "input": text}
    found, said = item_of(item)
    found.parts.append(said)
    found.status = "completed"
    assert found.as_json() == item
