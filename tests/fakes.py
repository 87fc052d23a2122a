"""A backend without a model: bytes as tokens, a KV cache that is checked, and text that depends on all of it.

The next token is a function of every token in the sequence's part of the fake cache, so a mistake in positions, prefix
reuse, sharing, shifting or batching changes the text. Cells can belong to several sequences, as in llama.cpp's unified
cache; renumbering a cell renumbers it for all of them. Calls that would be errors in llama.cpp, or that come from a
second thread, raise AssertionError.

Decodes can be held (`hold`) and released one by one (`let`), fail at the Nth call (`fail_at`) or for certain rows
(`refuse`), or run out of cells (`n_cells`). A decode that fails or is aborted leaves part of its rows in the cache, as
in llama.cpp.
"""

from __future__ import annotations

import json
import math
import os
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from server.engine.seam.task import ModelInfo, TokenProbs
from server.engine.slots.backend import DECODE_ABORTED, DECODE_NO_ROOM, DECODE_OK
from server.engine.slots.phases import Begin
from server.engine.slots.planner import Span
from server.engine.slots.sampling import Stage, VocabFacts
from server.errors import ApiError
from server.model_files.identity import Identity
from tests.fake_embeddings import FakeEmbeddings

BOS, EOS = 256, 257
N_VOCAB = 258
PATIENCE_S = 30.0


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


def answer(text: str | bytes, end: str | bytes = "?") -> Callable[[Sequence[int]], int]:
    """A model that says `text` behind the last `end` of the sequence, then EOS: repeated bytes are no problem."""
    data, mark = ((part.encode() if isinstance(part, str) else part) for part in (text, end))

    def reply(history: Sequence[int]) -> int:
        said = bytes(token if token < 256 else 0 for token in history).rpartition(mark)[2]
        return data[len(said)] if len(said) < len(data) else EOS

    return reply


def said_by(reply: Callable[[Sequence[int]], int], prompt: Sequence[int], n: int) -> list[int]:
    """The tokens that a sequence alone in an endless cache gets: at most `n`, EOS not included."""
    history = list(prompt)
    for _ in range(n):
        token = reply(history)
        if token == EOS:
            break
        history.append(token)
    return history[len(prompt) :]


def judged(history: Sequence[int], token: int) -> float:
    """The logprob of a token that isn't the reply to `history`."""
    return -1.0 - zlib.crc32(repr([*history, token]).encode()) % 64 / 8


class FakeVocab:
    """Bytes, BOS and EOS."""

    n_tokens = N_VOCAB
    add_bos = add_eos = True
    bos, eos, sep = BOS, EOS, -1
    add_sep = False
    builtin_templates = ("chatml",)
    has_patterns = is_none = False
    fim: Mapping[str, int] = MappingProxyType({})

    def __init__(self, fim: Mapping[str, int] | None = None) -> None:
        if fim is not None:
            self.fim = fim

    max_bytes = 1 << 40

    def measure(self, text: str) -> int:
        """Its bytes."""
        return len(text.encode())

    def tokenize(self, text: str, add_special: bool, parse_special: bool, **bounds: bool) -> list[int]:
        """One token per byte, BOS first if asked for; `<s>` and `</s>` are special tokens if they may be."""
        tokens = list(text.encode())
        if parse_special:
            tokens = _parse_special(text)
        return ([BOS] if add_special else []) + tokens

    def piece(self, token: int) -> bytes:
        """The byte, or the name of a special token."""
        return bytes([token]) if token < 256 else (b"<s>" if token == BOS else b"</s>")

    def is_control(self, token: int) -> bool:
        """BOS and EOS."""
        return token >= 256

    def apply_template(self, template: str, messages: Sequence[tuple[str, str]], add_generation_prompt: bool) -> str:
        """A made-up form."""
        return "".join(f"[{role}]{content}" for role, content in messages) + "[assistant]" * add_generation_prompt

    def detokenize(self, tokens: Sequence[int], most: int | None = None) -> bytes:
        """The bytes of all ordinary tokens."""
        if most is not None and len(tokens) > most:
            raise ApiError(400, "the text would be too long", reason="too_large")
        return bytes(token for token in tokens if 0 <= token < 256)

    def least_tokens(self, text: str) -> int:
        """The longest token is the name of a special one, with four bytes."""
        return -(-len(text.encode()) // 4)


def _parse_special(text: str) -> list[int]:
    tokens: list[int] = []
    for i, part in enumerate(text.split("<s>")):
        tokens += [BOS] * (i > 0)
        for j, piece in enumerate(part.split("</s>")):
            tokens += [EOS] * (j > 0)
            tokens += piece.encode()
    return tokens


class FakeSampler:
    """Takes the one token that the backend's `reply` gives for the row's sequence. The grammar is the backend's
    `language`: where it refuses a token, the lowest one that it allows comes instead."""

    def __init__(self, backend: FakeBackend, stages: Sequence[Stage], grammar: str, waits: bool = False) -> None:
        self._backend = backend
        self.stages = list(stages)
        self.grammar = grammar
        self.accepted: list[int] = []
        self.is_closed = False
        self.row_ahead: int | None = None
        self.begins: list[Begin] = []
        self._waits = waits
        self._begin: Begin | None = Begin() if grammar and not waits and backend.language is not None else None
        self._written = b""

    def accept(self, tokens: Sequence[int]) -> None:
        """Remember what penalties would see."""
        assert not self.is_closed, "a freed sampler is told of tokens"
        self.accepted += tokens

    def sample(self, row: int) -> int:
        """The reply to the sequence whose last row `row` was."""
        self._backend.check_thread()
        assert not self.is_closed, "sampling with a freed sampler"
        assert self.row_ahead in (None, row), f"row {row} is drawn where {self.row_ahead} was announced"
        self.row_ahead = None
        assert not self._waits or self._begin is not None, "a grammar that waits: draw and commit"
        return self._accept(self._draw(row))

    def _draw(self, row: int) -> int:
        token = self._backend.reply(self._backend.outputs[row])
        return token if self.is_allowed(token) else self._lowest()

    def _lowest(self) -> int:
        return next(token for token in range(N_VOCAB) if self.is_allowed(token))

    def _accept(self, token: int) -> int:
        assert self.is_allowed(token), (
            f"the grammar doesn't allow {token} behind {self._written!r}: llama.cpp would end"
        )
        self.accepted.append(token)
        self._written += self._backend.vocab.piece(token)
        return token

    def draw(self, row: int) -> int:
        """The reply."""
        self._backend.check_thread()
        assert self.row_ahead in (None, row), f"row {row} is drawn where {self.row_ahead} was announced"
        self.row_ahead = None
        return self._draw(row)

    def draw_probs(self, row: int, n_probs: int) -> TokenProbs:
        """The reply, with made-up alternatives."""
        return self._probs(self.draw(row), n_probs)

    def commit(self, token: int) -> None:
        """Accept it."""
        self._accept(token)

    def begin_grammar(self, begin: Begin) -> None:
        """All of it is spelled in bytes."""
        self.begins.append(begin)
        self._begin, self._written = begin, b""
        for token in begin.tokens:
            if not self.is_allowed(token):
                self._begin = None
                raise ApiError(400, "the grammar doesn't begin with its trigger")
            self._written += self._backend.vocab.piece(token)

    def end_grammar(self) -> None:
        """Everything is allowed again."""
        assert self._begin is not None, "no grammar holds"
        self._begin = None

    def is_allowed(self, token: int) -> bool:
        """Whether a text of the language goes on like that."""
        if self._begin is None or self._backend.language is None:
            return True
        lead = self._begin.lead.encode()
        texts = [lead + text.encode() for text in self._backend.language]
        if token == EOS:
            return self._written in texts
        written, unless = self._written + self._backend.vocab.piece(token), self._begin.unless.encode()
        if unless and (written.startswith(unless) or unless.startswith(written)):
            return True
        return any(text.startswith(written) for text in texts)

    def fit(self, row: int, token: int) -> int:
        """It, or the lowest that is allowed."""
        return token if self.is_allowed(token) else self._lowest()

    def foresee(self) -> list[int]:
        """The bytes that all texts of the language go on with."""
        if self._begin is None or not self._backend.language or self._begin.lead or self._begin.unless:
            return []
        n = len(self._written)
        rests = [text.encode()[n:] for text in self._backend.language if text.encode().startswith(self._written)]
        return list(os.path.commonprefix(rests))

    def announce(self, row: int) -> None:
        """The next thing is a draw from this row."""
        assert self.row_ahead is None, f"row {self.row_ahead} was announced, and not drawn from"
        self.row_ahead = row

    def sample_probs(self, row: int, n_probs: int) -> TokenProbs:
        """Certainty, with made-up alternatives."""
        return self._probs(self.sample(row), n_probs)

    @staticmethod
    def _probs(token: int, n_probs: int) -> TokenProbs:
        others = [(token + i) % 256 for i in range(n_probs)]
        return TokenProbs(
            token,
            1.0,
            0.0,
            tuple((t, 1.0 if t == token else 0.0) for t in others),
            tuple((t, 0.0 if t == token else -10.0) for t in others),
        )

    def compute_row_probs(self, row: int, token: int, n_probs: int) -> TokenProbs:
        """The reply is certain; how likely any other token is depends on the sequence before it."""
        self._backend.check_thread()
        history = self._backend.outputs[row]
        likely = self._backend.reply(history)
        logprob = 0.0 if token == likely else judged(history, token)
        top = tuple(((likely + i) % 256, -float(i)) for i in range(n_probs))
        return TokenProbs(token, math.exp(logprob), logprob, (), top)

    def replay(self, row: int, token: int) -> None:
        """The token has to be the one that would be drawn."""
        drawn = self.sample(row)
        assert drawn == token, f"row {row}: {token} is replayed where {drawn} would be drawn"

    def close(self) -> None:
        """Count as freed."""
        assert not self.is_closed, "freed twice"
        self.is_closed = True
        self._backend.n_samplers -= 1


class Cell:
    """One token in the cache at one position, computed with some adapters; sequences that list it share it."""

    __slots__ = ("pos", "token", "lora")

    def __init__(self, pos: int, token: int, lora: tuple = ()) -> None:
        self.pos = pos
        self.token = token
        self.lora = lora


class FakeParts:
    """Cells as (pos, token, lora) that can be cut."""

    def __init__(self, cells: list[list]) -> None:
        self._cells = cells

    def cut_part(self, start: int, end: int) -> memoryview:
        """Some of them, all of which must be there."""
        cells = [cell for cell in self._cells if start <= cell[0] < end]
        assert len(cells) == end - start, f"{len(cells)} cells at {start} to {end}"
        return memoryview(json.dumps(cells).encode())


class FakeBackend:
    """See the module. `cells[seq]` lists the cells of a sequence in order, `history(seq)` their tokens."""

    def __init__(
        self,
        reply: Callable[[Sequence[int]], int] = letters,
        n_ctx: int = 4096,
        n_slots: int = 1,
        n_cells: int | None = None,
        can_shift: bool = True,
        can_trim: bool = True,
        n_batch: int = 512,
        is_split: bool = False,
        is_whole: bool = False,
    ) -> None:
        """With `is_whole` a slot may have all of the one cache, and there are no more cells than that."""
        self.reply = reply
        self.cells: dict[int, list[Cell]] = {}
        self.outputs: dict[int, list[int]] = {}
        self.batches: list[list[Span]] = []
        self.fail_at: dict[int, int | Exception] = {}
        self.refuse: Callable[[list[Span]], int] = lambda spans: DECODE_OK
        self.n_cells = n_ctx if is_whole else n_cells
        self.can_shift = can_shift
        self.can_trim = can_trim
        self.can_share = can_trim
        self.n_rollback = n_ctx if can_trim else 0
        self.is_split = is_split
        self.window = 0
        self.least: dict[int, int] = {}
        self.takes_states = self.can_cut = True
        self.n_swaps = 0
        self.embeddings = FakeEmbeddings(self)
        self.adapters: tuple[str, ...] = ()
        self.identity = Identity(about={"model": "fake"})
        self.media = None
        self.media_embeddings: object = None
        self.lora: tuple = ()
        self.vocab = FakeVocab()
        self.language: tuple[str, ...] | None = None  # what grammars allow; None for everything
        self.drafter: FakeBackend | None = None
        self.certainty = 1.0
        self.samplers: list[FakeSampler] = []
        self.n_samplers = 0
        self.eog_tokens = frozenset({EOS})
        n_ctx_slot = n_ctx if is_whole else n_ctx // n_slots
        self.facts = VocabFacts((EOS,), (), n_ctx_slot)
        self.info = ModelInfo(
            path="fake.gguf",
            desc="fake",
            n_vocab=N_VOCAB,
            n_ctx_train=n_ctx,
            n_ctx=n_ctx,
            n_ctx_slot=n_ctx_slot,
            n_slots=n_slots,
            n_batch=n_batch,
            llama_version="fake",
            eog_tokens=(EOS,),
        )
        self.decoding = threading.Semaphore(0)
        self._divided: set[int] = set()
        self._gate = threading.Condition()
        self._n_allowed: float = math.inf  # decodes that need not wait; protected by _gate
        self._is_aborted = False
        self._thread = 0
        self.is_closed = False

    # ---- for tests ----------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Let the next decodes wait for `let` or `go`. Each one that waits releases the semaphore `decoding` once."""
        with self._gate:
            self._n_allowed = 0
            while self.decoding.acquire(blocking=False):
                pass

    def let(self, n: float = 1) -> None:
        """Let `n` more decodes run."""
        with self._gate:
            self._n_allowed += n
            self._gate.notify_all()

    def go(self) -> None:
        """Let all decodes run."""
        self.let(math.inf)

    def wait_at_the_gate(self) -> None:
        """Of a decode: wait until it may go on."""
        with self._gate:
            if self._n_allowed <= 0:
                self.decoding.release()
            assert self._gate.wait_for(lambda: self._n_allowed > 0, PATIENCE_S), "a decode was never let go"
            self._n_allowed -= 1

    def history(self, seq: int) -> list[int]:
        """The tokens that the cache holds for a sequence."""
        return [cell.token for cell in self.cells.get(seq, [])]

    @property
    def n_used(self) -> int:
        """Cells in use, shared ones counted once."""
        return len({id(cell) for cells in self.cells.values() for cell in cells})

    def check_thread(self) -> None:
        """AssertionError unless all calls come from one thread."""
        here = threading.get_ident()
        self._thread = self._thread or here
        assert self._thread == here, "the backend is used by two threads"

    # ---- the interface ------------------------------------------------------------------------------------------

    def decode(self, spans: Sequence[Span]) -> int:
        """Check and store the rows."""
        self.check_thread()
        assert not self.is_closed, "decoding with a closed backend"
        n_rows = sum(map(len, spans))
        assert 0 < n_rows <= self.info.n_batch, f"{n_rows} rows in a batch of {self.info.n_batch}"
        self.batches.append(list(spans))
        n_call = len(self.batches)
        self.wait_at_the_gate()
        self.outputs.clear()
        code = self.fail_at.pop(n_call, DECODE_OK) or self.refuse(list(spans))
        if isinstance(code, Exception):
            raise code
        if self._is_aborted:
            self._is_aborted = False
            code = DECODE_ABORTED
        if code == DECODE_NO_ROOM or self.n_cells is not None and self.n_used + n_rows > self.n_cells:
            return DECODE_NO_ROOM
        self._store(spans, n_rows if code == DECODE_OK else n_rows // 2)
        return code

    def _store(self, spans: Sequence[Span], n_rows: int) -> None:
        row = -1
        for span in spans:
            self._check_span(span)
            cells = self.cells.setdefault(span.seq, [])
            assert not self.is_split or len(cells) + min(len(span), n_rows) <= self.info.n_ctx_slot, "a stream is full"
            cells += (Cell(span.pos + i, token, self.lora) for i, token in enumerate(span.tokens[:n_rows]))
            n_rows = max(n_rows - len(span), 0)
            row += len(span)
            if span.output or span.all_rows:
                history = self.history(span.seq)
                for i in range(len(span) if span.all_rows else span.n_draft + 1):
                    self.outputs[row - i] = history[: len(history) - i]

    def _check_span(self, span: Span) -> None:
        assert len(span) > 0, "an empty span"
        n_seqs = self.info.n_slots + (not self.is_split)  # in one cache for all also the system prompt's
        assert 0 <= span.seq < n_seqs, f"there is no sequence {span.seq}"
        assert all(0 <= token < N_VOCAB for token in span.tokens), "a token that the vocabulary doesn't have"
        cells = self.cells.get(span.seq, [])
        assert all(cell.lora == self.lora for cell in cells), f"sequence {span.seq} was computed with other adapters"
        positions = [cell.pos for cell in cells]
        expected = max(positions, default=-1) + 1
        assert span.pos == expected, f"sequence {span.seq}: position {span.pos}, the cache goes on at {expected}"
        if span.seq not in self._divided:
            assert positions == list(range(expected)), f"sequence {span.seq}: positions {positions}"

    def leave_cores(self, n: int) -> None:
        """Nothing to do: it has no threads."""

    def abort(self) -> None:
        """The decode that runs (or the next one) ends with DECODE_ABORTED."""
        self._is_aborted = True
        self.go()

    def piece(self, token: int, named: bool = False) -> bytes:
        """The byte; nothing for special tokens, unless they are named."""
        return self.vocab.piece(token) if named or token < 256 else b""

    def spell(self, text: str) -> list[int]:
        """Its bytes."""
        return list(text.encode())

    def find_likeliest(self, row: int) -> tuple[int, float]:
        """As a draft model: what it would say, with a made-up `certainty`."""
        return self.reply(self.outputs[row]), self.certainty

    def get_letters(self, token: int) -> bytes:
        """The byte."""
        return self.piece(token) if token >= 0 else b""

    def make_sampler(self, stages: Sequence[Stage], grammar: str, waits: bool = False) -> FakeSampler:
        """Refuses the grammar "bad"."""
        self.check_thread()
        if grammar == "bad":
            raise ApiError(400, "Failed to parse grammar")
        self.n_samplers += 1
        self.samplers.append(FakeSampler(self, stages, grammar, waits))
        return self.samplers[-1]

    def draw_ahead(self, wanted: Sequence[tuple[FakeSampler, int]]) -> None:
        """Nothing is drawn, but each has to be asked next for just this row."""
        self.check_thread()
        for sampler, row in wanted:
            sampler.announce(row)

    def seq_rm(self, seq: int, start: int, end: int) -> bool:
        """Drop a range of positions; only everything where `can_trim` is off."""
        self.check_thread()
        self.check_sequences(seq)
        cells = self.cells.setdefault(seq, [])
        end = max((cell.pos for cell in cells), default=-1) + 1 if end < 0 else end
        left = [cell for cell in cells if not max(start, 0) <= cell.pos < end]
        if not self.can_trim and left and len(left) < len(cells):
            return False
        self.cells[seq] = left
        if not left:
            self._divided.discard(seq)
        return True

    def compute_least_left(self, seq: int) -> int:
        """As a test wants it."""
        return self.least.get(seq, 0)

    def seq_cp(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` own cells of `source` too; it must go on exactly where it ends (but for a block on its way)."""
        self.check_thread()
        assert self.can_share, "this model's cache can't be shared"
        if self.is_split:
            self._copy(source, target, start, end)
            return
        have = [cell.pos for cell in self.cells.get(target, [])]
        is_on_its_way = target == self.info.n_slots + 1 and not have
        assert is_on_its_way or have == list(range(max(start, 0))), (
            f"sequence {target} has {have}, shared from {start} on"
        )
        end = self.info.n_ctx if end < 0 else end
        shared = [cell for cell in self.cells.get(source, []) if max(start, 0) <= cell.pos < end]
        self.cells.setdefault(target, []).extend(shared)

    def _copy(self, source: int, target: int, start: int, end: int) -> None:
        """Into a stream of its own, in the place of what is there, which must be the same up to `start`."""
        self.check_sequences(source, target)
        assert source != target and self.history(target)[:start] == self.history(source)[:start]
        copied = [Cell(cell.pos, cell.token, cell.lora) for cell in self.cells.get(source, []) if cell.pos < end]
        assert len(copied) == end, f"sequence {source} has {len(copied)} of {end} cells"
        self.cells[target] = copied

    def swap(self, a: int, b: int) -> bool:
        """Exchange two streams."""
        self.check_thread()
        assert self.is_split and a != b
        self.check_sequences(a, b)
        if self.takes_states:
            self.n_swaps += 1
            self.cells[a], self.cells[b] = self.cells.get(b, []), self.cells.get(a, [])
        return self.takes_states

    def check_sequences(self, *seqs: int) -> None:
        """AssertionError if a split cache has no stream for one of them."""
        assert not self.is_split or all(0 <= seq < self.info.n_slots for seq in seqs), f"no such sequence: {seqs}"

    def seq_add(self, seq: int, start: int, end: int, delta: int) -> None:
        """Renumber a range; what other sequences share is renumbered for them too."""
        self.check_thread()
        assert self.can_shift, "this model can't shift: llama.cpp would abort"
        for cell in self.cells[seq]:
            if start <= cell.pos < end:
                cell.pos += delta

    def seq_div(self, seq: int, start: int, end: int, factor: int) -> None:
        """Divide positions of a range; from now on they may repeat."""
        self.check_thread()
        assert self.can_shift, "this model can't shift: llama.cpp would abort"
        self._divided.add(seq)
        for cell in self.cells[seq]:
            if start <= cell.pos < end:
                cell.pos //= factor

    def unshare(self, seq: int) -> None:
        """Give a sequence cells of its own."""
        self.check_thread()
        self.cells[seq] = [Cell(cell.pos, cell.token, cell.lora) for cell in self.cells.get(seq, [])]

    def open_media_embeddings(self, n_at_once: int) -> object:
        """What `tests.fake_media` has put there."""
        self.check_thread()
        return self.media_embeddings

    def open_embeddings(self) -> FakeEmbeddings:
        """The one there is."""
        self.check_thread()
        return self.embeddings

    def read_state(self, seq: int) -> memoryview:
        """The cells as text."""
        self.check_thread()
        self.check_sequences(seq)
        cells = self.cells.get(seq, [])
        return memoryview(json.dumps([(cell.pos, cell.token, cell.lora) for cell in cells]).encode())

    @staticmethod
    def state_size(tokens: Sequence[int]) -> int:
        """Bytes of a state of so many tokens, about."""
        return len(json.dumps([(100, 100, ()) for _ in tokens]))

    def set_state(self, seq: int, state: bytearray | memoryview) -> bool:
        """The reverse, for an empty sequence."""
        self.check_thread()
        self.check_sequences(seq)
        assert not self.cells.get(seq), f"sequence {seq} is not empty"
        n_cells = len(json.loads(bytes(state))) if self.takes_states else 0
        if not self.takes_states or self.n_cells is not None and self.n_used + n_cells > self.n_cells:
            return False
        self.cells[seq] = [Cell(pos, token, tuple(map(tuple, lora))) for pos, token, lora in json.loads(bytes(state))]
        if len({cell.pos for cell in self.cells[seq]}) < n_cells:
            self._divided.add(seq)
        return True

    def read_parts(self, seq: int) -> FakeParts | None:
        """The cells, to be cut."""
        return FakeParts(json.loads(bytes(self.read_state(seq)))) if self.can_cut else None

    def write_parts(self, seq: int, parts: Sequence[bytearray | memoryview]) -> bool:
        """Cells that must follow each other; the sequence may hold others."""
        self.check_thread()
        self.check_sequences(seq)
        self.cells[seq] = []
        cells = [cell for part in parts for cell in json.loads(bytes(part))]
        assert [cell[0] for cell in cells] == list(range(len(cells))), "blocks that don't follow each other"
        return self.set_state(seq, memoryview(json.dumps(cells).encode()))

    def take_checkpoint(self, seq: int) -> memoryview:
        """All of it, as a recurrent model's state is."""
        return self.read_state(seq)

    def restore_checkpoint(self, seq: int, state: bytearray | memoryview) -> bool:
        """In the place of what the sequence has."""
        self.cells[seq] = []
        return self.set_state(seq, state)

    def set_lora(self, scales: tuple[tuple[int, float], ...]) -> None:
        """Remember the adapters of the next decode."""
        self.check_thread()
        self.lora = scales

    def close(self) -> None:
        """Everything must have been given back."""
        assert self.n_samplers == 0, f"{self.n_samplers} samplers were not freed"
        self.is_closed = True
