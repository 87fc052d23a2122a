"""Templates get dates, switches and effort under their own names; a request's values take precedence."""

from __future__ import annotations

import datetime
import json

import pytest

from server.chat.template import ChatTemplate

USER = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def prompt(source: str, **extra: object) -> str:
    return "".join(text for text, _ in ChatTemplate(source, "", "").render(USER, True, extra))


@pytest.mark.parametrize(
    ("name", "form"), [("date_string", "%d %b %Y"), ("current_date", "%Y-%m-%d"), ("datetime", "%A, %Y-%m-%d")]
)
def test_dates_are_todays(name, form):
    days = [datetime.datetime.now().strftime(form)]
    shown = prompt(
        "{% if not " + name + " is defined %}{% set " + name + " = '1 Jan 1970' %}{% endif %}{{ " + name + " }}"
    )
    days.append(datetime.datetime.now().strftime(form))
    assert shown in days
    assert prompt("{{ " + name + " }}", **{name: "never"}) == "never"


def test_functions_are_a_text_where_a_template_reads_no_tools():
    shown = json.loads(prompt("{{ functions }}", tools=TOOLS))
    assert shown == [TOOLS[0]["function"]]
    assert prompt("{{ functions }}") == "[]"
    assert (
        prompt("{% macro say(functions) %}{{ functions }}{% endmacro %}{{ say(1) }}{{ tools | length }}", tools=TOOLS)
        == "11"
    )


def test_functions_are_the_users_text():
    tools = [{"type": "function", "function": {"name": "<|im_end|>"}}]
    segments = ChatTemplate("{{ 'a' + functions }}", "", "").render(USER, True, {"tools": tools})
    assert [text for text, is_user in segments if not is_user] == ["a"]


SWITCH = "{{ enable_thinking }} {{ thinking }}"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "True True"),
        ({"enable_thinking": False}, "False False"),
        ({"thinking": False}, "False False"),
        ({"enable_thinking": False, "thinking": True}, "False True"),
        ({"enable_thinking": "odd"}, "odd True"),
    ],
    ids=str,
)
def test_thinking_is_on_unless_a_request_says_otherwise(given, expected):
    assert prompt(SWITCH, **given) == expected


def test_other_switches_are_left_to_the_model_until_one_is_wished():
    source = "{{ thinking_mode }} {{ thinking_budget }} {{ reasoning }}"
    assert prompt(source) == "  "
    assert prompt(source, enable_thinking=False) == "disabled 0 False"
    assert prompt(source, enable_thinking=True) == "enabled  "


def one_of(name: str, *known: str, refuses: bool = False) -> str:
    """A template that knows these values of a variable."""
    other = "{{ raise_exception('unknown') }}" if refuses else "default"
    ways = "".join(f"{{% elif {name} == '{value}' %}}{value}" for value in known)
    return "{% if not " + name + " is defined %}none given" + ways + "{% else %}" + other + "{% endif %}"


@pytest.mark.parametrize(
    ("source", "effort", "shown"),
    [
        ("{{ reasoning_effort }}", "medium", "medium"),
        ("{{ reasoning_strength }}", "high", "high"),
        ("{{ thinking_effort }}", "strange", "strange"),
        (one_of("reasoning_effort", "high", "max"), "xhigh", "max"),
        (one_of("reasoning_effort", "high", "max"), "medium", "default"),
        (one_of("reasoning_effort", "low", "minimal"), "minimal", "minimal"),
        (one_of("reasoning_effort", "no_think", "low", "high", refuses=True), "medium", "high"),
        (one_of("reasoning_effort", "no_think", "low", "high", refuses=True), "minimal", "low"),
        (one_of("reasoning_effort", "no_think", "low", "high", refuses=True), "none", "no_think"),
        (one_of("thinking_effort", "low", "high", "max", refuses=True), "xhigh", "max"),
        (one_of("reasoning_effort", "low", "high", refuses=True), "none", "none given"),
    ],
)
def test_an_effort_gets_the_templates_own_name_and_value(source, effort, shown):
    assert prompt(source, reasoning_effort=effort) == shown


def test_an_effort_is_asked_of_a_template_once(monkeypatch):
    template = ChatTemplate(one_of("reasoning_effort", "low"), "", "")
    template.render(USER, True, {"reasoning_effort": "medium"})
    asked = []
    monkeypatch.setattr(template._probe, "render", lambda *args, **more: asked.append(args))
    for _ in range(3):
        template.render(USER, True, {"reasoning_effort": "medium"})
    assert asked == []
