"""Parses request heads from bytes to `Head`. Pure.

The parser is strict to prevent request smuggling, which needs two servers that read the same bytes as different
requests. It refuses a bare LF, folded headers, a space before a colon, and a second length. The first malformed line
raises `ApiError` without waiting for the rest. Not taken: `BaseHTTPRequestHandler.parse_request`, whose e-mail parser
accepts all of these."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from server.errors import ApiError
from server.records import record
from server.web.limits import Limits

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
HEADER_LINE = re.compile(rb"(" + TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
FIRST_BYTE = re.compile(rb"[\r!#$%&'*+\-.^_`|~0-9A-Za-z]")
LENGTH = re.compile(r"[0-9]{1,19}")
PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")

SINGLE_HEADERS = frozenset(
    (
        "host",
        "content-length",
        "transfer-encoding",
        "content-encoding",
        "content-type",
        "authorization",
        "x-api-key",
        "expect",
        "origin",
    )
)
"""A request may have each of these only once: if there are two, a proxy may have used the other one."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
METHODS_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))


class Headers(dict[str, str]):
    """Header fields by lower-case name. Look-ups ignore case. The values of a repeated field are joined with a comma
    and a space."""

    def __init__(self, fields: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None:
        super().__init__()
        for name, value in fields.items() if isinstance(fields, Mapping) else fields:
            key = name.lower()
            before = dict.get(self, key)
            dict.__setitem__(self, key, value if before is None else f"{before}, {value}")

    def __getitem__(self, name: str) -> str:
        return dict.__getitem__(self, name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and dict.__contains__(self, name.lower())

    def get(self, name: str, default: Any = None) -> Any:
        return dict.get(self, name.lower(), default)


@record(frozen=True)
class Head:
    """Request line and header fields. `target` is undecoded."""

    method: str
    target: str
    version: tuple[int, int]
    headers: Headers

    @property
    def keep_alive(self) -> bool:
        """Whether the client wants to keep the connection: the default in HTTP/1.1, on request in HTTP/1.0."""
        options = {option.strip().lower() for option in self.headers.get("connection", "").split(",")}
        return "keep-alive" in options if self.version < (1, 1) else "close" not in options


@record(frozen=True)
class Framing:
    """How the body is delimited. `kind` is "none", "length" (with `n_bytes`), "chunked", or "unknown" if the beginning
    of the next request can't be found."""

    kind: str
    n_bytes: int = 0


NO_BODY = Framing("none")
UNKNOWN_BODY = Framing("unknown")


class HeadParser:
    """Fed with bytes until it returns a `Head`; `rest` has the bytes after the head."""

    def __init__(self, limits: Limits) -> None:
        self.rest = b""
        self._limits = limits
        self._buffer = bytearray()
        self._start = 0  # offset of the line that isn't parsed yet
        self._scanned = 0  # that line has no end before this offset
        self._request_line: tuple[str, str, tuple[int, int]] | None = None
        self._fields: list[tuple[str, str]] = []

    def feed(self, data: bytes) -> Head | None:
        """The head once it is complete, until then None. ApiError 400, 414, 431 or 505 for a malformed head."""
        self._buffer += data
        while (line := self._take_line()) is not None:
            if self._request_line is None:
                # Old clients send an empty line after a body; it is skipped as RFC 9112 2.2 says.
                self._request_line = parse_request_line(line) if line else None
            elif line:
                self._add_field(line)
            else:
                self.rest = bytes(self._buffer[self._start :])
                self._buffer.clear()
                return Head(*self._request_line, Headers(self._fields))
        return None

    def _take_line(self) -> bytes | None:
        end = self._buffer.find(b"\n", self._scanned)
        self._check_size(len(self._buffer) if end < 0 else end + 1)
        if end < 0:
            self._scanned = len(self._buffer)
            return None
        line = bytes(self._buffer[self._start : end])
        self._start = self._scanned = end + 1
        if not line.endswith(b"\r"):
            raise ApiError(400, "Lines of the request head must end with CRLF.")
        return line[:-1]

    def _check_size(self, end: int) -> None:
        limits = self._limits
        if self._request_line is None and end > self._start:
            if not FIRST_BYTE.match(self._buffer, self._start):
                raise ApiError(400, "This is not an HTTP request; does the client speak TLS to a plain port?")
            if end - self._start > limits.request_line_bytes:
                raise ApiError(414, f"The request line is longer than {limits.request_line_bytes} bytes.")
        if end > limits.head_bytes:
            raise ApiError(431, f"The request head is larger than {limits.head_bytes} bytes.")

    def _add_field(self, line: bytes) -> None:
        if len(self._fields) >= self._limits.n_headers:
            raise ApiError(431, f"The request has more than {self._limits.n_headers} header fields.")
        name, value = parse_header_line(line)
        if name in SINGLE_HEADERS and any(known == name for known, _ in self._fields):
            raise ApiError(400, f"Header {name!r} may be given only once.")
        self._fields.append((name, value))


def parse_request_line(line: bytes) -> tuple[str, str, tuple[int, int]]:
    """`GET /x HTTP/1.1` -> ("GET", "/x", (1, 1)); without the line end."""
    match = REQUEST_LINE.fullmatch(line)
    if not match:
        raise ApiError(400, "Malformed request line; expected 'METHOD /path HTTP/1.1'.")
    method, target, major, minor = match.groups()
    if major != b"1":
        raise ApiError(505, "Only HTTP/1.1 and HTTP/1.0 are supported.")
    return method.decode("ascii"), target.decode("ascii"), (1, min(int(minor), 1))


def parse_header_line(line: bytes) -> tuple[str, str]:
    """`Name: value` -> ("name", "value"); latin-1, as RFC 9110 allows every byte from 0x80 up."""
    match = HEADER_LINE.fullmatch(line)
    if not match:
        folded = line[:1] in (b" ", b"\t")
        raise ApiError(400, "Folded header lines are not accepted." if folded else "Malformed header line.")
    return match[1].decode("ascii").lower(), match[2].decode("latin-1").rstrip(" \t")


def read_body_framing(head: Head, limits: Limits) -> Framing:
    """How this request's body is delimited. ApiError 400, 413, 415 or 417 for anything ambiguous or unsupported."""
    headers = head.headers
    coding = headers.get("transfer-encoding")
    length = headers.get("content-length")
    if coding is not None:
        if length is not None or head.version < (1, 1) or coding.lower() != "chunked":
            raise ApiError(400, "A body needs either Content-Length or 'Transfer-Encoding: chunked' alone.")
    elif length is not None and not LENGTH.fullmatch(length):
        raise ApiError(400, "Content-Length must be one decimal number.")
    if headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise ApiError(415, "Compressed request bodies are not accepted; send the body without Content-Encoding.")
    if headers.get("expect", "100-continue").lower() != "100-continue":
        raise ApiError(417, "The only supported value of Expect is 100-continue.")
    if coding is not None:
        return Framing("chunked")
    n_bytes = int(length or 0)
    if n_bytes > limits.body_bytes:
        raise make_too_large_error(limits)
    return NO_BODY if length is None else Framing("length", n_bytes)


def make_too_large_error(limits: Limits) -> ApiError:
    return ApiError(413, f"The request body is larger than {limits.body_bytes} bytes.")


def split_target(target: str) -> tuple[str | None, str, dict[str, str]]:
    """The authority (None unless the target is an absolute URL), the decoded path, and the query of a request target.

    `*` (for OPTIONS) stays `*`. ApiError 400 if the target is malformed (see also `decode_percent`).
    """
    authority = None
    match = re.match(r"https?://([^/?#]+)", target, re.IGNORECASE)
    if match:
        authority = match[1]
        target = target[match.end() :]
        target = target if target.startswith("/") else "/" + target
    if target == "*":
        return authority, target, {}
    if not target.startswith("/") or "#" in target:
        raise ApiError(400, "The request target must be a path that starts with '/'.")
    path, _, query = target.partition("?")
    return authority, decode_percent(path, "path"), parse_query(query)


def decode_percent(text: str, part: str) -> str:
    """Decode percent-encoding. ApiError 400 unless every `%` has two hex digits and the result is UTF-8 without control
    characters."""
    if "%" in text:
        if PERCENT.search(text):
            raise ApiError(400, f"The {part} has a '%' that is not followed by two hex digits.")
        raw = re.sub(rb"%(..)", lambda match: bytes((int(match[1], 16),)), text.encode("ascii"))
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ApiError(400, f"The {part} is not percent-encoded UTF-8.") from None
    if CONTROL.search(text):
        raise ApiError(400, f"The {part} has a control character.")
    return text


def parse_query(query: str) -> dict[str, str]:
    """`a=1&b&a=2` -> {"a": "2", "b": ""}. ApiError 400 as in `decode_percent`."""
    fields = {}
    for field in query.split("&"):
        if field:
            name, _, value = field.replace("+", " ").partition("=")
            fields[decode_percent(name, "query")] = decode_percent(value, "query")
    return fields
