"""Receives the log of llama.cpp and ggml as whole lines.

The callback runs on any native thread, so it only joins continuations, keeps the last lines and passes each line on.
It needs the GIL, so functions that may wait for a native thread must be bound as `call`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from ctypes_api.ggml import GGML_LOG_LEVEL_CONT, GGML_LOG_LEVEL_ERROR, GGML_LOG_LEVEL_INFO, ggml_log_callback

LogCallback = Callable[[int, str], None]
_REMEMBERED = 64  # lines kept, and as many error lines
_LONGEST = 1 << 16  # characters; longer unfinished lines are cut


class NativeLog:
    """Owns the C callback; must outlive the library's use of it."""

    def __init__(self, sink: LogCallback | None = None) -> None:
        self.sink = sink
        self.c_callback = ggml_log_callback(self._on_text)
        self._lock = threading.Lock()  # guards the fields below: several native threads may log at once
        self._level = GGML_LOG_LEVEL_INFO
        self._pending = ""
        self._count = 0
        self._recent: deque[tuple[int, str]] = deque(maxlen=_REMEMBERED)
        self._errors: deque[tuple[int, str]] = deque(maxlen=_REMEMBERED)  # apart: other lines would push them out

    def mark(self) -> int:
        """The current place in the log, for `list_errors_since` and `list_lines_since`."""
        with self._lock:
            return self._count

    def list_errors_since(self, mark: int) -> list[str]:
        """The error lines logged after `mark`, oldest first, at most the last 64 of the process."""
        with self._lock:
            return [text for number, text in self._errors if number >= mark]

    def list_lines_since(self, mark: int) -> list[str]:
        """The lines logged after `mark`, oldest first, at most the last 64 of the process."""
        with self._lock:
            return [text for number, text in self._recent if number >= mark]

    def _on_text(self, level: int, text: bytes | None, _user_data: object) -> None:
        with self._lock:
            lines = self._take(level, (text or b"").decode("utf-8", "replace"))
        if self.sink is not None:  # outside the lock, because a sink may log or be slow
            for line_level, line in lines:
                self.sink(line_level, line)

    def _take(self, level: int, text: str) -> list[tuple[int, str]]:
        """Add `text`. Returns the lines that it completes, with their levels."""
        complete = []
        if level != GGML_LOG_LEVEL_CONT:
            if self._pending:  # a new message ends an unfinished line
                complete.append((self._level, self._pending))
            self._level, self._pending = level, ""
        *lines, self._pending = (self._pending + text).split("\n")
        if len(self._pending) > _LONGEST:
            lines.append(self._pending)
            self._pending = ""
        complete += [(self._level, line) for line in lines]
        for line_level, line in complete:
            self._recent.append((self._count, line))
            if line_level == GGML_LOG_LEVEL_ERROR:
                self._errors.append((self._count, line))
            self._count += 1
        return complete
