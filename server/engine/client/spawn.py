"""Starts the engine's process, which runs this same program.

`launch` uses it before nearly all other imports, so that both processes start at the same time. So this module imports
as little as possible. `child` starts later engines with it, `loading.starter` a spare process.

It uses `subprocess` with plain pipes (no fork, no inherited descriptors), which works the same on Windows.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from server.program import make_own_command

FLAG = "--engine-process"


def make_engine_command(*hints: str) -> list[str]:
    """The command that runs this program as the engine's process; see `process.main` for the hints."""
    return make_own_command(FLAG, *hints, is_bare=True)


def start_process(command: Sequence[str]) -> subprocess.Popen:
    """Start `command` with an unbuffered pipe for each standard stream. OSError if it can't be started."""
    return subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        **_make_own_group(),
    )


def end_process(process: subprocess.Popen) -> None:
    """End a process that hasn't become a `Child`."""
    process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    process.wait()


def _make_own_group() -> dict[str, Any]:
    """Arguments for a process group of its own, so that Ctrl-C in the terminal reaches the web process only."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}
