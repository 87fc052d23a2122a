"""Small images and sounds, written with the standard library: what tests send to models that see and hear."""

from __future__ import annotations

import base64
import hashlib
import math
import random
import struct
import zlib
from collections.abc import Callable

Colour = tuple[int, int, int]


def png(width: int = 56, height: int = 56, colour: Callable[[int, int], Colour] | Colour = (200, 30, 30)) -> bytes:
    """An RGB image; `colour` of each pixel, or of all."""
    at = colour if callable(colour) else lambda x, y: colour
    rows = b"".join(b"\0" + bytes(value for x in range(width) for value in at(x, y)) for y in range(height))
    return png_of(width, height, zlib.compress(rows))


def png_of(width: int, height: int, data: bytes) -> bytes:
    """A PNG file whose header claims any size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def picture(n: int) -> bytes:
    """One of many images, as different from one another as can be: 4 x 4 squares of pure colours."""
    draw = random.Random(n)
    squares = [tuple(draw.choice((0, 255)) for _ in range(3)) for _ in range(16)]
    return png(colour=lambda x, y: squares[x // 14 + y // 14 * 4])


def bmp(width: int = 8, height: int = 8, colour: Colour = (10, 200, 10)) -> bytes:
    """A 24-bit bitmap."""
    row = bytes(reversed(colour)) * width
    pixels = (row + b"\0" * (-len(row) % 4)) * height
    return (
        b"BM"
        + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(pixels), 2835, 2835, 0, 0)
        + pixels
    )


def gif() -> bytes:
    """One white pixel."""
    return base64.b64decode("R0lGODlhAQABAIAAAP///wAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw==")


def wav(seconds: float = 1.0, hertz: float = 440.0, rate: int = 16000) -> bytes:
    """A tone: mono, 16 bits."""
    n = int(seconds * rate)
    samples = struct.pack(f"<{n}h", *(int(12000 * math.sin(2 * math.pi * hertz * i / rate)) for i in range(n)))
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(samples))
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
        + b"data"
        + struct.pack("<I", len(samples))
        + samples
    )


def data_url(data: bytes, kind: str = "image/png") -> str:
    """As a page sends it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def sha256(data: bytes) -> str:
    """As requests name contents."""
    return hashlib.sha256(data).hexdigest()
