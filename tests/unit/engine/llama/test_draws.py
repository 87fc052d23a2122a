"""Sampling rows on several threads: each row once, and idle threads delay nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from server.engine.llama.draws import MAX_HELPERS, MIN_ROWS, Draws
from tests.fakes import PATIENCE_S


@pytest.fixture
def make() -> Iterator:
    made: list[Draws] = []

    def make(n_helpers: int) -> Draws:
        made.append(Draws(n_helpers))
        return made[-1]

    yield make
    for draws in made:
        draws.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("draw-")]


class Rows:
    """Counts draws by row, with the threads that made them."""

    def __init__(self) -> None:
        self.drawn: list[tuple[int, str]] = []

    def draw(self, row: int) -> None:
        self.drawn.append((row, threading.current_thread().name))

    def jobs(self, n: int) -> list:
        return [(self.draw, row) for row in range(n)]


@pytest.mark.parametrize("n_helpers", [1, 2, 3])
def test_each_row_is_drawn_once_whoever_draws(make, n_helpers):
    draws = make(n_helpers)
    for n in (MIN_ROWS, 7, 32) * 50:
        rows = Rows()
        draws.run(rows.jobs(n))
        assert sorted(row for row, _ in rows.drawn) == list(range(n))


def test_a_helper_helps(make):
    """The engine's thread is in the middle of a draw until somebody else has made another one."""
    has_helped = threading.Event()

    def draw(row: int) -> None:
        if threading.current_thread().name.startswith("draw-"):
            has_helped.set()
        assert has_helped.wait(PATIENCE_S)

    make(1).run([(draw, row) for row in range(MIN_ROWS)])
    assert has_helped.is_set()


def test_all_is_drawn_when_run_returns_also_by_helpers(make):
    """A helper that has begun is waited for."""
    helper_begins, may_end = threading.Event(), threading.Event()
    done: list[int] = []

    def draw(row: int) -> None:
        if threading.current_thread().name.startswith("draw-"):
            helper_begins.set()
            assert may_end.wait(PATIENCE_S)
        elif len(done) < MIN_ROWS - 2:
            assert helper_begins.wait(PATIENCE_S)
        else:
            may_end.set()  # the last one that the engine's thread makes
        done.append(row)

    make(1).run([(draw, row) for row in range(MIN_ROWS)])
    assert sorted(done) == list(range(MIN_ROWS))


def test_a_helper_that_comes_too_late_is_not_waited_for(make, monkeypatch):
    started: list[threading.Event] = []
    monkeypatch.setattr(Draws, "_help", lambda self: started[0].wait(PATIENCE_S))
    started.append(threading.Event())
    rows = Rows()
    make(1).run(rows.jobs(8))
    assert {name for _, name in rows.drawn} == {threading.current_thread().name}
    started[0].set()


@pytest.mark.parametrize(("n_helpers", "n_rows"), [(0, 32), (-1, 32), (2, MIN_ROWS - 1), (2, 0)])
def test_what_is_not_worth_it_is_left_to_whoever_asks(make, n_helpers, n_rows):
    rows = Rows()
    make(n_helpers).run(rows.jobs(n_rows))
    assert rows.drawn == []


def test_there_are_only_so_many_helpers(make):
    make(99).run(Rows().jobs(MIN_ROWS))
    assert sum(thread.name.startswith("draw-") for thread in threading.enumerate()) == MAX_HELPERS


def test_a_draw_that_fails_is_left_out_and_the_others_are_made(make):
    rows = Rows()

    def draw(row: int) -> None:
        if row % 2:
            raise ZeroDivisionError
        rows.draw(row)

    draws = make(2)
    for _ in range(20):
        rows.drawn.clear()
        draws.run([(draw, row) for row in range(10)])
        assert sorted(row for row, _ in rows.drawn) == [0, 2, 4, 6, 8]


def test_closed_twice_and_used_again_it_draws_nothing(make):
    draws, rows = make(1), Rows()
    draws.run(rows.jobs(MIN_ROWS))
    draws.close()
    draws.close()
    draws.run(rows.jobs(MIN_ROWS))
    assert len(rows.drawn) == MIN_ROWS
