"""The whole server with an engine in another process: what clients see when that process dies."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys

import pytest

from server.engine.client.supervisor import Limits, ProcessTransport
from server.engine.seam.config import EngineConfig
from tests.api.conftest import PATIENCE
from tests.engine_child import COMMAND, Orders
from tests.fakes import BOS, FakeBackend
from tests.support import wait_until
from tests.unit.engine.driving import alone

# as patient as the tests: on a busy machine an engine must not be taken for a hanging one
LIMITS = Limits(silence_s=PATIENCE, step_s=PATIENCE, beat_s=0.2, backoff_s=(0.0,), end_s=0.5)
KILL = signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL


@pytest.fixture
def serve(make_api):
    """A server over a process with these orders."""

    def start(orders: Orders, limits: Limits = LIMITS, argv: tuple[str, ...] = ()):
        config = EngineConfig(orders.text(), "", n_slots=orders.n_slots)
        api = make_api(
            FakeBackend(n_slots=orders.n_slots),
            ("--metrics", *argv),
            transport=ProcessTransport(config, COMMAND, limits),
        )
        return api.start()

    return start


def said(prompt: str, n: int) -> str:
    """The fake model's text for a prompt, which the server puts BOS before."""
    return alone([BOS, *prompt.encode()], n)


def metric(api, name: str) -> float:
    lines = api.get("/metrics").body.decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"llamacpp:{name} ")).split()[1])


def test_streams_and_plain_answers_go_on_over_a_death(serve, tmp_path):
    api = serve(Orders(lives_file=str(tmp_path / "lives"), do="abort", nth=12, lives=1, step_s=0.005))
    fields = {"n_predict": 60, "temperature": 0}
    streamed, plain, chat = api.at_the_same_time(
        lambda: api.stream("one", **fields),
        lambda: api.complete("two", **fields),
        lambda: api.post("/v1/completions", {"prompt": "three", "max_tokens": 60, "temperature": 0, "stream": True}),
    )
    assert "".join(event["content"] for event in streamed) == said("one", 60)
    assert plain["content"] == said("two", 60) and plain["tokens_predicted"] == 60
    chunks = [
        json.loads(line[6:])
        for line in chat.body.decode().split("\n\n")
        if line.startswith("data: ") and "[DONE]" not in line
    ]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == said("three", 60)
    assert metric(api, "engine_restarts_total") == 1 and metric(api, "tokens_predicted_total") == 180
    assert api.get("/health").json()["status"] == "ok"


def test_while_the_engine_is_away_health_says_so_and_requests_wait(serve, tmp_path):
    gate = tmp_path / "gate"
    api = serve(Orders(lives_file=str(tmp_path / "lives"), gate=str(gate)))
    os.kill(api.transport.pid, KILL)
    wait_until(lambda: api.client.state == "restarting engine", "the death to be noticed")
    health = api.get("/health")
    assert health.status == 503 and health.json()["status"] == "restarting engine" and health.headers["retry-after"]
    assert "will wait" in health.error["message"]
    assert api.get("/health/ready").status == 503 and api.get("/health/live").status == 200
    assert api.get("/slots").status == 200 and api.get("/props").status == 200 and api.get("/v1/models").status == 200

    def let_it_come() -> None:
        wait_until(lambda: api.n_requests == 1, "the request to wait")
        gate.touch()

    answer, _ = api.at_the_same_time(lambda: api.complete("hello", 8, temperature=0), let_it_come)
    assert answer["content"] == said("hello", 8)
    assert api.get("/health").json()["status"] == "ok"


def test_a_client_that_leaves_while_the_engine_is_away_is_forgotten(serve, tmp_path):
    api = serve(Orders(), dataclasses.replace(LIMITS, backoff_s=(1.0,)))
    os.kill(api.transport.pid, KILL)
    wait_until(lambda: api.client.state == "restarting engine", "the death to be noticed")
    sock = api.begin({"prompt": "x", "n_predict": -1, "stream": True})
    wait_until(lambda: api.n_requests == 1, "the request to be there")
    sock.close()
    wait_until(lambda: api.n_requests == 0, "the client to be missed")
    wait_until(lambda: api.client.state == "ok", "the engine to come back")
    api.settle()
    assert api.client.snapshot.n_processing == 0


def test_a_request_that_kills_the_engine_is_answered_with_500_and_no_other(serve):
    api = serve(Orders(do="abort", poison="~"))
    texts, poisoned = api.at_the_same_time(
        lambda: api.complete("hello", 80, temperature=0)["content"],
        lambda: api.post("/completion", {"prompt": "~", "n_predict": 5}),
    )
    assert texts == said("hello", 80)
    assert poisoned.status == 500 and "brought the engine down" in poisoned.error["message"]
    wait_until(lambda: api.client.state == "ok", "the engine to come back")
    api.complete("x", 1)
    assert metric(api, "engine_suspects_total") == 1


def test_an_engine_that_cannot_come_back_leaves_a_server_that_says_so(serve, tmp_path):
    api = serve(Orders(), dataclasses.replace(LIMITS, max_deaths=2))
    orders = Orders(do="refuse", where="load")
    api.transport._config = dataclasses.replace(api.transport._config, model=orders.text())
    os.kill(api.transport.pid, KILL)
    wait_until(lambda: api.client.state == "error", "the end")
    health = api.get("/health")
    assert health.status == 500 and "died 2 times" in health.error["message"] and "rotten" in health.error["message"]
    assert api.post("/completion", {"prompt": "x"}).status == 500
    assert api.get("/v1/models").status == 200 and api.get("/health/live").status == 200


def test_a_server_that_stops_takes_its_engine_along(serve):
    api = serve(Orders(step_s=0.01))
    with api.begin({"prompt": "x", "n_predict": -1, "stream": True}):
        api.wait_for(n_processing=1)
        pid = api.transport.pid
        api.stop(0.0)
    with pytest.raises(OSError):
        os.kill(pid, 0)
