"""The interfaces between the scheduler and what computes: `Backend` and its parts.

`server.engine.llama.backend` implements them over libllama. The fake in `tests/fakes.py` simulates a KV cache and
checks every call against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from server.engine.seam.task import Media, ModelInfo, TokenProbs
from server.engine.slots.media import Chunk, Prepared
from server.engine.slots.phases import Begin
from server.engine.slots.planner import Span
from server.engine.slots.sampling import Stage, VocabFacts
from server.model_files.identity import Identity

DECODE_OK, DECODE_NO_ROOM, DECODE_ABORTED = 0, 1, 2  # results of a decode; errors are negative


class TokenSampler(Protocol):
    """The sampler chain and the grammar of one task."""

    def accept(self, tokens: Sequence[int]) -> None:
        """Add tokens that weren't drawn here to the history that penalties look at."""

    def sample(self, row: int) -> int:
        """Draw a token from the logits of batch row `row`, and accept it."""

    def sample_probs(self, row: int, n_probs: int) -> TokenProbs:
        """`sample`, with the `n_probs` most likely alternatives."""

    def draw(self, row: int) -> int:
        """`sample` without accepting the token."""

    def draw_probs(self, row: int, n_probs: int) -> TokenProbs:
        """`sample_probs` without accepting the token."""

    def commit(self, token: int) -> None:
        """Accept a token that was drawn, or a forced or known one."""

    def begin_grammar(self, begin: Begin) -> None:
        """Make the grammar hold from now on. ApiError 400 if it doesn't allow what is written already."""

    def end_grammar(self) -> None:
        """Make the grammar stop holding."""

    def is_allowed(self, token: int) -> bool:
        """Whether the grammar allows this token to come next."""

    def fit(self, row: int, token: int) -> int:
        """The token if the grammar allows it, else an allowed one, drawn from the same row."""

    def foresee(self) -> list[int]:
        """Tokens of the text that the grammar prescribes next, if any; the same text may come in other tokens."""

    def compute_row_probs(self, row: int, token: int, n_probs: int) -> TokenProbs:
        """The probability of `token` in batch row `row`, and the `n_probs` most likely tokens."""

    def replay(self, row: int, token: int) -> None:
        """Draw from batch row `row` like `sample`, but accept `token`, which a previous engine drew there."""

    def close(self) -> None:
        """Free chain and grammar."""


class Drafter(Protocol):
    """A small model that guesses the next tokens of a large one with a matching vocabulary."""

    info: ModelInfo
    eog_tokens: frozenset[int]

    def decode(self, spans: Sequence[Span]) -> int:
        """See `Backend`."""

    def seq_rm(self, seq: int, start: int, end: int) -> bool:
        """See `Backend`."""

    def find_likeliest(self, row: int) -> tuple[int, float]:
        """The most likely token in batch row `row`, and its probability among the ten most likely."""


class MediaBackend(Protocol):
    """A model's projector. `least_tokens` and `prepare` run on the media thread, the rest on the engine's."""

    vision: bool
    audio: bool

    def least_tokens(self, media: Media) -> int:
        """The least number of tokens that a file takes, without decoding it; 0 if unknown."""

    def prepare(self, media: Media) -> Prepared:
        """Decode a file and cut it into tokens and chunks; ApiError(400) if that fails."""

    def encode(self, chunk: Chunk) -> None:
        """Compute a chunk's embeddings. They are kept until the next `encode`."""

    def decode(self, chunk: Chunk, seq: int, pos: int, output: bool) -> tuple[int, int]:
        """Evaluate the chunk encoded last. Returns a `DECODE_*` code and the chunk's last row in the batch, which has
        logits if `output` is set."""


class MediaEmbeddingBackend(Protocol):
    """A context with one sequence that computes a vector for each token of texts and encoded chunks.

    `pos` is the position of the first row. It must follow the positions that the sequence has.
    """

    width: int  # float32 numbers per row
    n_input: int  # cells of the longest input
    n_rows: int  # text tokens per call at most

    def encode(self, chunk: Chunk) -> None:
        """Compute a chunk's embeddings and keep a copy until the next `encode`."""

    def embed_chunk(self, chunk: Chunk, pos: int) -> tuple[int, bytes]:
        """Evaluate the chunk encoded last. Returns a `DECODE_*` code and the chunk's vectors."""

    def embed_tokens(self, tokens: Sequence[int], pos: int) -> tuple[int, bytes]:
        """Evaluate text. Returns a `DECODE_*` code and the tokens' vectors."""

    def trim(self, start: int) -> bool:
        """Drop positions from `start` on. False if only the whole sequence can be dropped."""


class EmbeddingBackend(Protocol):
    """A context that computes embeddings instead of text. With `can_split` an input may be spread over several batches;
    without it, a batch of a single input may have up to `n_input` rows."""

    pooling: str
    width: int  # float32 numbers per vector
    n_input: int  # tokens of the longest input
    n_rows: int  # rows that a batch should have
    n_seqs: int  # inputs that a batch can hold
    can_split: bool
    advice: str  # how to make room for longer inputs

    def embed(self, spans: Sequence[Span]) -> int:
        """Evaluate the rows. Returns a `DECODE_*` code, negative for errors. `output` marks the last span of an
        input."""

    def read_vectors(self, spans: Sequence[Span]) -> list[bytes]:
        """The latest batch's float32 vectors, as bytes for each span: one vector if it has `output`, else none; with
        the pooling "none" one for each token."""

    def trim(self, seq: int, start: int) -> bool:
        """Drop positions from `start` on. False if only the whole sequence can be dropped."""

    def close(self) -> None:
        """Free the context."""


class StateParts(Protocol):
    """A copy of a sequence's state that can be cut into parts."""

    def cut_part(self, start: int, end: int) -> memoryview:
        """The state of the tokens at positions [start, end)."""


class Backend(Protocol):
    """A loaded model with the context of its slots. All methods but `abort` run on the engine's thread.

    With `is_split` each slot's sequence has a KV stream of its own. Prefixes are copied, and only slots have sequences.
    Rows of a batch should come in the order of their sequences, because each gap and each decrease begins another
    micro-batch.

    Without `is_split` sequences share the cells of one cache. Besides those of the slots, one sequence has the system
    prompt. Unless the model is recurrent or hybrid, another one is scratch space for state read in or out.
    """

    info: ModelInfo
    facts: VocabFacts
    eog_tokens: frozenset[int]  # tokens that end a text
    can_shift: bool  # positions can be renumbered
    can_share: bool  # sequences can take over a beginning of others
    n_rollback: int  # how many of a batch's last tokens each sequence can drop, once, before the next batch
    is_split: bool
    window: int  # tokens that sliding windows look back (0: none); llama.cpp may drop earlier cells
    adapters: tuple[str, ...]  # files, by index
    identity: Identity
    drafter: Drafter | None
    media: MediaBackend | None

    def decode(self, spans: Sequence[Span]) -> int:
        """Evaluate the rows. Returns a `DECODE_*` code, negative for errors. After an error or an abort, the caller
        trims the sequences."""

    def leave_cores(self, n: int) -> None:
        """From now on decode with `n` threads fewer than configured, at least one."""

    def abort(self) -> None:
        """Make a running `decode` end soon with DECODE_ABORTED, if possible. Any thread may call it."""

    def piece(self, token: int, named: bool = False) -> bytes:
        """The bytes of a token as shown to users. A control token has none, or its name with `named` or
        `EngineConfig.special`."""

    def spell(self, text: str) -> list[int]:
        """The tokens of a text that follows other text; [] if the tokenizer can't tell."""

    def get_letters(self, token: int) -> bytes:
        """The bytes of a text token; empty for control tokens and placeholders of media."""

    def make_sampler(self, stages: Sequence[Stage], grammar: str, waits: bool = False) -> TokenSampler:
        """Build a sampler chain; ApiError(400) if the grammar can't be parsed. With `waits` the grammar doesn't hold
        before `begin_grammar`, and the caller uses `draw` and `commit`."""

    def draw_ahead(self, wanted: Sequence[tuple[TokenSampler, int]]) -> None:
        """Each of these samplers will `sample` its row of the latest batch. The backend may draw now, in parallel."""

    def seq_rm(self, seq: int, start: int, end: int) -> bool:
        """Drop positions [start, end) of a sequence; end -1 means all the rest. False if only the whole can be
        dropped."""

    def compute_least_left(self, seq: int) -> int:
        """The fewest tokens, other than none, to which a sequence can be cut; 0: any number, as without sliding
        windows."""

    def seq_cp(self, source: int, target: int, start: int, end: int) -> None:
        """Give `target` positions [start, end) of `source`; before `start` both must hold the same. `target` shares the
        cells, or with `is_split` gets copies of all cells up to `end`. RuntimeError if copying fails."""

    def swap(self, a: int, b: int) -> bool:
        """Exchange two sequences of a split cache. False if that can't be done and nothing has changed; RuntimeError if
        a sequence was lost."""

    def seq_add(self, seq: int, start: int, end: int, delta: int) -> None:
        """Add `delta` to positions [start, end); only if `can_shift`."""

    def seq_div(self, seq: int, start: int, end: int, factor: int) -> None:
        """Divide positions [start, end) by `factor`; only if `can_shift`."""

    def unshare(self, seq: int) -> None:
        """Give a sequence its own cells with the same contents. RuntimeError if that fails."""

    def read_state(self, seq: int) -> memoryview:
        """A copy of a sequence's state as bytes, as a rule the same in both layouts of the cache."""

    def set_state(self, seq: int, state: bytearray | memoryview) -> bool:
        """Fill an empty sequence from `state`; False if that doesn't fit this model and context."""

    def read_parts(self, seq: int) -> StateParts | None:
        """A copy of a sequence's state that can be cut into parts; None if model or context don't allow that."""

    def write_parts(self, seq: int, parts: Sequence[bytearray | memoryview]) -> bool:
        """Fill a sequence from the states of its text's consecutive parts; False if they don't fit."""

    def take_checkpoint(self, seq: int) -> memoryview:
        """A copy of the part of a sequence's state that `seq_rm` can't cut (recurrent and hybrid models)."""

    def restore_checkpoint(self, seq: int, state: bytearray | memoryview) -> bool:
        """Restore what `take_checkpoint` returned; other cells don't change. False if it doesn't fit."""

    def set_lora(self, scales: tuple[tuple[int, float], ...]) -> None:
        """Use these adapters, as (index, scale), in the next decodes."""

    def open_embeddings(self) -> EmbeddingBackend:
        """The context for embeddings, opened at the first call; StartError if this model allows none."""

    def open_media_embeddings(self, n_at_once: int) -> MediaEmbeddingBackend:
        """The context for embeddings of inputs with files, the open one if it is large enough; ApiError if there can be
        none. A chunk without a causal mask has at most `n_at_once` tokens."""

    def close(self) -> None:
        """Free everything."""
