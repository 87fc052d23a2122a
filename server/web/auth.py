"""Access control: API keys, the Host header (DNS rebinding), the Origin header (CORS and cross-site writes).

Connection threads run the checks, which raise `ApiError`. Everything is immutable except for `KeyRing`, whose `replace`
swaps its keys."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path

from server.errors import ApiError
from server.records import record, replace
from server.web.http1.head import Headers

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
EXPOSED_HEADERS = "X-Request-Id, Request-Id, Retry-After, X-Queue-Position, X-Warnings"
DEFAULT_ALLOWED_HEADERS = "Authorization, Content-Type, X-Api-Key, X-Request-Id"
LIMITED = re.compile(r"(\s+models=)")  # before the list of models in a line of the key file
N_KNOWN_HOSTS = 64  # hosts that each cache below remembers
HEADER_LIST = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z, ]{1,2000}")


@record(frozen=True)
class Grant:
    """An API key, the names of the models it may use (None: all), and whether it may download and remove models."""

    key: str
    models: frozenset[str] | None = None
    is_admin: bool = False


class KeyRing:
    """The accepted API keys, kept as SHA-256 digests, and what each of them allows. If there are no keys, or only
    admins' keys, requests need no key."""

    def __init__(self, keys: Iterable[str | Grant] = ()) -> None:
        self._grants: dict[bytes, Grant] = {}
        self._by_id: dict[str, Grant] = {}
        self.replace(keys)

    def replace(self, keys: Iterable[str | Grant]) -> None:
        """Use these keys from now on. Empty keys are dropped. A key that occurs several times has the rights of all its
        grants."""
        grants: dict[bytes, Grant] = {}
        for given in keys:
            grant = Grant(given) if isinstance(given, str) else given
            if grant.key:
                digest = _compute_digest(grant.key.encode("utf-8"))
                grants[digest] = _merge(grants.get(digest), replace(grant, key=""))
        self._grants = grants
        self._by_id = {digest.hex()[:12]: grant for digest, grant in grants.items()}

    def __len__(self) -> int:
        """The number of keys that aren't admins'."""
        return sum(not grant.is_admin for grant in self._grants.values())

    def check(self, headers: Headers) -> str:
        """The id of the request's key; "" if the request has no accepted key and needs none; ApiError 401 otherwise.
        The key comes as `Authorization: Bearer K`, `Authorization: K` or `X-Api-Key: K`."""
        found = self.find(headers)
        if not found and len(self):
            raise ApiError(401, "Invalid API Key", headers={"WWW-Authenticate": "Bearer"})
        return found

    def find(self, headers: Headers) -> str:
        """The id of the request's key; "" if the request has no key or an unknown one."""
        grants = self._grants
        found = ""
        for candidate in _list_candidates(headers) if grants else ():
            digest = _compute_digest(candidate.encode("latin-1", "replace"))
            for known in grants:
                if hmac.compare_digest(digest, known):
                    found = known.hex()[:12]
        return found

    def may_use(self, key_id: str, names: Iterable[str]) -> bool:
        """Whether a key may use the model with these names. If any key is limited to models, a request without a key
        may use none."""
        grants = self._by_id
        grant = grants.get(key_id)
        if grant is None:
            return not any(known.models is not None for known in grants.values())
        return grant.models is None or not grant.models.isdisjoint(names)

    def is_admin(self, key_id: str) -> bool:
        """Whether a key may download and remove models."""
        grant = self._by_id.get(key_id)
        return grant is not None and grant.is_admin


def _merge(one: Grant | None, other: Grant) -> Grant:
    if one is None:
        return other
    models = None if one.models is None or other.models is None else one.models | other.models
    return Grant("", models, one.is_admin or other.is_admin)


def _compute_digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _list_candidates(headers: Headers) -> list[str]:
    authorization = headers.get("authorization", "")
    scheme, _, rest = authorization.partition(" ")
    return [rest.strip() if scheme.lower() == "bearer" else authorization, headers.get("x-api-key", "")]


def read_key_file(path: Path) -> list[Grant]:
    """Read a key file: one key per line, followed by `models=A,B` if it may use only these models. Blank lines, lines
    that begin with #, spaces around a line, the kind of line end, and a BOM are ignored."""
    lines = (line.strip() for line in path.read_bytes().decode("utf-8-sig").splitlines())
    return [_read_grant(line) for line in lines if line and not line.startswith("#")]


def _read_grant(line: str) -> Grant:
    key, mark, models = LIMITED.split(line, 1) if LIMITED.search(line) else (line, "", "")
    return Grant(key, frozenset(filter(None, map(str.strip, models.split(",")))) if mark else None)


def make_forbidden_error(message: str) -> ApiError:
    """An ApiError 403: no API key would help."""
    return ApiError(403, message, type="permission_error")


@lru_cache(maxsize=N_KNOWN_HOSTS)
def is_loopback(host: str) -> bool:
    """Whether `host` (a name or address, no port, no brackets) means this machine only."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=N_KNOWN_HOSTS)
def split_host(authority: str) -> str:
    """`Localhost:8080` -> `localhost`, `[::1]:80` -> `::1`; "" for anything malformed."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:@/]+))(?::[0-9]{0,5})?", authority.strip())
    return (match[1] or match[2]).lower().rstrip(".") if match else ""


@record(frozen=True)
class HostPolicy:
    """The check of the Host header. A web page may point its own domain at 127.0.0.1 and then read what only local
    users should read (DNS rebinding). So a server that listens on loopback only (`enforced`) accepts only local names
    and the `allowed` ones."""

    enforced: bool
    allowed: frozenset[str] = frozenset()

    @classmethod
    def make_for_bind(cls, hosts: Collection[str], extra: Iterable[str] = ()) -> HostPolicy:
        """The policy of a server that listens on `hosts`. `extra` are further allowed names; `*` switches the check
        off."""
        names = frozenset(name.lower() for name in extra)
        addresses = [host for host in hosts if not host.endswith(".sock")]  # no browser speaks to a UNIX socket
        is_local = bool(addresses) and all(map(is_loopback, addresses))
        return cls(is_local and "*" not in names, names | {host.lower() for host in hosts})

    def check(self, host: str | None) -> None:
        """ApiError 403 if `host`, the Host header, is not an allowed name. HTTP/1.0 requests may have no Host header;
        browsers always send one."""
        if not self.enforced or host is None:
            return
        name = split_host(host)
        if not (is_loopback(name) or name in self.allowed):
            raise make_forbidden_error(
                f"The Host name {name[:64]!r} is not allowed: use localhost, or start the server with "
                f"--allowed-hosts and this name. A proxy should pass on the name that its clients use (nginx: "
                f"proxy_set_header Host $http_host); allow that name."
            )


@record(frozen=True)
class CorsPolicy:
    """Which web pages may read our answers: pages of the same origin, pages of this machine, and `origins` (`*`:
    all)."""

    origins: frozenset[str] = frozenset()

    def is_allowed(self, origin: str, host: str | None) -> bool:
        """Whether pages of `origin` (`scheme://host[:port]`) may read answers. `host` is the request's Host header."""
        if "*" in self.origins or origin in self.origins:
            return True
        _, separator, authority = origin.partition("://")
        if not separator:
            return False  # "null": a page without an origin, or nonsense
        return authority.lower() == (host or "").lower() or is_loopback(split_host(authority))

    def check(self, method: str, headers: Headers, host: str | None) -> None:
        """ApiError 403 if a page whose origin isn't allowed sent a request that may change something. Browsers send
        such a request without a preflight if it looks like a form."""
        origin = headers.get("origin")
        if method in SAFE_METHODS or origin is None or self.is_allowed(origin, host):
            return
        # Pages can't forge Sec-Fetch-Site. It is needed behind a proxy that writes its own name into Host.
        if headers.get("sec-fetch-site") != "same-origin":
            raise make_forbidden_error(
                "Pages of this origin may not send such requests; allow the origin with --cors-origins."
            )

    def make_headers(self, origin: str | None, host: str | None) -> dict[str, str]:
        """The CORS headers of every answer."""
        if "*" in self.origins:
            return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": EXPOSED_HEADERS}
        if origin is None or not self.is_allowed(origin, host):
            return {"Vary": "Origin"}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Expose-Headers": EXPOSED_HEADERS,
            "Vary": "Origin",
        }

    def make_preflight(self, request_headers: Headers, methods: list[str]) -> dict[str, str]:
        """The additional headers of the answer to OPTIONS."""
        origin, host = request_headers.get("origin"), request_headers.get("host")
        if origin is None or not self.is_allowed(origin, host):
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
