"""Starts this program once more, as the engine's process, and only that.

Called by `launch` before nearly everything else is imported: so the two processes get ready at the same time, and this
module imports as little as it can. `child` calls it for every engine after the first.

Plain pipes and `subprocess` only, so it works the same on Windows: no fork, no descriptors to pass on.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from server.program import own_command

FLAG = "--engine-process"


def engine_command(*hints: str) -> list[str]:
    """This program once more, as the engine's process; see `process.main` for the hints."""
    return own_command(FLAG, *hints, is_bare=True)


def start_process(command: Sequence[str]) -> subprocess.Popen:
    """`command` with a pipe for each of its three streams, unbuffered. OSError if it can't be started."""
    return subprocess.Popen(
        list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, **_own_group()
    )


def end_process(process: subprocess.Popen) -> None:
    """End one that nobody has taken over."""
    process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    process.wait()


def _own_group() -> dict[str, Any]:
    """So that a Ctrl-C in the terminal reaches the web process only."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}
