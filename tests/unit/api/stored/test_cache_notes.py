"""Notes about the prompt cache: separate for each owner, bounded, and when they lead to a hint."""

from __future__ import annotations

import threading
from typing import Any

from server.api.stored.cache_notes import MAX_NOTES, MAX_OWNERS, CacheNotes


def note(
    number: int, field: str | None = None, position: int = 30, lost: int = 100, model: str = "m"
) -> dict[str, Any]:
    found = field and {
        "position": position,
        "message": 0,
        "role": "system",
        "field": field,
        "before": "Today is ",
        "prompt": [f"day{number}"],
        "cached": ["another"],
        "rows_lost": lost,
        "cost_ms": lost / 10,
    }
    return {
        "time": 1.0,
        "id": str(number),
        "path": "/v1/chat/completions",
        "model": model,
        "prompt_n": 100,
        "cache_n": 30,
        "cache": {"source": "slot", "reason": None, "first_difference": found},
    }


def report(*notes: dict[str, Any], **query: str) -> dict[str, Any]:
    register = CacheNotes()
    for one in notes:
        register.add("me", one)
    return register.report("me", **query)


def test_an_owner_gets_its_own_requests_with_the_last_one_first():
    register = CacheNotes()
    assert register.report("me") == {
        "sums": {"requests": 0, "prompt_n": 0, "cache_n": 0, "rows_lost": 0, "cost_ms": 0},
        "hints": [],
        "requests": [],
    }
    register.add("me", note(1, "messages[0].content"))
    register.add("you", note(2, "messages[0].content"))
    register.add("me", note(3))
    found = register.report("me")
    assert [one["id"] for one in found["requests"]] == ["3", "1"]
    assert found["sums"] == {"requests": 2, "prompt_n": 200, "cache_n": 60, "rows_lost": 100, "cost_ms": 10.0}
    assert [one["id"] for one in register.report("you")["requests"]] == ["2"]


def test_only_the_latest_are_remembered():
    register = CacheNotes()
    for i in range(MAX_NOTES + 7):
        register.add("me", note(i))
    ids = [one["id"] for one in register.report("me")["requests"]]
    assert len(ids) == MAX_NOTES and ids[0] == str(MAX_NOTES + 6)
    for i in range(MAX_OWNERS - 1):
        register.add(f"other {i}", note(0))
    register.add("me", note(1))
    register.add("one more", note(0))
    assert register.report("me")["requests"] and not register.report("other 0")["requests"]


def test_a_place_in_which_most_requests_differ_is_a_hint():
    notes = [note(0), note(1), *(note(i, "messages[0].content") for i in range(2, 5))]
    [hint] = report(*notes)["hints"]
    assert hint == {
        "model": "m",
        "field": "messages[0].content",
        "message": 0,
        "role": "system",
        "position": 30,
        "before": "Today is ",
        "prompt": ["day4"],
        "cached": ["another"],
        "requests": 3,
        "of": 5,
        "rows_lost": 300,
        "cost_ms": 30.0,
    }


def test_no_hint_without_three_of_them_or_in_different_places_or_where_nothing_is_lost():
    place = "messages[0].content"
    assert report(note(0, place), note(1, place))["hints"] == []
    assert report(*(note(i) for i in range(3)), *(note(i, place) for i in range(3)))["hints"] == []
    assert report(*(note(i, place, position=i) for i in range(6)))["hints"] == []
    assert report(*(note(i, place, lost=0) for i in range(6)))["hints"] == []
    assert report(*(note(i, place, model=f"m{i % 3}") for i in range(6)))["hints"] == []


def test_the_most_expensive_place_comes_first_and_models_are_kept_apart():
    cheap, dear = [note(i, "prompt", model="a") for i in range(3)], [note(i, "prompt", lost=900) for i in range(3)]
    found = report(*cheap, *dear)
    assert [hint["model"] for hint in found["hints"]] == ["m", "a"]
    found = report(*cheap, *dear, model="a")
    assert [hint["model"] for hint in found["hints"]] == ["a"] and found["sums"]["requests"] == 3


def test_many_threads_may_add_and_look():
    register = CacheNotes()

    def work(number: int) -> None:
        for i in range(300):
            register.add(f"owner {(i + number) % 150}", note(i))
            register.report(f"owner {i % 150}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(bool(register.report(f"owner {i}")["requests"]) for i in range(150)) == MAX_OWNERS
