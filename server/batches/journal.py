"""The answers of a batch so far, in two files of lines: answers and errors.

The files are both the result for the client and the journal: a line has been answered once one of them holds its answer
completely. After a crash they are read, a half-written last line is cut off, and only the missing lines are run. Each
answer is written at the end of a file. `fsync` is called at most once a second, so a power failure may cost the latest
answers, which are computed again.

Way not taken: a database or a separate journal. Two places could contradict each other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from server.errors import StartError

SYNC_S = 1.0  # seconds between two calls of fsync
ID = re.compile(rb'\{"id":"(batch_req_[0-9a-f]{32})"')
START = b'{"id":"batch_req_'
BINARY = getattr(os, "O_BINARY", 0)


class Damaged(StartError):
    """A file for answers holds something else, or can't be written."""


class Busy(StartError):
    """Another process is writing these files."""


class Journal:
    """The files `answers` and `errors`, created if they don't exist. Any thread may use it. Raises Damaged if they hold
    anything but answers, Busy while another process writes them.

    `answered` and `failed` are these two files.
    """

    def __init__(self, answers: Path, errors: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()  # protects the files
        self.answered = AnswerFile(answers)
        try:
            self.failed = AnswerFile(errors)
        except BaseException:
            self.answered.close()
            raise
        self._clock = clock
        self._t_synced = clock()

    def __contains__(self, id_: str) -> bool:
        return id_ in self.answered.ids or id_ in self.failed.ids

    def add(self, id_: str, data: bytes, is_failed: bool) -> None:
        """Add the answer to a line; `data` is a single line. OSError if it can't be written; nothing of it is kept."""
        with self._lock:
            (self.failed if is_failed else self.answered).add(id_, data)
            now = self._clock()
            if now - self._t_synced >= SYNC_S:
                self._t_synced = now
                self._sync()

    @property
    def n_bytes(self) -> int:
        return self.answered.n_bytes + self.failed.n_bytes

    def close(self) -> None:
        """Write everything to the disk, and close the files."""
        with self._lock:
            self._sync()
            self.answered.close()
            self.failed.close()

    def _sync(self) -> None:
        with contextlib.suppress(OSError):  # a file system without fsync
            self.answered.sync()
            self.failed.sync()


class AnswerFile:
    """One of the two files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | BINARY, 0o600)
        except OSError as error:
            raise Damaged(f"{path} can't be written: {error.strerror}") from None
        try:
            lock(self._descriptor, path)
            self.ids, self.n_bytes = read_answers(path)
            if os.fstat(self._descriptor).st_size > self.n_bytes:
                os.ftruncate(self._descriptor, self.n_bytes)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._is_changed = False

    def add(self, id_: str, data: bytes) -> None:
        data += b"\n"
        try:
            n = os.write(self._descriptor, data)
            while n < len(data):  # a short write usually means a full disk; the next write raises the error
                n += os.write(self._descriptor, data[n:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.n_bytes)
            raise
        self.n_bytes += len(data)
        self.ids.add(id_)
        self._is_changed = True

    def sync(self) -> None:
        """Have the system write the file to the disk."""
        if self._is_changed:
            self._is_changed = False
            os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def lock(descriptor: int, path: Path) -> None:
    """Lock a file for this process until it is closed, where the system can do that. Raises Busy."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise Busy(f"{path}: another process is writing answers there") from None


def read_answers(path: Path) -> tuple[set[str], int]:
    """The ids of the answers in a file, and the number of bytes before the first incomplete one, which was being
    written when the process or the machine stopped. Raises Damaged if there is anything else, or an answer twice."""
    ids: set[str] = set()
    n_bytes = 0
    with open(path, "rb") as stream:
        if not may_be_answer(stream.read(len(START))):
            raise Damaged(f"{path} doesn't hold the answers of a batch: name another file")
        stream.seek(0)
        for data in stream:
            found = ID.match(data)
            if found is None or not data.endswith(b"}\n"):
                if not may_be_answer(data):
                    raise Damaged(
                        f"{path} holds something other than answers from byte {n_bytes} on: name another file"
                    )
                break
            id_ = found[1].decode("ascii")
            if id_ in ids:
                raise Damaged(f"{path} holds the answer {id_} twice: name another file")
            ids.add(id_)
            n_bytes += len(data)
    return ids, n_bytes


def may_be_answer(data: bytes) -> bool:
    """Whether this can be the beginning of an answer, or zeros that a power failure left in its place."""
    text = data.partition(b"\0")[0]
    return START.startswith(text) or text.startswith(START)
