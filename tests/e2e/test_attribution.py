"""A few of the hundreds of questions counted in docs/evidence.md: a small model names the sentence that it relied on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.planted_facts import ask, questions, table, top
from tests.support import ServerProcess


@pytest.mark.covers("P06", "P07")
def test_the_planted_sentences_are_what_an_answer_rests_on_both_ways(
    serve: Callable[..., ServerProcess], smollm2: Path
):
    server = serve("-m", smollm2, "-np", "2", "-c", "4096", "-t", "1")
    asked = {one["i"]: one for one in questions(4, 1, 8)}
    results = [ask(server, asked[i]) for i in (0, 3)]  # in one sentence, and twice
    for one in results:
        assert top(one["fast"]) == top(one["exact"]) == set(one["facts"]), one
        none = one["exact"]["answer_logprob"] - one["exact"]["without_spans_logprob"]
        assert none > 3, "the model doesn't know it by itself"
    assert table(results).splitlines()[-1].split()[:3] == ["all", "2", "2"]
