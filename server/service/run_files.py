"""Files that say that this server runs: its process id, and its state as JSON. Written by the main thread.

Whole or not at all: a new file is put in the place of the old one. They are removed at the end, unless another server
has put its own there meanwhile. Imports nothing of the product.
"""

from __future__ import annotations

import json
import os
from pathlib import Path


class RunFileError(OSError):
    """A file that the user asked for can't be written; one line that says what to do."""


class RunFile:
    """One file, owned by the process that wrote it last. `option` is how the user asked for it."""

    def __init__(self, option: str, path: str) -> None:
        self._option = option
        self._path = Path(path)
        self._new = self._path.with_name(f".{self._path.name}.{os.getpid()}.new")
        self._text = ""
        self._coming = ""  # what is being put in its place: a signal handler may call `remove` meanwhile

    def write(self, text: str) -> None:
        """Replace the content; RunFileError. The same content again costs nothing."""
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
        """Take it away if it is still ours. Never raises."""
        try:
            self._new.unlink(missing_ok=True)
            if self._coming and self._path.read_text("utf-8") in (self._text, self._coming):
                self._path.unlink()
        except (OSError, UnicodeDecodeError):
            pass  # gone already, or not ours any more
        self._text = self._coming = ""


class RunFiles:
    """`--pid-file` and `--state-file`, either of which may be None."""

    def __init__(self, pid_file: str | None, state_file: str | None) -> None:
        self._pid = RunFile("--pid-file", pid_file) if pid_file else None
        self._state = RunFile("--state-file", state_file) if state_file else None

    def write(self, state: str, **fields: object) -> None:
        """Say that this process runs and is in `state`; RunFileError."""
        if self._pid:
            self._pid.write(f"{os.getpid()}\n")
        if self._state:
            text = json.dumps({"state": state, "pid": os.getpid(), **fields}, ensure_ascii=False) + "\n"
            self._state.write(text.encode("utf-8", "backslashreplace").decode())  # bytes of names that are no UTF-8

    def remove(self) -> None:
        """Both, if they are ours."""
        for file in (self._pid, self._state):
            if file:
                file.remove()
