"""Drafts from copied text with changes: they continue after a change, and repeat an earlier one."""

from __future__ import annotations

import json
import random
from itertools import islice

import pytest

from server.engine.speculation import copying
from server.engine.speculation.copying import Change, Changes, Copy
from server.engine.speculation.lookup import Lookup
from server.engine.speculation.trust import Trust


def text(words: str) -> list[int]:
    return [ord(letter) for letter in words]


def shown(tokens) -> str:
    return "".join(map(chr, tokens))


def copy_of(original: str, written: str, changes: Changes | None = None) -> Copy:
    """A copy of `original` of which so much has been written."""
    copy = Copy(changes or Changes(), Trust())
    copy.begin(text(original), 0, 20)
    tokens: list[int] = []
    for token in text(written):
        tokens.append(token)
        copy.append(tokens)
    return copy


def ahead(copy: Copy, n: int = 5) -> str:
    return shown(token for token, _ in islice(copy.list_ahead(), n)) if copy.place >= 0 else ""


# ---- behind changes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    ["the cat sat on", "the dog sat on", "the black cat sat on", "the sat on"],
    ids=["nothing", "exchanged", "inserted", "left out"],
)
def test_a_copy_goes_on_behind_a_change(written):
    assert ahead(copy_of("the cat sat on the mat.", written)) == " the "


def test_one_equal_token_is_enough_to_go_on():
    assert ahead(copy_of("abcdefghijklm", "abcd12h")) == "ijklm"


def test_behind_a_single_token_the_text_is_expected_to_go_on_as_if_it_was_exchanged():
    assert ahead(copy_of("abcdefghijklm", "abcdX")) == "fghij"
    assert ahead(copy_of("abcdefghijklm", "abcdXY")) == "", "two others: nobody knows"


def test_what_only_looks_like_the_copy_is_left_and_the_copy_found_again():
    assert ahead(copy_of("abcdefghijklm", "abcd1g2fg")) == "hijkl"


def test_a_copy_that_was_left_for_long_is_over():
    copy = copy_of("abcdefghijklm", "abcd" + "." * (copying.AWAY + 1) + "efg")
    assert copy.place < 0 and not copy.text


def test_a_copy_ends_with_its_text():
    copy = copy_of("abcdef", "abc")
    copy.text = [*copy.text, -1]
    assert ahead(copy) == "def"


# ---- changes -----------------------------------------------------------------------------------------------------


def test_a_change_is_expected_where_it_was_made_before():
    copy = copy_of("one\ntwo\nthree\nfour\nfive", "one\\ntwo\\nthr")
    assert ahead(copy, 14) == "ee\\nfour\\nfive"


@pytest.mark.parametrize(
    ("original", "written", "expected"),
    [
        ("ab-cd-ef-gh-ij", "ab - cd - ef", " - gh - ij"),
        ("12: ab\n12: cd\n12: ef\n12: gh\n", "ab\ncd\ne", "f\ngh\n"),
        ("cat and cat and cat and cat", "dog and dog and ", "dog and dog"),
    ],
    ids=["inserted", "left out", "renamed"],
)
def test_changes_of_any_kind_are_learnt(original, written, expected):
    assert ahead(copy_of(original, written), len(expected)) == expected


def test_a_change_that_does_not_come_any_more_is_expected_no_longer():
    copy = copy_of("ab-cd-ef-gh-ij-kl-mn", "ab+cd+ef-gh-ij")
    assert ahead(copy, 6) == "-kl-mn"


def test_what_differs_every_time_is_doubted():
    copy = copy_of("abc1def1ghi1jkl1mno", "abc7def8ghi9jk")
    factors = [factor for _, factor in islice(copy.list_ahead(), 3)]
    assert factors[0] == factors[2] == 1.0 > 0.5 > factors[1] and ahead(copy, 3) == "l1m"


def test_the_number_of_changes_is_bounded():
    changes = Changes()
    for i in range(3 * copying.MAX_KNOWN):
        changes.learn([i], [i, i])
        changes.note(i, False)
    assert changes.find([0], 0) is None and changes.find([3 * copying.MAX_KNOWN - 1], 0) is not None
    assert len(changes._known) == len(changes.doubts) == copying.MAX_KNOWN
    for i in range(3 * copying.MAX_ALIKE):
        changes.learn([1, i], [i, i])
    assert len(changes._known[1]) == copying.MAX_ALIKE and changes.find([1, 0], 0) is None


def test_a_change_is_likelier_the_more_often_it_came():
    change = Change((1,), (2,))
    chances = []
    for is_hit in (True, True, True, False, False, False):
        change.note(is_hit)
        chances.append(change.chance)
    assert chances[0] < chances[1] < chances[2] > chances[3] > chances[4] > chances[5]


# ---- in a text ---------------------------------------------------------------------------------------------------


def test_a_file_written_again_within_json_is_guessed_nearly_as_a_whole():
    file = "".join(f"row {chr(97 + i)}: {chr(65 + i) * 3} of {i * 37 % 11}\nand more of it\n" for i in range(20))
    lookup = Lookup(text(f"{file}\nwrite: "))
    n_right = 0
    answer = text(json.dumps(file))
    for token in answer:
        n_right += lookup.draft(1) == [token]
        lookup.append(token)
    assert n_right > 0.9 * len(answer)


def test_guesses_of_any_text_are_there_for_as_many_tokens_as_chances_say():
    rng = random.Random(3)
    for _ in range(100):
        original = [rng.randrange(6) for _ in range(60)]
        lookup = Lookup(original * 2)
        for token in original + original:
            lookup.append(token if rng.random() < 0.8 else rng.randrange(6))
            chances = lookup.estimate_chances(20)
            assert chances == sorted(chances, reverse=True) and len(lookup.draft(len(chances))) == len(chances)
