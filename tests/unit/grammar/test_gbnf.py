"""The GBNF reader: accepted grammars, refusals with their places, and hostile grammars, which take no stack and no
time.

`tests/native/test_json_schema_sampling.py` tests that llama.cpp agrees.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.grammar.automaton import make_charset
from server.grammar.gbnf import GrammarError, Limits, check, parse
from server.grammar.gbnf_build import Builder, make_char_class, make_factored, make_literal, make_sequence
from tests.fuzzing import fuzz
from tests.unit.grammar.gbnf_oracle import Matcher, accepts

ARITHMETIC = """\
# sums, with blanks
root  ::= (expr "=" ws term "\\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws   # names
num   ::= [0-9]+ ws
ws    ::= [ \\t\\n]*
"""
VALUES = """root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array ::= "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\\"" (
    [^"\\\\\\x7F\\x00-\\x1F] |
    "\\\\" (["\\\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\\n" [ \\t]{0,20}
"""

TAKEN = [
    (ARITHMETIC, ["a=b\n", "a +b1*(c -2)=3\n"], ["a=b", "=\n"]),
    (VALUES, ['{"a": [1, {"b": null}], "c": "x\\u00e9"}', "{}"], ["[]", '{"a":}']),
    ('root ::= "a" | "b" |\n "c"', ["a", "c"], ["d"]),
    ('root ::= (\n "a"\n | "b" # note\n )\n\n\n# end', ["a", "b"], ["ab"]),
    ('root ::=\n "x"', ["x"], [""]),
    ("root ::= ", [""], ["x"]),
    ('root ::= | "a"', ["", "a"], ["aa"]),
    ('root ::= a-1 B\na-1 ::= "1"\nB ::= "2"', ["12"], ["1"]),
    ('root::="a"\r\n', ["a"], [""]),
    ('root ::= "a"\r# x\rb ::= root', ["a"], [""]),
    (r'root ::= "\x41\u00e9\U0001F600\t\n\r\\\"\[\]"', ['Aé😀\t\n\r\\"[]'], ["A"]),
    (r'root ::= [\x41-\x43\u00e9\]\[\\\-"^]+', ['ABCé][\\-"^'], ["D", ""]),
    ("root ::= [a-]", ["a", "-"], ["b"]),
    ("root ::= [-a]", ["a", "-"], ["b"]),
    ("root ::= [a-c-e]+", ["a-e", "b"], ["d"]),
    ("root ::= [+--]", ["+", ",", "-"], ["."]),
    ("root ::= [^a-c\\n]", ["d", "é"], ["b", "\n"]),
    ("root ::= [a^]", ["a", "^"], ["b"]),
    ("root ::= .", ["x", "\n", "😀"], ["", "xx"]),
    ('root ::= "ab"{2} "c"{1,} "d"{0,2} "e"{0}', ["ababc", "ababccdd"], ["ababcddd", "ababce"]),
    ('root ::= "a" { 1 , 2 }', ["a", "aa"], ["aaa"]),
    ('root ::= ("a" "b"?)+', ["aba"], ["bb"]),
    ('root ::= "a"+?', ["", "aa"], ["b"]),
    ('root ::= "a"{2}{3}', ["a" * 6], ["a" * 5]),
    ('root ::= "" "a" ""', ["a"], [""]),
    ('root ::= ("a"?){0,3}', ["", "aa", "aaa"], ["aaaa"]),
    ('root ::= "a\nb"', ["a\nb"], ["ab"]),
    ('root ::= a\na ::= "1"\na ::= "2"', ["2"], ["1"]),
    ('root ::= "(" root ")" | "x"', ["((x))", "x"], ["((x)"]),
    ('root ::= a root | "x"\na ::= "a"', ["aax"], ["aa"]),
    ('root ::= "a" root', [], ["a"]),
]


@pytest.mark.parametrize("grammar, fits, fails", TAKEN)
def test_the_dialect(grammar: str, fits: list[str], fails: list[str]):
    check(grammar)
    matcher = Matcher(grammar)
    assert [text for text in fits if not matcher.accepts(text)] == []
    assert [text for text in fails if matcher.accepts(text)] == []


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= <[1000]>",
        "root ::= !<[0]>*",
        "root ::= <think> t </think> .*\nt ::= !</think>*",
        "root ::= <|im_end|>",
        "root ::= <>",
    ],
)
def test_token_literals_are_read(grammar: str):
    check(grammar)


REFUSED = [
    # (grammar, part of the message, line, column)
    ("", "no rule named 'root'", 1, 1),
    ('start ::= "a"', "no rule named 'root'", 1, 1),
    ("root", "expected '::='", 1, 5),
    ("root ::= a", "'a' is used but not defined", 1, 10),
    ('root ::= "a" (b | c)\nb ::= "b"', "'c' is used but not defined", 1, 19),
    ('my_rule ::= "a"', "letters, digits and '-'", 1, 3),
    ('root ::= "a"\n | "b"', "'|' at the end of the line before", 2, 2),
    ('root ::= "a', "never closed", 1, 10),
    ("root ::= [a", "never closed", 1, 10),
    ('root ::= ("a"', "never closed", 1, 10),
    ('root ::= ("a" ]', "inside parentheses", 1, 15),
    ('root ::= "a")', "unexpected ')'", 1, 13),
    ('root ::= "a" ]', "unexpected ']'", 1, 14),
    ("root ::= []", "empty", 1, 10),
    ("root ::= [^]", "empty", 1, 10),
    ("root ::= [z-a]", "wrong order", 1, 12),
    (r'root ::= "\q"', "escape", 1, 11),
    (r'root ::= "ab\x4"', "escape", 1, 13),
    (r"root ::= [a\u12]", "escape", 1, 12),
    (r'root ::= "\U00110000"', "beyond U+10FFFF", 1, 11),
    ("root ::= *", "nothing stands before", 1, 10),
    ('root ::= "a" | +', "nothing stands before", 1, 16),
    ('root ::= ""?', "nothing stands before", 1, 12),
    ('root ::= "a"{0}*', "nothing stands before", 1, 16),
    ('root ::= "a"{', "expected a number", 1, 14),
    ('root ::= "a"{,3}', "expected a number", 1, 14),
    ('root ::= "a"{1', "expected '}'", 1, 15),
    ('root ::= "a"{1,2', "expected '}'", 1, 17),
    ('root ::= "a"{5,2}', "wrong order", 1, 13),
    ('root ::= "a"{2001}', "at most 2000", 1, 14),
    ('root ::= "a"{0,99999999999999999999999}', "at most 2000", 1, 16),
    ('root ::= ("a"{0,50}){0,50}', "multiply to more than 2000", 1, 21),
    ('root ::= "a"{100}{100}', "multiply to more than 2000", 1, 18),
    ("root ::= <[12", "expected a token", 1, 10),
    ("root ::= <think", "expected a token", 1, 10),
    ("root ::= <[x]>", "expected a token", 1, 10),
    ("root ::= <[99999999999]>", "too large", 1, 10),
    ("root ::= !a", "expected a token", 1, 10),
    ('root ::= "a\0"', "NUL", 1, 12),
    ('root ::= "\ud800"', "surrogate", 1, 11),
    ('root ::= root "x" | "y"', "'root' is left-recursive", 1, 10),
    ('root ::= a\na ::= b "x" | "y"\nb ::= a', "left-recursive", 3, 7),
    ('root ::= a "y"\na ::= "x"? root', "left-recursive", 2, 12),
    ('root ::= n root "x" | "y"\nn ::= m m\nm ::= "z"?', "'root' is left-recursive", 1, 12),
    ('root ::= ("a" | (root) "b")', "left-recursive", 1, 18),
    ('root ::= "a"\nb ::= b', "'b' is left-recursive", 2, 7),
    ('root ::= ("")*', "endless loop", 1, 14),
    ('root ::= ("a"?)+', "endless loop", 1, 16),
    ('root ::= ws* "x"\nws ::= [ ]*', "endless loop", 1, 12),
    ('root ::= (a | b)*\na ::= "x"\nb ::= a? a{0,2}', "endless loop", 1, 17),
    ('root ::= "x" ("a"?){2,}', "endless loop", 1, 20),
]


@pytest.mark.parametrize("grammar, message, line, column", REFUSED)
def test_refused_with_a_place(grammar: str, message: str, line: int, column: int):
    with pytest.raises(GrammarError) as caught:
        check(grammar)
    assert message in caught.value.message
    assert (caught.value.line, caught.value.column) == (line, column)
    assert f"(line {line}, column {column})" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "grammar, message",
    [
        ("root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000, "nested deeper than 200"),
        ("root ::= " + "(" * 60_000, "nested deeper than 200"),
        ('root ::= "a"' + "?" * 60_000 + ' "b"', "left-recursive|endless|multiply|levels deep|expands to more"),
        ("root ::= " + '"a" ' * 300_000, "the limit is|expands to more"),
        ('root ::= "' + "a" * 2_000_000 + '"', "the limit is"),
        ("\n".join(["root ::= r0", *(f"r{i} ::= r{i + 1}" for i in range(30_000)), 'r30000 ::= "a"']), "levels deep"),
        ("\n".join(["root ::= r0", *(f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(60)), 'r60 ::= "a"']), "multiply"),
        (
            "\n".join(["root ::= r0", *(f"r{i} ::= r{i + 1}?{{0,40}} r{i + 1}" for i in range(9)), 'r9 ::= "a"']),
            "multiply|deep",
        ),
        ('root ::= x{0,1500}\nx ::= "a"?', "levels deep"),
        ("\n".join(['root ::= "a"', *(f'r{i} ::= "a"{{0,2000}}' for i in range(200))]), "expands to more"),
        ("\n".join(f'r{i} ::= "a" ' for i in range(70_000)), "the limit is|expands to more|no rule named"),
    ],
)
def test_hostile_grammars_are_refused_without_recursion(grammar: str, message: str):
    with pytest.raises(GrammarError, match=message):
        check(grammar)


def test_200_parentheses_are_fine():
    grammar = "root ::= " + "(" * 200 + '"a"' + ")" * 200
    check(grammar)
    assert accepts(grammar, "a")


def test_long_chains_to_the_right_are_fine():
    rules = ["root ::= r0", *(f'r{i} ::= "a" r{i + 1}?' for i in range(20_000)), 'r20000 ::= "b"']
    check("\n".join(rules))


def test_limits_are_parameters():
    grammar = 'root ::= (("a"{7}))\nother ::= "b"'
    check(grammar, root="other")
    for limits in (
        Limits(text_bytes=10),
        Limits(depth=1),
        Limits(rules=2),
        Limits(elements=5),
        Limits(repetitions=6),
        Limits(chain=1),
        Limits(visits=1),
    ):
        with pytest.raises(GrammarError):
            check(grammar, limits=limits)


WIDE = " | ".join(f'"{i}"' for i in range(1001))


@pytest.mark.parametrize(
    "grammar",
    [
        f"root ::= {WIDE}",
        f'root ::= "x" ({WIDE}) "y"',
        f'root ::= "x" a\na ::= b | "c"\nb ::= {WIDE}',
        'root ::= "x" ' + " ".join(f'"{i}"?' for i in range(1001)),
        f'root ::= (a | "")\na ::= b* "x"\nb ::= {WIDE}',
        "root ::= x x? | y\n" + f"x ::= {WIDE[:6000]}\ny ::= {WIDE[6000:].partition('| ')[2]}",
    ],
    ids=range(6),
)
def test_too_many_ways_to_go_on_are_refused(grammar):
    with pytest.raises(GrammarError, match="more than 1000 alternatives are open"):
        check(grammar)


def test_many_alternatives_are_fine_where_they_are_spread():
    check(f"root ::= {WIDE.rpartition(' |')[0]}")
    check(
        "root ::= "
        + " | ".join(f'"{i}" a{i}' for i in range(20))
        + "\n"
        + "\n".join(f"a{i} ::= " + " | ".join(f'"{j}"' for j in range(900)) for i in range(20))
    )
    check('root ::= x{1,2000} [a-z]{0,1999}\nx ::= "a"? "b"')


def test_another_root_may_be_named():
    check('a ::= "x"', root="a")
    assert parse('a ::= "x"\nb ::= "y"', root="b").root == 1


def test_an_error_that_quotes_a_line_break_is_one_line():
    with pytest.raises(GrammarError, match="escape") as caught:
        check("root ::= [\\\n]")
    assert "\n" not in str(caught.value)


@fuzz(100)
@given(st.text(alphabet='ab"[]()|*+?{}0,1^-.\\\n:= <>!#xr', max_size=40))
def test_any_text_is_taken_or_refused_with_a_place_inside_it(text: str):
    for grammar in (text, 'root ::= "a" ' + text):
        try:
            check(grammar)
        except GrammarError as error:
            lines = grammar.split("\n")
            assert 1 <= error.line <= len(lines)
            assert 1 <= error.column <= len(lines[error.line - 1]) + 1


# What is written can be read


@given(st.text(max_size=12).filter(lambda text: "\0" not in text))
def test_literals_keep_their_text(text: str):
    assert accepts(f"root ::= {make_literal(text)}", text)


@given(st.lists(st.tuples(st.integers(1, 0x10FFFF), st.integers(0, 50)), min_size=1, max_size=4))
def test_classes_keep_their_characters(pairs: list[tuple[int, int]]):
    chars = make_charset(*((low, min(low + size, 0x10FFFF)) for low, size in pairs))
    if not chars:
        return
    matcher = Matcher(f"root ::= {make_char_class(chars)}")
    for low, high in chars:
        assert matcher.accepts(chr(low)) and matcher.accepts(chr(high))
        for code in (low - 1, high + 1):
            if 0 < code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF:
                assert not matcher.accepts(chr(code)) or any(a <= code <= b for a, b in chars)


@pytest.mark.parametrize(
    "least, most",
    [
        (0, None),
        (1, None),
        (0, 1),
        (3, 3),
        (2, 5),
        (0, 999),
        (1000, 1001),
        (999, 2500),
        (2300, 2300),
        (1500, None),
        (0, 0),
        (1, 1),
        (0, 4321),
    ],
)
@pytest.mark.parametrize("unit", ["x", "ab"])
def test_repetitions_of_any_size(unit: str, least: int, most: int | None):
    builder = Builder()
    grammar = builder.render_text(builder.repeat("item", make_literal(unit), least, most) or '""')
    check(grammar)
    matcher = Matcher(grammar)
    largest = most if most is not None else least + 1200
    assert all(matcher.accepts(unit * count) for count in (least, largest, (least + largest) // 2))
    assert least == 0 or not matcher.accepts(unit * (least - 1))
    assert most is None or not matcher.accepts(unit * (most + 1))


def test_equal_bodies_share_a_rule_and_names_are_clean():
    builder = Builder()
    assert builder.define("a b/ü", '"x" "y"') == builder.define("other", '"x" "y"') == "a-b"
    assert builder.define("a-b", '"z" "y"') == "a-b-2"
    assert builder.reserve("???") == "rule"
    assert builder.reserve("?") == "rule-2"


ITEMS = st.lists(st.sampled_from(["a", "b", "ab", 'q"', "\\\\", "ws", "ws2"]), max_size=5)


def written(items: list[str]) -> str:
    return make_sequence(*(item if item.startswith("ws") else make_literal(item) for item in items))


@given(st.lists(ITEMS, min_size=1, max_size=8))
def test_common_beginnings_are_written_once_and_change_nothing(rows: list[list[str]]):
    rules = '\nws ::= "1"\nws2 ::= "2"\n'
    parts = [written(row) for row in rows]
    matcher = Matcher("root ::= " + (make_factored(parts) or '""') + rules)
    texts = {"".join({"ws": "1", "ws2": "2"}.get(item, item) for item in row) for row in rows}
    assert all(map(matcher.accepts, texts))
    assert not any(matcher.accepts(text + tail) for text in texts for tail in "ab12" if text + tail not in texts)


def test_one_stack_reads_what_all_alternatives_share():
    parts = [make_sequence(make_literal("{"), "ws", make_literal(f'"name":"tool_{i}"')) for i in range(30)]
    matcher = Matcher(f'root ::= {make_factored(parts)}\nws ::= " "')
    stacks = matcher.start()
    for char in '{ "name":"tool_':
        assert len(stacks) == 1
        stacks = matcher.advance(stacks, char)
