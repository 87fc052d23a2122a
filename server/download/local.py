"""What a download needs of this machine: names, folders, space, a lock, progress; and its errors.

Runs where `fetch` runs. Imports the standard library.
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

LOCK_POLL_S = 0.2
LINE_EVERY_S = 10.0
BAR_EVERY_S = 0.1
BAR_BLOCKS = 20
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
BAD_IN_NAMES = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\\/\ud800-\udfff]')
DEVICE_NAME = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
MAX_NAME_BYTES = 150
MAX_PATH_CHARS = 1000


def one_line(text: str) -> str:
    """Without line ends and control characters, whoever the words are from."""
    return CONTROL.sub(" ", text)


class DownloadError(Exception):
    """Why there is no model, in one line for the user that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Trouble(Exception):
    """What may go better at the next try. `wait_s`: how long the server wants to be left alone."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(one_line(message))
        self.wait_s = wait_s


# -- names and folders


def safe_name(text: str) -> str:
    """A name for a file in our cache, whatever a URL said: no folders, nothing special on any system."""
    name = BAD_IN_NAMES.sub("_", text).strip(" ").rstrip(". ")
    name = "_" + name if not name or name[0] == "." or DEVICE_NAME.fullmatch(name) else name
    while len(name.encode("utf-8")) > MAX_NAME_BYTES:
        stem, dot, suffix = name.rpartition(".")
        name = f"{stem[:-1]}.{suffix}" if dot and len(suffix) < 20 and len(stem) > 1 else name[:-1]
    return name


def is_safe_path(path: str) -> bool:
    """Whether a file may be stored under this path below a folder: `safe_name` finds nothing to change."""
    return len(path) <= MAX_PATH_CHARS and all(safe_name(part) == part for part in path.split("/"))


def check_space(folder: Path, n_bytes: int) -> None:
    """DownloadError rather than a full disk later."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return  # some file systems don't tell
    if free < n_bytes:
        raise DownloadError(
            f"not enough room in {folder}: {megabytes(n_bytes)} needed, {megabytes(free)} "
            "free; free some space, or choose another disk with LLAMA_SRV_CACHE or -m"
        )


def disk_advice(error: OSError, path: Path) -> str:
    """One line for an error of the file system."""
    where = f"({error.filename or path})"
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG):
        return (
            f"the disk is full {where}: free some space, then run this again to go on, or choose another "
            "disk with LLAMA_SRV_CACHE or -m"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"no permission to write {where}: choose another folder with LLAMA_SRV_CACHE or -m"
    return f"{error.strerror or error} {where}: put that right, then run this again"


# -- the lock


@contextlib.contextmanager
def exclusive(path: Path, waiting: Callable[[], None], sleep: Callable[[float], None]) -> Iterator[None]:
    """Hold the lock file `path`, after waiting for whoever has it. A crash releases it."""
    file = _locked(path, waiting, sleep)
    try:
        yield
    finally:
        if os.name == "posix":
            path.unlink(missing_ok=True)  # while we have it: a successor's must not be removed
        file.close()
        if os.name != "posix":
            with contextlib.suppress(OSError):  # here an open file stays: another one waits for it
                path.unlink()


def _locked(path: Path, waiting: Callable[[], None], sleep: Callable[[float], None]) -> Any:
    has_told = False
    while True:
        file = open(path, "ab")
        try:
            while not _try_lock(file):
                if not has_told:
                    waiting()
                    has_told = True
                sleep(LOCK_POLL_S)
            with contextlib.suppress(FileNotFoundError):  # its last holder may have removed it meanwhile
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _try_lock(file: Any) -> bool:
    """False if somebody else has it. Where the file system has no locks there is none to wait for."""
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


def megabytes(n: int) -> str:
    """For people."""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


class Bar:
    """What shows how far something is: a line that is written over on a terminal, elsewhere one every ten seconds.
    Never raises.

    `stream` is stderr unless given; `say` takes the lines instead of it; `clock` counts seconds.
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
        self._width = 0  # of what is on the terminal's line now
        self._begun = self._now = self._next = 0.0

    def begin(self) -> None:
        """From now on time is counted."""
        self._begun = self._now = self._clock()
        self._next = self._begun + (0.0 if self._is_live else LINE_EVERY_S)

    def is_due(self) -> bool:
        """Whether it is time to `draw`."""
        self._now = self._clock()
        return self._now >= self._next

    @property
    def seconds(self) -> float:
        """How long it has taken, when that was asked."""
        return max(self._now - self._begun, 0.001)

    def draw(self, label: str, share: float | None, text: str) -> None:
        """Show `share` of 1 (None where nobody knows) as a bar, with its label and what else there is to say."""
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
        """Take the bar off the terminal."""
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def say(self, text: str) -> None:
        """A line that stays."""
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
    """How far the download of a file is."""

    _label, _at_start = "", 0
    _size: int | None = None

    def start(self, label: str, done: int, size: int | None) -> None:
        """A file begins, or goes on, at `done` of `size` bytes."""
        self._label, self._size, self._at_start = label, size, done
        self.begin()
        size_text = f", {megabytes(size)}" if size is not None else ""
        self.say(f"downloading {label}{size_text}" + (f", going on at {megabytes(done)}" if done else ""))

    def show(self, done: int) -> None:
        """So many bytes are there."""
        if self.is_due():
            rate = (done - self._at_start) / self.seconds
            share = min(done / self._size, 1.0) if self._size else None
            self.draw(self._label, share, f"{megabytes(done)}  {megabytes(int(rate))}/s")
