"""Fetching by URL: only from public addresses, pinned, bounded in size and time, redirects checked again."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest

from server.api.request import remote_media
from server.api.request.remote_media import FetchError, check_url, fetch, is_public

LIMIT = 1 << 20


@contextmanager
def site(*answers: bytes, hold: threading.Event | None = None) -> Iterator[tuple[str, list[bytes]]]:
    """A server on this machine that gives one raw answer per connection: its URL, and the requests it got."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.05)
    requests: list[bytes] = []
    is_over = threading.Event()

    def serve() -> None:
        left = list(answers)
        while left and not is_over.is_set():
            try:
                sock, _ = listening.accept()
            except TimeoutError:
                continue
            with sock:
                requests.append(sock.recv(65536))
                sock.sendall(left.pop(0))
                if hold is not None:
                    hold.wait(30)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", requests
    finally:
        if hold is not None:
            hold.set()
        is_over.set()
        thread.join(30)
        listening.close()


def ok(body: bytes, *lines: bytes) -> bytes:
    head = b"\r\n".join([b"HTTP/1.1 200 OK", *(lines or (b"Content-Length: %d" % len(body),))])
    return head + b"\r\n\r\n" + body


def moved(to: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


def anywhere(address: str) -> bool:
    return True


def test_a_file_is_fetched():
    with site(ok(b"a cat")) as (url, requests):
        assert fetch(url + "/cat.png?size=1", LIMIT, is_allowed=anywhere) == b"a cat"
    assert requests[0].startswith(b"GET /cat.png?size=1 HTTP/1.1\r\n") and b"Cookie" not in requests[0]


def test_a_chunked_file_is_fetched():
    with site(ok(b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"Transfer-Encoding: chunked")) as (url, _):
        assert fetch(url, LIMIT, is_allowed=anywhere) == b"abc"


def test_this_machine_is_not_asked():
    with site(ok(b"secret")) as (url, requests):
        for name in (url, url.replace("127.0.0.1", "localhost"), url.replace("127.0.0.1", "[::ffff:127.0.0.1]")):
            with pytest.raises(FetchError, match="not on the public internet"):
                fetch(name, LIMIT)
    assert requests == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "198.18.0.1",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2001:db8::1",
        "fec0::1",
        "192.0.0.9",
        "192.88.99.1",
        "198.51.100.1",
        "203.0.113.1",
        "2002:101:101::1",
        "2002::1",
        "2001:2::1",
        "2001:20::1",
        "3fff::1",
        "5f00::1",
        "64:ff9b:1::101:101",
        "100::1",
        "4000::1",
        "::1.1.1.1",
        "::ffff:192.88.99.1",
        "64:ff9b::c633:6401",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",
        "nonsense",
        "",
    ],
)
def test_private_addresses_are_not_public(address: str):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001::1", "::ffff:1.1.1.1", "64:ff9b::101:101"],
)
def test_addresses_of_the_internet_are_public(address: str):
    assert is_public(address)


def test_what_is_public_is_the_same_in_every_version_of_python(monkeypatch):
    """What `ipaddress` says of an address has changed between versions, also within 3.10 to 3.13."""
    for kind in (ipaddress.IPv4Address, ipaddress.IPv6Address):
        for name in ("is_global", "is_private", "is_reserved", "is_site_local", "ipv4_mapped", "sixtofour", "teredo"):
            monkeypatch.delattr(kind, name, raising=False)
    assert is_public("1.1.1.1") and is_public("2606:4700:4700::1111") and is_public("::ffff:1.1.1.1")
    assert not is_public("192.168.1.1") and not is_public("fec0::1") and not is_public("::ffff:10.0.0.1")


def test_one_private_address_among_several_is_enough_to_refuse():
    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("1.1.1.1", "127.0.0.1")]
    with patch.object(socket, "getaddrinfo", return_value=rows):
        with pytest.raises(FetchError, match="not on the public internet"):
            fetch("http://both.example/x", LIMIT)


def test_the_connection_goes_to_the_address_that_was_checked():
    """A name server that answers a second time with another address has nobody who asks it."""
    with site(ok(b"a cat")) as (url, requests):
        port = int(url.rpartition(":")[2])
        rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        with patch.object(socket, "getaddrinfo", side_effect=[rows]) as asked:
            real = socket.create_connection
            with patch.object(socket, "create_connection", side_effect=lambda to, timeout: _pinned(real, to, timeout)):
                assert fetch(f"http://cat.example:{port}/x", LIMIT, is_allowed=anywhere) == b"a cat"
        assert asked.call_count == 1
    assert b"Host: cat.example" in requests[0]


def _pinned(real: Callable, to: tuple[str, int], timeout: float) -> socket.socket:
    assert to[0] == "127.0.0.1", "connected by name"
    sock = socket.socket()
    sock.settimeout(timeout)
    sock.connect(to)
    return sock


def test_redirects_are_followed_and_checked_again():
    with site(ok(b"a cat")) as (target, _), site(moved(target + "/cat")) as (url, _):
        assert fetch(url, LIMIT, is_allowed=anywhere) == b"a cat"
    allowed = []

    def only_first(address: str) -> bool:
        allowed.append(address)
        return len(allowed) == 1

    with site(ok(b"secret")) as (target, requests), site(moved(target)) as (url, _):
        with pytest.raises(FetchError, match="not on the public internet"):
            fetch(url, LIMIT, is_allowed=only_first)
        assert requests == []


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://x/", "gopher://x/", "http://user:password@x/"])
def test_redirects_to_anything_but_plain_http_are_refused(to: str):
    with site(moved(to)) as (url, _):
        with pytest.raises(FetchError, match="not a plain http"):
            fetch(url, LIMIT, is_allowed=anywhere)


def test_endless_redirects_end():
    with site(*[moved("/again")] * 10) as (url, requests):
        with pytest.raises(FetchError, match="redirects"):
            fetch(url, LIMIT, is_allowed=anywhere)
        assert len(requests) == remote_media.MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    "answer, words",
    [
        (ok(b"x" * (LIMIT + 1)), "larger than 1 MiB"),
        (ok(b"x" * (LIMIT + 1), b"Connection: close"), "larger than 1 MiB"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404"),
        (b"", "could not be read"),
        (b"nonsense\r\n\r\n", "could not be read"),
        (ok(b"ab", b"Content-Length: 10"), "could not be read"),
    ],
)
def test_what_is_no_good_answer_is_told_in_one_line(answer: bytes, words: str):
    with site(answer) as (url, _):
        with pytest.raises(FetchError, match=words) as caught:
            fetch(url, LIMIT, is_allowed=anywhere)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nX: ", ok(b"half", b"Content-Length: 10")])
def test_a_server_that_stops_in_the_middle_is_not_waited_for(answer: bytes):
    with site(answer, hold=threading.Event()) as (url, _):
        with pytest.raises(FetchError, match="took too long"):
            fetch(url, LIMIT, timeout_s=0.2, is_allowed=anywhere)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x",
        "http://a b/",
        "http://x/\n",
        "http://[::1/",
        "http://x:99999/",
        "http://x:0/",
        "http://ä.example/",
        "http://u@x/",
        "javascript:x",
        "http://" + "x" * 5000,
    ],
)
def test_odd_urls_are_refused(url: str):
    with pytest.raises(FetchError):
        check_url(url)


def test_unknown_hosts_are_told():
    with patch.object(socket, "getaddrinfo", side_effect=socket.gaierror):
        with pytest.raises(FetchError, match="no host nowhere.example"):
            fetch("http://nowhere.example/", LIMIT)
