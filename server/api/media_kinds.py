"""What bytes are: which kind of image or sound, and how large they get when decoded. Pure functions, any thread.

Only formats that libmtmd decodes by itself are known. Sizes are read from headers before anything is decoded, because
a file of a few kilobytes can claim a picture of gigabytes. A PNG is also inflated here, into nothing: its decoder
inflates all there is before it looks at the size.
"""

from __future__ import annotations

import struct
import zlib

from server.engine.seam.task import AUDIO, IMAGE

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
GIFS = (b"GIF87a", b"GIF89a")
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
NO_SIZE = (0xC4, 0xC8, 0xCC)  # of the markers 0xC0 to 0xCF of a JPEG, those without a size
STEP = 1 << 20


class BadFile(ValueError):
    """Why a file is no good; goes on behind its place in the request."""


def kind_of(data: bytes) -> str:
    """IMAGE or AUDIO. BadFile if it is neither, or of a format that can't be read."""
    head = data[:16]
    if head.startswith((PNG, JPEG, *GIFS)) or head[:2] == b"BM":
        return IMAGE
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE" or head.startswith((b"ID3", b"fLaC")):
        return AUDIO
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE0 == 0xE0:
        return AUDIO
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        raise BadFile("is a WebP image, which this server can't decode: send PNG or JPEG")
    raise BadFile("is neither an image (PNG, JPEG, GIF, BMP) nor a sound (WAV, MP3, FLAC)")


def check_image(data: bytes, max_pixels: int) -> None:
    """BadFile unless the image has a sane header and at most `max_pixels` pixels."""
    try:
        width, height = _size(data)
        if data.startswith(PNG):
            struct.unpack_from(">BB", data, 24)
    except (struct.error, IndexError):
        raise BadFile("is a broken image: its header is not complete") from None
    if width <= 0 or height <= 0:
        raise BadFile(f"is a broken image: its size is {width} x {height}")
    if width * height > max_pixels:
        raise BadFile(
            f"is an image of {width} x {height} pixels; this server takes at most {max_pixels // 10**6} "
            "million (--image-max-pixels)"
        )
    if data.startswith(PNG):
        _check_png(data, height)


def _size(data: bytes) -> tuple[int, int]:
    if data.startswith(PNG):
        return struct.unpack_from(">II", data, 16)
    if data.startswith(GIFS):
        return struct.unpack_from("<HH", data, 6)
    if data.startswith(JPEG):
        return _size_of_jpeg(data)
    if struct.unpack_from("<I", data, 14)[0] == 12:
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)


def _size_of_jpeg(data: bytes) -> tuple[int, int]:
    """The size in the frame header, behind segments that each say how long they are."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise BadFile("is a broken image: it is no JPEG behind its first bytes")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in NO_SIZE:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 if marker == 1 or 0xD0 <= marker <= 0xD8 else 2 + max(struct.unpack_from(">H", data, at + 2)[0], 2)


def _check_png(data: bytes, height: int) -> None:
    """BadFile if a PNG is cut off, or inflates to more than its size allows."""
    width, _, depth, colours = struct.unpack_from(">IIBB", data, 16)
    row = (width * PNG_CHANNELS.get(colours, 4) * depth + 7) // 8
    room = (row + 9) * (height + 16) + STEP  # with what interlacing may add
    inflater = zlib.decompressobj()
    at = len(PNG)
    try:
        while True:
            length, name = struct.unpack_from(">I4s", data, at)
            body = data[at + 8 : at + 8 + length]
            if len(body) < length or name == b"IEND":
                break
            if name == b"IDAT":
                room = _inflate(inflater, body, room)
            at += 12 + length
    except (struct.error, zlib.error):
        name = b""
    if name != b"IEND":
        raise BadFile("is a broken or truncated PNG image")


def _inflate(inflater, body: bytes, room: int) -> int:
    """Inflate in pieces that are thrown away; the room that is left."""
    while body and not inflater.eof:
        room -= len(inflater.decompress(body, STEP))
        body = inflater.unconsumed_tail
        if room < 0:
            raise BadFile("is a PNG image that holds far more data than its size")
    return room
