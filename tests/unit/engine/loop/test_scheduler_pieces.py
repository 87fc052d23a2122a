"""Pieces for no waiting reader are kept and joined; everything else is sent with the step that makes it."""

from __future__ import annotations

from server.engine.loop import scheduler
from server.engine.seam.task import Failure, Piece, SamplingParams, TokenProbs
from tests.fakes import FakeBackend
from tests.unit.engine.driving import Clock, Driver, alone


def piece(id: int, *tokens: int) -> Piece:
    return Piece(id, tokens, bytes(tokens).decode(), tuple(TokenProbs(token, 1.0, 0.0, (), ()) for token in tokens))


def test_pieces_of_a_task_become_one_and_keep_their_order():
    events = [piece(1, 97), piece(2, 98), piece(1, 99, 100), piece(2, 101)]
    assert scheduler.join_pieces(events) == (piece(1, 97, 99, 100), piece(2, 98, 101))


def test_nothing_is_joined_over_another_event_of_the_task():
    end = Failure(1, 500, "made up")
    assert scheduler.join_pieces([piece(1, 97), end, piece(1, 98)]) == (piece(1, 97), end, piece(1, 98))


def test_without_a_stream_pieces_come_a_few_times_a_second_and_at_the_end():
    clock = Clock()
    d = Driver(FakeBackend(), clock)
    task = d.post("hello", n_predict=100, stream=False, sampling=SamplingParams(temperature=0.0, n_probs=2))
    while d.unfinished:
        clock.now += 0.01
        d.step()
    outcome = d.outcomes[task]
    assert d.text(task) == alone("hello", 100) and len(outcome.tokens) == 100
    assert [probs.token for piece in outcome.pieces for probs in piece.probs] == outcome.tokens
    assert 8 <= sum(any(isinstance(event, Piece) for event in frame.events) for frame in d.frames) <= 14


def test_tokens_of_streams_are_sent_together_within_the_interval_and_told_one_by_one():
    clock = Clock()
    d = Driver(FakeBackend(), clock, stream_interval_s=0.016)
    task = d.post("hello", n_predict=40)
    times = []
    while d.unfinished:
        clock.now += 0.004
        n = len(d.frames)
        d.step()
        times += [clock.now] * any(isinstance(event, Piece) for frame in d.frames[n:] for event in frame.events)
    assert d.text(task) == alone("hello", 40)
    assert {len(piece.tokens) for piece in d.outcomes[task].pieces[:-1]} == {1}  # the slot is free at the end
    assert 10 <= len(times) <= 16
    assert max(b - a for a, b in zip(times, times[1:])) <= 0.0161


def test_slow_steps_are_told_at_once_whatever_the_interval():
    clock = Clock()
    d = Driver(FakeBackend(), clock, stream_interval_s=0.016)
    d.post("hello", n_predict=20)
    d.step()
    for _ in range(10):
        clock.now += 0.02
        n = len(d.frames)
        d.step()
        assert any(isinstance(event, Piece) for frame in d.frames[n:] for event in frame.events)


def test_one_stream_among_others_gets_its_tokens_at_once():
    d = Driver(FakeBackend(n_slots=2))
    d.post("hello", n_predict=100, stream=False)
    d.post("other", n_predict=100)
    d.step(3)
    before = len(d.frames)
    d.step(5)
    assert len(d.frames) - before == 5


def test_what_was_kept_comes_before_the_end_of_a_cancelled_neighbour():
    d = Driver(FakeBackend(n_slots=2))
    kept, cancelled = (d.post(text, n_predict=50, stream=False) for text in ("hello", "other"))
    d.step(5)
    d.cancel(cancelled)
    d.step_until(lambda: d.outcomes[kept].ends)
    assert d.text(kept) == alone("hello", 50)


def test_the_loop_leaves_nothing_behind():
    d = Driver(FakeBackend(n_slots=2))
    tasks = [d.post(text, n_predict=30, stream=False) for text in ("one", "two", "three")]
    d.run()
    for text, task in zip(("one", "two", "three"), tasks):
        assert d.text(task) == alone(text, 30)
