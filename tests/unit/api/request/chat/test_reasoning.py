"""Reasoning settings of a chat and of the server's options, and which one takes precedence. Pure."""

from __future__ import annotations

import pytest

from server.api.request.chat.reasoning import MAX_MESSAGE, ReasoningWish, make_reasoning_variables, read_reasoning
from server.api.request.fields import CHAT_FIELDS
from server.api.request.schema import read
from server.errors import ApiError


def wish(body: dict, defaults: dict | None = None, **variables: object) -> ReasoningWish:
    values = read(body, CHAT_FIELDS, defaults or {})
    return read_reasoning(values, {**make_reasoning_variables(values), **variables})


@pytest.mark.parametrize(
    ("name", "form"),
    [("none", "none"), ("auto", "split"), ("deepseek", "split"), ("deepseek-legacy", "legacy"), (None, "split")],
)
def test_each_format(name, form):
    assert wish({"reasoning_format": name}).form == form


def test_a_request_counts_more_than_an_option():
    ours = {"reasoning_format": "none", "reasoning_budget_tokens": 5, "reasoning_budget_message": "so."}
    assert wish({}, ours) == ReasoningWish("none", 5, "so.")
    body = {"reasoning_format": "auto", "reasoning_budget_tokens": -1, "reasoning_budget_message": ""}
    assert wish(body, ours) == ReasoningWish("split", -1, "")


@pytest.mark.parametrize("name", ["reasoning_budget_tokens", "thinking_budget_tokens"])
def test_both_names_of_the_budget(name):
    assert wish({name: 7}).budget == 7


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_thinking": False},
        {"reasoning_effort": "none"},
        {"reasoning_budget_tokens": 0},
        {"reasoning_effort": "high", "enable_thinking": False},
    ],
    ids=repr,
)
def test_all_ways_to_say_that_it_must_not_think(fields):
    variables = make_reasoning_variables(read(fields, CHAT_FIELDS))
    assert variables["enable_thinking"] is False
    assert wish(fields).budget == 0


def test_a_variable_of_the_template_says_it_too():
    assert wish({}, enable_thinking=False).budget == 0
    assert wish({"reasoning_budget_tokens": 9}, enable_thinking=True).budget == 9


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"reasoning_effort": ""}, {}),
        ({"enable_thinking": True}, {"enable_thinking": True}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"reasoning_effort": "none", "enable_thinking": True}, {"enable_thinking": True}),
    ],
    ids=repr,
)
def test_what_the_template_gets(fields, expected):
    assert make_reasoning_variables(read(fields, CHAT_FIELDS)) == expected


BAD = [
    ({"reasoning_format": "other"}, "none, auto, deepseek, deepseek-legacy"),
    ({"reasoning_format": 5}, "reasoning_format"),
    ({"reasoning_budget_tokens": -2}, "reasoning_budget_tokens"),
    ({"thinking_budget_tokens": "x"}, "thinking_budget_tokens"),
    ({"reasoning_budget_message": 5}, "reasoning_budget_message"),
    ({"reasoning_budget_message": "x" * (MAX_MESSAGE + 1)}, "reasoning_budget_message"),
    ({"enable_thinking": "yes"}, "enable_thinking"),
    ({"reasoning_effort": 5}, "reasoning_effort"),
]


@pytest.mark.parametrize(("body", "words"), BAD, ids=lambda value: repr(value)[:60])
def test_what_is_wrong_is_refused_by_name(body, words):
    with pytest.raises(ApiError) as caught:
        wish(body)
    assert caught.value.status == 400 and words in caught.value.message
