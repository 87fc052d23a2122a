"""The input of a batch: a file with a request in each line, as OpenAI has it; checked, and put in order.

Pure but for reading the file. A line is an object with `custom_id`, `method`, `url` and `body`. What is kept of it is
where it is and what it begins with: the requests themselves stay in the file until they are asked.

Lines whose prompts begin alike come one after the other, because the engine reads what they have in common once. Alike
is what has the same hash over its first 256 bytes, its first 512, and so on. Groups come as their first lines do.

Not taken: sorting the texts themselves. It would need all of them in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, BinaryIO

from server.errors import ApiError
from server.records import record
from server.web.message import parse_json, to_json

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
MAX_LINES = 50_000
MAX_LINE_BYTES = 16 << 20
MAX_CUSTOM_ID = 512  # letters
MAX_FAULTS = 100  # that are told of one file
BEGINNINGS = tuple(256 << i for i in range(8))  # bytes of a prompt's JSON
HASH_BYTES, ID_BYTES = 8, 16
PROMPT = ("tools", "instructions", "messages", "prompt", "input")
"""What prompts are made of, in the order in which they have it."""


@record(frozen=True)
class Line:
    """One request: its number in the file (from 1), where its bytes are, the `id` of its answer, which is made of all
    of them, and what its prompt begins with: a hash for each of `BEGINNINGS` that it reaches."""

    number: int
    offset: int
    n_bytes: int
    id: str
    custom_id: str
    url: str
    model: str
    beginnings: tuple[bytes, ...]


@record(frozen=True)
class Fault:
    """Why a file is no batch: in which line (None: as a whole), OpenAI's code for it, and in words."""

    line: int | None
    code: str
    message: str


def read_lines(stream: BinaryIO, endpoint: str = "") -> tuple[list[Line], list[Fault]]:
    """All lines of a file, and what is wrong with it. With `endpoint` all must be for that. Empty lines don't count."""
    lines: list[Line] = []
    faults: list[Fault] = []
    seen: set[str] = set()
    number = offset = 0
    while len(faults) < MAX_FAULTS and (data := stream.readline(MAX_LINE_BYTES + 1)):
        number += 1
        n_bytes = len(data)
        try:
            if len(lines) == MAX_LINES:
                raise Wrong("too_many_lines", f"there are more than {MAX_LINES:,} requests")
            if n_bytes > MAX_LINE_BYTES:
                n_bytes += _skip_line(stream)
                raise Wrong("line_too_long", f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")
            if not data.isspace():
                line = _line(number, offset, data, endpoint)
                if line.custom_id in seen:
                    raise Wrong("duplicate_custom_id", f"custom_id {line.custom_id[:80]!r} is there twice")
                seen.add(line.custom_id)
                lines.append(line)
        except Wrong as wrong:
            faults.append(Fault(number, wrong.code, wrong.message))
            if len(lines) == MAX_LINES:
                break
        offset += n_bytes
    if not lines and not faults:
        faults.append(Fault(None, "empty_file", "there is no request in the file"))
    return lines, faults


def in_order(lines: Iterable[Line]) -> list[Line]:
    """Those for one model together, and among them those that begin alike."""
    first: dict[object, int] = {}

    def place(line: Line) -> list[int]:
        steps = ((line.model, line.url), *line.beginnings)
        return [first.setdefault((i, step), line.number) for i, step in enumerate(steps)] + [line.number]

    return sorted(lines, key=place)


def read_body(stream: BinaryIO, line: Line) -> dict[str, Any]:
    """The body of a line, once more out of its file. ApiError 500 if that isn't what it was."""
    stream.seek(line.offset)
    data = stream.read(line.n_bytes)
    if answer_id(data) != line.id:
        raise ApiError(500, f"line {line.number} of the file has changed since the batch began")
    value: Any = parse_json(data)
    body: dict[str, Any] = value["body"]
    return body


def answer_id(data: bytes) -> str:
    """The id of the answer to a line: the same whenever the same line is asked."""
    return "batch_req_" + hashlib.sha256(data.strip()).hexdigest()[: 2 * ID_BYTES]


class Wrong(Exception):
    """What is wrong with a line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def _line(number: int, offset: int, data: bytes, endpoint: str) -> Line:
    try:
        said: Any = parse_json(data)
    except ApiError as error:
        raise Wrong("invalid_json_line", error.message.replace("request body", "line")) from None
    if not isinstance(said, dict):
        raise Wrong("invalid_json_line", "the line is not a JSON object")
    custom_id, method, url, body = (said.get(name) for name in ("custom_id", "method", "url", "body"))
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        raise Wrong("invalid_custom_id", f"custom_id is not a text of 1 to {MAX_CUSTOM_ID} letters")
    if method != "POST":
        raise Wrong("invalid_method", "method is not 'POST'")
    if url not in ENDPOINTS:
        raise Wrong("invalid_url", f"url {str(url)[:80]!r} is none of {', '.join(ENDPOINTS)}")
    if endpoint and url != endpoint:
        raise Wrong("invalid_url", f"url {url!r} is not the batch's endpoint, {endpoint}")
    if not isinstance(body, dict):
        raise Wrong("missing_required_parameter", "body is not an object")
    model = body.get("model")
    beginnings = _beginnings(to_json([body[name] for name in PROMPT if body.get(name) is not None]))
    return Line(
        number, offset, len(data), answer_id(data), custom_id, url, model if isinstance(model, str) else "", beginnings
    )


def _beginnings(text: bytes) -> tuple[bytes, ...]:
    digest, found, at = hashlib.blake2b(digest_size=HASH_BYTES), [], 0
    for end in BEGINNINGS:
        if end > len(text):
            break
        digest.update(text[at:end])
        at = end
        found.append(digest.digest())
    return tuple(found)


def _skip_line(stream: BinaryIO) -> int:
    """Go to the end of a line that is too long; how many bytes that was."""
    n = 0
    while data := stream.readline(1 << 20):
        n += len(data)
        if data.endswith(b"\n"):
            break
    return n
