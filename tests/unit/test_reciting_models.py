"""How a text is split into tokens that a reciting model can write one after another."""

from __future__ import annotations

import pytest

from tests.reciting_models import cut


@pytest.mark.parametrize(
    "answer", ["a", "abcabcabcabc", "aaaaaaaaaaaa", "été 😀 été 😀", '{"a": 1, "b": 1}' * 3, "xyzxy", "ababab"]
)
def test_the_pieces_are_the_text_and_none_occurs_twice(answer: str):
    used: set[str] = set()
    pieces = [*cut(answer, (), used), *cut("then: " + answer, (), used)]
    assert "".join(pieces) == answer + "then: " + answer
    assert len(set(pieces)) == len(pieces)


def test_special_tokens_are_pieces_of_their_own():
    assert list(cut("one<call>two</call>", ("<call>", "</call>"), set())) == ["one", "<call>", "two", "</call>"]
    with pytest.raises(ValueError, match="twice"):
        list(cut("<call>one<call>", ("<call>",), set()))
