"""The outputs of the log: a stream or a file, each with a queue and a thread of its own. A leaf, used by `log`.

A thread that logs only puts the line into the bounded queue, so it never waits for a reader of stderr or for a disk.
The output's thread, `log`, writes the lines in order. A line that finds the queue full, or that a full disk or a closed
stream refuses, is lost and counted; the next successful write reports the count.

Not taken: writing on the thread that logs if the output is ready, which a disk can't tell; one thread for all outputs,
because a stderr that nobody reads would keep lines from the file.
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
from queue import Empty, SimpleQueue
from typing import TextIO

FILE_MODE = 0o640  # of a new file; not for other users, because verbose lines hold prompts
APPEND = 0x4 | 0x80 | 0x100000  # FILE_APPEND_DATA, FILE_READ_ATTRIBUTES, SYNCHRONIZE
SHARE_ALL, OPEN_ALWAYS, NORMAL = 7, 4, 0x80
MAX_WAITING = 8 << 20
"""Characters that may wait in a queue. A line longer than that is accepted if the queue is empty."""
MAX_WRITE = 1 << 16
"""Characters after which a write takes no further line."""
FLUSH_S = 1.0  # seconds that `flush` and `close` wait at most
GATHER_S = 0.02
"""Seconds that a line waits for further ones. Otherwise each line would wake the output's thread."""
WOULD_BLOCK_WAIT_S = 0.02  # seconds between two tries to write to a full stream
TOO_FAST = "they come faster than they are read or written"


class LogFileError(OSError):
    """Why the log file can't be written, and what to do: one line."""


Line = tuple[int, str]
"""(number of lines that were refused before this one was put, the line)"""


class Output:
    """The queue and the thread of one sink. `put` and `lose` are called by one thread at a time, under logging's lock;
    all else may be called by any thread. `loss_line` makes the line that reports how many lines were lost, and why."""

    def __init__(self, sink: Sink, loss_line: Callable[[int, str], str]) -> None:
        self.sink = sink
        self._loss_line = loss_line
        self._waiting: deque[Line | Callable[[], object]] = deque()
        self._wakes: SimpleQueue[bool] = SimpleQueue()  # True: without waiting for further lines
        self._is_woken = False  # the output's thread is about to read _waiting
        self._why = ""
        # changed by the thread that puts
        self._n_refused = 0  # lines
        self._n_put = 0  # characters
        # changed by the output's thread
        self._n_done = 0  # characters
        self._n_failed = 0  # lines
        self._n_told = 0  # lost lines that have been reported
        self._is_failing = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def n_lost(self) -> int:
        return self._n_refused + self._n_failed

    def put(self, text: str) -> None:
        """Queue a line. It is lost if the queue is full. Never waits."""
        n_waiting = self._n_put - self._n_done
        if n_waiting and n_waiting + len(text) > MAX_WAITING:
            self.lose(TOO_FAST)
            return
        self._n_put += len(text)
        self._waiting.append((self._n_refused, text))
        if not self._is_woken:
            self._is_woken = True
            self._wakes.put(False)

    def lose(self, why: str) -> None:
        """Count a line that can't be written."""
        self._n_refused += 1
        self._why = why

    def call(self, action: Callable[[], object], patience_s: float) -> bool:
        """Have the output's thread call `action` after the lines so far. False if it hasn't after `patience_s` seconds.
        An exception of `action` is raised here."""
        done, errors = threading.Event(), []

        def act() -> None:
            try:
                action()
            except Exception as error:
                errors.append(error)
            done.set()

        self._call(act)
        is_done = self._is_closed or done.wait(patience_s)
        if errors:
            raise errors[0]
        return is_done

    def flush(self, patience_s: float = FLUSH_S) -> None:
        """Wait until the lines so far are written, at most `patience_s` seconds. A signal handler may call it."""
        self.call(lambda: None, patience_s)

    def close(self) -> None:
        """Write the waiting lines and close the sink, in `FLUSH_S` at most. Idempotent."""
        self._call(self._end)
        self._thread.join(FLUSH_S)

    def _call(self, action: Callable[[], object]) -> None:
        self._waiting.append(action)
        self._wakes.put(True)

    # ---- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_closed:
            self._wait()
            self._is_woken = False  # lines from now on may be missed below, so they must wake the thread again
            while self._waiting:
                if isinstance(self._waiting[0], tuple):
                    self._write_some()
                else:
                    self._tell_loss()
                    self._waiting.popleft()()  # type: ignore[operator]
            self._tell_loss()

    def _wait(self) -> None:
        """Wait for a line and then `GATHER_S` for others, or for an action."""
        is_urgent = self._wakes.get()
        with contextlib.suppress(Empty):
            while not is_urgent:
                is_urgent = self._wakes.get(timeout=GATHER_S)

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
        """Write these lines, and before them a line about lost ones."""
        n_lost = n_refused + self._n_failed
        told = [self._loss_line(n_lost - self._n_told, self._why)] if n_lost > self._n_told else []
        try:
            self.sink.write("".join([*told, *lines]))
            self._n_told, self._is_failing = n_lost, False
        except Exception as error:  # OSError, ValueError for a closed file, errors of encoders
            self._n_failed += len(lines)
            self._why, self._is_failing = str(error), True


class Sink(ABC):
    """A destination of log lines. It remembers whether a failed write has left the beginning of a line behind."""

    def __init__(self) -> None:
        self._is_torn = False

    @abstractmethod
    def write(self, text: str) -> None:
        """Write whole lines. OSError or ValueError if some can't be written."""

    def close(self) -> None:
        """Close what this sink has opened. Idempotent."""

    def _write_all(self, raw: io.RawIOBase, data: bytes) -> None:
        """Write until all is written: a pipe may take a part, a non-blocking terminal nothing for now."""
        left = memoryview(b"\n" + data if self._is_torn else data)
        while left:
            n = raw.write(left)
            if n:
                left = left[n:]
                self._is_torn = bool(left)
            else:
                time.sleep(WOULD_BLOCK_WAIT_S)


class StreamSink(Sink):
    """stdout or stderr, which it doesn't close. It bypasses Python's buffers where it can: after a failed write, the
    interpreter would try again when it exits, and change the exit code. Text printed earlier is flushed first."""

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
        data = text.encode(self._encoding, "backslashreplace")
        if self._raw is None:
            self.stream.write(data.decode(self._encoding))
            self.stream.flush()
        else:
            self._write_all(self._raw, data)


class FileSink(Sink):
    """A file that is appended to, without a buffer. LogFileError if it can't be opened. With `is_followed` (on Windows,
    which has no SIGHUP) a write after the file was moved makes a new one."""

    def __init__(self, path: str | os.PathLike[str], is_followed: bool = os.name == "nt") -> None:
        super().__init__()
        self.path = Path(path)
        self._is_followed = is_followed
        self._raw = self._open()

    def write(self, text: str) -> None:
        """Write whole lines with one call, so that lines of several processes don't mix."""
        if self._is_followed and not self._has_name():
            with contextlib.suppress(LogFileError):
                self.reopen()
        self._write_all(self._raw, text.encode("utf-8", "backslashreplace"))

    def reopen(self) -> None:
        """Open the file that has the name now, or create it. If that fails, the old one stays in use."""
        new = self._open()
        self._raw.close()
        self._raw = new
        self._is_torn = False

    def close(self) -> None:
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
    """Open a file; a new one gets FILE_MODE. Return its descriptor."""
    return os.open(path, flags, FILE_MODE)


def open_shared(path: str, flags: int) -> int:
    """Open a file for appending that other programs may move and remove, which Python's `open` prevents on Windows.
    Return its descriptor."""
    import _winapi  # only on Windows
    import msvcrt

    file = os.fspath(path)
    handle = _winapi.CreateFile(file, APPEND, SHARE_ALL, 0, OPEN_ALWAYS, NORMAL, 0)  # type: ignore[attr-defined]
    return msvcrt.open_osfhandle(handle, flags)  # type: ignore[attr-defined]


opener = open_shared if os.name == "nt" else open_private
