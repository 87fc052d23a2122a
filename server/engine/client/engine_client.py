"""The web process's interface to the engine: submits tasks, receives their events, and knows the engine's state.

Connection threads use it. The transport calls `dispatch` for each frame, on one of its own threads. `dispatch` passes
events on and never waits for a client. A request reads the events of its tasks from its `Results`.

The transport is `supervisor.ProcessTransport` or `entry.thread.ThreadTransport`.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from server import memory
from server.engine.client.bounded_vocab import MAX_TEXT, BoundedVocab
from server.engine.client.timeline import Timeline
from server.engine.seam.task import (
    CLOSED,
    FAILED,
    LOADING,
    READY,
    RESTARTING,
    Cancel,
    Closed,
    Command,
    Embed,
    Embedded,
    Event,
    Failure,
    Final,
    Frame,
    LoadFailed,
    Loading,
    ModelInfo,
    Piece,
    Ready,
    Reply,
    Restarting,
    Snapshot,
    Starting,
    Task,
    Tasks,
)
from server.errors import ApiError
from server.log import get_logger, inherit
from server.records import replace

TAIL = 400  # characters of an answer that /slots shows
RECENT_PER_SLOT = 8  # ended tasks kept per slot, for /slots
N_BACKLOG = 10_000
"""The most unread events of a stream. With more it is cancelled, because the engine never waits for a client."""
MAX_DIVERTED = 200
"""The most probabilities in a frame's events that are diverted (`Results.divert`): other requests wait meanwhile."""
N_COUNTED = 1024  # events after which the memory of an answer is counted again
EVENT_BYTES, QUEUED_BYTES, ANSWERED_BYTES = 300, 220, 2000
"""Bytes of an event until the answer is complete; of a probability in a queue; of a probability in an answer."""
LAST = (Final, Embedded, Failure)  # a task's last event is one of these

log = get_logger("engine")


class Transport(Protocol):
    """Carries messages to the engine and frames back."""

    @property
    def step_limit_s(self) -> float:
        """The seconds after which the running step counts as hanging."""

    def start(self, on_frame: Callable[[Frame], None]) -> None:
        """Begin to load the model. `on_frame` is called with every frame, one at a time."""

    def post(self, message: object) -> None:
        """On any thread, without waiting: send a message to the engine."""

    def collect_stacks(self, timeout_s: float) -> str:
        """See `EngineClient.collect_stacks`."""

    def close(self, grace_s: float) -> None:
        """Give running tasks `grace_s` seconds, end the engine, and wait for its end."""


class Results:
    """The events of one request's tasks, in order. Iterate once. Leaving the `with` block early cancels the tasks.

    With `stream` each frame with events of the request wakes the request's thread (the reader); without it only the end
    or a failure does. The iteration ends when every task has its `Final` or `Embedded`. The first `Failure` is raised
    as an ApiError.

    A stream can be diverted: while the reader waits, the transport's thread calls a function with the events instead of
    waking it, unless one ends a task or there are too many probabilities. The order is kept: `_is_waiting` is false
    until the reader has handled all events that it was woken for.
    """

    def __init__(self, client: EngineClient, tasks: Sequence[Task | Embed], stream: bool) -> None:
        self.tasks = tuple(tasks)
        self.by_id = {task.id: task for task in tasks}
        self._client = client
        self._stream = stream
        self._queue: SimpleQueue = SimpleQueue()
        self._collected: list[Event] = []  # not handed over yet; in a stream only the current frame's
        self._n_open = len(self.tasks)
        self._n_queued = 0  # events in `_queue`
        self._share = memory.get_current()
        self._n_batch = 0  # events taken from the queue, but not yet yielded
        self._lock = threading.Lock()  # guards _n_queued, _is_waiting, a stream's _collected; held while diverting
        self._is_waiting = False  # the reader sleeps, so the transport's thread may write
        self._divert: Callable[[list[Event]], bool] | None = None
        self._resume: Callable[[], None] = lambda: None
        self._t_diverted = 0.0
        self._fault: Exception | None = None  # raised by `_divert`, to be raised again in the reader
        self.is_cancelled = False
        self.ends_thinking: dict[int, int] = {}  # per task: after how many tokens `end_thinking` ended its reasoning

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cancel()
        self._divert = None  # breaks a cycle: it refers to the request, which refers to this object

    def __iter__(self) -> Iterator[Any]:
        return self.iterate_events(None)

    def divert(self, send: Callable[[list[Event]], bool], resume: Callable[[], None]) -> None:
        """Call `send` with events while the reader waits. `send` must not wait. If it returns False (the client's
        socket is full), the reader is woken. Whenever the reader has waited, it calls `resume`."""
        self._divert, self._resume = send, resume

    def iterate_events(self, silence_s: float | None) -> Iterator[Any]:
        """Iterate over the events, with a None after `silence_s` seconds without any, and after `ping`."""
        n_open = len(self.tasks)
        while n_open:
            batch = self._wait_for_batch(silence_s)
            if batch is None:
                yield None
                continue
            self._n_batch = len(batch)
            for event in batch:
                self._n_batch -= 1
                if isinstance(event, Failure):
                    raise ApiError(
                        event.status,
                        event.message,
                        event.type,
                        self._client.make_advice(event),
                        reason=event.reason,
                        **event.extra,
                    )
                yield event
                n_open -= isinstance(event, LAST)

    def _wait_for_batch(self, silence_s: float | None) -> Sequence[Event] | None:
        """Wait for events; None after `silence_s` or a ping. Until the next call only the reader writes to the
        client."""
        if self._divert is not None:
            with self._lock:
                self._is_waiting = self._queue.empty()
        batch, n_bytes = self._wait(silence_s) or (None, 0)
        with self._lock:
            self._is_waiting = False
            self._n_queued -= len(batch or ())
        self._hold(-n_bytes)
        if self._divert is not None:
            self._resume()
        if self._fault is not None:
            raise self._fault
        return batch

    def _wait(self, silence_s: float | None) -> tuple[Sequence[Event], int] | None:
        """The next events and their bytes; None after a ping, or after `silence_s` without even diverted events."""
        left, started = silence_s, time.monotonic()
        while left is None or left > 0:
            try:
                return self._queue.get(timeout=left)
            except Empty:
                left = (silence_s or 0.0) - (time.monotonic() - max(started, self._t_diverted))
        return None

    @property
    def has_more(self) -> bool:
        """Whether an event can be read without waiting."""
        return self._n_batch > 0 or not self._queue.empty()

    def cancel(self, message: str = "the client closed the request", status: int = 499, reason: str = "") -> None:
        """On any thread, any number of times: end the request with this error, if it hasn't ended yet."""
        if self._n_open > 0 and not self.is_cancelled:
            self.is_cancelled = True
            for task in self.tasks:
                self._client.forget(task.id)
            with self._lock:
                self._hand_over([Failure(self.tasks[0].id, status, message, reason=reason)])

    def ping(self) -> None:
        """On any thread: give the reader of a stream a None, as after silence."""
        self._queue.put(None)

    def finish(self) -> bool:
        """On any thread: end the answer here, as if it were complete. False if it has ended already."""
        if self._n_open <= 0 or self.is_cancelled:
            return False
        for task in self.tasks:
            self._client.finish(task.id)
        return True

    def end_thinking(self) -> bool:
        """On any thread but the transport's: end the reasoning of all tasks. Returns whether any was reasoning."""
        told = {task.id: self._client.run_command("end_thinking", id_task=task.id)["at"] for task in self.tasks}
        ended = {id_task: at for id_task, at in told.items() if at >= 0}
        self.ends_thinking |= ended
        return bool(ended)

    def abort(self) -> bool:
        """On any thread: end the request with an error 409. False if it has ended already."""
        was_open = self._n_open > 0 and not self.is_cancelled
        self.cancel("the request was aborted", 409)
        return was_open

    def put(self, event: Event) -> bool:
        """On the transport's thread: take an event. True if `flush` must be called after the frame.

        Events are handed over at once when a task of a stream ends; without `stream` at a failure or the last task's
        end.
        """
        is_last = type(event) is not Piece and isinstance(event, LAST)
        if not (self._stream or is_last):
            self._collected.append(event)
            if event.probs or len(self._collected) % N_COUNTED == 0:
                self._count_memory()
            return False
        with self._lock:
            self._n_open -= is_last
            self._collected.append(event)
            if not is_last:
                return len(self._collected) == 1
            if self._stream or self._n_open == 0 or isinstance(event, Failure):
                self._is_waiting = False  # the reader must handle the end before any diverted event
                self._hand_over(self._take())
        return False

    def _count_memory(self) -> None:
        """Count the latest events' memory. Cancels the request if there is no room for it."""
        n_bytes = EVENT_BYTES * N_COUNTED if len(self._collected) % N_COUNTED == 0 else 0
        try:
            self._hold(n_bytes + ANSWERED_BYTES * count_probs(self._collected[-1:]))
        except ApiError as error:
            self.cancel("the answer has grown too large; stream it, or request less", error.status, error.reason)

    def _hold(self, n_bytes: int) -> None:
        if n_bytes and self._share is not None:
            self._share.take(n_bytes)

    def flush(self) -> None:
        """On the transport's thread, for a stream: hand over the events of this frame, or divert them. Cancels the
        request if too much is unread."""
        is_behind = False
        with self._lock:
            events = self._take()
            n = count_probs(events)
            if not events:
                return
            if self._is_waiting and n <= MAX_DIVERTED:
                if not self._is_sent(events):
                    self._is_waiting = False
                    self._queue.put(((), 0))  # wakes the reader, which then waits for the client's socket
                return
            try:
                self._hold(QUEUED_BYTES * n)
                is_behind = self._n_queued + len(events) > N_BACKLOG
            except ApiError:
                is_behind = True
            if not is_behind:
                self._is_waiting = False
                self._hand_over(events, QUEUED_BYTES * n)
        if is_behind:
            self.cancel("the client reads too slowly")

    def _take(self) -> list[Event]:
        events, self._collected = self._collected, []
        return events

    def _hand_over(self, events: list[Event], n_bytes: int = 0) -> None:
        self._n_queued += len(events)
        self._queue.put((events, n_bytes))

    def _is_sent(self, events: list[Event]) -> bool:
        self._t_diverted = time.monotonic()
        try:
            return self._divert(events)  # type: ignore[misc]
        except Exception as error:
            self._fault = error
            return False


def count_probs(events: Sequence[Event]) -> int:
    return sum(len(one.top_logprobs) for event in events for one in getattr(event, "probs", ()))


class EngineClient:
    """The engine for the rest of the web process. `vocab` and `info` are None until the model is loaded."""

    def __init__(
        self,
        transport: Transport,
        open_vocab: Callable[[], object],
        max_text: int = MAX_TEXT,
        cuts_prompts: bool = False,
    ) -> None:
        """`max_text` and `cuts_prompts`: see `BoundedVocab`."""
        self._transport = transport
        self._open_vocab = open_vocab
        self._text_bounds = max_text, cuts_prompts
        self._ids = itertools.count()
        self._results: dict[int, Results] = {}
        self._replies: dict[int, SimpleQueue] = {}
        self._lock = threading.Lock()  # guards changes of _recent and _end_interval
        self._recent: dict[int, Task] = {}
        self._tails: dict[int, str] = {}  # the latest text of open and recent tasks
        self._settled = threading.Event()
        self.state = LOADING
        self.error = ""
        self.is_refused = False  # another start would fail for the same reason
        self.progress = 0.0
        self.info: ModelInfo | None = None
        self.vocab: Any = None  # a `Vocab`
        self._opened: object = None
        self._vocab_opening: threading.Thread | None = None
        self._vocab_trouble: Exception | None = None
        self.snapshot = Snapshot()
        self.timeline = Timeline(self._owner_of)
        self._end_interval = EndInterval()
        self._t_sign = time.monotonic()  # the time of the last frame, or of the first task after a pause

    def start(self, must_wait: bool = True) -> None:
        """Begin to load the model. With `must_wait` the vocabulary is opened only after the engine has read it without
        harm, because a bad file would end this process."""
        if not must_wait:
            self._begin_vocab()
        self._transport.start(self.dispatch)

    def wait_until_loaded(self, timeout_s: float | None = None) -> bool:
        """Wait for READY, FAILED or CLOSED; False after `timeout_s`."""
        return self._settled.wait(timeout_s)

    @property
    def is_stuck(self) -> bool:
        """Whether the engine has work, but has sent no frame for longer than a step may take."""
        return self.is_busy and time.monotonic() - self._t_sign > self._transport.step_limit_s

    @property
    def is_busy(self) -> bool:
        """Whether there are open tasks or commands."""
        return bool(self._results or self._replies)

    def collect_stacks(self, timeout_s: float = 5.0) -> str:
        """The stacks of the Python threads in the engine's process; "" for `--engine thread`, or after `timeout_s`."""
        return self._transport.collect_stacks(timeout_s)

    def make_advice(self, failure: Failure) -> dict[str, str]:
        """Headers for the answer to a failed task: `Retry-After` with a 503."""
        return {"Retry-After": str(math.ceil(self._end_interval.mean_s))} if failure.status == 503 else {}

    def make_id(self) -> int:
        """A new id for a task or command. Ids only grow."""
        return next(self._ids)

    def submit(self, *tasks: Task | Embed, stream: bool) -> Results:
        """Send the tasks of one request to the engine. ApiError as in `require_ready`."""
        self.require_ready()
        results = Results(self, tasks, stream)
        if not self._results:
            self._t_sign = time.monotonic()
        for task in tasks:
            self._results[task.id] = results
        self._transport.post(tasks[0] if len(tasks) == 1 else Tasks(tasks))  # type: ignore[arg-type]
        if self.state in (CLOSED, FAILED):
            self._fail_open()
        return results

    def run_command(self, name: str, timeout_s: float = 600.0, **args: object) -> dict[str, Any]:
        """Have the engine run a command between two steps. Returns its result. ApiError if it fails."""
        self.require_ready()
        id_command = self.make_id()
        queue = self._replies[id_command] = SimpleQueue()
        try:
            self._transport.post(Command(id_command, name, args))
            if self.state in (CLOSED, FAILED):
                self._fail_open()
            reply: Reply = queue.get(timeout=timeout_s)
        except Empty:
            self._transport.post(Cancel(id_command))
            raise ApiError(503, f"the engine did not answer '{name}' within {timeout_s:g} s") from None
        finally:
            self._replies.pop(id_command, None)
        if reply.error is not None:
            raise ApiError(*reply.error)
        return reply.result

    def forget(self, id_task: int) -> None:
        """Cancel a task whose events are not read any more."""
        results = self._results.pop(id_task, None)
        if results is not None:
            self._remember(results, id_task)
            self._transport.post(Cancel(id_task))

    def finish(self, id_task: int) -> None:
        """End an open task as if it were complete."""
        if id_task in self._results:
            self._transport.post(Cancel(id_task, finish=True))

    def get_task(self, id_task: int) -> Task | None:
        """An open task; or, without its files, one that ended lately (a slot may still show it); else None."""
        results = self._results.get(id_task)
        if results is not None:
            return results.by_id[id_task]  # type: ignore[return-value]
        return self._recent.get(id_task)

    def _owner_of(self, id_task: int) -> str:
        task = self.get_task(id_task)
        return "" if task is None else task.owner

    def list_waiting_owners(self) -> list[str]:
        """For each open task that the latest snapshot doesn't show at work, its owner."""
        working = self.snapshot.working
        return [self._owner_of(id_task) for id_task in list(self._results) if id_task not in working]

    def get_latest_text(self, id_task: int) -> str:
        """The last `TAIL` characters generated for an open or recent task."""
        return self._tails.get(id_task, "")

    def close(self, grace_s: float = 0.0) -> None:
        """End the engine; running tasks get `grace_s` seconds, the others fail with 503."""
        self._transport.close(grace_s)
        if self._vocab_opening is not None:
            self._vocab_opening.join()  # the process mustn't end while this thread is in libllama

    def require_ready(self) -> None:
        """ApiError 503 if the model still loads or the engine is closed, 500 if it has failed for good."""
        if self.state is LOADING:
            raise ApiError(503, "Loading model", headers={"Retry-After": "1"})
        if self.state is FAILED:
            raise ApiError(500, self.trouble)
        if self.state is CLOSED:
            raise ApiError(503, "the server is shutting down")

    @property
    def trouble(self) -> str:
        """One line that says why `state` is FAILED."""
        return self.error if self.info is not None else f"the model could not be loaded: {self.error}"

    def dispatch(self, frame: Frame) -> None:
        """On the transport's thread: pass a frame's events to their requests. `snapshot` is replaced before that."""
        self._t_sign = time.monotonic()
        if frame.snapshot is not None:
            self.snapshot = frame.snapshot
            self.timeline.note(frame.snapshot)
        touched: list[Results] = []
        for event in frame.events:
            if type(event) is Piece:
                results = self._results.get(event.id)
                if results is None:
                    continue
                self._tails[event.id] = (self._tails.get(event.id, "") + event.text)[-TAIL:]
                if results.put(event):
                    touched.append(results)
                continue
            handler = self._HANDLERS.get(type(event))
            if handler is not None:
                handler(self, event)
                continue
            is_last = isinstance(event, LAST)
            results = (self._results.pop if is_last else self._results.get)(event.id, None)
            if results is not None:
                if is_last:
                    if isinstance(event, Final):
                        self._tails[event.id] = (self._tails.get(event.id, "") + event.text)[-TAIL:]
                    self._remember(results, event.id)
                if results.put(event):
                    touched.append(results)
        for results in touched:
            results.flush()

    def _remember(self, results: Results, id_task: int) -> None:
        task = results.by_id[id_task]
        with self._lock:
            self._end_interval.note_end(time.monotonic(), is_busy=bool(self._results))
            if isinstance(task, Task):
                if task.media or len(task.prompt) > self.info.n_ctx > 0:  # keep no files, and at most `n_ctx` tokens
                    task = replace(task, media=(), prompt=task.prompt[: self.info.n_ctx])
                self._recent[id_task] = task
            while len(self._recent) > RECENT_PER_SLOT * self.info.n_slots:
                oldest = next(iter(self._recent))
                del self._recent[oldest]
                self._tails.pop(oldest, None)

    def _on_loading(self, event: Loading) -> None:
        """The engine reads weights, so the vocabulary is harmless: open it."""
        self.progress = event.progress
        if self._vocab_opening is None:
            self._begin_vocab()

    def _begin_vocab(self) -> None:
        self._vocab_opening = threading.Thread(target=inherit(self._open), name="vocab", daemon=True)
        self._vocab_opening.start()

    def _open(self) -> None:
        try:
            self._opened = self._open_vocab()
        except Exception as error:
            self._vocab_trouble = error

    def _on_ready(self, event: Ready) -> None:
        if self._vocab_opening is None:
            self._on_loading(Loading(1.0))
        self._vocab_opening.join()
        if self._vocab_trouble is not None:
            error = self._vocab_trouble
            log.error("the vocabulary could not be opened", exc_info=error)
            self._on_load_failed(LoadFailed(f"the vocabulary could not be opened: {error}"))
            return
        if self.vocab is None:
            self.vocab = BoundedVocab(self._opened, event.info.n_ctx, *self._text_bounds)
        self.info = event.info
        self.state = READY
        self._settled.set()

    def _on_load_failed(self, event: LoadFailed) -> None:
        self.error = event.message
        self.is_refused = event.is_refusal
        self.state = FAILED
        self._settled.set()
        self._fail_open()

    def _on_restarting(self, event: Restarting) -> None:
        self.state = RESTARTING

    def _on_starting(self, event: Starting) -> None:
        """Do nothing: only the ledger needs this event."""

    def _on_reply(self, event: Reply) -> None:
        queue = self._replies.get(event.id)
        if queue is not None:
            queue.put(event)

    def _on_closed(self, event: Closed) -> None:
        if self.state is not FAILED:
            self.state = CLOSED
        self._settled.set()
        self._fail_open()

    def _fail_open(self) -> None:
        status, message = (500, self.trouble) if self.state is FAILED else (503, "the server is shutting down")
        for id_task in list(self._results):
            results = self._results.pop(id_task, None)
            if results is not None:
                results.put(Failure(id_task, status, message))
        for id_command, queue in list(self._replies.items()):
            queue.put(Reply(id_command, {}, (status, message)))

    _HANDLERS: dict[type, Callable[[Any, Any], None]] = {
        Loading: _on_loading,
        Ready: _on_ready,
        LoadFailed: _on_load_failed,
        Reply: _on_reply,
        Closed: _on_closed,
        Restarting: _on_restarting,
        Starting: _on_starting,
    }


# ---- how often a slot becomes free -----------------------------------------------------------------------------------

SHORTEST_S, LONGEST_S = 1.0, 60.0  # bounds of the mean
WEIGHT = 0.2  # of the latest interval
PAUSE_S = 300.0  # longer intervals don't count


class EndInterval:
    """The mean time between the ends of two tasks: how long a client should wait before it tries again."""

    def __init__(self) -> None:
        self._mean_s = SHORTEST_S
        self._t_last = float("-inf")

    @property
    def mean_s(self) -> float:
        return min(max(self._mean_s, SHORTEST_S), LONGEST_S)

    def note_end(self, now: float, is_busy: bool) -> None:
        """Note the end of a task. If no other task is open (not `is_busy`), the next interval doesn't count."""
        gap = now - self._t_last
        if gap < PAUSE_S:
            self._mean_s += WEIGHT * (gap - self._mean_s)
        self._t_last = now if is_busy else float("-inf")
