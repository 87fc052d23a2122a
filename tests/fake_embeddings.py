"""The fake backend's context for embeddings."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from server.engine.slots.backend import DECODE_OK
from server.engine.slots.planner import Span

if TYPE_CHECKING:
    from tests.fakes import FakeBackend


def vector_of(tokens: Sequence[int]) -> list[float]:
    """The fake embedding of a sequence: depends on all of its tokens and on their order; never all zeros."""
    code = zlib.crc32(repr(list(tokens)).encode())
    return [1.0 + (code >> shift & 255) for shift in (0, 8, 16, 24)]


class FakeEmbeddings:
    """A context for embeddings that knows what each sequence holds and checks what is put behind it.

    Without `can_split` it is an encoder: each input comes whole, and nothing is kept. `refuse(spans)` gives the code of
    a decode that is to fail.
    """

    def __init__(
        self,
        backend: FakeBackend,
        pooling: str = "mean",
        n_input: int = 64,
        n_rows: int = 32,
        n_seqs: int = 4,
        can_split: bool = False,
        can_trim: bool = True,
    ) -> None:
        self._backend = backend
        self.pooling, self.width = pooling, 4
        self.n_input, self.n_rows, self.n_seqs = n_input, n_rows, n_seqs
        self.can_split, self.can_trim = can_split, can_trim
        self.advice = "give it shorter texts"
        self.held: dict[int, list[int]] = {}
        self.batches: list[list[Span]] = []
        self.refuse: Callable[[list[Span]], int] = lambda spans: DECODE_OK
        self.is_closed = False

    def embed(self, spans: Sequence[Span]) -> int:
        """Check and store the rows."""
        self._backend.check_thread()
        assert not self.is_closed and spans, "an empty batch, or a closed context"
        n_rows = sum(map(len, spans))
        assert n_rows <= (self.n_rows if self.can_split or len(spans) > 1 else self.n_input), f"{n_rows} rows"
        assert len({span.seq for span in spans}) == len(spans) and all(0 <= s.seq < self.n_seqs for s in spans)
        self.batches.append(list(spans))
        self._backend.wait_at_the_gate()
        code = self.refuse(list(spans))
        for span in spans:
            held = self.held.setdefault(span.seq, [])
            assert span.pos == len(held), f"sequence {span.seq}: position {span.pos}, it holds {len(held)}"
            assert self.can_split or span.pos == 0 and span.output, "an encoder's input was cut"
            held += span.tokens if code == DECODE_OK else span.tokens[:1]
        return code

    def read_vectors(self, spans: Sequence[Span]) -> list[bytes]:
        """Those of the sequences that end, or of every token."""
        if self.pooling == "none":
            return [
                b"".join(self._vector(self.held[span.seq][: span.pos + i + 1]) for i in range(len(span)))
                for span in spans
            ]
        return [self._vector(self.held[span.seq]) if span.output else b"" for span in spans]

    @staticmethod
    def _vector(tokens: Sequence[int]) -> bytes:
        return struct.pack("4f", *vector_of(tokens))

    def trim(self, seq: int, start: int) -> bool:
        """Forget what comes behind `start`; without `can_trim` only all of it."""
        if start and not self.can_trim:
            return False
        del self.held.get(seq, [])[start:]
        return True

    def close(self) -> None:
        """Once."""
        self.is_closed = True
