"""Measure servers side by side: `python build_scripts/bench.py -m model.gguf [--server NAME=COMMAND ...] [--bare]`.

A command; its main thread starts the servers, runs the same workloads alternately on each, and prints medians and
ratios. Imports the standard library and this folder. Anything that speaks /completion, /tokenize and /health can be
measured, ours is only the default; --bare adds a loop that decodes and samples and does nothing else, over the same
libraries. docs/benchmarks.md says how to get figures worth quoting.

The way not taken: one server after the other. Machines get warm and throttle, and other programs come and go;
alternating runs suffer alike.
"""
from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from bench_client import Ask
from bench_report import Outcome, json_of, text_of
from bench_servers import OURS, BareSpec, Setup, cpu_seconds, parse_server
from bench_workloads import WORKLOADS, Plan, Workload
from common import Failure, Progress, run_main

QUICK_SCALE = 0.1
IDLE_LOAD = 0.3
PAUSE_S = 0.3
WARM_UP = Ask("Once upon a time", 8, {"temperature": 0.0})


class Bench:
    """One call of this script: the peers, how to run them, and what came out."""

    def __init__(self, options: argparse.Namespace, folder: Path, progress: Progress) -> None:
        self._options = options
        self._folder = folder
        self._progress = progress
        servers = [parse_server(text) for text in options.server or [OURS]]
        self.specs = [*servers, *([BareSpec()] if options.bare else [])]
        self.names = [spec.name for spec in self.specs]
        if len(set(self.names)) < len(self.names):
            raise Failure(f"two servers have the same name ({', '.join(self.names)}): name them apart")

    def run(self, workloads: list) -> list:
        """An Outcome for each workload, printed as soon as it is there."""
        outcomes = []
        for _, group in itertools.groupby(workloads, key=lambda row: (row.slots, row.slot_ctx, self._is_fresh(row))):
            rows = list(group)
            with contextlib.ExitStack() as stack:
                peers, troubles = {}, {}
                if not self._is_fresh(rows[0]):
                    peers, troubles = self._start_all(rows, stack)
                for workload in rows:
                    outcomes.append(self._measure(workload, peers, dict(troubles)))
                    self._progress.clear()
                    print("\n".join(text_of(outcomes[-1], self.names)), flush=True)
        return outcomes

    def _is_fresh(self, workload: Workload) -> bool:
        return workload.fresh or self._options.one_at_a_time

    def _setup(self, workload: Workload) -> Setup:
        return Setup(self._options.model, self._options.threads, workload.slots, workload.slots * workload.slot_ctx)

    def _start_all(self, rows: list, stack: contextlib.ExitStack) -> tuple:
        """(running peers by name, why others don't run)."""
        peers, troubles = {}, {}
        for spec in self.specs:
            if spec.name == BareSpec().name and not any(row.bare for row in rows):
                continue
            try:
                peers[spec.name] = stack.enter_context(self._start(spec, rows[0]))
                peers[spec.name].generate([WARM_UP])
            except Failure as failure:
                troubles[spec.name] = str(failure)
        return peers, troubles

    def _start(self, spec: object, workload: Workload) -> contextlib.AbstractContextManager:
        self._progress.show(f"{workload.name}: starting {spec.name}")
        return spec.run(self._setup(workload), self._folder, self._options.patience)

    def _measure(self, workload: Workload, peers: dict, troubles: dict) -> Outcome:
        """All repetitions; a peer that fails once is out of this workload."""
        runs: dict = {}
        before = cpu_seconds()
        for repetition in range(self._options.repeat):
            turn = repetition % len(self.specs)
            for spec in [*self.specs[turn:], *self.specs[:turn]]:
                if spec.name in troubles or (spec.name == BareSpec().name and not workload.bare):
                    continue
                self._progress.show(f"{workload.name}: run {repetition + 1} of {self._options.repeat}, {spec.name}")
                plan = Plan(self._options.seed + repetition, QUICK_SCALE if self._options.quick else 1.0)
                try:
                    runs.setdefault(spec.name, []).append(self._run_once(workload, spec, peers.get(spec.name), plan))
                except Failure as failure:
                    troubles[spec.name] = str(failure)
                    runs.pop(spec.name, None)
        return Outcome(workload, runs, troubles, foreign_share(before, cpu_seconds()))

    def _run_once(self, workload: Workload, spec: object, peer: object, plan: Plan) -> tuple:
        time.sleep(PAUSE_S)         # let the one before fall asleep: its compute threads spin for a while
        if peer is not None:
            return workload.run(peer, plan)
        with self._start(spec, workload) as fresh:
            if not workload.fresh:
                fresh.generate([WARM_UP])
            return workload.run(fresh, plan)


def choose(names: str | None) -> list:
    """Rows of the table for `a,b,c`, in the table's order; all for None. Failure names the known ones."""
    wanted = [name.strip() for name in names.split(",")] if names else [row.name for row in WORKLOADS]
    known = [row.name for row in WORKLOADS]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise Failure(f"--workloads: {', '.join(unknown)} is unknown; known are {', '.join(known)}")
    return [row for row in WORKLOADS if row.name in wanted]


def foreign_share(before: tuple | None, after: tuple | None) -> float | None:
    """The part of the processor time between two `cpu_seconds` that wasn't ours; None if that isn't known."""
    if before is None or after is None or after[0] <= before[0]:
        return None
    return max(1 - (after[1] - before[1]) / (after[0] - before[0]), 0.0)


def core_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def warn_if_busy(progress: Progress) -> None:
    """Whoever measures on a busy machine should know it."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > IDLE_LOAD:
        progress.say(f"this machine isn't idle (load {load:.1f}): figures will be worse than they could be, and noisy")


def parse(argv: list | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.py", description="Run the same workloads alternately on servers and print medians and ratios.",
        epilog="A COMMAND may use {model} {port} {threads} {slots} {ctx} (all slots together) {python} {root}, and "
               "begin with VAR=value. Example: bench.py -m model.gguf --threads 4 --server 'ours={python} llama_srv.py -m "
               "{model} --port {port} -t {threads} -np {slots} -c {ctx}' --server 'theirs=llama-server -m {model} "
               "--port {port} -t {threads} -np {slots} -c {ctx}'")
    add = parser.add_argument
    add("-m", "--model", type=Path, metavar="FILE", help="the GGUF file that all of them serve")
    add("-t", "--threads", type=int, default=core_count(), metavar="N", help="compute threads (default: all cores)")
    add("--server", action="append", metavar="NAME=COMMAND",
        help="a server to measure; repeat it for more, ratios are first over others (default: this one)")
    add("--bare", action="store_true", help="also measure a bare decode-and-sample loop over the same libraries")
    add("--libs", metavar="DIR", help="folder with the llama.cpp libraries, for our server and the bare loop")
    add("--workloads", metavar="A,B", help="only these (default: all, see --list)")
    add("--repeat", type=int, default=5, metavar="N", help="runs of each workload on each server (default 5)")
    add("--json", type=Path, metavar="FILE", help="write everything there, single runs included")
    add("--quick", action="store_true", help="a tenth of all sizes: to see that it works, not for figures")
    add("--one-at-a-time", action="store_true", help="start servers anew for each run, never two at once (memory)")
    add("--patience", type=float, default=600.0, metavar="S", help="seconds a server may take to start (default 600)")
    add("--seed", type=int, default=random.randrange(10**6), metavar="N", help="for the texts (default: random)")
    add("--list", action="store_true", help="show the workloads and exit")
    return parser.parse_args(argv)


def settings_of(options: argparse.Namespace) -> dict:
    """What the JSON file says about this call."""
    return {"model": options.model.name, "model_bytes": options.model.stat().st_size, "threads": options.threads,
            "repeat": options.repeat, "scale": QUICK_SCALE if options.quick else 1.0, "seed": options.seed,
            "servers": options.server or [OURS], "one_at_a_time": options.one_at_a_time,
            "date": time.strftime("%Y-%m-%d %H:%M")}


def command(options: argparse.Namespace) -> int:
    workloads = choose(options.workloads)
    if options.list:
        for row in workloads:
            print(f"{row.name:<14} {row.help} ({row.slots} slots of {row.slot_ctx} tokens"
                  f"{'; also --bare' if row.bare else ''})")
        return 0
    if options.model is None or not options.model.is_file():
        raise Failure(f"{options.model or 'no model given'}: name a GGUF file with -m "
                      "(python build_scripts/fetch_model.py prints the path of a small one)")
    if options.repeat < 1 or options.threads < 1:
        raise Failure("--repeat and --threads must be at least 1")
    options.model = options.model.resolve()
    if options.libs:
        os.environ["LLAMA_SRV_LIBS"] = os.path.abspath(options.libs)
    progress = Progress()
    warn_if_busy(progress)
    with tempfile.TemporaryDirectory(prefix="llama-srv-bench-") as folder:
        bench = Bench(options, Path(folder), progress)
        print(f"{options.model.name}, {options.threads} threads, {options.repeat} runs each, medians\n", flush=True)
        outcomes = bench.run(workloads)
    if options.json:
        options.json.write_text(json.dumps(json_of(outcomes, bench.names, settings_of(options)), indent=1) + "\n",
                                encoding="utf-8")
        print(f"all runs: {options.json}")
    return 1 if any(outcome.troubles for outcome in outcomes) else 0


def main(argv: list | None = None) -> int:
    return run_main("bench", lambda: command(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
