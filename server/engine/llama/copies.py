"""Copies a sequence of a split KV cache into another sequence, so that a common prefix is computed once.

Engine thread; part of the backend. The source sequence is read out as bytes and written into the target. The bytes are
kept until the next decode of text, or until the source changes: several tasks often take the same prefix.

`llama_memory_seq_cp` is used only for models with sliding windows, because their state as bytes lacks cells. It copies
a whole KV stream, used or not, within the next decode; until then neither sequence may be read or filled.
"""

from __future__ import annotations

from typing import Protocol

from server.engine.slots.backend import DECODE_OK
from server.engine.slots.planner import Span


class Sequences(Protocol):
    """The methods of a backend that copying needs; see `Backend`."""

    def decode(self, spans: list[Span]) -> int:
        """Evaluate rows."""

    def seq_rm(self, seq: int, start: int, end: int) -> bool:
        """Drop positions."""

    def copy_seq_stream(self, source: int, target: int) -> None:
        """Copy a whole KV stream with the next decode."""

    def count_state_bytes(self, seq: int) -> int:
        """The size of `read_raw_state`."""

    def read_raw_state(self, seq: int) -> memoryview:
        """Read a sequence out."""

    def put_raw_state(self, seq: int, state: bytearray | memoryview) -> bool:
        """Read a sequence in."""


class SequenceCopies:
    """Copies sequences of one backend."""

    def __init__(self, backend: Sequences, has_window: bool) -> None:
        self._backend = backend
        self._has_window = has_window
        self._source = -1
        self._state = memoryview(b"")  # of `_source`

    def copy(self, source: int, target: int, n: int) -> None:
        """Replace `target` by the first `n` positions of `source`. RuntimeError or MemoryError if that fails."""
        if self._has_window:
            self._copy_stream(source, target, n)
            return
        if self._source != source or len(self._state) != self._backend.count_state_bytes(source):
            self._source, self._state = source, self._backend.read_raw_state(source)
        if not self._backend.put_raw_state(target, self._state):
            self._backend.seq_rm(target, -1, -1)
            raise RuntimeError("could not copy a sequence of the KV cache")
        self._backend.seq_rm(target, n, -1)

    def swap(self, a: int, b: int) -> bool:
        """See `Backend`. RuntimeError if a sequence was lost."""
        if self._has_window:
            return False
        try:
            states = self._backend.read_raw_state(a), self._backend.read_raw_state(b)
        except MemoryError:
            return False
        if self._put(b, states[0]) and self._put(a, states[1]):
            return True
        if not (self._put(a, states[0]) and self._put(b, states[1])):
            raise RuntimeError("could not swap two sequences of the KV cache")
        return False

    def _put(self, seq: int, state: memoryview) -> bool:
        """Replace the sequence. It is emptied first, because reading in an empty state doesn't do that."""
        self._backend.seq_rm(seq, -1, -1)
        return self._backend.put_raw_state(seq, state)

    def forget(self, seq: int | None = None) -> None:
        """`seq` (None: any sequence) is about to change: drop the bytes that are kept of it.

        Chunks of media don't call this: they only make a sequence longer, and `copy` compares the length.
        """
        if seq is None or seq == self._source:
            self._source, self._state = -1, memoryview(b"")

    def _copy_stream(self, source: int, target: int, n: int) -> None:
        """Copy by `llama_memory_seq_cp`. A dummy row is decoded to make llama.cpp copy now."""
        self._backend.seq_rm(target, -1, -1)
        self._backend.copy_seq_stream(source, target)
        self._backend.seq_rm(target, n, -1)
        code = self._backend.decode([Span(target, target, n, [0], False)])
        self._backend.seq_rm(target, n, -1)
        if code != DECODE_OK:
            self._backend.seq_rm(target, -1, -1)
            raise RuntimeError("could not copy a sequence of the KV cache")
