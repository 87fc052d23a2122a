"""`--tune`: finds the fastest CPU plug-in and number of threads for a model on this machine.

Main thread, instead of serving. llama.cpp picks the plug-in that uses most of the CPU's features; which one is fastest
depends on the type of the weights. A process can load only one plug-in, so each is measured in a child: the same
program with `--tune --cpu-variant NAME`. Candidates take turns and are compared with the usual choice (llama.cpp's
plug-in, then a thread per core) in the same round, so that a machine that becomes slower favours none.

Way not taken: a rule by weight type and CPU. There are measurements of one machine only.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from server.errands.tuned import AUTO, NOTHING, Tuned
from server.program import can_show_progress

ROUNDS = 5
HOPELESS = 0.85  # a candidate below this share of the best speed is dropped
MOST_LEFT = 3  # the most candidates, besides the usual choice, that are measured after the first round
WORTH = 1.02  # least gain over the usual choice that counts
PATIENCE, PATIENCE_S = 4.0, 10.0  # a candidate's time limit: PATIENCE times the usual choice's time, plus PATIENCE_S
FEW_CORES = 4  # with fewer cores, numbers of threads aren't compared
FIGURE = re.compile(r"(\d+ rows?[a-z ]*(?: behind \d+)?) ([\d.]+) ms")

Figures = dict[str, float]  # seconds per step, by kind of step
Run = Callable[[Sequence[str], "float | None"], "Figures | str"]


def text_of(figures: Iterable[tuple[str, float]]) -> str:
    """What a child prints for `run_child`, such as `1 row 5.02 ms, 8 rows behind 512 14.20 ms`."""
    return ", ".join(f"{kind} {seconds * 1e3:.2f} ms" for kind, seconds in figures)


def without_tune(argv: Sequence[str]) -> list[str]:
    return [word for word in argv if word != "--tune"]


def format_ms(figures: Figures) -> str:
    return "".join(f"{seconds * 1e3:9.2f}" for seconds in figures.values())


def compute_speed(figures: Figures, usual: Figures) -> float:
    """The speed relative to the usual choice: the geometric mean over all kinds of steps."""
    ratios = [math.log(usual[kind] / figures[kind]) for kind in usual if kind in figures]
    return math.exp(sum(ratios) / len(ratios)) if ratios else 0.0


def compute_sure_speed(runs: Sequence[Figures], usual: Sequence[Figures]) -> float:
    """The lesser of two speeds: by the shortest times of all rounds, and the rounds' median."""
    return min(compute_speed(find_shortest(runs), find_shortest(usual)), median(map(compute_speed, runs, usual)))


def find_shortest(runs: Sequence[Figures]) -> Figures:
    return {kind: min(figures.get(kind, seconds) for figures in runs) for kind, seconds in runs[0].items()}


def find_best(variants: Sequence[str], n_cores: int, run: Run, say: Callable[[str], None] = print) -> Tuned:
    """Measure the plug-ins, then, if `n_cores` is at least `FEW_CORES`, numbers of threads up to `n_cores`. ValueError
    if the usual choice fails."""
    variant = AUTO
    if variants:
        variant = _find_quickest({name: ["--cpu-variant", name] for name in (AUTO, *variants)}, AUTO, run, say)
    n_threads = -1
    if n_cores >= FEW_CORES:
        counts = dict.fromkeys(str(n) for n in (n_cores, 3 * n_cores // 4, n_cores // 2))
        chosen = _find_quickest(
            {f"{n} threads": ["--cpu-variant", variant, "-t", n] for n in counts}, f"{n_cores} threads", run, say
        )
        n_threads = -1 if chosen == f"{n_cores} threads" else int(chosen.split()[0])
    return Tuned(None if variant == AUTO else variant, n_threads)


def _find_quickest(candidates: Mapping[str, Sequence[str]], usual: str, run: Run, say: Callable[[str], None]) -> str:
    """The name of the fastest candidate; the usual one if none is faster by WORTH."""
    found: dict[str, list[Figures]] = {name: [] for name in candidates}
    speeds: dict[str, float] = {}
    patience_s = None
    for turn in range(ROUNDS):
        for number, name in enumerate(list(found), 1):
            _show(f"round {turn + 1} of {ROUNDS}: {name} ({number} of {len(found)})")
            begun = time.monotonic()
            figures = run(candidates[name], patience_s)
            _show("")
            if turn == 0:
                say(f"  {name:<16} {figures if isinstance(figures, str) else format_ms(figures)}")
            if not isinstance(figures, str):
                found[name].append(figures)
            elif name == usual:
                raise ValueError(figures)
            else:
                del found[name]
            if patience_s is None:
                patience_s = PATIENCE * (time.monotonic() - begun) + PATIENCE_S
        speeds = {name: compute_sure_speed(runs, found[usual]) for name, runs in found.items()}
        best = sorted((name for name in found if name != usual), key=lambda name: -speeds[name])[:MOST_LEFT]
        best = [name for name in best if speeds[name] > HOPELESS * max(speeds.values())]
        found = {name: found[name] for name in (usual, *best)}
        if list(found) == [usual]:
            return usual
    for name in sorted(found, key=lambda name: -speeds[name]):
        say(f"{name:>18} {'(reference)' if name == usual else f'{100 * (speeds[name] - 1):+.0f} %'}")
    winner = max(found, key=speeds.__getitem__)
    return winner if speeds[winner] >= WORTH else usual


def run_child(command: Sequence[str], words: Sequence[str], timeout_s: float | None) -> Figures | str:
    """The figures that a child measures with these options; as text the reason if it fails."""
    try:
        child = subprocess.run(
            [*command, *words, "--tune"], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return "much slower"
    found = {kind: float(ms) / 1e3 for kind, ms in FIGURE.findall(child.stdout.decode("utf-8", "replace"))}
    if child.returncode == 0 and found and all(found.values()):
        return found
    lines = child.stderr.decode("utf-8", "replace").strip().splitlines()
    why = lines[-1].removeprefix("error: ") if lines else f"ended with code {child.returncode}"
    return why.partition(";")[0]  # the rest is advice


def report(tuned: Tuned, path: Path | str) -> str:
    if tuned == NOTHING:
        return "\nnothing is faster here than llama.cpp's own choice"
    return (
        f"\nfrom now on this model is served with {tuned}, unless these options are set "
        f"(--cpu-variant auto is llama.cpp's own choice)\nsaved in {path}"
    )


def _show(text: str) -> None:
    if can_show_progress():
        print(f"\r{text:<78.78}" if text else "\r" + " " * 78 + "\r", end="", file=sys.stderr, flush=True)
