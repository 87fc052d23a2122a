"""One engine process, seen from the web process: starts it, exchanges messages with it, and finds out why it ended.

Three threads serve a process. `engine-reader` receives messages and passes them on. `engine-writer` sends messages, so
that no connection thread waits for a full pipe. `engine-stderr` keeps the last lines of stderr, with llama.cpp's
routine log lines apart.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from server.engine.client.spawn import start_process
from server.engine.seam.task import Cancel, Embed, Task, Tasks
from server.engine.seam.wire import ROUTINE, Beat, Codec, FrameReader, Hello, Start, WireError
from server.log import get_logger, inherit

READ_BYTES = 1 << 16
N_LAST_LINES = 60  # kept of stderr
N_ROUTINE_LINES = 20  # kept of llama.cpp's routine log lines
STACKS_WAIT_S = 0.3  # how long `kill` waits for the stacks
STDERR_WAIT_S = 2.0  # for the end of stderr, which a debugger started by ggml may keep open

OTHERS_SIGNALS = [
    -getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
]

END = object()  # ends the writer's thread
LARGE_BYTES = 1 << 20  # a message with more bytes of files is large

log = get_logger("engine")


class Outbox:
    """Messages to the engine, in order; but large ones, and a `Cancel` of their tasks, go behind all others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the order of both queues
        self._queue: SimpleQueue = SimpleQueue()  # with None for each message in `_large`
        self._large: deque[object] = deque()

    def put(self, message: object) -> None:
        """On any thread: add a message."""
        with self._lock:
            if count_file_bytes(message) > LARGE_BYTES or (isinstance(message, Cancel) and self._has_large(message.id)):
                self._large.append(message)
                message = None
            self._queue.put(message)

    def get(self) -> object:
        """Wait for the next message to send."""
        while (message := self._queue.get()) is None:
            with self._lock:
                if self._queue.qsize() < len(self._large):  # only large ones wait
                    return self._large.popleft()
                self._queue.put(None)
        return message

    def _has_large(self, id_task: int) -> bool:
        return any(task.id == id_task for message in self._large for task in get_tasks(message))


def get_tasks(message: object) -> tuple[Task | Embed, ...]:
    """The `Task`s or `Embed`s in a message."""
    if isinstance(message, Tasks):
        return message.tasks
    return (message,) if isinstance(message, (Task, Embed)) else ()


def count_file_bytes(message: object) -> int:
    return sum(len(media.data) for task in get_tasks(message) for media in task.media)


class Child:
    """An engine process. `ended` is set once it is gone and no more of its messages are passed on."""

    def __init__(
        self,
        command: Sequence[str],
        codec: Codec,
        start: Start,
        on_message: Callable[[object], None],
        on_unsent: Callable[[object, Exception], None],
        process: subprocess.Popen | None = None,
    ) -> None:
        """Take over `process`, or start `command` (OSError if that fails).

        `on_message` is called on `engine-reader`, `on_unsent` on `engine-writer` with a message that can't be encoded.
        """
        self._codec = codec
        self._on_message = on_message
        self._on_unsent = on_unsent
        self._outbox = Outbox()
        self._error = ""
        self.is_taking = False  # while `engine-reader` handles messages, silence doesn't count
        self.n_heard = 0  # reads from the pipe
        self.last_lines: deque[str] = deque(maxlen=N_LAST_LINES)
        self.routine_lines: deque[str] = deque(maxlen=N_ROUTINE_LINES)
        self.beat = Beat(0, 0, False)
        self.is_greeted = False
        self.ended = threading.Event()
        self.process = process or start_process(command)
        self.send(codec.hello)
        self.send(start)
        self._threads = [
            threading.Thread(target=inherit(target), name=name, daemon=True)
            for name, target in (
                ("engine-reader", self._read),
                ("engine-writer", self._write),
                ("engine-stderr", self._read_stderr),
            )
        ]
        for thread in reversed(self._threads):  # `engine-reader` last: it waits for `engine-stderr`
            thread.start()

    def send(self, message: object) -> None:
        """On any thread, without waiting: send a message."""
        self._outbox.put(message)

    def kill(self, why: str) -> None:
        """End the process. Where SIGUSR1 exists, it first writes its Python stacks, which go to `last_lines`."""
        self._error = self._error or why
        if hasattr(signal, "SIGUSR1") and self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)
            self.ended.wait(STACKS_WAIT_S)
        self.process.kill()

    def describe_cause(self) -> str:
        """Why the process ended, in a few words."""
        code = self.process.returncode
        ending = f"exit code {code}"
        if code is not None and code < 0:
            try:
                ending = f"signal {signal.Signals(-code).name}"
            except ValueError:
                ending = f"signal {-code}"
        elif sys.platform == "win32" and code:
            ending = f"exit code {code & 0xFFFFFFFF:#x}"
        return f"{self._error} ({ending})" if self._error else ending

    @property
    def was_ended_by_others(self) -> bool:
        """Whether a signal of the system (out of memory) or of an operator ended the process."""
        return not self._error and self.process.returncode in OTHERS_SIGNALS

    def join(self) -> None:
        """Wait for the threads to end; called after `ended` is set."""
        self._outbox.put(END)
        for thread in self._threads:
            thread.join()

    # ---- threads ----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        reader, pipe = FrameReader(self._codec), self.process.stdout
        try:
            while data := os.read(pipe.fileno(), READ_BYTES):
                self.is_taking = True
                self.n_heard += 1
                for message in reader.feed(data):
                    self._take(message)
                self.is_taking = False
        except (WireError, OSError) as error:
            self._error = f"it sent an invalid message: {error}"
        except Exception:
            log.exception("a message of the engine could not be handled")
            self._error = "the server could not handle its message"
        self.is_taking = False
        if self._error:
            self.process.kill()
        self.process.wait()
        pipe.close()
        self._outbox.put(END)
        self._threads[2].join(STDERR_WAIT_S)  # the last lines say why it died
        self.ended.set()

    def _take(self, message: object) -> None:
        if type(message) is Beat:
            self.beat = message
        elif isinstance(message, Hello):
            if message != self._codec.hello:
                raise WireError(f"another protocol: {message} instead of {self._codec.hello}")
            self.is_greeted = True
        elif not self.is_greeted:
            raise WireError(f"{type(message).__name__} before Hello")
        else:
            self._on_message(message)

    def _write(self) -> None:
        try:
            while self._send_next():
                pass
        except OSError:
            pass  # the process is dying; `engine-reader` notices its end
        try:
            self.process.stdin.close()
        except OSError:
            pass

    def _send_next(self) -> bool:
        """Send a message; False at the end. A separate function, so that no local variable of `_write` keeps the
        message's files in memory while the thread waits for the next one."""
        message = self._outbox.get()
        if message is END:
            return False
        try:
            left = memoryview(self._codec.encode(message))
        except Exception as error:
            self._on_unsent(message, error)
            return True
        while left:
            left = left[os.write(self.process.stdin.fileno(), left) :]
        return True

    def _read_stderr(self) -> None:
        rest = b""
        with self.process.stderr as pipe:
            while data := os.read(pipe.fileno(), READ_BYTES):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._keep(line)
                rest = rest[-READ_BYTES:]
        self._keep(rest)

    def _keep(self, line: bytes) -> None:
        kept = self.routine_lines if line.startswith(ROUTINE) else self.last_lines
        text = line.removeprefix(ROUTINE).decode("utf-8", "replace").rstrip()
        if text:
            kept.append(text)
