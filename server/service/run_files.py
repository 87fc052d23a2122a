"""Files that show that this server is running: its process id, and its state as JSON. Written by the main thread.

They are written whole or not at all: a new file replaces the old one. They are removed at the end, unless another
server has replaced them meanwhile. Imports nothing of the program.
"""

from __future__ import annotations

import json
import os
from pathlib import Path


class RunFileError(OSError):
    """A file of --pid-file or --state-file can't be written."""


class RunFile:
    """One file, which belongs to the process that wrote it last. `option` is the option that asked for it."""

    def __init__(self, option: str, path: str) -> None:
        self._option = option
        self._path = Path(path)
        self._new = self._path.with_name(f".{self._path.name}.{os.getpid()}.new")
        self._text = ""
        self._coming = ""  # the text that is being written; a signal handler may call `remove` then

    def write(self, text: str) -> None:
        """Replace the content unless it is the same. RunFileError."""
        if text == self._text:
            return
        self._coming = text
        try:
            try:
                self._new.write_text(text, "utf-8")
                os.replace(self._new, self._path)
            finally:
                self._new.unlink(missing_ok=True)
        except OSError as error:
            raise RunFileError(
                f"{self._option} {self._path} can't be written ({error.strerror}): name another file"
            ) from None
        self._text = text

    def remove(self) -> None:
        """Remove the file if it still belongs to this process. Never raises."""
        try:
            self._new.unlink(missing_ok=True)
            if self._coming and self._path.read_text("utf-8") in (self._text, self._coming):
                self._path.unlink()
        except (OSError, UnicodeDecodeError):
            pass  # it was removed already, or isn't ours any more
        self._text = self._coming = ""


class RunFiles:
    """`--pid-file` and `--state-file`; either may be None."""

    def __init__(self, pid_file: str | None, state_file: str | None) -> None:
        self._pid = RunFile("--pid-file", pid_file) if pid_file else None
        self._state = RunFile("--state-file", state_file) if state_file else None

    def write(self, state: str, **fields: object) -> None:
        """Write that this process is in `state`. RunFileError."""
        if self._pid:
            self._pid.write(f"{os.getpid()}\n")
        if self._state:
            text = json.dumps({"state": state, "pid": os.getpid(), **fields}, ensure_ascii=False) + "\n"
            # names of files may have bytes that aren't UTF-8
            self._state.write(text.encode("utf-8", "backslashreplace").decode())

    def remove(self) -> None:
        for file in (self._pid, self._state):
            if file:
                file.remove()
