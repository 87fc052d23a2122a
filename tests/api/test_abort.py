"""Ending a request from outside: POST /v1/abort by id, and a time limit in the request."""

from __future__ import annotations

import json
import threading

import pytest

from tests.api.conftest import PATIENCE, Answer, Api
from tests.fakes import FakeBackend
from tests.support import wait_until

ENDLESS = {"prompt": "a text without an end", "n_predict": -1, "cache_prompt": False}
CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}


@pytest.fixture
def api(make_api) -> Api:
    """One slot whose texts never end by themselves."""
    return make_api(FakeBackend(n_ctx=256, n_slots=1, n_batch=32), shift_context=True).start()


class Asking:
    """A request on a thread of its own; `answer()` waits for what came of it."""

    def __init__(self, api: Api, path: str, body: dict, **headers: str) -> None:
        self._answers: list[Answer] = []
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self._thread = threading.Thread(
            target=lambda: self._answers.append(api.send("POST", path, body, names)), daemon=True
        )
        self._thread.start()

    def answer(self) -> Answer:
        self._thread.join(PATIENCE)
        assert self._answers, "no answer came"
        return self._answers[0]


def abort(api: Api, id_: object, **headers: str) -> bool:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = api.send("POST", "/v1/abort", {"id": id_}, names)
    assert answer.status == 200 and answer.json()["id"] == id_, answer
    return answer.json()["stopped"]


def has_said(api: Api, n: int = 5) -> None:
    wait_until(lambda: api.backend.samplers and len(api.backend.samplers[-1].accepted) > n, "text", PATIENCE)


# ---- abort -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/abort", "/abort"])
def test_a_running_request_ends_with_the_text_so_far(api, path):
    asking = Asking(api, "/completion", ENDLESS, X_Request_Id="mine")
    has_said(api)
    assert api.send("POST", path, {"id": "mine"}).json() == {"id": "mine", "stopped": True}
    answer = asking.answer()
    result = answer.json()
    assert answer.status == 200 and answer.headers["x-request-id"] == "mine"
    assert (result["stop"], result["stop_type"], result["stopped_limit"]) == (True, "abort", False)
    assert len(result["content"]) == result["tokens_predicted"] > 0
    assert abort(api, "mine") is False, "it has ended"


def test_a_stream_ends_as_streams_do(api):
    asking = Asking(api, "/completion", {**ENDLESS, "stream": True}, X_Request_Id="mine")
    has_said(api)
    assert abort(api, "mine")
    last = asking.answer().events()[-1]
    assert (last["stop"], last["stop_type"]) == (True, "abort")


def test_a_chat_is_found_by_the_id_of_its_answer(api):
    asked = json.dumps({**CHAT, "stream": True}).encode()
    with api.connect() as sock, sock.makefile("rb") as lines:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n" % len(asked) + asked
        )
        first = next(json.loads(line[6:]) for line in lines if line.startswith(b"data: "))
        assert abort(api, first["id"])
        events = [line[6:].strip() for line in lines if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    assert json.loads(events[-2])["choices"][0]["finish_reason"] == "stop"


def test_a_waiting_request_ends_empty_and_is_never_started(api):
    running = Asking(api, "/completion", ENDLESS, X_Request_Id="first")
    api.wait_for(1)
    waiting = Asking(api, "/completion", ENDLESS, X_Request_Id="second")
    api.wait_for(1, 1)
    assert abort(api, "second")
    result = waiting.answer().json()
    assert (result["content"], result["stop_type"], result["tokens_predicted"]) == ("", "abort", 0)
    assert len(api.backend.samplers) == 1
    assert abort(api, "first") and running.answer().status == 200


def test_all_parts_of_a_request_end(make_api):
    api = make_api(FakeBackend(n_ctx=512, n_slots=2), shift_context=True).start()
    asking = Asking(api, "/completion", {**ENDLESS, "n_cmpl": 3}, X_Request_Id="three")
    api.wait_for(2, 1)
    assert abort(api, "three")
    assert [result["stop_type"] for result in asking.answer().json()] == ["abort"] * 3
    api.settle()
    assert api.is_idle()


@pytest.mark.parametrize("id_", ["", None, 5, ["x"]])
def test_what_is_no_id_is_refused(api, id_):
    answer = api.post("/v1/abort", {"id": id_})
    assert answer.status == 400 and answer.error["message"].startswith("id: ")


def test_an_unknown_id_stops_nothing(api):
    assert abort(api, "nobody") is False


def test_only_the_key_that_asked_may_abort(make_api):
    api = make_api(FakeBackend(n_ctx=256, n_slots=1), ("--api-key", "alice,bob"), shift_context=True).start()
    asking = Asking(api, "/completion", ENDLESS, X_Request_Id="r", X_Api_Key="alice")
    has_said(api)
    assert api.post("/v1/abort", {"id": "r"}).status == 401
    assert abort(api, "r", X_Api_Key="bob") is False
    assert api.client.snapshot.n_processing == 1
    assert abort(api, "r", X_Api_Key="alice") is True
    assert asking.answer().json()["stop_type"] == "abort"


def test_nothing_is_kept_of_requests_that_have_ended(api):
    for i in range(5):
        assert (
            api.send("POST", "/completion", {"prompt": "x", "n_predict": 1}, {"X-Request-Id": f"r{i % 2}"}).status
            == 200
        )
    assert not api.context.running._entries


# ---- time limits -------------------------------------------------------------------------------------------------


def test_a_request_whose_time_is_up_ends_with_the_text_so_far(api):
    result = api.complete("text", -1, t_max_ms=50)
    assert (result["stop_type"], result["stopped_limit"]) == ("limit", True)
    assert result["generation_settings"]["t_max_ms"] == 50
    assert len(result["content"]) == result["tokens_predicted"] > 0


def test_the_time_limit_counts_while_a_request_waits(api):
    running = Asking(api, "/completion", ENDLESS, X_Request_Id="first")
    api.wait_for(1)
    answer = api.post("/completion", {**ENDLESS, "t_max_ms": 1})
    assert answer.status == 504 and answer.error["type"] == "timeout_error"
    assert answer.error["message"].startswith("t_max_ms: ")
    assert abort(api, "first") and running.answer().status == 200


@pytest.mark.parametrize("value", [0, -1, 2**31 - 1, None])
def test_no_limit_or_a_distant_one_changes_nothing(api, value):
    assert api.complete("x", 4, t_max_ms=value)["tokens_predicted"] == 4
