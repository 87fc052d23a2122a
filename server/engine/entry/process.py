"""The main function of the engine's process: the program started with the hidden flag `--engine-process`.

It reads messages from stdin and writes messages to its original stdout. File descriptor 1 is redirected to stderr
first, so that output of native code can't get between the messages.

The main thread loads the model, runs the scheduler and sends its frames. The thread `reader` receives messages,
`writer` sends log records and what the pipe had no room for, `beat` sends a heartbeat. When stdin ends, the web process
is gone, and this process ends, even in the middle of a decode.

It imports nothing of HTTP, so that it starts fast. Not taken: `multiprocessing` (it starts processes in ways that
differ per system and fail in frozen programs); sending all frames from `writer` (it would compete with the next decode
for a core and for the GIL).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from server.engine.seam.config import EngineConfig
from server.engine.seam.task import Close, Closed, Frame, LoadFailed, Loading, Ready, Starting
from server.engine.seam.turns import turns_of
from server.engine.seam.wire import (
    ROUTINE,
    AskStacks,
    Beat,
    Codec,
    FrameReader,
    Hello,
    LogLine,
    Stacks,
    Start,
    WireError,
)
from server.errors import StartError
from server.log import ROOT, get_logger
from server.stacks import collect_stacks

if TYPE_CHECKING:
    from server.engine.loop.scheduler import Scheduler
    from server.engine.slots.backend import Backend

READ_BYTES = 1 << 16
MAX_WAITING = 256  # the engine waits while so many messages are unsent, ...
MAX_PROBS = 50_000  # ... or so many probabilities in them
MAX_WAITING_LOGS = 4096  # messages; with more unsent, log records are dropped
MAX_STDERR_LINE = 500  # bytes: a pipe with any room takes 512 (POSIX)
FLUSH_S = 1.0  # the longest wait until the current tasks are reported
ORPHAN_GRACE_S = 2.0  # how long the engine may take to end after the web process
PROGRESS_S = 0.05  # the least time between two `Loading` events
SWITCH_INTERVAL_S = 0.0005  # see "The GIL" in docs/architecture.md
PR_SET_PDEATHSIG = 1
IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # the web process handles them for both

OpenBackend = Callable[[EngineConfig, Callable[[float], bool]], "Backend"]

log = get_logger("engine")


def main(hints: Sequence[str] = (), open_backend: OpenBackend | None = None) -> None:
    """Run an engine over this process's stdin and stdout; never returns.

    The default backend is libllama's. `hints` are the folder and the CPU variant of libraries to load early.
    """
    gc.disable()  # until the model is loaded: imports make no garbage
    inlet, outlet = _take_pipes()
    _live_and_die_with_parent()
    faulthandler.enable(file=2, all_threads=False)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if open_backend is None:
        from server.engine.llama import backend

        open_backend = backend.open_backend
        if hints:
            backend.preload(*hints)  # meanwhile the web process finds out which model to load
    threading.Thread(target=_import_scheduler, name="imports", daemon=True).start()
    code = 1
    try:
        code = EngineProcess(inlet, outlet, open_backend).run()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # not `sys.exit`, because native threads may still run


def _take_pipes() -> tuple[int, int]:
    """Move the two pipes to new file descriptors. Then 0 is empty, and 1 is stderr."""
    if sys.platform == "win32":
        import msvcrt

        for number in (0, 1):
            msvcrt.setmode(number, os.O_BINARY)
    inlet, outlet = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return inlet, outlet


def _live_and_die_with_parent() -> None:
    """Ignore signals meant for the server, write stacks at SIGUSR1, and on Linux have the system kill this process with
    the server."""
    for name in IGNORED_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(faulthandler, "register") and hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Outbox:
    """Sends messages to the web process.

    The thread that calls `put` writes as much of its message as the pipe takes, if nothing else is unsent. The thread
    `writer` sends the rest. On Windows, where pipes can't be non-blocking, `writer` sends everything.
    """

    def __init__(self, fd: int, codec: Codec) -> None:
        self._fd = fd
        self._codec = codec
        self._never_waits = _unblock(fd)
        self._lock = threading.Lock()  # guards the fields below
        self._work = threading.Condition(self._lock)  # notified when `writer` may have something to send
        self._progress = threading.Condition(self._lock)  # notified when `put` or `flush` may go on
        self._waiting: deque[Any] = deque()
        self._n_probs = 0  # probabilities in `_waiting`
        self._rest = b""  # the unsent end of a message
        self._n_lost = 0  # dropped log records, not yet reported
        self._is_sending = False  # a thread writes into the pipe, without holding the lock
        threading.Thread(target=self._run, name="writer", daemon=True).start()

    def put(self, message: Any) -> None:
        """On any thread: send a message. Waits while too many are unsent."""
        with self._lock:
            while len(self._waiting) >= MAX_WAITING or self._n_probs >= MAX_PROBS:
                self._progress.wait()
            if not self._never_waits or self._is_sending or self._waiting or self._rest:
                self._waiting.append(message)
                self._n_probs += count_probs(message)
                self._work.notify()
                return
            self._is_sending = True
        rest = b""
        try:
            data = self._codec.encode(message)
            rest = data[self._write(data) :]
        finally:
            with self._lock:
                self._is_sending, self._rest = False, rest
                self._progress.notify_all()
                if self._rest or self._waiting:
                    self._work.notify()

    def offer(self, message: LogLine) -> None:
        """On any thread: send a log record, or drop and count it if too many messages are unsent."""
        with self._lock:
            if len(self._waiting) < MAX_WAITING_LOGS:
                self._waiting.append(message)
                self._work.notify()
            else:
                self._n_lost += 1

    def flush(self, patience_s: float) -> None:
        """Wait until everything is sent, at most `patience_s` seconds."""
        with self._lock:
            self._progress.wait_for(lambda: not (self._waiting or self._rest or self._is_sending), patience_s)

    def _write(self, data: bytes | memoryview) -> int:
        """Write; returns how many bytes the pipe took. A closed pipe takes all, and `reader` ends the process."""
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    def _run(self) -> None:
        while True:
            with self._lock:
                while self._is_sending or not (self._waiting or self._rest):
                    self._work.wait()
                messages, rest = list(self._waiting), self._rest
                self._waiting.clear()
                self._n_probs, self._rest = 0, b""
                self._is_sending = True
                self._progress.notify_all()  # `put` may append again
                if self._n_lost:
                    messages.append(_make_lost_line(self._n_lost))
                    self._n_lost = 0
            left = memoryview(rest + b"".join(map(self._codec.encode, merge_frames(messages))))
            while left:
                n_taken = self._write(left)
                left = left[n_taken:]
                if not n_taken:
                    select.select((), (self._fd,), ())
            with self._lock:
                self._is_sending = False
                self._progress.notify_all()


def _unblock(fd: int) -> bool:
    """Make a pipe non-blocking. Not on Windows (False), where `select` can't wait for a pipe."""
    if sys.platform == "win32":
        return False
    os.set_blocking(fd, False)
    return True


def count_probs(message: Any) -> int:
    events = message.events if type(message) is Frame else ()
    return sum(len(one.top_logprobs) for event in events for one in getattr(event, "probs", ()))


def merge_frames(messages: list[Any]) -> list[Any]:
    """Join consecutive frames; of their snapshots keep the last one."""
    merged: list[Any] = []
    for message in messages:
        last = merged[-1] if merged else None
        if type(message) is Frame and type(last) is Frame:
            merged[-1] = Frame(last.events + message.events, message.snapshot or last.snapshot)
        else:
            merged.append(message)
    return merged


class PipeHandler(logging.Handler):
    """Sends log records as messages. Records below `level` are dropped, except llama.cpp's lines, which go to stderr:
    the web process keeps the last of them, and shows them if this process dies."""

    def __init__(self, outbox: Outbox, level: int, fd: int = 2) -> None:
        super().__init__()
        self._outbox = outbox
        self._least = level
        self._fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        """Send or drop a record; never raises."""
        try:
            if record.levelno >= self._least:
                self._outbox.offer(_log_line(record))
            elif record.name == f"{ROOT}.llama":
                write_if_room(self._fd, ROUTINE + record.getMessage().encode("utf-8", "backslashreplace"))
        except Exception:
            self.handleError(record)


def write_if_room(fd: int, line: bytes) -> None:
    """Write a line to stderr, cut to `MAX_STDERR_LINE`; drop it if the pipe is full.

    The descriptor stays blocking: else a full pipe would drop the message of an abort.
    """
    if sys.platform == "win32" or select.select((), (fd,), (), 0)[1]:  # Windows has no `select` for pipes
        os.write(fd, line[:MAX_STDERR_LINE] + b"\n")


def _log_line(record: logging.LogRecord) -> LogLine:
    trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
    return LogLine(
        record.name.removeprefix(f"{ROOT}."),
        record.levelno,
        record.getMessage(),
        record.funcName or "",
        record.lineno,
        record.threadName or "",
        record.created,
        trace,
    )


def _make_lost_line(n: int) -> LogLine:
    return LogLine(
        "engine",
        logging.WARNING,
        f"{n} log lines of the engine were lost: it logs faster than the server reads",
        "",
        0,
        "",
        time.time(),
        "",
        n,
    )


class EngineProcess:
    """One engine between two pipes."""

    def __init__(self, inlet: int, outlet: int, open_backend: OpenBackend) -> None:
        self._codec = Codec()
        self._inlet = inlet
        self._open_backend = open_backend
        self._outbox = Outbox(outlet, self._codec)
        self._first: SimpleQueue = SimpleQueue()  # `Hello` and `Start`
        self._backend: Backend | None = None
        self._scheduler: Scheduler | None = None
        self._working: set[int] = set()
        self._t_progress = 0.0  # time of the last `Loading` event
        self._is_closing = False

    def run(self) -> int:
        """Load the model, serve, end. Returns the exit code."""
        self._outbox.put(self._codec.hello)
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        hello, start = self._first.get(), self._first.get()
        if hello != self._codec.hello or not isinstance(start, Start):
            raise WireError(f"the server uses another protocol: {hello} instead of {self._codec.hello}")
        _forward_logs(self._outbox, start.log_level)
        threading.Thread(target=self._beat, args=(start.beat_s,), name="beat", daemon=True).start()
        self._serve(start.config)
        self._outbox.put(Frame((Closed(),)))
        self._outbox.flush(ORPHAN_GRACE_S)
        return 0

    def _serve(self, config: EngineConfig) -> None:
        turns = turns_of(config)
        try:
            with turns.announce():
                self._backend = self._open_backend(config, self._on_progress)
        except Exception as error:
            if not isinstance(error, StartError):
                log.exception("the model could not be loaded")
            self._outbox.put(Frame((LoadFailed(str(error), isinstance(error, StartError)),)))
            return
        try:
            from server.engine.loop.scheduler import Scheduler  # imported by the thread `imports`

            self._scheduler = scheduler = Scheduler(self._backend, config, self._emit, turns=turns)
            if self._is_closing:
                scheduler.post(Close(0.0))
            self._outbox.put(Frame((Ready(self._backend.info),), scheduler.snapshot()))  # tasks may come from now on
            gc.freeze()
            gc.enable()
            scheduler.run()
        finally:
            self._backend.close()

    def _emit(self, frame: Frame) -> None:
        """Send a frame. If the running tasks change, wait until it is sent (`FLUSH_S` at most): the engine may die of a
        new task."""
        self._outbox.put(frame)
        working = self._working if frame.snapshot is None else frame.snapshot.working
        if working != self._working or any(type(event) is Starting for event in frame.events):
            self._working = working
            self._outbox.flush(FLUSH_S)

    def _on_progress(self, progress: float) -> bool:
        """Called often during the load; False ends it. The first event is always sent: it says that the vocabulary is
        read."""
        now = time.monotonic()
        if now - self._t_progress > PROGRESS_S or progress >= 1:
            self._t_progress = now
            self._outbox.put(Frame((Loading(progress),)))
        return not self._is_closing

    # ---- reader -----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        reader = FrameReader(self._codec)
        try:
            while data := os.read(self._inlet, READ_BYTES):
                self._take_all(reader.feed(data))
        except OSError:
            pass
        except WireError as error:
            log.error("invalid message from the server: %s", error)
        except BaseException:
            traceback.print_exc()
        self._end()

    def _take_all(self, messages: Iterator[Any]) -> None:
        """A separate function, so that no loop variable of `_read` keeps a message's files until the next message."""
        for message in messages:
            self._take(message)

    def _take(self, message: Any) -> None:
        if isinstance(message, (Hello, Start)):
            self._first.put(message)
        elif isinstance(message, Close):
            self._is_closing = True
            if self._scheduler is not None:
                self._scheduler.post(message)
                self._abort_later(message.grace_s + 0.1)
        elif isinstance(message, AskStacks):
            self._outbox.put(Stacks(collect_stacks("engine process")))
        elif self._scheduler is not None:  # the server sends no tasks before `Ready`
            self._scheduler.post(message)

    def _abort_later(self, delay_s: float) -> None:
        timer = threading.Timer(delay_s, self._backend.abort)
        timer.daemon = True
        timer.start()

    def _end(self) -> None:
        """The web process is gone or sent an invalid message: end the engine, and the process after `ORPHAN_GRACE_S`
        at the latest."""
        self._is_closing = True
        if self._scheduler is not None:
            self._scheduler.post(Close(0.0))
            self._backend.abort()
            time.sleep(ORPHAN_GRACE_S)
        os._exit(1)

    # ---- beat -------------------------------------------------------------------------------------------------

    def _beat(self, every_s: float) -> None:
        while True:
            scheduler = self._scheduler
            n_steps, n_rows, is_busy = (0, 0, False) if scheduler is None else scheduler.pulse()
            self._outbox.put(Beat(n_steps, n_rows, is_busy))
            time.sleep(every_s)


def _import_scheduler() -> None:
    """Import the scheduler while the main thread waits for its first message, or for libllama without the GIL."""
    import server.engine.loop.scheduler  # noqa: F401


def _forward_logs(outbox: Outbox, level: int) -> None:
    root = logging.getLogger(ROOT)
    root.handlers[:] = [PipeHandler(outbox, level)]
    root.setLevel(min(level, logging.DEBUG))
    root.propagate = False
