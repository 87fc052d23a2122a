"""The programs that bench.py measures: a server given as a command, and the bare loop. Start, wait, ask, stop.

Runs in the process of bench.py, on its main thread. Imports the standard library and this folder. A command is split
as a shell would and may begin with VAR=value words; {model}, {port} and the like are put in after that, so paths with
blanks need no quotes. Each program gets its own process group and a log file, whose end is shown if it fails.

The way not taken: a configuration file of servers. One line in the user's shell history is enough.
"""
from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, NamedTuple

from bench_client import Answer, Ask, HttpPeer, clock
from common import ROOT, Failure, stop_child

HOST = "127.0.0.1"
BARE = "bare"
OURS = "ours={python} {root}/llama_srv.py -m {model} --port {port} -t {threads} -np {slots} -c {ctx}"
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
NAME = re.compile(r"[A-Za-z0-9._+-]+")
POLL_S = 0.005
LOG_LINES = 3


class Setup(NamedTuple):
    """What a workload wants of a server: `ctx` is the whole context in tokens, shared by `slots`."""

    model: Path
    threads: int
    slots: int
    ctx: int


class ServerSpec(NamedTuple):
    """A server by name and command, with placeholders still in it."""

    name: str
    words: tuple
    environment: dict

    @contextlib.contextmanager
    def run(self, setup: Setup, folder: Path, patience_s: float) -> Iterator[ServerPeer]:
        """Start it, wait until it is ready, and end it afterwards. Raises Failure with the end of its log."""
        port = free_port()
        values = {"model": setup.model, "port": port, "threads": setup.threads, "slots": setup.slots,
                  "ctx": setup.ctx, "host": HOST, "python": sys.executable, "root": ROOT}
        command = [fill(word, values) for word in self.words]
        environment = {name: fill(text, values) for name, text in self.environment.items()}
        with child_of(self.name, command, folder, environment) as (child, log):
            peer = ServerPeer(self.name, port, child.pid)
            peer.wait_until_ready(child, log, patience_s)
            yield peer


class BareSpec(NamedTuple):
    """The loop of bench_bare.py over our bindings, as if it were a server."""

    name: str = BARE

    @contextlib.contextmanager
    def run(self, setup: Setup, folder: Path, patience_s: float) -> Iterator[BarePeer]:
        """See `ServerSpec.run`."""
        command = [sys.executable, str(ROOT / "build_scripts" / "bench_bare.py"), str(setup.model),
                   str(setup.threads), str(setup.slots), str(setup.ctx)]
        with child_of(self.name, command, folder, {}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as (child, log):
            peer = BarePeer(child, log)
            peer.receive()              # its first line says that the model is loaded
            yield peer


class ServerPeer(HttpPeer):
    """A server that was started here. `listen_s`, `ready_s`: from its start to the first answer, to the first 200."""

    def __init__(self, name: str, port: int, pid: int) -> None:
        super().__init__(name, HOST, port)
        self._pid = pid
        self.listen_s = self.ready_s = 0.0

    def wait_until_ready(self, child: subprocess.Popen, log: Path, patience_s: float) -> None:
        """Poll /health; measures the start on the way."""
        begun = clock()
        while (status := self.health()) != 200:
            if status and not self.listen_s:
                self.listen_s = clock() - begun
            if child.poll() is not None:
                raise Failure(f"{self.name} ended at its start with code {child.returncode}: {log_end(log)}")
            if clock() - begun > patience_s:
                raise Failure(f"{self.name} wasn't ready in {patience_s:.0f} s (--patience): {log_end(log)}")
            time.sleep(POLL_S)
        self.ready_s = clock() - begun
        self.listen_s = self.listen_s or self.ready_s

    def peak_memory(self) -> float:
        """Highest resident memory so far, in MiB, of the process and those it started; Failure if unknown here."""
        return peak_memory(self._pid)


class BarePeer:
    """The bare loop in its own process: lines of JSON in and out."""

    name = BARE

    def __init__(self, child: subprocess.Popen, log: Path) -> None:
        self._child, self._log = child, log

    def generate(self, asks: list[Ask]) -> list:
        """As `HttpPeer.generate`: all of them in one batch."""
        line = json.dumps([{"prompt": ask.prompt, "n_predict": ask.n_predict, "fields": ask.fields} for ask in asks])
        self._child.stdin.write(line.encode() + b"\n")
        self._child.stdin.flush()
        return [Answer(tuple(answer["arrivals"]), answer["arrivals"][-1], answer["n_prompt"], answer["n_prompt"],
                       len(answer["arrivals"]), answer["text"]) for answer in self.receive()]

    def receive(self) -> object:
        """The next line; Failure with the log's end if there is none."""
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            raise Failure(f"{BARE} ended with code {self._child.returncode}: {log_end(self._log)}")
        return json.loads(line)


def parse_server(text: str) -> ServerSpec:
    """`NAME=[VAR=value ...] command with {placeholders}`; Failure says what is wrong with it."""
    name, equals, command = text.partition("=")
    if not equals or not NAME.fullmatch(name) or name == BARE:
        raise Failure(f"--server {text!r}: write it as NAME=COMMAND, e.g. 'theirs=llama-server -m {{model}} "
                      "--port {port}'")
    try:
        words = shlex.split(command, posix=os.name != "nt")
    except ValueError as error:
        raise Failure(f"--server {name}: the command can't be split into words ({error})") from None
    environment: dict = {}
    while words and ASSIGNMENT.match(words[0]):
        variable, _, value = words.pop(0).partition("=")
        environment[variable] = value
    if not words:
        raise Failure(f"--server {name}: there is no command behind the name")
    if not any("{port}" in word for word in [*words, *environment.values()]):
        raise Failure(f"--server {name}: the command must say where {{port}} goes")
    return ServerSpec(name, tuple(words), environment)


def fill(word: str, values: dict) -> str:
    """Put the values in; other braces (JSON, say) are left alone."""
    for name, value in values.items():
        word = word.replace("{" + name + "}", str(value))
    return word


def free_port() -> int:
    """A port that nobody used a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def child_of(name: str, command: list, folder: Path, environment: dict, **streams: object) -> Iterator[tuple]:
    """(process, log file); the process and all that it started end with the block."""
    log = folder / f"{name}.log"
    own_group = {"start_new_session": True} if os.name == "posix" else {}
    with open(log, "ab") as out:
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, **streams}
        try:
            child = subprocess.Popen(command, env={**os.environ, **environment}, stderr=out, **streams, **own_group)
        except OSError as error:
            raise Failure(f"{name}: {command[0]} can't be started ({error.strerror})") from None
    try:
        yield child, log
    finally:
        stop_child(child, patience=20.0)
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def log_end(log: Path) -> str:
    """The last lines of what a program printed, as one line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-LOG_LINES:]) or "it printed nothing"


# --- processor time --------------------------------------------------------------------------------------------

def cpu_seconds(proc: Path = Path("/proc"), ours: int = 0) -> tuple | None:
    """(seconds all cores were busy, seconds of them that were ours) since the machine started; None if it won't tell.

    Ours is this process (`ours`, by default) and every program that `child_of` has started, ended ones included.
    """
    try:
        ticks = [int(cell) for cell in (proc / "stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    ours = ours or os.getpid()
    rows = list(stat_rows(proc))
    sessions = {pid for pid, cells in rows if int(cells[1]) == ours and int(cells[3]) == pid}
    used = sum(sum(map(int, cells[11:15])) for pid, cells in rows if pid == ours or int(cells[3]) in sessions)
    per_second = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - ticks[3] - ticks[4]) / per_second, used / per_second


def stat_rows(proc: Path) -> Iterator[tuple]:
    """(pid, the cells of its stat file behind the name: state, ppid, pgrp, session, ...) of every process."""
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            yield int(folder.name), text.rpartition(")")[2].split()


# --- memory ----------------------------------------------------------------------------------------------------

def peak_memory(pid: int) -> float:
    """MiB. Linux and Windows know the peak, elsewhere it is what is used now. Mapped model pages count."""
    if sys.platform == "linux":
        return sum(linux_peaks(Path("/proc"), pid)) / 1024
    if sys.platform == "win32":
        return windows_peak(pid) / 2**20
    listing = subprocess.run(["ps", "-axo", "pid=,pgid=,rss="], capture_output=True, text=True, check=False).stdout
    rows = [[int(cell) for cell in line.split()] for line in listing.splitlines()]
    return sum(rss for _, group, rss in rows if group == pid) / 1024


def linux_peaks(proc: Path, session: int) -> Iterator[int]:
    """KiB of each process in the session that `child_of` opened for a server."""
    for pid, cells in stat_rows(proc):
        if int(cells[3]) == session:
            with contextlib.suppress(OSError):
                found = re.search(r"VmHWM:\s+(\d+) kB", (proc / str(pid) / "status").read_text(encoding="utf-8"))
                yield int(found[1]) if found else 0


def windows_peak(pid: int) -> int:
    """Bytes of the process alone."""
    class Counters(ctypes.Structure):
        _fields_ = [("size", ctypes.c_uint32), ("page_faults", ctypes.c_uint32), ("peak", ctypes.c_size_t),
                    *((f"other_{i}", ctypes.c_size_t) for i in range(7))]

    query_information = 0x1000          # PROCESS_QUERY_LIMITED_INFORMATION
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(query_information, False, pid)
    counters = Counters(size=ctypes.sizeof(Counters))
    done = handle and kernel.K32GetProcessMemoryInfo(ctypes.c_void_p(handle), ctypes.byref(counters), counters.size)
    if handle:
        kernel.CloseHandle(ctypes.c_void_p(handle))
    if not done:
        raise Failure(f"Windows didn't tell the memory of process {pid}: leave the workload memory out")
    return counters.peak
