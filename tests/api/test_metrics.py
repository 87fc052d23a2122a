"""GET /metrics: Prometheus' text format, the documented names, and consistent numbers."""

from __future__ import annotations

import re
import time

import pytest

from server.metrics import REASONS
from tests.api.conftest import PATIENCE
from tests.fakes import FakeBackend
from tests.support import wait_until

SAMPLE = re.compile(r'(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?:le|reason)="(?P<le>[^"]+)"\})? (?P<value>[0-9.eE+-]+)')


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
    assert 0 < after["llamacpp:sampler_seconds_total"] < after["llamacpp:step_seconds_sum"]
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


def refused(api) -> dict[str, float]:
    """Refused requests by reason; those that there were none of are left out."""
    prefix = "llamacpp:requests_refused_total "
    return {name.removeprefix(prefix): n for name, n in scrape(api).items() if name.startswith(prefix) and n}


def test_refused_requests_are_counted_by_reason(make_api):
    api = make_api(FakeBackend(n_ctx=64), ("--metrics", "--max-body", "1"), max_queue=1, shift_context=True).start()
    api.post("/completion", {"prompt": 1.5})
    api.post("/completion", {"prompt": "a", "temperature": "hot"})
    api.get("/nothing")
    api.post("/completion", {"prompt": "a" * (2 << 20)})
    api.post("/infill", {"input_prefix": "a"})
    api.post("/embedding", {"input": "a" * 100})
    assert refused(api) == {"invalid": 2, "not_found": 1, "too_large": 1, "unsupported": 1, "context": 1}
    with api.begin({"prompt": "endless"}), api.begin({"prompt": "endless"}):
        api.wait_for(n_processing=1, n_deferred=1)
        assert api.post("/completion", {"prompt": "c"}).status == 503
        assert refused(api)["queue_full"] == 1


def test_an_error_within_a_stream_counts_as_a_refusal(make_api):
    api = make_api(FakeBackend(n_ctx=64, n_batch=16), ("--metrics",)).start()
    api.backend.hold()
    with api.begin({"prompt": "a" * 40, "stream": True, "return_progress": True, "t_max_ms": 1}) as client:
        api.wait_for_decode()
        assert b"prompt_progress" in client.recv(65536)  # the stream has begun
        time.sleep(0.002)
        api.backend.go()
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            answer += client.recv(65536)
        assert b"limit of this request ended" in answer
    wait_until(lambda: refused(api) == {"time_limit": 1}, "the refusal to be counted", PATIENCE)


def test_reasons_of_refusals_are_fixed_and_all_are_shown(make_api):
    api = make_api(FakeBackend(), ("--metrics",)).start()
    api.get("/" + "x" * 50)
    shown = [name.split(" ")[1] for name in scrape(api) if name.startswith("llamacpp:requests_refused_total ")]
    assert shown == list(REASONS)


@pytest.mark.covers("E19", "B09")
def test_switched_off_endpoints_say_so(make_api):
    api = make_api(FakeBackend(), ("--no-slots",)).start()
    for path, word in (("/metrics", "metrics"), ("/slots", "slots")):
        answer = api.get(path)
        assert answer.status == 501 and answer.error["type"] == "not_supported_error"
        assert answer.error["message"].startswith(f"This server does not support {word} endpoint.")
    assert "slots" not in api.get("/health?include_slots").json()
