"""A chat's tools and required calls: all forms in which clients send them, and refusals with their words. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.request.chat.tools import AUTO, MAX_CHARACTERS, MAX_TOOLS, NONE, REQUIRED, Tools, read_tools
from server.api.request.fields import CHAT_FIELDS
from server.api.request.schema import read
from server.errors import ApiError


def function(name: str = "f", **more: object) -> dict:
    return {"name": name, **more}


def tool(name: str = "f", **more: object) -> dict:
    return {"type": "function", "function": function(name, **more)}


def tools_of(**body: object) -> Tools:
    return read_tools(read(body, CHAT_FIELDS))


def refused(**body: object) -> str:
    with pytest.raises(ApiError) as caught:
        tools_of(**body)
    assert caught.value.status == 400 and "\n" not in caught.value.message and len(caught.value.message) < 200
    return caught.value.message


def named(name: str = "f") -> dict:
    return {"type": "function", "function": {"name": name}}


def allowed(*names: str, mode: str = "auto") -> dict:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def names(tools: Tools) -> list[str]:
    return [one["function"]["name"] for one in tools.callable]


TWO = [tool("f"), tool("g")]


@pytest.mark.parametrize("body", [{}, {"tools": None}, {"tools": []}, {"functions": []}, {"functions": None}], ids=repr)
@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}, {"tool_choice": "none"}, {"function_call": "auto"}])
def test_without_tools_nothing_can_be_called(body, choice):
    assert tools_of(**body, **choice) == Tools()


@pytest.mark.parametrize(
    ("choice", "expected", "callable_names", "is_parallel"),
    [
        (None, AUTO, ["f", "g"], True),
        ("auto", AUTO, ["f", "g"], True),
        ("none", NONE, [], True),
        ("required", REQUIRED, ["f", "g"], True),
        (named("g"), REQUIRED, ["g"], False),
        (allowed("g"), AUTO, ["g"], True),
        (allowed("g", "f", "g", mode="required"), REQUIRED, ["f", "g"], True),
    ],
    ids=repr,
)
def test_each_choice(choice, expected, callable_names, is_parallel):
    tools = tools_of(tools=TWO, tool_choice=choice)
    assert (tools.choice, names(tools), tools.is_parallel) == (expected, callable_names, is_parallel)
    assert list(tools.shown) == TWO and not tools.is_old


def test_one_call_is_enough_where_the_client_says_so():
    assert not tools_of(tools=TWO, parallel_tool_calls=False).is_parallel
    assert tools_of(tools=TWO, parallel_tool_calls=True).is_parallel


def test_the_older_form_shows_the_same_tools():
    tools = tools_of(functions=[function("f", parameters={"type": "object"}), function("g")])
    assert list(tools.shown) == [tool("f", parameters={"type": "object"}), tool("g")]
    assert tools.is_old and not tools.is_parallel and tools.choice == AUTO
    assert tools_of(functions=[function()], function_call="none").choice == NONE
    forced = tools_of(functions=[function("f"), function("g")], function_call={"name": "g"})
    assert (forced.choice, names(forced)) == (REQUIRED, ["g"])


def test_a_tool_without_a_type_is_a_function():
    assert tools_of(tools=[{"function": function()}]).shown == (tool(),)


BAD = [
    ({"tools": {}}, "tools"),
    ({"tools": "x"}, "tools"),
    ({"tools": ["x"]}, "tools[0]"),
    ({"tools": [tool(), None]}, "tools[1]"),
    ({"tools": [{}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "name": "f"}]}, "tools[0].function"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
    ({"tools": [{"type": 5, "function": function()}]}, "tools[0].type"),
    ({"tools": [{"function": {}}]}, "tools[0].function.name"),
    ({"tools": [tool(5)]}, "tools[0].function.name"),
    ({"tools": [tool("")]}, "tools[0].function.name"),
    ({"tools": [tool("a b")]}, "tools[0].function.name"),
    ({"tools": [tool("f\n")]}, "tools[0].function.name"),
    ({"tools": [tool("</tool_call>")]}, "tools[0].function.name"),
    ({"tools": [tool("é")]}, "tools[0].function.name"),
    ({"tools": [tool("x" * 129)]}, "tools[0].function.name"),
    ({"tools": [tool("f", description=5)]}, "tools[0].function.description"),
    ({"tools": [tool("f", parameters=[])]}, "tools[0].function.parameters"),
    ({"tools": [tool("f", parameters=True)]}, "tools[0].function.parameters"),
    ({"tools": [tool("f", parameters={"type": "string"})]}, "tools[0].function.parameters.type"),
    ({"tools": [tool("f", strict="yes")]}, "tools[0].function.strict"),
    ({"tools": [tool("g"), tool("f"), tool("f")]}, "tools[2]"),
    ({"functions": {"a": 1}}, "functions"),
    ({"functions": ["x"]}, "functions[0]"),
    ({"functions": [tool()]}, "functions[0].name"),
    ({"functions": [function("f"), function("f")]}, "functions[1]"),
    ({"functions": [function()], "tools": [tool()]}, "exclude each other"),
    ({"functions": [function()], "tool_choice": "required"}, "tool_choice goes with tools"),
    ({"tools": [tool()], "function_call": {"name": "f"}}, "function_call goes with functions"),
    ({"tools": [tool()], "tool_choice": "any"}, "auto, none, required"),
    ({"tools": [tool()], "tool_choice": 5}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": True}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": []}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": {}}, "tool_choice.type"),
    ({"tools": [tool()], "tool_choice": {"type": "tool"}}, "tool_choice.type"),
    ({"tools": [tool()], "tool_choice": {"type": ["function"]}}, "tool_choice.type"),
    ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function.name"),
    (
        {"tools": [tool()], "tool_choice": {"type": "function", "name": "g"}},
        "tool_choice.name: there is no function 'g'",
    ),
    ({"tools": [tool()], "tool_choice": named("g")}, "no function 'g'"),
    ({"tools": [tool()], "tool_choice": named({})}, "tool_choice.function.name"),
    ({"tools": [tool()], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
    ({"tools": [tool()], "tool_choice": allowed("f", mode="none")}, "tool_choice.allowed_tools.mode"),
    ({"tools": [tool()], "tool_choice": allowed("f", mode=[])}, "tool_choice.allowed_tools.mode"),
    ({"tools": [tool()], "tool_choice": allowed()}, "tool_choice.allowed_tools.tools"),
    ({"tools": [tool()], "tool_choice": allowed("f", "g")}, "tool_choice.allowed_tools.tools[1].function.name"),
    (
        {"tools": [tool()], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [5]}}},
        "tool_choice.allowed_tools.tools[0]",
    ),
    ({"tool_choice": "required"}, "no tools"),
    ({"tool_choice": named("f")}, "no function 'f'"),
    ({"tools": [], "tool_choice": "required"}, "no tools"),
    ({"functions": [function()], "function_call": "required"}, "function_call"),
    ({"functions": [function()], "function_call": {}}, "function_call.name"),
    ({"functions": [function()], "function_call": {"name": "g"}}, "function_call.name"),
]


@pytest.mark.parametrize(("body", "words"), BAD, ids=lambda value: repr(value)[:70])
def test_what_is_wrong_is_refused_by_its_place(body, words):
    assert words in refused(**body)


def test_too_many_or_too_large_tools_are_refused():
    assert str(MAX_TOOLS) in refused(tools=[tool(f"f{i}") for i in range(MAX_TOOLS + 1)])
    assert len(tools_of(tools=[tool(f"f{i}") for i in range(MAX_TOOLS)]).shown) == MAX_TOOLS
    assert str(MAX_CHARACTERS) in refused(tools=[tool("f", description="x" * MAX_CHARACTERS)])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["f", "function", "auto"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "function", "name", "allowed_tools", "mode", "tools"]), inner)
    ),
    max_leaves=12,
)


@given(tools=JSON, tool_choice=JSON, functions=JSON, function_call=JSON)
def test_any_json_is_read_or_refused(**body):
    try:
        assert isinstance(tools_of(**body), Tools)
    except ApiError as error:
        assert error.status == 400


@given(tool_choice=JSON)
def test_any_choice_among_tools_is_read_or_refused(tool_choice):
    try:
        tools = tools_of(tools=TWO, tool_choice=tool_choice)
        assert tools.choice == NONE or tools.callable
    except ApiError as error:
        assert error.status == 400
