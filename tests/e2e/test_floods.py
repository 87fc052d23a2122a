"""Small requests that multiply, and large ones that can't fit, against the real program: another client's stream
continues, the engine lives, the web process stays small, and a signal ends everything.

The attackers' bodies are made beforehand, so that this process only has to measure.
"""

from __future__ import annotations

import http.client
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support import PATIENCE, ServerProcess, child_processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only on Linux: memory is read from /proc")

MIB = 1 << 20
MAX_GAP_S = 1.0
MAX_RSS = 1024 * MIB
PROSE = "The quick brown fox jumps over the lazy dog. " * (60 * MIB // 45)


def body(**fields: object) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode()


def attacks() -> Iterator[tuple[str, str, bytes, int]]:
    """Name, route, body, and how many clients send it at the same time."""
    yield "prompts times answers", "/completion", body(prompt=["x"] * 1000, n_cmpl=128), 1
    yield "a thousand prompts", "/completion", body(prompt=["x"] * 1000, n_predict=200), 1
    yield "60 MB to tokenize", "/tokenize", body(content=PROSE), 3
    yield "wide letters", "/tokenize", body(content="\U0001f600" * (15 * MIB)), 1
    yield "4 MB with pieces", "/tokenize", body(content=PROSE[: 4 * MIB - 99], with_pieces=True), 1
    yield "a prompt of 60 MB", "/completion", body(prompt=PROSE), 8
    yield "prompts of 60 kB", "/completion", body(prompt=[PROSE[:60_000]] * 1000), 1
    yield "two million ids", "/completion", body(prompt=[5] * 1_999_000), 1
    yield "a chat of 60 MB", "/v1/chat/completions", body(messages=[{"role": "user", "content": PROSE}]), 2
    yield "texts to embed", "/embedding", body(input=[PROSE[:30_000]] * 2048), 1
    yield "ids to detokenize", "/detokenize", body(tokens=[5] * 1_999_000), 1
    yield "a system prompt", "/completion", body(prompt="x", system_prompt={"prompt": PROSE}), 1
    yield (
        "biases times answers",
        "/completion",
        body(prompt="x", n_cmpl=100, logit_bias=[[i, 1] for i in range(48_000)]),
        1,
    )
    yield "stop words times answers", "/completion", body(prompt="x", n_cmpl=128, stop=["y" * 6000] * 10_000), 1
    yield "probabilities", "/completion", body(prompt="x", n_predict=300, n_probs=10_000, ignore_eos=True), 1
    yield "a word without end", "/tokenize", body(content="a" * 390_000), 1
    yield "no word at all", "/tokenize", body(content="a" * (4 * MIB - 99)), 1


class Bystander(threading.Thread):
    """Reads one stream after the other until `end`; `gaps` are the seconds between two tokens."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(daemon=True)
        self.address = urlsplit(server.url).netloc
        self.gaps: list[float] = []
        self.errors: list[str] = []
        self._must_end = threading.Event()

    def run(self) -> None:
        data = body(prompt="Once upon a time", n_predict=800, stream=True, ignore_eos=True)
        while not self._must_end.is_set():
            connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
            connection.request("POST", "/completion", data)
            response, last = connection.getresponse(), time.monotonic()
            while not self._must_end.is_set() and (line := response.readline()):
                if line.startswith(b"data:"):
                    self.gaps.append(time.monotonic() - last)
                    last = time.monotonic()
                elif line.startswith(b"error"):
                    self.errors.append(line.decode())
            connection.close()

    def end(self) -> None:
        self._must_end.set()
        self.join(PATIENCE)


def post(server: ServerProcess, path: str, data: bytes, patience: float = PATIENCE) -> int | str:
    """The status, or what went wrong."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=patience)
    try:
        connection.request("POST", path, data)
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def at_once(n: int, *request: object) -> list[int | str]:
    """What so many clients get for the same request."""
    statuses: list[int | str] = []
    threads = [threading.Thread(target=lambda: statuses.append(post(*request))) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def peak_rss(pid: int) -> int:
    """Of a process since `forget_peak`, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def test_nobody_else_notices_a_flood(serve, smollm2):
    server = serve("-m", smollm2, "-c", 4096, "-np", 4, "-t", 1, "--metrics", "--drain", 0)
    pid = server.process.pid
    engine = child_processes(pid)
    bystander = Bystander(server)
    bystander.start()
    time.sleep(2)
    calm = max(bystander.gaps)
    found = []
    for name, path, data, n in attacks():
        bystander.gaps.clear()
        forget_peak(pid)
        patience = 3 if name == "a thousand prompts" else PATIENCE  # it leaves, and takes them along
        statuses = at_once(n, server, path, data, patience)
        time.sleep(0.2)
        found.append((name, statuses, max(bystander.gaps, default=0.0), peak_rss(pid)))
        print(f"{name}: {statuses}, gap {found[-1][2]:.2f} s, peak {found[-1][3] // MIB} MiB")
    bystander.end()
    assert bystander.errors == [] and child_processes(pid) == engine, "the engine is the same"
    for name, statuses, gap, rss in found:
        assert set(statuses) <= {200, 400, 503, "TimeoutError", "timeout"}, name
        assert rss < MAX_RSS, f"{name}: {rss // MIB} MiB"
        assert gap < MAX_GAP_S + 2 * calm, f"{name}: a gap of {gap:.2f} s where the calm ones have {calm:.2f} s"
    assert post(server, "/completion", body(prompt="x", n_predict=1)) == 200


def test_a_signal_ends_a_server_that_tokenizes(serve, smollm2):
    server = serve("-m", smollm2, "-c", 1024, "-t", 1, "--drain", 0)
    data = body(content=" a" * (2 * MIB - 99))
    clients = [threading.Thread(target=post, args=(server, "/tokenize", data)) for _ in range(4)]
    for client in clients:
        client.start()
    time.sleep(1)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0, "cleanly, and long before four such texts are tokenized on a slow machine"
    for client in clients:
        client.join(PATIENCE)
