"""Vectors of texts: many inputs of many requests in one decode, beside the scheduler's own batches. Engine thread.

The context that computes them is not the one that generates (what a context pools is fixed when it is made); it is
opened at the first request, or at start with `--embeddings`. One step does at most one batch here, so streams go on
in between. Requests take turns input by input: a single question isn't kept waiting by somebody's two thousand. Those
in the background come behind all others, and beside others' texts get a part of the time (`SHARE`).

Not taken: embeddings as tasks on slots. They need neither a slot's cache nor its sampler, and all of their rows are
outputs.
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

MIN_ROWS = 32  # below that a batch costs more than it computes

log = get_logger("engine")


@record(eq=False)
class Request:
    """One message in work: the next input to begin with, and what has come out so far (one entry per input)."""

    message: Embed
    vectors: list[bytes] = field(default_factory=list)
    n_begun: int = 0
    n_open: int = 0


@record(eq=False)
class Part:
    """One input in work on sequence `seq`; its first `n_done` tokens have been computed."""

    request: Request
    index: int
    seq: int
    n_done: int = 0
    rows: list[bytes] = field(default_factory=list)

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens of the input."""
        return self.request.message.inputs[self.index]


class Embedder:
    """The requests for vectors of one engine. `len` counts those that wait or are in work.

    While somebody reads a stream a batch should take no more than half of `--max-stall-ms`; the other half is for the
    stream's own step. That is kept as far as inputs can be cut or held back.
    """

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._max_queue = state.config.max_queue
        self._busy_s = state.config.max_stall_ms / 2e3
        self._context: EmbeddingBackend | None = None
        self._requests: deque[Request] = deque()
        self._parts: list[Part] = []  # begun and not finished, each on a sequence of its own
        self._spans: list[Span] = []  # the batch that has been chosen
        self._rows_per_s = 0.0
        self._t_background = 0.0  # before that the background has had its part of the time

    def __len__(self) -> int:
        return len(self._requests)

    def post(self, message: Embed) -> list[Event]:
        """Take a request; a failure when it can't be answered."""
        try:
            if len(self._requests) >= self._max_queue:
                raise ApiError(
                    503, f"{len(self._requests)} requests for embeddings are waiting; try later", reason="queue_full"
                )
            if not message.inputs:
                raise ApiError(400, "there is no input")
            context = self._open()
            for i, tokens in enumerate(message.inputs):
                check_length(context.n_input, len(tokens), i if len(message.inputs) > 1 else None, context.advice)
        except ApiError as error:
            return [Failure(message.id, error.status, error.message, error.type, error.extra, error.reason)]
        n = len(message.inputs)
        self._requests.append(Request(message, [b""] * n, n_open=n))
        return []

    def cancel(self, id_request: int) -> bool:
        """Forget a request; False if there is none with this id."""
        for request in self._requests:
            if request.message.id == id_request:
                self._forget(request)
                return True
        return False

    def fail_all(self, status: int, message: str) -> list[Event]:
        """End all requests."""
        failures: list[Event] = [Failure(request.message.id, status, message) for request in self._requests]
        for request in list(self._requests):
            self._forget(request)
        return failures

    def plan(self, is_busy: bool) -> int:
        """Choose the next batch, a smaller one if somebody reads a stream (`is_busy`); its rows, 0 for no batch."""
        if self._must_wait():
            self._spans = []
            return 0
        self._spans = self._choose(self.budget(self._context.n_rows, is_busy)) if self._requests else []
        return sum(map(len, self._spans))

    def compute(self) -> list[Event]:
        """Compute the chosen batch; the answers that are complete."""
        started = self._state.clock()
        is_behind = all(request.message.in_background for request in self._requests)
        events = self._compute(self._spans)
        ended = self._state.clock()
        self._measured(sum(map(len, self._spans)), ended - started)
        if is_behind:
            self._t_background = ended + (ended - started) / SHARE
        return events

    def _must_wait(self) -> bool:
        """Whether all that is wanted is in the background, and it is others' time."""
        return (
            self._state.clock() < self._t_background
            and all(request.message.in_background for request in self._requests)
            and any(not slot.run.task.in_background for slot in self._state.running)
        )

    def _measured(self, n_rows: int, seconds: float) -> None:
        """A batch took so long."""
        self._state.meter.n_prompt += n_rows
        self._state.meter.prompt_ms += seconds * 1e3
        if seconds > 0:
            rate = n_rows / seconds
            self._rows_per_s = rate if not self._rows_per_s else 0.7 * self._rows_per_s + 0.3 * rate

    def _open(self) -> EmbeddingBackend:
        """The context, made when first needed. ApiError if that fails."""
        if self._context is None:
            try:
                self._context = self._state.backend.open_embeddings()
            except StartError as error:
                raise ApiError(400, str(error)) from None
            except Exception as error:
                log.exception("no context for embeddings")
                raise ApiError(500, f"no context for embeddings could be made: {error}") from None
        return self._context

    def budget(self, most: int, is_busy: bool) -> int:
        """Rows of the next batch, at most `most`."""
        if not (is_busy and self._busy_s and self._rows_per_s):
            return most
        return max(min(most, int(self._rows_per_s * self._busy_s)), min(MIN_ROWS, most))

    def _choose(self, room: int) -> list[Span]:
        """What has been begun, then new inputs, one of each request in turn, until `room` rows are used.

        An input with more rows than are left is cut where the model allows that, else it waits, or goes alone.
        """
        can_split = self._context.can_split
        spans: list[Span] = []
        begun = deque(self._parts)
        while room > 0 and (part := begun.popleft() if begun else self._next_part()) is not None:
            n = len(part.tokens) - part.n_done
            if n > room and can_split:
                n = room
            elif n > room and spans:
                break
            if part not in self._parts:
                self._begin(part)
            spans.append(self._span(part, n))
            room -= n
        return spans

    def _next_part(self) -> Part | None:
        """The next input of the first request in line that has one, on a free sequence; None if there is none."""
        used = {part.seq for part in self._parts}
        seq = next((seq for seq in range(self._context.n_seqs) if seq not in used), None)
        waiting = (request for request in self._requests if request.n_begun < len(request.message.inputs))
        request = min(waiting, key=lambda request: request.message.in_background, default=None)
        return None if seq is None or request is None else Part(request, request.n_begun, seq)

    def _begin(self, part: Part) -> None:
        """Its request goes to the end of the line."""
        self._parts.append(part)
        part.request.n_begun += 1
        self._requests.remove(part.request)
        self._requests.append(part.request)

    def _share(self, part: Part) -> int:
        """Rows of a batch that this part has for itself."""
        n = len(part.tokens) - part.n_done
        return min(n, self._context.n_rows) if self._context.can_split else n

    @staticmethod
    def _span(part: Part, n: int) -> Span:
        """The next `n` rows of an input; `id` is its sequence."""
        tokens = part.tokens[part.n_done : part.n_done + n]
        return Span(part.seq, part.seq, part.n_done, tokens, part.n_done + n == len(part.tokens))

    def _compute(self, spans: list[Span]) -> list[Event]:
        """Decode; if that fails, each input by itself, so that a bad one takes no other with it."""
        parts = {part.seq: part for part in self._parts}
        for id_request in dict.fromkeys(parts[span.seq].request.message.id for span in spans):
            self._state.announce(id_request)  # the engine may die of it
        code = self._context.embed(spans)
        if code == DECODE_OK:
            return self._commit([parts[span.seq] for span in spans], spans)
        for span in spans:
            self._undo(parts[span.seq])
        if code == DECODE_ABORTED:
            return []  # the same again with the next step
        if len(spans) > 1:
            events: list[Event] = []
            for part in [parts[span.seq] for span in spans]:
                if part in self._parts:
                    events += self._compute([self._span(part, self._share(part))])
            return events
        request = parts[spans[0].seq].request
        log.error("request %d: computing embeddings failed with code %d", request.message.id, code)
        self._forget(request)
        return [Failure(request.message.id, 500, f"computing the embedding failed with code {code}")]

    def _undo(self, part: Part) -> None:
        """Drop what a failed decode may have left; where a model can't drop a tail, its input begins anew."""
        if not self._context.trim(part.seq, part.n_done):
            self._context.trim(part.seq, 0)
            part.n_done = 0
            part.rows.clear()

    def _commit(self, parts: Iterable[Part], spans: list[Span]) -> list[Event]:
        """Note what has been computed; the requests that are complete now."""
        events: list[Event] = []
        context = self._context
        for part, span, vectors in zip(parts, spans, context.vectors(spans)):
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
    """ApiError 400 unless an input of `n` tokens has any and fits; `index` says which one it is, None if there is just
    one."""
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
