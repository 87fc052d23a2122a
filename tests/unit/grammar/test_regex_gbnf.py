"""Regular expressions and choices as grammars, compared with Python's `re` where the dialects agree."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.grammar import automaton
from server.grammar.automaton import TooLarge
from server.grammar.gbnf import check
from server.grammar.gbnf_build import Builder, print_dfa
from server.grammar.json_schema.strings import FORMATS, add_core, format_dfa, make_text_class, reserve_core
from server.grammar.regex_gbnf import (
    Unsupported,
    compile_pattern,
    make_choice_grammar,
    make_pattern_pieces,
    make_regex_grammar,
)
from tests.unit.grammar.gbnf_oracle import Generator, Matcher

WHOLE = [
    ("abc", ["abc"], ["ab", "abcd", ""]),
    ("", [""], ["a"]),
    ("^$", [""], ["a"]),
    ("a|", ["", "a"], ["aa"]),
    ("(yes|no)", ["yes", "no"], ["y", "yesno"]),
    ("[a-cx-z]+", ["abc", "xyz"], ["d", ""]),
    ("[^a-c]", ["d", "é", "😀", "\n"], ["a", ""]),
    (r"[\]\-a]+", ["]-a", "a"], ["b", "\\"]),
    ("[a-]", ["a", "-"], ["b"]),
    ("[-a]", ["a", "-"], ["b"]),
    (r"[\d_-]+", ["1_-"], ["a"]),
    (r"[\w.]+@[\w.]+", ["a.b@c"], ["a@", "@b"]),
    (r"\d{3}", ["123"], ["12", "1234", "١٢٣"]),
    (r"a{0}b", ["b"], ["ab"]),
    (r"a{2,}", ["aa", "aaaaa"], ["a"]),
    (r"(ab){1,2}", ["ab", "abab"], ["", "ababab"]),
    (r"a{x", ["a{x"], ["a"]),
    (r"\.\*\+\?\(\)\[\]\{\}\|\^\$\\\/", [".*+?()[]{}|^$\\/"], [".*"]),
    (r"\t\n\r\f\v\0", ["\t\n\r\f\v\0"], ["tnrfv0"]),
    (r"\x41\u0042\u{43}", ["ABC"], ["abc"]),
    (r"\ud83d\ude00", ["😀"], ["x"]),
    ("😀+", ["😀😀"], [""]),
    (r"\s\S", [" a", "\u00a0b"], ["a ", "ab"]),
    (".", ["a", '"', "\\", "é"], ["\n", "\r", "\u2028", ""]),
    ("(a*)*", ["", "aaa"], ["b"]),
    ("(a|b)*a(a|b){2}", ["aab", "baaa"], ["bbb", "aa"]),
    ("a*?b+?c??", ["b", "aabbc"], ["a"]),
    ("(?:a)(?<n>b)(?P<m>c)", ["abc"], ["ab"]),
    ("(^a|b$)", ["a", "b"], ["ab"]),
    ("(a|ab)(c|bcd)", ["abcd", "ac", "abc"], ["abbc"]),
    ("^(?=.*x)[a-z]{3}$", ["axb", "xxx"], ["abc", "x"]),
    ("^(?!.*x)(?=a)[a-z]{3}", ["abc"], ["axc", "bcd"]),
    ("a(?=b).c", ["abc"], ["acc", "ab"]),
    ("a(?!b).*|c", ["a", "acb", "c"], ["ab", "abc", "cc"]),
    ("x(a(?=b$)|c(?!d))?.*y?", ["x", "xab", "xce", "xcy", "xabd", "xcd"], ["a"]),
    ("^(?=a.*z)(b|a(?=.y).*)$", ["axyz"], ["b", "ayz", "axy"]),
    ("a(?=b(?!c)).*", ["ab", "abd"], ["abc", "a"]),
    (
        "^(?!^[-+.]*$)[+-]?0*(?:\\d{0,3}|(?=[\\d.]{1,6}0*$)\\d{0,3}\\.\\d{0,2}0*$)",
        ["1", "-123", "12.34", "+00012.3", "0.500", "123.45"],
        ["", "-", ".", "1234", "1.234", "12.345", "x"],
    ),
    (r"\Aab\Z", ["ab"], ["abc"]),
    (r"\u0130|\u212a", ["\u0130", "\u212a"], ["i", "K"]),
    (r"[\s\S]", ["a", " ", "\x1c", "\ufeff", "\n"], ["", "aa"]),
]


@pytest.mark.parametrize("pattern, fits, fails", WHOLE)
def test_whole_output_matches(pattern: str, fits: list[str], fails: list[str]):
    grammar = make_regex_grammar(pattern)
    check(grammar)
    matcher = Matcher(grammar)
    assert [text for text in fits if not matcher.accepts(text)] == []
    assert [text for text in fails if matcher.accepts(text)] == []


@pytest.mark.parametrize(
    "pattern, fits, fails",
    [
        ("b", ["b", "abc"], ["", "ac"]),
        ("^b", ["bc"], ["ab"]),
        ("b$", ["ab"], ["bc"]),
        ("^a|b$", ["ax", "xb"], ["xa", "bx"]),
        ("^", ["", "x"], []),
        ("$", ["", "x"], []),
        ("x*", ["", "abc"], []),
        ("a.c", ["xabcx"], ["a\nc"]),
        ("(^|,)a(,|$)", ["a", "b,a", "a,b", "b,a,c"], ["ba", "b,ab"]),
        ("a(?=b)", ["ab", "xabx"], ["a", "ba"]),
        ("a(?!b)", ["a", "aba", "abac"], ["ab", "b"]),
        ("(?=a)[ab]", ["xa"], ["b"]),
        ("^x|a(?=b$)", ["xy", "ab", "cab"], ["abc", "yx"]),
        ("a$b", [], ["ab", "a"]),
        ("b^a", [], ["ba"]),
    ],
)
def test_search_matches_anywhere(pattern: str, fits: list[str], fails: list[str]):
    dfa = compile_pattern(pattern, search=True)
    assert all(dfa.can_accept(text) for text in fits) and not any(dfa.can_accept(text) for text in fails)
    assert all(re.search(pattern, text) for text in fits) and not any(re.search(pattern, text) for text in fails)


@pytest.mark.parametrize(
    "pattern, position",
    [
        (r"(a)\1", 3),
        ("a(?=b)", None),
        ("a(?<=b)c", 1),
        (r"\bword", 0),
        (r"a\Bb", 1),
        ("(?i)a", 0),
        ("(?i:a)", 0),
        ("(?>a)", 0),
        ("(?P=n)", 0),
        (r"\k<n>", 0),
        (r"\p{L}", 0),
        ("[", 0),
        ("[a", 0),
        ("(", 0),
        ("(a", 0),
        ("a)", 1),
        ("*a", 0),
        ("a|*", 2),
        ("a**", 1),
        ("a{3}{4}", 1),
        ("a++", 2),
        ("a{4,2}", 1),
        ("[z-a]", 1),
        (r"[\d-z]", 1),
        ("[]", 0),
        ("[^]", 0),
        ("a\\", 1),
        (r"\q", 0),
        (r"\ud83d", 0),
        ("a{,3}", 1),
        ("a{99999999}", 1),
        (r"^*", 0),
        (r"\01", 0),
        ("(?#c)", 0),
        ("(" * 60 + ")" * 60, 51),
    ],
)
def test_unsupported_patterns_say_where(pattern: str, position: int | None):
    with pytest.raises(Unsupported) as caught:
        make_regex_grammar(pattern)
    if position is not None:
        assert caught.value.position == position
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["a^b", "[^\\s\\S]", "^(?!a)a"])
def test_a_pattern_without_any_match_is_refused(pattern: str):
    with pytest.raises(Unsupported):
        make_regex_grammar(pattern)


@pytest.mark.parametrize(
    "pattern, fits, fails",
    [
        (".{0,5000}", ["", "x" * 5000], ["x" * 5001, "\n"]),
        ("[ab]{3000}", ["ab" * 1500], ["ab" * 1499]),
        ("^(ab|c){0,900}x$", ["x", "abcabx"], ["abc", "bx"]),
        ("(a|b)*a(a|b){12}", ["a" * 13], ["b" * 13]),
        ("x{700}|y+", ["x" * 700, "yyy"], ["x", ""]),
    ],
)
def test_large_patterns_are_translated_piece_by_piece(pattern: str, fits: list[str], fails: list[str]):
    with pytest.raises(TooLarge):
        compile_pattern(pattern, search=False)
    grammar = make_regex_grammar(pattern)
    check(grammar)
    matcher = Matcher(grammar)
    assert all(map(matcher.accepts, fits)) and not any(map(matcher.accepts, fails))


def test_large_patterns_may_be_searched_for():
    builder = Builder()
    grammar = builder.render_text(
        make_pattern_pieces(builder, "^(ab|c){0,900}|z$", "p", builder.make_char_class, search=True)
    )
    matcher = Matcher(grammar)
    assert all(map(matcher.accepts, ["", "abx", "z", "xyz"]))


@pytest.mark.parametrize(
    "pattern", ["(x|){1500}", "(^a|b){900}", "a" * 30_000, "".join(f"a{{0,{i}}}b" for i in range(500, 900))]
)
def test_what_neither_way_can_take_is_refused(pattern: str):
    with pytest.raises(Unsupported):
        make_regex_grammar(pattern)


ATOMS = st.sampled_from(["a", "b", "c", ".", "[ab]", "[^a]", r"\d", r"\w", r"\W", "1", "-", r"\."])


def combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    quantifier = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "+?"])
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map("|".join).map("({})".format),
        st.tuples(inner, quantifier).map(lambda pair: f"({pair[0]}){pair[1]}"),
        inner.map("(?:{})".format),
    )


ANCHORED = st.tuples(
    st.sampled_from(["", "^", "^(?=.*a)", "^(?!b)"]),
    st.recursive(ATOMS, combined, max_leaves=6),
    st.sampled_from(["", "$"]),
).map("".join)
TEXTS = st.lists(st.text("abc1-. é", max_size=6), min_size=5, max_size=5)


@given(ANCHORED, TEXTS)
def test_agrees_with_python(pattern: str, texts: list[str]):
    python = re.compile(pattern, re.ASCII)
    search = compile_pattern(pattern, search=True)
    assert [search.can_accept(text) for text in texts] == [bool(python.search(text)) for text in texts]
    whole = compile_pattern(pattern, search=False)
    if whole.is_empty():
        return
    grammar = make_regex_grammar(pattern)
    check(grammar)
    matcher = Matcher(grammar)
    for text in texts:
        assert matcher.accepts(text) == whole.can_accept(text) == bool(python.fullmatch(text)), text
    text = Generator(grammar, 12).text(random.Random(pattern))
    assert python.fullmatch(text) or any(mark in text for mark in "\n\r\u2028\u2029"), text


@given(st.recursive(ATOMS, combined, max_leaves=5), TEXTS)
def test_both_ways_of_translation_agree(pattern: str, texts: list[str]):
    builder = Builder()
    try:
        grammar = builder.render_text(
            make_pattern_pieces(builder, pattern, "p", builder.make_char_class, search=False) or '""'
        )
        check(grammar)
    except Unsupported:
        return
    other = compile_pattern(pattern, search=False)
    matcher = Matcher(grammar)
    assert [matcher.accepts(text) for text in texts] == [other.can_accept(text) for text in texts]


@given(st.recursive(ATOMS, combined, max_leaves=5), st.recursive(ATOMS, combined, max_leaves=5), TEXTS)
def test_intersection_and_negation(first: str, second: str, texts: list[str]):
    one, two = compile_pattern(first, search=True), compile_pattern(second, search=False)
    common = automaton.minimise(automaton.intersect_dfas(one, automaton.negate(two), 5000))
    assert [common.can_accept(text) for text in texts] == [
        one.can_accept(text) and not two.can_accept(text) for text in texts
    ]


@pytest.mark.parametrize(
    "pattern", [r'^["\\/\x00-\x1f]+$', r"^[^a]{2}$", "^[\\u0000-\\u{10ffff}]$", '^["a]$', r"^\x1f\n$"]
)
def test_inside_a_json_string_characters_are_escaped(pattern: str):
    builder = Builder()
    reserve_core(builder)
    add_core(builder, "ws")
    inside = print_dfa(
        builder, compile_pattern(pattern, search=True), "p", lambda chars: make_text_class(builder, chars)
    )
    grammar = builder.render_text(f'"\\"" ({inside}) "\\""')
    check(grammar)
    for seed in range(40):
        text = json.loads(Generator(grammar, 5).text(random.Random(seed)))
        assert re.search(pattern.replace("\\u{10ffff}", "\U0010ffff"), text)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_stay_small(name: str):
    assert 1 < len(format_dfa(name).accept) < 150


@pytest.mark.parametrize(
    "choices, fails",
    [
        (["yes", "no"], ["y", "yesno", "", "Yes"]),
        (["a"], ["", "aa"]),
        (["", "a"], ["b"]),
        ([""], ["a"]),
        (["a", "ab", "abc", "b"], ["ac", "bc"]),
        (['"', "\\", "\n", "é", "[x]", "a\tb", "\x7f", "\u2028"], ["n", "e"]),
        (["same", "same"], ["samesame"]),
        ([f"{i:03}" for i in range(500)], ["5", "500", "0000"]),
    ],
)
def test_choices(choices: list[str], fails: list[str]):
    grammar = make_choice_grammar(choices)
    check(grammar)
    matcher = Matcher(grammar)
    assert all(map(matcher.accepts, choices)) and not any(map(matcher.accepts, fails))


@pytest.mark.parametrize("choices", [[], "yes", None, ["a", 1], ["a\0"], ["\ud800"], ["x"] * 10_001, {"a": 1}])
def test_wrong_choices_are_refused(choices: object):
    with pytest.raises(ValueError, match="'choice'"):
        make_choice_grammar(choices)
