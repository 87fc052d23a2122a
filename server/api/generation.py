"""Runs requests for text: submits their tasks, and turns the engine's messages into events, streamed or collected.

Runs on connection threads, on the threads `stream` and `response` (`server/api/stored`) and on `batch` threads. While a
stream's connection thread sleeps, the thread `engine-reader` runs `feed` and writes the events (`Stream.divert`).
Streamed and whole answers are made of the same events.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from server import memory
from server.api.context import Context
from server.api.dialects.dialect import Answer, Dialect, Reply
from server.api.request.media import Files
from server.api.request.text_request import Arrival, Incoming, TextRequest
from server.api.serialize import make_cache_json
from server.api.stored.recordings import read_conversation_id
from server.chat.output.events import Event
from server.chat.output.parser import Message, OutputParser
from server.engine.seam.task import Final, Task
from server.errors import ApiError
from server.evidence.attribution import attribute, read_wanted
from server.evidence.case import Case, fix_tasks
from server.evidence.spans import texts_of
from server.log import is_verbose, log_verbose
from server.models.entry import Ticket
from server.models.model import Model
from server.web.message import CLIENT_CLOSED, EventStream, Request, Response, Writer, make_json_response

MAX_JOINED = 64  # most events that are sent together as one chunk of a stream
LOOK_S = 0.25  # seconds between two looks at the progress of a model that is loading
REPEAT_S = 5.0  # seconds after which the progress is sent again though it hasn't changed
UNLOGGED = ("image_data", "images", "input", "messages", "file")  # fields the log leaves out: they may hold megabytes


class TextHandler:
    """Answers requests for text in one dialect."""

    def __init__(self, context: Context, dialect: Dialect) -> None:
        self._context = context
        self._dialect = dialect

    def handle(self, request: Request) -> Response | EventStream:
        models, n_bytes = self._context.models, len(request.body)
        digest = hashlib.sha256(request.body).hexdigest() if self._context.recorder is not None else ""
        body = self._dialect.read_body(request)
        ticket = models.ask(body.get("model"), request)
        arrival = Arrival(place=0 if ticket.model is not None else max(models.place(ticket.entry), 1))
        if arrival.place and self._dialect.waiting is not None and is_progress_wanted(body):
            begin = partial(self._begin, body=body, digest=digest, arrival=arrival)
            tell = partial(self._dialect.waiting.event, arrival, ticket.entry.choose_name(body.get("model")))
            make = partial(EarlyStream, self._context, begin, tell, self._dialect.waiting.error)
            return self._make_early_stream(make, ticket, request, n_bytes)
        asked = self.read(models.take(ticket, request), request, body, digest, arrival)
        return asked if isinstance(asked, Response) else self.answer(asked, request)

    def read(
        self, model: Model, request: Request, body: dict[str, Any], digest: str, arrival: Arrival
    ) -> TextRequest | Response:
        """Read a body for a model. A dialect may answer at once with a Response."""
        model.require_generative()
        files = Files(model, request)
        asked = self._dialect.read(Incoming(self._context, model, body, files, request.owner, digest, arrival))
        if isinstance(asked, TextRequest):
            asked = asked.to_background() if request.in_background else asked
            self._context.keep_prompt(asked.shown)
            if is_verbose():
                tokens = [list(task.prompt) for task in asked.tasks]
                log_verbose("request", id=request.id, body=make_logged_body(body, asked.shown), tokens=tokens)
        return asked

    def _begin(self, model: Model, request: Request, **read: Any) -> Stream:
        asked = self.read(model, request, **read)
        assert isinstance(asked, TextRequest)
        return Stream(Generation(self._context, asked, request), self._dialect.reply(self._context, asked))

    def _make_early_stream(
        self, make: Callable[..., EarlyStream], ticket: Ticket, request: Request, n_bytes: int
    ) -> EventStream:
        """A stream that begins before its model is loaded. If it may outlive its connection, it has its own ticket."""
        place = max(self._context.models.place(ticket.entry), 1)
        headers = {"X-Queue-Position": str(place), "Content-Type": self._dialect.stream_type}
        conversation = read_conversation_id(request)
        if not conversation:
            return EventStream(make(ticket, request), headers)
        detached = request.make_detached()

        def make_lasting() -> EarlyStream:
            try:
                memory.hold(n_bytes)
                return make(self._context.models.ask(ticket.entry.name, detached), detached, detached.end)
            except BaseException:
                detached.end()
                raise

        return self._context.recordings.begin(request, conversation, make_lasting, headers)

    def answer(self, asked: TextRequest, request: Request) -> Response | EventStream:
        reply = self._dialect.reply(self._context, asked)
        place = max(asked.model.queue_position, asked.arrival.place)
        headers = {"X-Queue-Position": str(place), **self._dialect.headers(asked.warnings)}
        if asked.values["stream"]:
            headers["Content-Type"] = self._dialect.stream_type
            conversation = read_conversation_id(request)
            if conversation:
                make = partial(self._make_lasting_stream, asked, request, reply)
                return self._context.recordings.begin(request, conversation, make, headers)
            return EventStream(Stream(Generation(self._context, asked, request), reply), headers)
        generation = Generation(self._context, asked, request)
        result = reply.make_whole(generation.collect(reply.id))
        if is_verbose():
            log_verbose("response", id=request.id, body=result)
        if isinstance(result, Response):
            return Response(result.status, result.body, {**headers, **result.headers})
        return make_json_response(result, headers=headers)

    def _make_lasting_stream(self, asked: TextRequest, request: Request, reply: Reply) -> Stream:
        """A stream that goes on without its client, and holds the model until it ends."""
        detached = request.make_detached()
        self._context.models.share(asked.model, detached)
        try:
            memory.hold(sum(len(media.data) for task in asked.tasks for media in task.media))
            return Stream(Generation(self._context, asked, detached), reply, detached.end)
        except BaseException:
            detached.end()
            raise


class Generation:
    """The tasks of one request while the engine works on them."""

    def __init__(self, context: Context, asked: TextRequest, request: Request) -> None:
        self._asked = asked
        self._tasks = asked.tasks
        self._extras = asked.extras
        self._cache_notes = context.cache_notes
        self._recorder = context.recorder
        self._case: Case | None = None
        self._model_hash = ""  # set if the answer gets a certificate
        if asked.values.get("certificate"):
            self._model_hash = context.known_models.get(asked.model)[0]
        self._model, self._body = asked.model, asked.body
        self._attributed = read_wanted(asked.values.get("attribute"))
        if self._recorder is not None or self._model_hash or self._attributed is not None:
            self._case = case_of(asked, request)
            self._tasks = self._case.tasks
        self.ping_s = asked.ping_s
        self._engine = asked.model.engine
        self._stream = asked.values["stream"]
        self._request = request
        self._running = context.running
        self.refusals = context.refusals
        self._answers = {task.id: (i, (asked.new_parser or OutputParser)()) for i, task in enumerate(asked.tasks)}

    @contextmanager
    def run(self, answer_id: str) -> Iterator[Any]:
        """Submit the tasks and yield their `Results`. Leaving the block cancels the tasks, as does a client that
        disconnects; POST /v1/abort finishes them."""
        request = self._request
        request.require_client(self._stream)
        with (
            self._record_request(),
            self._engine.submit(*self._tasks, stream=self._stream) as results,
            request.on_disconnect(results.cancel, results.ping if self._stream else None),
            self._running.keep_entry((request.id, answer_id), request.key_id, results.finish, results.end_thinking),
        ):
            if self._case is not None:
                self._case.ends_thinking = results.ends_thinking
            yield results

    def feed(self, message: Message) -> tuple[int, Sequence[Event]]:
        """Take a message of the engine. Returns its answer's index and new events."""
        index, parser = self._answers[message.id]
        if type(message) is Final:
            self._note_cache(self._tasks[index], message)
        if self._case is not None:
            self._case.note(message)
            if type(message) is Final:
                self._extras[index] = self._make_evidence(self._case, self._tasks[index])
        return index, parser.feed(message)

    def _note_cache(self, task: Task, final: Final) -> None:
        """Note for the task's owner what the cache saved (GET /debug/cache)."""
        about = {
            "time": round(time.time(), 3),
            "id": self._request.id,
            "path": self._request.path,
            "model": self._model.name,
            "prompt_n": final.timings.prompt_n,
            "cache_n": final.timings.cache_n,
        }
        self._cache_notes.add(task.owner, {**about, "cache": make_cache_json(self._asked, final)})

    def _make_evidence(self, case: Case, task: Task) -> dict[str, Any]:
        """The certificate and the attribution of a finished answer, if the request asks for them."""
        found: dict[str, Any] = {}
        if self._model_hash:
            found["certificate"] = case.make_certificate(task, self._model_hash)
        if self._attributed is not None:
            answer, texts = case.tokens.get(task.id, []), texts_of(self._body)
            try:
                found["attribution"] = attribute(self._model, self._request, task, answer, texts, self._attributed)
            except ApiError as error:
                if error.status == CLIENT_CLOSED:
                    raise
                found["attribution"] = {"error": error.message}  # the answer itself is complete
        return found

    @contextmanager
    def _record_request(self) -> Iterator[None]:
        """Add the request to the record after the block, if the server keeps one (--record)."""
        try:
            yield
        finally:
            if self._recorder is not None and self._case is not None:
                self._recorder.add(self._case)

    def collect(self, answer_id: str) -> list[Answer]:
        answers = [Answer(task) for task in self._tasks]
        with self.run(answer_id) as results:
            for message in results:
                index, events = self.feed(message)
                for event in events:
                    answers[index].add(event)
        return answers


class Stream:
    """The chunks of one streamed answer. Closing it cancels unfinished tasks and then calls `at_end`."""

    def __init__(self, generation: Generation, reply: Reply, at_end: Callable[[], None] = lambda: None) -> None:
        self._stack = ExitStack()
        self._stack.callback(at_end)
        self._feed, self._write = generation.feed, reply.encode_event
        self._refusals = generation.refusals
        self._results = self._stack.enter_context(generation.run(reply.id))
        self._chunks = self._iterate(generation.ping_s, reply)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def divert(self, writer: Writer) -> None:
        """From now on, while `__next__` waits, the thread that brings messages writes their events, except a task's end
        (see `EventStream`)."""
        self._results.divert(lambda messages: writer.offer(b"".join(self._encode_messages(messages))), writer.drain)

    def finish(self) -> bool:
        """End the answer with the text so far; False if it has ended. Any thread may call this."""
        return self._results.finish()

    def close(self) -> None:
        self._stack.close()

    def _encode_messages(self, messages: Iterable[Message]) -> list[bytes]:
        feed, write, parts = self._feed, self._write, []
        for message in messages:
            index, events = feed(message)
            for event in events:
                data = write(index, event)
                if data:
                    parts.append(data)
        return parts

    def _iterate(self, ping_s: float | None, reply: Reply) -> Iterator[bytes]:
        """Yield chunks. An ApiError before the first event is raised, so that the answer gets the error's status. A
        later one is sent as an event, unless the client has gone.

        Each send costs a system call and wakes the client. So events that are ready at the same time are sent together,
        the last ones with the stream's end.
        """
        is_open = False
        parts: list[bytes] = []
        results = self._results
        try:
            for message in results.iterate_events(ping_s):
                parts += (reply.ping,) if message is None else self._encode_messages((message,))
                if parts and type(message) is not Final and (len(parts) >= MAX_JOINED or not results.has_more):
                    yield b"".join(parts)
                    is_open = True
                    parts.clear()
            yield b"".join((*parts, reply.end()))
        except ApiError as error:
            if error.status == CLIENT_CLOSED or (not is_open and not parts):
                raise
            self._refusals.count(error.reason)
            yield b"".join((*parts, reply.encode_error(error)))


class EarlyStream:
    """A stream that reports the loading of its model (`tell`) and then continues with the stream that `begin` makes. An
    error after the first chunk becomes an event (`fail`). `request` takes the model that `ticket` waits for."""

    def __init__(
        self,
        context: Context,
        begin: Callable[[Model, Request], Stream],
        tell: Callable[[dict[str, Any]], bytes],
        fail: Callable[[ApiError], bytes],
        ticket: Ticket,
        request: Request,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._models, self._refusals = context.models, context.refusals
        self._begin, self._tell, self._fail = begin, tell, fail
        self._ticket, self._request = ticket, request
        self._inner: Stream | None = None
        self._is_finished = False
        self._chunks = self._iterate()
        self._stack = ExitStack()
        self._stack.callback(at_end)
        self._stack.callback(self._chunks.close)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def __next__(self) -> bytes:
        return next(self._chunks)

    def finish(self) -> bool:
        self._is_finished = True
        if self._inner is not None:
            return self._inner.finish()
        self._models.leave(self._ticket)
        return True

    def close(self) -> None:
        self._stack.close()

    def _iterate(self) -> Generator[bytes, None, None]:
        is_open = False
        try:
            with self._request.on_disconnect(partial(self._models.leave, self._ticket), lambda: None):
                for told in self._report_progress():
                    yield told
                    is_open = True
            model = self._models.take(self._ticket, self._request)
            self._inner = inner = self._begin(model, self._request)
            self._stack.callback(inner.close)
            if self._is_finished:
                inner.finish()
            yield from inner
        except ApiError as error:
            if error.status == CLIENT_CLOSED or not is_open:
                raise
            self._refusals.count(error.reason)
            yield self._fail(error)

    def _report_progress(self) -> Iterator[bytes]:
        """Report progress and queue position when they change, and every REPEAT_S, because some disconnected clients
        are noticed only by sending."""
        start = t_told = time.monotonic()
        before = None
        while not self._models.wait(self._ticket, LOOK_S):
            now = time.monotonic()
            entry = self._ticket.entry
            found = self._models.place(entry), round(entry.progress, 2)
            if found != before or now - t_told >= REPEAT_S:
                before, t_told = found, now
                place = {"queue_position": found[0]} if found[0] else {}
                yield self._tell({"progress": found[1], "time_ms": round((now - start) * 1e3, 3), **place})


def is_progress_wanted(body: Mapping[str, Any]) -> bool:
    return body.get("stream") is True and body.get("return_progress") is True


def case_of(asked: TextRequest, request: Request) -> Case:
    """The record of a request, made before its tasks run."""
    model = asked.model
    return Case(
        model,
        fix_tasks(model, asked.tasks),
        model.system_prompt.prompt,
        request.id,
        request.path,
        asked.body,
        asked.body_sha256,
        request.key_id,
    )


def make_logged_body(body: Mapping[str, Any], shown: object) -> dict[str, Any]:
    return {**{name: value for name, value in body.items() if name not in UNLOGGED}, "prompt": shown}
