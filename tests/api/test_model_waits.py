"""What clients are told while their model loads: events in streams, the place in the queue, states in lists."""

from __future__ import annotations

import json
import threading
import time

import pytest

from server.api import generation
from tests.api.conftest import PATIENCE
from tests.api.many import ManyApi
from tests.fakes import FakeBackend
from tests.support import wait_until
from tests.unit.models.fakes import FakeRequest

TEXT = {"prompt": "a", "max_tokens": 2}
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
ROUTES = {
    "/completion": TEXT,
    "/v1/completions": TEXT,
    "/v1/chat/completions": CHAT,
    "/infill": {"input_prefix": "a", "input_suffix": "b", "n_predict": 2},
}
SILENT = {
    "/v1/messages": CHAT,
    "/v1/responses": {"input": "a", "max_output_tokens": 16},
    "/api/chat": {"messages": CHAT["messages"], "options": {"num_predict": 2}},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Streams look up often, so tests take no longer than they must."""
    monkeypatch.setattr(generation, "LOOK_S", 0.01)


@pytest.fixture
def make_many():
    """Servers that end with the test; the first model's loading waits for its gate."""
    made: list[ManyApi] = []

    def make(*names: str, **options: object) -> ManyApi:
        api = ManyApi(**options, **dict.fromkeys(names or ("first", "second", "third"), FakeBackend))
        api.starter.gates["first"] = threading.Event()
        made.append(api.start())
        return api

    yield make
    for api in made:
        api.stop()


class Reading:
    """A streamed request whose events come one by one."""

    def __init__(self, api: ManyApi, path: str, body: dict, headers: bytes = b"") -> None:
        data = json.dumps({"model": "first", **body, "stream": True}).encode()
        self.sock = api.connect()
        self.sock.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%bContent-Length: %d\r\n\r\n%b"
            % (path.encode(), headers, len(data), data)
        )
        self.data = b""

    def until(self, mark: bytes) -> bytes:
        """Read until `mark` has come, or the end."""
        while mark not in self.data and (more := self.sock.recv(1 << 16)):
            self.data += more
        assert mark in self.data, self.data
        return self.data

    def rest(self) -> bytes:
        """Read to the end."""
        while more := self.sock.recv(1 << 16):
            self.data += more
        return self.data

    @property
    def events(self) -> list[dict]:
        """All objects so far."""
        lines = [line.removeprefix("data: ") for line in self.data.decode().splitlines() if line.startswith("data: {")]
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.covers("D04")
def test_a_stream_is_told_how_far_its_model_is_and_then_its_answer(make_many, path):
    api = make_many()
    reading = Reading(api, path, {**ROUTES[path], "return_progress": True})
    reading.until(b'"progress":0.5')
    assert b"200 OK" in reading.data and b"X-Queue-Position: 1\r\n" in reading.data
    told = [event["load_progress"] for event in reading.events]
    assert told[-1]["time_ms"] > 0 and "queue_position" not in told[-1]
    api.starter.gates["first"].set()
    assert b"load_progress" not in reading.rest().partition(b'"progress":0.5')[2]
    events = reading.events
    n_told = len(told)
    if path == "/infill":  # whose vocabulary has no such tokens: that is only known now
        assert events[-1]["error"]["code"] == 501
        return
    assert any("prompt_progress" in event for event in events[n_told:]) and len(events) > n_told + 2
    if path.startswith("/v1"):
        assert len({event["id"] for event in events}) == len({event["created"] for event in events}) == 1
        assert len({event["object"] for event in events}) == 1 and events[0]["model"] == "first"
        assert reading.data.rstrip(b"0\r\n").endswith(b"data: [DONE]")
    else:
        assert events[0]["content"] == "" and events[-1]["stop"] is True


@pytest.mark.parametrize("path", [*ROUTES, *SILENT])
def test_a_stream_that_didnt_ask_for_it_begins_with_its_answer(make_many, path):
    api = make_many()
    fields = {"return_progress": True} if path in SILENT else {}
    reading = Reading(api, path, {**ROUTES, **SILENT}[path] | fields)
    api.until(first="loading")
    api.starter.gates["first"].set()
    reading.rest()
    assert b"load_progress" not in reading.data and (b"X-Queue-Position: 1\r\n" in reading.data or path == "/infill")


@pytest.mark.parametrize("stream", [True, False])
def test_ollamas_load_duration_contains_the_load(make_many, monkeypatch, stream):
    api, clock, hour = make_many(), time.monotonic_ns, 3600 * 10**9
    api.starter.gates["first"].set()
    take = api.models.take

    def take_an_hour(*args: object):
        model = take(*args)
        monkeypatch.setattr(time, "monotonic_ns", lambda: clock() + hour)
        return model

    monkeypatch.setattr(api.models, "take", take_an_hour)
    answer = api.post("/api/chat", {"model": "first", "stream": stream, **SILENT["/api/chat"]})
    last = json.loads(answer.body.splitlines()[-1])
    assert last["total_duration"] >= last["load_duration"] > hour


def test_a_model_that_is_there_has_no_such_events(make_many):
    api = make_many()
    api.starter.gates["first"].set()
    assert api.say("first").headers["x-queue-position"] == "1"
    reading = Reading(api, "/completion", {**TEXT, "return_progress": True})
    assert b"load_progress" not in reading.rest() and b"X-Queue-Position: 0\r\n" in reading.data


@pytest.mark.covers("D04")
def test_who_waits_for_room_has_a_place(make_many):
    """One model is at work, two wait for its room."""
    api = make_many(room=1)
    api.starter.gates["first"].set()
    api.models.get("first", request := FakeRequest())
    second = Reading(api, "/completion", {**TEXT, "model": "second", "return_progress": True})
    second.until(b'"queue_position":1')
    third = Reading(api, "/v1/chat/completions", {**CHAT, "model": "third", "return_progress": True})
    third.until(b'"queue_position":2')
    assert b"X-Queue-Position: 1\r\n" in second.data and b"X-Queue-Position: 2\r\n" in third.data
    status = {one["id"]: one["status"] for one in api.get("/models").json()["data"]}
    assert status["second"] == {"value": "loading", "progress": 0.0, "queue_position": 1}
    assert status["third"]["queue_position"] == 2 and "queue_position" not in status["first"]
    request.end()
    assert b'"stop":true' in second.rest()
    assert b"[DONE]" in third.rest()


@pytest.mark.parametrize("path", ["/completion", "/v1/chat/completions"])
def test_a_load_that_fails_ends_the_stream_with_the_reason(make_many, path):
    api = make_many()
    reading = Reading(api, path, {**ROUTES[path], "return_progress": True})
    reading.until(b"load_progress")
    api.post("/models/unload", {"model": "first"})
    reading.rest()
    assert reading.events[-1]["error"]["code"] == 503
    assert "unloaded before it was loaded" in reading.events[-1]["error"]["message"]
    assert api.states()["first"] == "unloaded"


def test_a_load_that_fails_at_once_is_an_ordinary_error(make_many, monkeypatch):
    monkeypatch.setattr(generation, "LOOK_S", PATIENCE)
    api = make_many()
    api.starter.faults["first"] = "first.gguf: the file ends in the middle"
    answer = api.say("first", stream=True, return_progress=True)
    assert answer.status == 500 and "ends in the middle" in answer.error["message"]


def test_what_is_wrong_with_a_request_is_told_when_its_model_is_there(make_many):
    api = make_many()
    reading = Reading(api, "/completion", {**TEXT, "return_progress": True, "temperature": "hot"})
    reading.until(b"load_progress")
    api.starter.gates["first"].set()
    reading.rest()
    assert reading.events[-1]["error"]["code"] == 400 and reading.events[-1]["stop"] is True
    assert api.models.entries[0].n_leases == 0


@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_client_that_leaves_is_forgotten(make_many, is_loaded):
    api = make_many()
    reading = Reading(api, "/completion", {**TEXT, "max_tokens": 10000, "return_progress": True})
    reading.until(b"load_progress")
    if is_loaded:
        api.starter.gates["first"].set()
        reading.until(b'"content":"')
    reading.sock.close()
    wait_until(lambda: api.server.n_connections == 0, "its connection to end", PATIENCE)
    entry = api.models.entries[0]
    wait_until(lambda: not entry.n_leases and not (entry.load and entry.load.tickets), "its ticket to go", PATIENCE)


def test_a_stream_that_can_be_taken_up_again_waits_without_its_client(make_many):
    api = make_many()
    reading = Reading(api, "/completion", {**TEXT, "return_progress": True}, b"X-Conversation-Id: c\r\n")
    reading.until(b"load_progress")
    reading.sock.close()
    wait_until(lambda: api.server.n_connections == 0, "its connection to end", PATIENCE)
    api.starter.gates["first"].set()
    data = api.send("GET", "/v1/stream?conv_id=c").body
    assert b"load_progress" in data and b'"stop":true' in data
    wait_until(lambda: api.models.entries[0].n_leases == 0, "its model to be given back", PATIENCE)


def test_a_stream_that_is_stopped_while_its_model_loads_ends(make_many):
    api = make_many()
    reading = Reading(api, "/completion", {**TEXT, "return_progress": True}, b"X-Conversation-Id: c\r\n")
    reading.until(b"load_progress")
    assert api.send("DELETE", "/v1/stream?conv_id=c").status == 204
    try:
        reading.rest()
    except ConnectionError:  # it has no proper end
        pass
    assert b'"stop":true' not in reading.data
    wait_until(lambda: not api.models.entries[0].load.tickets, "nobody to wait", PATIENCE)
