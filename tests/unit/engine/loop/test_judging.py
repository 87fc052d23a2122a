"""Attribution of answers in the background: streams keep most of their time, and other prompts come first."""

from __future__ import annotations

import pytest

from server.engine.seam.task import BACKGROUND
from tests.fakes import FakeBackend
from tests.unit.engine.driving import Clock, Driver, alone

JUDGED = {"n_predict": 0, "prompt_probs": 0, "probs_from": 10, "priority": BACKGROUND, "stream": False}


def driver(clock: Clock, n_slots: int = 2, n_batch: int = 512) -> Driver:
    """An engine whose rows take a millisecond each."""
    backend = FakeBackend(n_ctx=2048 * n_slots, n_slots=n_slots, n_batch=n_batch)
    decode = backend.decode

    def slow(spans):
        clock.now += sum(map(len, spans)) / 1e3
        return decode(spans)

    backend.decode = slow
    return Driver(backend, clock, max_stall_ms=100)


def times_beside(**fields: object) -> list[float]:
    """When a stream had its tokens, in seconds, beside a long prompt if there are fields for one."""
    clock = Clock()
    d = driver(clock)
    stream, times = d.post("tell me", n_predict=400), []
    d.step(20)
    if fields:
        d.post("x" * 1500, **fields)
    while not d.outcomes[stream].ends:
        n = len(d.outcomes[stream].tokens)
        d.step()
        times += [clock.now] * (len(d.outcomes[stream].tokens) - n)
    assert d.text(stream) == alone("tell me", 400)
    d.finish()
    return times


@pytest.mark.covers("P09")
def test_a_stream_keeps_most_of_its_rate_where_an_answer_is_judged():
    alone_s, judged, prompt = (
        times[-1] - times[0] for times in (times_beside(), times_beside(**JUDGED), times_beside(n_predict=1))
    )
    assert alone_s < judged <= 1.4 * alone_s < prompt
    times = times_beside(**JUDGED)
    assert max(after - before for before, after in zip(times, times[1:])) <= 0.11, "no pause is longer than a stall"


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
