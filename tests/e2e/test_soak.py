"""Minutes of mixed and abusive traffic against the real program: no growth, nothing left behind, the text stays right.

One minute in CI, 11 minutes in the long form (figures in docs/reliability.md). Memory is measured between rounds of
traffic, when nothing runs. The allocator keeps a varying few percent, so the lower of the last two measurements counts:
a leak is in both.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support import PATIENCE, ServerProcess, child_processes, wait_until

IS_LONG = os.environ.get("LLAMA_SRV_TEST_LONG") == "1"
WARM_UP_S, ROUND_S, N_ROUNDS = (60, 60, 10) if IS_LONG else (30, 15, 2)
N_CLIENTS = 12
GROWTH = 1.05
WORDS = "the moon star house river cat dog old new big little and then she said near quiet fox night day".split()

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only on Linux: memory is read from /proc")


@dataclass(frozen=True, slots=True)
class Footprint:
    """What all processes of a server hold: kilobytes of memory, threads, descriptors."""

    kb: int
    n_threads: int
    n_files: int


def footprint(pid: int) -> Footprint:
    """Of a process and its children."""
    pids = [pid, *child_processes(pid)]
    kb = n_threads = n_files = 0
    for one in pids:
        rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
        kb += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:"))
        n_threads += len(os.listdir(f"/proc/{one}/task"))
        n_files += len(os.listdir(f"/proc/{one}/fd"))
    return Footprint(kb, n_threads, n_files)


class Crowd:
    """Clients of every kind on threads of their own, until `stop`. Each does one thing after the other, as its own
    random numbers say; what came of it is counted, and what must not happen is kept in `faults`."""

    def __init__(self, server: ServerProcess, seed: int) -> None:
        self._address = (urlsplit(server.url).hostname, urlsplit(server.url).port)
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._must_stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(seed * 1000 + i),), daemon=True)
            for i in range(N_CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let all of them finish what they do."""
        self._must_stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a client got no answer"

    def _run(self, rng: random.Random) -> None:
        kinds = [getattr(self, name) for name in dir(self) if name.startswith("do_")]
        while not self._must_stop.is_set():
            kind: Callable[[random.Random], object] = rng.choice(kinds)
            try:
                self.counts[f"{kind.__name__[3:]} {kind(rng)}"] += 1
            except OSError as error:
                self.counts[f"{kind.__name__[3:]} {type(error).__name__}"] += 1
            except Exception as error:
                self.faults.append(f"{kind.__name__}: {error!r}")

    # ---- how they talk ------------------------------------------------------------------------------------------

    def _connect(self) -> socket.socket:
        return socket.create_connection(self._address, PATIENCE)

    def _request(self, path: str, body: object, fields: str = "", method: str = "POST") -> bytes:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {len(data)}\r\n"
        return f"{head}Connection: close\r\n\r\n".encode() + data

    def _ask(self, *request: object) -> int:
        """The status of a whole answer."""
        with self._connect() as sock, sock.makefile("rb") as stream:
            sock.sendall(self._request(*request))
            data = stream.read()
        status = int(data.split(b" ", 2)[1])
        if status == 500 or not data.partition(b"\r\n\r\n")[2]:
            self.faults.append(f"{request[0]}: {data[:300]!r}")
        return status

    def _leave(self, sock: socket.socket, rng: random.Random) -> None:
        if rng.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    def _body(self, rng: random.Random, **fields: object) -> dict[str, object]:
        prompt = " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
        return {"prompt": prompt, "n_predict": rng.randint(1, 24), "cache_prompt": rng.random() < 0.7, **fields}

    # ---- what they do: honest ------------------------------------------------------------------------------------

    def do_complete(self, rng: random.Random) -> int:
        return self._ask("/completion", self._body(rng))

    def do_stream(self, rng: random.Random) -> int:
        return self._ask("/v1/completions", self._body(rng, stream=True))

    def do_chat(self, rng: random.Random) -> int:
        messages = [{"role": "user", "content": " ".join(rng.choices(WORDS, k=9))}]
        return self._ask("/v1/chat/completions", {"messages": messages, "max_tokens": 8, "stream": rng.random() < 0.5})

    def do_constrained(self, rng: random.Random) -> int:
        limits = rng.choice(
            (
                {"grammar": "root ::= [a-z ]{1,9}"},
                {"regex": "[a-c]+d"},
                {"choice": ["moon", "star"]},
                {"json_schema": {"type": "object", "properties": {f"p{rng.randint(0, 99)}": {"type": "integer"}}}},
            )
        )
        return self._ask("/completion", self._body(rng, **limits))

    def do_sampling(self, rng: random.Random) -> int:
        return self._ask(
            "/completion",
            self._body(
                rng,
                n_probs=rng.randint(0, 5),
                mirostat=rng.randint(0, 2),
                n_cmpl=rng.randint(1, 3),
                repeat_penalty=1.1,
                logit_bias=[[5, -1.0]],
                stop=["cat"],
                seed=rng.randint(0, 9),
            ),
        )

    def do_look(self, rng: random.Random) -> int:
        return self._ask(
            rng.choice(("/slots", "/health?strict=1", "/metrics", "/props", "/v1/models", "/", "/completion.js")),
            b"",
            "",
            "GET",
        )

    def do_tokens(self, rng: random.Random) -> int:
        return self._ask("/tokenize", {"content": "moon " * rng.randint(1, 500)})

    # ---- in a hurry ----------------------------------------------------------------------------------------------

    def do_hang_up(self, rng: random.Random) -> str:
        sock = self._connect()
        sock.sendall(self._request("/completion", self._body(rng, n_predict=-1, stream=rng.random() < 0.5)))
        if rng.random() < 0.7:
            sock.settimeout(rng.random() / 5)
            try:
                sock.recv(2000)
            except TimeoutError:
                pass
        self._leave(sock, rng)
        return "left"

    def do_abort(self, rng: random.Random) -> int:
        id_ = f"soak-{rng.randrange(10**9)}"
        with self._connect() as sock, sock.makefile("rb") as stream:
            sock.sendall(
                self._request("/completion", self._body(rng, n_predict=200, stream=True), f"X-Request-Id: {id_}\r\n")
            )
            stream.readline()
            self._ask("/v1/abort", {"id": id_})
            stream.read()
        return 200

    def do_time_limit(self, rng: random.Random) -> int:
        return self._ask("/completion", self._body(rng, n_predict=200, t_max_ms=rng.randint(1, 200)))

    # ---- abusive -------------------------------------------------------------------------------------------------

    def do_nonsense(self, rng: random.Random) -> str:
        with self._connect() as sock:
            sock.sendall(rng.randbytes(rng.randint(1, 400)))
            self._leave(sock, rng)
        return "sent"

    def do_half(self, rng: random.Random) -> str:
        data = self._request("/completion", self._body(rng))
        with self._connect() as sock:
            sock.sendall(data[: rng.randrange(len(data))])
            self._leave(sock, rng)
        return "sent"

    def do_bad_body(self, rng: random.Random) -> int:
        bodies = (
            b"{",
            b"[" * 5000,
            b'{"prompt": "\\ud800"}',
            b"\xff" * 50,
            b'{"prompt": 5}',
            b'{"prompt": "x", "top_p": 1e999}',
            b'{"prompt": "x", "grammar": "root ::= root"}',
            b'{"prompt": "x", "grammar": "' + b"(" * 3000 + b'"}',
            b'{"prompt": "x", "regex": "((((("}',
            b'{"prompt": "x", "json_schema": {"$ref": "#"}}',
            b'{"prompt": "x", "id_slot": 99}',
        )
        return self._ask("/completion", rng.choice(bodies))

    def do_long_prompt(self, rng: random.Random) -> int:
        return self._ask("/completion", {"prompt": "moon " * 3000})

    def do_large_body(self, rng: random.Random) -> int:
        return self._ask("/tokenize", b'{"content": 5, "x": "' + b"y" * 2_000_000 + b'"}')

    def do_idle(self, rng: random.Random) -> str:
        socks = [self._connect() for _ in range(10)]
        time.sleep(rng.random() / 5)
        for sock in socks:
            self._leave(sock, rng)
        return "left"

    def do_slow_reader(self, rng: random.Random) -> str:
        with self._connect() as sock:
            sock.sendall(self._request("/completion", self._body(rng, n_predict=100, stream=True)))
            for _ in range(5):
                sock.recv(50)
                time.sleep(0.02)
            self._leave(sock, rng)
        return "left"

    def do_pipeline(self, rng: random.Random) -> str:
        with self._connect() as sock, sock.makefile("rb") as stream:
            sock.sendall(
                b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20 + self._request("/completion", self._body(rng))
            )
            n = stream.read().count(b"HTTP/1.1 200 ")
        if n != 21:
            self.faults.append(f"{n} of 21 pipelined answers")
        return "answered"


def settle(server: ServerProcess) -> Footprint:
    """The footprint once everything has ended that the crowd has begun."""

    def is_quiet() -> bool:
        health = server.get("/health", headers={"Connection": "close"}).json()
        return (
            health["slots_processing"] == 0
            and "llamacpp:requests_deferred 0\n" in server.get("/metrics", headers={"Connection": "close"}).text
        )

    wait_until(is_quiet, "all slots to be idle", every=0.1)
    wait_until(lambda: http_threads(server) == 0, "all connections to end", every=0.1)
    return footprint(server.process.pid)


def http_threads(server: ServerProcess) -> int:
    """Sockets of clients that the server still holds: all of its TCP sockets but the listening one."""
    inodes = {os.readlink(path) for path in Path(f"/proc/{server.process.pid}/fd").iterdir() if path.is_symlink()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(f"socket:[{row[9]}]" in inodes and row[3] != "0A" for row in rows)


def test_nothing_grows_under_mixed_and_abusive_traffic(serve, tiny_spm_model, tmp_path, capsys):
    server = serve(
        "-m",
        tiny_spm_model,
        "-t",
        1,
        "-c",
        2048,
        "-np",
        4,
        "--metrics",
        "--max-connections",
        200,
        "--cache-ram",
        0,  # which would go on filling up to its limit
        environment={"TMPDIR": str(tmp_path)},
    )
    processes = child_processes(server.process.pid)
    text = server.complete("the quiet fox", 40, cache_prompt=False)["content"]
    if IS_LONG:
        faulthandler.cancel_dump_traceback_later()  # pytest.ini ends a test after ten minutes
    marks: list[Footprint] = []
    counts: Counter[str] = Counter()
    for round_, seconds in enumerate([WARM_UP_S, *[ROUND_S] * N_ROUNDS]):
        crowd = Crowd(server, round_)
        time.sleep(seconds)
        crowd.stop()
        assert crowd.faults == []
        counts += crowd.counts
        marks.append(settle(server))
    before, after = marks[0], min(marks[-2:], key=lambda mark: mark.kb)
    with capsys.disabled():
        print(
            f"\nsoak of {ROUND_S * N_ROUNDS} s after {WARM_UP_S} s: {counts.total()} requests, {before} -> {after}, "
            f"memory x {after.kb / before.kb:.3f}, KiB {[mark.kb for mark in marks]}"
        )
    assert server.complete("the quiet fox", 40, cache_prompt=False)["content"] == text
    assert min(counts[f"{kind} 200"] for kind in ("complete", "stream", "chat", "sampling")) > 0, counts
    assert after.kb <= before.kb * GROWTH, counts
    assert marks[-1].n_threads <= before.n_threads and marks[-1].n_files <= before.n_files
    assert child_processes(server.process.pid) == processes, "one engine from the first to the last, and no dead one"
    assert "Traceback" not in server.log
    assert server.stop() == 0
    assert list(tmp_path.iterdir()) == []
