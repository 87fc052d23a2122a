"""Log lines of the server: the stdlib's `logging` under one root name, text for people on stderr.

A leaf. Levels are those of `logging`; llama.cpp's own lines come through the logger "llama". Nothing is set up at
import: `setup` is called once by `app`, tests may leave it out.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

ROOT = "llama_srv"


def get_logger(name: str) -> logging.Logger:
    """The logger of one part of the server, e.g. "engine"."""
    return logging.getLogger(f"{ROOT}.{name}")


class TextFormatter(logging.Formatter):
    """`12:34:56 I engine: message`; errors carry their traceback."""

    default_time_format = "%H:%M:%S"
    default_msec_format = ""

    def format(self, record: logging.LogRecord) -> str:
        """One record as one line (plus a traceback)."""
        name = record.name.removeprefix(ROOT + ".")
        line = f"{self.formatTime(record)} {record.levelname[0]} {name}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def setup(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send all log lines of at least `level` to `stream` (stderr)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(TextFormatter())
    root = logging.getLogger(ROOT)
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
