"""The place where a prompt differs from a cached text, and how much of the rest the cache has."""

from __future__ import annotations

import random

import pytest

from server.engine.cache.difference import MAX_MISSES, STRETCH, count_known, find_first_difference
from server.engine.seam.task import Difference


def ids(text: str) -> list[int]:
    return list(text.encode())


def numbers(start: int, n: int) -> list[int]:
    """Tokens that stand nowhere else."""
    return list(range(start, start + n))


HEAD, DATE, OTHER_DATE = numbers(0, 30), [1_000_000] * 4, [1_000_001] * 6
RULES, QUESTION, ANSWER = numbers(100, 200), numbers(1000, 90), numbers(2000, 70)


def test_the_first_difference_is_shown_with_what_is_around_it():
    prompt, cached = ids("the red house is here"), ids("the blue house is there")
    assert find_first_difference(prompt, cached) == Difference(4, tuple(b"the "), tuple(b"red ho"), tuple(b"blue h"), 0)
    assert find_first_difference(prompt, prompt + [1]) is None and find_first_difference(prompt, prompt[:5]) is None
    assert find_first_difference(prompt, []) is None and find_first_difference([], prompt) is None


@pytest.mark.parametrize(
    "prompt, n_lost",
    [
        (HEAD + OTHER_DATE + RULES + QUESTION, 290),
        (HEAD + OTHER_DATE + RULES + QUESTION + ANSWER + numbers(5000, 40), 360),
        (HEAD + numbers(5000, 300), 0),
        (HEAD + RULES + QUESTION, 290),
        (HEAD + OTHER_DATE + QUESTION + RULES, 290),
        (HEAD + OTHER_DATE + RULES + numbers(5000, 100) + ANSWER, 270),
        (HEAD + OTHER_DATE + RULES[: STRETCH - 1], 0),
    ],
    ids=["date", "next turn", "another text", "taken out", "another order", "edited question", "too short"],
)
def test_what_the_cached_text_has_as_well_is_counted(prompt, n_lost):
    found = find_first_difference(prompt, HEAD + DATE + RULES + QUESTION + ANSWER)
    assert found.n_lost == n_lost
    assert find_first_difference(prompt, HEAD + DATE + RULES + QUESTION + ANSWER, counts=False).n_lost == 0


def test_a_token_counts_once_however_often_the_cached_text_has_it():
    stretch = numbers(0, 64)
    assert count_known([7, *stretch, *stretch], [8, *stretch * 5], 0) == 128


def test_a_prompt_that_has_become_another_text_is_given_up():
    assert count_known(numbers(10_000, MAX_MISSES + 1) + RULES, [5, *RULES], 0) == 0
    assert count_known(numbers(10_000, MAX_MISSES - STRETCH) + RULES, [5, *RULES], 0) == len(RULES)


def test_the_count_is_never_more_than_both_have_and_finds_all_long_stretches():
    draw = random.Random(5)
    for _ in range(300):
        parts = [numbers(1000 * i, draw.randrange(2 * STRETCH, 90)) for i in range(1, 8)]
        cached = [1, *(token for part in parts for token in part)]
        kept = [part for part in parts if draw.random() < 0.6]
        draw.shuffle(kept)
        prompt = [2]
        for part in kept:
            prompt += [*part, *numbers(draw.randrange(10**6, 10**9), draw.randrange(20))]
        assert count_known(prompt, cached, 0) == sum(map(len, kept))
    for _ in range(300):  # letters: stretches overlap in all ways
        cached, prompt = ([draw.randrange(2) for _ in range(draw.randrange(200))] for _ in range(2))
        assert 0 <= count_known(prompt, cached, 0) <= len(prompt)
