"""Helpers of the scripts in this folder: one-line errors, the cache folder, progress, temporary folders, child
processes.

Runs on the main thread of the script that was started. Imports the standard library and `server.program`. It can be
imported on Python 3.8, so that an old interpreter prints a clear message instead of a syntax error.

The way not taken: downloading with urllib. The ordinary clients (npm, pip) know the user's mirrors, proxies and
certificates.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from server.program import ROOT as ROOT  # noqa: E402 (all three are imported from here by other scripts)
from server.program import find_cache_folder as find_cache_folder  # noqa: E402
from server.program import stop_child as stop_child  # noqa: E402

PYTHON_NEEDED = (3, 10)
STALE_SECONDS = 24 * 3600  # age at which a temporary folder counts as left over: longer than any run
TEMP_PREFIX = ".tmp-"


class Failure(Exception):
    """An error as one line for the user that says what to do next. If `final`, no other download source is tried."""

    final = False


class ClientMissing(Failure):
    """The program for the download (npm, pip) isn't installed."""


class WrongContent(Failure):
    """A file isn't what libs.lock.json says. No other source is tried, so that the user notices."""

    final = True


class DiskFull(Failure):
    final = True


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP as an exception, so that temporary folders are removed."""


# --- folders ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def make_temp_folder(parent: Path, label: str) -> Iterator[Path]:
    """A temporary folder in `parent`, removed at the end. Being on the same file system, it allows atomic renames."""
    parent.mkdir(parents=True, exist_ok=True)
    remove_stale(parent)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{TEMP_PREFIX}{label}-", dir=parent))
    except OSError as error:
        error.filename = str(parent)  # the name of the temporary folder would not help the user
        raise
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale(parent: Path, now: float | None = None) -> None:
    """Delete temporary folders that are older than STALE_SECONDS."""
    limit = (time.time() if now is None else now) - STALE_SECONDS
    for entry in parent.glob(TEMP_PREFIX + "*"):
        with contextlib.suppress(OSError):
            if entry.stat().st_mtime < limit:
                shutil.rmtree(entry, ignore_errors=True)


def swap_in(new: Path, target: Path, temp: Path) -> None:
    """Rename folder `new` to `target`. An older `target` is moved to `temp` first, and back on failure. Raises Failure
    or OSError."""
    aside: Path | None = None
    for attempt in range(5):
        try:
            os.rename(new, target)
            return
        except OSError as error:
            if not target.exists() and not target.is_symlink():
                if aside is not None:
                    os.rename(aside, target)
                raise
            last = error
        aside = temp / f"old-{attempt}"
        try:
            os.rename(target, aside)
        except FileNotFoundError:
            aside = None
        except OSError as error:
            raise Failure(
                f"{target} is in use ({error.strerror}): stop the server that runs from it, then run this again"
            ) from error
    raise Failure(f"{target} can't be replaced ({last.strerror}): stop other runs of this script, then run it again")


def replace_file(new: Path, target: Path) -> None:
    """Rename `new` to `target`, atomically. Raises Failure if `target` is in use."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(new, target)
    except PermissionError as error:
        raise Failure(f"{target} is in use: stop the program that has it open, then run this again") from error


def check_space(folder: Path, needed: int) -> None:
    """Raise DiskFull if `needed` bytes aren't free on the disk of `folder`."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(
            f"not enough disk space in {folder}: {format_megabytes(needed)} needed, {format_megabytes(free)} free; "
            "free some space, or choose another disk with LLAMA_SRV_CACHE or --dest"
        )


# --- this machine -------------------------------------------------------------------------------------------


def get_this_platform(system: str | None = None, tag: str | None = None, pointer_bits: int | None = None) -> str:
    """The platform of this process, such as `linux-x64`. A 32-bit Python on a 64-bit kernel counts as 32-bit."""
    system = sys.platform if system is None else system
    tag = (sysconfig.get_platform() if tag is None else tag).lower()
    bits = struct.calcsize("P") * 8 if pointer_bits is None else pointer_bits
    name = {"win32": "windows", "darwin": "macos"}.get(system, system)
    if system == "darwin" and tag.endswith("universal2"):
        tag = os.uname().machine
    if tag.endswith(("arm64", "aarch64")):
        machine = "arm64" if bits == 64 else "armv7l"
    elif tag.endswith(("amd64", "x86_64")):
        machine = "x64" if bits == 64 else "x86"
    else:
        machine = {"win32": "x86"}.get(tag, tag.rpartition("-")[2])
    return f"{name}-{machine}"


def read_glibc_version() -> str | None:
    """glibc's version, such as `"2.36"`; None if the C library is another one (musl, macOS, Windows)."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, ValueError, OSError):
        return None
    return version if name == "glibc" and version else None


def parse_version(version: str) -> tuple:
    return tuple(int(part) for part in version.split("."))


# --- progress and wording -----------------------------------------------------------------------------------


class Progress:
    """Shows progress: on a terminal as one line that is overwritten, elsewhere as a new line every `every` seconds."""

    def __init__(
        self, stream=None, quiet: bool = False, every: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.quiet = quiet
        self.every = every
        self.clock = clock
        self.live = bool(getattr(self.stream, "isatty", lambda: False)())
        self._shown = 0
        self._next = 0.0

    def start(self) -> None:
        self._next = self.clock() + self.every

    def show(self, text: str) -> None:
        if self.quiet:
            return
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            text = text[:width]
            self.stream.write("\r" + text.ljust(self._shown))
            self._shown = len(text)
            self.stream.flush()
        elif self.clock() >= self._next:
            self._next = self.clock() + self.every
            self.say(text)

    def clear(self) -> None:
        if self.live and self._shown:
            self.stream.write("\r" + " " * self._shown + "\r")
            self.stream.flush()
        self._shown = 0

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.clear()
        if not self.quiet:
            print(text, file=self.stream, flush=True)


def format_megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 99.5e6 else f"{count / 1e6:.0f} MB"


def render_bar(label: str, done: int, total: int, seconds: float) -> str:
    """`label [####....]  43 %  4.6 MB of 10.8 MB  3 s`; at most 99 %, because the client still has to finish."""
    share = min(done / total, 0.99) if total else 0.0
    blocks = int(share * 20)
    return (
        f"{label} [{'#' * blocks}{'.' * (20 - blocks)}] {int(share * 100):3d} %  "
        f"{format_megabytes(min(done, total))} of {format_megabytes(total)}  {seconds:.0f} s"
    )


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


# --- children -----------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    code: int
    output: str


def compute_folder_size(folder: Path) -> int:
    """Bytes below `folder`. Files that vanish meanwhile count as 0."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size
    return total


def run_child(
    command: list, *, folder: Path, describe: Callable[[float], str], progress: Progress, env: dict | None = None
) -> Outcome:
    """Run `command` in `folder`, with its output in a file there. `describe(seconds)` returns the progress line.

    An exception, such as KeyboardInterrupt, ends the child, on POSIX with its process group.
    """
    log = folder / "client.log"
    own_group = {"start_new_session": True} if os.name == "posix" else {}
    begun = time.monotonic()
    progress.start()
    child = None
    with open(log, "wb") as out:
        try:
            with hold_back_signals():
                try:
                    child = subprocess.Popen(
                        command,
                        cwd=folder,
                        env=env,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        **own_group,
                    )
                except OSError as error:
                    raise Failure(f"{command[0]} can't be started ({error.strerror}): reinstall it") from error
            while True:
                try:
                    child.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    progress.show(describe(time.monotonic() - begun))
        except BaseException:
            if child is not None:
                stop_child(child, 5.0)
            raise
        finally:
            progress.clear()
    return Outcome(child.returncode, log.read_text(encoding="utf-8", errors="replace"))


# --- exceptions become one line and an exit code ------------------------------------------------------------


def require_python(version: tuple | None = None) -> None:
    version = tuple(sys.version_info[:3]) if version is None else version
    if version < PYTHON_NEEDED:
        raise Failure(
            "Python %d.%d or newer is needed, this is %d.%d: start this with a newer python3"
            % (PYTHON_NEEDED + tuple(version[:2]))
        )


def explain_os_error(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"the disk is full{where}: free some space, or choose another disk with LLAMA_SRV_CACHE or --dest"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"no permission to write{where}: make that folder writable, or choose another with --dest "
            "or LLAMA_SRV_CACHE"
        )
    return f"{error.strerror or error}{where}: fix that, then run this again"


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated inside the block, so that `finally` blocks run. On other threads than
    the main one it does nothing."""

    def raise_terminated(number, frame):
        raise Terminated(number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {}
    try:
        for name in names:
            before[name] = signal.signal(getattr(signal, name), raise_terminated)
    except ValueError:
        before.clear()  # only the main thread can set signal handlers
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


@contextlib.contextmanager
def hold_back_signals() -> Iterator[None]:
    """Python's handlers of SIGINT, SIGTERM and SIGHUP wait for the end of the block; then the first signal is
    delivered. So no signal comes between a child's start and the assignment to its variable. Does nothing outside the
    main thread."""
    came: list = []
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {}
    try:
        for name in names:
            number = getattr(signal, name)
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, lambda number, frame: came.append(number))
    except ValueError:
        before.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def run_main(name: str, body: Callable[[], int]) -> int:
    """Call `body` and return its exit code. Expected errors become one line on stderr and code 1, 130 or 143."""

    def complain(text: str, code: int) -> int:
        print(f"{name}: " + " ".join(text.split()), file=sys.stderr, flush=True)
        return code

    try:
        require_python()
        with raise_on_signals():
            return body()
    except Failure as failure:
        return complain(str(failure), 1)
    except Terminated:
        return complain("stopped; no partial files are left, run it again to continue", 143)
    except KeyboardInterrupt:
        return complain("interrupted; no partial files are left, run it again to continue", 130)
    except OSError as error:
        return complain(explain_os_error(error), 1)
