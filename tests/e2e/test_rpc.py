"""One model over two workers on this machine, with real processes: the same text, and streams when a worker dies or
hangs.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from tests.support import PATIENCE, ServerProcess, events, need, run_command

pytestmark = [
    pytest.mark.covers("Y01"),
    pytest.mark.skipif(sys.platform != "linux", reason="only on Linux: libggml-rpc is built there"),
]
PROMPT = "once upon a time the dog and the moon went"
ARGUMENTS = ("-c", "2048", "-np", "2", "-t", "1", "--memory-f32", "-fa", "off")
HALVES = ("-ts", "1,1")
FIELDS = {"prompt": PROMPT, "n_predict": 120, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
N_CTX, ROOM = 500_000, 400 << 20  # tokens whose cache is 245 MiB for each of the model's two layers; bytes


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def libs(libs_folder):
    found = list(libs_folder.glob("*ggml-rpc*"))
    need(found, "libggml-rpc isn't here (run `python build_scripts/fetch_libs.py --with-rpc`)")
    return str(libs_folder)


@pytest.fixture
def worker(libs) -> Iterator[Callable[[], tuple[str, ServerProcess]]]:
    """`worker()` starts one: its address and its process."""
    with ExitStack() as stack:

        def start(port: int = 0) -> tuple[str, ServerProcess]:
            port = port or free_port()
            process = ServerProcess(["rpc-worker", "--libs", libs, "--port", str(port), "-t", "1"])
            stack.callback(kill, process)
            process.wait_for_line("transport")
            return f"127.0.0.1:{port}", process

        yield start


def kill(worker: ServerProcess) -> None:
    worker.process.kill()
    worker.process.wait(PATIENCE)


@pytest.fixture
def two(worker) -> tuple[str, list[ServerProcess]]:
    """Two workers: the value of --rpc, and their processes."""
    started = [worker() for _ in range(2)]
    return ",".join(address for address, _ in started), [process for _, process in started]


@pytest.fixture
def alone(serve, libs, tiny_spm_model) -> str:
    """The text without workers."""
    return serve("-m", str(tiny_spm_model), "--libs", libs, *ARGUMENTS).post("/completion", FIELDS).json()["content"]


def test_the_text_over_two_workers_is_the_same(serve, libs, tiny_spm_model, two, alone):
    addresses, processes = two
    server = serve("-m", str(tiny_spm_model), "--libs", libs, *ARGUMENTS, "--rpc", addresses, *HALVES)
    assert server.post("/completion", FIELDS).json()["content"] == alone
    long = server.post("/completion", {**FIELDS, "prompt": PROMPT * 30}).json()
    assert long["tokens_predicted"] == FIELDS["n_predict"] and long["tokens_evaluated"] > 200
    server.stop()
    assert "RPC1" in server.log and all(process.log.count("Accepted") >= 2 for process in processes)


def test_a_worker_that_is_away_at_the_start_is_named(libs, tiny_spm_model):
    address = f"127.0.0.1:{free_port()}"
    done = run_command(["-m", str(tiny_spm_model), "--libs", libs, "--rpc", address])
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"--rpc: the worker at {address} can't be reached" in done.stderr


def test_a_port_that_is_taken_is_named(libs, worker):
    address, _ = worker()
    done = run_command(["rpc-worker", "--libs", libs, "--port", address.rpartition(":")[2]])
    assert done.returncode == 1 and f"can't listen on {address}" in done.stderr


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("when", ["decode", "prefill"])
def test_streams_go_on_when_a_worker_dies_or_hangs(serve, libs, tiny_spm_model, two, alone, how, when):
    """On this machine alone, since there the model has room."""
    addresses, processes = two
    server = serve(
        *("-m", str(tiny_spm_model), "--libs", libs, *ARGUMENTS, "--rpc", addresses, *HALVES, "--engine-timeout", "3")
    )
    if when == "prefill":
        os.kill(processes[1].process.pid, getattr(signal, how))
    answer = server.post("/completion", {**FIELDS, "stream": True}, stream=True)
    got = []
    for event in events(answer):
        got.append(event["content"])
        if len(got) == 20 and when == "decode":
            os.kill(processes[1].process.pid, getattr(signal, how))
    assert "".join(got) == alone
    server.wait_for_line("going on without it")
    assert server.post("/completion", FIELDS).json()["content"] == alone
    server.stop()


def test_a_model_that_one_worker_has_no_room_for_runs_over_two(serve, libs, tiny_spm_model, two, alone):
    import resource

    addresses, processes = two
    for process in processes:
        with open(f"/proc/{process.process.pid}/status", encoding="ascii") as status:
            n_kib = next(int(line.split()[1]) for line in status if line.startswith("VmSize"))
        limit = n_kib * 1024 + ROOM
        resource.prlimit(process.process.pid, resource.RLIMIT_AS, (limit, limit))
    model = (
        "-m",
        str(tiny_spm_model),
        "--libs",
        libs,
        *ARGUMENTS[2:],
        "-c",
        str(N_CTX),
        "-b",
        "16",
        "--rpc",
        addresses,
    )
    refused = run_command([*model, "-ts", "1,0", "--port", "0"])
    assert refused.returncode != 0 and "RPC0" in refused.stderr
    server = serve(*model, "-ts", "1,3")
    assert server.post("/completion", FIELDS).json()["content"] == alone
