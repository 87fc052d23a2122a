"""Draws a chart of the results as SVG: a group of bars per metric, a bar per server; longer is better.

Pure functions. Imports the standard library and this package. Metrics share no scale, so bars are relative within a
group: the best server's has the full length. Way not taken: a plotting package.
"""

from __future__ import annotations

from html import escape

from server.bench.report import Outcome, compute_figures, number
from server.bench.workloads import LESS

WIDTH, LABEL, BAR, ROW = 920, 330, 400, 14  # pixels
COLOURS = ("#2f6f4f", "#c46b2d", "#4a6fa5", "#8a5a83", "#7a7a3a")


def svg_of(outcomes: list, peers: list, title: str) -> str:
    """The chart. Workloads that no server could run are left out."""
    parts, y = [], 56
    for i, peer in enumerate(peers):
        parts.append(_render_box(16 + 150 * i, 32, 10, 10, i) + _render_text(31 + 150 * i, 41, peer))
    for outcome in outcomes:
        found = [_make_figure_row(outcome, i, peers) for i in range(len(outcome.workload.metrics))]
        rows = [row for row in found if row]
        if not rows:
            continue
        y += 14
        parts.append(_render_text(16, y, f"{outcome.workload.name}: {outcome.workload.help}", "font-weight='bold'"))
        y += 8
        for name, bars in rows:
            parts.append(_render_text(28, y + 10, name))
            for i, part, label in bars:
                parts.append(_render_box(LABEL, y + 2, max(BAR * part, 1), ROW - 4, i))
                parts.append(_render_text(LABEL + BAR * part + 6, y + 11, label))
                y += ROW
            y += 4
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{y + 16}' "
        f"viewBox='0 0 {WIDTH} {y + 16}' font-family='sans-serif' font-size='11'>"
        f"<title>{escape(title)}</title><rect width='100%' height='100%' fill='white'/>"
    )
    return "\n".join([head, _render_text(16, 20, title, "font-size='14'"), *parts, "</svg>", ""])


def _make_figure_row(outcome: Outcome, i_metric: int, peers: list) -> tuple | None:
    """(label, bars as (index of the peer, length from 0 to 1, text)); None if no server's median is above 0."""
    metric = outcome.workload.metrics[i_metric]
    found = compute_figures(outcome, i_metric, peers[0])
    medians = {peer: value for peer, value in found.medians.items() if value > 0}
    if not medians:
        return None
    best = min(medians.values()) if metric.better == LESS else max(medians.values())
    bars = [
        (
            i,
            best / medians[peer] if metric.better == LESS else medians[peer] / best,
            f"{number(medians[peer])} {metric.unit}",
        )
        for i, peer in enumerate(peers)
        if peer in medians
    ]
    return metric.name + (" (less is better)" if metric.better == LESS else ""), bars


def _render_box(x: float, y: float, width: float, height: float, i_peer: int) -> str:
    return (
        f"<rect x='{x:.0f}' y='{y:.0f}' width='{width:.1f}' height='{height:.0f}' "
        f"fill='{COLOURS[i_peer % len(COLOURS)]}'/>"
    )


def _render_text(x: float, y: float, text: str, more: str = "") -> str:
    return f"<text x='{x:.0f}' y='{y:.0f}' {more}>{escape(text)}</text>"
