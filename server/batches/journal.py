"""What a batch has answered so far: two files of lines, one with its answers and one with its errors.

They are what the client gets, and they are the journal: a line is answered once it stands in one of them, whole. So
whoever goes on after a `kill -9` reads them, cuts off what was being written, and asks for what isn't there. Each line
is one write at the end of its file. The system is told to have it on the disk (`fsync`) once a second: a machine that
loses its power loses the answers of a second, which are computed again.

Not taken: a database, or a journal beside the answers; two places could say different things.
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

SYNC_S = 1.0
ID = re.compile(rb'\{"id":"(batch_req_[0-9a-f]{32})"')
START = b'{"id":"batch_req_'
BINARY = getattr(os, "O_BINARY", 0)


class Damaged(StartError):
    """A file that should have answers has something else."""


class Busy(StartError):
    """Another process writes answers there."""


class Journal:
    """The files `answers` and `errors`, made if they aren't there. Any thread. Damaged if they have anything else, Busy
    while another process has them.

    `answered` and `failed` have the ids of the lines that are in them."""

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
        """The answer to a line, which must be one line itself. OSError if it can't be written: then nothing of it is
        there."""
        with self._lock:
            (self.failed if is_failed else self.answered).add(id_, data)
            now = self._clock()
            if now - self._t_synced >= SYNC_S:
                self._t_synced = now
                self._sync()

    @property
    def n_bytes(self) -> int:
        """Of both files."""
        return self.answered.n_bytes + self.failed.n_bytes

    def close(self) -> None:
        """All of it is on the disk now."""
        with self._lock:
            self._sync()
            self.answered.close()
            self.failed.close()

    def _sync(self) -> None:
        with contextlib.suppress(OSError):  # a file system that can't
            self.answered.sync()
            self.failed.sync()


class AnswerFile:
    """One of the two."""

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
        """See `Journal.add`."""
        data += b"\n"
        try:
            n = os.write(self._descriptor, data)
            while n < len(data):  # a full disk, mostly: the next write says so
                n += os.write(self._descriptor, data[n:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.n_bytes)
            raise
        self.n_bytes += len(data)
        self.ids.add(id_)
        self._is_changed = True

    def sync(self) -> None:
        """Have the system write it to the disk."""
        if self._is_changed:
            self._is_changed = False
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Nothing more comes."""
        os.close(self._descriptor)


def lock(descriptor: int, path: Path) -> None:
    """Have a file for this process alone, until it is closed. Busy."""
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
    """The ids of the answers in a file, and how many bytes those before the first damaged one have: that was being
    written when its process or the machine ended. Damaged if there is anything else, or one answer twice."""
    ids: set[str] = set()
    n_bytes = 0
    with open(path, "rb") as stream:
        if not may_be_answer(stream.read(len(START))):
            raise Damaged(f"{path} has something else than the answers of a batch: name another file")
        stream.seek(0)
        for data in stream:
            found = ID.match(data)
            if found is None or not data.endswith(b"}\n"):
                if not may_be_answer(data):
                    raise Damaged(f"{path} has something else than the answers of a batch from byte {n_bytes} on")
                break
            id_ = found[1].decode("ascii")
            if id_ in ids:
                raise Damaged(f"{path} has the answer {id_} twice")
            ids.add(id_)
            n_bytes += len(data)
    return ids, n_bytes


def may_be_answer(data: bytes) -> bool:
    """Whether this begins as an answer does, or as what never reached the disk."""
    text = data.partition(b"\0")[0]
    return START.startswith(text) or text.startswith(START)
