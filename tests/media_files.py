"""Small images and audio files, made with the standard library, to send to models."""

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


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WAV of chunks."""
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def wav_format(rate: int = 16000, channels: int = 1, bits: int = 16, kind: int = 1) -> bytes:
    """The part of a WAV that describes its samples."""
    block = channels * bits // 8
    return struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits)


def flac(levels: list[int], rate: int = 16000, claim: int | None = None, blocks: bytes = b"") -> bytes:
    """Stretches of 4096 samples, all of one level each. The header claims `claim` samples; `blocks` stand behind it,
    the last one marked as such."""
    n = 4096 * len(levels) if claim is None else claim
    info = struct.pack(">HHIH", 4096, 4096, 0, 0) + struct.pack(">Q", rate << 44 | 15 << 36 | n) + bytes(16)
    data = b"fLaC" + (b"\0" if blocks else b"\x80") + b"\0\0\x22" + info + blocks
    for i, level in enumerate(levels):
        head = b"\xff\xf8\xc0\x08" + chr(i).encode()  # 4096 samples of 16 bits, mono, the header's rate
        head += bytes((_crc(head, 8, 0x07),))
        frame = head + b"\0" + struct.pack(">h", level)
        data += frame + struct.pack(">H", _crc(frame, 16, 0x8005))
    return data


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    value = 0
    for byte in data:
        value ^= byte << bits - 8
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value >> bits - 1 else 0)) & (1 << bits) - 1
    return value


def mp3(n_frames: int, claim: int | None = None, head: bytes = b"\xff\xfb\x90\xc4") -> bytes:
    """Silent frames of layer III, 128 kbit/s, 44100 Hz, mono; the first one may claim any number of them."""
    frame = head + bytes(413)
    if claim is None:
        return frame * n_frames
    first = head + bytes(17) + b"Xing\0\0\0\1" + struct.pack(">I", claim)
    return first + bytes(417 - len(first)) + frame * (n_frames - 1)


def jpeg(width: int, height: int, n_bytes: int = 0, n_scans: int = 1) -> bytes:
    """The headers of one, and as many bytes of nothing as it takes to be long enough."""
    data = b"\xff\xd8\xff\xe0\0\x04ab\xff\xc2\0\x11\x08" + struct.pack(">HH", height, width) + b"\3" + bytes(9)
    return (data + b"\xff\xda\0\2" * n_scans).ljust(n_bytes or width * height // 1024 + 1, b"\0")


def gif_of(width: int, height: int, data: bytes, extensions: bytes = b"") -> bytes:
    """A GIF whose screen and first frame have any size, and its compressed data."""
    blocks = b"".join(bytes((len(data[i : i + 255]),)) + data[i : i + 255] for i in range(0, len(data), 255))
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0x80, 0, 0)
        + bytes(6)
        + extensions
        + b","
        + struct.pack("<HHHHB", 0, 0, width, height, 0)
        + b"\2"
        + blocks
        + b"\0;"
    )


def data_url(data: bytes, kind: str = "image/png") -> str:
    """As a page sends it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def sha256(data: bytes) -> str:
    """As requests name contents."""
    return hashlib.sha256(data).hexdigest()
