"""HTTP for downloads: urllib with stricter redirects, and errors that say what to do.

Runs where `fetch` runs. Even after redirects, a token is sent only to the hub, and a password in a URL only to that
URL's host.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from server.download.local import DownloadError, Progress, Trouble, make_one_line
from server.records import field, record

STALL_S = 60.0  # seconds without data after which a connection is given up
MAX_TRIES = 4
"""Tries in a row without any new data."""
MAX_WAIT_S = 60.0  # seconds; longest wait after a Retry-After
MAX_LISTING = 32 << 20  # bytes of a repository's file list
MAX_SHOWN = 200  # characters of a URL in a message
RETRY_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))
CHECKSUM_HEADERS = ("X-Linked-Etag", "X-Checksum-Sha256")
SIZE_HEADER = "X-Linked-Size"
TOLD_ON_THE_WAY = (*CHECKSUM_HEADERS, SIZE_HEADER)
"""Headers that the hub sends with the redirect to the data."""
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
NEXT_PAGE = re.compile(r'<([^<>]+)>\s*;\s*rel="?next"?')
URL_CHARS = "/%:@!$&'()*+,;=~?"

T = TypeVar("T")
Origin = tuple[str, str, int]


def check_url(url: str, option: str) -> SplitResult:
    """The parts of an http or https URL. DownloadError for others, such as `file:`."""
    parts = split_url(url)
    if parts is None:
        raise DownloadError(f"{option} takes a URL that begins with https:// or http://, not {describe_url(url)!r}")
    return parts


def split_url(url: str) -> SplitResult | None:
    """The parts of an http or https URL with a host; None for anything else."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and (parts.hostname or "").encode("idna") and parts.port != 0:
            return parts
    except ValueError:
        pass
    return None


def parse_origin(url: str) -> Origin:
    """Scheme, host and port of a checked URL. Credentials are bound to them."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"https": 443}.get(parts.scheme, 80)


def describe_url(url: str) -> str:
    """A URL for messages, without login and query, which may be secret."""
    bare = make_one_line(url).partition("?")[0].partition("#")[0]
    scheme, mark, rest = bare.rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"[:MAX_SHOWN]


class Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps the hub's headers about the file, and sends credentials only to their own origin."""

    def __init__(self, credentials: Mapping[Origin, str]) -> None:
        self._credentials = credentials
        self.told: dict[str, str] = {}

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The next request. DownloadError for a redirect that isn't followed."""
        to = split_url(newurl)
        if to is None:
            raise DownloadError(
                f"{describe_url(req.full_url)} redirects to {describe_url(newurl)!r}, which is not a web URL: "
                "use another one"
            )
        if req.type == "https" and to.scheme != "https":
            raise DownloadError(
                f"{describe_url(req.full_url)} redirects to {describe_url(newurl)}, which isn't encrypted: "
                "use that URL directly if "
                "you trust it"
            )
        new = super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)
        if new is not None:
            self.told |= {name: headers[name] for name in TOLD_ON_THE_WAY if headers.get(name)}
            authorize(new, self._credentials)
        return new

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # unknown to Python 3.10


def authorize(request: urllib.request.Request, credentials: Mapping[Origin, str]) -> None:
    """Add the credentials for the request's host. urllib doesn't send this header along with redirects."""
    value = credentials.get(parse_origin(request.full_url))
    if value:
        request.add_unredirected_header("Authorization", value)


@record(frozen=True)
class Answer:
    """A response. `header` returns a header of it or of a redirect before it; "" for none."""

    status: int
    body: Any
    header: Callable[[str], str]


@record(frozen=True)
class Client:
    """Opens URLs. `token` is sent only to `endpoint`, the hub's URL."""

    endpoint: str
    token: str
    sleep: Callable[[float], None]
    progress: Progress
    https: urllib.request.HTTPSHandler = field(default_factory=urllib.request.HTTPSHandler)
    """One handler for all requests, because making one reads all certificates."""

    @contextlib.contextmanager
    def open(self, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        """The answer if it is a success, or a 416 to a Range. Otherwise, and for network errors while it is read,
        DownloadError or Trouble."""
        host = urlsplit(url).hostname
        try:
            request, credentials = self._make_request(url, headers)
            redirects = Redirects(credentials)
            with self._send(request, redirects) as response:
                yield Answer(
                    response.status, response, lambda name: response.headers.get(name) or redirects.told.get(name, "")
                )
        except urllib.error.URLError as error:
            raise self._make_unreachable(host, error.reason) from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise Trouble(f"the connection to {host} broke ({reason})") from None

    def read_json(self, url: str) -> tuple[object, str]:
        """The JSON value at a URL, and the URL of its next page ("" if it is the last)."""
        with self.open(url, {"Accept": "application/json"}) as answer:
            data = answer.body.read(MAX_LISTING + 1)
            following = NEXT_PAGE.search(answer.header("Link"))
        try:
            if len(data) <= MAX_LISTING:
                return json.loads(data), following[1] if following else ""
        except (ValueError, RecursionError):
            pass
        raise DownloadError(f"{describe_url(url)} is not a list of files: check MODEL_ENDPOINT")

    def persist(self, step: Callable[[], T], measure: Callable[[], int], label: str) -> T:
        """Call `step` until it succeeds, and return its result. DownloadError after MAX_TRIES Troubles in a row without
        progress. `measure` returns the bytes that have arrived."""
        best, n_failed = measure(), 0
        while True:
            try:
                return step()
            except Trouble as trouble:
                reached = measure()
                n_failed = 1 if reached > best else n_failed + 1
                best = max(best, reached)
                if n_failed >= MAX_TRIES:
                    cure = "the part that has arrived is kept: run this again to continue" if reached else "try later"
                    raise DownloadError(f"{label}: {trouble}; {cure}") from None
                wait = max(trouble.wait_s, 2.0 ** (n_failed - 1))
                self.progress.say(f"{label}: {trouble}; next try in {wait:.0f} s")
                self.sleep(wait)

    def _make_request(self, url: str, headers: Mapping[str, str]) -> tuple[urllib.request.Request, dict[Origin, str]]:
        credentials = {parse_origin(self.endpoint): f"Bearer {self.token}"} if self.token else {}
        parts = urlsplit(url)
        login, at, host = parts.netloc.rpartition("@")
        if at:
            credentials[parse_origin(url)] = "Basic " + base64.b64encode(unquote(login).encode()).decode()
        host = host if host.isascii() else host.encode("idna").decode()
        bare = (parts.scheme, host, quote(parts.path, URL_CHARS), quote(parts.query, URL_CHARS), "")
        request = urllib.request.Request(urlunsplit(bare), headers={"User-Agent": "llama_srv", **headers})
        authorize(request, credentials)
        return request, credentials

    def _send(self, request: urllib.request.Request, redirects: Redirects) -> Any:
        opener = urllib.request.OpenerDirector()  # build_opener's would open file: and ftp: as well
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            self.https,
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            redirects,
        ):
            opener.add_handler(handler)
        try:
            return opener.open(request, timeout=STALL_S)
        except urllib.error.HTTPError as error:
            if error.code == 416 and request.has_header("Range"):
                return error
            with error:
                raise self._make_refusal(error) from None
        except (ValueError, http.client.InvalidURL) as error:
            where = describe_url(request.full_url)
            raise DownloadError(f"{where} is not a valid URL, or redirects to a wrong one ({error})") from None

    def _make_refusal(self, error: urllib.error.HTTPError) -> DownloadError | Trouble:
        url = error.url
        where, is_hub = describe_url(url), parse_origin(url) == parse_origin(self.endpoint)
        if error.code in RETRY_STATUS:
            wait = error.headers.get("Retry-After", "")
            return Trouble(
                f"{urlsplit(url).hostname} answers {error.code} {error.reason}",
                min(float(wait), MAX_WAIT_S) if wait.isdecimal() else 0.0,
            )
        if error.code in (401, 403):
            cure = "use a URL that contains the login"
            if is_hub:
                cure = (
                    "check that the token may read it, and accept the model's terms on its page"
                    if self.token
                    else "check the name; for a private or gated model set --hf-token or HF_TOKEN"
                )
            return DownloadError(f"access to {where} is denied ({error.code}): {cure}")
        if error.code in (404, 410):
            return DownloadError(f"{where} doesn't exist ({error.code}): check the name")
        return DownloadError(f"{where} answers {error.code} {error.reason[:MAX_SHOWN]}: check the URL")

    def _make_unreachable(self, host: str | None, reason: object) -> DownloadError | Trouble:
        if isinstance(reason, ssl.SSLCertVerificationError):
            return DownloadError(
                f"the certificate of {host} isn't trusted ({reason.verify_message}): if your network has its own "
                "certificate authority, set SSL_CERT_FILE to its file"
            )
        if isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME:
            return DownloadError(
                f"{host} can't be resolved: check the name and the network connection "
                "(a proxy can be set in HTTPS_PROXY)"
            )
        return Trouble(f"{host} can't be reached ({reason})")
