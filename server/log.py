"""The server's log: the standard library's `logging` below one root name, as text for people or JSON for programs.

A leaf, used by every thread. A record is one line; in text, its traceback follows as indented lines. Lines are written
whole, so several processes can append to one file. llama.cpp's lines come through the logger "llama", the access log
through "access". Control characters are escaped, so that text from clients can't forge lines or control a terminal.
Secrets are masked. If the disk is full, stderr is closed or nobody reads it, lines are lost, but a thread that logs
never waits and gets no exception (see `log_output`).
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TextIO

from server.log_output import FLUSH_S, FileSink, LogFileError, Output, Sink, StreamSink

ROOT = "llama_srv"
VERBOSE = 5
"""The level below DEBUG: whole requests and answers, with the text of users."""
LEVELS = {
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.INFO,
    "DEBUG": logging.DEBUG,
    "VERBOSE": VERBOSE,
}
LEVEL_BY_VERBOSITY = {
    0: logging.CRITICAL,
    1: logging.ERROR,
    2: logging.WARNING,
    3: logging.INFO,
    4: logging.DEBUG,
    5: VERBOSE,
}
"""The level for `--log-verbosity N`. The numbers are llama.cpp's; larger ones mean 5."""
LEVEL_NAMES = {
    logging.CRITICAL: "ERR",
    logging.ERROR: "ERR",
    logging.WARNING: "WARN",
    logging.INFO: "INFO",
    logging.DEBUG: "DEBUG",
    VERBOSE: "VERB",
}
COLORS = {"ERR": "\x1b[31m", "WARN": "\x1b[33m", "DEBUG": "\x1b[2m", "VERB": "\x1b[2m"}
COLOR_END = "\x1b[0m"
FORMATS = ("text", "json")
PROFILES = {
    "2024": {"stdout": True, "format": "json", "file": "llama.log"},
    "modern": {"stdout": False, "format": "text", "file": None},
}

MIN_SECRET = 5  # characters; masking shorter secrets would mask ordinary words
MAX_PATH = 256  # characters of a path in the access log
MAX_DEPTH = 20  # levels of nested values in a field
SAY_S = 0.2  # seconds that `say` waits for earlier log lines
REOPEN_S = 2.0  # seconds that `reopen` waits for each file
QUIET_ENDINGS = ("/health", "/health/live", "/health/ready", "/metrics")
"""Routes that monitoring asks for every few seconds: logged at DEBUG, unless they fail."""
STATIC_ENDINGS = (".js", ".mjs", ".css", ".svg", ".ico", ".png", ".woff2")
"""Files of the web page, logged in the same way."""
# Patterns, as texts: compiling them takes time, and the engine's process imports this module but formats no lines.
UNSAFE = "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
TOKENS = (
    (r"(?i)\b(bearer\s+)[\w.~+/=-]{6,}", r"\1***"),
    (r"\b(hf_|sk-)[\w-]{10,}", r"\1***"),
    (r"(://)[^/\s\"@]+@", r"\1***@"),
)
TOKEN_MARK = r"(?i)bearer|hf_|sk-|://"  # each line that one of TOKENS matches has this
NATIVE_FUNCTION = r"(\w+): "
PLAIN_WORD = r"[\w./:+%-]+"


class AccessRecord(Protocol):
    """The fields that `log_access` reads from the HTTP server's record of an answered request."""

    id: str
    client: str
    method: str
    path: str
    status: int
    n_bytes: int
    seconds: float
    complete: bool


def get_logger(name: str) -> logging.Logger:
    """The logger of one part of the server, e.g. "engine"."""
    return logging.getLogger(f"{ROOT}.{name}")


# -- setting up


def set_up(
    level: int | str = "INFO",
    *,
    format: str = "text",
    file: str | os.PathLike[str] | None = None,
    file_optional: bool = False,
    stream: TextIO | None = None,
    quiet: bool = False,
    colors: str = "auto",
    secrets: Iterable[str] = (),
) -> None:
    """Send all lines of at least `level` (a key of LEVELS, or a number) to `stream` (stderr) and `file`.

    `quiet` leaves out the stream. `colors` is on, off or auto (if the terminal can show them). `secrets` of 5
    characters or more are masked in every line. LogFileError if the file can't be opened; with `file_optional` the log
    has a warning instead. Another call replaces the settings.
    """
    if format not in FORMATS:
        raise ValueError(f"log format {format!r} is none of {', '.join(FORMATS)}")
    logging.raiseExceptions = False
    mask = Mask(secrets)
    trouble: LogFileError | None = None
    handlers: list[Handler] = []
    if file is not None:
        try:
            handlers.append(Handler(FileSink(file), _make_formatter(format, mask, dated=True)))
        except LogFileError as error:
            if not file_optional:
                raise
            trouble = error
    stream = stream if stream is not None else sys.stderr
    if not quiet and stream is not None:  # a program without a console has no stderr
        in_color = colors == "on" or colors == "auto" and _can_color(stream)
        sink = StreamSink(stream, utf8=format == "json")
        handlers.append(Handler(sink, _make_formatter(format, mask, color=in_color)))
    _install(handlers, LEVELS[level] if isinstance(level, str) else level)
    if trouble:
        get_logger("log").warning("no log file: %s", trouble)


def make_profile_settings(
    profile: str, *, disable: bool = False, format: str | None = None, file: str | None = None
) -> dict[str, Any]:
    """The arguments of `set_up` that follow from `--compat`, `--log-disable`, `--log-format` and `--log-file`. None
    means that an option wasn't given.

    With `--compat 2024` the default is JSON on stdout and in `llama.log`, and `--log-disable` leaves out the file.
    Otherwise it is text on stderr, and `--log-disable` leaves out the whole log.
    """
    row = PROFILES[profile]
    return {
        "format": format or row["format"],
        "file": None if disable else file or row["file"],
        "file_optional": not file,
        "stream": sys.stdout if row["stdout"] else None,
        "quiet": disable and not row["stdout"],
    }


def reopen() -> None:
    """Open the log files again by their names, after they have been moved."""
    for handler in _list_handlers():
        if not isinstance(handler.sink, FileSink):
            continue
        try:
            if handler.output.call(handler.sink.reopen, REOPEN_S):
                get_logger("log").info("log file %s reopened", handler.sink.path)
            else:
                get_logger("log").error(
                    "log file %s is blocked; it will be reopened once a write returns", handler.sink.path
                )
        except LogFileError as error:
            get_logger("log").error("the old log file stays in use: %s", error)


def hide(*secrets: str) -> None:
    """Mask further secrets."""
    for handler in _list_handlers():
        handler.formatter.mask.add(secrets)


def say(text: str, stream: TextIO | None, end: str = "\n") -> None:
    """Like `print`, but after the log lines so far, for which it waits at most `SAY_S`."""
    if stream is None:
        return
    flush(SAY_S)
    known = [
        handler
        for handler in [*_list_handlers(), *_speakers]
        if isinstance(handler.sink, StreamSink) and handler.sink.stream is stream
    ]
    if not known:
        known.append(Handler(StreamSink(stream, utf8=False), TextFormatter(Mask(()))))
        _speakers.append(known[0])
    with known[0].lock:
        known[0].output.put(text + end)


def flush(patience_s: float = FLUSH_S) -> None:
    """Wait until the lines so far are written, at most `patience_s` seconds for each output."""
    for handler in [*_list_handlers(), *_speakers]:
        handler.output.flush(patience_s)


def count_lost() -> int:
    """How many lines could not be written so far, in all processes."""
    return sum(handler.output.n_lost for handler in _list_handlers()) + sum(_lost_elsewhere)


def note_lost(n: int) -> None:
    """Add lines that an engine's process has lost to `count_lost`."""
    with _lost_lock:
        _lost_elsewhere[0] += n


_speakers: list[Handler] = []  # handlers of `say` for streams without log lines
_lost_elsewhere = [0]  # lines that engines' processes have lost
_lost_lock = threading.Lock()  # each engine has a thread `engine-reader` that adds to it


def _list_handlers() -> list[Handler]:
    return [handler for handler in logging.getLogger(ROOT).handlers if isinstance(handler, Handler)]


def _install(handlers: list[Handler], level: int) -> None:
    root = logging.getLogger(ROOT)
    old = list(root.handlers)
    # without a handler, logging would write to stderr
    root.handlers[:] = handlers or [logging.NullHandler()]  # type: ignore[list-item]
    root.setLevel(level)
    root.propagate = False
    for handler in old:
        handler.close()


def _make_formatter(
    format: str, mask: Mask, *, color: bool = False, dated: bool = False
) -> JsonFormatter | TextFormatter:
    return JsonFormatter(mask) if format == "json" else TextFormatter(mask, color=color, dated=dated)


def _can_color(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    if os.name == "nt" and not (os.environ.get("WT_SESSION") or os.environ.get("TERM")):
        return False  # the old console doesn't know color codes
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


# -- the model's name in lines of a server with several models

_subject = threading.local()


def set_subject(model: str) -> None:
    """Put the name of a model into all further lines of this thread; "" ends that."""
    _subject.model = model


def inherit(target: Callable[..., None]) -> Callable[..., None]:
    """Wrap the target function of a new thread: its lines name the same model as the calling thread's."""
    model = getattr(_subject, "model", "")

    def run(*args: object) -> None:
        set_subject(model)
        target(*args)

    return run


# -- what is logged


def log_access(record: AccessRecord) -> None:
    """Log one answered request; server errors are warnings. The path has no query, which may hold secrets."""
    is_quiet = record.status < 400 and (
        record.path.rstrip("/").endswith(QUIET_ENDINGS) or record.path.endswith(STATIC_ENDINGS)
    )
    level = logging.DEBUG if is_quiet else logging.WARNING if record.status >= 500 else logging.INFO
    path = record.path if len(record.path) <= MAX_PATH else record.path[:MAX_PATH] + "..."
    logger = get_logger("access")
    if not logger.isEnabledFor(level):
        return
    text = f"{record.client} {record.method or '-'} {path or '-'} {record.status}"
    text += "" if record.complete else " (not complete)"
    extra = {
        "fields": {"request_id": record.id, "bytes": record.n_bytes, "ms": round(record.seconds * 1000, 1)},
        "json_fields": {
            "client": record.client,
            "method": record.method,
            "path": path,
            "status": record.status,
            "complete": record.complete,
        },
    }
    # not `logger.log`, which would look for the calling function on the stack
    logger.handle(logger.makeRecord(logger.name, level, "", 0, text, (), None, "access_line", extra))


def handle_foreign(
    name: str, level: int, text: str, function: str, line: int, thread: str, created: float, trace: str
) -> None:
    """Log a record that the engine's process has made. `trace` is a formatted traceback, or ""."""
    logger = get_logger(name)
    if not logger.isEnabledFor(level):
        return
    record = logger.makeRecord(logger.name, level, "", line, f"{text}\n{trace}" if trace else text, (), None, function)
    record.created, record.msecs, record.threadName = created, created % 1 * 1e3, thread
    logger.handle(record)


def is_verbose() -> bool:
    """Whether `log_verbose` logs anything. Ask before computing its arguments."""
    return logging.getLogger(ROOT).isEnabledFor(VERBOSE)


def log_verbose(message: str, **fields: object) -> None:
    """At level VERBOSE, log a whole request, prompt or answer. `fields` are values that JSON can hold."""
    get_logger("verbose").log(VERBOSE, "%s", message, extra={"fields": fields}, stacklevel=2)


# -- from records to lines


class Mask:
    """Replaces secrets by `***`: the given ones, and texts that look like a token or a password in a URL."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._known: re.Pattern[str] | None = None
        self._secrets: set[str] = set()
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Mask these secrets too, except short ones."""
        for secret in secrets:
            if len(secret) >= MIN_SECRET:
                # the secret itself, its form in %r, and its form in JSON and in JSON within JSON
                wrapped = json.dumps(secret, ensure_ascii=False)[1:-1]
                self._secrets |= {secret, repr(secret)[1:-1], wrapped, json.dumps(wrapped, ensure_ascii=False)[1:-1]}
        if self._secrets:
            longest_first = sorted(self._secrets, key=len, reverse=True)
            self._known = re.compile("|".join(map(re.escape, longest_first)))

    def __call__(self, line: str) -> str:
        if self._known:
            line = self._known.sub("***", line)
        if re.search(TOKEN_MARK, line) is None:
            return line
        for pattern, replacement in TOKENS:
            line = re.sub(pattern, replacement, line)
        return line


class TextFormatter(logging.Formatter):
    """Formats a record as `12:34:56.789 I engine: message | key=value`, and its traceback as indented lines."""

    def __init__(self, mask: Mask, *, color: bool = False, dated: bool = False) -> None:
        super().__init__()
        self.mask = mask
        self._color = color
        self._time_format = "%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S"
        self._latest = (-1, "")  # the latest second, and its text

    def _format_second(self, second: int) -> str:
        if self._latest[0] != second:
            self._latest = second, time.strftime(self._time_format, time.localtime(second))
        return self._latest[1]

    def format(self, record: logging.LogRecord) -> str:
        when = self._format_second(int(record.created))
        level = _get_level_name(record.levelno)
        fields = " ".join(f"{key}={_format_text_value(value)}" for key, value in _read_fields(record).items())
        text = _escape(_format_message(record)) + (f" | {_escape(fields)}" if fields else "")
        line = self.mask(f"{when}.{int(record.msecs):03d} {level[0]} {_get_part(record)}: {text}")
        if self._color and level in COLORS:
            line = COLORS[level] + line + COLOR_END
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n    {_escape(self.mask(row))}" for row in trace.split("\n"))
        return line


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object: tid, timestamp (seconds), level, function, line, msg, logger, thread, its own
    fields, exception."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask = mask

    def format(self, record: logging.LogRecord) -> str:
        message = _format_message(record)
        function, line = record.funcName, record.lineno
        if record.name == f"{ROOT}.llama":
            # llama.cpp's lines begin with the name of a C function: it is logged instead of our callback
            found = re.match(NATIVE_FUNCTION, message)
            function, line = found[1] if found else "", 0
        entry = {
            "tid": str(record.thread),
            "timestamp": round(record.created, 3),
            "level": _get_level_name(record.levelno),
            "function": function,
            "line": line,
            "msg": message,
            "logger": _get_part(record),
            "thread": record.threadName,
        }
        fields = _read_fields(record) | (getattr(record, "json_fields", None) or {})
        entry |= {key: value for key, value in fields.items() if key not in entry}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return self.mask(re.sub(UNSAFE, lambda found: f"\\u{ord(found[0]):04x}", _to_json(entry)))


def _format_message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # a wrong call must not hide the message
        return f"{record.msg!s} (arguments don't fit: {error})"


def _read_fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None) or {}
    model = getattr(_subject, "model", "")  # a line is formatted on the thread that logs it
    return {**fields, "model": model} if model else fields


def _get_part(record: logging.LogRecord) -> str:
    return record.name.removeprefix(ROOT + ".")


def _get_level_name(number: int) -> str:
    return LEVEL_NAMES.get(number) or logging.getLevelName(number)


def _escape(text: str) -> str:
    if text.isprintable():  # so it has no `UNSAFE` character
        return text
    return re.sub(UNSAFE, lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _format_text_value(value: object) -> str:
    if type(value) is int or type(value) is float and math.isfinite(value):
        return repr(value)
    return value if isinstance(value, str) and re.fullmatch(PLAIN_WORD, value) else _to_json(value)


def _to_json(value: object, depth: int = 0) -> str:
    """JSON of any value. What JSON can't hold (NaN, keys that aren't texts, loops) becomes a text."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_make_plain)
    except (ValueError, TypeError, RecursionError):
        if isinstance(value, dict) and depth < MAX_DEPTH:
            return (
                "{"
                + ", ".join(f"{_to_json(str(key))}: {_to_json(item, depth + 1)}" for key, item in value.items())
                + "}"
            )
        if isinstance(value, (list, tuple)) and depth < MAX_DEPTH:
            return "[" + ", ".join(_to_json(item, depth + 1) for item in value) + "]"
        return json.dumps(repr(value), ensure_ascii=False)


def _make_plain(value: object) -> object:
    import dataclasses  # here, because it is slow to import

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, (set, frozenset)):
        return list(value)
    return str(value)


# -- from lines to outputs

LOST = "%d log lines were lost: %s"  # and why


class Handler(logging.Handler):
    """Formats a record on the thread that logs it, and passes the line to its output. `logging` holds the handler's
    lock around `emit`."""

    formatter: TextFormatter | JsonFormatter

    def __init__(self, sink: Sink, formatter: TextFormatter | JsonFormatter) -> None:
        super().__init__()
        self.sink = sink
        self.setFormatter(formatter)
        self.output = Output(sink, self._format_loss)

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises and never waits."""
        try:
            self.output.put(self.format(record) + "\n")
        except Exception as error:  # a __str__ may raise anything
            self.output.lose(str(error))

    def flush(self) -> None:
        self.output.flush()

    def close(self) -> None:
        """Write the waiting lines and close the file."""
        self.output.close()
        super().close()

    def _format_loss(self, n: int, why: str) -> str:
        return (
            self.format(logging.LogRecord(f"{ROOT}.log", logging.ERROR, __file__, 0, LOST, (n, why), None, "emit"))
            + "\n"
        )
