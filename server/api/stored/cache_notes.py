"""Remembers how much of each answer's prompt was cached, and where an owner's prompts keep differing from the cache.

Any thread, under a lock. The notes are kept in memory, for a bounded number of owners and answers. An owner sees only
its own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any

MAX_OWNERS = 100
MAX_NOTES = 50  # per owner
MIN_SAME = 3  # notes that must have a difference in one place before a hint mentions it
SHOWN = ("model", "field", "message", "role", "position", "before", "prompt", "cached")

Note = Mapping[str, Any]
"""One answer to a request: `time`, `id`, `path`, `model`, `prompt_n`, `cache_n`, and the answer's object `cache`."""


class CacheNotes:
    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects _notes
        self._notes: OrderedDict[str, deque[Note]] = OrderedDict()  # the owner whose last request is oldest comes first

    def add(self, owner: str, note: Note) -> None:
        with self._lock:
            self._notes.setdefault(owner, deque(maxlen=MAX_NOTES)).append(note)
            self._notes.move_to_end(owner)
            if len(self._notes) > MAX_OWNERS:
                self._notes.popitem(last=False)

    def report(self, owner: str, model: str | None = None) -> dict[str, Any]:
        """The owner's notes (of one model, or of all), the newest first, with sums and hints."""
        with self._lock:
            notes = list(reversed(self._notes.get(owner, ())))
        notes = [note for note in notes if model in (None, note["model"])]
        return {"sums": compute_sums(notes), "hints": find_hints(notes), "requests": notes}


def compute_sums(notes: Sequence[Note]) -> dict[str, Any]:
    """The number of notes, and sums: tokens computed, reused, and lost by differences, and the loss in ms."""
    lost = [note["cache"]["first_difference"] or {} for note in notes]
    return {
        "requests": len(notes),
        "prompt_n": sum(note["prompt_n"] for note in notes),
        "cache_n": sum(note["cache_n"] for note in notes),
        "rows_lost": sum(one.get("rows_lost", 0) for one in lost),
        "cost_ms": round(sum(one.get("cost_ms", 0.0) for one in lost), 3),
    }


def find_hints(notes: Sequence[Note]) -> list[dict[str, Any]]:
    """Places where most prompts for a model differ from the cache, so that the cached text behind the place is lost
    each time. The most expensive place comes first. `notes` has the newest note first."""
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
