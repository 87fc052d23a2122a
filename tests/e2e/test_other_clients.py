"""`langchain-openai` and `llm`, which many programs use, against a real server with SmolLM2.

`llm` runs as a command with its own configuration folder. Greedy where texts are compared.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.support import PATIENCE, ServerProcess, start_server, wait_until

N_SLOTS = 2
CAPITAL = "What is the capital of France? Answer in one sentence."
COUNT = "Count from 1 to 500, one number per line, without any other text."


@pytest.fixture(scope="module")
def server(libs_folder, smollm2) -> Iterator[ServerProcess]:
    """One server for all tests of this file; its log is shown when one fails."""
    arguments = ["-m", smollm2, "-c", 4096, "-np", N_SLOTS, "-t", 1, "-n", 256]
    with start_server([str(argument) for argument in arguments]) as running:
        yield running
        print(running.log)


def assert_idle(server: ServerProcess) -> None:
    def is_idle() -> bool:
        return server.get("/health").json() == {"status": "ok", "slots_idle": N_SLOTS, "slots_processing": 0}

    wait_until(is_idle, "all slots to be idle")


# ---- langchain-openai --------------------------------------------------------------------------------------------


@pytest.fixture
def chat(server, monkeypatch):
    """`chat(**fields)` makes a greedy ChatOpenAI."""
    module = pytest.importorskip(
        "langchain_openai", reason="langchain-openai is not installed: run build_scripts/test.py"
    )
    for variable in ("LANGCHAIN_TRACING_V2", "LANGSMITH_TRACING", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)

    def make(**fields: object):
        options = {"model": "local", "temperature": 0, "max_tokens": 24, "max_retries": 0, **fields}
        return module.ChatOpenAI(base_url=server.url + "/v1", api_key="none", timeout=PATIENCE, **options)

    return make


def test_langchain_plain_stream_and_batch_are_the_same_text(chat):
    messages = [("system", "You are helpful."), ("human", CAPITAL)]
    plain = chat().invoke(messages)
    assert "Paris" in plain.content and plain.response_metadata["finish_reason"] in ("stop", "length")
    usage = plain.usage_metadata
    assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"] > 0
    chunks = list(chat(stream_usage=True).stream(messages))
    assert "".join(chunk.content for chunk in chunks) == plain.content
    counts = [chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata]
    assert counts == [usage["output_tokens"]]
    assert [answer.content for answer in chat().batch([messages] * 3)] == [plain.content] * 3


def test_langchain_content_in_parts(chat):
    from langchain_core.messages import HumanMessage

    parts = HumanMessage(content=[{"type": "text", "text": CAPITAL}])
    assert chat().invoke([parts]).content == chat().invoke(CAPITAL).content


NAMED = {
    "title": "named",
    "description": "A name",
    "type": "object",
    "required": ["name", "age"],
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 99}},
    "additionalProperties": False,
}


def test_langchain_structured_output(chat):
    answer = chat(max_tokens=100).with_structured_output(NAMED, method="json_schema").invoke("Invent a dog.")
    assert set(answer) == {"name", "age"} and isinstance(answer["age"], int)
    bound = chat(max_tokens=100).bind(response_format={"type": "json_object", "schema": NAMED})
    assert set(json.loads(bound.invoke("Invent a dog, as JSON.").content)) == {"name", "age"}


def test_langchain_stop_words_and_log_probabilities(chat):
    answer = chat(logprobs=True, top_logprobs=2).invoke(CAPITAL, stop=[" Paris"])
    assert "Paris" not in answer.content
    assert "".join(one["token"] for one in answer.response_metadata["logprobs"]["content"]) == answer.content


def test_langchain_leaving_a_stream_frees_the_slot(server, chat):
    for _ in range(2 * N_SLOTS):
        stream = chat(max_tokens=None, extra_body={"ignore_eos": True}).stream(COUNT)
        assert len(list(islice(stream, 4))) == 4
        stream.close()
    assert_idle(server)


def test_langchain_errors_are_those_of_openai(chat):
    openai = pytest.importorskip("openai", reason="the package openai is not installed: run build_scripts/test.py")
    with pytest.raises(openai.BadRequestError, match="grammar"):
        chat(extra_body={"grammar": "root ::= ("}).invoke(CAPITAL)


# ---- llm ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def llm(server, tmp_path):
    """`llm(*arguments)` starts the command with one model, `local`, and nothing of the user's configuration."""
    if importlib.util.find_spec("llm") is None:
        pytest.skip("llm is not installed: run build_scripts/test.py")
    row = {"model_id": "local", "model_name": "local", "api_base": server.url + "/v1", "supports_schema": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([row]), "utf-8")  # JSON is YAML
    (tmp_path / "keys.json").write_text('{"openai": "sk-no-key-required"}', "utf-8")
    own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if sys.platform == "win32" else {}

    def start(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "llm", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            **own_group,
        )

    return start


def said(process: subprocess.Popen[str]) -> str:
    """What the command printed, without the line break at its end."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out.removesuffix("\n")


GREEDY = ("-m", "local", "-o", "temperature", "0", "-o", "max_tokens", "24")


def test_llm_plain_and_stream_are_the_same_text(llm):
    plain = said(llm("prompt", "--no-stream", *GREEDY, CAPITAL))
    assert "Paris" in plain
    assert said(llm("prompt", *GREEDY, CAPITAL)) == plain


def test_llm_goes_on_with_a_conversation_and_counts_tokens(llm, tmp_path: Path):
    said(llm("prompt", *GREEDY, "-s", "You are helpful.", CAPITAL))
    assert said(llm("prompt", "-c", *GREEDY, "And of Italy?"))
    logs = json.loads(said(llm("logs", "--json", "-n", "0")))
    assert len(logs) == 2 and len({log["conversation_id"] for log in logs}) == 1
    assert all(log["input_tokens"] > 0 and log["output_tokens"] > 0 for log in logs)


def test_llm_with_a_schema(llm):
    found = json.loads(
        said(llm("prompt", *GREEDY[:5], "-o", "max_tokens", "100", "--schema", json.dumps(NAMED), "Invent a dog."))
    )
    assert set(found) == {"name", "age"} and isinstance(found["age"], int)


def test_llm_interrupted_frees_the_slot(server, llm):
    process = llm("prompt", "-m", "local", COUNT)
    assert process.stdout.read(1)
    process.send_signal(signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert_idle(server)
