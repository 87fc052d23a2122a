"""Turns runs into medians, ratios, a text summary and a JSON file.

Pure, except for the facts about the machine. Imports the standard library and `workloads`. A ratio is the first
server's value over another's in the same repetition; the median over the repetitions is shown. The JSON file has every
single run.

Way not taken: means. One disturbed run shifts a mean, and such runs are common on a desktop.
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
NAME_WIDTH, RATIO_WIDTH = 30, 18  # characters
NOISE = 0.05  # share of processor time from which other programs count as a disturbance


class Outcome(NamedTuple):
    """All runs of one workload.

    `runs[peer]` has one tuple per repetition, with a value per metric; `troubles[peer]` is the reason why a peer has no
    runs. `foreign` is the share (0 to 1) of processor time that other programs used meanwhile, None if unknown.
    """

    workload: Workload
    runs: dict
    troubles: dict
    foreign: float | None = None


class Figures(NamedTuple):
    """The results of one metric. `ratios[peer]` is the median ratio of the first peer's value to that peer's;
    `ranges[peer]` has the least and greatest ratio. `goal` is what `goal_of` returns."""

    values: dict
    medians: dict
    ratios: dict
    ranges: dict
    goal: str = ""


def compute_figures(outcome: Outcome, i_metric: int, first: str) -> Figures:
    """Medians and ratios of a metric, over all peers that could run the workload."""
    values = {peer: [run[i_metric] for run in runs] for peer, runs in outcome.runs.items() if runs}
    medians = {peer: statistics.median(numbers) for peer, numbers in values.items()}
    pairs = {
        peer: found
        for peer in values
        if peer != first and first in values and (found := compute_pairwise(values[first], values[peer]))
    }
    ratios = {peer: statistics.median(found) for peer, found in pairs.items()}
    ranges = {peer: (min(found), max(found)) for peer, found in pairs.items()}
    return Figures(values, medians, ratios, ranges, goal_of(outcome.workload.metrics[i_metric], medians, ratios, first))


def compute_pairwise(ours: list, theirs: list) -> list:
    """The ratio of each repetition, except where the divisor is 0."""
    return [own / other for own, other in zip(ours, theirs) if other]


def goal_of(metric: Metric, medians: dict, ratios: dict, first: str) -> str:
    """The target and the result, such as `>= 1.00 reached` or `<= 0.20 missed`; "" without a target.

    The target is the first that is set and can be compared: a bound for the value, one for the ratio to the best other
    server, one for the ratio to the bare loop.
    """
    best = max if metric.better == LESS else min  # the ratio to the strongest other server
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
    """The lines for one workload: metrics with columns for peers and ratios, failures, a disturbance."""
    first, others = peers[0], peers[1:]
    head = f"{outcome.workload.name}: {outcome.workload.help}"
    columns = [*peers, *(f"{first}/{peer}" for peer in others)]
    widths = [max(len(name), 10 if name in peers else RATIO_WIDTH) for name in columns]
    lines = [head, "  " + " " * NAME_WIDTH + "".join(f"  {name:>{width}}" for name, width in zip(columns, widths))]
    for i, metric in enumerate(outcome.workload.metrics):
        found = compute_figures(outcome, i, first)
        cells = [number(found.medians.get(peer)) for peer in peers]
        cells += [format_ratio(found, peer) for peer in others]
        name = metric.name + (f", {metric.unit}" if metric.unit else "")
        arrow = "  (less is better)" if metric.better == LESS else ""
        arrow += f"  {found.goal}" if found.goal else ""
        lines.append(f"  {name:<{NAME_WIDTH}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths)) + arrow)
    lines += [f"  {peer} failed: {trouble}" for peer, trouble in outcome.troubles.items()]
    if outcome.foreign is not None and outcome.foreign > NOISE:
        lines.append(f"  (disturbed: other programs used {outcome.foreign:.0%} of the processor time)")
    return [*lines, ""]


def format_ratio(found: Figures, peer: str) -> str:
    """The ratio to a peer, and the range of the repetitions: `1.315 (1.25-1.40)`; `-` if there is none."""
    if peer not in found.ratios:
        return "-"
    low, high = found.ranges[peer]
    return f"{found.ratios[peer]:.3f}" + (f" ({low:.2f}-{high:.2f})" if low < high else "")


def number(value: float | None) -> str:
    """A number with few digits and no exponent."""
    if value is None:
        return "-"
    if not math.isfinite(value) or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.{3 if abs(value) < 10 else 1}f}"


def json_of(outcomes: list, peers: list, settings: dict) -> dict:
    """The JSON file: settings, facts about the machine, and every run."""
    rows = []
    for outcome in outcomes:
        metrics = []
        for i, metric in enumerate(outcome.workload.metrics):
            found = compute_figures(outcome, i, peers[0])
            metrics.append(
                {
                    "name": metric.name,
                    "unit": metric.unit,
                    "better": metric.better,
                    "runs": found.values,
                    "median": found.medians,
                    "ratio": found.ratios,
                    "ratio_range": found.ranges,
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
        "machine": describe_machine(),
        "workloads": rows,
    }


def describe_machine() -> dict:
    """Facts about the machine, nothing personal."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "processor": describe_processor(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }


def describe_processor() -> str:
    """The CPU's name, where the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
