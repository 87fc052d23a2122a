"""Operating the real program from outside: signals, files, systemd's socket, and what it leaves behind at its end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess

import pytest
import requests

from server.service.janitor import Janitor
from tests.support import NO_PROXY, PATIENCE, ServerProcess, wait_until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="not on Windows: it has no such signals and sockets")


def status(server: ServerProcess, key: str) -> int:
    """Of a request with this API key."""
    return requests.get(
        server.url + "/props", headers={"X-Api-Key": key}, timeout=PATIENCE, proxies=NO_PROXY
    ).status_code


def test_the_files_follow_the_program_and_go_with_it(serve, tiny_spm_model, tmp_path):
    server = serve("-m", tiny_spm_model, "-t", 1, "--pid-file", tmp_path / "pid", "--state-file", tmp_path / "state")
    wait_until(lambda: json.loads((tmp_path / "state").read_text())["state"] == "ready", "the state to be ready")
    state = json.loads((tmp_path / "state").read_text())
    assert (state["url"], state["pid"]) == (server.url, server.process.pid)
    assert int((tmp_path / "pid").read_text()) == server.process.pid
    assert server.stop() == 0
    assert os.listdir(tmp_path) == []


def test_a_hangup_takes_over_keys_and_a_moved_log_file(serve, tiny_spm_model, tmp_path):
    keys, log = tmp_path / "keys", tmp_path / "log"
    keys.write_text("first-key\n")
    server = serve("-m", tiny_spm_model, "-t", 1, "--api-key-file", keys, "--log-file", log)
    assert (status(server, "first-key"), status(server, "other-key")) == (200, 401)
    keys.write_text("other-key\n")
    log.rename(tmp_path / "log.1")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_line("reloaded")
    assert (status(server, "first-key"), status(server, "other-key")) == (401, 200)
    wait_until(lambda: "reloaded" in log.read_text(), "the file to have what stderr has", PATIENCE)
    assert "listening" in (tmp_path / "log.1").read_text()
    for text in (server.log, log.read_text(), (tmp_path / "log.1").read_text()):
        assert "first-key" not in text and "other-key" not in text


def test_a_signal_shows_what_every_thread_does_and_changes_nothing(serve, tiny_spm_model):
    server = serve("-m", tiny_spm_model, "-t", 1)
    text = server.complete("the cat", 20)["content"]
    server.process.send_signal(signal.SIGUSR1)
    server.wait_for_line("web process, process")
    wait_until(lambda: "scheduler.py" in server.log and "httpd.py" in server.log, "the threads of engine and edge")
    assert server.complete("the cat", 20)["content"] == text
    assert server.stop() == 0


def test_systemd_hears_of_the_whole_life(serve, tiny_spm_model, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        heard: list[str] = []

        def wait_for(line: str) -> None:
            while line not in "\n".join(heard).split("\n"):
                heard.append(manager.recv(4096).decode())

        server = serve(
            "-m",
            tiny_spm_model,
            "-t",
            1,
            environment={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"},
        )
        wait_for("READY=1")
        heard.clear()
        wait_for("WATCHDOG=1")
        assert server.stop() == 0
        wait_for("STOPPING=1")


def processes_with(word: str) -> list[str]:
    """Command lines of running processes with this word in them."""
    lines = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if word in line]


def test_a_killed_server_leaves_no_socket_and_no_process(libs_folder, tiny_spm_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # such paths must be short
    with ServerProcess(["-m", str(tiny_spm_model), "-t", "1", "--host", "llm.sock"]) as killed:
        killed.wait_for_line("is ready")
        assert stat.S_ISSOCK(os.stat("llm.sock").st_mode) and processes_with(str(tmp_path / "llm.sock"))
        killed.process.kill()
        killed.wait()
        wait_until(lambda: not os.path.lexists("llm.sock"), "the socket to go", PATIENCE)
        wait_until(lambda: not processes_with(str(tmp_path / "llm.sock")), "its janitor to end", PATIENCE)


def test_a_killed_server_s_janitor_leaves_the_socket_of_its_successor_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.bind("llm.sock")
        janitor = Janitor(["llm.sock"])
        os.rename("llm.sock", "old.sock")  # so that its number isn't given to the other
        second.bind("llm.sock")
        janitor.close()  # as far as it can tell, the server is dead
        assert stat.S_ISSOCK(os.stat("llm.sock").st_mode)


def test_a_socket_left_behind_is_taken_over_and_removed(libs_folder, tiny_spm_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["-m", str(tiny_spm_model), "-t", "1", "--host", "llm.sock", "--pid-file", "pid"]
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind("llm.sock")
    (tmp_path / "pid").write_text("1\n")
    with ServerProcess(arguments) as server:
        server.wait_for_line("is ready")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("llm.sock")
            client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert int(open("pid").read()) == server.process.pid
        assert server.stop() == 0
    assert os.listdir(".") == []


def test_a_file_that_cannot_be_written_ends_the_program_in_one_line(libs_folder, tiny_spm_model, tmp_path):
    with ServerProcess(
        ["-m", str(tiny_spm_model), "--port", "0", "--pid-file", str(tmp_path / "no" / "pid")]
    ) as server:
        assert server.wait() == 2
        [line] = [line for line in server.log.splitlines() if line.startswith("error: ")]
        assert "--pid-file" in line


def test_a_changed_key_file_counts_without_a_signal(serve, tiny_spm_model, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first-key\n")
    server = serve("-m", tiny_spm_model, "-t", 1, "--api-key-file", keys)
    keys.write_text("other-key and longer\r\n")
    wait_until(lambda: status(server, "other-key and longer") == 200, "the new key to count")
    assert status(server, "first-key") == 401


def test_keys_never_get_into_the_log(serve, tiny_spm_model):
    server = serve("-m", tiny_spm_model, "-t", 1, "--api-key", "right-secret", "-v")
    for headers in (
        {"Authorization": "Bearer right-secret"},
        {"Authorization": "right-secret"},
        {"X-Api-Key": "right-secret"},
        {"X-Request-Id": "right-secret"},
        {"User-Agent": "right-secret"},
    ):
        for path in ("/props?api_key=right-secret", "/right-secret", "/v1/models#right-secret"):
            requests.get(server.url + path, headers=headers, timeout=PATIENCE, proxies=NO_PROXY)
    answer = requests.post(
        server.url + "/completion",
        json={"prompt": "right-secret", "n_predict": 2},
        timeout=PATIENCE,
        headers={"X-Api-Key": "right-secret"},
        proxies=NO_PROXY,
    )
    assert answer.status_code == 200 and server.stop() == 0
    assert "right-secret" not in server.log and "***" in server.log


@pytest.mark.parametrize(("asked", "is_said"), [(300, True), (512, False)])
def test_a_context_of_another_size_than_asked_for_is_told(serve, tiny_spm_model, asked, is_said):
    server = serve("-m", tiny_spm_model, "-t", 1, "-c", asked)
    server.wait_for_line("is ready")
    assert (f"instead of the requested {asked}" in server.log) is is_said


def test_a_second_signal_leaves_no_file_either(serve, tiny_spm_model, tmp_path):
    server = serve(
        "-m",
        tiny_spm_model,
        "-t",
        1,
        "-c",
        256,
        "--context-shift",
        "--pid-file",
        tmp_path / "pid",
        "--state-file",
        tmp_path / "state",
        "--drain",
        86400,
    )
    stream = server.stream("/completion", {"prompt": "the cat", "n_predict": -1})
    next(stream)
    server.terminate()
    server.wait_for_line("stopping")
    server.terminate()
    assert server.wait() == 130
    assert os.listdir(tmp_path) == []
    stream.close()


def test_stacks_of_both_processes_are_shown(serve, tiny_spm_model):
    server = serve("-m", tiny_spm_model, "-t", 1, "--debug-stacks")
    text = server.post("/debug/stacks").text
    for place in ("process " + str(server.process.pid), "http-accept", "app.py", "scheduler.py"):
        assert place in text, text
    assert len(re.findall(r", process \d+$", text, re.MULTILINE)) == 2, text
