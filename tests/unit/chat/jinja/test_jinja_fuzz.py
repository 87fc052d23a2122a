"""Random templates: valid ones print what jinja2 prints, and invalid ones raise `TemplateError` only."""

from __future__ import annotations

import copy
import re
from typing import Any

from hypothesis import assume, example, given
from hypothesis import strategies as st

from server.chat.jinja import Limits, Marked, Template, TemplateError, mark
from tests.fuzzing import fuzz
from tests.unit.chat.jinja.oracle import FAILED, expected, ours

CONTEXT: dict[str, Any] = {
    "s": "Hi <b>W, x y",
    "w": " a b ",
    "e": "",
    "n": 3,
    "z": 0,
    "m": -2,
    "f": 2.5,
    "t": True,
    "no": None,
    "i": 1,
    "l": [3, 1, 2, "a"],
    "ints": [5, 1, 4],
    "strs": ["b", "A", "c", "b"],
    "p": (1, "x"),
    "el": [],
    "d": {"a": 1, "b": "text", "c": [1, {"k": "v"}], "items": 5},
    "ed": {},
    "nest": {"x": {"y": {"z": [1, 2]}}},
    "rows": [{"k": "b", "v": 1}, {"k": "A", "v": None}, {"k": "c", "v": 1, "w": "q"}],
}
PRELUDE = (
    "{% set ns = namespace(q=1) %}{% macro mac(a, b=n) %}[{{ a }}{{ b }}{{ caller(1) if caller is "
    "defined }}]"
    "{% endmacro %}"
)

# expressions by the kind of value they are likely to have; any of them may still fail
ATOMS = {
    "text": [
        "s",
        "w",
        "e",
        "'a'",
        "''",
        "', '",
        "'A b'",
        "'<'",
        "d.b",
        "rows[0].k",
        "strs[1]",
        "(s|safe)",
        "('<x>'|e)",
    ],
    "number": ["n", "z", "m", "f", "i", "0", "1", "2", "-1", "1.5", "d.a", "ns.q", "true", "t"],
    "list": ["l", "ints", "strs", "el", "rows", "[]", "[1, 2]", "d.c", "(1, 'x')", "p"],
    "other": [
        "d",
        "ed",
        "nest",
        "missing",
        "no",
        "none",
        "loop",
        "x",
        "ns",
        "mac",
        "d.items()",
        "d.keys()",
        "d.nope",
        "loop.index",
        "loop.first",
        "loop.last",
        "loop.previtem",
        "loop.nextitem",
        "loop.length",
        "{'a': 1}",
    ],
}
# {0}, {1}... are expressions of the kinds listed
FORMS = {
    "text": [
        ("{0} + {1}", "text text"),
        ("{0} ~ {1}", "any any"),
        ("{0} * 2", "text"),
        ("{0}[{1}]", "text number"),
        ("(e or {0})[{1}:{2}]", "text number number"),
        ("(e or {0})[::-1]", "text"),
        ("{0}|tojson", "any"),
        ("{0}|string", "any"),
        ("{0}|tojson(indent=1)", "list"),
        ("{0}|join({1})", "list text"),
        ("{0}|join", "list"),
        ("'%s|%r' % ({0}, {1})", "any any"),
        ("'{{}}:{{!r}}:{{:>4}}'.format({0}, {1}, {2})", "any any number"),
        ("{0}|default({1})", "any text"),
        ("mac({0}, b={1})", "any any"),
        ("({0}).replace({1}, {2})", "text text text"),
        ("{0}|replace({1}, {2})", "any text text"),
        ("({0}).join({1})", "text list"),
        *(
            (f"{{0}}|{name}", "text")
            for name in (
                "trim",
                "upper",
                "lower",
                "title",
                "capitalize",
                "e",
                "safe",
                "indent",
                "indent(2, true)",
                "striptags",
                "urlencode",
                "truncate(5)",
                "center(9)",
                "wordwrap(3)",
                "forceescape",
                "reverse",
                "first",
                "last",
                "trim('a ')",
                "d('q', true)",
            )
        ),
        *(
            (f"({{0}}).{name}", "text")
            for name in (
                "strip()",
                "lstrip('a ')",
                "rstrip()",
                "upper()",
                "title()",
                "capitalize()",
                "swapcase()",
                "removeprefix('H')",
                "removesuffix('y')",
                "zfill(9)",
                "ljust(9, '.')",
                "center(9)",
                "expandtabs()",
                "format(1, n, a=2)",
                "casefold()",
            )
        ),
    ],
    "number": [
        ("{0} {op} {1}", "number number"),
        ("-({0})", "number"),
        ("{0}|length", "list"),
        ("{0}|length", "text"),
        ("{0}|int", "any"),
        ("{0}|float", "text"),
        ("{0}|abs", "number"),
        ("{0}|round", "number"),
        ("{0}|sum", "list"),
        ("({0}).find({1})", "text text"),
        ("({0}).count('b')", "text"),
        ("{0}|wordcount", "text"),
        ("{0} is {test}", "any"),
        ("{0} is not {test}", "any"),
        ("not {0}", "any"),
        ("{0} {compare} {1}", "number number"),
        ("{0} {compare} {1}", "text text"),
        ("{0} == {1}", "any any"),
        ("{0} in {1}", "any list"),
        ("{0} not in {1}", "text text"),
        ("({0}).startswith({1})", "text text"),
        ("{0} < {1} <= {2}", "number number number"),
        ("{0}|min", "list"),
        ("({0}).index(1)", "list"),
        ("{0} ** 2", "number"),
        ("({0}).isdigit()", "text"),
    ],
    "list": [
        ("[{0}, {1}]", "any any"),
        ("({0}, {1})", "any any"),
        ("{0} + {1}", "list list"),
        ("(e or {0})[{1}:]", "list number"),
        ("(e or {0})[::-1]", "list"),
        ("(e or {0})[:{1}:2]", "list number"),
        ("({0}).split()", "text"),
        ("({0}).split({1})", "text text"),
        ("({0}).rsplit(' ', 1)", "text"),
        ("({0}).splitlines()", "text"),
        ("({0}).partition(' ')", "text"),
        ("{0}|list", "any"),
        ("range({0})|list", "number"),
        *(
            (f"{{0}}|{name}", "list")
            for name in (
                "sort",
                "sort(reverse=true)",
                "sort(attribute='k')",
                "unique|list",
                "reverse|list",
                "map('upper')|list",
                "map(attribute='k')|list",
                "selectattr('v')|list",
                "rejectattr('v')|list",
                "selectattr('k', 'equalto', 'b')|list",
                "select('string')|list",
                "reject('none')|list",
                "groupby('v')|map(attribute=1)|list",
                "batch(2)|list",
                "slice(2, 0)|list",
                "map('string')|list",
                "unique(attribute='v')|list",
                "map(attribute='k', default='-')|list",
                "select|list",
                "map('default', 1)|list",
            )
        ),
    ],
    "other": [
        ("{0} if {1} else {2}", "any any any"),
        ("({0} if {1})", "any any"),
        ("{0} or {1}", "any any"),
        ("{0} and {1}", "any any"),
        ("({0})", "any"),
        ("{{'a': {0}, {1}: {2}}}", "any text any"),
        ("({0}).{name}", "other"),
        ("{0}[{1}]", "list number"),
        ("{0}['a']", "other"),
        ("{0}|items|list", "other"),
        ("{0}|dictsort", "other"),
        ("{0}|first", "list"),
        ("{0}|last", "list"),
        ("{0}|default({1})", "other any"),
        ("({0}).get('a', {1})", "other any"),
        ("{0} {op} {1}", "any any"),
        ("{0}|{filter}", "any"),
        ("({0}).{method}", "any"),
    ],
}
NAMES = ["a", "b", "c", "k", "x", "y", "z", "items", "index", "index0", "first", "last", "length", "nope", "upper", "q"]
TESTS = [
    "defined",
    "undefined",
    "none",
    "string",
    "mapping",
    "sequence",
    "iterable",
    "number",
    "integer",
    "float",
    "boolean",
    "true",
    "false",
    "odd",
    "even",
    "lower",
    "upper",
    "callable",
    "escaped",
    "eq 1",
    "in l",
    "sameas none",
    "divisibleby 2",
    "gt 1",
    "equalto('a')",
]
WORDS = {
    "op": ["+", "-", "*", "/", "//", "%"],
    "compare": ["==", "!=", "<", ">="],
    "test": TESTS,
    "name": NAMES,
    "filter": ["length", "sort", "abs", "sum", "max", "items|list", "upper", "round"],
    "method": ["keys()|list", "values()|list", "copy()", "append(1)", "nope()", "pop()", "endswith(s)"],
}
DEPTH = 3


@st.composite
def expression(draw: Any, kind: str = "any", depth: int = DEPTH) -> str:
    """A random expression, with up to `depth` forms inside one another."""
    if kind == "any":
        kind = draw(st.sampled_from(list(ATOMS)))
    if depth == 0 or not draw(st.integers(0, 2)):
        return draw(st.sampled_from(ATOMS[kind]))
    form, needs = draw(st.sampled_from(FORMS[kind]))
    words = {word: draw(st.sampled_from(choices)) for word, choices in WORDS.items() if f"{{{word}}}" in form}
    return form.format(*(draw(expression(need, depth - 1)) for need in needs.split()), **words)


TEXTS = ["", "x", " ", "\n", "  ", " y\n", "\n  ", "<|s|>"]
SIGNS = ["", "", "", "-", "+"]
TARGETS = ["x", "i", "n", "s", "ns.q"]
# statements: * is a tag's white space sign, {any} and {list} expressions, {body} statements, {target} a
# target
STATEMENTS = [
    "{body}{body}",
    "{body}{body}{body}",
    "{%* if {any} *%}{body}{%* endif *%}",
    "{% if {any} %}{body}{%* elif {any} %}{body}{% else *%}{body}{% endif %}",
    "{%* for {target} in {list} *%}{body}{%* endfor *%}",
    "{% for i, x in {list} %}{body}{% endfor %}",
    "{% for i in {list} if {any} %}{body}{{ loop.index }}{% endfor %}",
    "{% for i in {list} *%}{body}{%* else %}{body}{% endfor %}",
    "{% for i in nest recursive %}{body}{{ loop({list}) if loop.depth < 2 }}{% endfor %}",
    "{% set {target} *%}{body}{%* endset %}",
    "{% set x | upper %}{body}{% endset %}",
    "{% macro mac(a, b=n) *%}{body}{%* endmacro *%}",
    "{% call mac({any}) %}{body}{% endcall %}",
    "{% call(v) mac(1) %}{body}{{ v }}{% endcall %}",
    "{% filter upper %}{body}{% endfilter %}",
    "{%* with x = {any} *%}{body}{%* endwith *%}",
    "{% generation *%}{body}{%* endgeneration %}",
]
SIMPLE_STATEMENTS = [
    "{text}",
    "{text}",
    "{{ {any} }}",
    "{{- {any} }}",
    "{{ {any} -}}",
    "{%* set {target} = {any} *%}",
    "{% set {target} = {any} %}",
    "{% set ns = namespace(q={any}) %}",
    "{% if loop is defined and loop.index > 1 %}{% break %}{% endif %}",
    "{# c *#}",
    "{% if i == 1 %}{% continue %}{% endif %}",
    "{{ a }}{{ b }}{{ caller() if caller is defined }}",
    "{{ x }}{{ i }}{{ n }}",
]
HOLES = re.compile(r"\*(?=[ %#])|(?<=[%#])\*|\{(any|list|body|target|text)\}")


@st.composite
def statement(draw: Any, depth: int = DEPTH + 1) -> str:
    """A random piece of a template."""
    larger = depth > 0 and draw(st.integers(0, 2))
    fillings = {
        "any": expression(depth=2),
        "list": expression("list", 2),
        "body": statement(depth - 1) if larger else None,
        "target": st.sampled_from(TARGETS),
        "text": st.sampled_from(TEXTS),
    }

    def fill(match: re.Match[str]) -> str:
        return draw(fillings[match[1]]) if match[1] else draw(st.sampled_from(SIGNS))

    return HOLES.sub(fill, draw(st.sampled_from(STATEMENTS if larger else SIMPLE_STATEMENTS)))


# what the two print differently on purpose: addresses of objects, and Python's names of things
INCOMPARABLE = (" at 0x", "<class ", "<function ", "<built-in ", "<bound ", "Cycler", "Joiner")


def compare(source: str, strict: bool) -> None:
    """Both sides print the same, or both fail."""
    wanted = expected(source, copy.deepcopy(CONTEXT), strict)
    assume(not any(mark in wanted for mark in INCOMPARABLE))
    assert ours(source, copy.deepcopy(CONTEXT), strict) == wanted


@fuzz(80)
@given(expression(), st.booleans())
def test_random_expressions_give_what_jinja2_gives(source: str, strict: bool) -> None:
    compare(PRELUDE + "{{ " + source + " }}", strict)


@fuzz(80)
@given(statement(), st.booleans())
def test_random_templates_print_what_jinja2_prints(source: str, strict: bool) -> None:
    compare(PRELUDE + source, strict)


tokens = st.sampled_from(
    [
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "-",
        "+",
        "{%-",
        "-%}",
        "if",
        "else",
        "elif",
        "endif",
        "for",
        "in",
        "endfor",
        "set",
        "endset",
        "macro",
        "endmacro",
        "call",
        "endcall",
        "filter",
        "endfilter",
        "raw",
        "endraw",
        "with",
        "endwith",
        "is",
        "not",
        "and",
        "or",
        "defined",
        "loop",
        "namespace",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        ".",
        ":",
        "|",
        "~",
        "*",
        "**",
        "/",
        "//",
        "%",
        "=",
        "==",
        "!=",
        "<",
        ">",
        "1",
        "0",
        "2.5",
        "9" * 30,
        "'a'",
        '"b"',
        "'",
        '"',
        "\\",
        "\n",
        "x",
        "s",
        "l",
        "d",
        "n",
        "range",
        "upper",
        "tojson",
        "join",
        "map",
        "__class__",
        "format",
        "'{0.__class__}'",
        "\x00",
        "é",
        "recursive",
        "break",
        "continue",
        "do",
        "generation",
        "endgeneration",
        "cycler",
        "caller",
        "1e9",
        "?",
        "\u2028",
    ]
)
SMALL = Limits(steps=3000, depth=20, output=20_000, text=20_000, items=3000, seconds=5.0)


def survive(source: str) -> None:
    """Anything may come out, but not an exception of another kind."""
    try:
        template = Template(source)
        context = {**CONTEXT, "s": Marked("<|x|>"), "rows": mark(CONTEXT["rows"])}
        whole = template.render(context, limits=SMALL)
        assert "".join(text for text, _ in template.render_segments(context, limits=SMALL)) == whole
    except TemplateError as error:
        assert str(error)


@fuzz(120)
@given(st.lists(tokens, max_size=25).map(" ".join))
@example("{{ l ** n ** 9 }}")
def test_token_soup_never_escapes_hangs_or_crashes(source: str) -> None:
    survive(source)


@fuzz(80)
@given(st.text(st.sampled_from("{}%#-+'\"\\ \n()[].,:|~*/=<>!x1eé_"), max_size=40))
def test_character_soup_never_escapes_hangs_or_crashes(source: str) -> None:
    survive(source)


@fuzz(80)
@given(statement(), st.data())
def test_damaged_templates_fail_where_jinja2_fails(source: str, data: Any) -> None:
    """A piece cut out of a good template: the parsers still agree about what is one."""
    start = data.draw(st.integers(0, len(source)))
    stop = data.draw(st.integers(start, min(len(source), start + 6)))
    damaged = source[:start] + source[stop:]
    survive(damaged)
    wanted = expected(damaged, copy.deepcopy(CONTEXT), True)
    assume(not any(mark in wanted for mark in INCOMPARABLE))
    assert (ours(damaged, copy.deepcopy(CONTEXT), True) == FAILED) == (wanted == FAILED)
