"""A record of a busy server whose engine is killed again and again: running it again gives the same answers.

Mixed requests in all API dialects, streamed and whole, greedy and sampled, constrained and free; some clients
disconnect. 16 requests; with LLAMA_SRV_TEST_LONG=1 100 (figures in `docs/evidence.md`). On F32 models any server's
record is identical, on a quantised one that of a server with --exact.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from server.evidence.chain import check
from tests.e2e.test_kills import engine_pid, metric
from tests.support import NO_PROXY, PATIENCE, ServerProcess, run_command, wait_until

LINUX_ONLY = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only on Linux: finds the engine's process in /proc"
)
F32 = ("-np", 4, "-c", 4096, "-t", 1, "--memory-f32", "-fa", "off")
EXACT = ("-np", 4, "-c", 8192, "-t", 1, "--exact")
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"schema": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


def mixed(n: int, seed: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Path, body, and after how many chunks the client leaves (0: it stays)."""
    rng = random.Random(seed)
    for i in range(n):
        text = " ".join(rng.choices("the dog cat moon river girl went saw and then very happy".split(), k=12))
        sampling = rng.choice(
            ({"temperature": 0}, {"temperature": 1.1, "seed": i}, {"top_k": 5, "repeat_penalty": 1.2, "seed": i})
        )
        chat = {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}], **sampling}
        path, body = (
            ("/completion", {"prompt": text, "n_predict": 40, **sampling}),
            ("/completion", {"prompt": [text, text + " so"], "n_predict": 30, "n_cmpl": 2, "temperature": 0.9}),
            ("/v1/chat/completions", {**chat, "max_tokens": 30, "n": 2}),
            ("/v1/chat/completions", {**chat, "max_tokens": 20, "response_format": SCHEMA}),
            ("/v1/completions", {"prompt": text, "max_tokens": 40, "stop": [" dog", "\n\n"], **sampling}),
            ("/v1/messages", {**chat, "messages": chat["messages"][1:], "max_tokens": 25}),
            ("/api/generate", {"prompt": text, "options": {"num_predict": 25, **sampling}}),
            ("/completion", {"prompt": text, "n_predict": 40, "logit_bias": [[5, 3.0]], "cache_prompt": False}),
        )[i % 8]
        yield path, {**body, "stream": bool(rng.randrange(2))}, rng.choice((0, 0, 0, 5))


def ask(server: ServerProcess, path: str, body: dict[str, Any], n_chunks: int) -> None:
    with requests.post(server.url + path, json=body, stream=True, timeout=PATIENCE, proxies=NO_PROXY) as response:
        assert response.status_code == 200, response.text
        for i, _ in enumerate(response.iter_lines()):
            if body["stream"] and i == n_chunks > 0:
                return


def kill_now_and_then(server: ServerProcess, stop: threading.Event) -> None:
    """The engine dies whenever it has written some tokens more."""
    n_next = 0
    while not stop.is_set():
        n_next += 300
        wait_until(lambda n=n_next: stop.is_set() or metric(server, "tokens_predicted_total") >= n, "tokens")
        pid = engine_pid(server)
        if pid is not None and not stop.is_set():
            n_restarts = metric(server, "engine_restarts_total")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda n=n_restarts: metric(server, "engine_restarts_total") > n, "another engine")


@LINUX_ONLY
@pytest.mark.covers("P04")
@pytest.mark.parametrize("n", [16, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("model, options", [("tiny_bpe_model", F32), ("smollm2", EXACT)], ids=["f32", "exact"])
def test_what_was_recorded_under_load_with_kills_comes_out_the_same(serve, request, tmp_path, model, options, n):
    path = tmp_path / "record"
    server = serve("-m", request.getfixturevalue(model), *options, "--metrics", "--record", path)
    stop = threading.Event()
    killer = threading.Thread(target=kill_now_and_then, args=(server, stop), daemon=True)
    killer.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: ask(server, *one), mixed(n, 3)))
    stop.set()
    killer.join(PATIENCE)
    n_restarts = metric(server, "engine_restarts_total")
    assert server.stop() == 0 and n_restarts
    sums = check(path)
    assert (sums.n_requests, sums.n_lost, sums.n_unclosed) == (n, 0, 0)
    assert run_command(["verify", path]).returncode == 0
    done = run_command(["replay", path], patience=1200)
    print(f"{n} requests, {n_restarts} engines killed: {done.stdout.splitlines()[-1]}")
    assert done.returncode == 0 and " 0 not" in done.stdout, done.stdout + done.stderr


def test_a_changed_record_is_not_run_again(serve, tiny_spm_model, tmp_path):
    path = tmp_path / "record"
    server = serve("-m", tiny_spm_model, "--record", path)
    server.complete("the dog", 4)
    assert server.stop() == 0
    path.write_bytes(path.read_bytes().replace(b"the dog", b"the cat"))
    for command in ("verify", "replay"):
        done = run_command([command, path])
        assert done.returncode == 2 and "line 3: " in done.stderr and "it was changed" in done.stderr
