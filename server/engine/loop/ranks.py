"""Running slots side by side in a split cache: whoever stands apart moves up, in exchange with an idle slot.

Engine thread only, between two steps. llama.cpp computes sequences whose numbers follow each other in one micro-batch;
each gap among them makes it read all weights once more. Four streams of a small model with gaps between them took
24 ms a step, side by side 12. So a slot at the edge and an idle one in a gap exchange their sequences, which costs
microseconds per token. A slot keeps its number; only `Slot.seq` changes.

A newcomer might fill a gap the next moment, and texts end when they like. So a move waits until the gaps have cost as
much as it will: whatever comes then, at most half of the time was wasted.

Not moved: what would take longer than a stall, and sequences that a draft model knows by their number. Not taken: a
fixed number of steps to wait (too long for short texts and large steps, too short for long texts and small ones).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from server.engine.loop.state import EngineState
from server.engine.slots.planner import Span
from server.engine.slots.slot import Slot

S_PER_TOKEN = 20e-6  # to begin with; a small model takes 5 to 10 microseconds
WEIGHT = 0.3


class Ranks:
    """Watches the generating slots of one engine."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        backend = state.backend
        self._is_on = (
            backend.is_split
            and backend.can_share
            and backend.drafter is None
            and state.config.n_slots > 2
            and not state.config.exact
        )
        self._lost_s = 0.0  # by the gaps that there are
        self._s_per_token = S_PER_TOKEN

    def measured(self, spans: Sequence[Span], seconds: float) -> None:
        """A step of generating slots took so long. Each micro-batch reads the weights, which is most of its time."""
        seqs = sorted(span.seq for span in spans)
        n_parts = 1 + sum(after - before > 1 for before, after in zip(seqs, seqs[1:]))
        self._lost_s = self._lost_s + seconds * (n_parts - 1) / n_parts if n_parts > 1 else 0.0

    def close_up(self) -> None:
        """Before a step: make the moves that have paid off by now, the cheapest first."""
        if not self._is_on or not self._lost_s:
            return
        generating = [slot for slot in self._state.running if slot.run.next_token is not None]
        window = best_window(sorted(slot.seq for slot in generating), len(self._state.slots))
        apart = sorted((slot for slot in generating if slot.seq not in window), key=_n_tokens)
        free = sorted((slot for slot in self._state.slots if slot.run is None and slot.seq in window), key=_n_tokens)
        limit_s = self._state.config.max_stall_ms / 1e3 or math.inf
        for slot, other in zip(apart, free):
            cost_s = (_n_tokens(slot) + _n_tokens(other)) * self._s_per_token
            if cost_s > min(self._lost_s, limit_s) or not self._exchange(slot, other):
                return
            self._lost_s -= cost_s
            limit_s -= cost_s

    def _exchange(self, slot: Slot, other: Slot) -> bool:
        started = self._state.clock()
        self._is_on = self._state.backend.swap(slot.seq, other.seq)
        if self._is_on:
            slot.seq, other.seq = other.seq, slot.seq
            seconds = (self._state.clock() - started) / max(_n_tokens(slot) + _n_tokens(other), 1)
            self._s_per_token += WEIGHT * (seconds - self._s_per_token)
        return self._is_on


def best_window(seqs: list[int], n_slots: int) -> range:
    """So many sequences in a row as there are, of which as many as possible are among `seqs` (sorted) already."""
    n = len(seqs)
    start = max(range(n_slots - n + 1), key=lambda low: sum(low <= seq < low + n for seq in seqs))
    return range(start, start + n)


def _n_tokens(slot: Slot) -> int:
    return len(slot.tokens)
