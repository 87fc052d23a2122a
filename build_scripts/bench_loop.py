"""Lets bench.py measure the bare loop of bench_bare.py like a server.

Runs in the process of bench.py, on its main thread. Imports the standard library and `server.bench`. Not taken: running
the loop in this process, where it would share the client's interpreter.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Iterator, NamedTuple

from server.bench.client import Answer, Ask, BenchError
from server.bench.servers import BARE, ROOT, Setup, child_of, log_end


class BareSpec(NamedTuple):
    """Starts the bare loop; has the interface of `ServerSpec`."""

    name: str = BARE

    @contextlib.contextmanager
    def run(self, setup: Setup, folder: Path, patience_s: float) -> Iterator[BarePeer]:
        """See `ServerSpec.run`."""
        command = [
            sys.executable,
            str(ROOT / "build_scripts" / "bench_bare.py"),
            str(setup.model),
            str(setup.threads),
            str(setup.slots),
            str(setup.ctx),
        ]
        with child_of(self.name, command, folder, {}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as (child, log):
            peer = BarePeer(child, log)
            peer.receive()  # the first line: the model is loaded
            yield peer


class BarePeer:
    """The bare loop in a child process, which reads and writes lines of JSON."""

    name = BARE

    def __init__(self, child: subprocess.Popen, log: Path) -> None:
        self._child, self._log = child, log

    def generate(self, asks: list[Ask]) -> list:
        """See `HttpPeer.generate`; computes all completions together."""
        line = json.dumps([{"prompt": ask.prompt, "n_predict": ask.n_predict, "fields": ask.fields} for ask in asks])
        self._child.stdin.write(line.encode() + b"\n")
        self._child.stdin.flush()
        return [
            Answer(
                tuple(answer["arrivals"]),
                answer["arrivals"][-1],
                answer["n_prompt"],
                answer["n_prompt"],
                len(answer["arrivals"]),
                answer["text"],
            )
            for answer in self.receive()
        ]

    def receive(self) -> object:
        """The next line, parsed. If the child has ended, raises BenchError with the end of its log."""
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            raise BenchError(f"{BARE} ended with code {self._child.returncode}: {log_end(self._log)}")
        return json.loads(line)
