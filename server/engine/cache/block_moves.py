"""How blocks of tokens get out of a slot and into it: in one way for each layout of the KV cache.

Engine thread only; `block_cache` decides what is moved. In one cache for all they go through a sequence that no slot
has (`ThroughScratch`): its cells are the slot's own, so that a slot can be given just what it lacks. Where each slot
has a stream for itself, a sequence's state is cut and joined in the host's memory (`InParts`), and a slot is filled
from its beginning. Blocks look the same either way.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.cache import prompt_cache
from server.engine.cache.kv_parts import UnknownState
from server.engine.slots.backend import Backend, StateParts
from server.engine.slots.slot import Slot

State = bytearray | memoryview


class ThroughScratch:
    """One cache for all slots, with a sequence for what is on its way."""

    def __init__(self, backend: Backend, scratch: int) -> None:
        self._backend = backend
        self._scratch = scratch

    def out(self, slot: Slot, start: int, end: int) -> memoryview:
        """A copy of the slot's tokens [start, end)."""
        self._backend.seq_cp(slot.seq, self._scratch, start, end)
        state = self._backend.state(self._scratch)
        self._backend.seq_rm(self._scratch, -1, -1)
        return state

    def done(self, slot: Slot) -> None:
        """No more of this slot."""

    def into(self, slot: Slot, state: State | None, end: int) -> bool:
        """Give the slot what it lacks up to `end` of a block that begins where the slot ends, or before."""
        is_there = state is not None and self._backend.set_state(self._scratch, state)
        if is_there:
            self._backend.seq_cp(self._scratch, slot.seq, len(slot.tokens), end)
        self._backend.seq_rm(self._scratch, -1, -1)
        return is_there


class InParts:
    """A stream for each slot. What was read of a sequence is kept until `done`: its blocks are asked for one by one."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._of: tuple[object, ...] | None = None  # whose parts these are
        self._parts: StateParts | None = None

    def out(self, slot: Slot, start: int, end: int) -> memoryview | None:
        """A copy of the slot's tokens [start, end); None if this model's states can't be cut."""
        if self._of != _contents(slot):
            self._of, self._parts = _contents(slot), self._backend.read_parts(slot.seq)
        try:
            return None if self._parts is None else self._parts.part(start, end)
        except UnknownState:
            return None

    def done(self, slot: Slot) -> None:
        """No more of this slot."""
        if self._of == _contents(slot):
            self._of = self._parts = None

    def fill(self, slot: Slot, states: Sequence[State], tokens: list[int]) -> bool:
        """Let the slot hold `tokens`, which the blocks `states` begin with; if that fails it is empty."""
        is_there = self._backend.write_parts(slot.seq, states) and self._backend.seq_rm(slot.seq, len(tokens), -1)
        prompt_cache.forget(slot)
        if not is_there:
            prompt_cache.trim(self._backend, slot, 0)
            return False
        slot.tokens[:] = tokens
        return True


def _contents(slot: Slot) -> tuple[object, ...]:
    """What the keys and values of a slot's sequence are of."""
    return slot.lora, slot.shifted_at, list(slot.tokens)
