"""The tree of a vocabulary: a few questions find the same tokens as asking about each one."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from server.engine.llama import grammar
from server.engine.llama.grammar import MOST, find, grow, is_searchable
from server.engine.llama.sampler import count_considered
from server.engine.slots.sampling import Stage
from server.grammar import given
from server.grammar.gbnf import GrammarError


def vocabulary(chance: random.Random) -> list[tuple[bytes, int]]:
    """Single bytes, most of the pairs of two letters, and longer tokens."""
    pieces = {bytes([byte]) for byte in range(1, 256)}
    pieces |= {bytes(pair) for pair in zip(b"  aab\xc3", b"abab\xa9\xa9") if chance.random() < 0.8}
    pieces |= {bytes(chance.choices(b" abc\xc3\xa9", k=chance.randint(2, 7))) for _ in range(1500)}
    return [(piece, token) for token, piece in enumerate(sorted(pieces, key=lambda _: chance.random()))]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_found_is_what_asking_about_all_would_find(seed: int, monkeypatch):
    chance = random.Random(seed)
    monkeypatch.setattr(grammar, "SPLIT", chance.choice([1, 8, 128]))
    pieces = vocabulary(chance)
    texts = [bytes(chance.choices(b" abc\xc3\xa9", k=9)) for _ in range(chance.randint(1, 4))]
    n_asked = 0

    def allowed(piece: bytes) -> bool:
        return any(text.startswith(piece) for text in texts)

    def ask(tokens: Sequence[int]) -> list[int]:
        nonlocal n_asked
        n_asked += len(tokens)
        return [token for token in tokens if token < 0 or allowed(by_token[token])]

    by_token = {token: piece for piece, token in pieces}
    found = find(grow(pieces), [-5], ask)
    assert sorted(found or ()) == [-5, *sorted(token for piece, token in pieces if allowed(piece))]
    assert n_asked < len(pieces)


def test_where_much_is_allowed_nothing_is_found():
    pieces = [(b"a" + bytes([i % 256, i // 256]), i) for i in range(1, 3 * MOST)]
    assert find(grow(pieces), (), list) is None


def test_a_grammar_that_cannot_be_read_here_is_read_only_once(monkeypatch):
    n_read = 0

    def fail(*_: str) -> None:
        nonlocal n_read
        n_read += 1
        raise GrammarError("no", 1, 1)

    monkeypatch.setattr(given, "Places", fail)
    grammars = grammar.Grammars(None, None, 0)
    assert [grammars.make_given("root ::= x", "root") for _ in range(3)] == [None] * 3
    assert n_read == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('root ::= "<tool_call>" [^<>]* # <this>', True),
        (r'root ::= [^"\\\x7F\x00-\x1F] | "\u00e9" | [à-ü]', True),
        (r'root ::= "\"" <think> "\""', False),
        ("root ::= !<[5]>", False),
        ("root ::= [^é]", False),
        (r"root ::= [^a\u00e9]", False),
        (r"root ::= [^\]\xe9]", False),
    ],
)
def test_some_grammars_allow_tokens_whose_beginning_they_refuse(text: str, expected: bool):
    assert is_searchable(text) is expected


@pytest.mark.parametrize(
    ("stages", "n"),
    [
        ([Stage("greedy", ())], 1),
        ([Stage("top_k", (40,)), Stage("dist", (1,))], 40),
        ([Stage("top_k", (1000,)), Stage("dist", (1,))], 0),
        ([Stage("logit_bias", ((),)), Stage("top_k", (40,)), Stage("dist", (1,))], 0),
        ([Stage("dist", (1,))], 0),
    ],
)
def test_chains_that_look_at_few_tokens_say_so(stages: list[Stage], n: int):
    assert count_considered(stages) == n
