"""`api.media_kinds` and `api.media_sounds`: valid headers are read, and false ones are refused."""

from __future__ import annotations

import math
import random
import struct
import zlib

import pytest

from server.api.request.media_kinds import GIF_DATA, BadFile, check_image, kind_of
from server.api.request.media_sounds import make_plain_sound
from server.engine.slots.png import find_png_fault
from tests.media_files import bmp, flac, gif, gif_of, jpeg, mp3, png, png_of, riff, wav, wav_format

MANY = 50 * 10**6
ID3 = b"ID3\4\0\0\0\0\0\x0a" + bytes(10)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bmp(1, 1)[:18] + struct.pack("<ii", 7000, 7000) + bmp(1, 1)[26:54], id="BMP of 54 bytes"),
        pytest.param(png_of(7000, 7000, zlib.compress(b"")), id="PNG"),
        pytest.param(jpeg(7000, 7000, 300), id="JPEG"),
        pytest.param(gif_of(7000, 7000, b"\x84\x51"), id="GIF"),
    ],
)
def test_an_image_that_claims_more_than_its_bytes_can_hold_is_refused(data: bytes):
    with pytest.raises(BadFile, match="can't hold 7000 x 7000 pixels"):
        check_image(data, MANY)


def test_images_as_small_as_their_formats_allow_are_taken():
    plain = png_of(2000, 1500, zlib.compress(bytes(6001 * 1500), 9))
    assert check_image(plain, MANY).width == 2000 and not find_png_fault(plain, check_image(plain, MANY).n_bytes)
    assert check_image(jpeg(2000, 1500), MANY).height == 1500
    for data in (bmp(300, 200), gif(), png(1, 1)):
        assert check_image(data, MANY).n_bytes > 0


def test_a_size_that_the_decoder_would_not_read_is_not_read_either():
    """stb_image takes a chunk of Apple's before the header, and the size from the header behind it."""
    fake = struct.pack(">II", 8, 8) + b"\x08\2\0\0\0"
    big = struct.pack(">IIBBBBB", 16000, 16000, 8, 2, 0, 0, 0)
    for first in (chunk(b"CgBI", fake), chunk(b"IHDR", fake + b"\0"), chunk(b"tEXt", fake)):
        with pytest.raises(BadFile, match="not complete"):
            check_image(
                b"\x89PNG\r\n\x1a\n" + first + chunk(b"IHDR", big) + chunk(b"IDAT", b"") + chunk(b"IEND", b""), MANY
            )


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png_of(3000, 2000, b"")[:24] + b"\x10\6" + bytes(50_000), id="16 bits of four channels"),
        pytest.param(jpeg(3000, 2000, 50_000, n_scans=100), id="a hundred scans"),
    ],
)
def test_what_takes_many_times_the_work_counts_as_many_times_the_pixels(data: bytes):
    assert check_image(data, MANY).n_bytes >= 3 * 2000 * 3000
    with pytest.raises(BadFile, match=r"3000 x 2000 pixels that takes as much work as [28]\.\d plain images"):
        check_image(data, 7 * 10**6)


def test_a_gif_whose_first_frame_would_keep_its_decoder_busy_is_refused():
    assert check_image(gif_of(50, 50, bytes(GIF_DATA // 2)), MANY).width == 50
    with pytest.raises(BadFile, match="in its first frame"):
        check_image(gif_of(50, 50, bytes(GIF_DATA + 1000)), MANY)
    with pytest.raises(BadFile, match="bad block"):
        check_image(gif_of(50, 50, b"", b"!\xf9\5abcde\0"), MANY)
    comment = b"!\xfe\5hello\0"
    assert check_image(gif_of(50, 50, b"\x84\x51", 3 * comment), MANY).width == 50


@pytest.mark.parametrize(
    "data, words",
    [
        (bmp(8, 8)[:-3], "can't hold"),
        (bmp(8, 8)[:28] + b"\x10\0\1" + bmp(8, 8)[31:], "of a kind"),
        (b"BM" + bytes(12) + b"\x29" + bytes(60), "of a kind"),
        (gif_of(5, 5, b"")[:30] + b";", "not complete"),
        (gif_of(5, 5, b"", b"?"), "contains no frame"),
    ],
    ids=["cut", "compressed", "another header", "gif cut", "gif without an image"],
)
def test_other_headers_that_are_no_good(data: bytes, words: str):
    with pytest.raises(BadFile, match=words):
        check_image(data, MANY)


# ---- sounds ----------------------------------------------------------------------------------------------------------

SOUNDS = {"wav": wav(0.3), "flac": flac([0, 900, -900]), "mp3": mp3(12)}
SECONDS = {"wav": 0.3, "flac": 3 * 4096 / 16000, "mp3": 12 * 1152 / 44100}


@pytest.mark.parametrize("name", SOUNDS)
def test_a_plain_sound_is_left_as_it_is_and_measured(name: str):
    data, seconds = make_plain_sound(SOUNDS[name])
    assert data == SOUNDS[name] and math.isclose(seconds, SECONDS[name])


@pytest.mark.parametrize(
    "data, name",
    [
        (
            riff(
                (b"LIST", b"odd"),
                (b"fmt ", wav_format() + bytes(2)),
                (b"fact", bytes(4)),
                (b"data", wav(0.3)[44:]),
                (b"id3 ", bytes(9)),
            ),
            "wav",
        ),
        (
            riff(
                (b"fmt ", wav_format(kind=0xFFFE) + b"\x16\0\x10\0" + bytes(4) + b"\1\0" + bytes(14)),
                (b"data", wav(0.3)[44:]),
            ),
            "wav",
        ),
        (riff((b"fmt ", wav_format())) + b"data\xff\xff\xff\xff" + wav(0.3)[44:] + b"x", "wav"),
        (flac([0, 900, -900], blocks=b"\3\0\0\x12" + bytes(18) + b"\x81\0\0\2ab"), "flac"),
        (ID3 + flac([0, 900, -900]), "flac"),
        (ID3 + ID3 + mp3(12), "mp3"),
        (bytes(100) + mp3(12), "mp3"),
        (mp3(12) + b"TAG" + bytes(125), "mp3"),
        (mp3(5) + bytes(1000) + mp3(7), "mp3"),
        (mp3(12) + mp3(1)[:-1], "mp3"),
        (mp3(12) + bytes(70_000) + b"APETAGEX" + struct.pack("<IIII", 2000, 70_032, 1, 0) + bytes(8), "mp3"),
    ],
    ids=[
        "chunks",
        "extensible",
        "endless",
        "blocks",
        "ID3 and flac",
        "ID3 twice",
        "zeros before",
        "ID3v1",
        "a gap",
        "cut frame",
        "APE",
    ],
)
def test_what_is_around_a_sound_does_not_get_to_the_decoder(data: bytes, name: str):
    assert make_plain_sound(data) == (SOUNDS[name], pytest.approx(SECONDS[name]))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(flac([0], claim=10**9), id="FLAC of a billion samples"),
        pytest.param(flac([0], claim=2**36 - 1), id="FLAC of 2^36 samples"),
        pytest.param(wav(1.25, rate=16000)[:24] + struct.pack("<I", 1) + wav(1.25)[28:], id="WAV of 1 Hz"),
        pytest.param(mp3(1) * 140_000, id="MP3"),
        pytest.param(riff((b"fmt ", wav_format(1, 32, 64, 3)), (b"data", bytes(256 * 4000))), id="WAV of few samples"),
    ],
)
def test_a_sound_that_is_too_long_is_refused(data: bytes):
    with pytest.raises(BadFile, match="is a sound of [0-9]{4,} seconds; this server takes at most 3600"):
        make_plain_sound(data)


def test_a_sound_that_claims_more_than_its_bytes_can_hold_is_refused():
    with pytest.raises(BadFile, match="can't hold 40000000 samples"):
        make_plain_sound(flac([0] * 5, claim=40_000_000))
    with pytest.raises(BadFile, match="without its length"):
        make_plain_sound(flac([0], claim=0))


@pytest.mark.parametrize("claim", [11, 12, 1000, 2**32 - 1])
def test_the_number_of_frames_that_an_mp3_claims_is_made_true(claim: int):
    data, seconds = make_plain_sound(mp3(12, claim))
    assert data == mp3(12, 11) and math.isclose(seconds, SECONDS["mp3"])
    assert make_plain_sound(mp3(12, 5))[0] == mp3(12, 5), "fewer do no harm"


def test_a_number_of_frames_that_comes_later_is_not_believed():
    with pytest.raises(BadFile, match="in its middle"):
        make_plain_sound(mp3(3) + mp3(3, 2**31))
    with pytest.raises(BadFile, match="in its middle"):
        make_plain_sound(mp3(3) + bytes(50) + mp3(3, 2**31))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(riff((b"fmt ", wav_format(kind=2)), (b"data", bytes(400))), id="ADPCM"),
        pytest.param(riff((b"fmt ", wav_format(rate=0)), (b"data", bytes(400))), id="0 Hz"),
        pytest.param(riff((b"fmt ", wav_format(channels=300)), (b"data", bytes(4000))), id="300 channels"),
        pytest.param(riff((b"fmt ", wav_format()[:12] + b"\1\0\x10\0"), (b"data", bytes(400))), id="half samples"),
        pytest.param(riff((b"data", bytes(400)), (b"fmt ", wav_format())), id="no format"),
        pytest.param(riff((b"fmt ", wav_format())) + mp3(30), id="an MP3 in a WAV"),
        pytest.param(b"fLaC\x80\0\0\x21" + flac([0])[8:] + mp3(30), id="an MP3 in a FLAC"),
        pytest.param(flac([0], blocks=b"\1\xff\xff\xff") + mp3(30), id="an MP3 behind a FLAC's header"),
        pytest.param(b"\xff\xfb\0\xc4" + bytes(9) + b"\xff\xfb\0\xc4" + bytes(9), id="free format"),
        pytest.param(b"\xff\xfd\x90\xc4" + bytes(413), id="layer II"),
        pytest.param(mp3(1)[:-1], id="half a frame"),
        pytest.param(b"\xff\xfb" + random.Random(1).randbytes(200_000), id="noise"),
        pytest.param(mp3(3) + random.Random(1).randbytes(200_000) + mp3(3), id="noise in the middle"),
        pytest.param(mp3(30) + mp3(300, head=b"\xff\xfb\x94\xc4"), id="another rate"),
    ],
)
def test_a_sound_of_a_kind_that_readers_may_read_in_two_ways_is_refused(data: bytes):
    with pytest.raises(BadFile):
        make_plain_sound(data)


# ---- all of them -----------------------------------------------------------------------------------------------------

ALL = {
    "png": png(20, 10),
    "bmp": bmp(9, 7),
    "gif": gif(),
    "jpeg": jpeg(40, 30),
    **SOUNDS,
    "gif of more": gif_of(30, 20, b"\x84\x51" * 20, b"!\xfe\2ab\0"),
    "mp3 with a number": mp3(4, 9),
    "mp3 with tags": ID3 + mp3(2),
    "flac with blocks": flac([1], blocks=b"\x81\0\0\2ab"),
    "wav of parts": riff((b"LIST", b"ab"), (b"fmt ", wav_format()), (b"data", bytes(20))),
}


def look_at(data: bytes) -> None:
    """As a request does, and the media thread. BadFile."""
    if kind_of(data) == "audio":
        plain, seconds = make_plain_sound(data)
        assert 0 <= seconds <= 3600
        assert make_plain_sound(plain) == (plain, seconds), "what is plain is plain"
    else:
        size = check_image(data, 10**6)
        assert 0 < size.width * size.height <= 10**6 and size.n_bytes > 0
        find_png_fault(data, size.n_bytes)


@pytest.mark.parametrize("name", ALL)
def test_a_file_that_is_cut_anywhere_is_read_or_refused(name: str):
    look_at(ALL[name])
    for n in range(len(ALL[name])):
        try:
            look_at(ALL[name][:n])
        except BadFile:
            pass


def test_no_bytes_bring_the_readers_down():
    rng = random.Random(3)
    for _ in range(6000):
        data = bytearray(rng.choice(list(ALL.values())))
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(min(len(data), rng.choice((30, 100, 10**6))))] = rng.choice((0, 255, rng.randrange(256)))
        try:
            look_at(bytes(data))
        except BadFile:
            pass


@pytest.mark.parametrize(
    "head, part",
    [
        (b"GIF89a" + bytes(7), b"!\xfe\0"),
        (b"GIF89a" + bytes(7) + b"!\xfe", b"\1a"),
        (b"\xff\xd8", b"\xff\xe0\0\2"),
        (b"\xff\xd8", b"\xff"),
        (b"RIFF1234WAVE", b"LIST\0\0\0\0"),
        (b"fLaC\0\0\0\x22" + flac([0])[8:42], b"\1\0\0\0"),
        (b"", ID3[:9] + b"\0"),
        (b"\xff\xfb", b"\xff\xfb\x90\xc4"),
        (b"", b"\xff\xfb\x90\xc4" + bytes(414)),
    ],
    ids=[
        "gif extensions",
        "gif blocks",
        "jpeg segments",
        "jpeg fill",
        "wav chunks",
        "flac blocks",
        "ID3",
        "mp3 heads",
        "mp3 off by one",
    ],
)
def test_the_parts_of_a_header_are_not_counted_for_ever(head: bytes, part: bytes):
    """As many looks at a file of 1 MB as at one of 10 MB."""

    def looks(n: int) -> int:
        data = Watched(head + part * (n // len(part)))
        data.n = 0
        is_image = head[:2] in (b"GI", b"\xff\xd8")
        with pytest.raises(BadFile):
            check_image(data, MANY) if is_image else make_plain_sound(data)
        return data.n

    assert looks(10**7) == looks(10**6) < 500_000


class Watched(bytes):
    """Counts how often somebody looks at a place."""

    n = 0

    def __getitem__(self, key):
        self.n += 1
        return super().__getitem__(key)


def test_a_png_of_many_chunks_is_not_followed_for_ever():
    data = png_of(8, 8, b"")[:33] + chunk(b"tEXt", b"") * 200_000
    assert "broken" in find_png_fault(data, 1000)
