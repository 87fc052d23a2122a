"""From single runs to figures: medians, ratios, the text summary and the JSON file.

Pure functions of what was collected. Imports the standard library and the types of `workloads` only. A ratio
is always the first server's over the other's, whatever is better: the median of the ratios of runs that followed each
other, because a machine that gets slower in the course of a minute does so for both. The JSON has every single run, so
that anybody may calculate otherwise.

The way not taken: means. One hiccup of the machine moves a mean, and a benchmark on a desktop has hiccups.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

from server.bench.workloads import LESS, Metric, Workload

FORMAT = 2
BARE = "bare"
NAME_WIDTH = 30
NOISE = 0.05


class Outcome(NamedTuple):
    """All runs of one workload: `runs[peer]` is a list of one tuple per repetition, with a value per metric;
    `troubles[peer]` says why a peer has none. `foreign` is the share (0 to 1) of the processor time spent meanwhile
    that went to other programs, None where the system doesn't tell."""

    workload: Workload
    runs: dict
    troubles: dict
    foreign: float | None = None


class Figures(NamedTuple):
    """One metric of one workload. `ratios[peer]` is first peer over that peer; `goal` says what was aimed at and
    whether it was reached, "" where nothing was or nobody is there to compare with."""

    values: dict
    medians: dict
    ratios: dict
    goal: str = ""


def figures(outcome: Outcome, i_metric: int, first: str) -> Figures:
    """Medians and ratios of a metric over all peers that could do the workload."""
    values = {peer: [run[i_metric] for run in runs] for peer, runs in outcome.runs.items() if runs}
    medians = {peer: statistics.median(numbers) for peer, numbers in values.items()}
    ratios = {
        peer: ratio
        for peer in values
        if peer != first and first in values and (ratio := pairwise(values[first], values[peer])) is not None
    }
    return Figures(values, medians, ratios, goal_of(outcome.workload.metrics[i_metric], medians, ratios, first))


def pairwise(ours: list, theirs: list) -> float | None:
    """The median of the ratios of runs that followed each other; None if nothing can be divided by."""
    ratios = [own / other for own, other in zip(ours, theirs) if other]
    return statistics.median(ratios) if ratios else None


def goal_of(metric: Metric, medians: dict, ratios: dict, first: str) -> str:
    """`>= 1.00 reached` or `<= 0.20 missed`: against the best of the other servers, the loop, or a value.

    A ratio to the loop counts only where no server is compared.
    """
    best = max if metric.better == LESS else min  # of the ratios: the strongest opponent
    servers = [ratio for peer, ratio in ratios.items() if peer != BARE]
    for bound, value in (
        (metric.limit, medians.get(first)),
        (metric.target, best(servers) if servers else None),
        (metric.bare, ratios.get(BARE)),
    ):
        if bound is not None and value is not None:
            is_reached = value <= bound if metric.better == LESS else value >= bound
            return f"{'<=' if metric.better == LESS else '>='} {bound:.2f} {'reached' if is_reached else 'missed'}"
    return ""


def text_of(outcome: Outcome, peers: list) -> list:
    """Lines for one workload: its metrics with a column per peer, then the ratios, then troubles."""
    first, others = peers[0], peers[1:]
    head = f"{outcome.workload.name}: {outcome.workload.help}"
    columns = [*peers, *(f"{first}/{peer}" for peer in others)]
    widths = [max(len(column), 10) for column in columns]
    lines = [head, "  " + " " * NAME_WIDTH + "".join(f"  {name:>{width}}" for name, width in zip(columns, widths))]
    for i, metric in enumerate(outcome.workload.metrics):
        found = figures(outcome, i, first)
        cells = [number(found.medians.get(peer)) for peer in peers]
        cells += [f"{found.ratios[peer]:.3f}" if peer in found.ratios else "-" for peer in others]
        name = metric.name + (f", {metric.unit}" if metric.unit else "")
        arrow = "  (less is better)" if metric.better == LESS else ""
        arrow += f"  {found.goal}" if found.goal else ""
        lines.append(f"  {name:<{NAME_WIDTH}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths)) + arrow)
    lines += [f"  {peer} failed: {trouble}" for peer, trouble in outcome.troubles.items()]
    if outcome.foreign is not None and outcome.foreign > NOISE:
        lines.append(f"  (disturbed: other programs took {outcome.foreign:.0%} of the processor time meanwhile)")
    return [*lines, ""]


def number(value: float | None) -> str:
    """Four digits are more than a benchmark is good for, but never an exponent."""
    if value is None:
        return "-"
    if not math.isfinite(value) or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.{3 if abs(value) < 10 else 1}f}"


def json_of(outcomes: list, peers: list, settings: dict) -> dict:
    """Everything, for a file: settings, machine, and every run."""
    rows = []
    for outcome in outcomes:
        metrics = []
        for i, metric in enumerate(outcome.workload.metrics):
            found = figures(outcome, i, peers[0])
            metrics.append(
                {
                    "name": metric.name,
                    "unit": metric.unit,
                    "better": metric.better,
                    "runs": found.values,
                    "median": found.medians,
                    "ratio": found.ratios,
                    "goal": found.goal,
                }
            )
        rows.append(
            {
                "name": outcome.workload.name,
                "help": outcome.workload.help,
                "metrics": metrics,
                "failed": outcome.troubles,
                "foreign_cpu": outcome.foreign,
            }
        )
    return {
        "format": FORMAT,
        "first": peers[0],
        "peers": peers,
        "settings": settings,
        "machine": machine(),
        "workloads": rows,
    }


def machine() -> dict:
    """What somebody has to know to compare figures; nothing that tells whose machine it is."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }


def processor() -> str:
    """The CPU's name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
