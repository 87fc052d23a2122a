"""Drafts from the text itself: the place that is found, the continuation, and learning from each token."""

from __future__ import annotations

import random

import pytest

from server.engine.speculation.lookup import MAX_PLACES, Lookup
from server.engine.speculation.past import Past
from server.engine.speculation.trust import MAX_MATCH, N_GRAM, ModelTrust, Trust


def text(words: str) -> list[int]:
    return [ord(letter) for letter in words]


def shown(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


def drafted(past: str, written: str = "", n: int = 6) -> str:
    lookup = Lookup(text(past))
    for token in text(written):
        lookup.append(token)
    return shown(lookup.draft(n))


# ---- places ------------------------------------------------------------------------------------------------------


def test_what_followed_the_same_tokens_is_drafted():
    assert drafted("one two three four. one t") == "wo thr"


def test_it_makes_no_difference_whether_the_text_came_at_once_or_token_by_token():
    whole = "the cat sat on the mat, the cat sat on the hat, the cat s"
    assert drafted(whole) == drafted(whole[:9], whole[9:]) == drafted("", whole) == "at on "


@pytest.mark.parametrize("past", ["", "a", "ab", "abc", "abcdefgh", "abxabyab"])
def test_without_enough_equal_tokens_nothing_is_drafted(past):
    lookup = Lookup(text(past))
    assert lookup.draft(5) == [] and lookup.estimate_chances(5) == []


def test_the_longest_equal_past_wins_over_the_latest_place():
    assert drafted("she told the story. he sold the apple. and she told the", n=6) == " story"


def test_of_equally_good_places_the_latest_is_taken():
    assert drafted("xabc1 yabc2 zabc", n=1) == "2"


def test_after_an_edit_the_text_is_found_again_behind_the_place_that_was_left():
    past = "row 1: red apple and milk; row 2: red onion and milk; row 3: red grape and milk. Copy: "
    assert drafted(past, "row 1: red apple and milk; row 2: RED onion an", n=14) == "d milk; row 3:"


def test_after_one_exchanged_token_the_text_is_expected_to_go_on():
    lookup = Lookup(text("abcdefghijklmnop. abcdefg"))
    lookup.append(ord("X"))
    assert shown(lookup.draft(3)) == "ijk"
    lookup.append(ord("Y"))
    assert lookup.draft(3) == [], "two misses: the place is left"


def test_a_loop_is_drafted_beyond_the_end_of_the_text():
    assert drafted("na na na", n=10) == " na na na "


def test_a_shorter_n_gram_finds_more_and_a_longer_one_less():
    assert Lookup(text("ab..a"), 1).draft(1) == text("b")
    assert Lookup(text("abc..abc"), 4).draft(1) == []


def test_placeholders_are_never_drafted():
    assert Lookup([1, 2, 3, 4, -1, -1, 5, 1, 2, 3]).draft(5) == [4]


def test_the_number_of_places_compared_is_bounded():
    far = text("WXYZabc!") + text("abc?") * (MAX_PLACES + 1) + text("WXYZabc")
    assert shown(Lookup(far).draft(1)) == "?", "the best place is too many places away"


def test_drafts_agree_with_a_plain_search_through_the_text():
    rng = random.Random(5)
    for _ in range(200):
        lookup = Lookup([rng.randrange(4) for _ in range(rng.randrange(30))])
        for _ in range(30):
            draft = lookup.draft(3)
            if draft:
                tokens = lookup.tokens
                place = next((i for i in range(len(tokens)) if looped(tokens, i, 3) == draft), None)
                assert place is not None, "every draft stands somewhere in the text"
            lookup.append(rng.randrange(4))


def looped(tokens: list[int], start: int, n: int) -> list[int]:
    """`n` tokens from `start` on, repeating the text's end beyond it."""
    found = tokens[start : start + n]
    while len(found) < n:
        found.append(found[len(found) - (len(tokens) - start)])
    return found


# ---- earlier answers ---------------------------------------------------------------------------------------------


def past(*answers: str) -> Past:
    earlier = Past(N_GRAM)
    for answer in answers:
        earlier.add(text(answer))
    return earlier


def test_what_an_earlier_answer_said_is_drafted():
    lookup = Lookup(text("say: one t"), past=past("one two three"))
    assert shown(lookup.draft(20)) == "wo three", "and nothing beyond its end"


def test_the_text_itself_counts_more_than_an_equally_good_earlier_answer():
    assert shown(Lookup(text("one two! say: one t"), past=past("say: one ten")).draft(4)) == "en"
    assert shown(Lookup(text("say: one two! say: one t"), past=past("say: one ten")).draft(3)) == "wo!"


def test_the_latest_of_earlier_answers_is_drafted_and_the_one_with_the_longer_past_before_it():
    assert shown(Lookup(text("a b c "), past=past("a b c d", "a b c e")).draft(1)) == "e"
    assert shown(Lookup(text("xa b c "), past=past("xa b c d", "ya b c e")).draft(1)) == "d"


def test_after_an_edit_an_earlier_answer_is_found_again_behind_the_place_that_was_left():
    lookup = Lookup(text("Again: "), past=past("row 1: red apple and milk; row 2: red onion and milk; row 3"))
    for token in text("row 1: red apple and milk; row 2: RED onion an"):
        lookup.append(token)
    assert shown(lookup.draft(14)) == "d milk; row 3"


def test_the_end_of_an_earlier_answer_is_no_miss():
    earlier = past("one two three")
    lookup = Lookup(text("say: one t"), past=earlier)
    for token in text("wo three and four"):
        lookup.append(token)
    assert earlier.answers.estimate_chance(12) > Trust().estimate_chance(12)


def test_what_is_learnt_about_earlier_answers_stays_for_the_next_text():
    earlier = past(*(f"the same beginning and then {i}{i}{i}{i}" for i in range(8)))
    for i in range(8):
        lookup = Lookup(text("the same"), past=earlier)
        for token in text(f" beginning and then {i + 1}"):
            lookup.append(token)
    assert (
        Lookup(text("the same"), past=earlier).estimate_chances(1)[0]
        > Lookup(text("the same the same")).estimate_chances(1)[0]
    )


@pytest.mark.parametrize("n_answers", [0, 1, 40])
def test_drafts_from_earlier_answers_stand_in_one_of_them(n_answers):
    rng = random.Random(n_answers)
    answers = [[rng.randrange(5) for _ in range(rng.randrange(40))] for _ in range(n_answers)]
    earlier = Past(N_GRAM)
    for answer in answers:
        earlier.add(answer)
    for _ in range(100):
        lookup = Lookup([rng.randrange(5) for _ in range(rng.randrange(4))], past=earlier)
        for _ in range(30):
            draft = lookup.draft(3)
            if draft and lookup._text is not lookup.tokens:
                assert any(draft == answer[i : i + len(draft)] for answer in answers for i in range(len(answer)))
            lookup.append(rng.randrange(5))


# ---- trust -------------------------------------------------------------------------------------------------------


def test_chances_fall_with_each_token_and_end_where_hardly_any_is_left():
    lookup = Lookup(text("abcdefghijklmnopqrstuvwxyz abcde"))
    chances = lookup.estimate_chances(50)
    assert chances == sorted(chances, reverse=True) and 0 < chances[-1] < chances[0] < 1
    assert len(lookup.estimate_chances(3)) == 3


def test_a_text_that_repeats_is_trusted_more_and_one_that_does_not_less():
    past = text("the quick brown fox jumps over the lazy dog and runs away. ")
    faithful, fickle = Lookup(past), Lookup(past)
    for i, token in enumerate(past):
        faithful.append(token)
        fickle.append(token if i % 4 else 1000 + i)
    assert faithful.estimate_chances(1)[0] > 0.9
    chance = fickle._past.text.estimate_chance(N_GRAM)
    assert chance < Trust().estimate_chance(N_GRAM), "three equal tokens were always followed by another one"


@pytest.mark.parametrize(("n_matched", "n_misses"), [(12, 9), (20, 18), (40, 30), (MAX_MATCH + 5, 45)])
def test_trust_follows_the_latest_outcomes(n_matched: int, n_misses: int):
    """The longer the match, the rarer a miss, and the more of them it takes."""
    trust = Trust()
    for is_hit in [True] * 50 + [False] * n_misses:
        trust.note(n_matched, is_hit)
    assert trust.estimate_chance(n_matched) < 0.5 < Trust().estimate_chance(n_matched)
    for _ in range(3 * n_misses):
        trust.note(n_matched, True)
    assert trust.estimate_chance(n_matched) > 0.7


def test_a_long_copy_is_trusted_for_many_tokens():
    past = [*range(1000, 1200)]
    lookup = Lookup([*past, *past[:3]])
    lengths = []
    for token in past[3:]:
        lengths.append(sum(chance > 0.5 for chance in lookup.estimate_chances(127)))
        lookup.append(token)
    assert lengths[0] < 5 and lengths[30] < 40 < lengths[80] < lengths[150]


def test_a_draft_model_is_judged_by_the_tokens_up_to_the_first_wrong_one():
    trust = ModelTrust()
    for _ in range(30):
        trust.note(8, 8)
    assert trust.chance > 0.95
    for _ in range(30):
        trust.note(8, 0)
    assert trust.chance < 0.3


def test_a_draft_model_that_does_not_pay_is_tried_ever_more_rarely():
    trust = ModelTrust()
    tries = [step for step in range(2000) if trust.is_time_to_explore()]
    gaps = [b - a for a, b in zip(tries, tries[1:])]
    assert 2 <= len(tries) <= 5 and gaps == sorted(gaps) and gaps[0] < gaps[-1]
