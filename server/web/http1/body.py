"""Decoders for request bodies with a Content-Length or in the chunked coding. Pure: they are fed with bytes.

Chunks are decoded strictly, to prevent request smuggling (see `head.py`). Chunk extensions and trailers are checked and
dropped. Bodies of very many tiny chunks are refused (`N_CHUNKS_FREE`)."""

from __future__ import annotations

import re
from collections.abc import Callable

from server.errors import ApiError
from server.web.http1.head import SINGLE_HEADERS, Framing, make_too_large_error, parse_header_line
from server.web.limits import Limits

SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
LINE_BYTES = 4 * 1024  # most bytes of a line
TRAILER_BYTES = 8 * 1024  # most bytes of the trailer
N_CHUNKS_FREE = 16 * 1024
"""A body may have this many chunks of any size, and one more for every `MEAN_BYTES` of its data."""
MEAN_BYTES = 64


def make_body_decoder(framing: Framing, limits: Limits) -> LengthDecoder | ChunkedDecoder:
    return ChunkedDecoder(limits) if framing.kind == "chunked" else LengthDecoder(framing.n_bytes)


class Decoder:
    """What both decoders have. `body`: the bytes decoded since the last `take`; `rest`: those after the body."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.rest = b""
        self._n_taken = 0

    @property
    def n_bytes(self) -> int:
        return self._n_taken + len(self.body)

    def take(self) -> bytearray:
        """Take the decoded bytes out of `body`."""
        part, self.body = self.body, bytearray()
        self._n_taken += len(part)
        return part


class LengthDecoder(Decoder):
    """Takes exactly `n_bytes`."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__()
        self.done = n_bytes == 0
        self._n_left = n_bytes

    def feed(self, data: bytes) -> bool:
        part = data[: self._n_left]
        self.body += part
        self._n_left -= len(part)
        self.done = self._n_left == 0
        self.rest = data[len(part) :]
        return self.done


class ChunkedDecoder(Decoder):
    """Decodes the chunked coding."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.done = False
        self._limits = limits
        self._pending = bytearray()
        self._n_left = 0  # missing bytes of the current chunk
        self._n_chunks = 0
        self._n_trailer = 0
        # A bound method would make a reference cycle, which keeps an old body alive.
        self._step: Callable[[ChunkedDecoder], bool] = ChunkedDecoder._read_size

    def feed(self, data: bytes) -> bool:
        """True once the body is complete. ApiError 400 or 413 as soon as it is malformed or too large."""
        self._pending += data
        while not self.done and self._step(self):
            pass
        if self.done:
            self.rest = bytes(self._pending)
            self._pending.clear()
        return self.done

    def _take_line(self) -> bytes | None:
        end = self._pending.find(b"\n")
        if (len(self._pending) if end < 0 else end) > LINE_BYTES:
            raise ApiError(400, "A line of the chunked body is too long.")
        if end < 0:
            return None
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        if not line.endswith(b"\r"):
            raise ApiError(400, "Lines of a chunked body must end with CRLF.")
        return line[:-1]

    def _read_size(self) -> bool:
        line = self._take_line()
        if line is None:
            return False
        match = SIZE_LINE.fullmatch(line)
        if not match:
            raise ApiError(400, "Malformed chunk size.")
        self._n_left = int(match[1], 16)
        if self.n_bytes + self._n_left > self._limits.body_bytes:
            raise make_too_large_error(self._limits)
        self._n_chunks += 1
        if self._n_chunks > N_CHUNKS_FREE + self.n_bytes // MEAN_BYTES:
            raise ApiError(400, "The body is cut into too many small chunks.")
        self._step = ChunkedDecoder._read_data if self._n_left else ChunkedDecoder._read_trailer
        return True

    def _read_data(self) -> bool:
        part = self._pending[: self._n_left]
        self.body += part
        del self._pending[: len(part)]
        self._n_left -= len(part)
        if self._n_left:
            return False
        self._step = ChunkedDecoder._read_data_end
        return True

    def _read_data_end(self) -> bool:
        end = bytes(self._pending[:2])
        if not b"\r\n".startswith(end):
            raise ApiError(400, "A chunk is longer than its size says.")
        if len(end) < 2:
            return False
        del self._pending[:2]
        self._step = ChunkedDecoder._read_size
        return True

    def _read_trailer(self) -> bool:
        line = self._take_line()
        if line is None:
            return False
        if not line:
            self.done = True
            return True
        name, _ = parse_header_line(line)
        if name in SINGLE_HEADERS:  # RFC 9110 6.5.1: a server that merges trailers into the head would use it
            raise ApiError(400, f"Header {name!r} is not allowed in the trailer of a body.")
        self._n_trailer += len(line)
        if self._n_trailer > TRAILER_BYTES:
            raise ApiError(400, "The trailer of the chunked body is too long.")
        return True
