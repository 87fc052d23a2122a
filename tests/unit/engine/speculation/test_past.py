"""Earlier answers of each owner: what is kept, what is dropped, and that owners are separate."""

from __future__ import annotations

import pytest

from server.engine.speculation import past
from server.engine.speculation.past import OWNERS, Past, Pasts


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "PART", 100)
    monkeypatch.setattr(past, "ALL", 600)


def holds(kept: Past | None, answer: list[int]) -> bool:
    return kept is not None and any(
        part.tokens[i : i + len(answer)].tolist() == answer for part in kept.parts for i in range(len(part.tokens))
    )


def test_each_owner_has_only_its_own():
    pasts = Pasts(3)
    pasts.add("ann", [1, 2, 3, 4])
    pasts.add("bob", [5, 6, 7, 8])
    assert holds(pasts.of("ann"), [1, 2, 3, 4]) and not holds(pasts.of("ann"), [5, 6])
    assert holds(pasts.of("bob"), [5, 6, 7, 8]) and len(pasts.of("eve")) == 0


def test_the_oldest_answers_of_an_owner_are_forgotten_first(small):
    pasts = Pasts(3)
    for i in range(50):
        pasts.add("ann", [10 * i + k for k in range(10)])
        assert len(pasts) == len(pasts.of("ann")) <= 200
    kept = [i for i in range(50) if holds(pasts.of("ann"), [10 * i + k for k in range(10)])]
    assert kept == list(range(kept[0], 50)) and len(kept) >= 9


def test_of_an_answer_longer_than_the_bound_the_end_is_kept(small):
    pasts = Pasts(3)
    pasts.add("ann", list(range(1000)))
    assert len(pasts) <= 100 and holds(pasts.of("ann"), [997, 998, 999])


def test_the_owner_who_was_quiet_the_longest_is_forgotten_as_a_whole(small):
    pasts = Pasts(3)
    for owner in "abcdef":
        pasts.add(owner, list(range(90)))
    pasts.of("a")
    pasts.add("g", list(range(90)))
    assert len(pasts.of("a")) == 91 and len(pasts.of("b")) == 0 and len(pasts) <= 600


def test_many_owners_with_little_are_bounded_by_their_number():
    pasts = Pasts(3)
    for i in range(2 * OWNERS):
        pasts.add(str(i), [1])
    assert len(pasts) == 2 * OWNERS and len(pasts.of(str(OWNERS))) == 2
    assert len(pasts.of(str(OWNERS - 1))) == 0 and len(pasts) == 2 * OWNERS - 2


@pytest.mark.parametrize("n", [1, 2, 5])
def test_an_index_leads_to_all_earlier_places_the_latest_first(n):
    kept, answers = Past(n), [[7] * 4, [8, 7, 7, 7, 7, 7], [], [9]]
    for answer in answers:
        kept.add(answer)
    part = kept.parts[0]
    place, places = part.latest.get(hash((7,) * n), -1), []
    while place >= 0:
        assert part.tokens[place - n + 1 : place + 1].tolist() == [7] * n
        places.append(place)
        place = part.before[place]
    assert places == sorted(places, reverse=True) and len(places) == max(5 - n, 0) + max(6 - n, 0)
