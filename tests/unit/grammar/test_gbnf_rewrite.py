"""Rewritten grammars: the same language, according to the tests' own reader; cheap grammars stay unchanged; those that
can't become cheap are refused with a place.
"""

from __future__ import annotations

import random
import re

import pytest

from server.grammar import gbnf_cost
from server.grammar.gbnf import GrammarError, parse, read
from server.grammar.gbnf_rewrite import make_affordable
from server.grammar.json_schema.convert import convert
from tests.hostile_grammars import FOUND, hostile_grammar
from tests.unit.grammar.gbnf_oracle import Generator, Matcher
from tests.unit.grammar.test_gbnf import TAKEN

REGULAR = {
    **{name: grammar for name, grammar in FOUND.items() if "root" not in grammar.partition("::=")[2]},
    "runs in a loop": 'root ::= ("a" | "aa" | "aaa" | "aaaa" | "aaab")*',
    "loop of loops": 'root ::= ("a"*)* "b"',
    "loops of what may be nothing": 'root ::= ("a"?)+ ("b" | ("c"*)+)*',
    "more words than ways": "root ::= (" + " | ".join(f'"{i:x}"' for i in range(1500)) + ") [.]",
}
PARTS = {
    "blanks around recursion": 'root ::= "[" ws ws ws ws ws ws root? ws "]"\nws ::= [ \\t\\n]*',
    "counts beside recursion": 'root ::= "(" root ")" ([a-c]{0,9} "."?){0,9} | "x"',
    "a loop of loops beside recursion": 'root ::= ("a"*)* ("(" root ")")* "b"',
    "beside tokens": 'root ::= (" " | "  ")* <[5]> ("a"?)* !<[6]>',
}


def texts(grammar: str, rng: random.Random, n: int) -> list[str]:
    """Texts of the grammar, and some that are a little different."""
    made = []
    generator = Generator(grammar, 20, read)
    for _ in range(n):
        text = generator.text(rng)
        made.append(text)
        if text:
            at = rng.randrange(len(text))
            made += [
                text[:at] + text[at + 1 :],
                text[:at] + rng.choice("ab x-\n") + text[at:],
                text[:at],
                text + text[at:],
            ]
    return made


def assert_equal(grammar: str, rewritten: str, rng: random.Random) -> None:
    one, other = Matcher(grammar, read), Matcher(rewritten)
    for text in texts(grammar, rng, 5) + texts(rewritten, rng, 5):
        assert one.accepts(text) == other.accepts(text), text


@pytest.mark.parametrize("name", REGULAR)
def test_a_regular_grammar_is_made_cheap_and_means_the_same(name):
    rewritten = make_affordable(REGULAR[name])
    assert gbnf_cost.compute_cost(parse(rewritten))[0] <= gbnf_cost.LIMIT
    assert_equal(REGULAR[name], rewritten, random.Random(2))


def test_many_that_may_be_nothing():
    matcher = Matcher(make_affordable('root ::= x{0,1500}\nx ::= "a"?'))
    assert [matcher.accepts("a" * n) for n in (0, 1, 999, 1500, 1501)] == [True] * 4 + [False]


@pytest.mark.parametrize("name", [name for name in PARTS if name != "beside tokens"])
def test_regular_stretches_of_others_too(name):
    rewritten = make_affordable(PARTS[name])
    assert rewritten != PARTS[name]
    assert_equal(PARTS[name], rewritten, random.Random(3))


def test_tokens_stay_where_they_are():
    assert make_affordable(PARTS["beside tokens"]).split() == [
        "root",
        "::=",
        "rule",
        "rule",
        "::=",
        '"',
        '"*',
        "<[5]>",
        '"a"*',
        "!<[6]>",
    ]


def test_random_grammars_mean_the_same_afterwards():
    rng, n_rewritten = random.Random(5), 0
    while n_rewritten < 12:
        grammar = hostile_grammar(rng)
        if len(grammar) > 200:  # the tests' own reading is slow
            continue
        try:
            rewritten = make_affordable(grammar)
        except GrammarError:
            continue
        if rewritten != grammar:
            n_rewritten += 1
            assert_equal(grammar, rewritten, rng)


@pytest.mark.parametrize("grammar", [*(grammar for grammar, _, _ in TAKEN), FOUND["words in a loop"]])
def test_what_is_cheap_stays_as_it_is(grammar):
    assert make_affordable(grammar) == grammar


def test_wide_schemas_stay_as_they_are():
    optional = {"type": "object", "properties": {f"property{i}": {"type": "integer"} for i in range(800)}}
    for schema in (optional, {**optional, "additionalProperties": True}, {"enum": [f"{i}{i}" for i in range(3000)]}):
        grammar = convert(schema).grammar
        assert make_affordable(grammar) == grammar


@pytest.mark.parametrize(
    "grammar, message",
    [
        (FOUND["recursion that may open or not"], r"too many ways to read the same text.*\(line 1, column \d+\)"),
        ('root ::= ("a"? root?)* "b"', "endless loop"),
        ('root ::= root "x" | "y"', "left-recursive"),
        ("root ::= [a", "never closed"),
        ('root ::= (("(" root ")")?)* "b"', "endless loop"),
        ('root ::= "\\uD800"* ("a" | "aa")* "\\uD800"', "too many ways"),  # no text at all
    ],
)
def test_the_rest_is_refused_as_before(grammar, message):
    with pytest.raises(GrammarError, match=message) as caught:
        make_affordable(grammar)
    assert re.search(r"\(line 1, column \d+\)$", str(caught.value))


def test_too_large_an_automaton_is_a_refusal_not_a_wait():
    with pytest.raises(GrammarError, match="too many ways"):
        make_affordable('root ::= ([a-z]{0,30} " "?){0,60} "." ([ab] | [ab] [ab])* "a" [ab]{18}')
