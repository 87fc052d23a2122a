"""Request bodies: both framings, fed in every way; chunked forms that are used for request smuggling."""

from __future__ import annotations

import pytest

from server.errors import ApiError
from server.web.http1.body import ChunkedDecoder, LengthDecoder, make_body_decoder
from server.web.http1.head import Framing
from server.web.limits import Limits
from tests.unit.web.feeding import ways_to_cut

LIMITS = Limits(body_bytes=1000)
TAILS = [b"", b"x", b"GET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n"]


def feed(decoder, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """Body and tail."""
    for i, piece in enumerate(pieces):
        if decoder.feed(piece):
            return bytes(decoder.body), decoder.rest + b"".join(pieces[i + 1 :])
    raise AssertionError("the body did not end")


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(
    ("coded", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", b"hello"),
        (b"00A\r\n0123456789\r\n000\r\n\r\n", b"0123456789"),
        (b"a;name=value;x\r\n0123456789\r\n0;y\r\nTrailer: a\r\nOther: b\r\n\r\n", b"0123456789"),
        (b"4\r\n\r\n0\r\r\n0\r\n\r\n", b"\r\n0\r"),
    ],
)
def test_chunks_are_joined_however_they_arrive(coded, body, tail):
    for pieces in ways_to_cut(coded + tail):
        assert feed(ChunkedDecoder(LIMITS), pieces) == (body, tail)


@pytest.mark.parametrize(
    ("coded", "status"),
    [
        (b"g\r\n", 400),
        (b"0x5\r\nhello\r\n", 400),
        (b"-1\r\n", 400),
        (b"+5\r\n", 400),
        (b"5 \r\nhello\r\n", 400),
        (b" 5\r\nhello\r\n", 400),
        (b"\r\n", 400),
        (b";a\r\n", 400),
        (b"5\nhello\r\n", 400),
        (b"5\r\r\nhello", 400),
        (b"5;a\x00\r\n", 400),
        (b"5;a\nb\r\n", 400),
        (b"5\r\nhelloX\r\n", 400),
        (b"5\r\nhello\n0\r\n\r\n", 400),
        (b"5\r\nhello\rX", 400),
        (b"0\r\nbad trailer\r\n\r\n", 400),
        (b"0\r\n folded: x\r\n\r\n", 400),
        (b"0\r\nA: b\n\r\n", 400),
        (b"0\r\nContent-Length: 5\r\n\r\n", 400),
        (b"0\r\nA: b\r\nTransfer-Encoding: x\r\n\r\n", 400),
        (b"0\r\nHost: elsewhere\r\n\r\n", 400),
        (b"1;" + b"x" * 5000, 400),
        (b"0\r\n" + b"A: bbbbbbbb\r\n" * 1000, 400),
        (b"0" * 17 + b"\r\n", 400),
        (b"3e9\r\n", 413),
        (b"ffffffffffffffff\r\n", 413),
        (b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\n", 413),
    ],
)
def test_malformed_chunks_are_refused_however_they_arrive(coded, status):
    for pieces in ways_to_cut(coded):
        decoder = ChunkedDecoder(LIMITS)
        with pytest.raises(ApiError) as caught:
            for piece in pieces:
                assert not decoder.feed(piece)
        assert caught.value.status == status


def test_a_body_cut_into_crumbs_is_refused_before_it_costs_much():
    decoder = ChunkedDecoder(Limits())
    with pytest.raises(ApiError) as caught:
        for _ in range(100):
            decoder.feed(b"1\r\nx\r\n" * 1000)
    assert caught.value.status == 400
    assert len(decoder.body) < 20_000


def test_many_chunks_of_fair_size_are_accepted():
    decoder = ChunkedDecoder(Limits())
    for _ in range(300):
        decoder.feed((b"80\r\n" + b"x" * 128 + b"\r\n") * 100)
    assert decoder.feed(b"0\r\n\r\n") and len(decoder.body) == 300 * 100 * 128


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("body", [b"", b"x", b"hello"])
def test_a_body_of_known_length_leaves_the_tail(body, tail):
    for pieces in ways_to_cut(body + tail) if body + tail else [[b""]]:
        assert feed(make_body_decoder(Framing("length", len(body)), LIMITS), pieces) == (body, tail)


def test_no_body_takes_nothing():
    assert feed(LengthDecoder(0), [b"next"]) == (b"", b"next")
