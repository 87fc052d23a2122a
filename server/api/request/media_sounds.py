"""Measures sounds, and rewrites their files so that every decoder reads them in the same way.

Pure functions, any thread. miniaudio, which decodes for libmtmd, allocates as many samples as a file claims to have. It
reads any other file than WAV and FLAC as MP3, from wherever a frame begins. So the decoder gets a rewritten file
without the parts that decoders read differently. A WAV gets a plain header before its samples. A FLAC keeps only the
description of its stream and its frames. An MP3 keeps only its frames, and claims no more of them.

Not taken: checking files and passing them on unchanged. Each difference between the check and the decoder would be a
vulnerability.
"""

from __future__ import annotations

import struct

from server.api.request.media_kinds import BadFile, count_parts

MAX_SECONDS = 3600  # of a sound
WAV_BITS = {1: (8, 16, 24, 32), 3: (32, 64), 6: (8,), 7: (8,)}  # of a sample, by format: PCM, float, A-law, mu-law
WAV_EXTENSIBLE = 0xFFFE
MAX_RATE, MAX_CHANNELS = 384_000, 32  # the rate in Hz
FLAC_BLOCK, FLAC_FRAME = 65_535, 10  # the most samples, and the fewest bytes, of one frame

MP3_KBPS = {  # kbit/s, by whether the version keeps the full rate
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_RATES = (44_100, 48_000, 32_000)  # Hz
MP3_VERSIONS = {0xFA: (1152, 0), 0xF2: (576, 1), 0xE2: (576, 2)}  # samples of a frame, and how often the rate is halved
MP3_STRAY = 1 << 16  # bytes that may lie between frames
TAGS = (b"Xing", b"Info")  # in the first frame, with the number of frames


def make_plain_sound(data: bytes, max_seconds: float = MAX_SECONDS) -> tuple[bytes, float]:
    """A sound's file for the decoder, and its length in seconds. BadFile."""
    start = _skip_id3(data)
    try:
        if data.startswith(b"RIFF"):
            return _make_plain_wav(data, max_seconds)
        if data.startswith(b"fLaC", start):
            return _make_plain_flac(data, start, max_seconds)
        return _make_plain_mp3(data, start, max_seconds)
    except (struct.error, IndexError):
        raise BadFile("is a broken sound: its header is not complete") from None


def _check_length(seconds: float, max_seconds: float) -> float:
    if seconds > max_seconds:
        raise BadFile(f"is a sound of {seconds:.0f} seconds; this server takes at most {max_seconds:g}")
    return seconds


# ---- WAV ----------------------------------------------------------------------------------------------------------


def _make_plain_wav(data: bytes, max_seconds: float) -> tuple[bytes, float]:
    fmt, start, n = _find_wav_parts(data)
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", data, fmt)
    if tag == WAV_EXTENSIBLE:
        tag = struct.unpack_from("<H", data, fmt + 24)[0]
    if (
        bits not in WAV_BITS.get(tag, ())
        or not 1 <= channels <= MAX_CHANNELS
        or not 1 <= rate <= MAX_RATE
        or block != channels * bits // 8
    ):
        raise BadFile(
            f"is a WAV of a kind that can't be decoded (format {tag}, {channels} channels, {rate} Hz, {bits} "
            "bits): send PCM"
        )
    n -= n % block
    seconds = _check_length(n // block / rate, max_seconds)
    head = struct.pack(
        "<4sI8sIHHIIHH4sI", b"RIFF", 36 + n, b"WAVEfmt ", 16, tag, channels, rate, rate * block, block, bits, b"data", n
    )
    if len(data) == len(head) + n and data.startswith(head):
        return data, seconds
    return b"".join((head, memoryview(data)[start : start + n])), seconds


def _find_wav_parts(data: bytes) -> tuple[int, int, int]:  # type: ignore[return]
    """The positions of the format and of the samples, and the number of bytes of samples."""
    at, fmt = 12, 0
    for _ in count_parts():
        name, n = struct.unpack_from("<4sI", data, at)
        at += 8
        if name == b"fmt ":
            fmt = at
        elif name == b"data":
            if not fmt:
                raise BadFile("is a broken sound: its samples come before their format")
            return fmt, at, min(n, len(data) - at)
        at += n + n % 2


# ---- FLAC ---------------------------------------------------------------------------------------------------------


def _make_plain_flac(data: bytes, start: int, max_seconds: float) -> tuple[bytes, float]:
    block, _, _, _, _, packed = struct.unpack_from(">IHHHIQ", data, start + 4)  # the sizes of frames aren't used
    info = data[start + 8 : start + 42]
    rate, bits, n = packed >> 44, (packed >> 36 & 31) + 1, packed & (1 << 36) - 1
    if block & 0x7FFFFFFF != 34 or len(info) < 34 or not 1 <= rate <= MAX_RATE or bits < 4:
        raise BadFile("is a broken sound: only its first bytes are a FLAC's")
    if not n:
        raise BadFile("is a FLAC without its length in the header")
    seconds = _check_length(n / rate, max_seconds)
    at, is_last = start + 42, block >> 31
    for _ in count_parts():
        if is_last:
            break
        word = struct.unpack_from(">I", data, at)[0]
        is_last, at = word >> 31, at + 4 + (word & 0xFFFFFF)
    if n // FLAC_BLOCK * FLAC_FRAME >= len(data) - at:
        raise BadFile(f"is a broken or truncated sound: {len(data)} bytes can't hold {n} samples")
    return b"".join((b"fLaC\x80\0\0\x22", info, memoryview(data)[at:])), seconds


# ---- MP3 ----------------------------------------------------------------------------------------------------------


def _compute_frame_sizes() -> dict[int, int]:
    """The size of an MP3 frame in bytes, by the two bytes of its header that determine it."""
    sizes: dict[int, int] = {}
    for version, (n_samples, halvings) in MP3_VERSIONS.items():
        for i, rate in enumerate(MP3_RATES):
            for k, kbps in enumerate(MP3_KBPS[not halvings], 1):
                for padding in (0, 1):
                    n = n_samples * kbps * 125 // (rate >> halvings) + padding
                    sizes[version << 8 | k << 4 | i << 2 | padding << 1] = n
    return sizes


FRAME_SIZES = _compute_frame_sizes()
MAX_FRAME = max(FRAME_SIZES.values())


def _make_plain_mp3(data: bytes, start: int, max_seconds: float) -> tuple[bytes, float]:
    """All frames of the first one's kind. If the first one's tag claims too many frames, the number is corrected."""
    end = _find_tags(data, start)
    pieces: list[tuple[int, int]] = []
    kind, n_frames, seconds, n_stray, at = None, 0, 0.0, 0, start
    while True:
        first = data.find(b"\xff", at, end)
        n_stray += (end if first < 0 else first) - at
        if n_stray > MP3_STRAY:
            raise BadFile("is a broken sound: it is not an MP3, or has too much other data in it")
        if first < 0:
            break
        if not _is_first(data, first, end, kind):
            n_stray, at = n_stray + 1, first + 1
            continue
        kind, at = kind or _read_kind(data, first), first
        n_samples, halvings = MP3_VERSIONS[kind[0]]
        frame_s = n_samples / (MP3_RATES[kind[1] >> 2] >> halvings)
        while size := _read_frame_size(data, at, end, kind):
            if n_frames and _tag(data, at) is not None:
                raise BadFile("is a broken sound: a frame in its middle contains the number of frames")
            n_frames, at = n_frames + 1, at + size
            seconds = _check_length(n_frames * frame_s, max_seconds)
        pieces.append((first, at))
    if not pieces:
        raise BadFile("is a broken sound: only its first bytes are an MP3's")
    return _join_pieces(data, pieces, n_frames), seconds


def _is_first(data: bytes, at: int, end: int, kind: tuple[int, int, bool] | None) -> bool:
    """Whether a sequence of frames begins here: a whole frame, followed by the beginning of another or by the end."""
    size = _read_frame_size(data, at, end, kind)
    behind = at + size
    return size > 0 and (behind == end or _read_frame_size(data, behind, end + MAX_FRAME, _read_kind(data, at)) > 0)


def _read_frame_size(data: bytes, at: int, end: int, kind: tuple[int, int, bool] | None) -> int:
    """The size in bytes of the frame at this position; 0 if there is no whole frame of this kind."""
    if data[at : at + 1] != b"\xff" or at + 4 > len(data):
        return 0
    size = FRAME_SIZES.get((data[at + 1] & 0xFE) << 8 | data[at + 2] & 0xFE, 0)
    return size if at + size <= end and (kind is None or _read_kind(data, at) == kind) else 0


def _read_kind(data: bytes, at: int) -> tuple[int, int, bool]:
    """The properties that all frames of a file share: version, rate, and whether there is only one channel."""
    return data[at + 1] & 0xFE, data[at + 2] & 0x0C, data[at + 3] >> 6 == 3


def _tag(data: bytes, at: int) -> int | None:
    """The position of a tag of TAGS in this frame; None without one."""
    version, _, is_mono = _read_kind(data, at)
    n_side = (17 if is_mono else 32) if version == 0xFA else 9 if is_mono else 17
    place = at + 4 + (0 if data[at + 1] & 1 else 2) + n_side
    return place if data[place : place + 4] in TAGS else None


def _join_pieces(data: bytes, pieces: list[tuple[int, int]], n_frames: int) -> bytes:
    first = pieces[0][0]
    place = _tag(data, first)
    if place is not None and data[place + 7] & 1 and struct.unpack_from(">I", data, place + 8)[0] > n_frames - 1:
        pieces = [(first, place + 8), (-1, n_frames - 1), (place + 12, pieces[0][1]), *pieces[1:]]
    if pieces == [(0, len(data))]:
        return data
    view = memoryview(data)
    return b"".join(struct.pack(">I", stop) if start < 0 else view[start:stop] for start, stop in pieces)


def _skip_id3(data: bytes) -> int:  # type: ignore[return]
    """The position behind the ID3 tags at the beginning of a file."""
    at = 0
    for _ in count_parts():
        if not data.startswith(b"ID3", at) or len(data) < at + 10:
            return at
        a, b, c, d = data[at + 6 : at + 10]
        at += 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if data[at + 5] & 0x10 else 0)


def _find_tags(data: bytes, start: int) -> int:
    """The position where frames end, before the tags at the end of a file."""
    end = len(data)
    if data[-128:-125] == b"TAG":
        end -= 128
    if data[end - 32 : end - 24] == b"APETAGEX":
        n, _, flags = struct.unpack_from("<III", data, end - 20)
        end -= n + (32 if flags >> 31 else 0)
    return max(end, start)
