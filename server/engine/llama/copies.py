"""Sequences of a split KV cache as copies of each other: what one has computed, another gets without computing it.

Engine thread; a part of the backend. A sequence is read out as bytes and read in for another one. That costs as much
as is copied, some microseconds per token; the bytes are kept until the next decode, since several tasks often take the
same beginning at once.

Not taken: `llama_memory_seq_cp`, which copies a whole stream, used or not (10 ms where 900 tokens of a small model take
8 and 100 take 0.5), and only within the next decode, so that reading or filling either sequence before that goes
wrong. It is the way where a model has sliding windows: their cells are left out when a sequence is read out.
"""

from __future__ import annotations

from typing import Protocol

from server.engine.slots.backend import DECODE_OK
from server.engine.slots.planner import Span


class Sequences(Protocol):
    """What of a backend is needed here; see `Backend`."""

    def decode(self, spans: list[Span]) -> int:
        """Evaluate rows."""

    def seq_rm(self, seq: int, start: int, end: int) -> bool:
        """Drop positions."""

    def seq_copy_stream(self, source: int, target: int) -> None:
        """Have all of a stream copied with the next decode."""

    def state_bytes(self, seq: int) -> int:
        """How long a sequence is when read out."""

    def raw_state(self, seq: int) -> memoryview:
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
        """Let `target` have the first `n` positions of `source`, and nothing else. RuntimeError if that fails; the
        target is empty then."""
        if self._has_window:
            self._copy_stream(source, target, n)
            return
        if self._source != source or len(self._state) != self._backend.state_bytes(source):
            self._source, self._state = source, self._backend.raw_state(source)
        if not self._backend.put_raw_state(target, self._state):
            self._backend.seq_rm(target, -1, -1)
            raise RuntimeError("a sequence could not be copied")
        self._backend.seq_rm(target, n, -1)

    def swap(self, a: int, b: int) -> bool:
        """See `Backend`. RuntimeError if something is lost."""
        if self._has_window:
            return False
        try:
            states = self._backend.raw_state(a), self._backend.raw_state(b)
        except MemoryError:
            return False
        if self._put(b, states[0]) and self._put(a, states[1]):
            return True
        if not (self._put(a, states[0]) and self._put(b, states[1])):
            raise RuntimeError("two sequences could not be exchanged")
        return False

    def _put(self, seq: int, state: memoryview) -> bool:
        """An empty state leaves in place what is there."""
        self._backend.seq_rm(seq, -1, -1)
        return self._backend.put_raw_state(seq, state)

    def forget(self, seq: int | None = None) -> None:
        """A sequence, or any, is about to change. (Chunks of media go in another way; they make it longer.)"""
        if seq is None or seq == self._source:
            self._source, self._state = -1, memoryview(b"")

    def _copy_stream(self, source: int, target: int, n: int) -> None:
        """A row that nobody wants makes llama.cpp copy now, before anything else happens to the two."""
        self._backend.seq_rm(target, -1, -1)
        self._backend.seq_copy_stream(source, target)
        self._backend.seq_rm(target, n, -1)
        code = self._backend.decode([Span(target, target, n, [0], False)])
        self._backend.seq_rm(target, n, -1)
        if code != DECODE_OK:
            self._backend.seq_rm(target, -1, -1)
            raise RuntimeError("a sequence could not be copied")
