"""The `openai` JavaScript package in Node.js against a real server with the small real model.

Each scenario of `openai_client.mjs` is a process. Needs Node.js, the package (`build_scripts/test.py` installs it in
the cache folder), the native libraries and SmolLM2.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import PATIENCE, ServerProcess, need, node_package, start_server, wait_until

N_SLOTS = 2


@pytest.fixture(scope="module")
def server(libs_folder, smollm2) -> Iterator[ServerProcess]:
    """One server for all tests of this file; its log is shown when one fails."""
    need(shutil.which("node"), "no Node.js on this machine")
    node_package("openai")
    arguments = ["-m", smollm2, "-c", 4096, "-np", N_SLOTS, "-t", 1, "-n", 256]
    with start_server([str(argument) for argument in arguments]) as running:
        yield running
        print(running.log)


def run(server: ServerProcess, scenario: str) -> object:
    """What a scenario printed."""
    command = [
        shutil.which("node"),
        str(Path(__file__).with_name("openai_client.mjs")),
        str(node_package("openai") / "index.mjs"),
        server.url + "/v1",
        scenario,
    ]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_idle(server: ServerProcess) -> None:
    def is_idle() -> bool:
        return server.get("/health").json() == {"status": "ok", "slots_idle": N_SLOTS, "slots_processing": 0}

    wait_until(is_idle, "all slots to be idle")


@pytest.mark.covers("E07")
def test_a_plain_answer_and_a_stream_are_the_same_text(server):
    plain = run(server, "plain")
    text = plain["choices"][0]["message"]["content"]
    assert "Paris" in text and plain["model"] == "gpt-3.5-turbo"
    chunks = run(server, "stream")
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]) == text
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]
    helper = run(server, "helper")
    assert helper["content"] == "".join(helper["deltas"]) == text


def test_a_structured_answer(server):
    found = run(server, "structured")
    assert set(found) == {"name", "population"} and isinstance(found["population"], int)


def test_text_completions(server):
    found = run(server, "text")
    assert "Paris" in found["plain"] and found["streamed"] == found["plain"]


def test_the_models_list(server):
    assert run(server, "models") == [model["id"] for model in server.get("/v1/models").json()["data"]]


def test_errors_are_the_packages_own(server):
    for failure, word in zip(run(server, "errors"), ("messages", "response_format"), strict=True):
        assert failure["kind"] == "BadRequestError" and failure["status"] == 400
        assert failure["type"] == "invalid_request_error"
        assert word in failure["message"]


def test_leaving_the_loop_frees_the_slot(server):
    assert run(server, "leave") == 3
    assert_idle(server)


def test_aborting_frees_the_slot(server):
    streamed, plain = run(server, "abort")
    assert streamed in ("ended", "APIUserAbortError") and plain == "APIUserAbortError"
    assert_idle(server)
