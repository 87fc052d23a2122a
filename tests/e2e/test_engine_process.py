"""The real program and its engine process: neither outlives the other, and signals go to the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.e2e.test_kills import engine_pid
from tests.support import PATIENCE, ROOT, ServerProcess, wait_until

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: finds the engine in /proc")
pytestmark = LINUX


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def streaming(server: ServerProcess) -> threading.Thread:
    """A client that reads an endless answer; it is there when this returns."""
    began = threading.Event()

    def read() -> None:
        try:
            for _ in server.stream("/completion", {"prompt": "once", "n_predict": -1, "ignore_eos": True}):
                began.set()
        except OSError:
            pass  # the server is killed under it

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert began.wait(PATIENCE)
    return thread


def test_a_stopped_server_leaves_no_engine(serve, tiny_spm_model):
    server = serve("-m", tiny_spm_model, "-t", 1, "--drain", 0)
    pid = engine_pid(server)
    client = streaming(server)
    assert is_running(pid)
    assert server.stop() == 0 and not is_running(pid)
    client.join(PATIENCE)
    assert "died" not in server.log and "Traceback" not in server.log


def test_a_killed_server_leaves_no_engine(serve, tiny_spm_model):
    server = serve("-m", tiny_spm_model, "-t", 1)
    pid = engine_pid(server)
    client = streaming(server)
    server.process.kill()
    wait_until(lambda: not is_running(pid), "the end of the engine", PATIENCE)
    client.join(PATIENCE)


def test_signals_for_the_whole_group_leave_the_engine_to_the_server(serve, tiny_spm_model):
    server = serve("-m", tiny_spm_model, "-t", 1)
    pid = engine_pid(server)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)  # what a terminal or a service manager sends to all of them
    assert server.complete("once", 4)["tokens_predicted"] == 4
    assert engine_pid(server) == pid
    server.interrupt()
    assert server.wait() == 0 and not is_running(pid)


def test_the_engine_can_be_a_thread(serve, tiny_spm_model):
    server = serve("-m", tiny_spm_model, "-t", 1, "--engine", "thread")
    assert engine_pid(server) is None and server.complete("once", 4)["tokens_predicted"] == 4


def test_a_model_that_crashes_libllama_while_it_loads_is_one_line(libs_folder, tiny_spm_model, tmp_path):
    code = (
        "import sys, os, signal; from server.engine.client import child as supervise_child; "
        "start = supervise_child.Child.__init__\n"
        "def killed(self, *args):\n"
        "    start(self, *args); self.process.send_signal(signal.SIGSEGV)\n"
        "supervise_child.Child.__init__ = killed\n"
        "from server.launch import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "-m", str(tiny_spm_model), "--port", "0"],
        cwd=ROOT,
        capture_output=True,
        timeout=PATIENCE,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ") and "SIGSEGV" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
