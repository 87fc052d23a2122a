"""The input of a batch: a file with one request per line, in OpenAI's format. Checks it and orders the lines.

Only reads files; any thread may call it. A line is an object with `custom_id`, `method`, `url` and `body`. Of a body,
only the model's name and hashes of the prompt's beginning stay in memory.

Lines whose prompts begin alike are run one after the other, because the engine then computes the common prefix once.
Hashes of a prompt's first 256, 512, 1024, ... bytes show how much it shares with others. Groups of such lines are in
the order of their first lines.

Way not taken: sorting the texts, because all of them would have to be in memory.
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
MAX_CUSTOM_ID = 512  # characters
MAX_FAULTS = 100  # most faults that are reported of one file
BEGINNINGS = tuple(256 << i for i in range(8))  # bytes of a prompt's JSON that are hashed
HASH_BYTES, ID_BYTES = 8, 16
PROMPT = ("tools", "instructions", "messages", "prompt", "input")
"""Fields of a body that make the prompt, in the order in which the prompt has them."""


@record(frozen=True)
class Line:
    number: int
    """From 1."""
    offset: int
    """The line's first byte in the file."""
    n_bytes: int
    id: str
    """The id of its answer: a hash of the whole line."""
    custom_id: str
    url: str
    model: str
    beginnings: tuple[bytes, ...]
    """One hash for each of `BEGINNINGS` that the prompt is long enough for."""


@record(frozen=True)
class Fault:
    """A reason why a file can't be a batch."""

    line: int | None
    """None for the file as a whole."""
    code: str
    """OpenAI's code of the error."""
    message: str


def read_lines(stream: BinaryIO, endpoint: str = "") -> tuple[list[Line], list[Fault]]:
    """The lines of a file, and at most MAX_FAULTS of its faults. If `endpoint` is given, every line must have it. Empty
    lines are skipped."""
    lines: list[Line] = []
    faults: list[Fault] = []
    seen: set[str] = set()
    number = offset = 0
    while len(faults) < MAX_FAULTS and (data := stream.readline(MAX_LINE_BYTES + 1)):
        number += 1
        n_bytes = len(data)
        try:
            if len(lines) == MAX_LINES:
                raise Wrong("too_many_lines", f"the file has more than {MAX_LINES:,} requests")
            if n_bytes > MAX_LINE_BYTES:
                n_bytes += _skip_line(stream)
                raise Wrong("line_too_long", f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")
            if not data.isspace():
                line = _parse_line(number, offset, data, endpoint)
                if line.custom_id in seen:
                    raise Wrong("duplicate_custom_id", f"custom_id {line.custom_id[:80]!r} is used twice")
                seen.add(line.custom_id)
                lines.append(line)
        except Wrong as wrong:
            faults.append(Fault(number, wrong.code, wrong.message))
            if len(lines) == MAX_LINES:
                break
        offset += n_bytes
    if not lines and not faults:
        faults.append(Fault(None, "empty_file", "the file has no request"))
    return lines, faults


def sort_lines(lines: Iterable[Line]) -> list[Line]:
    """Sort lines so that those of one model and URL are together, and among them those whose prompts begin alike."""
    first: dict[object, int] = {}

    def place(line: Line) -> list[int]:
        steps = ((line.model, line.url), *line.beginnings)
        return [first.setdefault((i, step), line.number) for i, step in enumerate(steps)] + [line.number]

    return sorted(lines, key=place)


def read_body(stream: BinaryIO, line: Line) -> dict[str, Any]:
    """Read the body of a line from its file again. ApiError 500 if it has changed."""
    stream.seek(line.offset)
    data = stream.read(line.n_bytes)
    if answer_id(data) != line.id:
        raise ApiError(500, f"line {line.number} of the file has changed since the batch began")
    value: Any = parse_json(data)
    body: dict[str, Any] = value["body"]
    return body


def answer_id(data: bytes) -> str:
    """The id of the answer to a line; equal lines have equal ids."""
    return "batch_req_" + hashlib.sha256(data.strip()).hexdigest()[: 2 * ID_BYTES]


class Wrong(Exception):
    """A fault of one line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def _parse_line(number: int, offset: int, data: bytes, endpoint: str) -> Line:
    try:
        said: Any = parse_json(data)
    except ApiError as error:
        raise Wrong("invalid_json_line", error.message.replace("request body", "line")) from None
    if not isinstance(said, dict):
        raise Wrong("invalid_json_line", "the line is not a JSON object")
    custom_id, method, url, body = (said.get(name) for name in ("custom_id", "method", "url", "body"))
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        raise Wrong("invalid_custom_id", f"custom_id is not a text of 1 to {MAX_CUSTOM_ID} characters")
    if method != "POST":
        raise Wrong("invalid_method", "method is not 'POST'")
    if url not in ENDPOINTS:
        raise Wrong("invalid_url", f"url {str(url)[:80]!r} is unknown; use one of {', '.join(ENDPOINTS)}")
    if endpoint and url != endpoint:
        raise Wrong("invalid_url", f"url {url!r} is not the batch's endpoint, {endpoint}")
    if not isinstance(body, dict):
        raise Wrong("missing_required_parameter", "body is not an object")
    model = body.get("model")
    beginnings = _hash_beginnings(to_json([body[name] for name in PROMPT if body.get(name) is not None]))
    return Line(
        number, offset, len(data), answer_id(data), custom_id, url, model if isinstance(model, str) else "", beginnings
    )


def _hash_beginnings(text: bytes) -> tuple[bytes, ...]:
    digest, found, at = hashlib.blake2b(digest_size=HASH_BYTES), [], 0
    for end in BEGINNINGS:
        if end > len(text):
            break
        digest.update(text[at:end])
        at = end
        found.append(digest.digest())
    return tuple(found)


def _skip_line(stream: BinaryIO) -> int:
    """Skip the rest of a line that is too long. Returns its number of bytes."""
    n = 0
    while data := stream.readline(1 << 20):
        n += len(data)
        if data.endswith(b"\n"):
            break
    return n
