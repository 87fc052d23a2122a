"""Checks that a PNG doesn't inflate to more than its header states. Runs on the media thread, before libmtmd reads the
file.

libmtmd's decoder (stb_image) inflates all data before it looks at the size, and 64 MB of PNG can be 64 GB of zeros. So
the data is first inflated here and thrown away, in parts: between two of them other threads can run and the work can be
stopped.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

PNG = b"\x89PNG\r\n\x1a\n"
IN = OUT = 1 << 16  # bytes at a time
SLACK = 1 << 20  # bytes beyond the stated size
MAX_CHUNKS = 100_000  # in one file
BROKEN = "is a broken or truncated PNG image"


def find_png_fault(data: bytes, n_inflated: int, is_wanted: Callable[[], bool] = lambda: True) -> str:
    """What is wrong with a PNG that may inflate to `n_inflated` bytes; "" if nothing is, or if the file is no longer
    wanted."""
    view, at = memoryview(data), len(PNG)
    inflater, room = zlib.decompressobj(), n_inflated + SLACK
    try:
        for _ in range(MAX_CHUNKS):
            n, name = struct.unpack_from(">I4s", data, at)
            if name == b"IEND":
                return ""
            at += 8
            if at + n > len(data):
                return BROKEN
            for start in range(at, at + n, IN) if name == b"IDAT" else ():
                if not is_wanted():
                    return ""
                room -= _inflate(inflater, view[start : min(start + IN, at + n)])
                if room < 0:
                    return "is a PNG image that holds far more data than its size allows"
            at += n + 4
    except (struct.error, zlib.error):
        pass
    return BROKEN


def _inflate(inflater: Any, piece: bytes | memoryview) -> int:
    """The number of bytes that a part of the data inflates to."""
    n = 0
    while piece and not inflater.eof:
        n += len(inflater.decompress(piece, OUT))
        piece = inflater.unconsumed_tail
    return n
