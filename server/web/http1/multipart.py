"""Parses forms with files (multipart/form-data, RFC 7578). It is fed with the body as it arrives. Pure; connection
threads.

The parser is strict like `head.py`: another server must not read the same bytes as a different form. Text before the
first boundary is bounded; text after the last one is dropped. Refused: lines without CRLF, forms within a form, parts
without a name, encodings such as base64.

Not taken: the standard library's `email`, which needs the whole body at once and guesses at malformed input.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from server.errors import ApiError
from server.records import field, record
from server.web.http1.head import Headers, parse_header_line

MAX_PARTS = 100
HEAD_BYTES, N_HEADERS = 8 * 1024, 16  # most of each in the head of a part
PREAMBLE_BYTES = 1024  # most bytes before the first boundary
BOUNDARY = re.compile(r"[\w'()+,./:=? -]{0,69}[\w'()+,./:=?-]", re.ASCII)
PARAMETER = re.compile(r';[ \t]*([\w*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))[ \t]*', re.ASCII)
ESCAPED = re.compile(r"\\(.)")
PLAIN_ENCODINGS = ("binary", "8bit", "7bit")


@record
class Part:
    """A field of a form. `filename` is the client's name of a file."""

    name: str
    is_file: bool
    data: bytearray = field(default_factory=bytearray, repr=False)
    filename: str = ""

    def take(self) -> bytes:
        data = bytes(self.data)
        self.data.clear()
        return data

    def decode_text(self) -> str:
        """The value of a field that isn't a file. ApiError 400 if it isn't UTF-8."""
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError:
            raise ApiError(400, f"{self.name[:40]}: the value is not UTF-8") from None


class FormParser:
    """Fed with bytes; `finish` returns the parts. ApiError 400 as soon as the form is malformed."""

    def __init__(self, headers: Headers) -> None:
        """ApiError 415 for another type, 400 if malformed."""
        kind, parameters = read_value(headers.get("content-type", ""))
        boundary = parameters.get("boundary", "")
        if kind != "multipart/form-data" or not BOUNDARY.fullmatch(boundary):
            raise ApiError(415, "This route needs a form: multipart/form-data with a boundary.")
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._parts: list[Part] = []
        self._head: dict[str, str] = {}  # header fields of the part that begins
        self._n_head = 0
        self._n_skipped = 0
        self._pending = bytearray(b"\r\n")  # a delimiter begins with a line end, which the first one may lack
        self._step: Callable[[FormParser], bool] | None = FormParser._skip_preamble

    def feed(self, data: bytes | bytearray) -> None:
        self._pending += data
        while self._step is not None and self._step(self):
            pass
        if self._step is None:
            self._pending.clear()

    def finish(self) -> list[Part]:
        """All parts, at the end of the body. ApiError 400 if the form isn't complete."""
        if self._step is not None:
            raise ApiError(400, "The form ends without its last boundary.")
        return self._parts

    def _skip_preamble(self) -> bool:
        skipped, is_over = self._take_data()
        self._n_skipped += len(skipped)
        if self._n_skipped > PREAMBLE_BYTES:
            raise ApiError(400, "The form doesn't begin with its boundary.")
        return is_over

    def _read_data(self) -> bool:
        data, is_over = self._take_data()
        self._parts[-1].data += data
        return is_over

    def _take_data(self) -> tuple[bytearray, bool]:
        """Remove and return the bytes before the next delimiter, as far as they have arrived, and whether it was
        found."""
        at = self._pending.find(self._delimiter)
        n = at if at >= 0 else max(len(self._pending) - len(self._delimiter) + 1, 0)
        data = self._pending[:n]
        del self._pending[: n + len(self._delimiter) * (at >= 0)]
        if at >= 0:
            self._step = FormParser._read_boundary
        return data, at >= 0

    def _read_boundary(self) -> bool:
        """After a delimiter comes `--` (the end of the form) or the end of the line."""
        if len(self._pending) < 2:
            return False
        if self._pending.startswith(b"--"):
            self._step = None
            return False
        self._n_head = 0
        line = self._take_line()
        if line is None:
            return False
        if line.strip(b" \t"):
            raise ApiError(400, "A boundary of the form is followed by other text in its line.")
        if len(self._parts) == MAX_PARTS:
            raise ApiError(400, f"The form has more than {MAX_PARTS} parts.")
        self._head = {}
        self._step = FormParser._read_head
        return True

    def _read_head(self) -> bool:
        line = self._take_line()
        if line is None:
            return False
        if not line:
            self._parts.append(make_part(self._head))
            self._step = FormParser._read_data
            return True
        name, value = parse_header_line(line)
        if name in self._head or len(self._head) == N_HEADERS:
            raise ApiError(400, f"A part of the form has header {name[:40]!r} twice, or too many headers.")
        self._head[name] = value
        return True

    def _take_line(self) -> bytes | None:
        end = self._pending.find(b"\n")
        if self._n_head + (len(self._pending) if end < 0 else end) > HEAD_BYTES:
            raise ApiError(400, f"The head of a part of the form is longer than {HEAD_BYTES} bytes.")
        if end < 0:
            return None
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        self._n_head += end + 1
        if not line.endswith(b"\r"):
            raise ApiError(400, "The lines in the head of a part of the form must end with CRLF.")
        return line[:-1]


def make_part(head: dict[str, str]) -> Part:
    """The part with this head. ApiError 400 if it has no valid name, or says that the data is encoded or a form."""
    kind, parameters = read_value(head.get("content-disposition", ""))
    if kind != "form-data" or not parameters.get("name"):
        raise ApiError(400, "A part of the form has no name (Content-Disposition: form-data; name=...).")
    encoding = head.get("content-transfer-encoding", "binary").lower()
    if encoding not in PLAIN_ENCODINGS or head.get("content-type", "").lower().startswith("multipart/"):
        raise ApiError(400, "A part of the form is encoded, or is itself a form; send the bytes as they are.")
    try:
        name, filename = (parameters.get(key, "").encode("latin-1").decode("utf-8") for key in ("name", "filename"))
    except UnicodeError:
        raise ApiError(400, "The name of a part of the form is not UTF-8.") from None
    return Part(name, "filename" in parameters, filename=filename)


def read_value(text: str) -> tuple[str, dict[str, str]]:
    """`form-data; name="x"` -> ("form-data", {"name": "x"}). ApiError 400 if the value is malformed."""
    kind = text.partition(";")[0]
    at, parameters = len(kind), dict[str, str]()
    while at < len(text):
        match = PARAMETER.match(text, at)
        if not match or match[1].lower() in parameters:
            raise ApiError(400, "A header of the form is malformed.")
        parameters[match[1].lower()] = match[3] if match[2] is None else ESCAPED.sub(r"\1", match[2])
        at = match.end()
    return kind.strip(" \t").lower(), parameters
