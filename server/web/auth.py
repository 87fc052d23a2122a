"""Who may ask: API keys, the Host header (DNS rebinding), the Origin header (CORS and cross-site writes).

Pure decisions over header values, called by connection threads; `httpd` turns a refusal into an answer.
Immutable except for `KeyRing.replace`, which swaps one reference."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from server.errors import ApiError
from server.records import record
from server.web.http1.head import Headers

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
EXPOSED_HEADERS = "X-Request-Id, Request-Id, Retry-After, X-Queue-Position, X-Warnings"
DEFAULT_ALLOWED_HEADERS = "Authorization, Content-Type, X-Api-Key, X-Request-Id"
HEADER_LIST = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z, ]{1,2000}")


class KeyRing:
    """The accepted API keys, kept as SHA-256 digests. Without any key everybody is served."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests: tuple[bytes, ...] = ()
        self.replace(keys)

    def replace(self, keys: Iterable[str]) -> None:
        """New keys for all requests from now on; empty ones are dropped."""
        self._digests = tuple({_digest(key.encode("utf-8")) for key in keys if key})

    def __len__(self) -> int:
        return len(self._digests)

    def check(self, headers: Headers) -> str:
        """The id of the key that came as `Authorization: Bearer K`, `Authorization: K` or `X-Api-Key: K` (""
        if none is needed); ApiError 401. Takes the same time whichever key is right and however much of
        it."""
        digests = self._digests
        if not digests:
            return ""
        found = ""
        for candidate in _candidates(headers):
            digest = _digest(candidate.encode("latin-1", "replace"))
            for known in digests:
                if hmac.compare_digest(digest, known):
                    found = known.hex()[:12]
        if not found:
            raise ApiError(401, "Invalid API Key", headers={"WWW-Authenticate": "Bearer"})
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _candidates(headers: Headers) -> list[str]:
    authorization = headers.get("authorization", "")
    scheme, _, rest = authorization.partition(" ")
    return [rest.strip() if scheme.lower() == "bearer" else authorization, headers.get("x-api-key", "")]


def read_key_file(path: Path) -> list[str]:
    """One key per line; blank lines, lines that begin with #, spaces around, any line ends and a BOM don't matter."""
    lines = (line.strip() for line in path.read_bytes().decode("utf-8-sig").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def forbidden(message: str) -> ApiError:
    """Not a matter of keys: 403."""
    return ApiError(403, message, type="permission_error")


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or address, no port, no brackets) means this machine only."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def split_host(authority: str) -> str:
    """`Localhost:8080` -> `localhost`, `[::1]:80` -> `::1`; "" if it is neither."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:@/]+))(?::[0-9]{0,5})?", authority.strip())
    return (match[1] or match[2]).lower().rstrip(".") if match else ""


@record(frozen=True)
class HostPolicy:
    """A web page may point its own name at 127.0.0.1 and then read what only local users should (DNS
    rebinding): a server bound to loopback therefore answers only to local names. `enforced` is false for wide
    binds."""

    enforced: bool
    allowed: frozenset[str] = frozenset()

    @classmethod
    def for_bind(cls, hosts: Collection[str], extra: Iterable[str] = ()) -> HostPolicy:
        """For a server that listens on `hosts`. `extra`: further names, for example of a reverse proxy; `*` switches
        the check off."""
        names = frozenset(name.lower() for name in extra)
        addresses = [host for host in hosts if not host.endswith(".sock")]  # no browser speaks to a UNIX socket
        is_local = bool(addresses) and all(map(is_loopback, addresses))
        return cls(is_local and "*" not in names, names | {host.lower() for host in hosts})

    def check(self, host: str | None) -> None:
        """ApiError 403 for a Host header that names somebody else; HTTP/1.0 may come without (browsers
        don't)."""
        if not self.enforced or host is None:
            return
        name = split_host(host)
        if not (is_loopback(name) or name in self.allowed):
            raise forbidden(
                f"The Host name {name[:64]!r} is not served here: ask for localhost, or start the server with "
                f"--allowed-hosts and this name. A proxy should pass on the name that its clients use (nginx: "
                f"proxy_set_header Host $http_host), and --allowed-hosts should have that."
            )


@record(frozen=True)
class CorsPolicy:
    """Which web pages may read our answers: same origin, pages of this machine, and `origins` (`*` for
    all)."""

    origins: frozenset[str] = frozenset()

    def allows(self, origin: str, host: str | None) -> bool:
        """`origin` as `scheme://host[:port]`; `host` is the Host header of the same request."""
        if "*" in self.origins or origin in self.origins:
            return True
        _, separator, authority = origin.partition("://")
        if not separator:
            return False  # "null": a page without an origin, or nonsense
        return authority.lower() == (host or "").lower() or is_loopback(split_host(authority))

    def check(self, method: str, headers: Headers, host: str | None) -> None:
        """ApiError 403 for a request of a foreign page that could change something: browsers send it without
        asking first when it looks like a form."""
        origin = headers.get("origin")
        if method in SAFE_METHODS or origin is None or self.allows(origin, host):
            return
        # Pages can't forge this one. It helps behind a proxy that puts its own name into Host.
        if headers.get("sec-fetch-site") != "same-origin":
            raise forbidden("Pages of this origin may not write here; allow the origin.")

    def headers(self, origin: str | None, host: str | None) -> dict[str, str]:
        """For every answer."""
        if "*" in self.origins:
            return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": EXPOSED_HEADERS}
        if origin is None or not self.allows(origin, host):
            return {"Vary": "Origin"}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Expose-Headers": EXPOSED_HEADERS,
            "Vary": "Origin",
        }

    def preflight(self, request_headers: Headers, methods: list[str]) -> dict[str, str]:
        """In addition, for OPTIONS."""
        origin, host = request_headers.get("origin"), request_headers.get("host")
        if origin is None or not self.allows(origin, host):
            return {}
        wanted = request_headers.get("access-control-request-headers", "")
        allowed = wanted if HEADER_LIST.fullmatch(wanted) else DEFAULT_ALLOWED_HEADERS
        headers = {
            "Access-Control-Allow-Methods": ", ".join(methods),
            "Access-Control-Allow-Headers": allowed,
            "Access-Control-Max-Age": "86400",
        }
        if request_headers.get("access-control-request-private-network") == "true":
            headers["Access-Control-Allow-Private-Network"] = "true"
        return headers
