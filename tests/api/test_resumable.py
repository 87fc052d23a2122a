"""Streams that are resumed after a broken connection: every byte comes once, and only the owner can resume."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
from urllib.parse import quote

import pytest

from server.api.stored import recordings
from tests.api.conftest import PATIENCE, Api
from tests.fakes import FakeBackend
from tests.support import wait_until

pytestmark = pytest.mark.covers("T21")

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
DIALECTS = {
    "/completion": {"prompt": "hello", "n_predict": 40},
    "/v1/completions": {"prompt": "hello", "max_tokens": 40},
    "/v1/chat/completions": {**CHAT, "max_tokens": 40, "n": 2},
    "/v1/messages": {**CHAT, "max_tokens": 40},
    "/v1/responses": {"input": "hello", "max_output_tokens": 40},
    "/api/chat": {**CHAT, "options": {"num_predict": 40}},
    "/api/generate": {"prompt": "hello", "options": {"num_predict": 40}},
}
LONG = {"prompt": "x", "n_predict": 300}


class Asking:
    """One connection with a stream on it."""

    def __init__(self, api: Api, method: str, path: str, body: object = None, **headers: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", api.server.port, timeout=PATIENCE)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(method, path, None if body is None else json.dumps(body).encode(), names)
        self.response = self._connection.getresponse()
        self.status = self.response.status

    def read(self, n: int | None = None) -> bytes:
        """So many bytes of the answer, or all; fewer at its end."""
        return self.response.read(n) if n != 0 else b""

    def vanish(self) -> None:
        self.response.close()
        self._connection.close()


def begin(api: Api, path: str = "/completion", body: dict = LONG, id_: str = "conv", **headers: str) -> Asking:
    return Asking(api, "POST", path, {**body, "stream": True}, X_Conversation_Id=id_, **headers)


def take_up(api: Api, n: int = 0, id_: str = "conv", **headers: str) -> Asking:
    return Asking(api, "GET", f"/v1/stream?conv_id={quote(id_)}&from={n}", **headers)


def lookup(api: Api, *ids: str, **headers: str) -> list[dict]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = api.send("POST", "/v1/streams/lookup", {"conversation_ids": list(ids)}, names)
    assert answer.status == 200, answer
    return answer.json()


def stop(api: Api, id_: str = "conv", **headers: str) -> int:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return api.send("DELETE", f"/v1/stream?conv_id={quote(id_)}", headers=names).status


def wait_for_end(api: Api, id_: str = "conv", **headers: str) -> dict:
    wait_until(lambda: lookup(api, id_, **headers)[0]["is_done"], "the end of the stream", PATIENCE)
    return lookup(api, id_, **headers)[0]


def text_of(data: bytes) -> str:
    """Of a native stream, which must be whole."""
    events = [json.loads(block.removeprefix("data: ")) for block in data.decode().split("\n\n")[:-1]]
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    return "".join(event["content"] for event in events)


@pytest.mark.parametrize("path", DIALECTS)
def test_every_byte_comes_once_however_often_the_connection_breaks(api, path):
    rng = random.Random(path)
    for i in range(4):
        id_ = f"{path} {i}"
        got, asking = b"", begin(api, path, DIALECTS[path], id_)
        kind = asking.response.headers["Content-Type"]
        assert asking.status == 200 and asking.response.headers["X-Conversation-Id"] == id_
        for _ in range(12):
            got += asking.read(rng.choice((0, 1, 2, 37, 400)))
            asking.vanish()
            asking = take_up(api, len(got), id_)
            assert asking.status == 200 and asking.response.headers["Content-Type"] == kind
        got += asking.read()
        assert take_up(api, 0, id_).read() == got
        assert lookup(api, id_)[0]["total_bytes"] == len(got)
        assert got.endswith(b"\n") and got.count(b"[DONE]") == (path in ("/v1/completions", "/v1/chat/completions"))
        assert stop(api, id_) == 204


def test_a_text_goes_on_without_its_client_and_is_the_one_that_was_asked_for(make_api):
    api = make_api(FakeBackend(n_ctx=8192, n_slots=2)).start()
    expected = api.post("/completion", LONG).json()["content"]
    api.backend.hold()
    asking = threading.Thread(target=lambda: begin(api).vanish(), daemon=True)
    asking.start()
    api.wait_for_decode()
    api.backend.let(2)
    asking.join(PATIENCE)
    api.wait_for_decode()
    assert lookup(api, "conv")[0]["is_done"] is False
    api.backend.go()
    wait_for_end(api)
    assert text_of(take_up(api).read()) == expected


def test_several_may_read_at_once_while_it_is_written(api):
    first = begin(api)
    others = api.at_the_same_time(*(lambda: take_up(api).read() for _ in range(3)))
    assert others == [first.read()] * 3
    stop(api)


def test_without_the_header_a_stream_is_not_kept_and_an_answer_as_a_whole_never_is(api):
    assert api.stream("x", 3)
    assert (
        api.send("POST", "/completion", {"prompt": "x", "n_predict": 1}, {"X-Conversation-Id": "whole"}).status == 200
    )
    assert lookup(api, "", "whole", "conv") == []


def test_another_key_s_streams_are_as_unknown_as_those_that_are_gone(make_api):
    api = make_api(FakeBackend(n_ctx=8192, n_slots=2), ("--api-key", "one,two")).start()
    mine, other = {"Authorization": "Bearer one"}, {"Authorization": "Bearer two"}
    begin(api, **mine).vanish()
    n = wait_for_end(api, **mine)["total_bytes"]
    assert take_up(api, **other).status == 404 and lookup(api, "conv", **other) == []
    assert stop(api, **other) == 204
    begin(api, body={"prompt": "y", "n_predict": 2}, **other).read()
    assert take_up(api).status == 401
    assert len(take_up(api, **mine).read()) == n
    assert text_of(take_up(api, **other).read()) != text_of(take_up(api, **mine).read())


# ---- ending them -------------------------------------------------------------------------------------------------


@pytest.fixture
def endless(make_api) -> Api:
    """A server whose texts never end by themselves."""
    return make_api(FakeBackend(n_ctx=1024, n_slots=4, n_batch=32), shift_context=True).start()


ENDLESS = {"prompt": "x", "n_predict": -1, "cache_prompt": False}


def test_a_stopped_text_ends_where_it_is_for_all_who_read_it_and_is_forgotten(endless):
    first = begin(endless, body=ENDLESS)
    late = take_up(endless, 0)
    assert first.read(500) and stop(endless) == 204
    first.read()
    events = late.read().decode().split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["stop_type"] == "abort"
    assert take_up(endless).status == 404 and stop(endless) == 204
    for asking in (first, late):
        asking.vanish()
    endless.settle()
    assert endless.is_idle()


@pytest.mark.parametrize("has_left", [True, False])
def test_abort_finds_it_by_the_request_s_id(endless, has_left):
    asking = begin(endless, body=ENDLESS, X_Request_Id="mine")
    asking.read(500)
    if has_left:
        asking.vanish()
    assert endless.post("/v1/abort", {"id": "mine"}).json()["stopped"] is True
    wait_for_end(endless)
    assert b'"stop_type":"abort"' in take_up(endless).read()


def test_the_next_request_of_a_conversation_ends_the_one_before(endless):
    first = begin(endless, body=ENDLESS)
    first.read(500)
    second = begin(endless, body={"prompt": "y", "n_predict": 3})
    assert len(text_of(second.read())) == 3
    assert b'"stop_type":"abort"' in first.read()
    assert text_of(take_up(endless).read()) and len(lookup(endless, "conv")) == 1


def test_the_end_of_the_server_is_the_end_of_the_texts_whether_somebody_reads_or_not(endless):
    attached, left = begin(endless, body=ENDLESS), begin(endless, body=ENDLESS, id_="other")
    left.vanish()
    attached.read(500)
    endless.stop()
    assert b'"stop_type":"limit"' in attached.read()
    endless.wait_for_threads()


def test_a_client_that_has_left_holds_no_connection(endless):
    begin(endless, body=ENDLESS).vanish()
    wait_until(lambda: endless.server.n_connections == 0, "the end of its connection", PATIENCE)
    assert lookup(endless, "conv")[0]["is_done"] is False
    stop(endless)


# ---- errors ------------------------------------------------------------------------------------------------------


def test_an_error_before_the_first_byte_is_the_answer_and_nothing_is_kept(api):
    asking = begin(api, body={"prompt": "x" * 9000})
    assert asking.status == 400 and b"exceeds the available context size" in asking.read()
    wait_until(lambda: take_up(api).status == 404, "it to be forgotten", PATIENCE)


@pytest.mark.parametrize("id_", ["x" * 513, "\u00fc"])
def test_an_id_that_can_not_be_one_is_refused(api, id_):
    headers = {"X-Conversation-Id": id_.encode("latin-1").decode("latin-1")}
    answer = api.send("POST", "/completion", {**LONG, "stream": True}, headers)
    assert answer.status == 400 and "X-Conversation-Id" in answer.error["message"]
    assert api.send("GET", f"/v1/stream?conv_id={quote(id_)}").status == 400


@pytest.mark.parametrize(
    "query", ["", "conv_id=", "from=3", "conv_id=conv&from=-1", "conv_id=conv&from=x", "conv_id=conv&from="]
)
def test_a_reader_without_an_id_or_with_a_wrong_place_is_refused(api, query):
    begin(api, body={"prompt": "x", "n_predict": 1}).read()
    assert api.send("GET", f"/v1/stream?{query}").status == 400
    assert api.send("GET", f"/v1/stream?conv_id=conv&from={10**6}").status == 400
    assert api.send("GET", "/v1/stream?conv_id=other").status == 404
    stop(api)


@pytest.mark.parametrize(
    "body", [[], {}, {"conversation_ids": "x"}, {"conversation_ids": [1]}, {"conversation_ids": ["x"] * 1001}]
)
def test_a_lookup_of_something_else_is_refused(api, body):
    assert api.send("POST", "/v1/streams/lookup", body).status == 400


def test_a_lookup_finds_the_names_that_a_conversation_has_with_several_models(api):
    for id_ in ("talk", "talk::one", "talk::two", "talks"):
        begin(api, body={"prompt": "x", "n_predict": 1}, id_=id_).read()
        wait_for_end(api, id_)
    assert [one["conversation_id"] for one in lookup(api, "talk")] == ["talk", "talk::one", "talk::two"]
    found = lookup(api, "talks")[0]
    assert found["is_done"] and 0 < found["started_at"] <= found["completed_at"]
    for id_ in ("talk", "talk::one", "talk::two", "talks"):
        stop(api, id_)


# ---- bounds ------------------------------------------------------------------------------------------------------


def test_a_key_has_so_many_and_those_that_are_complete_make_room(endless, monkeypatch):
    monkeypatch.setattr(recordings, "MAX_OF_KEY", 2)
    short = {"prompt": "x", "n_predict": 1}
    for id_ in "abc":
        begin(endless, body=short, id_=id_).read()
        wait_for_end(endless, id_)
    assert [one["conversation_id"] for one in lookup(endless, *"abc")] == ["b", "c"]
    for id_ in "de":
        begin(endless, body=ENDLESS, id_=id_).vanish()
    refused = begin(endless, body=short, id_="f")
    assert refused.status == 503 and "resumable streams" in refused.read().decode()
    again = begin(endless, body=ENDLESS, id_="e")  # its own place
    assert again.status == 200
    for id_ in "de":
        stop(endless, id_)


def test_the_beginning_of_a_long_stream_is_forgotten(api, monkeypatch):
    monkeypatch.setattr(recordings, "MAX_BYTES", 2000)
    with contextlib.suppress(
        http.client.RemoteDisconnected
    ):  # of a reader that falls so far behind before its first byte
        begin(api, body={"prompt": "x", "n_predict": 400}).vanish()
    n = wait_for_end(api)["total_bytes"]
    lost = take_up(api, 0)
    assert lost.status == 400 and b"Stream offset lost" in lost.read()
    end = take_up(api, n - 1500).read()
    assert len(end) == 1500 and b'"timings"' in end
    stop(api)
