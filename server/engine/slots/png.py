"""Whether a PNG inflates to what its header says. The media thread, before libmtmd has the file.

stb_image inflates all there is before it looks at the size, and 64 MB of PNG can be 64 GB of zeros. So it is inflated
here first, into nothing, in pieces between which the interpreter's lock is free and the work can be stopped.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

PNG = b"\x89PNG\r\n\x1a\n"
IN = OUT = 1 << 16  # bytes at a time
SLACK = 1 << 20
MAX_CHUNKS = 100_000
BROKEN = "is a broken or truncated PNG image"


def png_fault(data: bytes, n_inflated: int, is_wanted: Callable[[], bool] = lambda: True) -> str:
    """What is wrong with a PNG that may inflate to so many bytes; "" if nothing is, or nobody wants to know."""
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
                    return "is a PNG image that holds far more data than its size"
            at += n + 4
    except (struct.error, zlib.error):
        pass
    return BROKEN


def _inflate(inflater: Any, piece: bytes | memoryview) -> int:
    """How many bytes a piece of the data becomes; none of them is kept."""
    n = 0
    while piece and not inflater.eof:
        n += len(inflater.decompress(piece, OUT))
        piece = inflater.unconsumed_tail
    return n
