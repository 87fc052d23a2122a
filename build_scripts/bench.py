"""Measure servers side by side: `python build_scripts/bench.py -m model.gguf [--server NAME=COMMAND ...] [--bare]`.

A command; one thread. Imports the standard library, this folder and `server.bench`, which does the work. It measures
servers that have /completion, /tokenize and /health; llama_srv is the default. --bare adds the loop of bench_bare.py,
with the same libraries. docs/benchmarks.md explains how to get reliable figures.

The way not taken: one server after the other. Speed drifts with temperature and load, so runs alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_loop import BareSpec  # noqa: E402  (the path above comes first)
from common import Failure, Progress, run_main  # noqa: E402

from server.bench.chart import svg_of  # noqa: E402
from server.bench.client import BenchError  # noqa: E402
from server.bench.report import describe_machine, json_of, text_of  # noqa: E402
from server.bench.runner import Bench, Settings, choose  # noqa: E402
from server.bench.servers import OURS, count_cores, load_average, parse_server  # noqa: E402
from server.bench.workloads import WORKLOADS  # noqa: E402

QUICK_SCALE = 0.1  # the --scale of --quick
IDLE_LOAD = 0.3  # load average above which the machine counts as busy


def parse(argv: list | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.py",
        description="Run the same workloads alternately on servers and print medians and ratios.",
        epilog="A COMMAND may contain {model} {port} {threads} {slots} {ctx} (all slots together) {python} {root}, and "
        "begin with VAR=value. Options that a workload needs are appended. Example: bench.py -m model.gguf "
        "--threads 4 --server 'ours={python} llama_srv.py -m {model} --port {port} -t {threads} -np {slots} "
        "-c {ctx}' "
        "--server 'theirs=llama-server -m {model} --port {port} -t {threads} -np {slots} -c {ctx}'",
    )
    add = parser.add_argument
    add("-m", "--model", type=Path, metavar="FILE", help="the GGUF file that all servers load")
    add("-t", "--threads", type=int, default=count_cores(), metavar="N", help="compute threads (default: all cores)")
    add(
        "--server",
        action="append",
        metavar="NAME=COMMAND",
        help="a server to measure; may be repeated. Ratios are first over others (default: this server)",
    )
    add("--bare", action="store_true", help="also measure a bare decode-and-sample loop over the same libraries")
    add("--libs", metavar="DIR", help="folder with the llama.cpp libraries, for this server and the bare loop")
    add("--workloads", metavar="A,B", help="run only these (default: all, see --list)")
    add("--repeat", type=int, default=9, metavar="N", help="runs of each workload on each server (default 9)")
    add("--scale", type=float, default=1.0, metavar="X", help="factor for all sizes and counts (default 1)")
    add("--json", type=Path, metavar="FILE", help="write all results to this file, single runs included")
    add("--svg", type=Path, metavar="FILE", help="write a chart of the medians to this file")
    add("--quick", action="store_true", help="a tenth of all sizes: a trial run, not for figures")
    add("--one-at-a-time", action="store_true", help="start a server for each run, never two at once (saves memory)")
    add("--patience", type=float, default=600.0, metavar="S", help="seconds a server may take to start (default 600)")
    add("--seed", type=int, default=random.randrange(10**6), metavar="N", help="seed of the texts (default: random)")
    add("--list", action="store_true", help="show the workloads and exit")
    return parser.parse_args(argv)


def settings_of(options: argparse.Namespace) -> Settings:
    """Raises Failure if the model, --repeat, --threads or --scale is invalid."""
    if options.model is None or not options.model.is_file():
        raise Failure(
            f"{options.model or 'no model'}: pass a GGUF file with -m "
            "(python build_scripts/fetch_model.py prints the path of a small one)"
        )
    if options.repeat < 1 or options.threads < 1 or not options.scale > 0:
        raise Failure("--repeat and --threads must be at least 1, --scale must be above 0")
    return Settings(
        options.model.resolve(),
        options.threads,
        options.repeat,
        QUICK_SCALE if options.quick else options.scale,
        options.seed,
        options.patience,
        options.one_at_a_time,
    )


def describe_settings(options: argparse.Namespace, settings: Settings) -> dict:
    return {
        "model": settings.model.name,
        "model_bytes": settings.model.stat().st_size,
        "threads": settings.threads,
        "repeat": settings.repeat,
        "scale": settings.scale,
        "seed": settings.seed,
        "servers": options.server or [OURS],
        "one_at_a_time": settings.one_at_a_time,
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def warn_if_busy(progress: Progress) -> None:
    if (load := load_average()) > IDLE_LOAD:
        progress.say(f"this machine isn't idle (load {load:.1f}): figures will be too low, and noisy")


def run_command(options: argparse.Namespace) -> int:
    workloads = choose(options.workloads)
    if options.list:
        for row in workloads if options.workloads else WORKLOADS:
            print(
                f"{row.name:<14} {row.help} ({row.slots} slots of {row.slot_ctx} tokens"
                f"{'; also --bare' if row.bare else ''})"
            )
        return 0
    settings = settings_of(options)
    if options.libs:
        os.environ["LLAMA_SRV_LIBS"] = os.path.abspath(options.libs)
    progress = Progress()
    warn_if_busy(progress)
    specs = [*map(parse_server, options.server or [OURS]), *([BareSpec()] if options.bare else [])]
    with tempfile.TemporaryDirectory(prefix="llama-srv-bench-") as folder:
        bench = Bench(specs, settings, Path(folder), progress.show)

        def tell(outcome: object) -> None:
            progress.clear()
            print("\n".join(text_of(outcome, bench.names)), flush=True)

        host = describe_machine()
        title = (
            f"{settings.model.name}, {settings.threads} threads, {settings.repeat} runs each, medians; "
            f"{host['processor']}, {host['cores']} cores"
        )
        print(f"{title}\n", flush=True)
        outcomes = bench.run(workloads, tell)
    if options.json:
        options.json.write_text(
            json.dumps(json_of(outcomes, bench.names, describe_settings(options, settings)), indent=1) + "\n",
            encoding="utf-8",
        )
        print(f"all runs: {options.json}")
    if options.svg:
        options.svg.write_text(svg_of(outcomes, bench.names, title), encoding="utf-8")
        print(f"chart: {options.svg}")
    return 1 if any(outcome.troubles for outcome in outcomes) else 0


def main(argv: list | None = None) -> int:
    def run_body() -> int:
        try:
            return run_command(parse(argv))
        except BenchError as error:
            raise Failure(str(error)) from None

    return run_main("bench", run_body)


if __name__ == "__main__":
    sys.exit(main())
