"""What downloads need of this machine: file names, disk space, a lock, progress; and their errors.

Runs on the caller's thread. Imports only the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

LOCK_POLL_S = 0.2  # seconds between two tries to lock a file
LINE_EVERY_S = 10.0  # seconds between two lines of progress
BAR_EVERY_S = 0.1  # seconds between two updates of the bar on a terminal
BAR_BLOCKS = 20  # characters of the bar
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
BAD_IN_NAMES = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\\/\ud800-\udfff]')
DEVICE_NAME = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
MAX_NAME_BYTES = 150
MAX_PATH_CHARS = 1000


def make_one_line(text: str) -> str:
    """A text, perhaps from a server, without line ends and control characters."""
    return CONTROL.sub(" ", text)


class DownloadError(Exception):
    """Why a file can't be downloaded, and what to do: one line for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(make_one_line(message))


class Trouble(Exception):
    """An error that may not occur at the next try. `wait_s` is how many seconds the server asks to wait."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(make_one_line(message))
        self.wait_s = wait_s


# -- names and folders


def make_safe_name(text: str) -> str:
    """A file name for the cache, without folders, that all systems allow."""
    name = BAD_IN_NAMES.sub("_", text).strip(" ").rstrip(". ")
    name = "_" + name if not name or name[0] == "." or DEVICE_NAME.fullmatch(name) else name
    while len(name.encode("utf-8")) > MAX_NAME_BYTES:
        stem, dot, suffix = name.rpartition(".")
        name = f"{stem[:-1]}.{suffix}" if dot and len(suffix) < 20 and len(stem) > 1 else name[:-1]
    return name


def is_safe_path(path: str) -> bool:
    """Whether a file may have this path below a folder: `make_safe_name` would change no part of it."""
    return len(path) <= MAX_PATH_CHARS and all(make_safe_name(part) == part for part in path.split("/"))


def check_space(folder: Path, n_bytes: int) -> None:
    """DownloadError if the disk has less free space than these bytes."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return  # some file systems don't report it
    if free < n_bytes:
        raise DownloadError(
            f"not enough space in {folder}: {format_megabytes(n_bytes)} needed, {format_megabytes(free)} free; "
            "free some space, or "
            "choose another disk with LLAMA_SRV_CACHE or -m"
        )


def describe_disk_error(error: OSError, path: Path) -> str:
    """One line for the user: the error, and what to do."""
    where = f"({error.filename or path})"
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG):
        return (
            f"the disk is full {where}: free some space, then run this again to continue, or choose another disk with "
            "LLAMA_SRV_CACHE or -m"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"no permission to write {where}: choose another folder with LLAMA_SRV_CACHE or -m"
    return f"{error.strerror or error} {where}: fix this, then run it again"


# -- the lock


@contextlib.contextmanager
def hold_exclusive(path: Path, waiting: Callable[[], None], sleep: Callable[[float], None]) -> Iterator[None]:
    """Hold the lock file `path` during the block. First wait while another process holds the lock; a crash releases
    it."""
    file = _open_locked(path, waiting, sleep)
    try:
        yield
    finally:
        if os.name == "posix":
            path.unlink(missing_ok=True)  # while the lock is held, so that no other process's lock is removed
        file.close()
        if os.name != "posix":
            with contextlib.suppress(OSError):  # Windows keeps a file that another process has open
                path.unlink()


def _open_locked(path: Path, waiting: Callable[[], None], sleep: Callable[[float], None]) -> Any:
    has_told = False
    while True:
        file = open(path, "ab")
        try:
            while not _try_lock(file):
                if not has_told:
                    waiting()
                    has_told = True
                sleep(LOCK_POLL_S)
            with contextlib.suppress(FileNotFoundError):  # the last holder may have removed it
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _try_lock(file: Any) -> bool:
    """False if another process holds the lock. True if the file system has no locks."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    return True


# -- progress


def format_megabytes(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


class Bar:
    """Shows progress: on a terminal a line that is overwritten, elsewhere a line every ten seconds. Errors of the
    stream are ignored.

    `stream` is stderr by default. `say` gets the lines that stay, instead of the stream. `clock` returns seconds.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._say = say
        self._clock = clock
        self._is_live = False
        with contextlib.suppress(OSError, ValueError):
            self._is_live = self._stream is not None and self._stream.isatty()
        self._width = 0  # characters of the terminal's line that are in use
        self._begun = self._now = self._next = 0.0

    def begin(self) -> None:
        self._begun = self._now = self._clock()
        self._next = self._begun + (0.0 if self._is_live else LINE_EVERY_S)

    def is_due(self) -> bool:
        self._now = self._clock()
        return self._now >= self._next

    @property
    def seconds(self) -> float:
        """The seconds from `begin` to the last call of `is_due`."""
        return max(self._now - self._begun, 0.001)

    def draw(self, label: str, share: float | None, text: str) -> None:
        """Show a bar with a label and a text. `share` is from 0 to 1, None if it is unknown."""
        self._next = self._now + (BAR_EVERY_S if self._is_live else LINE_EVERY_S)
        if share is not None:
            blocks = int(share * BAR_BLOCKS)
            text = f"[{'#' * blocks}{'.' * (BAR_BLOCKS - blocks)}] {int(share * 100):3d} %  {text}"
        text = f"{label} {text}"
        if not self._is_live:
            self.say(text)
            return
        text = text[-(shutil.get_terminal_size().columns - 1) :]
        self._write("\r" + text.ljust(self._width))
        self._width = len(text)

    def clear(self) -> None:
        """Remove the bar from the terminal."""
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self.clear()
        if self._say:
            self._say(text)
        else:
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.write(text)
                self._stream.flush()


class Progress(Bar):
    _label, _at_start = "", 0
    _size: int | None = None

    def start(self, label: str, done: int, size: int | None) -> None:
        """Begin or continue a file at `done` of `size` bytes."""
        self._label, self._size, self._at_start = label, size, done
        self.begin()
        size_text = f", {format_megabytes(size)}" if size is not None else ""
        self.say(f"downloading {label}{size_text}" + (f", continuing at {format_megabytes(done)}" if done else ""))

    def show(self, done: int) -> None:
        """Show that `done` bytes have arrived."""
        if self.is_due():
            rate = (done - self._at_start) / self.seconds
            share = min(done / self._size, 1.0) if self._size else None
            self.draw(self._label, share, f"{format_megabytes(done)}  {format_megabytes(int(rate))}/s")
