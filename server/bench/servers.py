"""Starts, awaits and stops the servers that are measured, each given as a command.

Main thread of the measuring process. Imports the standard library, this package and `server.program`. A command is
split like a shell's and may begin with VAR=value words. Placeholders such as {model} are filled in after that, so paths
with spaces need no quotes. Each server has its own process group and a log, whose end is shown if the start fails.

Way not taken: a configuration file. A line in the shell's history is enough.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from server.bench.client import BenchError, HttpPeer, clock
from server.program import ROOT, stop_child

HOST = "127.0.0.1"
BARE = "bare"
OURS = "ours={python} {root}/llama_srv.py -m {model} --port {port} -t {threads} -np {slots} -c {ctx}"
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
NAME = re.compile(r"[A-Za-z0-9._+-]+")
POLL_S = 0.005
LOG_LINES = 3
NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"  # with it, Python compiles changed sources at every start


class Setup(NamedTuple):
    """How a workload needs its server. `ctx` is the whole context in tokens, shared by `slots`; `extra` are words for
    the command line."""

    model: Path
    threads: int
    slots: int
    ctx: int
    extra: tuple = ()


class ServerSpec(NamedTuple):
    """A server's name and its command with placeholders; `key` is an API key for it."""

    name: str
    words: tuple
    environment: dict
    key: str = ""

    @contextlib.contextmanager
    def run(self, setup: Setup, folder: Path, patience_s: float) -> Iterator[ServerPeer]:
        """Start the server, wait until it is ready, and stop it after the block. BenchError has the end of its log."""
        port = free_port()
        values = {
            "model": setup.model,
            "port": port,
            "threads": setup.threads,
            "slots": setup.slots,
            "ctx": setup.ctx,
            "host": HOST,
            "python": sys.executable,
            "root": ROOT,
        }
        command = [*(fill(word, values) for word in self.words), *setup.extra]
        environment = {name: fill(text, values) for name, text in self.environment.items()}
        with child_of(self.name, command, folder, environment) as (child, log):
            peer = ServerPeer(self.name, port, child.pid, self.key)
            peer.wait_until_ready(child, log, patience_s)
            yield peer


class ServerPeer(HttpPeer):
    """`listen_s` and `ready_s` are the times from the server's start to its first answer, and to its first answer with
    status 200."""

    def __init__(self, name: str, port: int, pid: int, key: str = "") -> None:
        super().__init__(name, HOST, port, key)
        self._pid = pid
        self.listen_s = self.ready_s = 0.0

    def wait_until_ready(self, child: subprocess.Popen, log: Path, patience_s: float) -> None:
        """Poll /health until it answers 200, and note the times."""
        begun = clock()
        while (status := self.get_health()) != 200:
            if status and not self.listen_s:
                self.listen_s = clock() - begun
            if child.poll() is not None:
                raise BenchError(f"{self.name} ended at its start with code {child.returncode}: {log_end(log)}")
            if clock() - begun > patience_s:
                raise BenchError(f"{self.name} wasn't ready in {patience_s:.0f} s (--patience): {log_end(log)}")
            time.sleep(POLL_S)
        self.ready_s = clock() - begun
        self.listen_s = self.listen_s or self.ready_s

    def read_peak_memory(self) -> float:
        """See `servers.read_peak_memory`. BenchError if Windows can't tell."""
        return read_peak_memory(self._pid)


def parse_server(text: str) -> ServerSpec:
    """Parse `NAME=[VAR=value ...] command with {placeholders}`. BenchError."""
    name, equals, command = text.partition("=")
    if not equals or not NAME.fullmatch(name) or name == BARE:
        raise BenchError(
            f"--server {text!r}: write it as NAME=COMMAND, e.g. 'theirs=llama-server -m {{model}} --port {{port}}'"
        )
    try:
        words = shlex.split(command, posix=os.name != "nt")
    except ValueError as error:
        raise BenchError(f"--server {name}: the command can't be split into words ({error})") from None
    environment: dict = {}
    while words and ASSIGNMENT.match(words[0]):
        variable, _, value = words.pop(0).partition("=")
        environment[variable] = value
    if not words:
        raise BenchError(f"--server {name}: the command is missing after the name")
    if not any("{port}" in word for word in [*words, *environment.values()]):
        raise BenchError(f"--server {name}: the command needs the placeholder {{port}}")
    return ServerSpec(name, tuple(words), environment)


def count_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> float:
    """The load average of the last minute; 0 if the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def fill(word: str, values: dict) -> str:
    """Fill in placeholders; other braces, such as those of JSON, stay."""
    for name, value in values.items():
        word = word.replace("{" + name + "}", str(value))
    return word


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def child_of(name: str, command: list, folder: Path, environment: dict, **streams: Any) -> Iterator[tuple]:
    """Yield (process, log file). The process and its children end with the block."""
    log = folder / f"{name}.log"
    own_group: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}
    with open(log, "ab") as out:
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, **streams}
        try:
            child = subprocess.Popen(
                command, env=make_child_environment(environment), stderr=out, **streams, **own_group
            )
        except OSError as error:
            raise BenchError(f"{name}: {command[0]} can't be started ({error.strerror})") from None
    try:
        yield child, log
    finally:
        stop_child(child, patience=20.0)
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def make_child_environment(environment: dict) -> dict:
    """Our environment with these variables, without NO_BYTECODE."""
    inherited = {name: value for name, value in os.environ.items() if name != NO_BYTECODE}
    return {**inherited, **environment}


def log_end(log: Path) -> str:
    """The last lines of a log as one line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-LOG_LINES:]) or "its log is empty"


# --- processor time --------------------------------------------------------------------------------------------


def read_cpu_seconds(proc: Path = Path("/proc"), ours: int = 0) -> tuple | None:
    """(seconds that all cores were busy, seconds that our processes were) since the machine started; None if unknown.

    Our processes are `ours` (by default this one) and its descendants, including those that have ended.
    """
    try:
        ticks = [int(cell) for cell in (proc / "stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    ours = ours or os.getpid()
    rows = list(read_stat_rows(proc))
    used = sum(sum(map(int, cells[11:15])) for _, cells in find_family(rows, ours))
    per_second = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - ticks[3] - ticks[4]) / per_second, used / per_second


def read_stat_rows(proc: Path) -> Iterator[tuple]:
    """For every process: (pid, the fields of its stat file after the name: state, ppid, pgrp, session, ...)."""
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            yield int(folder.name), text.rpartition(")")[2].split()


def find_family(rows: list, first: int) -> Iterator[tuple]:
    """The rows of the process `first`, its descendants, and their sessions: a server may put a process into a session
    of its own, and a parent may have ended."""
    found = {first}
    sessions = {pid for pid, cells in rows if int(cells[3]) == pid and (pid == first or int(cells[1]) == first)}
    while more := {pid for pid, cells in rows if int(cells[1]) in found or int(cells[3]) in sessions} - found:
        found |= more
        sessions |= {pid for pid, cells in rows if pid in more and int(cells[3]) == pid}
    return ((pid, cells) for pid, cells in rows if pid in found)


# --- memory ----------------------------------------------------------------------------------------------------


def read_peak_memory(pid: int) -> float:
    """Peak memory in MiB; on systems other than Linux and Windows the current memory. Mapped pages of the model
    count."""
    if sys.platform == "linux":
        return sum(read_linux_peaks(Path("/proc"), pid)) / 1024
    if sys.platform == "win32":
        return read_windows_peak(pid) / 2**20
    listing = subprocess.run(["ps", "-axo", "pid=,pgid=,rss="], capture_output=True, text=True, check=False).stdout
    rows = [[int(cell) for cell in line.split()] for line in listing.splitlines()]
    return sum(rss for _, group, rss in rows if group == pid) / 1024


def read_linux_peaks(proc: Path, server: int) -> Iterator[int]:
    """The peak in KiB of each process of a server: those in its session, and their descendants in other sessions."""
    for pid, _ in find_family(list(read_stat_rows(proc)), server):
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", (proc / str(pid) / "status").read_text(encoding="utf-8"))
            yield int(found[1]) if found else 0


def read_windows_peak(pid: int) -> int:
    """The peak in bytes of the process alone."""

    class Counters(ctypes.Structure):
        _fields_ = [
            ("size", ctypes.c_uint32),
            ("page_faults", ctypes.c_uint32),
            ("peak", ctypes.c_size_t),
            *((f"other_{i}", ctypes.c_size_t) for i in range(7)),
        ]

    query_information = 0x1000  # PROCESS_QUERY_LIMITED_INFORMATION
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(query_information, False, pid)
    counters = Counters(size=ctypes.sizeof(Counters))
    done = handle and kernel.K32GetProcessMemoryInfo(ctypes.c_void_p(handle), ctypes.byref(counters), counters.size)
    if handle:
        kernel.CloseHandle(ctypes.c_void_p(handle))
    if not done:
        raise BenchError(f"Windows didn't report the memory of process {pid}: leave out the workload memory")
    return counters.peak
