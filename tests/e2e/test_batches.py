"""Batches as users run them: the command, a server with the `openai` package, and repeated `kill -9`.

Needs the native libraries and SmolLM2. Only one thread computes, answers are short, and the tests check the files.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import PATIENCE, ROOT, run_command, start_server, wait_until

openai = pytest.importorskip("openai", reason="the package openai is not installed: run build_scripts/test.py")

N_LINES, N_KILLS = 200, 20
CHAT = "/v1/chat/completions"
TOPICS = ("the sea", "a tree", "an old town", "the moon")


def write_input(path: Path, n: int = N_LINES, **fields: object) -> Path:
    body = {"model": "any", "max_tokens": 6, "temperature": 0, **fields}
    with open(path, "w", encoding="utf-8") as stream:
        for i in range(n):
            messages = [{"role": "user", "content": f"Say {i} words about {TOPICS[i % 4]}."}]
            one = {"custom_id": f"r{i}", "method": "POST", "url": CHAT, "body": {**body, "messages": messages}}
            stream.write(json.dumps(one) + "\n")
    return path


def answers_in(data: str) -> dict[str, dict]:
    """The answers by their custom_id. Each must be there once, and be one."""
    found = [json.loads(line) for line in data.splitlines()]
    assert len({one["custom_id"] for one in found}) == len(found), "a line was answered twice"
    for one in found:
        assert one["response"]["status_code"] == 200, one
        assert one["response"]["body"]["choices"][0]["message"]["content"]
    return {one["custom_id"]: one for one in found}


@pytest.fixture
def model(libs_folder, smollm2) -> list[str]:
    """What the command line says of the model."""
    return ["-m", str(smollm2), "-c", "4096", "-np", "4", "-t", "1"]


@pytest.mark.covers("J05")
@pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: there is no such signal")
def test_a_command_that_is_killed_again_and_again_answers_each_line_once(model, tmp_path):
    source, target = write_input(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    rng, seen = random.Random(5), 0

    def n_answers() -> int:
        return target.read_bytes().count(b"\n") if target.exists() else 0

    for i in range(N_KILLS):
        words = [sys.executable, str(ROOT / "llama_srv.py"), "batch", str(source), str(target), *model]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if i % 4:  # in the middle of the work, else at any moment of a start
            wanted = min(seen + rng.randint(1, 3), N_LINES - 1)
            wait_until(lambda: n_answers() >= wanted or process.poll() is not None, "an answer", every=0.005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        before = target.read_bytes() if target.exists() else b""
        assert n_answers() >= seen, "an answer was lost"
        seen = n_answers()
        if seen == N_LINES:  # a quick machine
            break
    assert i >= N_KILLS // 2, "all was done before there were kills enough"
    done = run_command(["batch", source, target, *model])
    assert done.returncode == 0, done.stderr
    assert target.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert set(answers_in(target.read_text("utf-8"))) == {f"r{i}" for i in range(N_LINES)}
    again = run_command(["batch", source, target, *model])
    assert again.returncode == 0 and f"{N_LINES} of {N_LINES} lines" in again.stderr


@pytest.mark.covers("J01", "J05", "J06")
@pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: there is no such signal")
def test_openai_s_package_begins_a_batch_that_outlives_its_server(model, tmp_path):
    arguments = [*model, "--store-dir", str(tmp_path / "store"), "--embeddings"]
    server, kills = start_server(arguments), 0
    try:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        with open(write_input(tmp_path / "in.jsonl", 24), "rb") as stream:
            file = client.files.create(file=stream, purpose="batch")
        assert file.filename == "in.jsonl" and file.purpose == "batch"
        batch = client.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"job": "nightly"}
        )
        for n in (3, 9, 15):
            wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= n, "some answers")
            server.process.kill()
            server.stop(patience=0)
            kills += 1
            server = start_server(arguments)
            client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", "the end of the batch")
        batch = client.batches.retrieve(batch.id)
        assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (24, 24, 0)
        assert batch.metadata == {"job": "nightly"} and kills == 3
        found = answers_in(client.files.content(batch.output_file_id).text)
        assert set(found) == {f"r{i}" for i in range(24)}
        assert [one.id for one in client.batches.list()] == [batch.id]
        assert {one.purpose for one in client.files.list()} == {"batch", "batch_output"}
        with open(write_input(tmp_path / "long.jsonl", 8, max_tokens=900, ignore_eos=True), "rb") as stream:
            long = client.files.create(file=stream, purpose="batch")
        other = client.batches.create(input_file_id=long.id, endpoint=CHAT, completion_window="24h")
        wait_until(lambda: client.batches.retrieve(other.id).status == "in_progress", "its beginning")
        assert client.batches.cancel(other.id).status == "cancelling"
        wait_until(lambda: client.batches.retrieve(other.id).status == "cancelled", "its end")
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)
    finally:
        server.stop()


def test_the_command_takes_all_kinds_of_lines(model, tmp_path):
    bodies = {
        CHAT: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
        "/v1/completions": {"prompt": "The sea", "max_tokens": 4},
        "/v1/embeddings": {"input": "The sea"},
        "/v1/responses": {"input": "hi", "max_output_tokens": 4},
        "/v1/files": {},
    }
    lines = [json.dumps({"custom_id": url, "method": "POST", "url": url, "body": body}) for url, body in bodies.items()]
    (tmp_path / "in.jsonl").write_text("\n".join(lines[:4]), "utf-8")
    done = run_command(["batch", tmp_path / "in.jsonl", tmp_path / "out.jsonl", *model], patience=PATIENCE)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert {one["custom_id"] for one in found} == set(bodies) - {"/v1/files"}
    assert all(one["response"]["status_code"] == 200 for one in found)
    (tmp_path / "bad.jsonl").write_text("\n".join(lines), "utf-8")
    refused = run_command(["batch", tmp_path / "bad.jsonl", tmp_path / "other.jsonl", *model])
    assert refused.returncode == 2 and "bad.jsonl:5: url '/v1/files'" in refused.stderr
