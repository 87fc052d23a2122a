"""Sets up the HTTP server from the options: address, limits, keys, TLS, CORS, static files.

Main thread. While the server runs, `Housekeeping` calls `KeyFiles.refresh`, so changed keys take effect without a
restart. Imports nothing about models.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from server.log import get_logger, hide, log_access
from server.metrics import Refusals
from server.options.groups import HttpOptions
from server.options.row import OptionError
from server.records import replace
from server.web.auth import CorsPolicy, Grant, KeyRing, read_key_file
from server.web.httpd import HttpServer
from server.web.limits import Limits, make_room_for_connections
from server.web.listen import is_local
from server.web.rate import RateLimiter
from server.web.router import Router
from server.web.static import StaticFiles

BODY_SHARE, TEXT_SHARE = 12, 180
"""A body may take 12 times its size in memory while it is parsed, a text 180 times its size while it is tokenized. The
memory limit must be enough for the largest body or the longest text."""

log = get_logger("http")


class KeyFiles:
    """The API keys of `--api-key`, `--admin-key` and `--api-key-file`. OptionError."""

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
                raise OptionError(f"--api-key-file {self._path} has no keys")

    def refresh(self, force: bool = False) -> None:
        """Read the file again if it has changed. If it is unreadable or empty, the keys stay."""
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
            log.error("%s has no keys any more, the keys stay as they are", path)
        self._stamp = stamp


def stamp_of(path: Path) -> tuple[float, int]:
    """A file's time of change, and its size."""
    status = path.stat()
    return status.st_mtime, status.st_size


def make_tls_context(options: HttpOptions) -> ssl.SSLContext | None:
    """The TLS context for the certificate of the options; None without one. OptionError if it can't be used."""
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


def read_limits(options: HttpOptions) -> Limits:
    """The limits of the HTTP server. `--timeout` replaces the times for a body and for a send."""
    made = Limits(body_bytes=options.max_body << 20, n_connections=make_room_for_connections(options.max_connections))
    least = max(BODY_SHARE * options.max_body, TEXT_SHARE * options.max_text) << 20
    made = replace(made, all_requests_bytes=max(made.all_requests_bytes, least))
    if options.timeout is not None:
        made = replace(made, body_s=options.timeout, write_s=options.timeout)
    return made


def make_server(options: HttpOptions, router: Router, keys: KeyFiles, public: Path, refusals: Refusals) -> HttpServer:
    """Create and bind the server, without starting it. BindError if the address can't be used; OptionError."""
    folder = Path(options.path) if options.path else public
    if not folder.is_dir():
        raise OptionError(f"--path {folder}: this folder doesn't exist")
    return HttpServer(
        options.host,
        options.port,
        router,
        limits=read_limits(options),
        cors=CorsPolicy(frozenset(options.cors_origins)),
        auth=keys.ring,
        static=StaticFiles(folder, options.api_prefix, builtin=public) if options.ui else None,
        access_log=log_access,  # type: ignore[arg-type]
        tls=make_tls_context(options),
        allowed_hosts=options.allowed_hosts,
        rate=RateLimiter(*options.rate_limit) if options.rate_limit else None,
        refusals=refusals,
        half_close=options.half_close,
    )


def is_shared(options: HttpOptions) -> bool:
    """Whether there may be several users: keys tell them apart, or other machines can reach the server."""
    return bool(options.api_key or options.api_key_file) or not all(map(is_local, options.host))


def warn_if_open(options: HttpOptions, server: HttpServer, keys: KeyFiles, is_verbose: bool) -> None:
    """Log a warning if the whole network can use the server, one if the log shows several users' texts, and a hint if
    requests must name this machine."""
    if not server.is_local and not len(keys.ring):
        log.warning(
            "listening on %s without an API key: every machine that reaches this one can use the model "
            "(--api-key sets a key)",
            ", ".join(options.host),
        )
    if server.is_local and "127.0.0.1" in options.host and not options.allowed_hosts:
        log.info(
            "requests must name this machine in the Host header; behind a proxy, set --allowed-hosts to the name that "
            "clients use"
        )
    if is_verbose and is_shared(options):
        log.warning("--verbose writes all users' prompts and answers to the log")
