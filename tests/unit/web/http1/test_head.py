"""Request heads: accepted ones, and those that are refused because two servers might read them differently."""

from __future__ import annotations

import time

import pytest

from server.errors import ApiError
from server.web.http1.head import (
    Framing,
    Head,
    Headers,
    HeadParser,
    decode_percent,
    parse_query,
    read_body_framing,
    split_target,
)
from server.web.limits import Limits
from tests.unit.web.feeding import ways_to_cut

PLAIN = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\nX-Empty:\r\nX-Two:  a b \t\r\n\r\n"
LIMITS = Limits(request_line_bytes=100, head_bytes=300, n_headers=5)


def feed(pieces: list[bytes], limits: Limits = LIMITS) -> tuple[Head | None, bytes]:
    """The head, and all bytes after it."""
    parser = HeadParser(limits)
    for i, piece in enumerate(pieces):
        head = parser.feed(piece)
        if head:
            return head, parser.rest + b"".join(pieces[i + 1 :])
    return None, b""


def refusal(data: bytes, limits: Limits = LIMITS) -> int:
    """The status that `data` is refused with: the same one however it is cut."""
    statuses = set()
    for pieces in ways_to_cut(data):
        with pytest.raises(ApiError) as caught:
            feed(pieces, limits)
        statuses.add(caught.value.status)
    assert len(statuses) == 1, statuses
    return statuses.pop()


@pytest.mark.parametrize("tail", [b"", b"body", b"GET /next HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize("lead", [b"", b"\r\n", b"\r\n\r\n"])
def test_a_head_is_the_same_however_it_is_cut_and_leaves_the_tail(lead, tail):
    for pieces in ways_to_cut(lead + PLAIN + tail):
        head, rest = feed(pieces)
        assert (head.method, head.target, head.version) == ("GET", "/a?b=c", (1, 1))
        assert head.headers == {"host": "x", "x-empty": "", "x-two": "a b"}
        assert rest == tail


@pytest.mark.parametrize("end", range(len(PLAIN)))
def test_an_unfinished_head_asks_for_more(end):
    assert feed([PLAIN[:end]]) == (None, b"")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\n", 400),
        (b"GET / HTTP/1.1\r\r\n", 400),
        (b"GET  / HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.1 \r\n", 400),
        (b" GET / HTTP/1.1\r\n", 400),
        (b"GET /\r\n", 400),
        (b"GET\t/\tHTTP/1.1\r\n", 400),
        (b"GET /\xc3\xa4 HTTP/1.1\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.10\r\n", 400),
        (b"GET / http/1.1\r\n", 400),
        (b"GET / HTTP/2.0\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"G[T / HTTP/1.1\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"\x00", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost\r\n", 400),
        (b"GET / HTTP/1.1\r\n: x\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n", 400),
        (b"GET / HTTP/1.1\r\n A: b\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\rc\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\x00c\r\n", 400),
        (b"GET / HTTP/1.1\r\nA\xff: b\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n", 400),
        (b"GET / HTTP/1.1\r\ncontent-length: 5\r\nContent-Length: 5\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", 400),
        (b"GET /" + b"a" * 100 + b" HTTP/1.1\r\n", 414),
        (b"GET /" + b"a" * 400, 414),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 300 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 300, 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 6, 431),
        (b"\r\n" * 151 + PLAIN, 431),
    ],
)
def test_what_cannot_become_a_request_is_refused_at_once(data, status):
    assert refusal(data) == status


def test_a_head_of_a_megabyte_is_parsed_in_linear_time():
    limits = Limits(head_bytes=2**21, n_headers=10**6)
    data = b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000 + b"\r\n"
    seconds = []
    for size in (10, 1):
        pieces = [data[i : i + 4096] for i in range(0, len(data) // size, 4096)]
        start = time.process_time()
        feed(pieces, limits)
        seconds.append(time.process_time() - start)
    # ten times the bytes; quadratic would be a hundred times the time
    assert seconds[0] < 50 * seconds[1] + 0.5


def test_headers_are_found_in_any_case_and_repeated_ones_joined():
    headers = Headers([("X-A", "1"), ("x-a", "2")])
    assert headers["X-a"] == headers.get("x-A") == "1, 2"
    assert "X-A" in headers and "X-B" not in headers
    assert Headers({"Content-Type": "a"}).get("content-type") == "a"
    assert headers.get("nothing", "else") == "else"


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"close", False),
        (b"1.1", b"Upgrade, CLOSE", False),
        (b"1.0", b"", False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.3", b"", True),
    ],
)
def test_whether_a_connection_is_kept(version, connection, kept):
    head, _ = feed([b"GET / HTTP/%b\r\nConnection: %b\r\n\r\n" % (version, connection)])
    assert head.keep_alive is kept


def framing_of(*fields: tuple[str, str], version: tuple[int, int] = (1, 1)) -> Framing:
    return read_body_framing(Head("POST", "/", version, Headers(fields)), Limits(body_bytes=1000))


@pytest.mark.parametrize(
    ("fields", "framing"),
    [
        ([], Framing("none")),
        ([("Content-Length", "0")], Framing("length", 0)),
        ([("Content-Length", "1000")], Framing("length", 1000)),
        ([("Content-Length", "0000000005")], Framing("length", 5)),
        ([("Transfer-Encoding", "Chunked")], Framing("chunked")),
        ([("Content-Encoding", "identity"), ("Content-Length", "5")], Framing("length", 5)),
    ],
)
def test_framings_that_are_clear(fields, framing):
    assert framing_of(*fields) == framing


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([("Content-Length", value)], 400)
        for value in ("-1", "+5", "5, 5", "5,6", "", " ", "0x5", "5.0", "5_0", "1e3", "\u0665", "9" * 20, "5;5", "nan")
    ]
    + [
        ([("Transfer-Encoding", value)], 400)
        for value in (
            "gzip",
            "gzip, chunked",
            "chunked, chunked",
            "identity",
            "",
            "xchunked",
            "chunked;q=1",
            "chunked, identity",
        )
    ]
    + [
        ([("Content-Length", "5"), ("Transfer-Encoding", "chunked")], 400),
        ([("Content-Length", "1001")], 413),
        ([("Content-Length", "9" * 19)], 413),
        ([("Content-Encoding", "gzip"), ("Content-Length", "5")], 415),
        ([("Content-Encoding", "br")], 415),
        ([("Expect", "200-ok")], 417),
    ],
)
def test_framings_that_are_refused(fields, status):
    with pytest.raises(ApiError) as caught:
        framing_of(*fields)
    assert caught.value.status == status


def test_chunked_in_http_1_0_is_refused():
    with pytest.raises(ApiError):
        framing_of(("Transfer-Encoding", "chunked"), version=(1, 0))


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("/", (None, "/", {})),
        ("*", (None, "*", {})),
        ("/a%20b/%C3%A4+c?x=1&y=%2B+z&x=2&flag&=", (None, "/a b/ä+c", {"x": "2", "y": "+ z", "flag": "", "": ""})),
        ("/a%2Fb", (None, "/a/b", {})),
        ("//a", (None, "//a", {})),
        ("/a?b?c=d", (None, "/a", {"b?c": "d"})),
        ("http://host:80/a?b=c", ("host:80", "/a", {"b": "c"})),
        ("HTTPS://host", ("host", "/", {})),
        ("http://host?a=b", ("host", "/", {"a": "b"})),
    ],
)
def test_targets_are_taken_apart(target, parts):
    assert split_target(target) == parts


@pytest.mark.parametrize(
    "target",
    [
        "a",
        "host:80",
        "/a#b",
        "ftp://host/",
        "http:///a",
        "/%",
        "/%4",
        "/%zz",
        "/%00",
        "/a%0d%0ab",
        "/%ff",
        "/%c0%ae",
        "/%ed%a0%80",
        "/?a=%00",
        "/?%zz=1",
        "/%7f",
    ],
)
def test_targets_that_hide_something_are_refused(target):
    with pytest.raises(ApiError) as caught:
        split_target(target)
    assert caught.value.status == 400


def test_decoding_happens_once():
    assert decode_percent("%252e", "path") == "%2e"
    assert parse_query("a=%2526") == {"a": "%26"}
