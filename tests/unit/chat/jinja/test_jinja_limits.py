"""Hostile templates: each ends soon with a `TemplateLimitError`, without filling the memory.

The limits in these tests are small, so that reaching them is quick on any machine. Results that would take a gigabyte
or an hour are refused before they are made.
"""

from __future__ import annotations

import pytest

from server.chat.jinja import Limits, Template, TemplateError, TemplateLimitError, TemplateSyntaxError
from server.chat.jinja.limits import Run

SMALL = Limits(steps=20_000, depth=30, output=100_000, text=100_000, items=10_000, bits=4000, seconds=60.0)
HUGE = "1" + "0" * 12

ENDLESS = {
    "loops in loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for a in range(9999) if a < 0 %}{% endfor %}" * 5,
    "loop over a growing list": "{% set l = [1] %}{% for x in l %}{% do l.append(x) %}{% endfor %}",
    "lazy sequences": "{% for a in range(9999) %}{{ range(9999)|map('abs')|select|first }}"
    "{{ range(9999)|sum }}{% endfor %}",
    "output": "{% for a in range(9999) %}0123456789012345678901234567890{% endfor %}",
    "captured output": "{% set x %}{% for a in range(9999) %}0123456789012345678901234567890{% endfor %}{% endset %}",
    "macro recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "mutual recursion": "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "caller recursion": "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}",
    "loop recursion": "{% set l = [1] %}{% do l.append(l) %}{% for x in l recursive %}{{ loop(l) }}{% endfor %}",
    "many large texts": "{% set n = namespace(l=[]) %}{% for i in range(9999) %}"
    "{% set n.l = n.l + ['a' * 99999] %}{% endfor %}",
    "text made longer by escape": "{{ ('&' * 99999)|e }}",
    "text doubled by a set block": "{% set n = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "list extended by itself": "{% set l = [1] %}{% for i in range(99) %}{% do l.extend(l) %}{% endfor %}",
    "repeated text": f"{{{{ 'a' * {HUGE} }}}}",
    "repeated text, other way": f"{{{{ {HUGE} * 'a' }}}}",
    "repeated list": f"{{{{ [1] * {HUGE} }}}}",
    "range": f"{{{{ range({HUGE}) }}}}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "power of a large number": f"{{{{ {HUGE} ** 9999 }}}}",
    "center": f"{{{{ 'a'|center({HUGE}) }}}}",
    "padding": f"{{{{ 'a'.ljust({HUGE}) }}}}",
    "zfill": f"{{{{ 'a'.zfill({HUGE}) }}}}",
    "expandtabs": f"{{{{ '\\t'.expandtabs({HUGE}) }}}}",
    "format width": f"{{{{ '%{HUGE}d' % 1 }}}}",
    "format precision": f"{{{{ '%.{HUGE}f' % 1 }}}}",
    "format star": f"{{{{ '%*d' % ({HUGE}, 1) }}}}",
    "format named": f"{{{{ '%(a){HUGE}d' % {{'a': 1}} }}}}",
    ".format width": f"{{{{ '{{:{HUGE}}}'.format(1) }}}}",
    ".format nested width": f"{{{{ '{{:{{}}}}'.format(1, {HUGE}) }}}}",
    ".format precision": f"{{{{ '{{:.{HUGE}f}}'.format(1.5) }}}}",
    "round": f"{{{{ 1.5|round({HUGE}, 'floor') }}}}",
    "indent": f"{{{{ 'a\nb'|indent({HUGE}) }}}}",
    "tojson indent": f"{{{{ [1]|tojson(indent={HUGE}) }}}}",
    "batch": f"{{{{ [1]|batch({HUGE}, 0)|list }}}}",
    "slice": f"{{{{ [1]|slice({HUGE})|list }}}}",
    "integer from text": "{{ ('9' * 99999)|int }}",
    "wordwrap": "{{ ('a ' * 5000)|wordwrap(1, wrapstring='x' * 999) }}",
    "time format": "{{ strftime_now('%A' * 9999) }}",
}

# name -> (a value, what makes it larger)
GROWING = {
    name: f"{{% set n = namespace(x={start}) %}}{{% for i in range(99) %}}{{% set n.x = {step} %}}{{% endfor %}}"
    for name, (start, step) in {
        "text doubled": ("'ab'", "n.x + n.x"),
        "text doubled by ~": ("'ab'", "n.x ~ n.x"),
        "text doubled by replace": ("'ab'", "n.x.replace('b', n.x)"),
        "text doubled by the filter": ("'ab'", "n.x|replace('b', n.x)"),
        "text doubled by %": ("'ab'", "'%s%s' % (n.x, n.x)"),
        "text doubled by format": ("'ab'", "'{0}{0}'.format(n.x)"),
        "text doubled by join": ("'ab'", "[n.x, n.x]|join"),
        "text doubled by tojson": ("'\"'", "n.x|tojson"),
        "list doubled": ("[1]", "n.x + n.x"),
        "product": ("3", "n.x * n.x"),
        "product of negatives": ("-3", "n.x * n.x * -1"),
    }.items()
}

# one list many times inside itself: 2 ** 25 values in 25 steps
NEST = (
    "{% set n = namespace(x=[1], y=[1], t=(1,)) %}{% for i in range(25) %}"
    "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% set n.t = (n.t, n.t) %}{% endfor %}"
)
NESTED = {
    name: NEST + use
    for name, use in {
        "printed": "{{ n.x }}",
        "concatenated": "{{ 'a' ~ n.x }}",
        "as json": "{{ n.x|tojson }}",
        "compared": "{{ n.x == n.y }}",
        "ordered": "{{ n.x < n.y }}",
        "searched": "{{ n.x in [n.y] }}",
        "counted": "{{ [n.x].count(n.y) }}",
        "sorted": "{{ [n.x, n.y]|sort }}",
        "hashed": "{{ {n.t: 1} }}",
        "looked up": "{{ {}[n.t] }}",
        "got": "{{ {}.get(n.t) }}",
        "unique": "{{ [n.t]|unique|list }}",
        "maximum": "{{ [n.x, n.y]|max }}",
        "formatted": "{{ '%s' % n.x }}",
        ".formatted": "{{ '{}'.format(n.x) }}",
        "tested": "{{ n.x is eq n.y }}",
        "grouped": "{{ [n.x, n.y]|groupby(1) }}",
        "a namespace": "{{ n }}",
        "joined": "{{ [n.x]|join }}",
        "changed": "{% for i in [n.x, n.y] %}{{ loop.changed(i) }}{% endfor %}",
        "in a dict": "{{ dict([(n.t, 1)]) }}",
        "removed": "{% do [n.x].remove(n.y) %}",
        "replaced": "{{ n.x|replace('1', '2') }}",
    }.items()
}


HOSTILE = {**ENDLESS, **GROWING, **{f"nested, {name}": source for name, source in NESTED.items()}}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_stopped(source: str) -> None:
    with pytest.raises(TemplateLimitError):
        Template(source).render({}, limits=SMALL)


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_it_ends_with_the_limits_of_a_server_too(source: str) -> None:
    """Some of them are within those, so printing is as good as stopping; hanging or a full memory isn't."""
    try:
        assert len(Template(source).render({})) < Limits().output
    except TemplateError as error:
        assert error.line


def test_time_is_limited() -> None:
    with pytest.raises(TemplateLimitError, match="longer than 0 s"):
        Template("{% for i in range(100) %}x{% endfor %}").render({}, limits=Limits(seconds=0))


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "[" * 5000 + "]" * 5000 + " }}",
        "{{ " + "not " * 5000 + "1 }}",
        "{{ " + "-" * 5000 + "1 }}",
        "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
        "{{ " + "a if " * 3000 + "b }}",
        "{{ x" + "[x" * 3000 + "]" * 3000 + " }}",
    ],
    ids=["parentheses", "lists", "not", "signs", "if", "conditional", "subscripts"],
)
def test_deep_nesting_in_the_source_is_an_error_of_its_own(source: str) -> None:
    with pytest.raises(TemplateError):
        Template(source).render({"x": {}, "a": 1, "b": 1})


@pytest.mark.parametrize(
    "source, printed",
    [
        ("{{ " + " + ".join(["1"] * 5000) + " }}", "5000"),
        ("{{ " + " ~ ".join(["1"] * 5000) + " }}", "1" * 5000),
        ("{{ " + " and ".join(["1"] * 5000) + " }}", "1"),
        ("{{ " + " < ".join(map(str, range(5000))) + " }}", "True"),
        ("{% if 0 %}" + "{% elif 0 %}" * 5000 + "{% else %}x{% endif %}", "x"),
        ("{{ 1 }}" * 5000, "1" * 5000),
    ],
    ids=["sum", "concatenation", "and", "comparison", "elif", "prints"],
)
def test_long_is_not_deep(source: str, printed: str) -> None:
    assert Template(source).render({}) == printed


def test_a_conversation_may_not_be_nested_without_end() -> None:
    deep: object = "x"
    for _ in range(200):
        deep = [deep]
    with pytest.raises(TemplateLimitError, match="nested too deeply"):
        Template("x").render({"messages": deep})


def test_values_may_not_be_nested_without_end() -> None:
    source = "{% set n = namespace(x=1) %}{% for i in range(200) %}{% set n.x = [n.x] %}{% endfor %}"
    for use in ("{{ n.x }}", "{{ n.x|tojson }}", "{{ n.x == n.x }}"):
        with pytest.raises(TemplateLimitError, match="nested more than"):
            Template(source + use).render({})


def test_a_list_inside_itself_is_no_trap() -> None:
    for use in ("{{ l }}", "{{ l|tojson }}", "{{ l == [l] }}", "{{ l in [[l]] }}", "{{ l|string }}"):
        with pytest.raises(TemplateLimitError):
            Template("{% set l = [] %}{% do l.append(l) %}" + use).render({}, limits=SMALL)


def test_ordinary_work_stays_far_below_the_limits() -> None:
    messages = [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "answer " * 400}] * 500
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.strip() | trim }}{% if not loop.last "
        "%}\n{% endif %}"
        "{% endfor %}{{ messages | tojson | length }}"
    )
    printed = Template(source).render({"messages": messages}, limits=Limits(steps=100_000))
    assert len(printed) > 1_000_000


def test_steps_and_text_are_counted() -> None:
    run = Run(Limits(steps=100, text=10_000), {}, {}, mutable=False)
    run.count_text(5120)
    assert run.steps == 80
    for _ in range(70):
        run.tick()
    with pytest.raises(TemplateLimitError):
        for _ in range(40):
            run.tick()


def test_syntax_errors_name_the_nesting() -> None:
    with pytest.raises(TemplateSyntaxError, match="nested too deeply"):
        Template("{{ " + "(" * 5000)
