"""The program itself: where it is, what it is called, how it starts itself again, where it keeps its cache.

A leaf, used on any thread. It imports little, because every start needs it. The one-file program
(build_scripts/one_file.sh) unpacks itself into `<folder>/<id>` and passes its own path in LLAMA_SRV_FILE. While it
runs, it holds a shared lock on that folder. It removes folders of other versions that haven't been used for two weeks
and aren't locked.

Not taken: removing the folder when the program ends. The next start would unpack again, and a killed program can't
remove it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

ROOT = Path(__file__).resolve().parents[1]
"""The folder that contains `libs/` and `public/`: the checkout, or the folder of an unpacked executable."""
OWN_FILE = "LLAMA_SRV_FILE"
OWNED = "LLAMA_SRV_OWNED"
"""The environment variable that a command sets for a server that it starts: the server ends when its standard input
ends."""
LOCK = ".in-use"
NEW = ".new-"  # the prefix of folders into which one_file.sh is unpacking
UNUSED_S = 14 * 24 * 3600  # seconds without use after which a folder is removed
HALF_DONE_S = 24 * 3600  # the same for a folder that was not unpacked completely


def is_frozen() -> bool:
    """Whether this is an executable rather than Python source."""
    return bool(getattr(sys, "frozen", False))


def choose_advice(source: str, frozen: str) -> str:
    """`frozen` in an executable, which has no scripts; else `source`."""
    return frozen if is_frozen() else source


def describe_program() -> str:
    """How the user starts this program."""
    return find_own_file().name if is_frozen() else "python llama_srv.py"


def make_own_command(*words: str, is_bare: bool = False) -> list[str]:
    """The command line that starts this program again with `words`. `is_bare`: without Python's `site` module, so
    without installed packages."""
    if is_frozen():
        return [sys.executable, *words]
    return [sys.executable, *(["-S"] if is_bare else []), str(ROOT / "llama_srv.py"), *words]


def find_cache_folder(environ: Mapping[str, str] | None = None, system: str = sys.platform) -> Path:
    """The user's folder for downloads and other files that can be made again. OSError for a user without a home."""
    environ = os.environ if environ is None else environ
    if environ.get("LLAMA_SRV_CACHE"):
        return Path(os.path.expanduser(environ["LLAMA_SRV_CACHE"]))
    if system == "win32":
        return Path(environ.get("LOCALAPPDATA") or _find_home(environ) / "AppData" / "Local") / "llama_srv" / "cache"
    if system == "darwin":
        return _find_home(environ) / "Library" / "Caches" / "llama_srv"
    return Path(environ.get("XDG_CACHE_HOME") or _find_home(environ) / ".cache") / "llama_srv"


def keep_bytecode() -> None:
    """Have Python keep compiled modules in the cache folder if it doesn't keep them in the program's folder: because
    that can't be written, or because of PYTHONDONTWRITEBYTECODE. Compiling them at each start takes 0.2 s."""
    is_kept = (ROOT / "server" / "__pycache__").is_dir() or os.access(ROOT, os.W_OK)
    if (sys.dont_write_bytecode or not is_kept) and not (is_frozen() or sys.pycache_prefix):
        with contextlib.suppress(OSError):
            sys.pycache_prefix = str(find_cache_folder() / "bytecode")
            sys.dont_write_bytecode = False


def _find_home(environ: Mapping[str, str]) -> Path:
    try:
        return Path(environ.get("HOME") or Path.home())
    except RuntimeError:
        raise OSError("this user has no home folder: name a folder in LLAMA_SRV_CACHE") from None


def open_standard_streams() -> None:
    """Open the null device for each closed standard stream. Otherwise the next file opened would get the stream's
    number, and native code would print into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def can_show_progress() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def stop_child(child: subprocess.Popen, patience: float) -> None:
    """End a child that leads a process group. Kill it after `patience` seconds, then the rest of its group."""
    import signal  # here, because few starts stop a child
    from subprocess import TimeoutExpired

    def send(number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)

    if os.name == "posix":
        send(signal.SIGTERM)
    else:
        child.terminate()
    try:
        child.wait(timeout=patience)
    except TimeoutExpired:
        child.kill()
    if os.name == "posix":
        send(signal.SIGKILL)
    child.wait()


def find_own_file() -> Path:
    """The file that the user started: the one-file program, the executable in its folder, or llama_srv.py."""
    given = os.environ.get(OWN_FILE)
    if given and is_frozen():
        return Path(given)
    return Path(sys.executable if is_frozen() else sys.argv[0])


def is_one_file() -> bool:
    """Whether the file that the user started is the whole program."""
    if sys.platform == "win32":  # a program that isn't one file has the folder `_internal` beside it
        return is_frozen() and not (Path(sys.executable).parent / "_internal").is_dir()
    return is_frozen() and bool(os.environ.get(OWN_FILE))


def find_unpacked_folder() -> Path | None:
    """The folder into which the one-file program was unpacked; None if this isn't one."""
    return Path(sys.executable).parent if is_frozen() and os.environ.get(OWN_FILE) else None


class UnpackedFolder:
    """A lock on the folder of the one-file program, so that no other program removes it. Without a folder all methods
    do nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock = _try_lock(folder, shared=True) if folder else None

    def remove_unused(self, now: float | None = None) -> None:
        """Note that this version is in use. Remove other versions that haven't been used for two weeks, and folders
        that weren't unpacked completely."""
        if self._folder is None or self._lock is None:
            return
        now = time.time() if now is None else now
        with contextlib.suppress(OSError):
            os.utime(self._folder, (now, now))
            for other in self._folder.parent.iterdir():
                if other != self._folder and other.is_dir():
                    _remove_if_unused(other, now)

    def close(self) -> None:
        """Release the lock. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove_if_unused(folder: Path, now: float) -> None:
    import shutil  # here, because it imports much, and only the one-file program has folders to remove

    age = now - folder.stat().st_mtime
    if folder.name.startswith(NEW):
        if age > HALF_DONE_S:
            shutil.rmtree(folder, ignore_errors=True)
        return
    if age <= UNUSED_S or not (folder / "llama-srv").is_file():
        return
    lock = _try_lock(folder, shared=False)
    if lock is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _try_lock(folder: Path, *, shared: bool) -> int | None:
    """A descriptor that holds the lock of `folder`; None if the lock can't be had."""
    try:
        import fcntl

        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
