"""The data that handlers work with: `Request`, `Response`, `EventStream`, and JSON. Any thread.

Of `server.web`, it imports only `presence` and the parsers of `http1`."""

from __future__ import annotations

import encodings.utf_8_sig  # noqa: F401  (otherwise the first request body imports it)
import http
import json
import math
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, Protocol

from server import memory
from server.errors import SAID_BY_TYPE, ApiError
from server.records import field, record
from server.web.http1.head import Headers
from server.web.http1.multipart import Part
from server.web.presence import Presence

CLIENT_CLOSED = 499
"""A status that is never sent: the client left before it was answered. The access log shows it, as nginx's does."""
JSON_TYPE = "application/json; charset=utf-8"
EVENT_STREAM = "text/event-stream; charset=utf-8"
JSON_DEPTH = 256  # levels
JSON_VALUES = 2_000_000
"""Most values in a body. While Python's JSON reader holds the GIL, all streams wait."""
VALUE_BYTES, PART_BYTES = 64, 256
"""Bytes in memory: of a value besides its characters; of an array, an object or a key."""
JSON_PARTS = 250_000
"""Most arrays, objects and keys of objects in a body; they cost more memory than other values."""
JSON_FAULTS = {
    "Expecting property name": "a name in double quotes is expected",
    "Expecting value": "a value is expected",
    "Expecting ':'": "a colon is expected",
    "Expecting ','": "a comma or the end of the list or object is expected",
    "Illegal trailing comma": "nothing follows this comma",
    "Extra data": "unexpected text after the JSON value",
    "Unterminated string": "this string has no closing quote",
    "Invalid control character": "control characters in strings must be escaped, a line break as \\n",
    "Invalid \\u": "\\u needs four hexadecimal digits",
    "Invalid \\": "unknown escape sequence",
}
"""Beginnings of the standard library's messages, and our words for them."""
LARGE = 1 << 17  # bytes; in larger bodies a Python function converts integers, so that other threads can run
WIDEST = 4  # most bytes of a character in memory
ROUGH_BYTES = 64 << 20  # bytes; above this estimate the values are counted exactly
_one_large = threading.Lock()  # only one large body is parsed at a time
REASONS = {status.value: status.phrase for status in http.HTTPStatus}
UNSAFE_IN_HEADER = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

ErrorShape = Callable[[ApiError], object]
"""Makes the JSON of an error in the shape that the clients of a route expect."""

# One shared encoder: `json.dumps` with these arguments would make a new one for each call.
ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

# Matches unclosed strings, too: otherwise the search would start again at each quote and take quadratic time.
STRING_PATTERN = r'"[^"\\]*(?:\\.[^"\\]*)*"?'
BRACKET = re.compile(STRING_PATTERN + r"|([\[\]{}])", re.DOTALL)
MARK = re.compile(STRING_PATTERN + r"|([\[\]{},:])", re.DOTALL)
SURROGATE_HINT = re.compile(r"\\u[dD][89a-fA-F]")
HEX_PATTERN = r"[0-9a-fA-F]{2}"
ESCAPE = re.compile(
    rf"\\u[dD][89abAB]{HEX_PATTERN}\\u[dD][c-fC-F]{HEX_PATTERN}"
    rf"|\\(u[dD][89a-fA-F]{HEX_PATTERN})|\\.",
    re.DOTALL,
)


@record
class Request:
    """One request with its whole body.

    `path` is decoded. `query` has the last value of each name. `client` is the peer's address without its port ("unix"
    for a UNIX socket). `id` is safe to print. `params` are the `{name}` parts of the route. `form` has the parts of a
    form. `key_id` identifies the API key ("" without one) and doesn't reveal it. With `in_background` all other
    requests have priority. Fields that may hold secrets are not in the repr."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict, repr=False)
    headers: Headers = field(default_factory=Headers, repr=False)
    body: bytes | bytearray = field(default=b"", repr=False)
    client: str = ""
    id: str = ""
    params: dict[str, str] = field(default_factory=dict)
    key_id: str = ""
    form: list[Part] = field(default_factory=list, repr=False)
    presence: Presence = field(default_factory=Presence, repr=False)
    endings: list[Callable[[], None]] = field(default_factory=list, repr=False)
    in_background: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.headers, Headers):
            self.headers = Headers(self.headers)

    @property
    def owner(self) -> str:
        """The client that the request counts for in fair shares: the id of its API key, or else its address."""
        return self.key_id or self.client

    def read_json(self) -> object:
        """The body parsed as JSON, whatever its content type; ApiError 400. Can be called only once: it frees the raw
        body."""
        body, self.body = self.body, b""
        try:
            return parse_json(body)
        finally:
            memory.hold(-len(body))

    def read_json_object(self) -> dict[str, Any]:
        """The body as a JSON object; ApiError 400 for anything else."""
        body = self.read_json()
        if not isinstance(body, dict):
            raise ApiError(400, "the request body must be a JSON object")
        return body

    def on_disconnect(
        self, callback: Callable[[], None], on_end: Callable[[], None] | None = None
    ) -> AbstractContextManager[object]:
        """See `Presence.on_disconnect`. The callbacks, mostly called on the watcher's thread, must be quick and not
        raise. Leaving the block doesn't wait for a call that has begun. After `on_end`, a stream should write something
        soon, to find out whether the client still reads."""
        return self.presence.on_disconnect(callback, on_end)

    def call_at_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the answer has been written or given up. It must not raise."""
        self.endings.append(callback)

    def end(self) -> None:
        """Run the `endings`."""
        while self.endings:
            self.endings.pop()()

    def make_detached(self) -> Request:
        """A copy of method, path, client and ids, for work that goes on after the client has left. Its client counts as
        connected. The caller must `end` it."""
        return Request(self.method, self.path, client=self.client, id=self.id, key_id=self.key_id)

    def require_client(self, stream: bool = False) -> None:
        """ApiError 499 if the client has left (`Presence.is_lost`). Handlers call this between two phases of their
        work."""
        if self.presence.is_lost(stream):
            raise ApiError(CLIENT_CLOSED, "the client closed the request")


@record
class Response:
    """An answer with its whole body. The connection adds further headers."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Writer(Protocol):
    """Sends chunks of a stream for the connection's thread; see `server/web/http1/direct.py`."""

    def offer(self, data: bytes) -> bool:
        """Any thread: send without waiting. False if some bytes are left, which `drain` must send."""

    def drain(self) -> None:
        """The connection thread: send the bytes that are left."""


@record
class EventStream:
    """A streamed answer: server-sent events (`server.web.sse`), unless its headers have another content type.

    The first chunk is fetched before the head is written, so an ApiError until then becomes an ordinary error answer.
    An empty first chunk sends the head at once. If `chunks` has a method `close`, it is called at the end, also when
    the client has left.

    If `chunks` has a method `divert(writer)`, it may be called after the first chunk. Then, while the iterator waits in
    `next`, any thread may send chunks with `writer.offer`. If an offer was not sent completely, the iterator calls
    `writer.drain` before it goes on."""

    chunks: Iterable[bytes]
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


@record
class Items:
    """A long list in an answer. Its values are made and encoded `n_at_once` at a time, so that other threads can run in
    between."""

    values: Iterable[object]
    n_at_once: int = 1

    def encode(self) -> bytes:
        values, parts = iter(self.values), []
        while some := list(islice(values, self.n_at_once)):
            parts.append(to_json(some)[1:-1])
        return b"[%b]" % b",".join(parts)


def make_json_response(obj: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer with `obj` as compact UTF-8 JSON. `obj`, or a field of it, may be `Items`."""
    if type(obj) is Items:
        body = obj.encode()
    elif type(obj) is dict and any(type(value) is Items for value in obj.values()):
        fields = (
            to_json(name) + b":" + (value.encode() if type(value) is Items else to_json(value))
            for name, value in obj.items()
        )
        body = b"{%b}" % b",".join(fields)
    else:
        body = to_json(obj)
    return Response(status, body, {"Content-Type": JSON_TYPE, **(headers or {})})


def make_error_body(error: ApiError) -> dict[str, Any]:
    """An error in OpenAI's shape, the default of all routes: `{"error": {"code", "message", "type", ...}}`. `reason` is
    added if it can't be told from the type."""
    is_said = error.reason in ("", SAID_BY_TYPE.get(error.type))
    reason = {} if is_said else {"reason": error.reason}
    return {"error": {"code": error.status, "message": error.message, "type": error.type, **reason, **error.extra}}


def make_error_response(error: ApiError, shape: ErrorShape = make_error_body) -> Response:
    return make_json_response(shape(error), error.status, error.headers)


def to_json(obj: object) -> bytes:
    """Compact UTF-8 JSON without raw line breaks. NaN and infinities become null, lone surrogates `?`."""
    try:
        text = ENCODE(obj)
    except ValueError:
        text = ENCODE(_replace_nonfinite(obj))
    return text.encode("utf-8", "replace")


def encode_head(status: int, headers: Mapping[str, str]) -> bytes:
    """Status line, header fields and the empty line. Line breaks and other control characters in a value become spaces,
    so that no value can add headers."""
    if UNSAFE_IN_HEADER.search("".join(headers.values())):
        headers = {name: UNSAFE_IN_HEADER.sub(" ", value) for name, value in headers.items()}
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    head = f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}\r\n{''.join(lines)}\r\n"
    return head.encode("latin-1", "replace")


def _replace_nonfinite(obj: object) -> object:
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, dict):
        return {name: _replace_nonfinite(value) for name, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_replace_nonfinite(value) for value in obj]
    return obj


def parse_json(body: bytes | bytearray) -> object:
    """Parse strict JSON in UTF-8 (a BOM is skipped): no NaN, no infinity in any spelling, no lone surrogates, at most
    `JSON_DEPTH` levels. The last of duplicate keys wins. ApiError 400."""
    if not body or body.isspace():
        raise ApiError(400, "The request body is empty; expected JSON.")
    with _one_large if len(body) > LARGE else nullcontext():
        with memory.keep_held(len(body) if body.isascii() else WIDEST * len(body)):
            return _parse(body)


def _parse(body: bytes | bytearray) -> object:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"The request body is not UTF-8: bad byte at position {error.start}.") from None
    memory.hold(sys.getsizeof(text) + _estimate_bytes(text))
    _check_surrogates(text)

    def refuse(literal: str) -> float:
        raise _make_json_error(text, _find_literal(text, literal), f"{literal[:20]} is not a JSON number")

    def parse_finite(literal: str) -> float:
        value = float(literal)
        return value if math.isfinite(value) else refuse(literal)

    try:
        whole = _to_int if len(text) > LARGE else None
        return json.loads(text, parse_constant=refuse, parse_float=parse_finite, parse_int=whole)
    except json.JSONDecodeError as error:
        raise _make_json_error(text, error.pos, _describe_json_fault(text, error)) from None
    except RecursionError:
        raise ApiError(400, "Invalid JSON: nested too deeply.") from None
    except ValueError:
        # CPython refuses to convert integers of more than 4,300 digits (quadratic time).
        match = re.search(r"(?<![0-9])[0-9]{1000}", text)
        raise _make_json_error(text, match.start() if match else 0, "a number has too many digits") from None


def _estimate_bytes(text: str) -> int:
    """Memory in bytes that the values take besides their characters. ApiError 400 if there are too many, or if they are
    nested too deeply.

    A quick estimate also counts marks inside strings. If it is too high, the marks outside strings are counted."""
    n_values, n_brackets = text.count(","), text.count("[") + text.count("{")
    n_parts = text.count(":") + n_brackets
    n_bytes = VALUE_BYTES * n_values + PART_BYTES * n_parts
    is_small = n_bytes <= ROUGH_BYTES and n_parts <= JSON_PARTS
    if is_small and n_brackets <= JSON_DEPTH:
        return n_bytes
    depth = n_values = n_parts = 0
    for match in (BRACKET if is_small else MARK).finditer(text):
        mark = match[1]
        if mark is None:
            continue
        if mark == ",":
            n_values += 1
        elif mark in "]}":
            depth -= 1
        else:
            n_parts += 1
            depth += mark != ":"
        if depth < 0:
            break  # not JSON; the JSON reader will report it
        if depth > JSON_DEPTH:
            raise _make_json_error(text, match.start(), f"nested deeper than {JSON_DEPTH} levels")
        if n_values > JSON_VALUES:
            raise _make_json_error(text, match.start(), f"more than {JSON_VALUES:,} values")
        if n_parts > JSON_PARTS:
            raise _make_json_error(text, match.start(), f"more than {JSON_PARTS:,} arrays, objects and keys")
    return n_bytes if is_small else VALUE_BYTES * n_values + PART_BYTES * n_parts


def _to_int(literal: str) -> int:
    """`int` as a Python function: unlike `int` itself, it lets other threads run between its calls."""
    return int(literal)


def _check_surrogates(text: str) -> None:
    """ApiError 400 for a lone surrogate (`\\ud800`), which can be neither tokenized nor sent back as UTF-8."""
    if SURROGATE_HINT.search(text):
        for match in ESCAPE.finditer(text):
            if match[1]:
                raise _make_json_error(text, match.start(), f"lone surrogate \\{match[1]}")


def _find_literal(text: str, literal: str) -> int:
    for match in re.finditer(STRING_PATTERN + "|" + re.escape(literal), text, re.DOTALL):
        if match[0] == literal:
            return match.start()
    return 0


def _describe_json_fault(text: str, error: json.JSONDecodeError) -> str:
    if text[error.pos : error.pos + 1] == "'":
        return "strings need double quotes, not single ones (did the shell change the quotes?)"
    fault = next((ours for theirs, ours in JSON_FAULTS.items() if error.msg.startswith(theirs)), "this is not JSON")
    if error.pos >= len(text.rstrip()):
        return f"{fault}, but the body ends"
    return fault


def _make_json_error(text: str, position: int, fault: str) -> ApiError:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return ApiError(400, f"Invalid JSON: {fault} at line {line} column {column} (char {position}).")
