"""Vectors of texts with images or sound in them, beside the batches of all others. Engine thread.

A request comes here when the media thread has decoded its files. Its inputs are computed one after the other, in a
context of their own with a single sequence; requests take turns input by input. Each step of the loop does one piece:
some tokens of text, encoding a chunk, or evaluating one. What can't be cut, one encoding, stalls others as it does
when a slot needs it; the rest keeps to the embedder's share of `--max-stall-ms`.

Not taken: many sequences, as `embedder` has. Encoding takes most of the time here, and does one chunk at a time anyway.
"""

from __future__ import annotations

from collections import deque

from server.engine.loop.embedder import Embedder, check_length
from server.engine.loop.media_steps import ROWS_PER_TOKEN
from server.engine.loop.state import EngineState
from server.engine.seam.task import Embed, Embedded, Event, Failure
from server.engine.slots.backend import DECODE_ABORTED, DECODE_OK, MediaEmbeddingBackend
from server.engine.slots.media import Chunk, Layout
from server.errors import ApiError
from server.log import get_logger
from server.records import field, record

FIRST, LAST = "cls", "last"

log = get_logger("engine")


@record(eq=False)
class Request:
    """One message in work. `index` is the input it is at, which begins at `start` in the layout; of that input `n_done`
    positions are computed, with these `rows`. `vectors` are those of the inputs that are done."""

    message: Embed
    layout: Layout
    index: int = 0
    start: int = 0
    n_done: int = 0
    rows: list[bytes] = field(default_factory=list)
    vectors: list[bytes] = field(default_factory=list)

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens of the input it is at."""
        return self.message.inputs[self.index]

    @property
    def chunk(self) -> Chunk | None:
        """The chunk that comes next; None if that is text."""
        return self.layout.chunks.get(self.start + self.n_done)

    @property
    def n_text(self) -> int:
        """How much text comes before the next chunk."""
        end = self.start + len(self.tokens)
        return self.layout.next_start(self.start + self.n_done, end) - self.start - self.n_done

    def n_tokens(self) -> list[int]:
        """Cells that each input takes."""
        sizes, start = [], 0
        for tokens in self.message.inputs:
            end = start + len(tokens)
            sizes.append(len(tokens) + self.layout.n_extra(start) - self.layout.n_extra(end))
            start = end
        return sizes


class MediaEmbedder:
    """The requests whose files are ready; the first in line is in work. `len` counts them."""

    def __init__(self, state: EngineState, embedder: Embedder) -> None:
        self._state = state
        self._embedder = embedder  # whose pace this is
        self._context: MediaEmbeddingBackend | None = None
        self._requests: deque[Request] = deque()
        self._encoded: Chunk | None = None
        self._room = 0

    def __len__(self) -> int:
        return len(self._requests)

    def enqueue(self, message: Embed) -> None:
        """Take a request whose files are prepared, or fail it."""
        request = Request(message, self._state.media.layout(message.id))
        chunks = request.layout.chunks.values()
        try:
            context = self._open(max((chunk.n_tokens for chunk in chunks if not chunk.is_causal), default=0))
            for i, n in enumerate(request.n_tokens()):
                check_length(
                    context.n_input,
                    n,
                    i if len(message.inputs) > 1 else None,
                    "send less, or start the server with a larger --ctx-size",
                )
        except ApiError as error:
            self._state.refuse(message.id, error)
        else:
            self._requests.append(request)

    def cancel(self, id_request: int) -> bool:
        """Forget a request; False if there is none with this id."""
        request = next((request for request in self._requests if request.message.id == id_request), None)
        if request is not None:
            self._forget(request)
        return request is not None

    def fail_all(self, status: int, message: str) -> list[Event]:
        """End all requests."""
        failures: list[Event] = [Failure(request.message.id, status, message) for request in self._requests]
        for request in list(self._requests):
            self._forget(request)
        return failures

    def plan(self, is_busy: bool, can_encode: bool) -> int:
        """Whether there is a piece of work, as the number of text rows that it may take the time of; 0 for none.

        `is_busy` if somebody reads a stream; without `can_encode` the projector holds what somebody else has encoded.
        """
        if not self._requests:
            return 0
        request = self._requests[0]
        if request.chunk is None:
            self._room = min(self._embedder.budget(self._context.n_rows, is_busy), request.n_text)
            return self._room
        is_encoding = self._encoded is not request.chunk
        return ROWS_PER_TOKEN * request.chunk.n_tokens if can_encode or not is_encoding else 0

    def step(self) -> list[Event]:
        """Do it; the answer that is complete then."""
        request = self._requests[0]
        self._state.announce(request.message.id)  # the engine may die of it
        try:
            return self._step(request)
        except Exception as error:
            log.exception("request %d: its embeddings could not be computed", request.message.id)
            return self._fail(request, f"the embedding could not be computed: {error}")

    def _step(self, request: Request) -> list[Event]:
        chunk, at = request.chunk, request.n_done
        if chunk is None:
            n = self._room
            code, rows = self._context.embed_tokens(request.tokens[at : at + n], at)
        elif self._encoded is not chunk:
            self._encoded = None
            self._context.encode(chunk)
            self._encoded = chunk
            return []
        else:
            n = len(chunk.ids)
            code, rows = self._context.embed_chunk(chunk, at)
        if code == DECODE_OK:
            self._state.meter.n_prompt += n
            return self._commit(request, n, rows)
        if not self._context.trim(at):
            self._context.trim(0)
            request.n_done = 0
            request.rows.clear()
        if code == DECODE_ABORTED:
            return []  # the same again with the next step
        return self._fail(request, f"computing the embedding failed with code {code}")

    def _open(self, n_at_once: int) -> MediaEmbeddingBackend:
        """The context. It may be another one than before: then the input in work begins anew."""
        try:
            context = self._state.backend.open_media_embeddings(n_at_once)
        except ApiError:
            raise
        except Exception as error:
            log.exception("no context for embeddings")
            raise ApiError(500, f"no context for embeddings could be made: {error}") from None
        if context is not self._context:
            self._context, self._encoded = context, None
            if self._requests:
                self._requests[0].n_done = 0
                self._requests[0].rows.clear()
        return context

    def _commit(self, request: Request, n: int, rows: bytes) -> list[Event]:
        """Note what has been computed; the answer, if that was the last input."""
        self._encoded = None
        request.n_done += n
        request.rows.append(rows)
        if request.n_done < len(request.tokens):
            return []
        request.vectors.append(self._pooled(b"".join(request.rows)))
        request.rows.clear()
        self._context.trim(0)
        self._requests.popleft()
        if len(request.vectors) == len(request.message.inputs):
            self._state.media.forget(request.message.id)
            return [self._answer(request)]
        request.start += len(request.tokens)
        request.index += 1
        request.n_done = 0
        self._requests.append(request)  # the others' turn
        return []

    def _pooled(self, rows: bytes) -> bytes:
        """Of all rows of an input those that are wanted."""
        size, pooling = 4 * self._context.width, self._state.backend.info.pooling
        return rows[:size] if pooling == FIRST else rows[-size:] if pooling == LAST else rows

    def _answer(self, request: Request) -> Embedded:
        width = self._context.width
        return Embedded(
            request.message.id,
            self._state.backend.info.pooling,
            width,
            tuple(len(vectors) // (4 * width) for vectors in request.vectors),
            b"".join(request.vectors),
            sum(request.n_tokens()),
        )

    def _fail(self, request: Request, message: str) -> list[Event]:
        self._forget(request)
        return [Failure(request.message.id, 500, message)]

    def _forget(self, request: Request) -> None:
        if request is self._requests[0]:
            self._encoded = None
            self._context.trim(0)
        self._requests.remove(request)
        self._state.media.forget(request.message.id)
