"""The cost of a grammar: stacks are counted as llama.cpp keeps them; grammars that stop a server are expensive, those
of people and converters are cheap; and the estimate is fast for every grammar.

`tests/native/test_grammar_cost.py` tests that llama.cpp has as many stacks.
"""

from __future__ import annotations

import random

import pytest

from server.grammar import gbnf_cost
from server.grammar.gbnf import GrammarError, parse
from server.grammar.gbnf_cost import END, LIMIT, WORK, WORK_TOKEN, Stacks, compute_cost
from server.grammar.json_schema.convert import convert
from tests.hostile_grammars import FOUND, hostile_grammar
from tests.unit.grammar.gbnf_oracle import Generator, Matcher
from tests.unit.grammar.json_schema_cases import CASES
from tests.unit.grammar.test_gbnf import ARITHMETIC, TAKEN, VALUES

DEAR = [name for name in FOUND if name != "words in a loop"]


def price(grammar: str) -> float:
    return compute_cost(parse(grammar))[0]


def step(stacks: Stacks, situation: set[int], char: str) -> set[int]:
    """The stacks that a text's next character leaves."""
    return {
        following
        for stack in situation
        if stack != END and any(low <= ord(char) <= high for low, high in stacks.list_ranges(stack))
        for following in stacks.list_after(stack)
    }


def some_grammars(n: int, seed: int) -> list[str]:
    rng, found = random.Random(seed), []
    while len(found) < n:
        grammar = hostile_grammar(rng)
        try:
            parse(grammar)
        except GrammarError:
            continue
        if max(Generator(grammar).height) < float("inf"):
            found.append(grammar)
    return found


@pytest.mark.parametrize("grammar", [*(grammar for grammar, fits, _ in TAKEN if fits), *some_grammars(40, 3)])
def test_there_are_no_fewer_stacks_than_ways_to_go_on(grammar):
    rng, matcher, stacks = random.Random(1), Matcher(grammar), Stacks(parse(grammar))
    for _ in range(3):
        ours, theirs = set(stacks.start(stacks.grammar.root)), matcher.start()
        for char in Generator(grammar, 12).text(rng)[:30]:
            assert len(ours) >= len(theirs) and (END in ours) == (matcher.end in theirs)
            ours, theirs = step(stacks, ours, char), matcher.advance(theirs, char)


@pytest.mark.parametrize(
    "grammar, text, n",
    [
        ('root ::= "ab" | "ac" | [a-c] "d"', "", 3),
        ('root ::= "ab" | "ac" | [a-c] "d"', "a", 3),
        ('root ::= "xa" | "ya"', "x", 1),
        ('root ::= ("a" | "ab")+ "c"', "a", 4),  # the first round stands at another place than the others
        ('root ::= "a"{0,5} "a"{0,5}', "aa", 5),
        ('root ::= "(" root ")" | "x"?', "((", 3),
    ],
)
def test_stacks_are_told_apart_by_their_places(grammar, text, n):
    stacks = Stacks(parse(grammar))
    situation = set(stacks.start(stacks.grammar.root))
    for char in text:
        situation = step(stacks, situation, char)
    assert len(situation) == n


@pytest.mark.parametrize("name", DEAR)
def test_what_stops_a_server_is_dear(name):
    assert price(FOUND[name]) > LIMIT


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "begin: " {} "end"',
        'root ::= "[" root "]" | "x" {} "y"',
        'root ::= [a-m] a | [n-z] b\na ::= "1" {}\nb ::= [0-9]* "2" a',
        'root ::= "0" | c* [!]\nc ::= [a-f] "=" {} ";"',
    ],
)
@pytest.mark.parametrize("name", ["one or two", "nullable body under a count"])
def test_it_is_found_wherever_it_hides(grammar, name):
    assert price(grammar.format("(" + FOUND[name].partition("::=")[2] + ")")) > LIMIT


def test_what_two_rules_do_together_is_seen():
    """Each of them is cheap on its own: the text between them could belong to any of six."""
    assert price('root ::= "<" a b a b a b ">"\na ::= [ ]*\nb ::= [ \\t]*') > LIMIT > 100 * price("root ::= [ ]*")


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= [a-zaa-c ]*",
        "root ::= [b-dacb]* [^zz-z]*",
        "root ::= (" + " | ".join(f"[{chr(97 + i)}-{chr(98 + i)}]" for i in range(0, 24, 2)) + ")*",
    ],
)
def test_a_class_that_names_a_character_twice_reads_it_once(grammar):
    assert price(grammar) < 100


def test_the_place_is_told():
    grammar = 'root ::= "x" a\na ::= "y" (" " | "  ")* "z"'
    found, offset = compute_cost(parse(grammar))
    assert found > LIMIT and grammar[offset:].startswith(("(", "*"))


@pytest.mark.parametrize("grammar", [ARITHMETIC, VALUES, *(grammar for grammar, _, _ in TAKEN)])
def test_what_people_write_is_cheap(grammar):
    assert price(grammar) < LIMIT / 5


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_schemas_are_cheap(case):
    assert price(convert(case.schema).grammar) < LIMIT / 2


@pytest.mark.parametrize(
    "grammar",
    [
        *FOUND.values(),
        "root ::= [a-z] root [a-z] | [a-z]*",
        "root ::= " + " ".join(["a?"] * 300) + '\na ::= [a-z]{0,3} "x"',
        "root ::= "
        + " | ".join(f"r{i}" for i in range(300))
        + "\n"
        + "\n".join(f'r{i} ::= "a" r{(i + 1) % 300} "a" | "a" r{(i * 7) % 300} | "b" [a-z]*' for i in range(300)),
        *some_grammars(40, 4),
    ],
)
def test_the_search_has_an_end(grammar):
    search = gbnf_cost._Search(parse(grammar), LIMIT)
    search.run()
    assert search.stacks.work < WORK + 3 * WORK_TOKEN
