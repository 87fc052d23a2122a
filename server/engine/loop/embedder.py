"""Computes embeddings of texts, with inputs of many requests in one batch. Engine thread only.

Embeddings have a context of their own, since a context's pooling is fixed when it is made. It is opened at the first
request, or at start with `--embeddings`. A step of the loop plans at most one batch here. Requests take turns input by
input. Background requests come last, and get a part of the time (`SHARE`) while other tasks run.

Not taken: embeddings as tasks on slots. They need neither a slot's cache nor a sampler.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from server.engine.loop.state import EngineState
from server.engine.seam.task import Embed, Embedded, Event, Failure
from server.engine.slots.backend import DECODE_ABORTED, DECODE_OK, EmbeddingBackend
from server.engine.slots.pace import SHARE
from server.engine.slots.planner import Span
from server.errors import ApiError, StartError
from server.log import get_logger
from server.records import field, record

MIN_ROWS = 32  # fewer rows take hardly less time

log = get_logger("engine")


@record(eq=False)
class Request:
    """One message. `vectors` has the results, an entry per input; `n_begun` inputs have been begun, `n_open` aren't
    finished."""

    message: Embed
    vectors: list[bytes] = field(default_factory=list)
    n_begun: int = 0
    n_open: int = 0


@record(eq=False)
class Part:
    """One input in work on sequence `seq`; `rows` are the vectors of its first `n_done` tokens."""

    request: Request
    index: int
    seq: int
    n_done: int = 0
    rows: list[bytes] = field(default_factory=list)

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.request.message.inputs[self.index]


class Embedder:
    """The requests for embeddings of one engine, waiting or in work.

    While tasks run, a batch is planned to take half of `--max-stall-ms`; the other half is left for a prompt step.
    """

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._max_queue = state.config.max_queue
        self._busy_s = state.config.max_stall_ms / 2e3
        self._context: EmbeddingBackend | None = None
        self._requests: deque[Request] = deque()
        self._parts: list[Part] = []  # inputs in work, each on its own sequence
        self._spans: list[Span] = []  # the planned batch
        self._rows_per_s = 0.0
        self._t_background = 0.0  # background requests wait until then, while other tasks run

    def __len__(self) -> int:
        return len(self._requests)

    def post(self, message: Embed) -> list[Event]:
        """Take a request; return a `Failure` if it is refused."""
        try:
            if len(self._requests) >= self._max_queue:
                raise ApiError(
                    503, f"{len(self._requests)} requests for embeddings are waiting; try later", reason="queue_full"
                )
            if not message.inputs:
                raise ApiError(400, "the request has no input")
            context = self._open()
            for i, tokens in enumerate(message.inputs):
                check_length(context.n_input, len(tokens), i if len(message.inputs) > 1 else None, context.advice)
        except ApiError as error:
            return [Failure(message.id, error.status, error.message, error.type, error.extra, error.reason)]
        n = len(message.inputs)
        self._requests.append(Request(message, [b""] * n, n_open=n))
        return []

    def cancel(self, id_request: int) -> bool:
        """Drop a request; False if there is none with this id."""
        for request in self._requests:
            if request.message.id == id_request:
                self._forget(request)
                return True
        return False

    def fail_all(self, status: int, message: str) -> list[Event]:
        """Fail all requests."""
        failures: list[Event] = [Failure(request.message.id, status, message) for request in self._requests]
        for request in list(self._requests):
            self._forget(request)
        return failures

    def plan(self, is_busy: bool) -> int:
        """Plan the next batch and return its rows, 0 for no batch. The batch is smaller while tasks run (`is_busy`)."""
        if self._must_wait():
            self._spans = []
            return 0
        self._spans = self._choose(self.compute_budget(self._context.n_rows, is_busy)) if self._requests else []
        return sum(map(len, self._spans))

    def compute(self) -> list[Event]:
        """Compute the planned batch; return the answers that are complete."""
        started = self._state.clock()
        is_behind = all(request.message.in_background for request in self._requests)
        events = self._compute(self._spans)
        ended = self._state.clock()
        self._observe(sum(map(len, self._spans)), ended - started)
        if is_behind:
            self._t_background = ended + (ended - started) / SHARE
        return events

    def _must_wait(self) -> bool:
        return (
            self._state.clock() < self._t_background
            and all(request.message.in_background for request in self._requests)
            and any(not slot.run.task.in_background for slot in self._state.running)
        )

    def _observe(self, n_rows: int, seconds: float) -> None:
        self._state.meter.n_prompt += n_rows
        self._state.meter.prompt_ms += seconds * 1e3
        if seconds > 0:
            rate = n_rows / seconds
            self._rows_per_s = rate if not self._rows_per_s else 0.7 * self._rows_per_s + 0.3 * rate

    def _open(self) -> EmbeddingBackend:
        """The context, made at first use. ApiError if that fails."""
        if self._context is None:
            try:
                self._context = self._state.backend.open_embeddings()
            except StartError as error:
                raise ApiError(400, str(error)) from None
            except Exception as error:
                log.exception("no context for embeddings")
                raise ApiError(500, f"a context for embeddings could not be made: {error}") from None
        return self._context

    def compute_budget(self, most: int, is_busy: bool) -> int:
        """Rows of the next batch, at most `most`."""
        if not (is_busy and self._busy_s and self._rows_per_s):
            return most
        return max(min(most, int(self._rows_per_s * self._busy_s)), min(MIN_ROWS, most))

    def _choose(self, room: int) -> list[Span]:
        """The inputs in work, then new inputs, one of each request by turns, until `room` rows are used.

        An input that doesn't fit is cut if the model allows that; else it waits, or has a batch of its own.
        """
        can_split = self._context.can_split
        spans: list[Span] = []
        begun = deque(self._parts)
        while room > 0 and (part := begun.popleft() if begun else self._find_next_part()) is not None:
            n = len(part.tokens) - part.n_done
            if n > room and can_split:
                n = room
            elif n > room and spans:
                break
            if part not in self._parts:
                self._begin(part)
            spans.append(self._make_span(part, n))
            room -= n
        return spans

    def _find_next_part(self) -> Part | None:
        """The next input to begin, on a free sequence; None if either is missing."""
        used = {part.seq for part in self._parts}
        seq = next((seq for seq in range(self._context.n_seqs) if seq not in used), None)
        waiting = (request for request in self._requests if request.n_begun < len(request.message.inputs))
        request = min(waiting, key=lambda request: request.message.in_background, default=None)
        return None if seq is None or request is None else Part(request, request.n_begun, seq)

    def _begin(self, part: Part) -> None:
        self._parts.append(part)
        part.request.n_begun += 1
        self._requests.remove(part.request)
        self._requests.append(part.request)

    def _share(self, part: Part) -> int:
        """How many rows of this input fit into a batch of its own."""
        n = len(part.tokens) - part.n_done
        return min(n, self._context.n_rows) if self._context.can_split else n

    @staticmethod
    def _make_span(part: Part, n: int) -> Span:
        tokens = part.tokens[part.n_done : part.n_done + n]
        return Span(part.seq, part.seq, part.n_done, tokens, part.n_done + n == len(part.tokens))

    def _compute(self, spans: list[Span]) -> list[Event]:
        """Decode; if that fails, try each input alone. So a request fails only if one of its inputs fails alone."""
        parts = {part.seq: part for part in self._parts}
        for id_request in dict.fromkeys(parts[span.seq].request.message.id for span in spans):
            self._state.announce(id_request)  # the engine may die of it
        code = self._context.embed(spans)
        if code == DECODE_OK:
            return self._commit([parts[span.seq] for span in spans], spans)
        for span in spans:
            self._undo(parts[span.seq])
        if code == DECODE_ABORTED:
            return []  # the next step tries it again
        if len(spans) > 1:
            events: list[Event] = []
            for part in [parts[span.seq] for span in spans]:
                if part in self._parts:
                    events += self._compute([self._make_span(part, self._share(part))])
            return events
        request = parts[spans[0].seq].request
        log.error("request %d: computing embeddings failed with code %d", request.message.id, code)
        self._forget(request)
        return [Failure(request.message.id, 500, f"computing the embedding failed with code {code}")]

    def _undo(self, part: Part) -> None:
        """Drop what a failed decode may have left. If the model can't drop a tail, the input starts over."""
        if not self._context.trim(part.seq, part.n_done):
            self._context.trim(part.seq, 0)
            part.n_done = 0
            part.rows.clear()

    def _commit(self, parts: Iterable[Part], spans: list[Span]) -> list[Event]:
        events: list[Event] = []
        context = self._context
        for part, span, vectors in zip(parts, spans, context.read_vectors(spans)):
            part.n_done += len(span)
            part.rows.append(vectors)
            if not span.output:
                continue
            request = part.request
            request.vectors[part.index] = b"".join(part.rows)
            request.n_open -= 1
            self._parts.remove(part)
            context.trim(part.seq, 0)
            if request.n_open == 0:
                self._requests.remove(request)
                events.append(self._answer(request))
        return events

    def _answer(self, request: Request) -> Embedded:
        size = 4 * self._context.width
        return Embedded(
            request.message.id,
            self._context.pooling,
            self._context.width,
            tuple(len(vectors) // size for vectors in request.vectors),
            b"".join(request.vectors),
        )

    def _forget(self, request: Request) -> None:
        self._requests.remove(request)
        for part in [part for part in self._parts if part.request is request]:
            self._parts.remove(part)
            self._context.trim(part.seq, 0)


def check_length(most: int, n: int, index: int | None, advice: str) -> None:
    """ApiError 400 if an input has no tokens or more than `most`. `index` is None for a request's only input."""
    name = "the input" if index is None else f"input {index}"
    if not n:
        raise ApiError(400, f"{name} is empty: it has no tokens")
    if n > most:
        raise ApiError(
            400,
            f"{name} has {n} tokens, which is too large to process: at most {most} are embedded at once; {advice}",
            "exceed_context_size_error",
            n_prompt_tokens=n,
            n_ctx=most,
        )
