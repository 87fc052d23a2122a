"""How often a place becomes free: what a client that finds the queue full should wait before it asks again.

Written by the thread that spreads the engine's frames, read by any. Imports nothing of the product.
"""

from __future__ import annotations

SHORTEST_S, LONGEST_S = 1.0, 60.0
WEIGHT = 0.2
PAUSE_S = 300.0


class Turnover:
    """The mean time between the ends of two tasks while others wait or run."""

    def __init__(self) -> None:
        self._mean_s = SHORTEST_S
        self._t_last = float("-inf")

    @property
    def interval_s(self) -> float:
        """Seconds, within reason."""
        return min(max(self._mean_s, SHORTEST_S), LONGEST_S)

    def ended(self, now: float, is_busy: bool) -> None:
        """A task has ended; without others left, the time until the next one tells nothing."""
        gap = now - self._t_last
        if gap < PAUSE_S:
            self._mean_s += WEIGHT * (gap - self._mean_s)
        self._t_last = now if is_busy else float("-inf")
