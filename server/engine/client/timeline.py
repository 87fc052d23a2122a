"""Records which task each slot ran lately, for the web page's chart of the load.

The transport's thread writes it, connection threads read it. It is made from the engine's snapshots, so it misses a
task that starts and ends between two of them. Not taken: recording it in the engine, which would have to send it with
each snapshot.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from server.engine.seam.task import Snapshot
from server.records import record

MAX_SPANS = 2000  # ended spans kept
MAX_WAITS = 2000  # entries of `Timeline._waits` kept
READING, WRITING = "reading", "writing"


@record
class Span:
    """A time in which a slot was in one phase of one task. Times are seconds of `clock`."""

    id_slot: int
    id_task: int
    owner: str
    phase: str  # READING or WRITING
    start: float
    end: float | None = None  # None while it goes on


class Timeline:
    """Spans of slots, and the number of waiting tasks over time."""

    def __init__(self, owner_of: Callable[[int], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._owner_of = owner_of
        self._clock = clock
        self._lock = threading.Lock()  # guards the fields below
        self._ended: deque[Span] = deque(maxlen=MAX_SPANS)
        self._open: dict[int, Span] = {}  # by slot
        self._waits: deque[tuple[float, int]] = deque(maxlen=MAX_WAITS)  # (time of a change, waiting tasks since then)

    def note(self, snapshot: Snapshot) -> None:
        now = self._clock()
        with self._lock:
            for slot in snapshot.slots:
                phase = "" if not slot.is_processing else WRITING if slot.n_decoded else READING
                self._turn(now, slot.id, slot.id_task, phase)
            if not self._waits or self._waits[-1][1] != snapshot.n_deferred:
                self._waits.append((now, snapshot.n_deferred))

    def _turn(self, now: float, id_slot: int, id_task: int, phase: str) -> None:
        """If task or phase has changed, end the slot's span; begin another unless `phase` is "" (idle)."""
        span = self._open.get(id_slot)
        if span is not None and (span.id_task, span.phase) == (id_task, phase):
            return
        if span is not None:
            span.end = now
            self._ended.append(self._open.pop(id_slot))
        if phase:
            self._open[id_slot] = Span(id_slot, id_task, self._owner_of(id_task), phase, now)

    def list_since(self, seconds: float) -> tuple[float, list[Span], list[tuple[float, int]]]:
        """The time now; the spans that reach into the last `seconds`; and (time, number of waiting tasks) for each
        change in these seconds and the last one before them."""
        with self._lock:
            now = self._clock()
            spans = [
                span for span in (*self._ended, *self._open.values()) if span.end is None or span.end > now - seconds
            ]
            waits = list(self._waits)
        begun = [i for i, (time_, _) in enumerate(waits) if time_ <= now - seconds]
        return now, spans, waits[begun[-1] :] if begun else waits
