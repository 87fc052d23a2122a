"""What the prompt cache did for the latest requests of each key, and in which place they keep differing.

Filled and read by connection threads; in memory only. How many keys and how many requests of each are remembered has
bounds. A key gets its own requests back and nobody else's.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any

MAX_OWNERS = 100
MAX_NOTES = 50
MIN_SAME = 3
"""Requests that differ in one place before that is worth a hint."""
SHOWN = ("model", "field", "message", "role", "position", "before", "prompt", "cached")

Note = Mapping[str, Any]
"""A request: `time`, `id`, `path`, `model`, `prompt_n`, `cache_n`, and the object `cache` of its answer."""


class CacheNotes:
    """The register."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects _notes
        self._notes: OrderedDict[str, deque[Note]] = OrderedDict()  # the owner first who has asked nothing for longest

    def add(self, owner: str, note: Note) -> None:
        """Remember a request of this owner."""
        with self._lock:
            self._notes.setdefault(owner, deque(maxlen=MAX_NOTES)).append(note)
            self._notes.move_to_end(owner)
            if len(self._notes) > MAX_OWNERS:
                self._notes.popitem(last=False)

    def report(self, owner: str, model: str | None = None) -> dict[str, Any]:
        """The latest requests of this owner (to this model, or to all), the last one first, with their sums and with
        hints."""
        with self._lock:
            notes = list(reversed(self._notes.get(owner, ())))
        notes = [note for note in notes if model in (None, note["model"])]
        return {"sums": sums(notes), "hints": hints(notes), "requests": notes}


def sums(notes: Sequence[Note]) -> dict[str, Any]:
    """What these requests reused, evaluated, and lost by differences."""
    lost = [note["cache"]["first_difference"] or {} for note in notes]
    return {
        "requests": len(notes),
        "prompt_n": sum(note["prompt_n"] for note in notes),
        "cache_n": sum(note["cache_n"] for note in notes),
        "rows_lost": sum(one.get("rows_lost", 0) for one in lost),
        "cost_ms": round(sum(one.get("cost_ms", 0.0) for one in lost), 3),
    }


def hints(notes: Sequence[Note]) -> list[dict[str, Any]]:
    """The places in which most requests to a model differ, so that all behind them is lost each time; the most
    expensive first. Notes come with the last one first."""
    n_asked: dict[str, int] = {}
    places: dict[tuple[str, str | None, int], list[dict[str, Any]]] = {}
    for note in notes:
        model, found = note["model"], note["cache"]["first_difference"]
        n_asked[model] = n_asked.get(model, 0) + 1
        if found and found["rows_lost"]:
            places.setdefault((model, found["field"], found["position"]), []).append({"model": model, **found})
    told = [
        {
            **{name: same[0][name] for name in SHOWN},
            "requests": len(same),
            "of": n_asked[model],
            "rows_lost": sum(one["rows_lost"] for one in same),
            "cost_ms": round(sum(one["cost_ms"] for one in same), 3),
        }
        for (model, _, _), same in places.items()
        if len(same) >= MIN_SAME and 2 * len(same) > n_asked[model]
    ]
    return sorted(told, key=lambda one: -one["cost_ms"])
