"""`engine.meter`: counters add up, histograms count each value in the right bucket."""

from __future__ import annotations

import pytest

from server.engine.loop.state import STALL_S, Histogram, Meter
from server.engine.seam.task import HISTOGRAM_BOUNDS
from tests.fakes import FakeBackend
from tests.unit.engine.driving import Clock, Driver


@pytest.mark.parametrize(("value", "bucket"), [(0, 0), (1, 0), (1.1, 1), (2, 1), (5, 2), (6, 3), (1e9, 3)])
def test_a_value_goes_into_the_first_bucket_that_holds_it(value, bucket):
    histogram = Histogram((1, 2, 5))
    histogram.observe(value)
    counts = [0] * 4
    counts[bucket] = 1
    assert histogram.list_values() == (*counts, value)


def test_bounds_are_sorted():
    assert all(list(bounds) == sorted(set(bounds)) for bounds in HISTOGRAM_BOUNDS.values())


def test_a_stall_is_a_long_step_while_somebody_reads_a_stream():
    meter = Meter()
    for seconds, is_generating in ((STALL_S / 2, True), (STALL_S * 2, False), (STALL_S * 2, True)):
        meter.step(seconds, is_generating)
    assert (meter.n_steps, meter.n_stalls) == (3, 1)


def n_values(histogram: tuple[float, ...]) -> float:
    return sum(histogram[:-1])


def test_a_task_is_measured_from_its_arrival_to_its_end():
    clock = Clock()
    d = Driver(FakeBackend(n_slots=1), clock)

    def tick(spans) -> int:
        clock.now += 0.5
        return 0

    d.backend.refuse = tick
    d.post("abcd", n_predict=3)
    d.post("abcd", n_predict=3)
    d.finish()
    snapshot = d.scheduler.snapshot()
    seen = {name: (n_values(values), round(values[-1], 6)) for name, values in snapshot.histograms.items()}
    assert seen["queue_wait_seconds"] == (2, 1.5), "the second waited for the three steps of the first"
    assert seen["time_to_first_token_seconds"] == (2, 0.5 + 2.0)
    assert seen["time_between_tokens_seconds"] == (4, 2.0)
    assert seen["step_seconds"] == (6, 3.0)
    assert seen["prompt_throughput_tokens_per_second"] == (2, 4 / 0.5 + 1 / 0.5)
    assert seen["predicted_throughput_tokens_per_second"] == (2, 2 * 2 / 1.0)
    assert (snapshot.prompt_ms, snapshot.predicted_ms) == (1000.0, 2000.0)
    assert (snapshot.n_prompt_tokens, snapshot.n_reused_tokens, snapshot.n_predicted_tokens) == (5, 3, 6)


def test_every_histogram_is_in_every_snapshot():
    histograms = Driver().scheduler.snapshot().histograms
    assert {name: len(values) for name, values in histograms.items()} == {
        name: len(bounds) + 2 for name, bounds in HISTOGRAM_BOUNDS.items()
    }
