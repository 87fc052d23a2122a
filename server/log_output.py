"""Where log lines go: a stream or a file, with a queue and a thread of its own. The second half of `log`, a leaf.

Who logs only puts a line into the queue, so nobody waits for a reader of stderr or for a disk. The thread `log` writes
what is there, in order and many lines at once. The queue is bounded: what finds no room is lost and counted, as is what
a full disk or a closed stream doesn't take, and the log says so once lines get through again. At the end of the program
whoever closes an output waits for it, but not for ever.

What a dying process says doesn't come through here: Python's fault handler, an uncaught exception and ggml's abort
write to stderr by themselves.

Not taken: writing at once where there is room. A pipe can be asked, a disk can't. One thread for all outputs: a reader
of stderr that sleeps would keep lines from the file.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import TextIO

FILE_MODE = 0o640  # verbose lines hold prompts
APPEND = 0x4 | 0x80 | 0x100000  # FILE_APPEND_DATA, FILE_READ_ATTRIBUTES, SYNCHRONIZE
SHARE_ALL, OPEN_ALWAYS, NORMAL = 7, 4, 0x80
MAX_WAITING = 8 << 20
"""Characters that may wait; a longer line is taken where none waits."""
MAX_WRITE = 1 << 16
"""Characters written at once, in whole lines: at least one."""
FLUSH_S = 1.0
WOULD_BLOCK_WAIT_S = 0.02
TOO_FAST = "they come faster than they are read or written"


class LogFileError(OSError):
    """The log file that the user asked for can't be written; one line that says what to do."""


Line = tuple[int, str]
"""With how many had found no room before it."""


class Output:
    """The queue and the thread of one sink. `put` and `lose` are called by one thread at a time (logging's lock sees to
    that), the rest by any. `loss_line` makes the line that says how many were lost, and why."""

    def __init__(self, sink: Sink, loss_line: Callable[[int, str], str]) -> None:
        self.sink = sink
        self._loss_line = loss_line
        self._waiting: deque[Line | Callable[[], object]] = deque()
        self._wakes: SimpleQueue[None] = SimpleQueue()  # one for each
        self._why = ""
        self._n_refused = 0  # these two belong to who puts
        self._n_put = 0  # characters
        self._n_done = 0  # these belong to the thread
        self._n_failed = 0
        self._n_told = 0
        self._is_failing = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def n_lost(self) -> int:
        """Lines that were not written, so far."""
        return self._n_refused + self._n_failed

    def put(self, text: str) -> None:
        """Have this written, or lost if too much is waiting. Never waits."""
        n_waiting = self._n_put - self._n_done
        if n_waiting and n_waiting + len(text) > MAX_WAITING:
            self.lose(TOO_FAST)
            return
        self._n_put += len(text)
        self._append((self._n_refused, text))

    def lose(self, why: str) -> None:
        """Count a line that can't be written."""
        self._n_refused += 1
        self._why = why

    def call(self, action: Callable[[], object], patience_s: float) -> bool:
        """Have the thread do something after the lines so far; False if it doesn't come to it in time. What it raises
        is raised here."""
        done, errors = threading.Event(), []

        def act() -> None:
            try:
                action()
            except Exception as error:
                errors.append(error)
            done.set()

        self._append(act)
        is_done = self._is_closed or done.wait(patience_s)
        if errors:
            raise errors[0]
        return is_done

    def flush(self, patience_s: float = FLUSH_S) -> None:
        """Wait until what was put so far is written, but not for ever. Also from a signal handler."""
        self.call(lambda: None, patience_s)

    def close(self) -> None:
        """Write what is left, but not for ever, and let go of the sink. Idempotent."""
        self._append(self._end)
        self._thread.join(FLUSH_S)

    def _append(self, item: Line | Callable[[], object]) -> None:
        self._waiting.append(item)
        self._wakes.put(None)

    # ---- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_closed:
            self._wakes.get()
            while self._waiting:
                if isinstance(self._waiting[0], tuple):
                    self._write_some()
                else:
                    self._tell_loss()
                    self._waiting.popleft()()  # type: ignore[operator]
            self._tell_loss()

    def _end(self) -> None:
        self._is_closed = True
        self.sink.close()

    def _write_some(self) -> None:
        lines: list[str] = []
        n_refused, n_chars = self._waiting[0][0], 0  # type: ignore[index]
        while self._waiting and n_chars < MAX_WRITE:
            item = self._waiting[0]
            if not isinstance(item, tuple) or item[0] != n_refused:
                break
            lines.append(item[1])
            n_chars += len(item[1])
            self._waiting.popleft()
        self._write(lines, n_refused)
        self._n_done += n_chars

    def _tell_loss(self) -> None:
        if self.n_lost > self._n_told and not self._is_failing and not self._is_closed:
            self._write([], self._n_refused)

    def _write(self, lines: list[str], n_refused: int) -> None:
        """Write these, after a line about what was lost before them."""
        n_lost = n_refused + self._n_failed
        told = [self._loss_line(n_lost - self._n_told, self._why)] if n_lost > self._n_told else []
        try:
            self.sink.write("".join([*told, *lines]))
            self._n_told, self._is_failing = n_lost, False
        except Exception as error:  # OSError, ValueError for a closed file; what encoders raise
            self._n_failed += len(lines)
            self._why, self._is_failing = str(error), True


class Sink(ABC):
    """Somewhere that bytes go. Remembers whether a failed write left the beginning of a line behind."""

    def __init__(self) -> None:
        self._is_torn = False

    @abstractmethod
    def write(self, text: str) -> None:
        """Whole lines: all of it, or OSError or ValueError."""

    def close(self) -> None:
        """Let go of what is ours. Idempotent."""

    def _write_all(self, raw: io.RawIOBase, data: bytes) -> None:
        """A write may take a part (pipes), or nothing for now (a terminal made non-blocking)."""
        left = memoryview(b"\n" + data if self._is_torn else data)
        while left:
            n = raw.write(left)
            if n:
                left = left[n:]
                self._is_torn = bool(left)
            else:
                time.sleep(WOULD_BLOCK_WAIT_S)


class StreamSink(Sink):
    """stdout or stderr, not ours to close. Writes past Python's buffers where it can: what a failed write leaves in
    them would be complained about at the end of the program, and change its exit code. What was printed before comes
    before."""

    def __init__(self, stream: TextIO, *, utf8: bool) -> None:
        super().__init__()
        self.stream = stream
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)
        self._raw = raw if isinstance(raw, io.RawIOBase) else None
        encoding = getattr(stream, "encoding", None) or "utf-8"
        self._encoding = "utf-8" if utf8 and self._raw else encoding
        with contextlib.suppress(OSError, ValueError):
            stream.flush()

    def write(self, text: str) -> None:
        """In the stream's encoding."""
        data = text.encode(self._encoding, "backslashreplace")
        if self._raw is None:
            self.stream.write(data.decode(self._encoding))
            self.stream.flush()
        else:
            self._write_all(self._raw, data)


class FileSink(Sink):
    """A file that is appended to, without a buffer. LogFileError if it can't be opened. Where there is no SIGHUP to say
    so (`is_followed`), it finds out by itself that the file was moved, and makes a new one."""

    def __init__(self, path: str | os.PathLike[str], is_followed: bool = os.name == "nt") -> None:
        super().__init__()
        self.path = Path(path)
        self._is_followed = is_followed
        self._raw = self._open()

    def write(self, text: str) -> None:
        """One write per call, so that lines of several processes don't mix."""
        if self._is_followed and not self._has_name():
            with contextlib.suppress(LogFileError):
                self.reopen()
        self._write_all(self._raw, text.encode("utf-8", "backslashreplace"))

    def reopen(self) -> None:
        """The file that has the name now, created if there is none; if that fails the old one stays."""
        new = self._open()
        self._raw.close()
        self._raw = new
        self._is_torn = False

    def close(self) -> None:
        """Idempotent."""
        self._raw.close()

    def _has_name(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._raw.fileno()))
        except OSError:
            return False

    def _open(self) -> io.RawIOBase:
        try:
            return open(self.path, "ab", buffering=0, opener=opener)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise LogFileError(
                f"the log file {self.path} can't be written ({reason}): choose another one "
                "with --log-file, or --log-disable"
            ) from None


def open_private(path: str, flags: int) -> int:
    """A descriptor of the file, which is for its owner and their group."""
    return os.open(path, flags, FILE_MODE)


def open_shared(path: str, flags: int) -> int:
    """A descriptor for appending that lets others move and remove the open file, as Python's own on Windows doesn't."""
    import _winapi  # only on Windows
    import msvcrt

    file = os.fspath(path)
    handle = _winapi.CreateFile(file, APPEND, SHARE_ALL, 0, OPEN_ALWAYS, NORMAL, 0)  # type: ignore[attr-defined]
    return msvcrt.open_osfhandle(handle, flags)  # type: ignore[attr-defined]


opener = open_shared if os.name == "nt" else open_private
