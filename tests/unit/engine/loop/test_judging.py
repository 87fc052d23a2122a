"""Answers that are judged give way: to streams most of the time, to other prompts always."""

from __future__ import annotations

import pytest

from tests.fakes import FakeBackend
from tests.unit.engine.driving import Clock, Driver, alone

JUDGED = {"n_predict": 0, "prompt_probs": 0, "probs_from": 10, "priority": -100, "stream": False}


def driver(clock: Clock, n_slots: int = 2, n_batch: int = 512) -> Driver:
    """An engine whose rows take a millisecond each."""
    backend = FakeBackend(n_ctx=2048 * n_slots, n_slots=n_slots, n_batch=n_batch)
    decode = backend.decode

    def slow(spans):
        clock.now += sum(map(len, spans)) / 1e3
        return decode(spans)

    backend.decode = slow
    return Driver(backend, clock, max_stall_ms=100)


def longest_pause(**fields: object) -> float:
    """Of a stream beside a long prompt, in seconds, once the engine knows its own speed."""
    clock = Clock()
    d = driver(clock)
    stream, times = d.post("tell me", n_predict=120), []
    d.step(3)
    beside = d.post("x" * 1500, **fields)
    while not d.outcomes[stream].ends:
        n = len(d.outcomes[stream].tokens)
        d.step()
        times += [clock.now] * (len(d.outcomes[stream].tokens) - n)
    d.finish()
    assert d.text(stream) == alone("tell me", 120) and d.outcomes[beside].final
    return max(after - before for before, after in zip(times[3:], times[4:]))


@pytest.mark.covers("P09")
def test_a_stream_pauses_for_a_quarter_of_a_stall_where_an_answer_is_judged():
    assert longest_pause(**JUDGED) <= 0.03 < longest_pause(n_predict=1)


@pytest.mark.covers("P09")
def test_a_prompt_is_read_before_an_answer_is_judged():
    d = driver(Clock(), n_slots=2, n_batch=8)
    judged = d.post("y" * 40, **JUDGED)
    d.step()
    assert d.rows() == [(0, 8, False)]
    asked = d.post("x" * 40, n_predict=1)
    while not d.outcomes[asked].ends:
        d.step()
        assert {row[0] for row in d.rows()} == {1}
    d.finish()
    assert d.text(asked) == alone("x" * 40, 1) and d.outcomes[judged].final


@pytest.mark.parametrize("cuts, cut_at", [(((3, 9),), 20), (((3, 9), (12, 13), (20, 29)), 29), (((0, 5),), 39)])
def test_tokens_that_were_cut_out_are_not_seen_by_what_is_judged(cuts, cut_at):
    text = b"the small fox slept under the old tree !"
    d = driver(Clock())
    d.post(text.decode(), n_predict=4)
    d.finish()
    cut = d.post(text + b"and", n_predict=0, prompt_probs=0, probs_from=len(text), cuts=cuts, cut_at=cut_at)
    d.finish()
    left = bytes(one for i, one in enumerate(text) if not any(first <= i < last for first, last in cuts))
    shorter = d.post(left + b"and", n_predict=0, prompt_probs=0, probs_from=len(left))
    d.finish()
    seen, known = ([p for part in d.outcomes[one].judged for p in part.probs] for one in (cut, shorter))
    assert seen == known and len(seen) == 3
    again = d.post(text.decode(), n_predict=4)
    d.finish()
    assert d.text(again) == alone(text.decode(), 4)
