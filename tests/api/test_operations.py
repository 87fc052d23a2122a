"""Operating a running server: health checks, reloading, and the files and messages that report its state."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path
from unittest.mock import patch

import pytest

from server import serving
from server.app import make_transport
from server.engine.seam.config import EngineConfig, step_limit_s
from server.model_files.host_cpus import count_usable_cores
from server.options.groups import group
from server.options.parser import parse
from server.program import UnpackedFolder
from server.service import housekeeping
from server.service.housekeeping import Housekeeping
from server.service.run_files import RunFiles
from tests.api.conftest import PATIENCE, Api
from tests.api.test_access import PEM, ask, over_tls
from tests.fakes import FakeBackend
from tests.support import wait_until

OTHER_PEM = Path(__file__).with_name("localhost_tls_other.pem")


def keeper(api: Api, **environ: str) -> Housekeeping:
    """Housekeeping as the product has it, without touching the test process' signals."""
    one = Housekeeping(
        api.options.service, api.options.http, "fake.gguf", api.server, api.keys, api.client, lambda: None, environ
    )
    with patch.object(signal, "signal"), patch("faulthandler.register"):
        one.start()
    return one


# ---- health ------------------------------------------------------------------------------------------------------


def test_alive_and_ready_are_different_questions(make_api):
    api = make_api(open_backend=lambda config, on_progress: pytest.fail("never loaded"))
    api.client.start = lambda: None
    api.start(is_ready=False)
    assert api.get("/health/live").json() == {"status": "ok"}
    assert (api.get("/health/ready").status, api.get("/health").status) == (503, 503)
    assert api.get("/health/ready").error["message"] == "Loading model"


def test_a_server_that_serves_is_ready_without_a_key(make_api):
    api = make_api(None, ("--api-key", "good")).start()
    assert [api.get(path).status for path in ("/health/live", "/health/ready", "/health?strict=1")] == [200] * 3


def test_ready_is_who_has_computed_the_system_prompt_and_read_the_template(make_api, tmp_path, monkeypatch):
    (tmp_path / "prompt.json").write_text('{"prompt": "be kind"}')
    api = make_api(None, ("-spf", str(tmp_path / "prompt.json")))
    model, stop, seen = api.context.models.default, threading.Event(), []

    def look() -> None:
        answer = api.post("/completion", {"prompt": "x", "n_predict": 1})
        seen.append((api.get("/health/ready").status, api.get("/health").status, answer.status))

    def during(name: str, work):
        def wrapped(*args: object) -> object:
            look()
            return work(*args)

        return name, wrapped

    monkeypatch.setattr(type(model), *during("set_system_prompt", type(model).set_system_prompt))
    monkeypatch.setattr(serving, *during("check_chat_template", serving.check_chat_template))
    monkeypatch.setattr(serving, *during("say", lambda *_: stop.set()))
    monkeypatch.setattr(serving, "make_context", lambda *_: api.context)
    monkeypatch.setattr(serving, "make_server", lambda *_: api.server)
    api.client.start()
    with patch.object(signal, "signal"):
        assert serving.serve(api.options, api.client, "fake.gguf", UnpackedFolder(None), stop, []) == 0
    assert seen == [(503, 503, 503), (503, 503, 503), (200, 200, 200)]
    assert model.system_prompt.prompt == "be kind"


def test_strict_health_asks_for_progress(make_api):
    api = make_api(FakeBackend(n_ctx=256)).start()
    api.backend.hold()
    client = api.begin({"prompt": "x", "n_predict": 3})
    api.wait_for_decode()
    assert api.get("/health?strict=1").status == 200, "a step may take a while"
    with patch.object(api.transport, "_step_s", 0.0):
        answer = api.get("/health?strict=1")
        assert answer.status == 503 and answer.json()["status"] == "error"
        assert "no progress" in answer.error["message"]
        assert api.get("/health/ready").status == 503
        assert [api.get(path).status for path in ("/health", "/health?strict=0", "/health/live")] == [200] * 3
        api.backend.go()
        wait_until(lambda: not api.n_requests, "the answer", PATIENCE)
        assert api.get("/health?strict=1").status == 200, "without work there is nothing to make progress with"
    client.close()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_the_limit_of_strict_health_is_that_of_a_hang(kind):
    options = group(parse(["-m", "fake.gguf", "--engine", kind, "--engine-timeout", "7"], {}))
    engines, timeout_s = options.engines, options.model.engine_timeout
    transport = make_transport(engines, timeout_s, EngineConfig("", ""), None)
    assert transport.step_limit_s == 7.0
    crowded = EngineConfig("", "", n_threads=3 * count_usable_cores())
    transport = make_transport(engines, timeout_s, crowded, None)
    assert transport.step_limit_s >= 7.0 * 3**2, "threads without a core make it slow, no task does"
    assert [step_limit_s(7.0, n_rows) for n_rows in (1, 255, 256, 2048)] == [7.0, 7.0, 14.0, 63.0]


def test_a_long_step_of_many_rows_is_not_stuck(make_api):
    api = make_api(FakeBackend(n_ctx=1024)).start()
    api.backend.hold()
    client = api.begin({"prompt": "x" * 600, "n_predict": 3})
    api.wait_for_decode()
    with patch.object(api.transport, "_step_s", 1e6):
        api.client._t_sign -= 1.5e6
        assert not api.client.is_stuck, "a second limit's worth of rows"
        api.client._t_sign -= 1.5e6
        assert api.client.is_stuck
    client.close()


def test_an_engine_that_idled_for_long_gets_time_for_its_next_task(make_api):
    api = make_api(FakeBackend(n_ctx=256)).start()
    api.complete("x", 2)
    api.backend.hold()
    api.client._t_sign -= 3600
    client = api.begin({"prompt": "x", "n_predict": 3})
    wait_until(lambda: api.n_requests == 1, "the request", PATIENCE)
    assert not api.client.is_stuck
    api.wait_for_decode()  # from here on nothing is heard of it
    api.client._t_sign -= 3600
    assert api.client.is_stuck
    client.close()


# ---- reloading ---------------------------------------------------------------------------------------------------


def test_a_new_certificate_counts_after_a_reload_and_a_bad_one_does_not(make_api, tmp_path, caplog):
    pem = tmp_path / "tls.pem"
    pem.write_bytes(PEM.read_bytes())
    api = make_api(None, ("--ssl-key-file", str(pem), "--ssl-cert-file", str(pem))).start()
    house = keeper(api)
    assert over_tls(api, "/health", trust=PEM).status == 200
    pem.write_bytes(OTHER_PEM.read_bytes())
    assert over_tls(api, "/health", trust=PEM).status == 200, "not before it is told"
    house.reload()
    assert over_tls(api, "/health", trust=OTHER_PEM).status == 200
    pem.write_text("half of a fi")
    house.reload()
    assert over_tls(api, "/health", trust=OTHER_PEM).status == 200
    assert "certificate can't be read and stays as it is" in caplog.text


def test_keys_are_read_again_by_a_tick_when_they_changed_and_by_a_reload_anyway(make_api, tmp_path):
    path = tmp_path / "keys"
    path.write_text("one\n")
    stamp = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    api = make_api(None, ("--api-key-file", str(path))).start()
    house = keeper(api)
    path.write_text("two\n")
    os.utime(path, ns=stamp)
    house.tick()
    assert [ask(api, "one"), ask(api, "two")] == [200, 401], "it looks unchanged"
    house.reload()
    assert [ask(api, "one"), ask(api, "two")] == [401, 200]
    path.write_text("three and more\n")
    house.tick()
    assert [ask(api, "two"), ask(api, "three and more")] == [401, 200]


@pytest.mark.parametrize("has_gone", [False, True])
def test_a_hangup_reloads_unless_the_terminal_has_gone(make_api, monkeypatch, has_gone):
    calls = []
    terminal = [True, not has_gone]
    monkeypatch.setattr(housekeeping, "has_terminal", lambda: terminal.pop(0))
    api = make_api().start()
    house = Housekeeping(
        api.options.service,
        api.options.http,
        "fake.gguf",
        api.server,
        api.keys,
        api.client,
        lambda: calls.append("stop"),
        {},
    )
    handlers = {}
    with (
        patch.object(signal, "signal", lambda number, handler: handlers.update({number: handler})),
        patch("faulthandler.register"),
        patch.object(signal, "getsignal", lambda number: signal.SIG_DFL),
        patch.object(house, "reload", lambda: calls.append("reload")),
    ):
        house.start()
        handlers[signal.SIGHUP]()
        assert calls == [], "a handler only takes note"
        house.tick()
        house.tick()
    assert calls == ["stop" if has_gone else "reload"]


# ---- what is told ------------------------------------------------------------------------------------------------


def test_a_state_file_names_a_model_whose_path_is_no_text(tmp_path):
    name = os.fsdecode(b"/models/\xff.gguf") if os.name == "posix" else "C:\\\udcff.gguf"
    files = RunFiles(None, str(tmp_path / "s"))
    for state in ("loading", "ready"):
        files.write(state, model=name)
        assert json.loads((tmp_path / "s").read_text("utf-8"))["model"] == name
    files.remove()
    assert os.listdir(tmp_path) == []


def test_the_state_file_follows_the_server(make_api, tmp_path):
    api = make_api(None, ("--state-file", str(tmp_path / "s"), "--pid-file", str(tmp_path / "p"))).start()
    house = keeper(api)
    states = []
    for state in (None, "ready", "stopping"):
        if state:
            house.report(state)
        states.append(json.loads((tmp_path / "s").read_text()))
    assert [state["state"] for state in states] == ["loading", "ready", "stopping"]
    assert {(state["url"], state["pid"], state["model"]) for state in states} == {
        (api.server.url, os.getpid(), "fake.gguf")
    }
    house.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="not on Windows: no UNIX datagram sockets")
def test_systemd_hears_of_loading_readiness_life_reload_and_the_end(make_api, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    api = make_api().start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("notify")
        manager.settimeout(PATIENCE)
        house = keeper(api, NOTIFY_SOCKET="notify", WATCHDOG_USEC="1000")
        assert house.interval_s < 0.001

        def heard(n: int) -> list[str]:
            return [manager.recv(4096).decode() for _ in range(n)]

        house.report_loading(0.25)
        assert heard(2) == ["STATUS=loading the model, 25%\nEXTEND_TIMEOUT_USEC=60000000", "WATCHDOG=1"]
        house.report("ready")
        assert heard(1) == [f"READY=1\nSTATUS=serving on {api.server.url}"]
        with patch.object(type(api.client), "is_stuck", True):
            house.tick()
        house.reload()
        assert [message.split("\n")[0] for message in heard(2)] == ["RELOADING=1", "READY=1"], (
            "a stuck engine is no life"
        )
        house.report("stopping")
        assert heard(1) == ["STOPPING=1\nSTATUS=stopping"]


# ---- stacks ------------------------------------------------------------------------------------------------------


def test_stacks_are_shown_to_who_asked_for_them_at_start(make_api):
    api = make_api(None, ("--debug-stacks",)).start()
    answer = api.send("POST", "/debug/stacks")
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain")
    text = answer.body.decode()
    for name in ("thread engine (", "thread http-accept (", "debug.py", "scheduler.py"):
        assert name in text
    closed = make_api().start()
    assert closed.send("POST", "/debug/stacks").status == 501


def test_stacks_want_a_key(make_api):
    api = make_api(None, ("--debug-stacks", "--api-key", "good")).start()
    assert api.send("POST", "/debug/stacks").status == 401
