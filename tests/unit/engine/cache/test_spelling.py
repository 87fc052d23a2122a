"""Prompts in the tokens that are cached for the same text: never another text, and never a control token made from
text.
"""

from __future__ import annotations

import random

import pytest

from server.engine.cache.spelling import MAX_STRETCH, respell

# single bytes are their own tokens, others are some pieces of text; 1000 and above are control tokens
PIECES = {300: b"ab", 301: b"bc", 302: b"abc", 303: b"ca", 304: b"cab", 305: b"\xc3", 306: "\u00e9".encode()}
CONTROL = 1000


def letters(token: int) -> bytes:
    return b"" if token >= CONTROL or token < 0 else PIECES.get(token) or bytes([token])


def text(tokens: list[int]) -> list[object]:
    """The letters, and control tokens as such."""
    return [part for token in tokens for part in (letters(token) or [token])]


def ids(*parts: str | int) -> list[int]:
    return [token for part in parts for token in ([part] if isinstance(part, int) else part.encode())]


@pytest.mark.parametrize(
    ("prompt", "cached", "expected"),
    [
        (ids("x", 302, "y"), ids("x", 300, "c"), ids("x", 300, "cy")),
        (ids("x", 300, "c and more"), ids("x", 302, " and"), ids("x", 302, " and more")),
        (ids("x", 302, 302, "y"), ids("xabcabcy"), ids("xabcabcy")),
        (ids("x", 302, "-", 302), ids("x", 300, "c-a", 301, "z"), ids("x", 300, "c-a", 301)),
        (ids("x", 306, "y"), ids("x", 305, 0xA9, "y"), ids("x", 305, 0xA9, "y")),
        (ids("the same"), ids("the same, longer"), ids("the same")),
        (ids("the same, longer"), ids("the same"), ids("the same, longer")),
    ],
    ids=["two for one", "one for two", "letters", "several places", "half characters", "shorter", "longer"],
)
def test_cached_tokens_take_the_place_of_others_for_the_same_text(prompt, cached, expected):
    assert respell(prompt, cached, letters) == expected
    assert text(expected) == text(prompt)


@pytest.mark.parametrize(
    "cached",
    [
        ids("x", 300),  # ends within a token of the prompt
        ids("x", 300, "d"),
        ids("x", CONTROL),
        ids("x", 300, CONTROL, "c"),
        ids("x", -7),
        [],
        ids("other"),
    ],
    ids=["ends inside", "another letter", "control token", "control token inside", "file", "nothing", "another text"],
)
def test_where_the_text_is_another_the_prompt_stays(cached):
    prompt = ids("x", 302, "y")
    assert respell(prompt, cached, letters) == prompt


def test_a_control_token_is_never_taken_for_its_name():
    def named(token: int) -> bytes:
        return b"" if token == CONTROL else letters(token)

    prompt, cached = ids("<s>hello"), ids(CONTROL, "hello")
    assert respell(prompt, cached, named) == prompt
    assert respell(cached, prompt, named) == cached


def test_two_ways_to_write_a_text_have_to_meet_again_soon():
    long = {CONTROL + 1: b"x" * (MAX_STRETCH + 8)}
    assert respell([CONTROL + 1], ids("x" * (MAX_STRETCH + 8)), lambda t: long.get(t) or letters(t)) == [CONTROL + 1]


def test_the_text_is_the_same_for_all_ways_to_cut_it():
    draw = random.Random(7)
    alphabet = [*b"abc", *PIECES, CONTROL, CONTROL + 1]
    for _ in range(5000):
        prompt = [draw.choice(alphabet) for _ in range(draw.randrange(20))]
        cached = recut(prompt, draw) if draw.random() < 0.7 else [draw.choice(alphabet) for _ in range(8)]
        cached = cached[: draw.randrange(len(cached) + 1)]
        spelled = respell(prompt, cached, letters)
        assert text(spelled) == text(prompt)
        n = len(first_same(spelled, cached))
        assert n >= len(first_same(prompt, cached))


def recut(tokens: list[int], draw: random.Random) -> list[int]:
    """The same text in tokens drawn at random."""
    found: list[int] = []
    parts = text(tokens)
    while parts:
        fitting = [
            token
            for token in (*b"abc", 0xA9, *PIECES)
            if (piece := letters(token)) and list(piece) == parts[: len(piece)]
        ]
        found.append(draw.choice(fitting) if fitting else parts[0])
        del parts[: len(letters(found[-1])) or 1]
    return found


def first_same(a: list[int], b: list[int]) -> list[int]:
    n = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return a[:n]
