"""A backend without a model: bytes as tokens, a KV cache that is checked, and text that depends on all of it.

The next token is a function of every token that the fake cache holds for the sequence, so a mistake in positions,
prefix reuse, shifting or batching changes the text. Calls that would be errors in llama.cpp raise AssertionError.
Decodes can be held (`hold`), fail at the Nth call (`fail_at`), or run out of room (`n_cells`).
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence

from server.engine.backend_types import DECODE_ABORTED, DECODE_NO_ROOM, DECODE_OK
from server.engine.planner import Span
from server.engine.sampling import Stage, VocabFacts
from server.engine.task import ModelInfo, TokenProbs
from server.errors import ApiError

BOS, EOS = 256, 257
N_VOCAB = 258


def letters(history: Sequence[int]) -> int:
    """A letter that depends on every token of the sequence; never EOS."""
    return 97 + zlib.crc32(repr(list(history)).encode()) % 26


def recite(text: str | bytes) -> Callable[[Sequence[int]], int]:
    """A model that goes on with `text` wherever the sequence ends with a beginning of it, then EOS."""
    data = text.encode() if isinstance(text, str) else text

    def reply(history: Sequence[int]) -> int:
        for n in range(min(len(data), len(history)), 0, -1):
            if list(history[-n:]) == list(data[:n]):
                return data[n] if n < len(data) else EOS
        return data[0]
    return reply


class FakeVocab:
    """Bytes, BOS and EOS."""

    n_tokens = N_VOCAB
    add_bos = True

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """One token per byte, BOS first if asked for."""
        return ([BOS] if add_special else []) + list(text.encode())

    def piece(self, token: int) -> bytes:
        """The byte, or the name of a special token."""
        return bytes([token]) if token < 256 else (b"<s>" if token == BOS else b"</s>")

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The bytes of all ordinary tokens."""
        return bytes(token for token in tokens if token < 256)


class FakeSampler:
    """Takes the one token that the backend's `reply` gives for the row's sequence."""

    def __init__(self, backend: FakeBackend, stages: Sequence[Stage]) -> None:
        self._backend = backend
        self.stages = list(stages)
        self.accepted: list[int] = []
        self.is_closed = False

    def accept(self, tokens: Sequence[int]) -> None:
        """Remember what penalties would see."""
        self.accepted += tokens

    def sample(self, row: int) -> int:
        """The reply to the sequence whose last row `row` was."""
        assert not self.is_closed, "sampling with a freed sampler"
        return self._backend.reply(self._backend.outputs[row])

    def sample_probs(self, row: int, n_probs: int) -> TokenProbs:
        """Certainty, with made-up alternatives."""
        token = self.sample(row)
        others = [(token + i) % 256 for i in range(n_probs)]
        return TokenProbs(token, 1.0, 0.0, tuple((t, 1.0 if t == token else 0.0) for t in others),
                          tuple((t, 0.0 if t == token else -10.0) for t in others))

    def close(self) -> None:
        """Count as freed."""
        assert not self.is_closed, "freed twice"
        self.is_closed = True
        self._backend.n_samplers -= 1


class FakeBackend:
    """See the module. `cells[seq]` is the list of tokens at positions 0, 1, ..."""

    def __init__(self, reply: Callable[[Sequence[int]], int] = letters, n_ctx: int = 4096, n_slots: int = 1,
                 n_cells: int | None = None, can_shift: bool = True, can_trim: bool = True) -> None:
        self.reply = reply
        self.cells: dict[int, list[int]] = {}
        self.outputs: dict[int, list[int]] = {}
        self.batches: list[list[Span]] = []
        self.fail_at: dict[int, int] = {}
        self.n_cells = n_cells
        self.can_shift = can_shift
        self.can_trim = can_trim
        self.can_share = can_trim
        self.adapters: tuple[str, ...] = ()
        self.lora: tuple = ()
        self.n_samplers = 0
        self.eog_tokens = frozenset({EOS})
        self.facts = VocabFacts((EOS,), (), n_ctx // n_slots)
        self.info = ModelInfo(path="fake.gguf", desc="fake", n_vocab=N_VOCAB, n_ctx_train=n_ctx, n_ctx=n_ctx,
                              n_ctx_slot=n_ctx // n_slots, n_slots=n_slots, n_batch=512, llama_version="fake")
        self.decoding = threading.Semaphore(0)
        self._gate = threading.Event()
        self._gate.set()
        self._is_aborted = False
        self.is_closed = False

    def hold(self) -> None:
        """Let the next decodes wait until `go`. Each one that has begun releases the semaphore `decoding` once."""
        self._gate.clear()

    def go(self) -> None:
        """Let decodes run."""
        self._gate.set()

    def decode(self, spans: Sequence[Span]) -> int:
        """Check and store the rows."""
        self.batches.append(list(spans))
        self.decoding.release()
        self._gate.wait()
        code = self.fail_at.pop(len(self.batches), DECODE_OK)
        if self._is_aborted:
            self._is_aborted = False
            code = DECODE_ABORTED
        if code:
            return code
        used = sum(map(len, self.cells.values())) + sum(map(len, spans))
        if self.n_cells is not None and used > self.n_cells:
            return DECODE_NO_ROOM
        self.outputs.clear()
        row = -1
        for span in spans:
            assert len(span) > 0, "an empty span"
            cells = self.cells.setdefault(span.seq, [])
            assert span.pos == len(cells), f"sequence {span.seq}: position {span.pos} but {len(cells)} in the cache"
            cells += span.tokens
            row += len(span)
            if span.output:
                self.outputs[row] = list(cells)
        return DECODE_OK

    def abort(self) -> None:
        """The decode that runs (or the next one) ends with DECODE_ABORTED."""
        self._is_aborted = True
        self.go()

    def piece(self, token: int) -> bytes:
        """The byte; nothing for special tokens."""
        return bytes([token]) if token < 256 else b""

    def new_sampler(self, stages: Sequence[Stage], grammar: str) -> FakeSampler:
        """Refuses the grammar "bad"."""
        if grammar == "bad":
            raise ApiError(400, "Failed to parse grammar")
        self.n_samplers += 1
        return FakeSampler(self, stages)

    def seq_rm(self, seq: int, start: int, end: int) -> bool:
        """Drop a range; only everything where `can_trim` is off."""
        cells = self.cells.setdefault(seq, [])
        start = max(start, 0)
        end = len(cells) if end < 0 else end
        if not self.can_trim and start > 0 and start < len(cells):
            return False
        del cells[start:end]
        return True

    def seq_cp(self, source: int, target: int, start: int, end: int) -> None:
        """Copy a beginning."""
        assert start == 0
        self.cells[target] = self.cells.get(source, [])[:end if end >= 0 else None]

    def seq_add(self, seq: int, start: int, end: int, delta: int) -> None:
        """The list is renumbered by itself; only check what was asked."""
        assert self.can_shift, "this model can't shift: llama.cpp would abort"
        assert delta < 0 and end + delta == len(self.cells[seq])

    def seq_div(self, seq: int, start: int, end: int, factor: int) -> None:
        """Not modelled: positions of the fake are list indices."""
        assert self.can_shift

    def unshare(self, seq: int) -> None:
        """Every sequence of the fake has its own cells anyway."""

    def state(self, seq: int) -> memoryview:
        """The tokens as text."""
        return memoryview(repr(self.cells.get(seq, [])).encode())

    def set_state(self, seq: int, state: bytearray) -> bool:
        """The reverse, for an empty sequence."""
        assert not self.cells.get(seq)
        self.cells[seq] = list(map(int, state.decode().strip("[]").replace(" ", "").split(",")))
        return True

    def set_lora(self, scales: tuple) -> None:
        """Remember the adapters of the next decode."""
        self.lora = scales

    def fingerprint(self) -> str:
        """There is one fake model."""
        return "fake"

    def close(self) -> None:
        """Everything must have been given back."""
        assert self.n_samplers == 0, f"{self.n_samplers} samplers were not freed"
        self.is_closed = True
