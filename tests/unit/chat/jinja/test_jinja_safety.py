"""Templates can't reach any Python object, whatever they try."""

from __future__ import annotations

import datetime
import enum
import inspect
import types

import pytest

from server.chat.jinja import (
    SecurityError,
    Template,
    TemplateError,
    TemplateRuntimeError,
    UndefinedError,
    attributes,
    filters,
)
from server.chat.jinja import globals as template_globals
from server.chat.jinja import tests as template_tests

VALUES = [
    "''",
    "'a'.upper",
    "5",
    "1.5",
    "true",
    "none",
    "[]",
    "()",
    "{}",
    "range(3)",
    "missing",
    "namespace()",
    "namespace",
    "dict",
    "range",
    "cycler(1)",
    "joiner()",
    "raise_exception",
    "strftime_now",
    "m",
    "loop",
    "loop.cycle",
    "caller",
    "{}.items()",
    "[]|map('x')",
    "[1]|reverse",
    "{}.keys",
    "u",
    "helper",
    "[]|groupby(0)",
    "[{'a': 1}]|groupby('a')|first",
    "('a'|safe)",
    "self",
    "varargs",
    "kwargs",
]
DUNDERS = [
    "__class__",
    "__init__",
    "__globals__",
    "__subclasses__",
    "__mro__",
    "__bases__",
    "__base__",
    "__dict__",
    "__builtins__",
    "__import__",
    "__getattribute__",
    "__reduce__",
    "__code__",
    "__closure__",
    "__func__",
    "__self__",
    "__module__",
    "__doc__",
    "__call__",
    "__add__",
    "__format__",
    "__len__",
    "__iter__",
    "gi_frame",
    "gi_code",
    "f_globals",
    "func_globals",
    "im_func",
    "mro",
    "call",
    "owner",
    "values",
    "_hint",
    "_owner",
    "_error",
    "body",
    "render",
    "iterator",
    "spans",
    "safe",
    "run",
    "frame",
    "co_code",
    "tb_frame",
]


def helper(value: object) -> object:
    return value


CONTEXT = {"u": "text", "helper": helper}
WRAPPER = (
    "{{% macro m() %}}{{{{ caller(1) if caller is defined }}}}{{% endmacro %}}"
    "{{% for i in [1] %}}{{% call(v) m() %}}{{{{ loop.index }}}}{}{{% endcall %}}{{% endfor %}}"
)


def outcome(source: str) -> str:
    """What is printed, or the error's type."""
    try:
        printed = Template(WRAPPER.format(source)).render(CONTEXT)
    except TemplateError as error:
        return type(error).__name__
    assert printed[0] == "1"
    return printed[1:]


@pytest.mark.parametrize("name", DUNDERS)
def test_no_value_has_an_attribute_of_python(name: str) -> None:
    for value in VALUES:
        for access in (
            f"({value}).{name}",
            f"({value})['{name}']",
            f"({value})|attr('{name}')",
            f"[{value}]|map(attribute='{name}')|first",
        ):
            found = outcome(f"{{{{ ({access}) is defined }}}}")
            # `values` is also the method of dictionaries
            assert found in ("False", "UndefinedError") or name == "values", (access, found)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ ().__class__.__bases__[0] }}",
        "{{ ''|attr('__class__') }}.",
        "{{ '{0.__class__}'.format('') }}",
        "{{ '{0.__class__.__init__}'.format(range) }}",
        "{{ '{0[__class__]}'.format('') }}",
        "{{ '{a.__class__}'.format(a=1) }}",
        "{{ '{.__class__}'.format(1) }}",
        "{{ '{0.__class__}'.format_map({'0': 1}) }}",
        "{{ '{a.__class__}'.format_map({'a': 1}) }}",
        "{{ '{0!r:{1.__class__}}'.format(1, 2) }}",
        "{{ ['{0.__class__}']|map('format', 1)|list }}",
        "{{ '%(__class__)s' % {} }}",
        "{{ '{0.__class__}'['format'](1) }}",
        "{{ ('{0.__class__}'|attr('format'))(1) }}",
        "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
        "{{ m.__globals__ }}{{ m.body }}",
        "{{ loop.iterator }}{{ loop.items }}{{ loop.render }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ joiner.__init__ }}",
        "{{ dict.__base__ }}{{ dict.mro() }}",
        "{{ range.__class__ }}",
        "{{ helper.__globals__ }}",
        "{{ helper.__code__ }}",
        "{{ [].append.__self__ }}",
        "{{ {}.get.__func__ }}",
        "{{ ([]|map('upper')).gi_frame }}",
        "{{ raise_exception.call }}",
        "{{ strftime_now.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ caller.__init__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ config }}{{ request }}{{ environment }}{{ context }}{{ __builtins__ }}{{ __import__('os') }}",
        "{{ open('/etc/passwd') }}",
        "{{ import('os') }}",
        "{{ eval('1') }}",
        "{{ getattr('', '__class__') }}",
        "{{ type('') }}",
        "{{ vars() }}",
        "{{ u.translate({117: 'x'}) }}",
        "{{ u.encode() }}",
        "{{ u.maketrans('a', 'b') }}",
        "{{ ''.join.__doc__ }}",
        "{% set x.__class__ = 1 %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__ }}",
        "{{ namespace(__class__=1).__class__ }}",
        "{{ dict(__class__=1).__class__ }}",
        "{{ {'__class__': 1}.__class__ }}",
        "{{ missing.__class__ }}",
        "{{ (1).__class__ }}",
        "{{ 1.0.__class__ }}",
        "{{ none.__class__ }}",
        "{{ true.__class__ }}",
        "{{ u is callable }}{{ u() }}",
    ],
)
def test_known_ways_out_lead_nowhere(source: str) -> None:
    found = outcome(source)
    for trace in ("<class", "built-in", "0x", "object at", "function", "root:", "module", "bytes", "b'"):
        assert trace not in found, found


def test_an_unsafe_attribute_is_undefined_and_says_why_when_used() -> None:
    assert Template("{{ ''.__class__ }}|{{ ''.__class__ is defined }}").render({}) == "|False"
    with pytest.raises(SecurityError, match="__class__"):
        Template("{{ ''.__class__.x }}").render({})
    with pytest.raises(SecurityError, match="append"):
        Template("{{ [].append(1) }}", strict=True).render({})


def test_only_known_types_can_come_in() -> None:
    class Thing:
        secret = 1

    for value in (
        Thing(),
        Thing,
        object(),
        types,
        b"bytes",
        {1, 2},
        1j,
        {"x": [Thing()]},
        datetime.date(2026, 1, 1),
        {(1, 2): 3},
        range(3),
    ):
        if callable(value) and value is not types:
            continue  # what can be called comes in as a function, and as nothing else
        with pytest.raises(TemplateRuntimeError, match="can't use"):
            Template("{{ x }}").render({"x": value})


def test_derived_types_come_in_as_what_they_are_derived_from() -> None:
    class Colour(str, enum.Enum):
        RED = "red"

    class Money(float):
        currency = "EUR"

    shown = Template(
        "{{ a }} {{ a == 'red' }} {{ a.name is defined }} {{ b }} {{ b.currency is defined }} {{ c }}"
    ).render({"a": Colour.RED, "b": Money(1.5), "c": types.MappingProxyType({"k": 1})})
    assert shown == "red True False 1.5 False {'k': 1}"


def test_functions_of_the_caller_get_and_give_template_values_only() -> None:
    context = {"double": lambda text: text * 2, "things": lambda: [object()], "broken": lambda: {}["gone"]}
    source = "{{ double('ab') }}{{ double is callable }}{{ double.__code__ is defined }}"
    assert Template(source).render(context) == "ababTrueFalse"
    for source in ("{{ things() }}", "{{ broken() }}", "{{ double() }}"):
        with pytest.raises(TemplateRuntimeError):
            Template(source).render(context)


def test_a_template_cannot_change_what_the_caller_passed() -> None:
    context = {"l": [1], "d": {"a": [1]}}
    source = (
        "{% do l.append(2) %}{% do d.update(b=1) %}{% do d.a.append(3) %}{% do d.pop('a') %}{% set l "
        "= l + [9] %}"
        "{% do l.clear() %}{{ l }}{{ d }}"
    )
    template = Template(source)
    assert template.render(context) == template.render(context) == "[]{'b': 1}"
    assert context == {"l": [1], "d": {"a": [1]}}


def test_rendering_twice_gives_the_same() -> None:
    template = Template(
        "{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}"
        "{% endfor %}{{ ns.n }}{{ x }}{% set x = [1] %}{% do x.append(2) %}{{ x }}"
    )
    assert template.render({}) == template.render({}) == "3[1, 2]"


def test_undefined_values_say_what_is_missing() -> None:
    for source, message in (
        ("{{ a.b }}", "'a' is undefined"),
        ("{{ d.x.y }}", "'dict object' has no attribute 'x'"),
        ("{{ d.l[5].z }}", "list object has no element 5"),
        ("{{ u.nope() }}", "'str object' has no attribute 'nope'"),
        ("{{ a + 1 }}", "'a' is undefined"),
        ("{% for i in [1] %}{{ loop.nextitem.x }}{% endfor %}", "no next item"),
    ):
        with pytest.raises(UndefinedError, match=message):
            Template(source).render({"d": {"l": []}, "u": ""})


def test_every_function_in_the_tables_is_one_of_ours() -> None:
    """A Python function put into a table by mistake could be called with any argument."""
    tables = [
        filters.FILTERS,
        filters.EXTRA_FILTERS,
        template_tests.TESTS,
        *attributes.METHODS.values(),
        *attributes.CHANGES.values(),
        {name: function.call for name, function in template_globals.GLOBALS.items()},
    ]
    for table in tables:
        for name, function in table.items():
            first = next(iter(inspect.signature(function).parameters.values()))
            assert (first.name, first.kind) == ("run", first.POSITIONAL_ONLY), name
            assert function.__module__.startswith("server.chat.jinja"), name
