"""Which models are unloaded so that another one fits: pure numbers."""

from __future__ import annotations

import random

import pytest

from server.models.room import Resident, Verdict, judge, subtract_rooms, without


def needs(n: int):
    """A model that takes so many bytes."""
    return lambda room, is_alone: {"memory": n} if room["memory"] >= n else None


def resident(name: str, n: int, t_used: float = 0.0, is_idle: bool = True) -> Resident:
    return Resident(name, {"memory": n}, t_used, is_idle)


def test_a_model_that_fits_sends_nobody_away():
    assert judge(needs(10), {"memory": 10}, [resident("a", 5)], 0) == Verdict({"memory": 10})


def test_who_was_unused_for_longest_leaves():
    others = [resident("new", 10, 2.0), resident("old", 10, 1.0)]
    assert judge(needs(10), {"memory": 5}, others, 0) == Verdict(leaving=("old",))


def test_nobody_leaves_who_is_of_no_help():
    others = [resident("small", 1, 1.0), resident("large", 10, 2.0)]
    assert judge(needs(10), {"memory": 2}, others, 0) == Verdict(leaving=("large",))


def test_idle_ones_leave_before_busy_ones():
    others = [resident("busy", 10, 1.0, is_idle=False), resident("idle", 10, 2.0)]
    assert judge(needs(10), {"memory": 0}, others, 0) == Verdict(leaving=("idle",))
    assert judge(needs(20), {"memory": 0}, others, 0) == Verdict(leaving=("idle", "busy"), busy=("busy",))


def test_what_can_never_fit_moves_nobody():
    assert judge(needs(100), {"memory": 5}, [resident("a", 10)], 0) == Verdict()


@pytest.mark.covers("D09")
def test_there_are_no_more_models_than_allowed():
    others = [resident("old", 1, 1.0), resident("new", 1, 2.0)]
    assert judge(needs(1), {"memory": 100}, others, 2) == Verdict(leaving=("old",))
    assert judge(needs(1), {"memory": 100}, others, 1) == Verdict(leaving=("old", "new"))
    assert judge(needs(1), {"memory": 100}, others, 3) == Verdict({"memory": 1})


def test_a_model_alone_makes_do_with_less():
    def modest(room, is_alone):
        return {"memory": 5} if room["memory"] >= (5 if is_alone else 10) else None

    assert judge(modest, {"memory": 6}, [], 0) == Verdict({"memory": 5})
    assert judge(modest, {"memory": 6}, [resident("a", 1)], 0) == Verdict(leaving=("a",))


def test_each_place_counts_for_itself():
    def both(room, is_alone):
        return {"memory": 1, "GPU": 5} if room["memory"] >= 1 and room["GPU"] >= 5 else None

    others = [Resident("host", {"memory": 9}, 1.0, True), Resident("gpu", {"memory": 1, "GPU": 5}, 2.0, True)]
    assert judge(both, {"memory": 3, "GPU": 0}, others, 0) == Verdict(leaving=("gpu",))


@pytest.mark.parametrize("seed", range(200))
@pytest.mark.covers("D09")
def test_whoever_leaves_is_needed_and_enough(seed):
    rng = random.Random(seed)
    others = [resident(str(i), rng.randrange(1, 9), rng.random(), rng.random() < 0.7) for i in range(rng.randrange(5))]
    need, free, n_most = rng.randrange(1, 25), rng.randrange(10), rng.randrange(4)
    verdict = judge(needs(need), {"memory": free}, others, n_most)
    by_name = {one.name: one for one in others}
    if verdict.takes is not None:
        assert need <= free and (not n_most or len(others) < n_most)
    elif not verdict.leaving:
        assert need > free + sum(one.takes["memory"] for one in others)
    else:
        leaving = [by_name[name] for name in verdict.leaving]
        room = without({"memory": free}, leaving)["memory"]
        assert room >= need and (not n_most or len(others) - len(leaving) < n_most)
        assert verdict.busy == tuple(one.name for one in leaving if not one.is_idle)
        for one in leaving:
            fits = room - one.takes["memory"] >= need
            assert not fits or (n_most and len(others) - len(leaving) + 1 >= n_most)


def test_what_others_have_is_missing():
    assert subtract_rooms({"memory": 10, "GPU": 3}, {"memory": 4}, {"memory": 1, "GPU": 1}) == {"memory": 5, "GPU": 2}
