"""Text that a grammar forces: it is always the beginning of every text that may follow."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from server.grammar import given
from server.grammar.gbnf import GrammarError
from server.grammar.given import GivenText, Places
from server.grammar.json_schema.convert import convert
from tests.hostile_grammars import FOUND
from tests.unit.grammar.json_schema_cases import CASES

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "größe": {"type": "integer"}, "kind": {"const": "human being"}},
    "required": ["name", "größe", "kind"],
    "additionalProperties": False,
}


def text_of(grammar: str, said: str = "") -> GivenText:
    followed = GivenText(Places(grammar))
    followed.feed(said.encode())
    return followed


@pytest.mark.parametrize(
    "said, ahead",
    [
        ("", '{"name": "'),
        ('{"na', 'me": "'),
        ('{"name": "A', ""),
        ('{"name": "A"', ', "größe":'),
        ('{"name":"A"', ',"größe":'),
        ('{\n  "name": "A",\n  ', '"größe":'),
        ('{"name": "A", "größe": 1', ""),
        ('{"name": "A", "größe": 1,', ' "kind": "human being"}'),
        ('{"name": "A", "größe": 1, "kind": "human being"}', ""),
        ('{"name": 7', ""),
    ],
)
def test_keys_signs_and_constants_are_given_with_the_blanks_that_the_text_has(said, ahead):
    assert text_of(convert(PERSON).grammar, said).find_ahead() == ahead


def test_lines_are_indented_as_the_lines_before_them():
    people = {"type": "array", "minItems": 3, "items": PERSON}
    said = json.dumps(2 * [{"name": "A", "größe": 1, "kind": "human being"}], indent=1, ensure_ascii=False)[:-2]
    assert text_of(convert(people).grammar, said).find_ahead() == ',\n {\n  "name": "'


def test_half_a_letter_says_nothing_until_the_rest_comes():
    followed = text_of('root ::= "aé" [b] "c"', "a")
    followed.feed("é".encode()[:1])
    assert followed.find_ahead() == ""
    followed.feed("é".encode()[1:])
    assert followed.find_ahead() == "bc"
    followed.feed(b"\xff")
    assert followed.find_ahead() == ""


def test_text_that_the_grammar_forbids_or_tokens_by_name_say_nothing():
    assert text_of('root ::= "ab"', "ax").find_ahead() == ""
    assert text_of('root ::= "a" <think> "b"').find_ahead() == "a"
    assert text_of('root ::= "ab"', "ab").find_ahead() == ""


@pytest.mark.parametrize("case", [case for case in CASES if case.fits], ids=lambda case: case.name)
def test_what_is_given_is_how_every_text_goes_on_but_for_blanks(case):
    """Blanks are left out on both sides: where they are free they are only a habit."""
    places = Places(convert(case.schema).grammar)
    for value, separators in itertools.product(case.fits, [(",", ":"), (", ", ": ")]):
        text = json.dumps(value, ensure_ascii=False, separators=separators)
        followed, said = GivenText(places), ""
        for char in text[:200]:
            ahead, rest = ("".join(one.split()) for one in (followed.find_ahead(), text[len(said) :]))
            assert ahead.startswith(rest) or rest.startswith(ahead), (said, ahead, rest)
            followed.feed(char.encode())
            said += char


@pytest.mark.parametrize("grammar", [*FOUND.values(), 'root ::= root "a" | "a"', 'root ::= ("a" | "b"){0,1500}'])
def test_dear_grammars_are_given_up(grammar, monkeypatch):
    monkeypatch.setattr(given, "MOST_PLACES", 300)
    try:
        places = Places(grammar)
    except GrammarError:
        return
    followed = GivenText(places)
    rng = random.Random(3)
    for _ in range(2000):
        followed.feed(rng.choice([b"a", b"b", b" ", b'"', b"1"]))
        assert len(followed.find_ahead()) <= given.MOST_AHEAD
    assert len(places._known) <= 300


def test_a_grammar_s_places_are_found_once():
    places = Places(convert(PERSON).grammar)
    said = '{"name": "Ada", "größe": 180, "kind": "human being"}'.encode()
    GivenText(places).feed(said)
    n = len(places._known)
    followed = GivenText(places)
    followed.feed(said)
    assert len(places._known) == n > 30
