"""Faults of one of several models affect only that model: killed, hanging, out of memory, a damaged file.

Real libraries, tiny F32 models that write different texts.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny_models
from tests.e2e.test_many_models import ARGUMENTS, FIELDS, LONG, say, states, until
from tests.support import PATIENCE, ServerProcess, child_processes, start_server, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: there are no such signals")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two models with texts of their own."""
    for i, name in enumerate(("alpha", "beta")):
        tiny_models.tiny_llama(tmp_path / f"{name}.gguf", seed=i + 1)
    return tmp_path


@pytest.fixture
def server(folder) -> Iterator[ServerProcess]:
    """A server of both."""
    with start_server(["--models-dir", folder, *ARGUMENTS, "-c", 2048]) as running:
        yield running


def load_both(server: ServerProcess) -> tuple[dict[str, str], dict[str, int]]:
    """What each model says, and its engine's process: the spare one that there was before."""
    texts: dict[str, str] = {}
    engines: dict[str, int] = {}

    def others() -> list[int]:
        return [pid for pid in child_processes(server.process.pid) if pid not in engines.values()]

    for name in ("alpha", "beta"):
        wait_until(lambda: len(others()) == 1, "the spare process", PATIENCE)
        [spare] = others()
        texts[name] = say(server, name)["content"]
        engines[name] = spare
    return texts, engines


def while_streaming(server: ServerProcess, harm) -> tuple[str, str]:
    """What a stream of alpha and a request for beta say while `harm` happens to beta."""
    beta: list[str] = []
    asking = threading.Thread(target=lambda: beta.append(say(server, "beta", prompt=LONG, n_predict=200)["content"]))
    events = server.stream(
        "/completion", {**FIELDS, "prompt": LONG, "n_predict": 200, "model": "alpha", "stream": True}
    )
    text = next(events)["content"]
    asking.start()
    harm()
    text += "".join(event["content"] for event in events)
    assert say(server, "alpha")["content"], "and it goes on"
    asking.join(PATIENCE)
    return text, beta[0]


@pytest.mark.parametrize("what", ["killed", "hanging", "out of memory"])
@pytest.mark.covers("D13")
def test_what_happens_to_one_engine_concerns_its_model_alone(server, what):
    texts, engines = load_both(server)
    long_ones = [say(server, name, prompt=LONG, n_predict=200)["content"] for name in ("alpha", "beta")]
    for name in ("alpha", "beta"):
        assert say(server, name)["content"] == texts[name]

    def harm() -> None:
        if what == "killed":
            os.kill(engines["beta"], signal.SIGKILL)
        elif what == "hanging":
            os.kill(engines["beta"], signal.SIGSTOP)
        else:
            import resource

            if not hasattr(resource, "prlimit"):
                pytest.skip("this system can't bound another process")
            resource.prlimit(engines["beta"], resource.RLIMIT_AS, (1 << 20, 1 << 20))

    assert list(while_streaming(server, harm)) == long_ones
    if what != "out of memory":  # which it may not have noticed: it had all that it needed
        server.wait_for_line(f"engine: the engine process {engines['beta']} died: .*model=beta$")
    assert "died" not in "".join(line for line in server.log.splitlines() if line.endswith("model=alpha"))
    assert states(server) == {"alpha": "loaded", "beta": "loaded"}
    assert {name: say(server, name)["content"] for name in texts} == texts


@pytest.mark.skipif(
    sys.platform != "linux", reason="only on Linux: a file that has become shorter ends who has mapped it"
)
@pytest.mark.covers("D15")
def test_a_file_that_is_cut_off_under_a_loaded_model_fails_that_alone_until_it_is_whole_again(server, folder):
    texts, _ = load_both(server)
    path = folder / "beta.gguf"
    whole = path.read_bytes()
    os.truncate(path, 4096)
    answer = server.post("/completion", {**FIELDS, "model": "beta", "prompt": LONG})
    assert answer.status_code in (500, 503), answer.text
    assert say(server, "alpha")["content"] == texts["alpha"]
    server.post("/models/unload", {"model": "beta"})
    wait_until(lambda: states(server)["beta"] in ("failed", "unloaded"), "its end", PATIENCE)
    path.write_bytes(whole)
    server.post("/models/load", {"model": "beta"})
    until(server, beta="loaded")
    assert {name: say(server, name)["content"] for name in texts} == texts


@pytest.mark.covers("D15")
def test_a_file_that_is_replaced_counts_from_the_next_load_on(server, folder):
    texts, _ = load_both(server)
    (folder / "new").write_bytes((folder / "alpha.gguf").read_bytes())
    os.replace(folder / "new", folder / "beta.gguf")
    assert say(server, "beta")["content"] == texts["beta"], "it has the old one still"
    server.post("/models/unload", {"model": "beta"})
    until(server, beta="unloaded")
    assert say(server, "beta")["content"] == texts["alpha"]


@pytest.mark.covers("D15")
def test_a_file_that_breaks_or_vanishes_while_it_is_loaded_fails_or_loads_and_nobody_else_notices(folder):
    path = tiny_models.tiny_llama(folder / "beta.gguf", seed=2, n_unused=20000)
    whole = path.read_bytes()
    with start_server(["--models-dir", folder, *ARGUMENTS]) as server:
        text = say(server, "alpha")["content"]
        for harm in (lambda: os.truncate(path, len(whole) // 2), path.unlink):
            server.post("/models/load", {"model": "beta"})
            harm()
            wait_until(lambda: states(server)["beta"] in ("failed", "loaded"), "an end of its loading", PATIENCE)
            assert say(server, "alpha")["content"] == text
            server.post("/models/unload", {"model": "beta"})
            until(server, beta="unloaded")
            path.write_bytes(whole)
        server.post("/models/load", {"model": "beta"})
        until(server, beta="loaded")
        assert say(server, "beta")["content"] and say(server, "alpha")["content"] == text
