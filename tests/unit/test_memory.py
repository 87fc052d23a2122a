"""The memory that requests hold: bounded, freed, and counted by each thread that works for a request."""

from __future__ import annotations

import threading

import pytest

from server import memory
from server.errors import ApiError
from server.memory import Budget, Share


@pytest.fixture
def budget():
    budget = Budget(100)
    yield budget
    memory.use(None)


def test_what_is_beyond_the_bound_is_refused_and_costs_nothing(budget):
    share = Share(budget)
    share.take(60)
    with pytest.raises(ApiError) as caught:
        Share(budget).take(41)
    assert (caught.value.status, caught.value.reason) == (503, "memory") and caught.value.headers["Retry-After"]
    assert budget.n_used == 60
    share.take(40)
    share.close()
    assert budget.n_used == 0


def test_nothing_is_counted_outside_of_requests_and_behind_their_ends(budget):
    memory.hold(10**12)
    share = Share(budget)
    memory.use(share)
    memory.hold(30)
    share.close()
    memory.hold(30)
    assert budget.n_used == 0


def test_bytes_that_another_thread_takes_at_the_end_are_given_back(budget):
    """The fake lock is where the other thread gets its turn: each time that the lock is free again."""

    class Lock:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            share._lock, mine = threading.Lock(), share._lock
            share.take(30)
            share._lock = mine

    share = Share(budget)
    share.take(20)
    share._lock = Lock()
    share.close()
    assert budget.n_used == 0


def test_a_block_gives_back_what_it_held_whatever_happens(budget):
    memory.use(Share(budget))
    with pytest.raises(KeyError), memory.keep_held(50):
        assert budget.n_used == 50
        raise KeyError
    with pytest.raises(ApiError), memory.keep_held(101):
        raise AssertionError("it must not get here")
    assert budget.n_used == 0


def test_an_answer_is_counted_even_where_there_is_no_room(budget):
    share = Share(budget)
    share.take(100)
    share.keep(250)
    assert budget.n_used == 250
    with pytest.raises(ApiError):
        Share(budget).take(1)
    share.give(0)
    share.close()
    assert budget.n_used == 0


def test_each_thread_works_for_its_own_request(budget):
    memory.use(Share(budget))
    seen = []
    thread = threading.Thread(target=lambda: seen.append(memory.get_current()))
    thread.start()
    thread.join()
    assert seen == [None] and memory.get_current() is not None
