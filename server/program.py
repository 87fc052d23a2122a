"""This program itself: where it is, what it is called, how it starts itself once more, where it keeps its cache.

A leaf, used at start on the main thread; it imports little, because every start needs it. From a checkout most of it is
trivial. The one-file program (build_scripts/one_file.sh) has unpacked itself into `<folder>/<id>` and names its own
file in LLAMA_SRV_FILE; folders of other versions that nobody has used for two weeks are removed here. A running program
holds a shared lock on its folder, so that no other program removes it.

Not taken: removing the folder at the end. The next start would unpack again, and a killed program can't.
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
"""The folder with `libs/` and `public/`: of the checkout, or where a frozen program was unpacked."""
OWN_FILE = "LLAMA_SRV_FILE"
OWNED = "LLAMA_SRV_OWNED"
"""Of a server that a command has started: it ends when its input does, so when that command does."""
LOCK = ".in-use"
NEW = ".new-"  # what one_file.sh calls folders that it is unpacking into
UNUSED_S = 14 * 24 * 3600
HALF_DONE_S = 24 * 3600


def is_frozen() -> bool:
    """Whether this is an executable rather than Python source."""
    return bool(getattr(sys, "frozen", False))


def advice(source: str, frozen: str) -> str:
    """What to do: `source` may name the scripts of a checkout, which an executable doesn't bring along."""
    return frozen if is_frozen() else source


def program() -> str:
    """How the user starts this program, for help and messages."""
    return own_file().name if is_frozen() else "python llama_srv.py"


def own_command(*words: str, is_bare: bool = False) -> list[str]:
    """The command line that starts this program once more with `words`. `is_bare`: without the interpreter's `site`,
    so that nothing is imported that an environment could have installed."""
    if is_frozen():
        return [sys.executable, *words]
    return [sys.executable, *(["-S"] if is_bare else []), str(ROOT / "llama_srv.py"), *words]


def cache_folder(environ: Mapping[str, str] | None = None, system: str = sys.platform) -> Path:
    """Where what can be fetched again is kept: per user, outside the program. OSError for a user without a home."""
    environ = os.environ if environ is None else environ
    if environ.get("LLAMA_SRV_CACHE"):
        return Path(os.path.expanduser(environ["LLAMA_SRV_CACHE"]))
    if system == "win32":
        return Path(environ.get("LOCALAPPDATA") or _home(environ) / "AppData" / "Local") / "llama_srv" / "cache"
    if system == "darwin":
        return _home(environ) / "Library" / "Caches" / "llama_srv"
    return Path(environ.get("XDG_CACHE_HOME") or _home(environ) / ".cache") / "llama_srv"


def _home(environ: Mapping[str, str]) -> Path:
    try:
        return Path(environ.get("HOME") or Path.home())
    except RuntimeError:
        raise OSError("this user has no home folder: name a folder in LLAMA_SRV_CACHE") from None


def open_standard_streams() -> None:
    """Give each standard stream that is closed to nobody. What is opened next would get its number, and with it what
    native code or a dying interpreter prints."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def shows_progress() -> bool:
    """Whether somebody looks at stderr, which a program without a console doesn't even have."""
    return sys.stderr is not None and sys.stderr.isatty()


def stop_child(child: subprocess.Popen, patience: float) -> None:
    """Ask a child (of a group of its own) to end, with all that it started; by force after `patience` seconds."""
    import signal  # here, because hardly any start stops a child
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


def own_file() -> Path:
    """The file that the user started: the one-file program, the executable in its folder, or llama_srv.py."""
    given = os.environ.get(OWN_FILE)
    if given and is_frozen():
        return Path(given)
    return Path(sys.executable if is_frozen() else sys.argv[0])


def is_one_file() -> bool:
    """Whether the file that the user started is the whole program."""
    if sys.platform == "win32":  # there PyInstaller unpacks elsewhere; the folder's program has it beside it
        return is_frozen() and not (Path(sys.executable).parent / "_internal").is_dir()
    return is_frozen() and bool(os.environ.get(OWN_FILE))


def unpacked_folder() -> Path | None:
    """The folder that the one-file program runs in; None if this isn't one."""
    return Path(sys.executable).parent if is_frozen() and os.environ.get(OWN_FILE) else None


class UnpackedFolder:
    """A hold on the folder of the one-file program: nobody removes it while this lives. Without one it does nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock = _try_lock(folder, shared=True) if folder else None

    def remove_unused(self, now: float | None = None) -> None:
        """Note that this version was used; remove those beside it that weren't for two weeks, and unfinished ones."""
        if self._folder is None or self._lock is None:
            return
        now = time.time() if now is None else now
        with contextlib.suppress(OSError):
            os.utime(self._folder, (now, now))
            for other in self._folder.parent.iterdir():
                if other != self._folder and other.is_dir():
                    _remove_if_unused(other, now)

    def close(self) -> None:
        """Let go of it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove_if_unused(folder: Path, now: float) -> None:
    import shutil  # here, because it brings archives along, and only the one-file program has what to remove

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
    """A descriptor that holds the lock of `folder`; None where there are no such locks or somebody else has it."""
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
