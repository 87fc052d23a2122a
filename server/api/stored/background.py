"""Background responses: they are made even if no client waits, and clients may stream them at any time.

Each response has a thread, `response`, that takes the engine's events, keeps them and finally stores the response.
Every client's connection thread writes a stream from the same events, with the same numbers. When the response has
ended, the events are dropped: `replay` makes a stream from the stored response and the sizes of its deltas.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from server import memory
from server.api.context import Context
from server.api.dialects.response_items import IN_PROGRESS, QUEUED, Exchange
from server.api.dialects.responses import ResponsesReply
from server.api.generation import Generation, TextHandler
from server.api.request.text_request import TextRequest
from server.chat.output.events import End, Event
from server.errors import ApiError
from server.log import get_logger, inherit
from server.web.message import EventStream, Request, Response, make_json_response
from server.web.sse import PING

MAX_RUNS, MAX_RUNS_OF_KEY = 64, 16  # responses at the same time, of all keys and of one
WAIT_S = 30.0  # longest wait for the end of a response that is cancelled
PING_S = 15.0  # default: seconds without an event after which a stream sends a ping
EVENT_BYTES = 300  # bytes of memory per event until the response has ended

log = get_logger("api")


class Run:
    """One response while it is being made."""

    def __init__(self, context: Context, asked: TextRequest, request: Request) -> None:
        self._context = context
        self.asked = asked
        self._exchange: Exchange = asked.own
        self._reply = ResponsesReply(context, asked)
        self.begun = self._reply.response
        self._detached = request.make_detached()
        self._generation = Generation(context, asked, self._detached)
        share = memory.get_current()
        self._reply.share = self._share = share and share.make_another()
        self._changed = threading.Condition()  # its lock protects the fields below
        self._events: list[Event] = []
        self._results: Any = None
        self._is_cancelled = self.has_ended = False

    @property
    def key_id(self) -> str:
        return self._exchange.key_id

    @property
    def response(self) -> dict[str, Any]:
        """The response so far, without output until it has ended."""
        response = self._reply.response
        return (
            {**response, "status": IN_PROGRESS} if self._reply.was_begun and response["status"] == QUEUED else response
        )

    def begin(self) -> None:
        """Hold the model, because the client's request may end before the response."""
        self._context.models.share(self.asked.model, self._detached)

    def work(self) -> None:
        """Run the response to its end. The thread's main function."""
        memory.use(self._share)
        try:
            if self._share is not None:
                self._share.take(sum(len(media.data) for task in self.asked.tasks for media in task.media))
            with self._generation.run(self._reply.id) as results:
                with self._changed:
                    self._results, is_cancelled = results, self._is_cancelled
                if is_cancelled:
                    results.finish()
                for message in results:
                    self._add(self._generation.feed(message)[1])
        except ApiError as error:
            self._context.refusals.count(error.reason)
            self._reply.encode_error(error)
        except Exception:
            log.exception("the response %s failed", self._reply.id)
            self._reply.encode_error(ApiError(500, "internal error; see the server's log"))
        finally:
            self._detached.end()
            with self._changed:
                self.has_ended = True
                self._results = None
                self._changed.notify_all()
            if self._share is not None:
                self._share.close()

    def _add(self, events: Sequence[Event]) -> None:
        if self._share is not None:
            self._share.take(EVENT_BYTES * len(events))
        for event in events:
            self._reply.encode_event(0, event)
        with self._changed:
            self._events += events
            self._changed.notify_all()

    def cancel(self) -> bool:
        """End the response with its text so far, and wait for that. Returns whether it has ended in time."""
        with self._changed:
            self._is_cancelled, results = True, self._results
        if results is not None:
            results.finish()
        with self._changed:
            return self._changed.wait_for(lambda: self.has_ended, WAIT_S)

    def stream(self, request: Request, after: int) -> Iterator[bytes]:
        """The stream for the client of this request, after the event with the number `after`."""
        reply = ResponsesReply(self._context, self.asked, after, is_copy=True)
        signs: list[bool] = []  # True: the client has left; False: it may have left, so a ping is due
        with request.on_disconnect(partial(self._wake, signs, True), partial(self._wake, signs, False)):
            yield reply.begin()
            n_sent = n_signs = 0
            while True:
                with self._changed:
                    if not self.has_ended and len(self._events) == n_sent and len(signs) == n_signs:
                        self._changed.wait(self.asked.ping_s or PING_S)
                    events, has_ended, n_signs = self._events[n_sent:], self.has_ended, len(signs)
                if any(signs):
                    return
                n_sent += len(events)
                data = b"".join(reply.encode_event(0, event) for event in events if not isinstance(event, End))
                if has_ended:
                    yield data + reply.finish(self._reply.response)
                    return
                yield data or (b"" if events else PING)

    def _wake(self, signs: list[bool], has_left: bool) -> None:
        with self._changed:
            signs.append(has_left)
            self._changed.notify_all()


class Runs:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()  # protects _runs
        self._runs: dict[str, Run] = {}

    def start(self, asked: TextRequest, request: Request) -> Run:
        """Start a response. ApiError 503 if too many are running or the store is full."""
        run = Run(self._context, asked, request)
        id_ = run.response["id"]
        with self._lock:
            n_own = sum(one.key_id == run.key_id for one in self._runs.values())
            if len(self._runs) >= MAX_RUNS or n_own >= MAX_RUNS_OF_KEY:
                raise ApiError(
                    503,
                    f"background: {n_own} of your responses are running; wait until one of them ends",
                    headers={"Retry-After": "5"},
                    reason="queue_full",
                )
            self._runs[id_] = run
        exchange: Exchange = asked.own
        found = {"response": run.response, "input": exchange.items, "was_begun": False}
        if not self._context.stored.put(id_, exchange.key_id, found):
            self._forget(id_)
            raise ApiError(503, "background: no room is left for this response (--store-size)", reason="memory")
        run.begin()
        threading.Thread(target=inherit(self._work), args=(id_, run), name="response", daemon=True).start()
        return run

    def get(self, id_: str, key_id: str) -> Run | None:
        """The running response with this id, if it belongs to this key."""
        with self._lock:
            run = self._runs.get(id_)
        return run if run is not None and run.key_id == key_id and not run.has_ended else None

    def _work(self, id_: str, run: Run) -> None:
        try:
            run.work()
        finally:
            self._forget(id_)

    def _forget(self, id_: str) -> None:
        with self._lock:
            del self._runs[id_]


class ResponseHandler(TextHandler):
    """Handles POST /v1/responses."""

    def __init__(self, context: Context, runs: Runs, dialect: Any) -> None:
        super().__init__(context, dialect)
        self._runs = runs

    def answer(self, asked: TextRequest, request: Request) -> Response | EventStream:
        exchange: Exchange = asked.own
        if not exchange.is_background:
            return super().answer(asked, request)
        run = self._runs.start(asked, request)
        if exchange.is_streamed:
            return EventStream(run.stream(request, -1))
        return make_json_response(run.begun)
