"""The engine as a supervised process: the default transport. If the engine dies, requests go on after a pause.

The thread `engine-supervisor` starts the process and watches it. An engine that hangs (it sends nothing, or makes no
step while there is work) or sends an invalid message is killed. When the process has ended, the thread starts another
one, which gets the open tasks and settings from `ledger`. The clients' streams stay open.

After `max_deaths` without progress within `window_s` the supervisor gives up: all open tasks fail, and later requests
get the reason. But it goes on while the ledger finds suspects or tasks at fault. It also gives up if the first engine
doesn't get ready.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from server.engine.client.child import Child
from server.engine.client.ledger import Ledger
from server.engine.seam.config import EngineConfig, step_limit_s
from server.engine.seam.task import (
    Close,
    Closed,
    Command,
    Embed,
    Event,
    Failure,
    Frame,
    LoadFailed,
    Loading,
    ModelInfo,
    Ready,
    Restarting,
    Task,
    Tasks,
)
from server.engine.seam.wire import AskStacks, Codec, LogLine, Stacks, Start, WireError
from server.log import get_logger, handle_foreign, inherit, note_lost
from server.records import record, replace

log = get_logger("engine")


@record(frozen=True)
class Limits:
    """When an engine counts as hanging, and how often it is restarted. All but `max_deaths` in seconds."""

    start_s: float = 120.0  # the longest silence until it is ready (no heartbeat while a large library is opened)
    silence_s: float = 10.0  # the longest silence later
    step_s: float = 60.0  # the longest step of few rows; `config.step_limit_s` allows more for many
    beat_s: float = 1.0  # between two heartbeats
    max_deaths: int = 5  # without progress, within `window_s`; then it isn't restarted
    window_s: float = 60.0
    end_s: float = 5.0  # for a closed engine to end by itself
    backoff_s: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)  # before the first, second, ... restart without progress


class ProcessTransport:
    """Runs `command` as the engine; `first` is a running process that becomes the first engine. See `Transport`."""

    def __init__(
        self,
        config: EngineConfig,
        command: Sequence[str],
        limits: Limits = Limits(),
        first: subprocess.Popen | None = None,
    ) -> None:
        self._config = config
        self._command = tuple(command)
        self._limits = limits
        self._first = first
        self._codec = Codec()
        self._lock = threading.Lock()  # guards _ledger; its messages are sent under it, so they keep their order
        self._ledger = Ledger(tuple((i, scale) for i, (_, scale) in enumerate(config.lora) if scale))
        self._child: Child | None = None
        self._info: ModelInfo | None = None  # what the first engine reported; None until it was ready
        self._load_error, self._is_refusal = "", False
        self._is_loaded = False  # whether the current engine has loaded the model
        self._thread: threading.Thread | None = None
        self._on_frame: Callable[[Frame], None] = lambda frame: None
        self._passing_on = threading.Lock()  # held while a frame is passed on; `_lock` may be taken meanwhile
        self._closing = threading.Event()
        self._deaths: deque[float] = deque()
        self._stacks: SimpleQueue = SimpleQueue()
        self._asking = threading.Lock()  # one `AskStacks` at a time

    # ---- on the web process's threads ---------------------------------------------------------------------------

    def start(self, on_frame: Callable[[Frame], None]) -> None:
        self._on_frame = on_frame
        self._thread = threading.Thread(target=inherit(self._run), name="engine-supervisor", daemon=True)
        self._thread.start()

    def post(self, message: object) -> None:
        """Note a message in the ledger; send what the ledger lets through now."""
        with self._lock:
            self._send(self._ledger.post(message))

    def close(self, grace_s: float) -> None:
        if self._thread is None:
            return
        self._closing.set()
        child = self._child
        if child is not None:
            child.send(Close(grace_s))
            if not child.ended.wait(grace_s + self._limits.end_s):
                log.warning("the engine did not end in time and is killed")
                child.kill("it did not end in time")
        self._thread.join()

    def collect_stacks(self, timeout_s: float) -> str:
        child = self._child
        if child is None:
            return ""
        with self._asking:
            with contextlib.suppress(Empty):
                while True:  # drop answers that came after the timeout
                    self._stacks.get_nowait()
            child.send(AskStacks())
            try:
                return self._stacks.get(timeout=timeout_s)
            except Empty:
                return ""

    @property
    def step_limit_s(self) -> float:
        """See `Transport.step_limit_s`."""
        child = self._child
        return step_limit_s(self._limits.step_s, 0 if child is None else child.beat.n_rows)

    @property
    def pid(self) -> int | None:
        """The process id of the current engine; None if there is none."""
        child = self._child
        return None if child is None or child.ended.is_set() else child.process.pid

    # ---- on the supervisor's thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing.is_set() and self._run_engine():
                pass
        except Exception as error:
            log.exception("the supervisor of the engine failed")
            self._tell(LoadFailed(f"the engine can't be supervised: {error}"))
        finally:
            self._is_loaded = False
            self._tell(Closed())

    def _run_engine(self) -> bool:
        """Run one engine from start to end. False if no other is to be started."""
        try:
            child = self._start_child()
        except OSError as error:
            return self._report_failed_start(f"the engine process can't be started: {error}")
        self._watch(child)
        child.join()
        self._is_loaded = False
        cause = child.describe_cause()
        if self._closing.is_set():
            return False
        if self._load_error and self._info is None:
            return self._report_failed_start(self._load_error, self._is_refusal)
        self._show(cause, child)
        if self._info is None:
            return self._report_failed_start(
                f"the engine process ended while it loaded the model: {cause}; {_describe_last(child)}"
            )
        return self._recover_from_death(self._load_error or cause)

    def _start_child(self) -> Child:
        self._load_error, self._is_refusal = "", False
        level = logging.getLogger(log.name).getEffectiveLevel()
        process, self._first = self._first, None
        child = self._child = Child(
            self._command,
            self._codec,
            Start(self._config, level, self._limits.beat_s),
            self._on_message,
            self._on_unsent,
            process,
        )
        if self._closing.is_set():
            child.send(Close(0.0))
        return child

    def _report_failed_start(self, message: str, is_refusal: bool = False) -> bool:
        self._tell(LoadFailed(message, is_refusal))
        return False

    def _recover_from_death(self, cause: str) -> bool:
        """Note a death and wait for the backoff. False after too many deaths, or if `close` is called meanwhile."""
        now = time.monotonic()
        with self._lock:
            if self._ledger.has_progressed:
                self._deaths.clear()
            self._deaths.append(now)
            while now - self._deaths[0] > self._limits.window_s:
                self._deaths.popleft()
            log.info("%s", self._ledger.describe_tasks())
            is_last = len(self._deaths) >= self._limits.max_deaths and not self._ledger.has_progressed
            events = self._ledger.note_death(cause, is_last)
        for event in events:
            if isinstance(event, Failure):
                log.error("task %d: %s", event.id, event.message)
        if is_last and not (self._ledger.has_suspects or self._ledger.has_progressed):
            self._give_up(cause, events)
            return False
        self._tell(Restarting(cause), *events)
        pause = self._limits.backoff_s[min(len(self._deaths), len(self._limits.backoff_s)) - 1]
        if self._closing.wait(pause):
            return False
        self._ledger.n_restarts += 1
        log.info("restarting the engine")
        return True

    def _give_up(self, cause: str, events: Sequence[Event]) -> None:
        message = (
            f"the engine died {len(self._deaths)} times within {self._limits.window_s:g} s without any progress; "
            f"the last cause: {cause}. It is not started again; restart the server"
        )
        log.error("%s", message)
        self._tell(*events, LoadFailed(message))

    def _watch(self, child: Child) -> None:
        """Wait until the process has ended; kill it if it hangs.

        A pause of this thread counts as two ticks at most, because the whole machine may have slept.
        """
        limits = self._limits
        tick = min(0.25, limits.silence_s / 4, limits.step_s / 4)
        quiet_s = stuck_s = 0.0
        n_heard, n_steps, now = -1, -1, time.monotonic()
        while not child.ended.wait(tick):
            before, now = now, time.monotonic()
            passed_s = min(now - before, 2 * tick)
            beat = child.beat
            quiet_s = 0.0 if child.is_taking or child.n_heard != n_heard else quiet_s + passed_s
            stuck_s = 0.0 if not beat.is_busy or beat.n_steps != n_steps else stuck_s + passed_s
            n_heard, n_steps = child.n_heard, beat.n_steps
            if quiet_s > (limits.silence_s if self._is_loaded else max(limits.start_s, limits.silence_s)):
                child.kill(f"no sign of life for {quiet_s:.1f} s")
            elif stuck_s > step_limit_s(limits.step_s, beat.n_rows):
                child.kill(f"no step for {stuck_s:.1f} s with work to do")

    def _show(self, cause: str, child: Child) -> None:
        """Log why the engine died, with its last output."""
        log.error("the engine process %d died: %s", child.process.pid, cause)
        for line in child.routine_lines:
            log.debug("its last log lines: %s", line)
        level = logging.DEBUG if child.was_ended_by_others else logging.ERROR
        for line in child.last_lines:
            log.log(level, "its last output: %s", line)

    def _tell(self, *events: Event) -> None:
        self._forward(Frame(events))

    def _forward(self, frame: Frame) -> None:
        """Also on `engine-reader` and `engine-writer`: pass a frame on, after the one before has been handled."""
        with self._passing_on:
            self._on_frame(frame)

    # ---- on the thread `engine-reader` ----------------------------------------------------------------------------

    def _on_message(self, message: object) -> None:
        if type(message) is Frame:
            self._on_engine_frame(message)
        elif isinstance(message, Stacks):
            self._stacks.put(message.text)
        elif isinstance(message, LogLine):
            handle_foreign(
                message.name,
                message.level,
                message.text,
                message.function,
                message.line,
                message.thread,
                message.created,
                message.trace,
            )
            note_lost(message.n_lost)
        else:
            raise WireError(f"an engine can't send {type(message).__name__}")

    def _on_engine_frame(self, frame: Frame) -> None:
        events = frame.events
        if not self._is_loaded:
            for event in events:
                if isinstance(event, Ready):
                    self._on_ready(event.info)
                elif isinstance(event, LoadFailed):
                    self._load_error, self._is_refusal = event.message, event.is_refusal
        with self._lock:
            frame, to_send = self._ledger.take(frame)
            self._send(to_send)
        if not self._is_loaded or any(type(event) in _OWN for event in frame.events):
            frame = Frame(tuple(event for event in frame.events if self._is_for_clients(event)), frame.snapshot)
        self._forward(frame)
        if any(isinstance(event, Ready) for event in events):
            with self._lock:
                self._send(self._ledger.note_ready())

    def _is_for_clients(self, event: Event) -> bool:
        """False for `Closed` and `LoadFailed`, which the supervisor sends itself, and for `Loading` after a restart."""
        return not isinstance(event, (Closed, LoadFailed)) and not (isinstance(event, Loading) and self._info)

    def _on_ready(self, info: ModelInfo) -> None:
        """Note what the first engine reports. WireError if a later one reports anything different except devices."""
        if self._info is None:
            self._info = info
            self._config = replace(self._config, n_ctx=info.n_ctx)
        elif replace(info, devices=self._info.devices) != self._info:
            raise WireError("the model's file or the libraries have changed since the first start: restart the server")
        self._is_loaded = True

    def _send(self, messages: Sequence[object]) -> None:
        for message in messages:
            self._child.send(message)

    def _on_unsent(self, message: object, error: Exception) -> None:
        """On `engine-writer`: handle a message that can't be encoded. `Tasks` are sent one by one; a single task or
        command gets an error as its answer."""
        if isinstance(message, Tasks):
            for task in message.tasks:
                self._child.send(task)
            return
        log.error("could not send a message to the engine: %s: %s", type(message).__name__, error)
        if isinstance(message, (Task, Embed, Command)):
            with self._lock:
                events, to_send = self._ledger.refuse(message, f"this request could not be sent to the engine: {error}")
                self._send(to_send)
            self._tell(*events)


_OWN = (Closed, LoadFailed)


def _describe_last(child: Child) -> str:
    lines = child.last_lines or child.routine_lines
    return f"its last output: {lines[-1].strip()[:200]}" if lines else "it wrote nothing"
