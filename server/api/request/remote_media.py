"""Downloads files that a request names by URL, but only from the public internet, never from the server's own network.

Connection thread, only with `--media-urls`. A host name is resolved once. All its addresses must be public, and the
connection goes to one of them, so that a second answer of the name server can't redirect it. The same holds for each
redirect. Size and time of the whole download, with its redirects, are limited; name lookups may take longer.

Not taken: `urllib.request`, which resolves names itself, follows redirects by itself, and uses proxies from the
environment.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urljoin, urlsplit

TIMEOUT_S = 10.0  # for a whole download
MAX_REDIRECTS = 3
MAX_URL = 4096  # characters
BLOCK = 1 << 16  # bytes read at once
PRIVATE_IPV4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",
            "100.64.0.0/10",  # a provider's own
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local, with the metadata services of clouds
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocols
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/3",  # multicast, reserved, broadcast
        ),
    )
)
GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
"""All global unicast addresses that IANA has assigned so far."""
PRIVATE_IPV6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocols, Teredo among them
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: through a relay to any IPv4 address
            "3fff::/20",  # documentation
        ),
    )
)
WRAPPED_IPV4 = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))
"""IPv6 networks that contain IPv4 addresses: those of IPv4 in IPv6 sockets, and NAT64."""
REDIRECTS = (301, 302, 303, 307, 308)


class FetchError(Exception):
    """Why a URL could not be downloaded, in one line."""


def fetch(
    url: str,
    limit: int,
    timeout_s: float = TIMEOUT_S,
    is_allowed: Callable[[str], bool] | None = None,
    bring: Callable[[int], None] = lambda n_bytes: None,
) -> bytes:
    """The content of `url`. FetchError, also for more than `limit` bytes. `bring` gets the size of each block that has
    arrived; an exception that it raises ends the download. `is_allowed(address)` is for tests."""
    deadline = time.monotonic() + timeout_s
    for _ in range(MAX_REDIRECTS + 1):
        parts = check_url(url)
        connection = _connect(parts, deadline, is_allowed or is_public)
        # a socket's timeout never expires if the server sends a byte now and then
        timer = threading.Timer(_compute_left(deadline), _cut, (connection.sock,))
        timer.daemon = True
        timer.start()
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request(
                "GET",
                target,
                headers={
                    "User-Agent": "llama_srv",
                    "Accept": "image/*, audio/*",
                    "Accept-Encoding": "identity",
                    "Connection": "close",
                },
            )
            response = connection.getresponse()
            if response.status in REDIRECTS:
                url = urljoin(url, response.getheader("Location", ""))
                continue
            if response.status != 200:
                raise FetchError(f"{parts.hostname} answered {response.status}")
            data = _read(response, limit, bring)
            _compute_left(deadline)  # FetchError if the timer has closed the connection
            return data
        except (OSError, http.client.HTTPException, ValueError) as error:
            _compute_left(deadline)
            raise FetchError(f"{parts.hostname} could not be read: {type(error).__name__}") from None
        finally:
            timer.cancel()
            connection.close()
    raise FetchError(f"more than {MAX_REDIRECTS} redirects")


def check_url(url: str) -> SplitResult:
    """The parts of a plain http or https URL. FetchError for anything else."""
    try:
        parts = urlsplit(url)
        is_plain = (
            len(url) <= MAX_URL
            and url.isascii()
            and url.isprintable()
            and " " not in url
            and parts.scheme in ("http", "https")
            and parts.hostname
            and not parts.username
            and parts.password is None
            and parts.port != 0
        )
    except ValueError:
        is_plain = False
    if not is_plain:
        raise FetchError("the URL is not a plain http: or https: URL")
    return parts


def is_public(address: str) -> bool:
    """Whether an address is public. If an IPv6 address contains an IPv4 address, only that counts. Not taken:
    `ipaddress.is_global`, which differs between versions of Python."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if any(ip in network for network in WRAPPED_IPV4):
        ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if ip.version == 4:
        return not any(ip in network for network in PRIVATE_IPV4)
    return ip in GLOBAL_IPV6 and not any(ip in network for network in PRIVATE_IPV6)


def _connect(parts: SplitResult, deadline: float, is_allowed: Callable[[str], bool]) -> http.client.HTTPConnection:
    """A connection to a checked address of the URL's host."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise FetchError(f"there is no host {parts.hostname}") from None
    addresses = [str(row[4][0]) for row in found]
    if not addresses or not all(map(is_allowed, addresses)):
        raise FetchError(f"{parts.hostname} is not on the public internet")
    host = parts.hostname or ""
    connection = http.client.HTTPConnection(host, port, timeout=_compute_left(deadline))
    try:
        sock = socket.create_connection((addresses[0], port), _compute_left(deadline))
        connection.sock = _with_tls(sock, host) if parts.scheme == "https" else sock
    except OSError as error:
        raise FetchError(f"{parts.hostname} could not be reached: {type(error).__name__}") from None
    return connection


def _with_tls(sock: socket.socket, host: str) -> socket.socket:
    import ssl  # here, because few servers need it

    try:
        return ssl.create_default_context().wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise


def _read(response: http.client.HTTPResponse, limit: int, bring: Callable[[int], None]) -> bytes:
    blocks: list[bytes] = []
    n = 0
    while block := response.read1(BLOCK):
        n += len(block)
        if n > limit:
            raise FetchError(f"the file is larger than {limit >> 20} MiB (--max-body)")
        bring(len(block))
        blocks.append(block)
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(blocks)


def _cut(sock: socket.socket) -> None:
    """End all waiting for this socket."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the connection has ended


def _compute_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise FetchError("the download took too long")
    return left
