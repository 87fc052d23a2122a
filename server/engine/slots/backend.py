"""The interfaces between the scheduler and whatever computes: `Backend`, `TokenSampler` and `Drafter`.

They have two implementations: `server.engine.llama.backend` over libllama, and the fake of the tests, which keeps a
model KV cache of its own and checks every call against it. Stdlib and the plain data of its neighbours only.
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

DECODE_OK, DECODE_NO_ROOM, DECODE_ABORTED = 0, 1, 2


class TokenSampler(Protocol):
    """A sampler chain in use for one task."""

    def accept(self, tokens: Sequence[int]) -> None:
        """Tell penalties and the like of tokens that were not drawn here."""

    def sample(self, row: int) -> int:
        """Draw a token from the logits of batch row `row` and accept it."""

    def sample_probs(self, row: int, n_probs: int) -> TokenProbs:
        """Like `sample`, with the `n_probs` most likely alternatives."""

    def draw(self, row: int) -> int:
        """Like `sample`, but nothing is accepted."""

    def draw_probs(self, row: int, n_probs: int) -> TokenProbs:
        """Like `sample_probs`, but nothing is accepted."""

    def commit(self, token: int) -> None:
        """Accept a token that was drawn, or that comes whatever was drawn."""

    def begin_grammar(self, begin: Begin) -> None:
        """From now on the grammar holds. ApiError 400 if it doesn't allow what is written of it already."""

    def end_grammar(self) -> None:
        """From now on it doesn't, until it begins anew."""

    def allows(self, token: int) -> bool:
        """Whether the grammar that holds allows this token to come next."""

    def fit(self, row: int, token: int) -> int:
        """The token if the grammar allows it, else one that it does, drawn from the same row."""

    def foresee(self) -> list[int]:
        """The tokens of the text that comes next, as far as the grammar leaves no choice about it; a guess, since the
        same text may come in other tokens."""

    def row_probs(self, row: int, token: int, n_probs: int) -> TokenProbs:
        """What the model thinks of `token` behind batch row `row`, and the `n_probs` likeliest; nothing is drawn."""

    def replay(self, row: int, token: int) -> None:
        """Draw from batch row `row` as `sample` does, but accept `token`, which another engine drew there."""

    def close(self) -> None:
        """Free it."""


class Drafter(Protocol):
    """A small model that guesses what a large one of the same vocabulary will say; methods as in `Backend`."""

    info: ModelInfo
    eog_tokens: frozenset[int]

    def decode(self, spans: Sequence[Span]) -> int:
        """Evaluate the rows."""

    def seq_rm(self, seq: int, start: int, end: int) -> bool:
        """Drop positions of a sequence."""

    def likeliest(self, row: int) -> tuple[int, float]:
        """The most likely token behind batch row `row`, and how likely it is among the ten likeliest."""


class MediaBackend(Protocol):
    """The projector of a model that takes images or sound. `least_tokens` and `prepare` run on another thread than the
    rest."""

    vision: bool
    audio: bool

    def least_tokens(self, media: Media) -> int:
        """How many tokens a file takes at least, without decoding it; 0 if that can't be known."""

    def prepare(self, media: Media) -> Prepared:
        """Decode a file and say what it takes in a prompt; ApiError(400) if it is no good."""

    def encode(self, chunk: Chunk) -> None:
        """Compute a chunk's embeddings; they stay until the next call."""

    def decode(self, chunk: Chunk, seq: int, pos: int, output: bool) -> tuple[int, int]:
        """Evaluate the chunk encoded last: a `DECODE_*` code and the batch row of its end (logits with `output`)."""


class MediaEmbeddingBackend(Protocol):
    """A context with one sequence, which computes a vector for each token of texts and of encoded chunks.

    `n_input` cells is the longest input, `n_rows` how many tokens of text may come at once. What is computed begins at
    position `pos`, right behind what is there; the rows are float32, `width` of them for each token.
    """

    width: int
    n_input: int
    n_rows: int

    def encode(self, chunk: Chunk) -> None:
        """Compute a chunk's embeddings and keep a copy until the next call."""

    def embed_chunk(self, chunk: Chunk, pos: int) -> tuple[int, bytes]:
        """Evaluate the chunk encoded last: a `DECODE_*` code and its rows."""

    def embed_tokens(self, tokens: Sequence[int], pos: int) -> tuple[int, bytes]:
        """Evaluate text: a `DECODE_*` code and its rows."""

    def trim(self, start: int) -> bool:
        """Drop positions from `start` on. False: only the whole can be dropped."""


class EmbeddingBackend(Protocol):
    """A context that computes vectors instead of text.

    `n_input` is the longest input, `n_rows` how many rows a batch should have, `n_seqs` how many inputs it can hold.
    With `can_split` an input may be spread over several batches; without, one alone may have up to `n_input` rows.
    `advice` says how to make room for longer inputs.
    """

    pooling: str
    width: int
    n_input: int
    n_rows: int
    n_seqs: int
    can_split: bool
    advice: str

    def embed(self, spans: Sequence[Span]) -> int:
        """Evaluate the rows; a `DECODE_*` code, negative for errors. `output` marks the last part of an input."""

    def vectors(self, spans: Sequence[Span]) -> list[bytes]:
        """Of the batch just evaluated: for each span one row of float32 if it has `output`, else nothing; with the
        pooling "none" a row for each of its tokens."""

    def trim(self, seq: int, start: int) -> bool:
        """Drop positions from `start` on. False: only the whole can be dropped."""

    def close(self) -> None:
        """Free it."""


class StateParts(Protocol):
    """A sequence as it was read out, to be cut."""

    def part(self, start: int, end: int) -> memoryview:
        """A state of the tokens at positions [start, end)."""


class Backend(Protocol):
    """A loaded model with one context. All but `abort` is called on the engine's thread only.

    The last `n_rollback` tokens of a batch can be dropped again, of each sequence: all, or where there is a state that
    can't be cut, none or a few, once, before the next batch.
    `window` is how far sliding windows look back, 0 without them: llama.cpp may drop what they will never see again.
    With `is_split` each slot's sequence has a stream of the cache for itself: what it has in common with others is
    copied, and there are no sequences but the slots'. Rows of a batch should come in the order of their sequences:
    each gap and each step back costs a micro-batch. Without, sequences refer to cells of one cache, and there are
    two more than slots: of the system prompt, and for what is on its way in or out.
    """

    info: ModelInfo
    facts: VocabFacts
    eog_tokens: frozenset[int]
    can_shift: bool
    can_share: bool
    n_rollback: int
    is_split: bool
    window: int
    adapters: tuple[str, ...]
    identity: Identity
    drafter: Drafter | None
    media: MediaBackend | None

    def decode(self, spans: Sequence[Span]) -> int:
        """Evaluate the rows; a `DECODE_*` code, negative for errors. After errors the caller trims sequences."""

    def leave_cores(self, n: int) -> None:
        """Decode with `n` threads less than configured from now on, with one at least."""

    def abort(self) -> None:
        """From any thread: let a running `decode` end soon with DECODE_ABORTED, where the backend can."""

    def piece(self, token: int, named: bool = False) -> bytes:
        """The bytes of a token as shown to users: empty for control tokens, unless they are to be `named`."""

    def letters(self, token: int) -> bytes:
        """The bytes of a token that is text; none of control tokens, whether they are shown or not."""

    def new_sampler(self, stages: Sequence[Stage], grammar: str, waits: bool = False) -> TokenSampler:
        """Build a sampler chain; ApiError(400) when the grammar can't be parsed. With `waits` the grammar doesn't hold
        before `begin_grammar`, and tokens are drawn and committed."""

    def draw_ahead(self, wanted: Sequence[tuple[TokenSampler, int]]) -> None:
        """Each of these samplers is about to be asked to `sample` this row of the latest batch, whatever happens to
        the others: draw now, all together, if that is quicker."""

    def seq_rm(self, seq: int, start: int, end: int) -> bool:
        """Drop positions [start, end) of a sequence (end -1: all the rest). False: only the whole can be dropped."""

    def least_left(self, seq: int) -> int:
        """To how few tokens a sequence can be cut, other than none: sliding windows miss what has been dropped."""

    def seq_cp(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target`, which holds just what `source` has before `start`, have positions [start, end) of `source`
        too: the same cells, or with `is_split` copies of all up to `end`."""

    def swap(self, a: int, b: int) -> bool:
        """Exchange two sequences of a split cache. False: that can't be done, and nothing has changed."""

    def seq_add(self, seq: int, start: int, end: int, delta: int) -> None:
        """Renumber positions [start, end) by `delta`; only if `can_shift`."""

    def seq_div(self, seq: int, start: int, end: int, factor: int) -> None:
        """Divide positions [start, end) by `factor`; only if `can_shift`."""

    def unshare(self, seq: int) -> None:
        """Give a sequence cells of its own, with the same contents."""

    def state(self, seq: int) -> memoryview:
        """A copy of a sequence's cells as bytes, the same in both layouts of the cache."""

    def set_state(self, seq: int, state: bytearray | memoryview) -> bool:
        """Fill an empty sequence from `state`; False if it doesn't fit this model and context."""

    def read_parts(self, seq: int) -> StateParts | None:
        """A copy of a sequence that can be cut; None if the state of this model and context can't be."""

    def write_parts(self, seq: int, parts: Sequence[bytearray | memoryview]) -> bool:
        """Fill a sequence from states of runs of tokens that follow each other; False if they don't fit."""

    def checkpoint(self, seq: int) -> memoryview:
        """A copy of that part of a sequence's state which `seq_rm` can't cut (recurrent models)."""

    def restore_checkpoint(self, seq: int, state: bytearray | memoryview) -> bool:
        """Put it back; what `seq_rm` can cut is as it was. False if it doesn't fit."""

    def set_lora(self, scales: tuple[tuple[int, float], ...]) -> None:
        """Use these adapters, by index, in the decodes to come."""

    def open_embeddings(self) -> EmbeddingBackend:
        """A context for embeddings beside the one that generates; ApiError if there can be none."""

    def open_media_embeddings(self, n_at_once: int) -> MediaEmbeddingBackend:
        """A context for inputs with files, whose chunks have at most `n_at_once` tokens that must be seen at once; the
        same one if it will do. ApiError if there can be none."""

    def close(self) -> None:
        """Free everything, in the order C wants."""
