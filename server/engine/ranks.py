"""Running slots side by side in a split cache: whoever stands apart moves up, in exchange with an idle slot.

Engine thread only, between two steps. llama.cpp computes sequences whose numbers follow each other in one micro-batch;
each gap among them makes it read all weights once more. Four streams of a small model with gaps between them took
24 ms a step, side by side 12. So when a gap has been there for some steps (a newcomer might fill it), a slot at the
edge and an idle one in the gap exchange their sequences, which costs microseconds per token. A slot keeps its number;
only `Slot.seq` changes.

Not moved: what would take longer than a stall, and sequences that a draft model knows by their number.
"""

from __future__ import annotations

from server.engine.slot import Slot
from server.engine.state import EngineState

PATIENCE_STEPS = 4
S_PER_TOKEN = 20e-6     # to begin with; a small model takes 5 to 10 microseconds
WEIGHT = 0.3


class Ranks:
    """Watches the running slots of one engine."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        backend = state.backend
        self._is_on = (backend.is_split and backend.can_share and backend.drafter is None and state.config.n_slots > 2
                       and not state.config.exact)
        self._n_steps = 0       # that there has been a gap
        self._s_per_token = S_PER_TOKEN

    def close_up(self) -> None:
        """Before a step: close one gap, if it has been there for long enough."""
        running = self._state.running
        if not self._is_on or len(running) < 2:
            return
        seqs = sorted(slot.seq for slot in running)
        if seqs[-1] - seqs[0] == len(seqs) - 1:
            self._n_steps = 0
            return
        self._n_steps += 1
        if self._n_steps > PATIENCE_STEPS:
            self._close_one(best_window(seqs, len(self._state.slots)))

    def _close_one(self, window: range) -> None:
        apart = [slot for slot in self._state.running if slot.seq not in window and _may_move(slot)]
        free = [slot for slot in self._state.slots if slot.run is None and slot.seq in window]
        if not (apart and free):
            return
        slot, other = min(apart, key=_n_tokens), min(free, key=_n_tokens)
        n = _n_tokens(slot) + _n_tokens(other)
        limit_ms = self._state.config.max_stall_ms
        if limit_ms and n * self._s_per_token > limit_ms / 1e3:
            return
        started = self._state.clock()
        if not self._state.backend.swap(slot.seq, other.seq):
            self._is_on = False
            return
        slot.seq, other.seq = other.seq, slot.seq
        seconds = (self._state.clock() - started) / max(n, 1)
        self._s_per_token += WEIGHT * (seconds - self._s_per_token)


def best_window(seqs: list[int], n_slots: int) -> range:
    """So many sequences in a row as there are, of which as many as possible are among `seqs` (sorted) already."""
    n = len(seqs)
    start = max(range(n_slots - n + 1), key=lambda low: sum(low <= seq < low + n for seq in seqs))
    return range(start, start + n)


def _may_move(slot: Slot) -> bool:
    """A slot that still reads its prompt has no rows among the streams."""
    return slot.run.next_token is not None


def _n_tokens(slot: Slot) -> int:
    return len(slot.tokens)
