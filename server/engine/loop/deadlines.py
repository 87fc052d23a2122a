"""When tasks have to be done: those with a time limit, the most urgent first. Engine's thread only.

A heap, looked at once a step; a task that ended in time stays in it until its moment comes, and is then unknown to
whoever asks. Not taken: a timer thread, which would need a way into the loop for the sake of a few milliseconds.
"""

from __future__ import annotations

import heapq


class Deadlines:
    """Task ids by the clock's second at which their time is up."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []

    def add(self, id_task: int, t_end: float) -> None:
        """Task `id_task` has to be done at `t_end`."""
        heapq.heappush(self._heap, (t_end, id_task))

    def due(self, now: float) -> list[int]:
        """Take the ids whose time is up, the longest overdue first."""
        ids = []
        while self._heap and self._heap[0][0] <= now:
            ids.append(heapq.heappop(self._heap)[1])
        return ids
