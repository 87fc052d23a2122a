"""The engine is killed again and again under 16 streaming clients, and no stream shows it.

A real server process and a tiny F32 model with an F32 cache, so that greedy text doesn't depend on batching. 50 kills;
with LLAMA_SRV_TEST_LONG=1 500 kills of one server process (figures in `docs/reliability.md`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from itertools import cycle

import pytest
import requests

from tests.support import NO_PROXY, PATIENCE, ServerProcess, wait_until

N_CLIENTS = 16
N_TOKENS = 200
POSIX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: there are no such signals")
ARGUMENTS = ("-np", N_CLIENTS, "-c", N_CLIENTS * 512, "-t", 1, "--memory-f32", "-fa", "off", "--metrics")
PROMPTS = tuple(
    f"once upon a time the {animal} and the {thing} went"
    for animal in ("dog", "cat", "fox", "owl")
    for thing in ("moon", "house", "river", "girl")
)
FIELDS = {"n_predict": N_TOKENS, "temperature": 0, "ignore_eos": True, "cache_prompt": False}


def engine_pid(server: ServerProcess) -> int | None:
    """The engine's process: the only child of the server."""
    task = f"/proc/{server.process.pid}/task"
    for thread in os.listdir(task) if os.path.isdir(task) else ():
        try:
            with open(f"{task}/{thread}/children", encoding="ascii") as stream:
                children = stream.read().split()
        except OSError:
            continue
        if children:
            return int(children[0])
    return None


def metric(server: ServerProcess, name: str) -> int:
    line = next(line for line in server.get("/metrics").text.splitlines() if line.startswith(f"llamacpp:{name} "))
    return int(float(line.split()[1]))


class Clients:
    """Threads that stream the same questions all over again and compare what they get with the undisturbed text."""

    def __init__(self, server: ServerProcess, texts: list[str], fields: dict) -> None:
        self.n_done = 0
        self.faults: list[object] = []
        self._server = server
        self._texts = texts
        self._fields = fields
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(N_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _run(self, i: int) -> None:
        while not self._stop.is_set() and not self.faults:
            try:
                body = {"prompt": PROMPTS[i], **self._fields, "seed": i + 1, "stream": True}
                with requests.post(
                    self._server.url + "/completion", json=body, stream=True, timeout=PATIENCE, proxies=NO_PROXY
                ) as response:
                    lines = [line.partition(b": ") for line in response.iter_lines() if line]
                events = [json.loads(data) for name, _, data in lines if name == b"data"]
                text = "".join(event["content"] for event in events)
                if len(events) != len(lines) or not events[-1]["stop"] or events[-1]["tokens_predicted"] != N_TOKENS:
                    self.faults.append((i, lines[-1]))
                elif text != self._texts[i]:
                    self.faults.append((i, text, self._texts[i]))
                self.n_done += 1
            except Exception as error:
                self.faults.append((i, repr(error)))

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads), "a stream has not ended"
        assert self.faults == []


def undisturbed(server: ServerProcess, fields: dict) -> list[str]:
    return [server.complete(prompt, **{**fields, "seed": i + 1})["content"] for i, prompt in enumerate(PROMPTS)]


def kill_again_and_again(server: ServerProcess, clients: Clients, n_kills: int, numbers: list[int], seed: int) -> None:
    """Random moments, counted in tokens; one in eight is at once, in the replay, but never two running: a request that
    is there at several deaths without a token between them would be suspected."""
    rng = random.Random(seed)
    for i, number in zip(range(n_kills), cycle(numbers)):
        n_tokens = rng.randrange(1, 120) if i % 8 else 0
        n_before = metric(server, "tokens_predicted_total")
        wait_until(
            lambda: clients.faults or metric(server, "tokens_predicted_total") >= n_before + n_tokens, "progress"
        )
        assert not clients.faults, clients.faults[:2]
        n_restarts = metric(server, "engine_restarts_total")
        os.kill(engine_pid(server), number)
        wait_until(lambda: metric(server, "engine_restarts_total") > n_restarts, "another engine")
        server.wait_ready()


def streams_survive(server: ServerProcess, n_kills: int, numbers: list[int], seed: int) -> Clients:
    """Every stream is whole and right, nobody is suspected, and the server is as good as before; the clients."""
    texts = undisturbed(server, FIELDS)
    assert len(set(texts)) == N_CLIENTS
    clients = Clients(server, texts, FIELDS)
    kill_again_and_again(server, clients, n_kills, numbers, seed)
    clients.finish()
    assert metric(server, "engine_suspects_total") == 0
    assert undisturbed(server, FIELDS) == texts
    return clients


@POSIX_ONLY
@pytest.mark.covers("T19")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: finds the engine's process in /proc")
def test_streams_that_wait_for_room_in_one_cache_survive_kills(serve, tiny_spm_model):
    server = serve(
        "-m", tiny_spm_model, *(1024 if part == N_CLIENTS * 512 else part for part in ARGUMENTS), "--kv-unified"
    )
    assert [slot["n_ctx"] for slot in server.get("/slots").json()] == [1024] * N_CLIENTS
    streams_survive(server, 8, [signal.SIGKILL, signal.SIGABRT], 4)
    assert metric(server, "requests_set_aside_total") > 0


@POSIX_ONLY
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: finds the engine's process in /proc")
@pytest.mark.parametrize("n_kills", [50, pytest.param(500, marks=pytest.mark.long)])
def test_streams_survive_kills_of_the_engine_at_random_moments(serve, tiny_spm_model, n_kills):
    server = serve("-m", tiny_spm_model, *ARGUMENTS)
    clients = streams_survive(server, n_kills, [signal.SIGKILL, signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT], 1)
    assert server.process.poll() is None and metric(server, "engine_restarts_total") >= n_kills
    print(
        f"{n_kills} kills, {clients.n_done} streams of {N_TOKENS} tokens, "
        f"{metric(server, 'engine_replays_total')} replays"
    )


@POSIX_ONLY
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: finds the engine's process in /proc")
@pytest.mark.parametrize("n_stops", [2, pytest.param(20, marks=pytest.mark.long)])
def test_streams_survive_an_engine_that_is_stopped_at_random_moments(serve, tiny_spm_model, n_stops):
    """Nothing ends by itself here: the supervisor has to notice that it hears nothing any more."""
    server = serve("-m", tiny_spm_model, *ARGUMENTS)
    streams_survive(server, n_stops, [signal.SIGSTOP], 2)
    assert metric(server, "engine_restarts_total") == n_stops
