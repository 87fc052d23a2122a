"""Removes the UNIX sockets of a server that was killed: a small process that waits for the server's end.

`Janitor` is the server's side (main thread, only where it listens on such sockets), `main` the process, which the
hidden flag `--janitor` starts. It reads from a pipe that nobody writes to, until the server has gone, whatever it died
of. Then it removes what is still there and is still the same file (another server may have put its own in that place).

Not taken: leaving that to the engine's process, which on Linux is to die with the server at once; leaving it to the
next start (that takes such a socket over, but may never come).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence

from server.program import own_command

FLAG = "--janitor"
IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # meant for the server
END_S = 5.0


class Janitor:
    """The process, as long as the server runs. With no paths there is none."""

    def __init__(self, paths: Iterable[str]) -> None:
        """OSError if it can't be started."""
        rows = [
            f"{status.st_dev}:{status.st_ino}:{os.path.abspath(path)}" for path in paths for status in [os.lstat(path)]
        ]
        self._process = (
            None
            if not rows
            else subprocess.Popen(
                own_command(FLAG, *rows, is_bare=True),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def close(self) -> None:
        """The server has removed everything itself. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.stdin.close()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main(rows: Sequence[str]) -> None:
    """Wait for the end of stdin, then remove the files of `rows` (device:inode:path)."""
    for name in IGNORED_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.chdir("/")  # keeps no folder busy
    while os.read(0, 4096):
        pass
    for row in rows:
        device, inode, path = row.split(":", 2)
        remove(path, int(device), int(inode))
    sys.exit(0)


def remove(path: str, device: int, inode: int) -> None:
    """Unlink a file, if it is the one that was meant."""
    try:
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) == (device, inode):
            os.unlink(path)
    except OSError:
        pass  # gone, or not ours to remove
