"""What a handler gets and gives: `Request`, `Response`, `EventStream`. Plain data; used on connection
threads.

Handlers are testable without a socket: `Request(...)` can be made by hand. Imports the leaves and the head
parser."""

from __future__ import annotations

import encodings.utf_8_sig  # noqa: F401  (else the first body that comes would import it)
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
"""In the access log only, as nginx has it: the client left before there was an answer."""
JSON_TYPE = "application/json; charset=utf-8"
EVENT_STREAM = "text/event-stream; charset=utf-8"
JSON_DEPTH = 256
JSON_VALUES = 2_000_000
"""Values in a body: Python's reader keeps the interpreter's lock to the end of what it reads, and all streams wait."""
VALUE_BYTES, PART_BYTES = 64, 256
"""What a value takes in memory besides the letters that it has, and an array, an object or a key."""
JSON_PARTS = 250_000
"""Arrays, objects and keys of objects among them, which cost more."""
JSON_FAULTS = {
    "Expecting property name": "a name in double quotes is expected",
    "Expecting value": "a value is expected",
    "Expecting ':'": "a colon is expected",
    "Expecting ','": "a comma or the end of the list or object is expected",
    "Illegal trailing comma": "nothing follows this comma",
    "Extra data": "there is more behind the end",
    "Unterminated string": "this text has no closing quote",
    "Invalid control character": "control characters in texts must be escaped, a line break as \\n",
    "Invalid \\u": "\\u needs four hexadecimal digits",
    "Invalid \\": "there is no such escape",
}
"""How the standard library's complaints begin, and what they mean in our words."""
LARGE = 1 << 17  # bytes; the numbers of larger bodies are converted one by one, where others get their turn
WIDEST = 4  # bytes of a letter in memory
ROUGH_BYTES = 64 << 20  # what looks like more is counted exactly
_one_large = threading.Lock()  # of large bodies, one is read at a time
REASONS = {status.value: status.phrase for status in http.HTTPStatus}
UNSAFE_IN_HEADER = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

ErrorShape = Callable[[ApiError], object]
"""Makes the JSON of an error as the clients of a route expect it."""

# One encoder for all: `json.dumps` with these arguments would make a new one each time.
ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

# Also one that isn't closed: else each of its quotes would be tried as the beginning of another, in quadratic time.
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
    """One request with its whole body. `path` is decoded, `query` has the last value of each name, `client`
    is the peer's address without port ("unix" for a UNIX socket), `id` is safe to print, `params` are the
    `{name}` parts of the route, `form` the parts of a body that is a form, `key_id` names the API key used ("" without
    one) and can't be turned back into it. With `in_background` everybody else's requests come first. What may hold
    secrets is left out of the repr."""

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
        """Whose request it is, for fair shares: the key's, else the address's."""
        return self.key_id or self.client

    def json(self) -> object:
        """The body as JSON, whatever its content type; ApiError 400 with the position of the first fault. Once:
        what it was made of, which may be large, is let go."""
        body, self.body = self.body, b""
        try:
            return parse_json(body)
        finally:
            memory.hold(-len(body))

    def json_object(self) -> dict[str, Any]:
        """The body as a JSON object; ApiError 400 for anything else."""
        body = self.json()
        if not isinstance(body, dict):
            raise ApiError(400, "the request body must be a JSON object")
        return body

    def on_disconnect(
        self, callback: Callable[[], None], on_end: Callable[[], None] | None = None
    ) -> AbstractContextManager[object]:
        """Inside the returned context, `callback` is called at most once, from the watcher's thread, when the
        client closes or resets its connection. It must be quick and must not raise. When the block is left at
        the very same moment, a call that has begun is not waited for. For a stream `on_end` is called instead when
        the client has only sent its last byte: write something soon, which shows whether it still reads."""
        return self.presence.on_disconnect(callback, on_end)

    def at_end(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once the answer has been written to its end, or given up. It must not raise."""
        self.endings.append(callback)

    def end(self) -> None:
        """The answer has been written, or given up."""
        while self.endings:
            self.endings.pop()()

    def detached(self) -> Request:
        """The same without its body, of a client that is never known to leave: for work that goes on without it. Who
        makes it has to `end` it."""
        return Request(self.method, self.path, client=self.client, id=self.id, key_id=self.key_id)

    def require_client(self, stream: bool = False) -> None:
        """ApiError 499, which is never sent, when the client has left: between two phases of work that nobody waits for
        any more. `stream` if the answer is one."""
        if self.presence.is_lost(stream):
            raise ApiError(CLIENT_CLOSED, "the client closed the request")


@record
class Response:
    """An answer with a known body. Content-Length, Date, Server, CORS and X-Request-Id are added by the
    edge."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Writer(Protocol):
    """Sends chunks of a stream in the place of the connection's thread; `server/web/http1/direct.py`."""

    def offer(self, data: bytes) -> bool:
        """Send without waiting; False if not all of it could be sent."""

    def drain(self) -> None:
        """The connection's thread: send what is left."""


@record
class EventStream:
    """An answer whose end isn't known when it begins: server-sent events (`server.web.sse`) unless its headers name
    another type.

    The first chunk is fetched before the head is written, so an ApiError until then is an ordinary error
    answer; an empty first chunk sends the head at once. `chunks.close()` is always called, also when the
    client is gone. If there is a `chunks.divert(writer)`, it is called after the first chunk: as long as the
    iterator is waiting in `next`, and only then, any thread may send chunks with `writer.offer` instead
    (`server/web/http1/direct.py`); `writer.drain` comes first when the iterator goes on after an offer that was not
    taken whole."""

    chunks: Iterable[bytes]
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


@record
class Items:
    """A long list in an answer. Its values are made and encoded some at a time: others get their turn in between, and
    what they take in memory is that of a few."""

    values: Iterable[object]
    n_at_once: int = 1

    def encode(self) -> bytes:
        """As JSON."""
        values, parts = iter(self.values), []
        while some := list(islice(values, self.n_at_once)):
            parts.append(to_json(some)[1:-1])
        return b"[%b]" % b",".join(parts)


def json_response(obj: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`obj` as compact UTF-8 JSON. It, or a field of it, may be `Items`."""
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


def error_body(error: ApiError) -> dict[str, Any]:
    """An error in OpenAI's shape, which all have unless their route has its own: `{"error": {"code", "message", "type",
    ...}}`, with its `reason` where the type doesn't say it."""
    is_said = error.reason in ("", SAID_BY_TYPE.get(error.type))
    reason = {} if is_said else {"reason": error.reason}
    return {"error": {"code": error.status, "message": error.message, "type": error.type, **reason, **error.extra}}


def error_response(error: ApiError, shape: ErrorShape = error_body) -> Response:
    """The answer that an error is."""
    return json_response(shape(error), error.status, error.headers)


def to_json(obj: object) -> bytes:
    """Compact UTF-8 JSON without raw line breaks. NaN and infinities become null, lone surrogates `?`: a
    strict client must be able to read whatever a model or a driver produced."""
    try:
        text = ENCODE(obj)
    except ValueError:
        text = ENCODE(_finite(obj))
    return text.encode("utf-8", "replace")


def encode_head(status: int, headers: Mapping[str, str]) -> bytes:
    """Status line and header fields with their empty line. Line breaks and other controls in a value, which
    would let whoever chose it write headers of their own, become spaces."""
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}"]
    lines += [f"{name}: {UNSAFE_IN_HEADER.sub(' ', str(value))}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _finite(obj: object) -> object:
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, dict):
        return {name: _finite(value) for name, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_finite(value) for value in obj]
    return obj


def parse_json(body: bytes | bytearray) -> object:
    """Strict JSON from UTF-8 (a BOM is skipped): no NaN, no infinity in any spelling, no lone surrogates, at
    most `JSON_DEPTH` levels. Of duplicate keys the last wins. ApiError 400 says where."""
    if not body or body.isspace():
        raise ApiError(400, "The request body is empty; expected JSON.")
    with _one_large if len(body) > LARGE else nullcontext():
        with memory.held(len(body) if body.isascii() else WIDEST * len(body)):
            return _parsed(body)


def _parsed(body: bytes | bytearray) -> object:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"The request body is not UTF-8: bad byte at position {error.start}.") from None
    memory.hold(sys.getsizeof(text) + _values_bytes(text))
    _check_surrogates(text)

    def refuse(literal: str) -> float:
        raise _json_error(text, _literal_position(text, literal), f"{literal[:20]} is not a JSON number")

    def finite(literal: str) -> float:
        value = float(literal)
        return value if math.isfinite(value) else refuse(literal)

    try:
        whole = _whole if len(text) > LARGE else None
        return json.loads(text, parse_constant=refuse, parse_float=finite, parse_int=whole)
    except json.JSONDecodeError as error:
        raise _json_error(text, error.pos, _json_fault(text, error)) from None
    except RecursionError:
        raise ApiError(400, "Invalid JSON: nested too deeply.") from None
    except ValueError:
        # CPython refuses to convert integers of more than 4,300 digits (quadratic time).
        match = re.search(r"(?<![0-9])[0-9]{1000}", text)
        raise _json_error(text, match.start() if match else 0, "a number has too many digits") from None


def _values_bytes(text: str) -> int:
    """What the values take in memory besides their letters. ApiError 400 if they are too many, or too deep.

    First roughly, then without what is inside strings."""
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
            break  # no JSON, as its reader will say
        if depth > JSON_DEPTH:
            raise _json_error(text, match.start(), f"nested deeper than {JSON_DEPTH} levels")
        if n_values > JSON_VALUES:
            raise _json_error(text, match.start(), f"more than {JSON_VALUES:,} values")
        if n_parts > JSON_PARTS:
            raise _json_error(text, match.start(), f"more than {JSON_PARTS:,} arrays, objects and keys")
    return n_bytes if is_small else VALUE_BYTES * n_values + PART_BYTES * n_parts


def _whole(literal: str) -> int:
    """`int`, but a function of Python's, between whose calls other threads run."""
    return int(literal)


def _check_surrogates(text: str) -> None:
    """`\\ud800` alone is no character: it could neither be tokenised nor sent back as UTF-8."""
    if SURROGATE_HINT.search(text):
        for match in ESCAPE.finditer(text):
            if match[1]:
                raise _json_error(text, match.start(), f"lone surrogate \\{match[1]}")


def _literal_position(text: str, literal: str) -> int:
    for match in re.finditer(STRING_PATTERN + "|" + re.escape(literal), text, re.DOTALL):
        if match[0] == literal:
            return match.start()
    return 0


def _json_fault(text: str, error: json.JSONDecodeError) -> str:
    """What the standard library found, in our words, with the characters that it means."""
    if text[error.pos : error.pos + 1] == "'":
        return "texts and names need double quotes, not single ones (has a shell changed the quotes?)"
    fault = next((ours for theirs, ours in JSON_FAULTS.items() if error.msg.startswith(theirs)), "this is no JSON")
    if error.pos >= len(text.rstrip()):
        return f"{fault}, but the body ends"
    return fault


def _json_error(text: str, position: int, fault: str) -> ApiError:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return ApiError(400, f"Invalid JSON: {fault} at line {line} column {column} (char {position}).")
