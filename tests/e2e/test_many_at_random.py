"""Several models on real libraries with a random schedule: streamed and whole requests, loads, unloads, kills of
engines, clients that disconnect. Fewer models may be loaded than are requested.

Some seconds with four tiny models that write different texts, so that a wrong answer shows. With LLAMA_SRV_TEST_LONG=1
minutes, and also with SmolLM2, MiniLM and, if it was downloaded, stories260K (figures in docs/reliability.md). No
request may fail: a kill waits until every client has had two answers since the last one, so no load is killed twice.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests import tiny_models
from tests.support import PATIENCE, ServerProcess, child_processes, start_server, wait_until

IS_LONG = os.environ.get("LLAMA_SRV_TEST_LONG") == "1"
GROWTH = 1.25  # of two processes of 90 MB together, whose threads come and go: a vocabulary that stays would be seen
SECONDS = 200 if IS_LONG else 10
N_CLIENTS = 6
TINY = ("alpha", "beta", "gamma", "delta")
EMBEDDER = "minilm"
PROMPT = "once upon a time the dog and the moon went"
FIELDS = {"prompt": PROMPT, "temperature": 0, "n_predict": 24, "ignore_eos": True}
# quantised models say the same in company only with --exact
ARGUMENTS = ("-c", 256, "-t", 2, "--memory-f32", "-fa", "off", "--cache-ram", 0, *(["--exact"] if IS_LONG else []))
# what a client does, and how often; the first one alone kills
DEEDS = {"whole": 40, "streamed": 35, "left": 10, "loaded": 6, "unloaded": 5, "killed": 15}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: there are no such signals")


@pytest.fixture
def folder(tmp_path, request) -> Path:
    """All models, each with a text of its own."""
    for i, name in enumerate(TINY):
        tiny_models.tiny_llama(tmp_path / f"{name}.gguf", seed=i + 1)
    if IS_LONG:
        smollm2 = request.getfixturevalue("smollm2")
        for path in (smollm2, smollm2.with_name("stories260K.gguf")):
            if path.exists():
                shutil.copy(path, tmp_path)
        pytest.importorskip("numpy", reason="the package numpy is not installed: run build_scripts/test.py")
        from tests.minilm import MiniLM

        MiniLM(request.getfixturevalue("published_minilm")).write_gguf(tmp_path / f"{EMBEDDER}.gguf")
    return tmp_path


@pytest.fixture
def server(folder) -> Iterator[ServerProcess]:
    """One server of all of them, two at a time."""
    with start_server(["--models-dir", folder, "--models-max", 2, *ARGUMENTS]) as running:
        yield running


class Schedule:
    """Clients on threads of their own; each does one thing after the other, as its own random numbers say. `answers`
    are what the models say alone."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.names = [one["id"] for one in server.get("/models").json()["data"]]
        self.answers = {name: self.say(name) for name in self.names}
        self.counts = dict.fromkeys(DEEDS, 0)
        self.faults: list[object] = []
        self._n_done = [0] * N_CLIENTS
        self._may_kill_at = [0] * N_CLIENTS

    def run(self, seconds: float) -> None:
        """All clients for so long, and until each deed has been done; `faults` says whom it has harmed."""
        stop = time.monotonic() + seconds
        threads = [threading.Thread(target=self._work, args=(i, stop), daemon=True) for i in range(N_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + PATIENCE)
            assert not thread.is_alive(), "a request hangs"

    def _work(self, i: int, stop: float) -> None:
        rng = random.Random(i)
        while (time.monotonic() < stop or not all(self.counts.values())) and not self.faults:
            name, what = rng.choice(self.names), rng.choices(list(DEEDS), list(DEEDS.values()))[0]
            if what == "killed" and i:
                continue
            try:
                self.counts[what] += getattr(self, f"_{what}")(name, rng)
            except (requests.RequestException, AssertionError, KeyError) as error:
                if "unloaded before it was loaded" not in str(error):
                    self.faults.append((name, what, repr(error)))
            self._n_done[i] += 1

    def say(self, name: str) -> object:
        """A model's whole answer."""
        if name == EMBEDDER:
            answer = self._post("/v1/embeddings", {"model": name, "input": PROMPT})
            return answer.json()["data"][0]["embedding"]
        return self._post("/completion", {**FIELDS, "model": name}).json()["content"]

    def _post(self, path: str, body: dict) -> requests.Response:
        answer = self.server.post(path, body)
        assert answer.status_code == 200, (body["model"], answer.text)
        return answer

    def _whole(self, name: str, rng: random.Random) -> int:
        self.check(name, self.say(name))
        return 1

    def _streamed(self, name: str, rng: random.Random) -> int:
        if name == EMBEDDER:
            return self._whole(name, rng) - 1
        events = self.server.stream("/completion", {**FIELDS, "model": name})
        self.check(name, "".join(event["content"] for event in events))
        return 1

    def check(self, name: str, said: object) -> None:
        answer = self.answers[name]
        is_same = said == answer
        if name == EMBEDDER:  # numbers, which round in another way in company
            is_same = max(abs(x - y) for x, y in zip(said, answer, strict=True)) < 1e-3
        if not is_same:
            self.faults.append((name, said, answer))

    def _loaded(self, name: str, rng: random.Random) -> int:
        self._post("/models/load", {"model": name})
        return 1

    def _unloaded(self, name: str, rng: random.Random) -> int:
        self._post("/models/unload", {"model": name})
        return 1

    def _left(self, name: str, rng: random.Random) -> int:
        """A client that goes at some moment, and perhaps rudely."""
        url = urlsplit(self.server.url)
        body = requests.Request("POST", self.server.url, json={**FIELDS, "model": name, "stream": True}).prepare().body
        with socket.create_connection((url.hostname, url.port), PATIENCE) as sock:
            sock.sendall(b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            sock.settimeout(rng.random() / 5)
            try:
                sock.recv(rng.randrange(1, 2000))
            except TimeoutError:
                pass
        return 1

    def _killed(self, name: str, rng: random.Random) -> int:
        """One process of an engine, whatever it is doing."""
        children = child_processes(self.server.process.pid)
        if not children or any(n < least for n, least in zip(self._n_done, self._may_kill_at, strict=True)):
            return 0
        try:
            os.kill(rng.choice(children), signal.SIGKILL)
        except ProcessLookupError:
            return 0
        self._may_kill_at = [n + 2 for n in self._n_done]
        return 1


@pytest.mark.covers("D18")
def test_a_random_schedule_fails_nobody_who_must_not_fail(server):
    schedule = Schedule(server)
    for name in 3 * schedule.names:  # until all has been imported and the allocator has its arenas
        schedule.check(name, schedule.say(name))
    base = memory_kb_at_rest(server, schedule.names)
    schedule.run(SECONDS)
    assert schedule.faults == [], (schedule.faults[:3], schedule.counts)
    kb = memory_kb_at_rest(server, schedule.names)
    assert kb <= base * GROWTH, f"{base} kB have become {kb} kB"
    if IS_LONG:
        print(
            f"\n{SECONDS} s, {len(schedule.names)} models: {schedule.counts}, memory {base} kB before, {kb} kB afterwards"
        )


def memory_kb_at_rest(server: ServerProcess, names: list[str]) -> int:
    """Of all processes, once no model is loaded: the web process and the spare one, which comes after a load. Where
    the system doesn't tell, 0."""
    server.post("/models/load", {"model": TINY[0]})
    wait_until(lambda: states(server)[TINY[0]] == "loaded", "a load", PATIENCE)
    for name in names:
        server.post("/models/unload", {"model": name})
    wait_until(lambda: set(states(server).values()) == {"unloaded"}, "all to be unloaded", PATIENCE)
    if not Path("/proc/self/smaps_rollup").exists():
        return 0
    pid, measured = server.process.pid, [0]

    def is_settled() -> bool:
        pids = [pid, *child_processes(pid)]
        measured.append(sum(map(rss_kb, pids)))
        return len(pids) == 2 and abs(measured[-1] - measured[-2]) < measured[-1] / 100

    wait_until(is_settled, "the engines' end, and a spare process", PATIENCE, every=0.5)
    return measured[-1]


def states(server: ServerProcess) -> dict[str, str]:
    return {one["id"]: one["status"]["value"] for one in server.get("/models").json()["data"]}


def rss_kb(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0  # it has just ended
    return next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:")), 0)
