"""`grammar.regex_gbnf.search_states`: a pattern's automaton finds what Python's `re` finds, however the text is split."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.seam.task import FULL, PATTERN, Trigger
from server.engine.slots.phases import Triggers
from server.grammar.automaton import TooLarge
from server.grammar.regex_gbnf import Unsupported, search_states
from tests.fuzzing import fuzz

PARTS = [
    "a",
    "b",
    "é",
    "[ab]",
    "[^a]",
    ".",
    "a*",
    "b+",
    "é?",
    "(?:ab|b)",
    "(?:a|ba){1,2}",
    "|",
    r"\s",
    "^",
    "$",
    "a{2}",
]


def first_match(pattern: str, pieces: list[str]) -> tuple[int, int] | None:
    """Where the match that is complete first begins and ends, in bytes."""
    states, is_anchored = search_states(pattern)
    triggers = Triggers([Trigger(FULL if is_anchored else PATTERN, pattern, states=states)])
    seen, at = triggers.nothing, 0
    for piece in pieces:
        data = piece.encode()
        found, seen = triggers.find(data, b"", seen)
        if found is not None:
            return at + found[0], at + found[1]
        at += len(data)
    return None


def expected(pattern: str, text: str) -> tuple[int, int] | None:
    """The same by trying each end with each beginning."""
    compiled = re.compile(f"(?:{pattern.removeprefix('^').removesuffix('$')})", re.ASCII)
    for end in range(1, len(text) + 1):
        for start in range(end if not pattern.startswith("^") else 1):
            if compiled.fullmatch(text, start, end):
                return len(text[:start].encode()), len(text[:end].encode())
    return None


@fuzz(300)
@given(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map("".join),
    st.lists(st.text("abéx \n", max_size=5), max_size=5),
)
def test_a_match_is_found_where_it_is_complete_first(pattern, pieces):
    try:
        found = first_match(pattern, pieces)
    except (Unsupported, TooLarge) as error:
        assert "\n" not in str(error)
        return
    assert found == expected(pattern, "".join(pieces))


@pytest.mark.parametrize("pattern", ["a|^b", "^a|b", "(?:^a)b", "a$b", "(?!a)b", "x(a)", "a?", "", "(?P<n>", "["])
def test_what_has_no_such_automaton_is_refused(pattern):
    with pytest.raises(Unsupported):
        search_states(pattern)


def test_groups_that_begin_with_the_pattern_are_groups_like_any_other():
    assert search_states("(a|b)c") == search_states("(?:a|b)c")
    assert search_states("^(a)") == search_states("^a") and search_states(r"\(a[(]") == search_states("[(]a[(]")
