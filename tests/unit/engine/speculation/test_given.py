"""Drafts from a grammar: their probability is that of similar drafts in this text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from server.engine.seam.config import SpecConfig
from server.engine.seam.task import SamplingParams
from server.engine.speculation.given import PRIORS, Given
from tests.fakes import EOS, letters
from tests.unit.engine.driving import Driver
from tests.unit.engine.speculation.test_speculation import driver, same_books

TEXT = '{"title":"ab","author":"cd","publisher":"ef"}'
BOUND = SamplingParams(temperature=0.0, grammar="any")


def given(*tokens: int) -> Given:
    made = Given()
    made.foresee(tokens)
    return made


def test_a_first_token_is_less_sure_than_those_behind_it():
    chances = given(1, 2, 3).estimate_chances(8)
    assert chances == pytest.approx([PRIORS[0], PRIORS[0] * PRIORS[1], PRIORS[0] * PRIORS[1] ** 2])
    assert given(1, 2, 3).estimate_chances(2) == chances[:2] and given().estimate_chances(8) == []
    assert given(1, 2, 3).draft(2) == [1, 2]


def test_a_text_in_other_tokens_is_trusted_less_and_one_in_these_more():
    one, other = Given(), Given()
    for _ in range(8):
        one.foresee((1, 2, 3))
        one.judge((1, 2, 3, 9))
        other.foresee((1, 2, 3))
        other.judge((7,))
    for made in (one, other):
        assert made.estimate_chances(3) == [], "what was foreseen is over"
        made.foresee((1, 2, 3))
    assert other.estimate_chances(1)[0] < 0.4 < PRIORS[0] < one.estimate_chances(1)[0]
    assert other.estimate_chances(2)[1] / other.estimate_chances(1)[0] == pytest.approx(PRIORS[1]), (
        "nothing is known of later ones"
    )


def speaker(history: Sequence[int]) -> int:
    """Says what the language wants, and letters of its own where that has several."""
    said = bytes(token for token in history if token < 256).decode()
    n = len(said.partition("\n")[2])
    return ord(TEXT[n]) if n < len(TEXT) else EOS


def bound_driver(**fields) -> Driver:
    d = driver(speaker, **fields)
    d.backend.language = tuple(TEXT.replace("ab", word) for word in ("ab", "xy", "k"))
    return d


def test_what_a_grammar_gives_is_drafted_and_the_answer_is_the_same():
    answers = {}
    for spec in (SpecConfig(), SpecConfig(lookup=True)):
        d = bound_driver(spec=spec)
        task = d.post("now:\n", n_predict=80, sampling=BOUND)
        d.finish()
        answers[spec.lookup] = d.text(task)
        assert same_books(d)
    assert answers[True] == answers[False] == TEXT
    final = d.outcomes[task].final
    assert final.timings.draft_n_accepted > 20 and len(d.backend.batches) < 25


def test_without_guesses_asked_for_a_grammar_isn_t_looked_at():
    d = bound_driver()
    d.post("now:\n", n_predict=80, sampling=BOUND, draft_n_max=0)
    d.finish()
    assert all(len(span) == 1 for batch in d.backend.batches[1:] for span in batch)


def test_a_model_that_repeats_itself_is_guessed_from_its_text_where_that_says_more():
    d = driver(lambda history: letters(history) if len(history) < 3 else 97)
    d.backend.language = None
    task = d.post("aaaaaaaaaaaaaaaaaaaa", n_predict=40, sampling=BOUND)
    d.finish()
    assert d.outcomes[task].final.timings.draft_n_accepted > 20
