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
from server.records import record, replace
from server.web.http1.head import Headers

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
EXPOSED_HEADERS = "X-Request-Id, Request-Id, Retry-After, X-Queue-Position, X-Warnings"
DEFAULT_ALLOWED_HEADERS = "Authorization, Content-Type, X-Api-Key, X-Request-Id"
LIMITED = re.compile(r"(\s+models=)")
HEADER_LIST = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z, ]{1,2000}")


@record(frozen=True)
class Grant:
    """A key, the models that it may use by their names (None: all), and whether it may fetch and remove models."""

    key: str
    models: frozenset[str] | None = None
    is_admin: bool = False


class KeyRing:
    """The accepted API keys, kept as SHA-256 digests, and what each may. Without any but an admin's everybody is
    served."""

    def __init__(self, keys: Iterable[str | Grant] = ()) -> None:
        self._grants: dict[bytes, Grant] = {}
        self._by_id: dict[str, Grant] = {}
        self.replace(keys)

    def replace(self, keys: Iterable[str | Grant]) -> None:
        """New keys for all requests from now on; empty ones are dropped. What is said of one key several times adds
        up."""
        grants: dict[bytes, Grant] = {}
        for given in keys:
            grant = Grant(given) if isinstance(given, str) else given
            if grant.key:
                digest = _digest(grant.key.encode("utf-8"))
                grants[digest] = _together(grants.get(digest), replace(grant, key=""))
        self._grants = grants
        self._by_id = {digest.hex()[:12]: grant for digest, grant in grants.items()}

    def __len__(self) -> int:
        """How many keys there are besides admins': 0 is a server for everybody."""
        return sum(not grant.is_admin for grant in self._grants.values())

    def check(self, headers: Headers) -> str:
        """The id of the key that came as `Authorization: Bearer K`, `Authorization: K` or `X-Api-Key: K` (""
        if none is needed); ApiError 401. Takes the same time whichever key is right and however much of
        it."""
        found = self.find(headers)
        if not found and len(self):
            raise ApiError(401, "Invalid API Key", headers={"WWW-Authenticate": "Bearer"})
        return found

    def find(self, headers: Headers) -> str:
        """The same where no key is needed: "" for none, or one that isn't known."""
        grants = self._grants
        found = ""
        for candidate in _candidates(headers) if grants else ():
            digest = _digest(candidate.encode("latin-1", "replace"))
            for known in grants:
                if hmac.compare_digest(digest, known):
                    found = known.hex()[:12]
        return found

    def may_use(self, key_id: str, names: Iterable[str]) -> bool:
        """Whether a key may use the model of these names. Where keys are limited to models, nobody may without one."""
        grants = self._by_id
        grant = grants.get(key_id)
        if grant is None:
            return not any(known.models is not None for known in grants.values())
        return grant.models is None or not grant.models.isdisjoint(names)

    def is_admin(self, key_id: str) -> bool:
        """Whether a key may fetch and remove models."""
        grant = self._by_id.get(key_id)
        return grant is not None and grant.is_admin


def _together(one: Grant | None, other: Grant) -> Grant:
    if one is None:
        return other
    models = None if one.models is None or other.models is None else one.models | other.models
    return Grant("", models, one.is_admin or other.is_admin)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _candidates(headers: Headers) -> list[str]:
    authorization = headers.get("authorization", "")
    scheme, _, rest = authorization.partition(" ")
    return [rest.strip() if scheme.lower() == "bearer" else authorization, headers.get("x-api-key", "")]


def read_key_file(path: Path) -> list[Grant]:
    """One key per line, behind it `models=A,B` if it may use only these; blank lines, lines that begin with #, spaces
    around, any line ends and a BOM don't matter."""
    lines = (line.strip() for line in path.read_bytes().decode("utf-8-sig").splitlines())
    return [_grant(line) for line in lines if line and not line.startswith("#")]


def _grant(line: str) -> Grant:
    key, mark, models = LIMITED.split(line, 1) if LIMITED.search(line) else (line, "", "")
    return Grant(key, frozenset(filter(None, map(str.strip, models.split(",")))) if mark else None)


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
