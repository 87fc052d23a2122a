"""Moves the generating slots of a split cache next to each other, by exchanging sequences with idle slots.

Engine thread only, between two steps. llama.cpp computes sequences with consecutive numbers in one micro-batch. Each
gap begins another, which reads all weights again. So a generating slot at the edge exchanges its sequence (`Slot.seq`)
with an idle slot in a gap, which takes microseconds per token.

A gap may also close by itself, when a task begins or ends. So a move waits until the gaps have cost as much time as the
move is expected to take. The moves before one step may together take `--max-stall-ms`.

Off with `--exact`, fewer than three slots, or a draft model (it knows sequences by their numbers), and after a failed
exchange. Not taken: waiting a fixed number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from server.engine.loop.state import EngineState
from server.engine.slots.planner import Span
from server.engine.slots.slot import Slot

S_PER_TOKEN = 20e-6  # seconds to exchange a token's cells, at first
WEIGHT = 0.3  # of the latest measurement in the moving average


class Ranks:
    """Watches the generating slots of one engine, and moves them."""

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
        self._lost_s = 0.0  # seconds that gaps have cost, minus the expected time of moves; 0 without gaps
        self._s_per_token = S_PER_TOKEN

    def observe(self, spans: Sequence[Span], seconds: float) -> None:
        """Add what the gaps cost in a step of generating slots; without gaps, begin again at 0. All micro-batches count
        the same, because they mostly read weights."""
        seqs = sorted(span.seq for span in spans)
        n_parts = 1 + sum(after - before > 1 for before, after in zip(seqs, seqs[1:]))
        self._lost_s = self._lost_s + seconds * (n_parts - 1) / n_parts if n_parts > 1 else 0.0

    def close_up(self) -> None:
        """Before a step: make the moves that are worth their time, the cheapest first."""
        if not self._is_on or not self._lost_s:
            return
        generating = [slot for slot in self._state.running if slot.run.next_token is not None]
        window = find_best_window(sorted(slot.seq for slot in generating), len(self._state.slots))
        apart = sorted((slot for slot in generating if slot.seq not in window), key=_count_tokens)
        free = sorted(
            (slot for slot in self._state.slots if slot.run is None and slot.seq in window), key=_count_tokens
        )
        limit_s = self._state.config.max_stall_ms / 1e3 or math.inf
        for slot, other in zip(apart, free):
            cost_s = (_count_tokens(slot) + _count_tokens(other)) * self._s_per_token
            if cost_s > min(self._lost_s, limit_s) or not self._exchange(slot, other):
                return
            self._lost_s -= cost_s
            limit_s -= cost_s

    def _exchange(self, slot: Slot, other: Slot) -> bool:
        started = self._state.clock()
        self._is_on = self._state.backend.swap(slot.seq, other.seq)
        if self._is_on:
            slot.seq, other.seq = other.seq, slot.seq
            seconds = (self._state.clock() - started) / max(_count_tokens(slot) + _count_tokens(other), 1)
            self._s_per_token += WEIGHT * (seconds - self._s_per_token)
        return self._is_on


def find_best_window(seqs: list[int], n_slots: int) -> range:
    """The range of `len(seqs)` consecutive sequences that contains the most of `seqs`."""
    n = len(seqs)
    start = max(range(n_slots - n + 1), key=lambda low: sum(low <= seq < low + n for seq in seqs))
    return range(start, start + n)


def _count_tokens(slot: Slot) -> int:
    return len(slot.tokens)
