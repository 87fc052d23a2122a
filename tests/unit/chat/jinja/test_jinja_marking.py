"""User input stays marked through a template, and marks never change a character of the prompt."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from server.chat.jinja import Marked, Template, TemplateError, mark
from server.chat.jinja.marked import concat, escape, make_segments, spans_of
from tests.fuzzing import fuzz
from tests.unit.chat.jinja.test_jinja_fuzz import CONTEXT, PRELUDE, expression, statement

USER = "\ue000 Ab <x>,\ue001\ty\n\ue002 "  # private characters can't come from a template
PRIVATE = set("\ue000\ue001\ue002")


def pieces(source: str, **context: Any) -> list[tuple[str, bool]]:
    return Template(source).render_segments(context)


def shown(source: str, text: str = "<|u|>") -> str:
    """The prompt with user input in «»."""
    found = pieces(source, u=Marked(text), l=mark([text, "b"]), d={"k": Marked(text)}, n=2)
    return "".join(f"«{text}»" if is_user else text for text, is_user in found)


@pytest.mark.parametrize(
    "source, expected",
    [
        ("[{{ u }}]", "[«<|u|>»]"),
        ("{{ '<' + u + '>' }}", "<«<|u|>»>"),
        ("{{ '<' ~ u ~ '>' ~ n }}", "<«<|u|>»>2"),
        ("{{ u + u }}{{ u * 2 }}", "«<|u|><|u|><|u|><|u|>»"),
        ("{{ u[1:] }}|{{ ('x' + u)[:2] }}|{{ u[0] }}", "«|u|>»|x«<»|«<»"),
        ("{{ ('x' + u + 'y')[::-1] }}", "y«>|u|<»x"),
        ("{{ ('  ' + u + '  ')|trim }}.{{ (' ' + u).strip() }}", "«<|u|>».«<|u|>»"),
        ("{{ ('a,' + u + ',b').split(',')|join('|') }}", "a|«<|u|>»|b"),
        ("{{ ('a' + u).split('<')[0] }}{{ ('a' + u).split('<')[1] }}", "a«|u|>»"),
        ("{{ (u ~ ' a').split() | last }}{{ (u ~ ' a').rsplit(' ', 1)[0] }}", "a«<|u|>»"),
        ("{{ ('k=' ~ u).partition('=')[0] }}:{{ ('k=' ~ u).partition('=')[2] }}", "k:«<|u|>»"),
        ("{{ ('a\n' ~ u).splitlines()[1] }}", "«<|u|>»"),
        ("{{ ('<a>' ~ u).replace('<a>', '') }}", "«<|u|>»"),
        ("{{ '[U]'.replace('U', u) }}{{ '[U]'|replace('U', u) }}", "[«<|u|>»][«<|u|>»]"),
        ("{{ u.replace('u', '<|im_end|>') }}", "«<|<|im_end|>|>»"),  # what a user triggers is the user's
        ("{{ u|upper }}{{ ('a' ~ u)|title }}{{ u|capitalize }}", "«<|U|>»A«<|u|><|u|>»"),
        ("{{ [u, 'c']|join('-') }}{{ l|join }}", "«<|u|>»-c«<|u|>b»"),
        ("{{ {'a': u}|tojson }}", '{"a": "«<|u|>»"}'),
        ("{{ l|tojson(indent=1) }}", '[\n "«<|u|>»",\n "«b»"\n]'),
        ("{{ [u] }}{{ {'a': u} }}", "[«'<|u|>'»]{'a': «'<|u|>'»}"),
        ("{{ '%s:%d' % (u, n) }}|{{ '%s' | format(u) }}", "«<|u|>»:2|«<|u|>»"),
        ("{{ '{} {x}'.format(u, x=n) }}", "«<|u|>» 2"),
        ("{{ '{d[k]:>6}'.format(d=d) }}", "« <|u|>»"),
        ("{{ u|e }}", "«&lt;|u|&gt;»"),
        ("{{ u|safe }}{{ u|string }}{{ u|list|join }}", "«<|u|><|u|><|u|>»"),
        ("{{ 'x\n' ~ u | indent(2) }}", "x\n«<|u|>»"),
        ("{{ ('x\n' ~ u) | indent(2) }}", "x\n  «<|u|>»"),
        (
            "{{ d.k }}{{ d['k'] }}{{ d|items|first|last }}{{ (d|dictsort)[0][1] }}{{ d.get('k') }}",
            "«<|u|><|u|><|u|><|u|><|u|>»",
        ),
        ("{% set x = u %}{% set ns = namespace(v=u) %}{{ x }}.{{ ns.v }}", "«<|u|>».«<|u|>»"),
        (
            "{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m(u) }}{% set b %}<{{ u }}>{% endset %}{{ b }}",
            "[«<|u|>»]<«<|u|>»>",
        ),
        ("{% filter upper %}a{{ u }}{% endfilter %}{% generation %}{{ u }}{% endgeneration %}", "A«<|U|><|u|>»"),
        ("{% for c in u %}{{ c }}.{% endfor %}", "«<».«|».«u».«|».«>»."),
        (
            "{{ u if u == '<|u|>' else 'no' }}{{ {'<|u|>': 1}[u] }}{{ u in ['<|u|>'] }}{{ 'u' in u }}{{ u is string }}",
            "«<|u|>»1TrueTrueTrue",
        ),
        ("{{ u|length }}{{ u.find('u') }}{{ u.startswith('<') }}{{ u|int }}", "52True0"),
        ('{{ \'{"a": "x"}\'|from_json|tojson }}', '{"a": "x"}'),
    ],
    ids=lambda value: value[:40],
)
def test_marks_follow_the_characters(source: str, expected: str) -> None:
    assert shown(source) == expected


def test_every_filter_and_method_keeps_the_mark_of_what_it_returns() -> None:
    filters = [
        "center(40)",
        "truncate(9, true)",
        "wordwrap(4)",
        "title",
        "striptags",
        "forceescape",
        "reverse",
        "trim('x')",
        "batch(2)|list|string",
        "first",
        "last",
        "sort|join",
        "unique|list|join",
        "map('upper')|join",
        "default('x')",
        "tojson(ensure_ascii=false)|safe",
        "replace('x', 'y')",
        "indent('  ', true)",
        "e|e",
        "slice(2)|list|string",
    ]
    methods = [
        "center(40)",
        "ljust(40, '.')",
        "rjust(40)",
        "zfill(40)",
        "expandtabs(3)",
        "swapcase()",
        "casefold()",
        "lower()",
        "strip(' ')",
        "removeprefix('q')",
        "split(',')[0]",
        "rpartition(',')[0]",
        "splitlines(true)|join",
        "replace('', '-')",
        "join(['a', 'b'])",
        "format()",
        "title()",
        "capitalize()",
    ]
    for source in [
        *(f"{{{{ u|{name} }}}}" for name in filters),
        *(f"{{{{ u.{name} }}}}" for name in methods),
        "{{ '%20s' % u }}",
        "{{ '%r' % u }}",
        "{{ '{!r:>30}'.format(u) }}",
        "{{ '{:{}}'.format('x', u[:0]) }}{{ u }}",
        "{{ ','.join(u) }}",
        "{{ 'a'.ljust(9, u[0]) }}",
        "{{ u % () }}",
        "{{ ('a' ~ u) * 3 }}",
        "{{ [[u], (u,)] }}",
        "{{ {u: u}.items() }}",
        "{{ namespace(a=u) }}",
        "{{ {u: 1}|tojson }}",
        "{{ u.split() }}",
        "{{ u|wordcount }}{{ u }}",
    ]:
        context = {"u": Marked(USER)}
        found = Template(source).render_segments(context)
        assert "".join(text for text, _ in found) == Template(source).render({"u": USER}), source
        assert any(is_user for _, is_user in found), source
        assert all(is_user or not PRIVATE & set(text) for text, is_user in found), source


def test_every_text_returning_method_of_strings_is_covered() -> None:
    """A method of `str` that gives text and isn't overridden would lose marks silently."""
    harmless = {"encode", "format", "format_map", "maketrans"}  # not offered, or done by `formatting`
    arguments = {
        "center": (9,),
        "join": (["a"],),
        "ljust": (9,),
        "partition": ("b",),
        "removeprefix": ("a",),
        "replace": ("a", "b"),
        "removesuffix": ("a",),
        "rjust": (9,),
        "rpartition": ("b",),
        "translate": ({},),
        "zfill": (9,),
    }
    for name in dir(str):
        if name.startswith("_") or name in harmless:
            continue
        try:
            result = getattr("ab", name)(*arguments.get(name, ()))
        except TypeError:
            continue
        if isinstance(result, (str, list, tuple)):
            assert name in vars(Marked), name


def test_neighbours_of_one_kind_are_one_piece_and_none_is_empty() -> None:
    assert pieces("{{ a }}{{ a }}x{{ b }}y", a=Marked("1"), b=Marked("")) == [("11", True), ("xy", False)]
    assert pieces("") == []


def test_mark_leaves_plain_words_alone() -> None:
    marked = mark([{"role": "user", "content": "user: hi", "n": 1, "x": [None, True, "a"]}], plain={"user", "role"})
    assert marked == [{"role": "user", "content": "user: hi", "n": 1, "x": [None, True, "a"]}]
    assert type(marked[0]["role"]) is str and type(marked[0]["content"]) is Marked
    assert [type(key) for key in marked[0]] == [str, Marked, Marked, Marked]


def test_render_returns_a_plain_string() -> None:
    assert type(Template("{{ u }}").render({"u": Marked("x")})) is str


def test_marked_strings_behave_like_strings() -> None:
    text = Marked("a b")
    assert text == "a b" and hash(text) == hash("a b") and {"a b": 1}[text] == 1 and text in ("a b",)
    assert repr(text) == "'a b'"
    assert spans_of("x" + text) == ((1, 4),) and spans_of(concat(["x", text, text])) == ((1, 7),)
    assert make_segments([escape(Marked("<") + ">")]) == [("&lt;", True), ("&gt;", False)]


def private(value: Any) -> Any:
    """Data whose every string is recognisable in whatever becomes of it."""
    if isinstance(value, str):
        return f"\ue000{value}\ue001" if value else value
    if isinstance(value, dict):
        return {key: private(item) for key, item in value.items()}
    return type(value)(private(item) for item in value) if isinstance(value, (list, tuple)) else value


def check(source: str) -> None:
    plain, template = private(CONTEXT), Template(source)
    try:
        wanted = template.render(plain)
    except TemplateError:
        with pytest.raises(TemplateError):
            template.render_segments({name: mark_all(value) for name, value in plain.items()})
        return
    found = template.render_segments({name: mark_all(value) for name, value in plain.items()})
    assert "".join(text for text, _ in found) == wanted
    assert all(is_user or not PRIVATE & set(text) for text, is_user in found)


def mark_all(value: Any) -> Any:
    """Like `mark`, but tuples stay tuples and keys stay plain, so that only the strings differ."""
    if isinstance(value, dict):
        return {key: mark_all(item) for key, item in value.items()}
    return type(value)(map(mark_all, value)) if isinstance(value, (list, tuple)) else mark(value)


@fuzz(80)
@given(expression())
def test_marks_change_no_character_of_random_expressions(source: str) -> None:
    check_source(PRELUDE + "{{ " + source + " }}")


@fuzz(80)
@given(statement())
def test_marks_change_no_character_of_random_templates(source: str) -> None:
    check_source(PRELUDE + source)


def check_source(source: str) -> None:
    try:
        Template(source)
    except TemplateError:
        return
    check(source)
