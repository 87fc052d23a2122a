"""Recognises the format of an image or sound, and reads from an image's header what decoding will cost.

Pure functions, any thread. Only formats that libmtmd itself decodes are known. A file of a few bytes can claim to be an
image of gigabytes, or one that takes minutes to decode. stb_image, which decodes for libmtmd, believes a header and
can't be stopped. So the functions here accept only headers that stb_image reads in the same way. The engine checks
whether a PNG inflates to the size in its header (`slots/png.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from server.engine.seam.task import AUDIO, IMAGE
from server.records import record

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
GIFS = (b"GIF87a", b"GIF89a")
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
BMP_HEADERS = (12, 40, 56, 108, 124)  # bytes
BMP_BITS = (1, 4, 8, 16, 24, 32)  # of a pixel
BMP_PLAIN = (0, 3)  # compression methods without compression
NO_SIZE = (0xC4, 0xC8, 0xCC)  # the markers from 0xC0 to 0xCF of a JPEG that have no size
SCANS = 12  # scans of a progressive JPEG; encoders make no more
GIF_DATA = 1 << 18  # most bytes of a frame; each may cost the decoder a thousand operations
MAX_PARTS = 10_000  # of a header

# The most pixels (PNG: bytes) that one byte of a file can become.
DEFLATE_RATIO, JPEG_RATIO, GIF_RATIO = 1040, 1024, 4096


class BadFile(ValueError):
    """Why a file is refused. The message follows the file's place in the request."""


@record(frozen=True)
class Size:
    """An image's size from its header. `work` is the decoder's work, as a multiple of that for a plain image of the
    same size. The file must have at least `n_least` bytes. `n_unpacked` is the number of bytes that the file's data may
    unpack to, 0 for just the pixels."""

    width: int
    height: int
    n_least: float
    work: float = 1.0
    n_unpacked: int = 0

    @property
    def n_bytes(self) -> int:
        """The cost of decoding it, as a number of bytes of plain pixels."""
        return self.n_unpacked or int(3 * self.width * self.height * self.work)


def kind_of(data: bytes) -> str:
    """IMAGE or AUDIO. BadFile if it is neither, or in a format that can't be decoded."""
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


def check_image(data: bytes, max_pixels: int) -> Size:
    """The image's size. BadFile for a wrong header, for more pixels or more work than `max_pixels` plain pixels, and
    for a file that is too short."""
    try:
        size = _read_size(data)
    except (struct.error, IndexError):
        raise BadFile("is a broken image: its header is not complete") from None
    text = f"{size.width} x {size.height}"
    if size.width <= 0 or size.height <= 0:
        raise BadFile(f"is a broken image: its size is {text}")
    if size.width * size.height > max_pixels:
        raise BadFile(
            f"is an image of {text} pixels; this server takes at most {max_pixels // 10**6} million "
            "(--image-max-pixels)"
        )
    if size.width * size.height * size.work > max_pixels:
        raise BadFile(
            f"is an image of {text} pixels that takes as much work as {size.work:.1f} plain images of this size; "
            f"this server takes at most {max_pixels // 10**6} million pixels (--image-max-pixels)"
        )
    if len(data) < size.n_least:
        raise BadFile(f"is a broken or truncated image: {len(data)} bytes can't hold {text} pixels")
    return size


def count_parts() -> Iterator[int]:
    """Count the parts of a header. BadFile after `MAX_PARTS`: a hostile file may have millions."""
    yield from range(MAX_PARTS)
    raise BadFile("is broken: its header has too many parts")


def _read_size(data: bytes) -> Size:
    if data.startswith(PNG):
        return _size_of_png(data)
    if data.startswith(GIFS):
        return _size_of_gif(data)
    return _size_of_jpeg(data) if data.startswith(JPEG) else _size_of_bmp(data)


def _size_of_png(data: bytes) -> Size:
    """Read the size from the first chunk, which must be IHDR: a decoder would also accept a later one."""
    if data[8:16] != b"\0\0\0\rIHDR":
        raise BadFile("is a broken image: its header is not complete")
    width, height, depth, colours = struct.unpack_from(">IIBB", data, 16)
    bits = PNG_CHANNELS.get(colours, 4) * depth
    n_unpacked = ((width * bits + 7) // 8 + 9) * (height + 16)  # including what interlacing may add
    return Size(width, height, width * height * bits / 8 / DEFLATE_RATIO, max(bits / 32, 1.0), n_unpacked)


def _size_of_jpeg(data: bytes) -> Size:  # type: ignore[return]
    """Read the size from the frame header, which follows segments that begin with their length. The decoder processes
    the whole image once for each scan, and a progressive JPEG may have any number."""
    at = 2
    for _ in count_parts():
        if data[at] != 0xFF:
            raise BadFile("is a broken image: only its first bytes are a JPEG's")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in NO_SIZE:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return Size(width, height, width * height / JPEG_RATIO, max(data.count(b"\xff\xda", at) / SCANS, 1.0))
        at += 2 if marker == 1 or 0xD0 <= marker <= 0xD8 else 2 + max(struct.unpack_from(">H", data, at + 2)[0], 2)


def _size_of_gif(data: bytes) -> Size:
    """Read the size of the screen, which the decoder allocates, and measure the data of the first frame."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _count_palette_bytes(flags)
    for _ in count_parts():  # extensions
        if data[at] != 0x21:
            break
        if data[at + 1] == 0xF9 and data[at + 2] != 4:
            raise BadFile("is a broken image: it has a bad block")
        at = _skip_blocks(data, at + 2)
    if data[at] != 0x2C:
        raise BadFile("is a broken image: the GIF contains no frame")
    start = at + 11 + _count_palette_bytes(data[at + 9])
    n_data = _skip_blocks(data, start) - start
    if n_data > GIF_DATA:
        raise BadFile(
            f"is a GIF with {n_data} bytes in its first frame; this server takes at most {GIF_DATA}: send PNG or JPEG"
        )
    return Size(width, height, width * height / GIF_RATIO, n_unpacked=max(3 * width * height, 1000 * n_data))


def _count_palette_bytes(flags: int) -> int:
    return 3 * (2 << (flags & 7)) if flags & 0x80 else 0


def _skip_blocks(data: bytes, at: int) -> int:  # type: ignore[return]
    """The position behind a GIF's blocks. Each begins with its length; the last one has length 0."""
    for _ in count_parts():
        if not data[at]:
            return at + 1
        at += 1 + data[at]


def _size_of_bmp(data: bytes) -> Size:
    start, n_header = struct.unpack_from("<II", data, 10)
    if n_header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        packing = 0
    else:
        width, height, _, bits, packing = struct.unpack_from("<iiHHI", data, 18)
    if n_header not in BMP_HEADERS or bits not in BMP_BITS or packing not in BMP_PLAIN:
        raise BadFile("is a BMP of a kind that can't be decoded: send PNG or JPEG")
    row = (abs(width) * bits + 7) // 8
    return Size(width, abs(height), start + (row + -row % 4) * (abs(height) - 1) + row)
