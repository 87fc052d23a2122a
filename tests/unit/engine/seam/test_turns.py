"""Engines that share cores compute one after the other: with a process for each, as locks belong to processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.engine.seam import turns
from server.engine.seam.config import EngineConfig
from server.engine.seam.turns import CORES, DOOR, LOADING, SHARED_S, WAIT_S, Turns, turns_of
from server.model_files import host_cpus
from tests.support import ROOT

OTHER = """
import sys
from server.engine.seam.turns import Turns

turns = Turns(sys.argv[1])
say = lambda word: print(word, flush=True)
say("there")
for line in sys.stdin:
    with turns.announce() if line == "load\\n" else turns:
        say("in")
        if not sys.stdin.readline():
            break
    say("out")
"""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Other:
    """Another engine's process, which does what it is told."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(path)], stdin=-1, stdout=-1, text=True, cwd=ROOT
        )
        self.read("there")

    def tell(self, word: str) -> None:
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def read(self, word: str) -> None:
        assert self._process.stdout.readline() == word + "\n"

    def enter(self, how: str = "compute") -> None:
        self.tell(how)
        self.read("in")

    def leave(self) -> None:
        self.tell("leave")
        self.read("out")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "turns"


@pytest.fixture
def other(path: Path) -> Iterator[Other]:
    other = Other(path)
    yield other
    other.kill()


def is_locked(turns_: Turns, place: int) -> bool:
    if not turns._lock(turns_._file, place):
        return True
    turns._unlock(turns_._file, place)
    return False


def wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        pass


@pytest.mark.covers("D19")
def test_an_engine_computes_when_the_other_has_ended_its_step(path, other):
    other.enter()
    steps = iter([lambda: None, other.leave])
    ours = Turns(str(path), sleep=lambda _: next(steps)())
    with ours:
        assert next(steps, None) is None, "it has waited until the other left"
        assert is_locked_for(other, ours)


def is_locked_for(other: Other, ours: Turns) -> bool:
    """Whether the other one has to wait, which it is left doing."""
    other.tell("compute")
    wait_until(lambda: is_locked(ours, DOOR))
    return True


def test_who_waits_is_before_who_has_just_had_the_cores(path, other):
    ours = Turns(str(path), owner=1)
    with ours:
        is_locked_for(other, ours)
    steps = iter([lambda: other.read("in"), other.leave])
    ours._sleep = lambda _: next(steps, lambda: None)()
    with ours:
        assert next(steps, None) is None, "the other one has had its turn between these two"


def test_a_killed_engine_keeps_nothing(path, other):
    other.enter()
    other.kill()
    clock = Clock()
    with Turns(str(path), clock, clock.sleep):
        assert clock.now == 0


def test_an_engine_that_hangs_costs_one_wait(path, other):
    clock = Clock()
    ours = Turns(str(path), clock, clock.sleep)
    other.enter()
    with ours:
        assert WAIT_S <= clock.now < WAIT_S + 0.1
    before = clock.now
    for _ in range(5):
        with ours:
            pass
    assert clock.now == before
    other.leave()
    with ours:
        assert ours._is_mine
    other.enter()
    with ours:
        assert clock.now >= before + WAIT_S, "and who is well again is waited for again"


def test_cores_count_as_shared_for_a_second_after_another_engines_turn(path, other):
    clock = Clock()
    clock.now = 100.0
    ours = Turns(str(path), clock)
    with ours:
        pass
    with ours:
        assert not ours.are_shared
    other.enter()
    other.leave()
    with ours:
        assert ours.are_shared
    clock.now += SHARED_S
    assert not ours.are_shared


@pytest.mark.covers("D19")
def test_a_load_is_known_to_the_others_until_it_ends(path, other):
    ours = Turns(str(path))
    assert not ours.is_loading
    other.enter("load")
    assert ours.is_loading
    other.leave()
    assert not ours.is_loading


def test_a_load_that_is_killed_is_over(path, other):
    ours = Turns(str(path))
    other.enter("load")
    other.kill()
    assert not ours.is_loading


def test_a_load_begins_between_two_steps_of_others(path, other):
    ours = Turns(str(path))
    with ours:
        other.tell("load")
        wait_until(lambda: is_locked(ours, LOADING) and is_locked(ours, DOOR))
    other.read("in")


def test_a_second_load_begins_unannounced(path, other):
    clock = Clock()
    ours = Turns(str(path), clock, clock.sleep)
    other.enter("load")
    with ours.announce():
        assert clock.now < 1
    assert ours.is_loading, "the first is still there"


def test_an_error_within_a_step_ends_the_turn(path):
    ours = Turns(str(path))
    with pytest.raises(ZeroDivisionError), ours:
        _ = 1 / 0
    assert not ours._is_mine


def test_a_file_that_was_cleaned_away_is_made_again(path):
    with Turns(str(path)):
        assert path.exists()


def test_an_engine_alone_has_no_file_and_never_waits(tmp_path):
    alone = Turns("")
    with alone, alone.announce():
        assert not alone.are_shared and not alone.is_loading
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("n_threads", "takes_turns"), [(2, False), (3, True), (4, True)])
def test_engines_that_have_cores_enough_for_two_take_no_turns(path, monkeypatch, n_threads, takes_turns):
    monkeypatch.setattr(host_cpus, "count_available", lambda: 4)
    turns_of(EngineConfig("a.gguf", "", n_threads=n_threads, turns=str(path)))
    assert path.exists() == takes_turns


def test_the_locks_are_different_ones(path, other):
    ours = Turns(str(path))
    other.enter()
    assert is_locked(ours, CORES) and not is_locked(ours, DOOR) and not is_locked(ours, LOADING)
