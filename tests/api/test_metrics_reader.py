"""GET /metrics as read by Prometheus' own parser."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.engine.seam.task import HISTOGRAM_BOUNDS
from server.metrics import REASONS
from tests.api.conftest import Api
from tests.fakes import FakeBackend

# as in both documents: name, type
DOCUMENTED = {
    "prompt_tokens_total": "counter",
    "tokens_predicted_total": "counter",
    "prompt_tokens_seconds": "gauge",
    "predicted_tokens_seconds": "gauge",
    "kv_cache_usage_ratio": "gauge",
    "kv_cache_tokens": "gauge",
    "requests_processing": "gauge",
    "requests_deferred": "gauge",
}


@pytest.fixture(scope="module")
def families():
    """What the reader makes of a server that has answered something."""
    api = Api(FakeBackend(n_ctx=256, n_slots=2), ("--metrics",)).start()
    try:
        for n in (1, 5, 0, 9):
            api.complete("some words", n)
        api.settle()
        text = api.get("/metrics").body.decode()
    finally:
        api.stop()
    found = list(text_string_to_metric_families(text))
    assert len({family.name for family in found}) == len(found) == text.count("# TYPE ") == text.count("# HELP ")
    return {family.name: family for family in found}


@pytest.mark.covers("E11", "C37", "M1", "M2", "M3", "M4", "M5", "M6", "M7", "M8")
def test_the_documented_metrics_are_read_under_their_names(families):
    for name, kind in DOCUMENTED.items():
        family = families["llamacpp:" + name.removesuffix("_total")]  # the reader's way to name counters
        (sample,) = family.samples
        assert (family.type, sample.name, sample.labels) == (kind, "llamacpp:" + name, {})
        assert family.documentation and sample.value >= 0


def test_every_metric_has_a_type_a_help_and_no_labels_of_users(families):
    for family in families.values():
        assert family.type in ("counter", "gauge", "histogram") and family.documentation, family.name
        for sample in family.samples:
            assert set(sample.labels) <= {"le", "reason"}, "nothing grows with clients"
            assert sample.labels.get("reason", "invalid") in REASONS


def test_histograms_are_whole(families):
    for name, bounds in HISTOGRAM_BOUNDS.items():
        samples = families[f"llamacpp:{name}"].samples
        buckets = [(sample.labels["le"], sample.value) for sample in samples if sample.name.endswith("_bucket")]
        assert [float(bound) for bound, _ in buckets] == [*bounds, float("inf")]
        counts = [count for _, count in buckets]
        assert counts == sorted(counts)
        values = {sample.name.rpartition("_")[2]: sample.value for sample in samples}
        assert values["count"] == counts[-1] and values["sum"] >= 0
    assert families["llamacpp:queue_wait_seconds"].samples[-1].value == 4
    gaps = {sample.name: sample.value for sample in families["llamacpp:time_between_tokens_seconds"].samples}
    assert gaps["llamacpp:time_between_tokens_seconds_count"] == 4 + 8


def test_counters_say_what_was_done(families):
    values = {sample.name: sample.value for family in families.values() for sample in family.samples}
    assert values["llamacpp:tokens_predicted_total"] == 1 + 5 + 0 + 9
    assert values["llamacpp:prompt_tokens_total"] + values["llamacpp:prompt_tokens_reused_total"] == 4 * 11
    assert values["llamacpp:prompt_tokens_reused_total"] == 3 * 10
    assert values["llamacpp:n_decode_total"] >= 15
    assert 0 < values["llamacpp:kv_cache_usage_ratio"] == values["llamacpp:kv_cache_tokens"] / 256 < 1
