"""The engine's loop: admit -> plan -> decode -> sample -> emit. The only owner of the backend.

Runs on one thread (`run`), in the web process or in one of its own. Messages come in through `post` from any thread;
everything that leaves goes out as one `Frame` per step through the `emit` callback. What to do next is decided in
`planner`, what stays in the KV cache in `prompt_cache`, how a token is drawn in `sampling`: this module only keeps
the order, and keeps a failing task from taking others with it.

Not taken: locks. Other threads see only frames.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from server.engine import planner, prompt_cache, sampling
from server.engine.backend_types import DECODE_ABORTED, DECODE_NO_ROOM, DECODE_OK, Backend
from server.engine.commands import Commands
from server.engine.config import EngineConfig
from server.engine.meter import Meter
from server.engine.planner import UNLIMITED, Job, Span
from server.engine.self_extend import GroupAttention
from server.engine.slot import Run, Slot
from server.engine.task import (STOP_EOS, STOP_LIMIT, STOP_WORD, Cancel, Close, Command, Event, Failure, Final, Frame,
                                Piece, Progress, Snapshot, Task, TokenProbs)
from server.engine.text import TextStream
from server.errors import ApiError
from server.log import get_logger

SNAPSHOT_INTERVAL_S = 0.1
MAX_TOKENS_TO_FINISH_CHARACTER = 4
SYSTEM = -1
NOBODY: frozenset[int] = frozenset()

log = get_logger("engine")


@dataclass(slots=True, frozen=True)
class Waiting:
    """A task in the queue, and when it came."""

    task: Task
    t_arrived: float


class Scheduler:
    """Slots, the queue of waiting tasks, and the loop over them."""

    def __init__(self, backend: Backend, config: EngineConfig, emit: Callable[[Frame], None],
                 clock: Callable[[], float] = time.perf_counter) -> None:
        self.slots = [Slot(i, i, backend.info.n_ctx_slot) for i in range(config.n_slots)]
        self._system = Slot(SYSTEM, config.n_slots, backend.info.n_ctx_slot)
        self._commands = Commands(backend, self.slots, self._system, tuple(
            (i, scale) for i, (_, scale) in enumerate(config.lora) if scale))
        self._meter = Meter()
        self._backend = backend
        self._config = config
        self._emit = emit
        self._clock = clock
        self._inbox: SimpleQueue = SimpleQueue()
        self._waiting: deque[Waiting] = deque()
        self._events: list[Event] = []
        self._in_prefill: frozenset[int] = frozenset()
        self._deadline: float | None = None
        self._t_snapshot = 0.0
        self._is_changed = True
        self._running: list[Slot] = []  # slots with a task, in order of arrival
        self._served: dict[tuple, int] = {}
        self._handlers = {Task: self._enqueue, Cancel: self._cancel, Close: self._close,
                          Command: self._commands.post}

    # ---- any thread -------------------------------------------------------------------------------------------

    def post(self, message: Task | Cancel | Command | Close) -> None:
        """Hand a message to the loop. A cancel interrupts a prefill that nobody else has a part in."""
        self._inbox.put(message)
        if isinstance(message, Cancel) and self._in_prefill == {message.id}:
            self._backend.abort()

    # ---- the engine's thread ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Step until closed. An error of ours fails the running tasks, not the loop."""
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
        """Take the messages that came, then evaluate one batch and draw from it."""
        self._receive(block and not self._is_busy())
        self._expire()
        if self._commands:
            self._events += self._commands.run_ready()
            self._is_changed = True
        self._admit()
        spans = self._plan()
        if spans:
            if self._is_changed:
                self._flush()  # a long batch must not hide that a slot is at work
            started = self._clock()
            is_generating = self.slots[spans[0].id].run.next_token is not None
            self._evaluate(spans)
            self._meter.step(self._clock() - started, is_generating)

    def _is_busy(self) -> bool:
        return bool(self._running or self._waiting or self._commands)

    def _receive(self, block: bool) -> None:
        while block or not self._inbox.empty():
            message = self._inbox.get()
            self._handlers[type(message)](message)
            block = False

    def _enqueue(self, task: Task) -> None:
        if self._deadline is not None:
            self._fail(task.id, 503, "the server is shutting down")
        elif task.id_slot >= len(self.slots):
            self._fail(task.id, 400, f"id_slot: there is no slot {task.id_slot}; this server has {len(self.slots)}")
        elif len(self._waiting) >= self._config.max_queue + sum(slot.run is None for slot in self.slots):
            self._fail(task.id, 503, f"all slots are busy and {len(self._waiting)} requests are waiting; try later")
        else:
            self._waiting.append(Waiting(task, self._clock()))
            self._is_changed = True

    def _cancel(self, message: Cancel) -> None:
        for waiting in self._waiting:
            if waiting.task.id == message.id:
                self._waiting.remove(waiting)
                self._is_changed = True
                return
        for slot in self._running:
            if slot.run.task.id == message.id:
                self._drop(slot)
                return

    def _close(self, message: Close) -> None:
        self._deadline = self._clock() + message.grace_s
        while self._waiting:
            self._fail(self._waiting.popleft().task.id, 503, "the server is shutting down")

    def _expire(self) -> None:
        if self._deadline is not None and self._clock() >= self._deadline:
            self._fail_all(503, "the server is shutting down")

    # ---- admit ------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give waiting tasks to idle slots, in order; a task that wants a busy slot lets others pass."""
        if not self._waiting or self._running and not self._config.cont_batching:
            return
        reserved = self._commands.reserved() if self._commands else ()
        free = [slot for slot in self.slots if slot.run is None and slot.id not in reserved]
        passed: list[Waiting] = []
        while self._waiting and free:
            waiting = self._waiting.popleft()
            task = waiting.task
            if task.id_slot >= 0 and self.slots[task.id_slot] not in free:
                passed.append(waiting)
                continue
            self._is_changed = True
            try:
                slot = self._place(waiting, free)
            except ApiError as error:
                self._fail(task.id, error.status, error.message, error.type, **error.extra)
            except Exception:
                log.exception("task %d could not be started", task.id)
                self._fail(task.id, 500, "the engine could not start this request; see the server's log")
            else:
                if slot.run is not None:
                    free.remove(slot)
        self._waiting.extendleft(reversed(passed))

    def _place(self, waiting: Waiting, free: list[Slot]) -> Slot:
        """Start a task on the slot it wants, or on the free one that suits it best."""
        task = waiting.task
        prompt = self._system.tokens + list(task.prompt)
        slot = self.slots[task.id_slot] if task.id_slot >= 0 else prompt_cache.choose_slot(
            free, prompt, task.cache_prompt, self._lora_of(task))
        self._start(slot, waiting, prompt)
        return slot

    def _lora_of(self, task: Task) -> tuple[tuple[int, float], ...]:
        return self._commands.lora if task.lora is None else task.lora

    def _start(self, slot: Slot, waiting: Waiting, prompt: list[int]) -> None:
        task, n_asked = waiting.task, len(prompt)
        prompt = self._fit_prompt(slot, task, prompt)
        stages = sampling.chain(task.sampling, self._backend.facts)
        sampler = self._backend.new_sampler(stages, task.sampling.grammar)
        now = self._clock()
        try:
            n_cached = self._reuse(slot, task, prompt)
        except BaseException:
            sampler.close()
            raise
        slot.run = Run(task, prompt, n_cached, sampler, TextStream(task.stop, task.n_indent), waiting.t_arrived, now,
                       truncated=len(prompt) < n_asked)
        self._running.append(slot)
        self._running.sort(key=lambda slot: slot.run.task.id)
        self._meter.n_reused += n_cached
        self._meter.queue_wait(now - waiting.t_arrived)
        n_history = sampling.history_length(task.sampling, slot.n_ctx)
        if n_history:
            history = prompt if task.sampling.penalty_prompt is None else task.sampling.penalty_prompt
            sampler.accept(history[-n_history:])
        if task.progress:
            self._report_progress(slot)
        if not prompt:
            self._finish(slot, STOP_LIMIT)

    def _reuse(self, slot: Slot, task: Task, prompt: list[int]) -> int:
        """Set the slot's cache to what it, another slot or the system prompt has of `prompt`; how many tokens."""
        lora = self._lora_of(task)
        if self._config.n_group > 1 or slot.lora != lora:
            prompt_cache.trim(self._backend, slot, 0)
        slot.lora = lora
        if self._config.n_group > 1:
            slot.positions = GroupAttention(self._config.n_group, self._config.group_width)
            return 0
        others = (self._system, *self.slots) if task.cache_prompt else (self._system,)
        donors = [other for other in others if other is not slot and other.tokens and other.lora == lora]
        return prompt_cache.reuse_prefix(self._backend, slot, prompt, task.cache_prompt, donors)

    def _fit_prompt(self, slot: Slot, task: Task, prompt: list[int]) -> list[int]:
        if len(prompt) < slot.n_ctx:
            return prompt
        if self._config.shift_context:
            return prompt_cache.cut_prompt(prompt, slot.n_ctx, self._n_keep(task, prompt))
        raise ApiError(400, f"the prompt has {len(prompt)} tokens, the context of a slot holds {slot.n_ctx}; "
                       "shorten it, or start the server with a larger --ctx-size or with --context-shift",
                       "exceed_context_size_error", n_prompt_tokens=len(prompt), n_ctx=slot.n_ctx)

    def _n_keep(self, task: Task, prompt: list[int]) -> int:
        return len(prompt) if task.n_keep < 0 else len(self._system.tokens) + task.n_keep

    # ---- plan and decode --------------------------------------------------------------------------------------

    def _plan(self) -> list[Span]:
        """The rows of the next batch. One batch has one set of adapters; sets take turns."""
        running = self._running
        if not running:
            return []
        if len(running) > 1 and self._backend.adapters:
            running = self._turn(running)
        self._backend.set_lora(running[0].lora)
        jobs = [self._job(slot) for slot in running]
        is_prefill = any(job.is_prefill for job in jobs)
        self._in_prefill = frozenset(slot.run.task.id for slot in running) if is_prefill else NOBODY
        return planner.plan(jobs, self._backend.info.n_batch, self._backend.info.n_batch)

    def _turn(self, running: list[Slot]) -> list[Slot]:
        """Of slots with different adapters, those whose set has waited longest."""
        sets = {slot.lora for slot in running}
        if len(sets) == 1:
            return running
        turn = min(sets, key=lambda lora: self._served.get(lora, -1))
        self._served = {lora: self._served.get(lora, -1) for lora in sets}
        self._served[turn] = self._meter.n_steps
        return [slot for slot in running if slot.lora == turn]

    def _job(self, slot: Slot) -> Job:
        is_prefill = slot.run.next_token is None
        if slot.positions is None:
            return Job(slot.id, slot.seq, len(slot.tokens), slot.pending, is_prefill)
        prompt_cache.fold(self._backend, slot)
        return Job(slot.id, slot.seq, slot.next_pos, slot.pending, is_prefill, slot.positions.room)

    def _evaluate(self, spans: Sequence[Span]) -> None:
        """Decode all spans and draw the tokens they lead to, in as few pieces as the cache has room for."""
        size = UNLIMITED
        rest = list(spans)
        while rest:
            piece, later = (rest, []) if size == UNLIMITED else planner.split(rest, size)
            code = self._backend.decode(piece)
            if code == DECODE_OK:
                self._commit(piece)
                rest = later
                continue
            if code == DECODE_NO_ROOM and prompt_cache.evict_one(self._backend, self.slots):
                continue
            if code == DECODE_NO_ROOM and (n_rows := sum(len(span) for span in piece)) > 1:
                size = n_rows // 2
                continue
            self._undo(piece)
            if code == DECODE_ABORTED:
                return
            self._isolate(piece, code)
            rest = [span for span in later if self.slots[span.id].run is not None]

    def _isolate(self, piece: list[Span], code: int) -> None:
        """A piece can't be decoded: with one task in it, fail that one; else let each be tried alone."""
        if len({span.id for span in piece}) > 1:
            for span in piece:
                if self.slots[span.id].run is not None:
                    self._evaluate([span])
            return
        slot = self.slots[piece[0].id]
        if slot.run is None:
            return  # its state was lost with the step
        message = ("the KV cache has no room left for this request" if code == DECODE_NO_ROOM
                   else f"llama_decode failed with code {code}")
        log.error("task %d: %s", slot.run.task.id, message)
        self._fail(slot.run.task.id, 500, message)
        self._drop(slot, keep_cache=False)

    def _undo(self, piece: Sequence[Span]) -> None:
        """Drop what an unsuccessful decode may have left behind the tokens that are known to be in the cache.

        A recurrent model can't: its state is lost, and with it the task.
        """
        for slot in {self.slots[span.id] for span in piece}:
            n = len(slot.tokens)
            if prompt_cache.trim(self._backend, slot, n) < n:
                self._fail(slot.run.task.id, 500, "the model's state was lost in an interrupted step; ask again")
                self._drop(slot, keep_cache=False)

    def _commit(self, piece: Sequence[Span]) -> None:
        row = -1
        for span in piece:
            row += len(span)
            slot = self.slots[span.id]
            slot.tokens.extend(span.tokens)
            if slot.positions is not None:
                slot.positions.pos += len(span)
            run = slot.run
            if run.next_token is None:
                self._meter.n_prompt += len(span)
                if self._is_out_of_time(run):
                    self._finish(slot, STOP_LIMIT)
                    continue
                if run.task.progress:
                    self._report_progress(slot)
            if not span.output:
                continue
            try:
                self._draw(slot, run, row)
            except ApiError as error:
                self._fail(run.task.id, error.status, error.message, error.type, **error.extra)
                self._drop(slot)
            except Exception:
                log.exception("task %d: drawing a token failed", run.task.id)
                self._fail(run.task.id, 500, "drawing a token failed; see the server's log")
                self._drop(slot, keep_cache=False)

    # ---- sample and emit --------------------------------------------------------------------------------------

    def _draw(self, slot: Slot, run: Run, row: int) -> None:
        """Draw the next token of a slot whose logits are in batch row `row`, and see whether it ends the task."""
        if run.task.n_predict == 0:
            run.t_last = self._clock()
            self._meter.prompt_done(len(run.prompt) - run.n_cached, run.t_last - run.t_start)
            self._finish(slot, STOP_LIMIT)
            return
        probs: tuple[TokenProbs, ...] = ()
        if run.task.sampling.n_probs:
            probs = (run.sampler.sample_probs(row, run.task.sampling.n_probs),)
            token = probs[0].token
        else:
            token = run.sampler.sample(row)
        self._count(run)
        if token in self._backend.eog_tokens:
            self._events.append(Piece(run.task.id, (token,), "", probs))
            self._finish(slot, STOP_EOS)
            return
        text = run.text.feed(self._backend.piece(token))
        timings = run.timings() if run.task.timings else None
        self._events.append(Piece(run.task.id, (token,), text, probs, timings))
        if run.text.stopping_word:
            self._finish(slot, STOP_WORD)
        elif run.text.is_outdented or self._is_at_limit(run) or not self._has_room(slot, run):
            self._finish(slot, STOP_LIMIT)
        else:
            run.next_token = token

    def _count(self, run: Run) -> None:
        now = self._clock()
        run.n_decoded += 1
        self._meter.n_predicted += 1
        if run.n_decoded == 1:
            run.t_first = now
            self._meter.prompt_done(len(run.prompt) - run.n_cached, now - run.t_start)
            self._meter.first_token(now - run.t_arrived)
        else:
            self._meter.token(now - run.t_last)
        run.t_last = now

    def _is_out_of_time(self, run: Run) -> bool:
        limit = run.task.t_max_prompt_ms
        return limit > 0 and (self._clock() - run.t_start) * 1e3 > limit and len(run.prompt) > 0

    def _is_at_limit(self, run: Run) -> bool:
        n_predict, t_max = run.task.n_predict, run.task.t_max_predict_ms
        if t_max > 0 and run.text.has_new_line and (run.t_last - run.t_first) * 1e3 > t_max:
            return True
        if n_predict < 0 or run.n_decoded < n_predict:
            return False
        return not run.text.is_inside_character or run.n_decoded >= n_predict + MAX_TOKENS_TO_FINISH_CHARACTER

    def _has_room(self, slot: Slot, run: Run) -> bool:
        """Room for one more token in the slot's context, made by shifting if that is switched on."""
        if len(slot.tokens) < slot.n_ctx:
            return True
        run.truncated = True
        if not (self._config.shift_context and self._backend.can_shift):
            return False
        n = prompt_cache.shift(self._backend, slot, self._n_keep(run.task, run.prompt), run.task.n_discard)
        log.debug("task %d: context full, dropped %d tokens", run.task.id, n)
        return True

    def _finish(self, slot: Slot, stop: str) -> None:
        run = slot.run
        text = run.text.finish()
        if run.text.stopping_word:
            stop = STOP_WORD
        self._events.append(Final(
            id=run.task.id, id_slot=slot.id, text=text, stop=stop, stopping_word=run.text.stopping_word,
            n_prompt=len(run.prompt), n_predicted=run.n_decoded, n_cached=len(slot.tokens), truncated=run.truncated,
            timings=run.timings()))
        self._meter.text_done(run.n_decoded, run.t_last - run.t_first)
        self._release(slot, stop)

    def _drop(self, slot: Slot, keep_cache: bool = True) -> None:
        """End a task without an answer. What an unfinished `cache_prompt: false` request computed is freed."""
        keep_cache = keep_cache and slot.run.task.cache_prompt
        self._release(slot, "cancelled")
        if not keep_cache:
            prompt_cache.trim(self._backend, slot, 0)

    def _release(self, slot: Slot, stop: str) -> None:
        slot.latest = slot.state(stop)
        slot.run.sampler.close()
        slot.run = None
        self._running.remove(slot)
        slot.t_used = self._clock()
        self._is_changed = True

    def _fail(self, id_task: int, status: int, message: str, type: str | None = None, **extra: object) -> None:
        self._events.append(Failure(id_task, status, message, type, extra))
        self._is_changed = True

    def _fail_all(self, status: int, message: str) -> None:
        for slot in list(self._running):
            self._fail(slot.run.task.id, status, message)
            self._drop(slot, keep_cache=False)

    def _report_progress(self, slot: Slot) -> None:
        run = slot.run
        self._events.append(Progress(run.task.id, len(run.prompt), run.n_cached, len(slot.tokens),
                                     (self._clock() - run.t_start) * 1e3))

    def _flush(self) -> None:
        """Send what this step had to tell; a snapshot goes along when slots or queue changed, or when it is old."""
        now = self._clock()
        snapshot = None
        if self._is_changed or now - self._t_snapshot >= SNAPSHOT_INTERVAL_S:
            snapshot = self.snapshot()
            self._t_snapshot, self._is_changed = now, False
        if self._events or snapshot is not None:
            self._emit(Frame(tuple(self._events), snapshot))
            self._events.clear()

    def snapshot(self) -> Snapshot:
        """The state as it is now."""
        meter = self._meter
        return Snapshot(
            slots=tuple(slot.state() for slot in self.slots), n_deferred=len(self._waiting),
            kv_used=prompt_cache.count_cells((*self.slots, self._system)), n_ctx=self._backend.info.n_ctx,
            n_steps=meter.n_steps, n_prompt_tokens=meter.n_prompt, n_predicted_tokens=meter.n_predicted,
            n_reused_tokens=meter.n_reused, n_stalls=meter.n_stalls, prompt_ms=meter.prompt_ms,
            predicted_ms=meter.predicted_ms, histograms=meter.histograms())

    def _drain(self) -> None:
        """Answer what was posted too late."""
        self._receive(block=False)
        self._flush()
