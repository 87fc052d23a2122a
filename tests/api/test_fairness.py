"""Limits for clients: the rate of requests, the length of the queue, and the errors that refused clients get."""

from __future__ import annotations

import json
import threading

import pytest

from server.options.parser import OptionError
from tests.api.conftest import Api
from tests.fakes import FakeBackend

BODY = {"prompt": "x", "n_predict": 1}
LONG = {"prompt": "x", "n_predict": -1, "stream": True}


def statuses(api: Api, n: int, headers: dict[str, str] | None = None, path: str = "/completion") -> list[int]:
    return [api.send("POST", path, BODY, headers).status for _ in range(n)]


# ---- rate limit --------------------------------------------------------------------------------------------------


def test_each_key_has_a_limit_of_its_own(make_api):
    api = make_api(None, ("--rate-limit", "3/h", "--api-key", "alice,bobby")).start()
    assert statuses(api, 4, {"X-Api-Key": "alice"}) == [200, 200, 200, 429]
    assert statuses(api, 4, {"Authorization": "Bearer bobby"}) == [200, 200, 200, 429]
    answer = api.send("POST", "/completion", BODY, {"X-Api-Key": "alice"})
    assert answer.error["type"] == "rate_limit_error" and 1000 < int(answer.headers["retry-after"]) <= 1200


def test_without_keys_an_address_has_it(make_api):
    api = make_api(None, ("--rate-limit", "2/h")).start()
    assert statuses(api, 3) == [200, 200, 429]
    assert statuses(api, 1, path="/tokenize") == [429]


def test_looking_and_ending_are_free(make_api):
    api = make_api(None, ("--rate-limit", "1/h")).start()
    assert statuses(api, 2) == [200, 429]
    assert [api.get(path).status for path in ("/health", "/props", "/slots", "/v1/models", "/")] == [200] * 5
    assert api.post("/v1/abort", {"id": "x"}).status == 200


def test_guessing_keys_is_limited_by_address_and_hurts_no_key(make_api):
    api = make_api(None, ("--rate-limit", "5/h", "--api-key", "alice")).start()
    assert [api.send("GET", "/props", None, {"X-Api-Key": f"guess {i}"}).status for i in range(7)] == [401] * 5 + [
        429
    ] * 2
    assert statuses(api, 2, {"X-Api-Key": "alice"}) == [200, 200]


def test_a_request_over_the_limit_costs_nothing_and_keeps_its_connection(make_api):
    api = make_api(None, ("--rate-limit", "1/h")).start()
    statuses(api, 1)
    n_started = len(api.backend.samplers)
    with api.connect() as sock, sock.makefile("rb") as answer:
        head = b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
        sock.sendall(head + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        text = answer.read()
    assert text.startswith(b"HTTP/1.1 429 ") and b"HTTP/1.1 200 " in text
    assert len(api.backend.samplers) == n_started


@pytest.mark.parametrize("text", ["x", "-1", "5/day", "1.5/s", "/s", "5/"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(OptionError, match="--rate-limit"):
        Api(argv=("--rate-limit", text))


def test_zero_is_no_limit(make_api):
    api = make_api(None, ("--rate-limit", "0/s")).start()
    assert statuses(api, 5) == [200] * 5


# ---- queue -------------------------------------------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_back(make_api):
    api = make_api(FakeBackend(n_ctx=256), ("--max-queue", "1"), shift_context=True, max_queue=1).start()
    clients = [api.begin(LONG)]
    api.wait_for(1, 0)
    clients.append(api.begin(LONG))
    api.wait_for(1, 1)
    answer = api.post("/completion", BODY)
    assert answer.status == 503 and answer.error["type"] == "unavailable_error"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    for client in clients:
        client.close()


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_says_how_long_the_queue_was(make_api, stream):
    api = make_api(FakeBackend(n_ctx=256), shift_context=True).start()
    assert api.post("/completion", {**BODY, "stream": stream}).headers["x-queue-position"] == "0"
    running = api.begin(LONG)
    api.wait_for(1, 0)
    waiting = api.begin(LONG)
    api.wait_for(1, 1)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(api.post("/completion", {**BODY, "stream": stream})))
    thread.start()
    api.wait_for(1, 2)
    running.close()
    waiting.close()
    thread.join()
    assert answers[0].status == 200 and answers[0].headers["x-queue-position"] == "2"


@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
def test_a_stream_with_progress_says_its_place_in_the_queue(make_api, path):
    api = make_api(FakeBackend(n_ctx=256), shift_context=True).start()
    running = api.begin(LONG)
    api.wait_for(1, 0)
    answers = []
    body = {"prompt": "x", "n_predict": 1, "max_tokens": 1, "stream": True, "return_progress": True}
    thread = threading.Thread(target=lambda: answers.append(api.post(path, body)))
    thread.start()
    api.wait_for(1, 1)
    running.close()
    thread.join()
    events = [line.removeprefix("data: ") for line in answers[0].body.decode().split("\n\n")]
    progress = [json.loads(event)["prompt_progress"] for event in events if '"prompt_progress"' in event]
    assert progress[0]["queue_position"] == 1
    assert "queue_position" not in progress[-1] and progress[-1]["total"] == progress[-1]["processed"]


@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
def test_the_priority_of_a_request_reaches_the_engine(make_api, monkeypatch, path):
    api = make_api(FakeBackend(n_ctx=256)).start()
    submitted, submit = [], api.client.submit
    monkeypatch.setattr(
        api.client, "submit", lambda *tasks, stream: (submitted.extend(tasks), submit(*tasks, stream=stream))[1]
    )
    assert api.post(path, {"prompt": "x", "n_predict": 1, "max_tokens": 1, "priority": 7}).status == 200
    assert [task.priority for task in submitted] == [7]
    assert api.post(path, {"prompt": "x", "priority": 101}).status == 400
