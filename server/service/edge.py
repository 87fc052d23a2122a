"""The HTTP edge as the options want it: address, limits, keys, TLS, CORS, static files. Main thread, at start.

`KeyFiles` is looked after by the main thread's loop while the server runs, so that changed keys count without a
restart. Imports `server.web` and the leaves; nothing here knows models.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from server.log import access_line, get_logger, hide
from server.metrics import Refusals
from server.options.groups import HttpOptions
from server.options.row import OptionError
from server.records import replace
from server.web.auth import CorsPolicy, Grant, KeyRing, read_key_file
from server.web.httpd import HttpServer
from server.web.limits import Limits, room_for_connections
from server.web.listen import is_local
from server.web.rate import RateLimiter
from server.web.router import Router
from server.web.static import StaticFiles

BODY_SHARE, TEXT_SHARE = 12, 180
"""What the largest body takes at most while it is read, and the longest text while it is tokenized, in times its size:
alone they have to fit."""

log = get_logger("http")


class KeyFiles:
    """The API keys of the command line and of `--api-key-file`, which is read again when it has changed."""

    def __init__(self, options: HttpOptions) -> None:
        self._given: tuple[str | Grant, ...] = (
            *options.api_key,
            *(Grant(key, is_admin=True) for key in options.admin_key),
        )
        self._path = Path(options.api_key_file) if options.api_key_file else None
        self._stamp: tuple[float, int] | None = None
        self.ring = KeyRing(self._given)
        if self._path is not None:
            try:
                self._read(self._path)
            except (OSError, UnicodeDecodeError) as error:
                raise OptionError(f"--api-key-file {self._path} can't be read: {error}") from None
            if not len(self.ring):
                raise OptionError(f"--api-key-file {self._path} holds no key")

    def refresh(self, force: bool = False) -> None:
        """Read the file again if it has changed; a file that can't be read keeps the keys as they are."""
        if self._path is None:
            return
        try:
            if force or stamp_of(self._path) != self._stamp:
                self._read(self._path)
                log.info("API keys read again: %d", len(self.ring))
        except (OSError, UnicodeDecodeError) as error:
            if self._stamp is not None:
                log.error("%s can't be read, the keys stay as they are: %s", self._path, error)
            self._stamp = None

    def _read(self, path: Path) -> None:
        stamp = stamp_of(path)
        keys = read_key_file(path)
        if keys or not len(self.ring):
            self.ring.replace([*self._given, *keys])
            hide(*(grant.key for grant in keys))
        else:
            log.error("%s holds no key any more, the keys stay as they are", path)
        self._stamp = stamp


def stamp_of(path: Path) -> tuple[float, int]:
    """What tells that a file has changed."""
    status = path.stat()
    return status.st_mtime, status.st_size


def tls_context(options: HttpOptions) -> ssl.SSLContext | None:
    """TLS with the certificate of the options, None without one. OptionError when it can't be used."""
    if not options.ssl_cert_file:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(options.ssl_cert_file, options.ssl_key_file)
    except (OSError, ssl.SSLError) as error:
        raise OptionError(
            f"--ssl-cert-file {options.ssl_cert_file}, --ssl-key-file {options.ssl_key_file}: can't be used: {error}"
        ) from None
    return context


def limits(options: HttpOptions) -> Limits:
    """`--timeout` counts where somebody gave it; otherwise a slow client has the edge's own, shorter limits."""
    made = Limits(body_bytes=options.max_body << 20, n_connections=room_for_connections(options.max_connections))
    least = max(BODY_SHARE * options.max_body, TEXT_SHARE * options.max_text) << 20
    made = replace(made, all_requests_bytes=max(made.all_requests_bytes, least))
    if options.timeout is not None:
        made = replace(made, body_s=options.timeout, write_s=options.timeout)
    return made


def http_server(options: HttpOptions, router: Router, keys: KeyFiles, public: Path, refusals: Refusals) -> HttpServer:
    """The server, bound and not started. BindError when the address can't be had."""
    folder = Path(options.path) if options.path else public
    if not folder.is_dir():
        raise OptionError(f"--path {folder}: there is no such folder")
    return HttpServer(
        options.host,
        options.port,
        router,
        limits=limits(options),
        cors=CorsPolicy(frozenset(options.cors_origins)),
        auth=keys.ring,
        static=StaticFiles(folder, options.api_prefix, builtin=public) if options.ui else None,
        access_log=access_line,  # type: ignore[arg-type]
        tls=tls_context(options),
        allowed_hosts=options.allowed_hosts,
        rate=RateLimiter(*options.rate_limit) if options.rate_limit else None,
        refusals=refusals,
        half_close=options.half_close,
    )


def is_shared(options: HttpOptions) -> bool:
    """Whether there may be several users: keys tell them apart, or other machines can reach the server."""
    return bool(options.api_key or options.api_key_file) or not all(map(is_local, options.host))


def warn_if_open(options: HttpOptions, server: HttpServer, keys: KeyFiles, is_verbose: bool) -> None:
    """Say so when the whole network can use this server, and when its log shows one user what others write."""
    if not server.is_local and not len(keys.ring):
        log.warning(
            "listening on %s without an API key: everybody who reaches this machine can use the model "
            "(--api-key sets one)",
            ", ".join(options.host),
        )
    if "127.0.0.1" in options.host and not options.allowed_hosts:
        log.info("only requests to a name of this machine are served: behind a proxy, --allowed-hosts has the proxy's")
    if is_verbose and is_shared(options):
        log.warning("with --verbose, what all users write and get is in the log")
