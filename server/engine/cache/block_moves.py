"""Moves blocks between slots and the host's memory, in one way for each layout of the KV cache.

Engine thread only; `block_cache` decides what is moved. In a unified cache, blocks go through a scratch sequence
(`ThroughScratch`), and a slot gets only the cells it lacks. In a split cache a sequence's state is cut and joined in
the host's memory (`InParts`), and a slot is filled from its first token on. Blocks are the same bytes either way.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.cache import prompt_cache
from server.engine.cache.kv_parts import UnknownState
from server.engine.slots.backend import Backend, StateParts
from server.engine.slots.slot import Slot

State = bytearray | memoryview


class ThroughScratch:
    """Moves in a unified cache, through the scratch sequence."""

    def __init__(self, backend: Backend, scratch: int) -> None:
        self._backend = backend
        self._scratch = scratch

    def copy_out(self, slot: Slot, start: int, end: int) -> memoryview:
        """A copy of the keys and values of the slot's tokens [start, end)."""
        self._backend.seq_cp(slot.seq, self._scratch, start, end)
        state = self._backend.read_state(self._scratch)
        self._backend.seq_rm(self._scratch, -1, -1)
        return state

    def finish(self, slot: Slot) -> None:
        """Nothing is kept after `copy_out`."""

    def copy_into(self, slot: Slot, state: State | None, end: int) -> bool:
        """Give the slot the tokens that it lacks up to `end`, from a block that begins at the slot's end or before."""
        is_there = state is not None and self._backend.set_state(self._scratch, state)
        if is_there:
            self._backend.seq_cp(self._scratch, slot.seq, len(slot.tokens), end)
        self._backend.seq_rm(self._scratch, -1, -1)
        return is_there


class InParts:
    """Moves in a split cache. A sequence's state is read once for all its blocks, and kept until `finish`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._of: tuple[object, ...] | None = None  # the contents of the slot that was read
        self._parts: StateParts | None = None

    def copy_out(self, slot: Slot, start: int, end: int) -> memoryview | None:
        """A copy of the keys and values of the slot's tokens [start, end); None if this model's state can't be cut."""
        if self._of != _get_contents(slot):
            self._of, self._parts = _get_contents(slot), self._backend.read_parts(slot.seq)
        try:
            return None if self._parts is None else self._parts.cut_part(start, end)
        except UnknownState:
            return None

    def finish(self, slot: Slot) -> None:
        """Free the state that `copy_out` has read."""
        if self._of == _get_contents(slot):
            self._of = self._parts = None

    def fill(self, slot: Slot, states: Sequence[State], tokens: list[int]) -> bool:
        """Make the slot hold `tokens`, the beginning of the blocks `states`. If that fails, the slot is empty."""
        is_there = self._backend.write_parts(slot.seq, states) and self._backend.seq_rm(slot.seq, len(tokens), -1)
        prompt_cache.forget(slot)
        if not is_there:
            prompt_cache.trim(self._backend, slot, 0)
            return False
        slot.tokens[:] = tokens
        return True


def _get_contents(slot: Slot) -> tuple[object, ...]:
    """What a sequence's keys and values depend on."""
    return slot.lora, slot.shifted_at, list(slot.tokens)
