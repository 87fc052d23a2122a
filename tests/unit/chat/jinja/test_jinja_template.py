"""The class `Template`: places of errors, its two dialects, and use from several threads."""

from __future__ import annotations

import re
import threading

import pytest

from server.chat.jinja import (
    Limits,
    Template,
    TemplateError,
    TemplateRaised,
    TemplateRuntimeError,
    TemplateSyntaxError,
    UndefinedError,
)

MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "user", "content": None}]


def failure(source: str, **context: object) -> TemplateError:
    with pytest.raises(TemplateError) as caught:
        Template(source).render(context)
    return caught.value


@pytest.mark.parametrize(
    "source, place",
    [
        ("{{ 1/0 }}", (1, 4)),
        ("a\n b {{ qq.y }}", (2, 9)),
        ("\n\n{% for i in 5 %}{% endfor %}", (3, 4)),
        ("{{ '' ~\n  missing.x }}", (2, 10)),
        ("{% macro m() %}\n  {{ none + 1 }}\n{% endmacro %}\n{{ m() }}", (2, 6)),
        ("{{ 'x'|\n indent('y', nope=1) }}", (2, 2)),
        ("{% set a, b = 1 %}", (1, 8)),
        ("{% if 1 %}\n{{ f() }}{% endif %}", (2, 5)),
        ("x\r\ny {{ n.n.n }}", (2, 7)),
        ("{{ raise_exception('no') }}", (1, 19)),
        ("{% set x %}{{ {}.a.b }}{% endset %}", (1, 19)),
        ("{% for i in [1] if i.a.b %}{% endfor %}", (1, 23)),
        ("{% with a = 1 + '' %}{% endwith %}", (1, 13)),
        ("{% call f() %}{% endcall %}", (1, 4)),
        ("{{ x is divisibleby 0 }}", (1, 6)),
        # the syntax
        ("{{ 1 + }}", (1, 8)),
        ("\n{% if %}", (2, 7)),
        ("{{ 'a }}", (1, 4)),
        ("{% for x in y %}", (1, 17)),
        ("{{ x|nope }}", (1, 6)),
        ("{{ x is nope }}", (1, 6)),
        ("{% nope %}", (1, 4)),
        ("{# x", (1, 1)),
        ("a{% raw %}b", (1, 2)),
        ("{{ (1] }}", (1, 6)),
        ("{{ 1 }", (1, 6)),
        ("{{ f(a=1, a=2) }}", (1, 14)),
    ],
)
def test_errors_name_line_and_column(source: str, place: tuple[int, int]) -> None:
    error = failure(source, x=0)
    assert (error.line, error.column) == place, error
    assert f"line {place[0]}, column {place[1]}" in str(error)
    assert error.message and "\n" not in error.message


@pytest.mark.parametrize(
    "source, index",
    [
        ("{% for m in messages %}{{ m.content.upper() }}{% endfor %}", 2),
        ("{% for m in messages[1:] %}{% for c in m.content %}{{ c.x.y }}{% endfor %}{% endfor %}", 1),
        (
            "{% macro show(x) %}{{ x + '' }}{% endmacro %}"
            "{% for m in messages if m.content is none %}{{ show(m.content) }}{% endfor %}",
            2,
        ),
        (
            "{% for m in messages|reverse %}{% if m.role == 'user' %}{{ raise_exception('x') }}{% endif %}{% endfor %}",
            2,
        ),
        ("{% for m in messages %}{% endfor %}{{ m.x.y }}", None),
        ("{% for i in range(3) %}{{ messages[i].content.upper() }}{% endfor %}", None),
    ],
)
def test_errors_name_the_message_that_was_rendered(source: str, index: int | None) -> None:
    error = failure(source, messages=MESSAGES)
    assert error.message_index == index
    assert (f"messages[{index}]" in str(error)) is (index is not None)


def test_kinds_of_errors() -> None:
    for source, kind in (
        ("{{", TemplateSyntaxError),
        ("{{ a.b }}", UndefinedError),
        ("{{ 1 + '' }}", TemplateRuntimeError),
        ("{{ raise_exception('No ' ~ 1) }}", TemplateRaised),
    ):
        assert type(failure(source)) is kind
    assert failure("{{ raise_exception('No ' ~ 1) }}").message == "No 1"


def test_a_failing_render_leaves_the_template_usable() -> None:
    template = Template(
        "{% macro m(n) %}{{ 6 // n }}{% endmacro %}{% for i in l %}{% set x %}{{ m(i) }}{% endset %}{{ x }}{% endfor %}"
    )
    for _ in range(3):
        with pytest.raises(TemplateRuntimeError):
            template.render({"l": [1, 0]})
        assert template.render({"l": [1, 2]}) == "63"


def test_the_strict_dialect_is_that_of_transformers() -> None:
    for source, wider in (
        ("{% do [] %}x", "x"),
        ("{% set l = [] %}{% set _ = l.append(1) %}{{ l }}", "[1]"),
        ("{{ '[1]'|from_json }}", "[1]"),
        ("{% set d = {'a': 1} %}{{ d.pop('a') }}", "1"),
    ):
        assert Template(source).render({}) == wider
        with pytest.raises(TemplateError):
            Template(source, strict=True).render({})


@pytest.mark.parametrize(
    "source",
    [
        "{% include 'a' %}",
        "{% extends 'a' %}",
        "{% import 'a' as b %}",
        "{% from 'a' import b %}",
        "{% block a %}{% endblock %}",
        "{% autoescape true %}{% endautoescape %}",
    ],
)
def test_tags_that_chat_templates_cannot_have_are_refused_by_name(source: str) -> None:
    with pytest.raises(TemplateSyntaxError, match=re.escape(f"the tag {source.split()[1]!r} isn't available")):
        Template(source)


def test_the_context_goes_before_the_globals() -> None:
    context = {"range": 5, "strftime_now": lambda format: format}
    assert Template("{{ range }}{{ strftime_now('%d') }}").render(context) == "5%d"


def test_the_time_is_now() -> None:
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", Template("{{ strftime_now('%Y-%m-%d') }}").render({}))


def test_names_are_those_the_template_reads() -> None:
    source = "{% set a = b %}{% for c in d %}{{ e.f }}{{ 'g'|default(h) }}{% endfor %}"
    assert Template(source).names == {"b", "d", "e", "h"}
    assert "tools" not in Template("{{ messages }}").names


def test_one_template_serves_several_threads() -> None:
    template = Template(
        "{% macro m(x) %}{% set y = x %}{{ y }}{% endmacro %}{% set ns = namespace(s='') %}"
        "{% for i in l %}{% set ns.s = ns.s ~ m(i) %}{% endfor %}{{ ns.s }}"
    )
    results: dict[int, set[str]] = {}

    def work(number: int) -> None:
        results[number] = {template.render({"l": [number] * 50}) for _ in range(20)}

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: {str(number) * 50} for number in range(8)}


def test_limits_are_those_of_each_call() -> None:
    template = Template("{% for i in range(50) %}x{% endfor %}")
    assert template.render({}) == "x" * 50
    with pytest.raises(TemplateError, match="prints more than 10 characters"):
        template.render({}, limits=Limits(output=10))
