"""GET /metrics: Prometheus' text format, the documents' names, and numbers that add up."""

from __future__ import annotations

import re

import pytest

from tests.fakes import FakeBackend

SAMPLE = re.compile(r'(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{le="(?P<le>[^"]+)"\})? (?P<value>[0-9.eE+-]+)')


def scrape(api) -> dict[str, float]:
    """All samples; buckets under `name le`. The format is checked line by line."""
    answer = api.get("/metrics")
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert answer.body.endswith(b"\n")
    samples, types = {}, {}
    for line in answer.body.decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types and kind in ("counter", "gauge", "histogram")
            types[name] = kind
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            base = re.sub("_(bucket|sum|count)$", "", match["name"])
            assert match["name"] in types or types[base] == "histogram", line
            samples[match["name"] + (" " + match["le"] if match["le"] else "")] = float(match["value"])
    return samples


@pytest.mark.covers("E11", "C37", "M1", "M2", "M3", "M4", "M5", "M6", "M7", "M8")
def test_the_documents_metrics_add_up(make_api):
    api = make_api(FakeBackend(n_ctx=100), ("--metrics",)).start()
    before = scrape(api)
    assert all(value == 0 for value in before.values())
    for _ in range(2):
        api.complete("some words", 6)
    after = scrape(api)
    assert after["llamacpp:prompt_tokens_total"] == 11 + 1
    assert after["llamacpp:tokens_predicted_total"] == 12
    assert after["llamacpp:prompt_tokens_seconds"] > 0 and after["llamacpp:predicted_tokens_seconds"] > 0
    assert after["llamacpp:kv_cache_tokens"] == 16 and after["llamacpp:kv_cache_usage_ratio"] == 0.16
    assert after["llamacpp:requests_processing"] == after["llamacpp:requests_deferred"] == 0


def test_requests_at_work_and_waiting_are_counted(make_api):
    api = make_api(FakeBackend(n_ctx=64), ("--metrics",), shift_context=True).start()
    clients = [api.begin({"prompt": "endless", "stream": True}) for _ in range(3)]
    api.wait_for(n_processing=1, n_deferred=2)
    now = scrape(api)
    assert (now["llamacpp:requests_processing"], now["llamacpp:requests_deferred"]) == (1, 2)
    for client in clients:
        client.close()


def test_histograms_are_cumulative_and_end_in_infinity(make_api):
    api = make_api(FakeBackend(), ("--metrics",)).start()
    for _ in range(3):
        api.complete("some words", 4)
    samples = scrape(api)
    for name, n in (
        ("queue_wait_seconds", 3),
        ("time_to_first_token_seconds", 3),
        ("time_between_tokens_seconds", 9),
        ("step_seconds", 12),
    ):
        buckets = [
            (float(key.split(" ")[1]), value)
            for key, value in samples.items()
            if key.startswith(f"llamacpp:{name}_bucket ")
        ]
        assert [bound for bound, _ in buckets] == sorted(bound for bound, _ in buckets)
        counts = [count for _, count in buckets]
        assert counts == sorted(counts) and buckets[-1] == (float("inf"), n)
        assert samples[f"llamacpp:{name}_count"] == n and samples[f"llamacpp:{name}_sum"] >= 0


@pytest.mark.covers("E19", "B09")
def test_switched_off_endpoints_say_so(make_api):
    api = make_api(FakeBackend(), ("--no-slots",)).start()
    for path, word in (("/metrics", "metrics"), ("/slots", "slots")):
        answer = api.get(path)
        assert answer.status == 501 and answer.error["type"] == "not_supported_error"
        assert answer.error["message"].startswith(f"This server does not support {word} endpoint.")
    assert "slots" not in api.get("/health?include_slots").json()
