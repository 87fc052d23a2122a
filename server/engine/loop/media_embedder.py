"""Embeddings of inputs with images or sound. Engine thread only.

A request comes here when the media thread has decoded its files. Its inputs are computed one by one in a context with a
single sequence; requests take turns input by input. Each step of the loop does at most one part: evaluate text tokens,
encode or evaluate a chunk. While tasks run, a step of text may take half of `--max-stall-ms`, as in `embedder`. A chunk
isn't cut, so its steps may take longer.

Not taken: many sequences. Most of the time goes into encoding, which does one chunk at a time anyway.
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
    """One message in work.

    `index` is the current input, `start` its first position in the layout. `n_done` of its positions are computed;
    `rows` are their vectors. `vectors` has the results of the finished inputs.
    """

    message: Embed
    layout: Layout
    index: int = 0
    start: int = 0
    n_done: int = 0
    rows: list[bytes] = field(default_factory=list)
    vectors: list[bytes] = field(default_factory=list)

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.message.inputs[self.index]

    @property
    def chunk(self) -> Chunk | None:
        """The chunk at the next position; None if there is text."""
        return self.layout.chunks.get(self.start + self.n_done)

    @property
    def n_text(self) -> int:
        """How many text tokens come before the next chunk."""
        end = self.start + len(self.tokens)
        return self.layout.find_next_start(self.start + self.n_done, end) - self.start - self.n_done

    def count_tokens(self) -> list[int]:
        """The number of cells that each input takes."""
        sizes, start = [], 0
        for tokens in self.message.inputs:
            end = start + len(tokens)
            sizes.append(len(tokens) + self.layout.count_extra(start) - self.layout.count_extra(end))
            start = end
        return sizes


class MediaEmbedder:
    """The requests whose files are decoded; the first one is in work."""

    def __init__(self, state: EngineState, embedder: Embedder) -> None:
        self._state = state
        self._embedder = embedder  # for its budget of rows
        self._context: MediaEmbeddingBackend | None = None
        self._requests: deque[Request] = deque()
        self._encoded: Chunk | None = None
        self._room = 0

    def __len__(self) -> int:
        return len(self._requests)

    def enqueue(self, message: Embed) -> None:
        """Take a request whose files are decoded, or fail it."""
        request = Request(message, self._state.media.get_layout(message.id))
        chunks = request.layout.chunks.values()
        try:
            context = self._open(max((chunk.n_tokens for chunk in chunks if not chunk.is_causal), default=0))
            for i, n in enumerate(request.count_tokens()):
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
        """Drop a request; False if there is none with this id."""
        request = next((request for request in self._requests if request.message.id == id_request), None)
        if request is not None:
            self._forget(request)
        return request is not None

    def fail_all(self, status: int, message: str) -> list[Event]:
        """Fail all requests."""
        failures: list[Event] = [Failure(request.message.id, status, message) for request in self._requests]
        for request in list(self._requests):
            self._forget(request)
        return failures

    def plan(self, is_busy: bool, can_encode: bool) -> int:
        """Plan the next part of the work; return its size in rows of text, 0 if nothing can be done now.

        `is_busy` if tasks run. `can_encode` is False while the projector holds a chunk for a slot.
        """
        if not self._requests:
            return 0
        request = self._requests[0]
        if request.chunk is None:
            self._room = min(self._embedder.compute_budget(self._context.n_rows, is_busy), request.n_text)
            return self._room
        is_encoding = self._encoded is not request.chunk
        return ROWS_PER_TOKEN * request.chunk.n_tokens if can_encode or not is_encoding else 0

    def step(self) -> list[Event]:
        """Do the planned part; return the `Embedded` or `Failure`, if any."""
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
            return []  # the next step tries it again
        return self._fail(request, f"computing the embedding failed with code {code}")

    def _open(self, n_at_once: int) -> MediaEmbeddingBackend:
        """The context. If it is a new one, the current input starts over."""
        try:
            context = self._state.backend.open_media_embeddings(n_at_once)
        except ApiError:
            raise
        except Exception as error:
            log.exception("no context for embeddings")
            raise ApiError(500, f"a context for embeddings could not be made: {error}") from None
        if context is not self._context:
            self._context, self._encoded = context, None
            if self._requests:
                self._requests[0].n_done = 0
                self._requests[0].rows.clear()
        return context

    def _commit(self, request: Request, n: int, rows: bytes) -> list[Event]:
        self._encoded = None
        request.n_done += n
        request.rows.append(rows)
        if request.n_done < len(request.tokens):
            return []
        request.vectors.append(self._pool(b"".join(request.rows)))
        request.rows.clear()
        self._context.trim(0)
        self._requests.popleft()
        if len(request.vectors) == len(request.message.inputs):
            self._state.media.forget(request.message.id)
            return [self._answer(request)]
        request.start += len(request.tokens)
        request.index += 1
        request.n_done = 0
        self._requests.append(request)  # the next request's turn
        return []

    def _pool(self, rows: bytes) -> bytes:
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
            sum(request.count_tokens()),
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
