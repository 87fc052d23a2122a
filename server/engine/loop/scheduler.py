"""The engine's loop: receive -> run commands -> admit -> plan -> guess -> decode -> draw -> flush.

`run` runs on the main thread of the engine's process, or on the thread `engine` of the web process. Any thread may send
messages with `post`. This module takes messages, sets the order of a step and sends its events in frames (`emit`).
`admission` starts tasks on slots, `batching` plans the next batch, `evaluation` decodes it, `answers` draws tokens and
ends tasks. They share one `EngineState`.

Not taken: locks. Only the engine's thread changes the `EngineState`.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

from server.engine.cache.block_files import StoredBlock
from server.engine.loop import answers
from server.engine.loop.admission import Admission
from server.engine.loop.answers import Answers
from server.engine.loop.batching import Batching
from server.engine.loop.commands import WITH_FILES, Commands
from server.engine.loop.embedder import Embedder
from server.engine.loop.evaluation import Evaluation
from server.engine.loop.media_embedder import MediaEmbedder
from server.engine.loop.media_steps import MediaSteps
from server.engine.loop.prefixes import Prefixes
from server.engine.loop.ranks import Ranks
from server.engine.loop.state import EngineState
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import (
    STOP_ABORT,
    STOP_LIMIT,
    Cancel,
    Close,
    Command,
    Embed,
    Event,
    Final,
    Frame,
    Piece,
    Snapshot,
    Starting,
    Task,
    Tasks,
    Timings,
)
from server.engine.seam.turns import Turns
from server.engine.slots.backend import Backend
from server.engine.slots.media_desk import MediaReady
from server.engine.slots.planner import Span
from server.engine.slots.slot import Slot
from server.errors import ApiError
from server.log import get_logger
from server.records import record

T = TypeVar("T")
SNAPSHOT_INTERVAL_S = 0.1  # seconds after which a snapshot is sent again though neither slots nor queue changed
IDENTIFY_S = 0.5  # seconds that a closing engine with a disk cache waits for the thread `identity` at most

log = get_logger("engine")


@record(frozen=True)
class Identified:
    """Tells the loop that the search for the model's identity has ended."""

    found: list[StoredBlock]  # the disk cache's blocks with this identity


class Scheduler:
    """One engine: its slots, its waiting tasks and the loop of steps."""

    def __init__(
        self,
        backend: Backend,
        config: EngineConfig,
        emit: Callable[[Frame], None],
        clock: Callable[[], float] = time.perf_counter,
        work_clock: Callable[[], float] = time.thread_time,
        turns: Turns | None = None,
    ) -> None:
        self._turns = turns or Turns("")
        self._inbox: SimpleQueue = SimpleQueue()
        self._state = EngineState(
            backend, config, clock, work_clock, lambda id_task: emit(Frame((Starting(id_task),))), self._inbox.put
        )
        self._answers = answers = Answers(self._state)
        self._prefixes = prefixes = Prefixes(self._state)
        self._commands = Commands(self._state, prefixes)
        self._admission = Admission(self._state, answers, prefixes, self._commands)
        self._batching = Batching(self._state, prefixes, self._turns)
        self._evaluation = Evaluation(self._state, answers, prefixes)
        self._media_steps = MediaSteps(self._state, self._batching, self._evaluation, prefixes)
        self._emit = emit
        self._n_steps = self._n_rows = 0
        self._leaves_core = False  # a core is left to another engine that loads
        self._embedder = Embedder(self._state)
        self._media_embedder = MediaEmbedder(self._state, self._embedder)
        self._ranks = Ranks(self._state)
        self._deadline: float | None = None
        self._deadlines = Deadlines()
        self._t_snapshot = 0.0
        self._n_kept = 0  # events held back for a later frame
        self._t_sent = self._t_flush = 0.0
        self._handlers: dict[type, Callable[[Any], None]] = {
            Task: self._enqueue,
            Tasks: self._enqueue_all,
            Cancel: self._cancel,
            Close: self._close,
            Command: self._post_command,
            MediaReady: self._finish_media,
            Embed: self._embed,
            Identified: self._use_identity,
        }
        self._identifying: threading.Thread | None = None
        if config.slot_files or prefixes.blocks.has_disk:
            self._identify()

    @property
    def slots(self) -> list[Slot]:
        """All slots, by id."""
        return self._state.slots

    # ---- any thread -------------------------------------------------------------------------------------------

    def post(self, message: Task | Tasks | Embed | Cancel | Command | Close) -> None:
        """Send the loop a message. A `Cancel` of the only task in `Batching.in_prefill` also aborts its decode."""
        self._inbox.put(message)
        if isinstance(message, Cancel) and self._batching.in_prefill == {message.id}:
            self._state.backend.abort()

    def pulse(self) -> tuple[int, int, bool]:
        """A count that grows with each step and batch, the latest work's size in rows, and whether there is work."""
        return self._n_steps, self._n_rows, self._is_busy()

    # ---- the engine's thread ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Run steps until `Close` has come and no work is left. If a step raises an error, all tasks on slots and all
        embeddings fail, and the loop goes on."""
        self._flush()
        while self._deadline is None or self._is_busy():
            try:
                self.step()
            except Exception:
                log.exception("a step of the engine failed")
                self._fail_all(500, "the engine failed in this step; see the server's log")
            self._flush()
        self._drain()

    def step(self, block: bool = True) -> None:
        """Run one step. With `block` it waits for a message if there is no work."""
        state = self._state
        self._n_steps += 1
        self._receive(block and not self._is_busy())
        self._expire()
        if self._commands:
            state.events += self._commands.run_ready()
            state.is_changed = True
        self._admission.admit()
        self._prefixes.share_room()
        self._ranks.close_up()
        spans = self._batching.plan()
        if state.is_changed and spans:
            self._flush()  # before a long batch: the snapshot must show which slots work
        with self._turns:
            self._leave_core()
            self._compute(spans)

    def _leave_core(self) -> None:
        if self._turns.is_loading != self._leaves_core and not self._state.config.exact:
            self._leaves_core = not self._leaves_core
            self._state.backend.leave_cores(int(self._leaves_core))

    def _compute(self, spans: list[Span]) -> None:
        state = self._state
        is_read = any(slot.run.next_token is not None for slot in state.running)
        if spans:
            if any(slot.run.is_replaying for slot in state.running):
                answers.add_known_tokens(state, spans)
            if state.speculation.is_on:
                state.speculation.extend(spans, state.slots)
            self._n_rows = sum(map(len, spans))
            started = state.clock()
            self._evaluation.evaluate(spans)
            seconds = state.clock() - started
            state.meter.step(seconds, is_read)
            self._batching.observe(seconds * 1e3)
            if not self._batching.is_reading:
                self._ranks.observe(spans, seconds)
            self._prefixes.park(self._n_rows)
        if is_read and self._batching.is_reading:
            return  # generating slots have waited for this prompt step, so they come next
        if state.media.has_layouts:
            self._step_media()
        n_rows = self._embedder.plan(is_busy=bool(state.running)) if self._embedder else 0
        if n_rows:
            self._n_steps, self._n_rows = self._n_steps + 1, n_rows
            state.events += self._embedder.compute()
        if self._media_embedder:
            self._step_media_embedder()

    def _step_media(self) -> None:
        n_rows = self._media_steps.begin()
        if n_rows:
            if self._state.is_changed:
                self._flush()
            self._n_steps += 1
            self._n_rows = n_rows
            self._run_timed(self._media_steps.step)

    def _step_media_embedder(self) -> None:
        n_rows = self._media_embedder.plan(bool(self._state.running), self._media_steps.free_projector())
        if n_rows:
            self._n_steps, self._n_rows = self._n_steps + 1, n_rows
            self._state.events += self._run_timed(self._media_embedder.step)

    def _run_timed(self, work: Callable[[], T]) -> T:
        """Do work on media. If generating slots have to wait for it for long, count a stall."""
        is_generating = any(slot.run.next_token is not None for slot in self._state.running)
        started = self._state.clock()
        result = work()
        self._state.meter.note_beside(self._state.clock() - started, is_generating)
        return result

    def _is_busy(self) -> bool:
        return bool(self._state.busy or self._admission or self._commands or self._embedder or self._media_embedder)

    def _receive(self, block: bool) -> None:
        while block and self._inbox.empty() and self._prefixes.blocks.save_idle(self.slots):
            pass
        while block or not self._inbox.empty():
            message = self._inbox.get()
            self._handlers[type(message)](message)
            block = False

    def _enqueue(self, task: Task) -> None:
        if self._deadline is not None:
            self._state.fail(task.id, 503, "the server is shutting down")
            return
        if task.t_max_ms > 0:
            self._deadlines.add(task.id, self._state.clock() + task.t_max_ms / 1e3)
        if task.media:
            self._take_media(task)
        else:
            self._admission.enqueue(task)

    def _enqueue_all(self, message: Tasks) -> None:
        for task in message.tasks:
            self._enqueue(task)

    def _take_media(self, task: Task | Embed) -> None:
        """Have the files of a task or `Embed` prepared, or refuse it. `_finish_media` gets the result."""
        try:
            self._state.media.take(task, self._state.config.max_queue)
            self._state.is_changed = True
        except ApiError as error:
            self._state.refuse(task.id, error)

    def _finish_media(self, message: MediaReady) -> None:
        task, error = self._state.media.finish(message), message.error
        if task is None:
            return
        if error is not None:
            self._state.refuse(task.id, error)
        elif isinstance(task, Embed):
            self._media_embedder.enqueue(task)
        elif task.only_counts:
            self._end(task.id, STOP_LIMIT, len(task.prompt) + self._state.media.get_layout(task.id).count_extra())
            self._state.media.forget(task.id)
            self._state.is_changed = True
        else:
            self._admission.enqueue(task)

    def _end(self, id_task: int, stop: str, n_prompt: int = 0) -> None:
        """Report the end of a task that never had a slot."""
        no_time = Timings(0, 0, 0.0, 0, 0.0)
        self._state.events.append(Final(id_task, -1, "", stop, "", n_prompt, 0, 0, False, no_time))

    def _post_command(self, message: Command) -> None:
        if message.name in WITH_FILES:
            self._identify()
        self._commands.post(message)

    def _identify(self) -> None:
        """Find the model's identity: from known hashes, else in the thread `identity`."""
        if self._identifying is None and self._state.backend.identity.is_open:
            if self._state.backend.identity.recall():
                facts: Any = self._state.backend.identity.facts
                self._use_identity(Identified(self._prefixes.blocks.scan(facts)))
            else:
                self._identifying = threading.Thread(target=self._read_files, name="identity", daemon=True)
                self._identifying.start()

    def _read_files(self) -> None:
        """The body of the thread `identity`, because hashing takes seconds per gigabyte."""
        identity, found = self._state.backend.identity, []
        try:
            identity.find(self._is_busy)
            if identity.facts is not None:
                found = self._prefixes.blocks.scan(identity.facts)
        except Exception:
            log.exception("the model's files, or those of --cache-disk, could not be read")
            identity.fault = "see the server's log"
        self._inbox.put(Identified(found))

    def _use_identity(self, message: Identified) -> None:
        identity = self._state.backend.identity
        if identity.facts is not None:
            self._prefixes.blocks.open(message.found)
        else:
            log.warning("slots can't be saved and the disk cache is off: %s", identity.fault)

    def _embed(self, message: Embed) -> None:
        if self._deadline is not None:
            self._state.fail(message.id, 503, "the server is shutting down")
        elif message.media:
            self._take_media(message)
        else:
            self._state.events += self._embedder.post(message)

    def _cancel(self, message: Cancel) -> None:
        if (
            self._embedder.cancel(message.id)
            or self._media_embedder.cancel(message.id)
            or self._commands.withdraw(message.id)
        ):
            return
        is_waiting = self._admission.cancel(message.id)
        if self._state.media.forget(message.id) or is_waiting:
            self._state.is_changed = True
            if message.finish:
                self._end(message.id, STOP_ABORT)
        elif slot := self._slot_of(message.id):
            if message.finish:
                self._answers.finish(slot, STOP_ABORT)
            else:
                self._state.drop(slot)

    def _slot_of(self, id_task: int) -> Slot | None:
        return next((slot for slot in self._state.busy if slot.run.task.id == id_task), None)

    def _close(self, message: Close) -> None:
        self._deadline = self._state.clock() + message.grace_s
        self._admission.refuse_all(503, "the server is shutting down")
        for id_task in self._state.media.list_waiting():
            self._state.fail(id_task, 503, "the server is shutting down")

    def _expire(self) -> None:
        if self._deadline is not None and self._state.clock() >= self._deadline:
            self._end_all()
        for id_task in self._deadlines.take_due(self._state.clock()):
            self._time_out(id_task)

    def _end_all(self) -> None:
        """The grace period of `Close` is over: tasks that have generated text end with that text. All others fail, also
        those that are still being replayed."""
        for slot in self._state.busy:
            if slot.run.n_decoded and not slot.run.is_replaying:
                self._answers.finish(slot, STOP_LIMIT)
        self._fail_all(503, "the server is shutting down")

    def _time_out(self, id_task: int) -> None:
        """A task's time limit is over: end it with its text so far, or fail it if it has none."""
        slot = self._slot_of(id_task)
        if slot is not None and slot.run.n_decoded:
            self._answers.finish(slot, STOP_LIMIT)
        elif slot is not None or self._state.media.forget(id_task) or self._admission.cancel(id_task):
            if slot is not None:
                self._state.drop(slot)
            self._state.fail(id_task, 504, "t_max_ms: the time limit of this request ended before its first token")

    def _fail_all(self, status: int, message: str) -> None:
        self._state.fail_all(status, message)
        self._state.events += self._embedder.fail_all(status, message)
        self._state.events += self._media_embedder.fail_all(status, message)

    # ---- emit -------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Send the events so far as one frame, unless they can wait. A snapshot is added if slots or queue changed or
        the latest snapshot is old.

        Each frame wakes threads on cores that may be computing. So pieces alone wait for `stream_interval_s`, except
        during a prefill. If no running answer is streamed, they wait for the next snapshot.
        """
        state, now = self._state, self._state.clock()
        step_s, self._t_flush = now - self._t_flush, now
        snapshot = None
        if state.is_changed or now - self._t_snapshot >= SNAPSHOT_INTERVAL_S:
            snapshot = self.snapshot()
            self._t_snapshot, state.is_changed = now, False
        elif not state.events or not self._is_awaited(now + step_s):
            return
        streams = frozenset(slot.run.task.id for slot in state.busy if slot.run.task.stream)
        self._emit(Frame(join_pieces(state.events, streams) if self._n_kept else tuple(state.events), snapshot))
        self._n_kept, self._t_sent = 0, now
        state.events.clear()

    def _is_awaited(self, t_next: float) -> bool:
        """Whether a new event can't wait until `t_next`, the expected end of the next step."""
        state = self._state
        new, self._n_kept = state.events[self._n_kept :], len(state.events)
        if not all(type(event) is Piece for event in new):
            return True
        if not any(slot.run.task.stream for slot in state.busy):
            return False
        return bool(self._batching.in_prefill) or t_next - self._t_sent >= state.config.stream_interval_s

    def snapshot(self) -> Snapshot:
        state, meter = self._state, self._state.meter
        return Snapshot(
            slots=tuple(slot.make_state() for slot in state.slots),
            preparing=state.media.at_work,
            n_deferred=self._admission.n_awaited + len(state.media),
            kv_used=self._prefixes.count_kv_used(),
            n_ctx=state.backend.info.n_ctx,
            n_steps=meter.n_steps,
            n_prompt_tokens=meter.n_prompt,
            n_predicted_tokens=meter.n_predicted,
            n_timed_tokens=meter.n_timed,
            n_reused_tokens=meter.n_reused,
            n_stalls=meter.n_stalls,
            n_asides=meter.n_asides,
            n_drafts=state.speculation.n_drafts,
            n_draft_tokens=state.speculation.n_drafted,
            n_draft_accepted=state.speculation.n_accepted,
            prompt_ms=meter.prompt_ms,
            predicted_ms=meter.predicted_ms,
            sampler_ms=meter.sampler_ms,
            histograms=meter.get_histograms(),
        )

    def _drain(self) -> None:
        """Answer messages that came too late, and save the slots' texts to the disk cache, if there is one."""
        self._state.media.close()
        if self._identifying is not None and self._prefixes.blocks.has_disk:
            self._identifying.join(IDENTIFY_S)
        self._receive(block=False)
        self._flush()
        self._prefixes.close()


# ---- pieces that were held back --------------------------------------------------------------------------------------

# An answer that isn't streamed is read only at its end. A frame for each of its tokens would wake the web process for
# nothing (docs/performance.md).


def join_pieces(events: Sequence[Event], streams: frozenset[int] = frozenset()) -> tuple[Event, ...]:
    """The events, with each task's pieces joined into one, up to the task's next event of another kind. Tasks whose ids
    are in `streams` keep their pieces."""
    parts: list[Event | list[Piece]] = []
    open_parts: dict[int, list[Piece]] = {}
    for event in events:
        if type(event) is not Piece:
            open_parts.pop(event.id, None)
            parts.append(event)
        elif event.id in streams:
            parts.append(event)
        elif event.id in open_parts:
            open_parts[event.id].append(event)
        else:
            open_parts[event.id] = [event]
            parts.append(open_parts[event.id])
    return tuple(_join(part) if type(part) is list else part for part in parts)  # type: ignore[misc]


def _join(pieces: list[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        pieces[0].id,
        tuple(token for piece in pieces for token in piece.tokens),
        "".join(piece.text for piece in pieces),
        tuple(probs for piece in pieces for probs in piece.probs),
        pieces[-1].timings,
    )


# ---- time limits of tasks --------------------------------------------------------------------------------------------

# A task that ends in time stays in the heap until its deadline. Not taken: a timer thread. A task can end only between
# two steps anyway.


class Deadlines:
    """Task ids by the time, in the clock's seconds, at which the tasks have to end."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []

    def add(self, id_task: int, t_end: float) -> None:
        heapq.heappush(self._heap, (t_end, id_task))

    def take_due(self, now: float) -> list[int]:
        """Remove and return the ids whose time has passed, the longest overdue first."""
        ids = []
        while self._heap and self._heap[0][0] <= now:
            ids.append(heapq.heappop(self._heap)[1])
        return ids
