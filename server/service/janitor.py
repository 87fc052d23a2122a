"""Removes the UNIX sockets of a server that was killed. A small process waits for the server's end.

`Janitor` is the server's side (main thread), `main` is the process, started with the hidden flag `--janitor` if the
server listens on such sockets. The process reads from a pipe that the server holds open, so it notices any end of the
server. Then it removes the sockets that are still the server's; another server may have created its own in the same
place.

Not taken: doing this in the engine's process, which on Linux is killed together with the server; doing it at the
next start, which may never come.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence

from server.program import make_own_command

FLAG = "--janitor"
IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # those are meant for the server
END_S = 5.0  # longest wait for the process when the server ends


class Janitor:
    """The server's side. Without paths, no process is started."""

    def __init__(self, paths: Iterable[str]) -> None:
        """OSError if the process can't be started."""
        rows = [
            f"{status.st_dev}:{status.st_ino}:{os.path.abspath(path)}" for path in paths for status in [os.lstat(path)]
        ]
        self._process = (
            None
            if not rows
            else subprocess.Popen(
                make_own_command(FLAG, *rows, is_bare=True),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def close(self) -> None:
        """End the process, once the server has removed its sockets itself. May be called twice."""
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
    os.chdir("/")  # so that no folder is in use
    while os.read(0, 4096):
        pass
    for row in rows:
        device, inode, path = row.split(":", 2)
        remove(path, int(device), int(inode))
    sys.exit(0)


def remove(path: str, device: int, inode: int) -> None:
    """Remove a file if it is still the same one."""
    try:
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) == (device, inode):
            os.unlink(path)
    except OSError:
        pass  # it was removed already, or may not be removed
