"""Who worked on which slot in the last minutes: what a picture of the load is drawn from.

Written by the transport's thread and read by connection threads. It is read off the engine's snapshots, of which there
are at most ten a second while there is work, so it costs nothing per token; a task that begins and ends between two of
them isn't seen. Not taken: the engine keeping such books, which would have to travel with each snapshot.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from server.engine.seam.task import Snapshot
from server.records import record

MAX_SPANS = 2000
MAX_WAITS = 2000
READING, WRITING = "reading", "writing"


@record
class Span:
    """A time in which one slot did one thing for one task; `end` is None while it goes on. Times are of `clock`."""

    id_slot: int
    id_task: int
    owner: str
    phase: str
    start: float
    end: float | None = None


class Timeline:
    """Spans of slots, and how many tasks waited. `owner_of` says whose a task is."""

    def __init__(self, owner_of: Callable[[int], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._owner_of = owner_of
        self._clock = clock
        self._lock = threading.Lock()  # protects the rest
        self._ended: deque[Span] = deque(maxlen=MAX_SPANS)
        self._open: dict[int, Span] = {}  # by slot
        self._waits: deque[tuple[float, int]] = deque(maxlen=MAX_WAITS)  # (since when, how many)

    def note(self, snapshot: Snapshot) -> None:
        """Take what the engine says of itself now."""
        now = self._clock()
        with self._lock:
            for slot in snapshot.slots:
                phase = "" if not slot.is_processing else WRITING if slot.n_decoded else READING
                self._turn(now, slot.id, slot.id_task, phase)
            if not self._waits or self._waits[-1][1] != snapshot.n_deferred:
                self._waits.append((now, snapshot.n_deferred))

    def _turn(self, now: float, id_slot: int, id_task: int, phase: str) -> None:
        """What a slot does from now on; `phase` is "" for nothing."""
        span = self._open.get(id_slot)
        if span is not None and (span.id_task, span.phase) == (id_task, phase):
            return
        if span is not None:
            span.end = now
            self._ended.append(self._open.pop(id_slot))
        if phase:
            self._open[id_slot] = Span(id_slot, id_task, self._owner_of(id_task), phase, now)

    def since(self, seconds: float) -> tuple[float, list[Span], list[tuple[float, int]]]:
        """The time now; spans of the last `seconds`; from when on how many tasks waited, the first from before that."""
        with self._lock:
            now = self._clock()
            spans = [
                span for span in (*self._ended, *self._open.values()) if span.end is None or span.end > now - seconds
            ]
            waits = list(self._waits)
        begun = [i for i, (time_, _) in enumerate(waits) if time_ <= now - seconds]
        return now, spans, waits[begun[-1] :] if begun else waits
