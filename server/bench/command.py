"""`--bench`: measures this server with the user's model, and prints a table.

Main thread, instead of serving. The server is a child: the same program with the same options, except those in PLACES.
Imports the standard library, this package and `server.program`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from server.bench.client import BenchError
from server.bench.report import Outcome, text_of
from server.bench.runner import Bench, Settings, choose
from server.bench.servers import ServerSpec, count_cores, load_average
from server.program import can_show_progress

__all__ = ["OWN", "BenchError", "measure"]

OWN = "startup,single,sampled,constrained,prefill,tokenize,streams8,memory"
REPEAT = 3
IDLE_LOAD = 0.5  # load average above which a warning is printed
PLACES = ("--host", "127.0.0.1", "--port", "{port}", "-t", "{threads}", "-np", "{slots}", "-c", "{ctx}")


def measure(
    program: Sequence[str],
    argv: Sequence[str],
    names: str,
    model: str,
    threads: int,
    key: str = "",
    repeat: int = REPEAT,
    scale: float = 1.0,
) -> int:
    """Return the exit code: 0 if all workloads could be measured. `program` and `argv` started this program. BenchError
    for unknown workloads."""
    workloads = choose(names)
    settings = Settings(Path(model or "model"), threads if threads > 0 else count_cores(), repeat, scale)
    spec = ServerSpec("ours", (*program, *without_bench(argv), *PLACES), {}, key)
    if (load := load_average()) > IDLE_LOAD:
        print(f"this machine isn't idle (load {load:.1f}): results will be worse than possible", file=sys.stderr)
    print(f"{settings.model.name}, {settings.threads} threads, medians of {repeat} runs\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="llama-srv-bench-") as folder:
        bench = Bench([spec], settings, Path(folder), _show)

        def tell(outcome: Outcome) -> None:
            _show("")
            print("\n".join(text_of(outcome, bench.names)), flush=True)

        outcomes = bench.run(workloads, tell)
    return 1 if any(outcome.troubles for outcome in outcomes) else 0


def without_bench(argv: Sequence[str]) -> list[str]:
    """The command line without `--bench` and its value, for the child."""
    words, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        if word.partition("=")[0] != "--bench":
            words.append(word)
        elif word == "--bench" and rest and not rest[0].startswith("-"):
            rest.pop(0)
    return words


def _show(text: str) -> None:
    if can_show_progress():
        print(f"\r{text:<78.78}" if text else "\r" + " " * 78 + "\r", end="", file=sys.stderr, flush=True)
