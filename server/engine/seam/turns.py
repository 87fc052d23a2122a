"""Turns: engines of one server that share cores compute one after the other.

Runs on the engine's thread in each engine process. llama.cpp's compute threads wait for each other by spinning, several
hundred times per token. If two engines have a thread per core each, the system may put two threads of one engine on the
same core. Then each wait lasts a time slice of the system's scheduler. So an engine takes the lock CORES before it
computes.

An engine that waits for CORES holds the lock DOOR. Each engine must take DOOR first, so the engine that had the cores
last can't overtake the one that waits.

Loading a model keeps one core busy for a second or more, and no step can wait that long. So a loading engine holds the
lock LOADING instead. Meanwhile the others compute with one thread less (not with `--exact`).

Each lock is on one byte of a file; the system releases it when the process ends.

Not taken: a blocking lock (an engine that hangs would stop all others until it is killed) and a semaphore (a killed
engine would keep it).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from server.engine.seam.config import EngineConfig, count_threads_and_cores

DOOR, CORES, LOADING, OWNER = 0, 1, 2, 3
"""Places in the file: three locks, then the id of the process that had the cores last (8 bytes)."""

ANNOUNCE_S = 0.05
"""Seconds for which a loading engine tries to take LOADING."""

WAIT_S = 2.0
"""Seconds that an engine waits for a turn. Then it computes anyway, because the other engine may hang."""

POLL_S = 0.0002  # seconds between two tries to take a lock
FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
"""O_CREAT, because some systems clean their temporary folder while the server runs."""

SHARED_S = 1.0
"""Seconds for which the cores count as shared after another engine's turn."""


class Turns:
    """A context manager. In its block no other engine with the same file computes, unless one takes longer than
    `WAIT_S`.

    With the `path` "" the engine is alone and never waits. OSError if the file can't be opened.
    """

    def __init__(
        self,
        path: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        owner: int = os.getpid(),
    ) -> None:
        self._file = os.open(path, FLAGS, 0o600) if path else -1
        self._clock = clock
        self._sleep = sleep
        self._owner = owner.to_bytes(8, "little")
        self._t_other = -SHARED_S
        self._is_mine = False
        self._wait_s = WAIT_S

    @property
    def are_shared(self) -> bool:
        """Whether another engine's turn was noticed within the last `SHARED_S` seconds."""
        return self._file >= 0 and self._clock() - self._t_other < SHARED_S

    @property
    def is_loading(self) -> bool:
        """Whether another engine loads its model now."""
        if self._file < 0:
            return False
        if not _lock(self._file, LOADING):
            return True
        _unlock(self._file, LOADING)
        return False

    def __enter__(self) -> None:
        if self._file < 0:
            return
        t_end = self._clock() + self._wait_s
        if self._wait_for(DOOR, t_end):
            self._is_mine = self._wait_for(CORES, t_end)
            _unlock(self._file, DOOR)
        # another engine may hang: after a wait in vain, don't wait again until this engine has had a turn
        self._wait_s = WAIT_S if self._is_mine else 0.0
        self._look_who_was_here()

    def __exit__(self, *_: object) -> None:
        if self._is_mine:
            self._is_mine = False
            _unlock(self._file, CORES)

    def _wait_for(self, place: int, t_end: float) -> bool:
        while not _lock(self._file, place):
            if self._clock() >= t_end:
                return False
            self._sleep(POLL_S)
        return True

    @contextlib.contextmanager
    def announce(self) -> Iterator[None]:
        """Hold LOADING in the block. The block begins when another engine's running step has ended, because only its
        next step uses a thread less. If several engines load, only the first holds the lock."""
        is_told = self._file >= 0 and self._wait_for(LOADING, self._clock() + ANNOUNCE_S)
        with self:
            pass
        try:
            yield
        finally:
            if is_told:
                _unlock(self._file, LOADING)

    def _look_who_was_here(self) -> None:
        os.lseek(self._file, OWNER, os.SEEK_SET)
        before = os.read(self._file, 8)
        if before == self._owner:
            return
        if before:
            self._t_other = self._clock()
        os.lseek(self._file, OWNER, os.SEEK_SET)
        os.write(self._file, self._owner)


def turns_of(config: EngineConfig) -> Turns:
    """The turns of an engine. If the cores suffice for two such engines, it never waits."""
    n_threads, n_cores = count_threads_and_cores(config)
    return Turns(config.turns if 2 * n_threads > n_cores else "")


if os.name == "nt":  # pragma: no cover
    import msvcrt

    def _lock(file: int, place: int) -> bool:
        os.lseek(file, place, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True

    def _unlock(file: int, place: int) -> None:
        os.lseek(file, place, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]

else:
    import fcntl

    def _lock(file: int, place: int) -> bool:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _unlock(file: int, place: int) -> None:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, place)
