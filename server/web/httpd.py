"""The HTTP server: accepts connections, starts a thread for each, limits their number, and stops gracefully.

The thread `http-accept` runs the accept loop. Each connection has one thread `http-N` (`connection.py`), which also
runs the handlers. `http-watcher` detects clients that have left. `Limits.n_connections` bounds the number of threads.
Not taken: an event loop. The handlers block, so they would need threads as well."""

from __future__ import annotations

import errno
import math
import os
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from http.server import ThreadingHTTPServer
from operator import itemgetter
from typing import Any

from server.errors import ApiError
from server.log import get_logger
from server.memory import Budget
from server.metrics import Refusals
from server.web.auth import CorsPolicy, HostPolicy, KeyRing
from server.web.connection import STOPPING, AccessRecord, Connection, ConnectionHandler
from server.web.limits import Limits
from server.web.listen import close_all, is_local, is_unix, listen_all
from server.web.message import encode_head, make_error_response
from server.web.rate import RateLimiter
from server.web.router import Router
from server.web.static import StaticFiles
from server.web.watcher import Watcher

POLL_S = 0.25
"""Longest time between two rounds of the accept loop."""
REFUSED_KEEP_S = 1.0
"""How long a refused connection is kept open, so that the client can read the refusal."""
REFUSED_PART = 4
"""At most one refused connection is kept open for this many allowed connections."""
TELL_S = 1.0
"""Least time between two log lines about connections that can't be accepted."""
REFUSED_DROP_BYTES = 64 * 1024
"""Bytes that are read and dropped from a refused connection before it is closed."""
ANSWER_S = 2.0
"""How long `stop` waits for threads that only have to send the end of their answer."""
JOIN_S = 2.0
"""How long `stop` waits for threads whose sockets have been cut."""
FULL = "Too many connections; try again."
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class WebServer(ThreadingHTTPServer):
    """The standard library's server with its unsafe defaults replaced, and the state that all connections share."""

    daemon_threads = True
    block_on_close = False  # HttpServer.stop joins the threads, with a deadline

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        router: Router,
        *,
        limits: Limits,
        hosts: HostPolicy,
        cors: CorsPolicy,
        auth: KeyRing | None,
        static: StaticFiles | None,
        rate: RateLimiter | None,
        tls: ssl.SSLContext | None,
        access_log: Callable[[AccessRecord], None] | None,
        refusals: Refusals,
        half_close: bool,
    ) -> None:
        self.listeners = listeners
        self.router = router
        self.limits = limits
        self.hosts = hosts
        self.cors = cors
        self.auth = auth
        self.static = static
        self.rate = rate
        self.tls = tls  # for new connections; replaced when the certificate is renewed
        self.access_log = access_log
        self.refusals = refusals
        self.half_close = half_close
        self.is_stopping = False
        self.is_winding_down = False
        self.budget = Budget(limits.all_requests_bytes)
        self.watcher = Watcher()
        self.lock = threading.Lock()  # protects connections, is_idle and t_silent of each, is_stopping
        self.connections: dict[socket.socket, Connection] = {}
        self._n_started = 0  # accept thread only
        self._refused: deque[tuple[float, socket.socket]] = deque()  # accept thread only
        self._t_told = 0.0  # accept thread only
        self._must_end = threading.Event()
        super().__init__(("", 0), ConnectionHandler, bind_and_activate=False)  # type: ignore[arg-type]
        self.socket.close()  # the base class makes a socket that isn't used

    def serve_forever(self, poll_interval: float = POLL_S) -> None:
        """Accept thread: accept connections on all listening sockets until `shutdown`."""
        with selectors.DefaultSelector() as selector:
            for listener in self.listeners:
                selector.register(listener, selectors.EVENT_READ)
            while not self._must_end.is_set():
                for key, _ in selector.select(poll_interval):
                    self._accept(key.fileobj)
                self.service_actions()

    def shutdown(self) -> None:
        """End `serve_forever`: at once on Linux, where shutting down a listening socket wakes the selector; elsewhere
        within `POLL_S`."""
        self._must_end.set()
        for listener in self.listeners:
            _shut(listener)

    def _accept(self, listener: Any) -> None:
        """Accept one connection. If the process is out of file descriptors, make room and wait a moment."""
        try:
            sock, address = listener.accept()
        except OSError as error:
            if error.errno in OUT_OF_DESCRIPTORS:
                self._make_room(error)
                time.sleep(POLL_S)
            return
        try:
            self.process_request(sock, address)
        except Exception:
            self.handle_error(sock, address)
            self.shutdown_request(sock)

    def _make_room(self, error: OSError) -> None:
        """Accept thread: close refused connections and cut a silent one, since no file descriptor is free."""
        self._close_refused(0)
        with self.lock:
            self._cut_silent()
        if time.monotonic() - self._t_told > TELL_S:
            self._t_told = time.monotonic()
            get_logger("http").error("no connection can be accepted: %s", error.strerror)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Accept thread: start a thread for the connection, or refuse it."""
        entry = Connection(request, get_client_name(client_address), time.monotonic())
        with self.lock:
            is_welcome = not self.is_stopping and self._has_room()
            if is_welcome:
                self.connections[request] = entry
        if not is_welcome:
            self._refuse(request, STOPPING if self.is_stopping else FULL)
            return
        self._n_started += 1
        entry.thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name=f"http-{self._n_started}",
            daemon=True,
        )
        try:
            if not is_unix(request):
                request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            entry.thread.start()
        except (OSError, RuntimeError):
            # The client has left already, or the system can't start another thread.
            with self.lock:
                del self.connections[request]
            self._refuse(request, FULL)

    def _has_room(self) -> bool:
        """Whether one more connection is accepted, possibly after `_cut_silent`. Called with the lock held."""
        return len(self.connections) < self.limits.n_connections or self._cut_silent()

    def _cut_silent(self) -> bool:
        """Cut the connection that has sent no whole request head for longest; called with the lock held. False if none
        has been silent for `spare_s`."""
        silent = [(entry.t_silent, entry) for entry in self.connections.values() if entry.t_silent is not None]
        since, oldest = min(silent, key=itemgetter(0), default=(math.inf, None))
        if oldest is None or time.monotonic() - since < self.limits.spare_s:
            return False
        oldest.t_silent = None
        _cut(oldest.sock)
        return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Connection thread: serve the connection, then remove its `Connection`."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.lock:
                del self.connections[request]

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Connection thread: the constructor of a handler does all its work."""
        ConnectionHandler(request, client_address, self, self.connections[request])

    def shutdown_request(self, request: Any) -> None:
        """Only close the socket: the handler has ended the connection."""
        self.close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log a bug in the server: the handler catches all errors of clients and API handlers."""
        get_logger("http").exception("connection thread failed")

    def service_actions(self) -> None:
        """Accept thread: close refused connections that are too old or too many."""
        self._close_refused(max(self.limits.n_connections // REFUSED_PART, 1))

    def _close_refused(self, n_kept: int) -> None:
        while self._refused and (
            len(self._refused) > n_kept or time.monotonic() - self._refused[0][0] > REFUSED_KEEP_S
        ):
            _close_refused(self._refused.popleft()[1])

    def server_close(self) -> None:
        close_all(self.listeners)
        self._close_refused(0)

    def set_idle(self, entry: Connection, is_idle: bool) -> bool:
        with self.lock:
            entry.is_idle = is_idle
            if is_idle:
                entry.t_silent = time.monotonic()
            return not self.is_stopping

    def set_served(self, entry: Connection) -> None:
        """Note that a request head has come: the connection is no longer cut to make room for others."""
        with self.lock:
            entry.t_silent = None

    def _refuse(self, sock: socket.socket, message: str) -> None:
        """Send 503 without waiting. With TLS send nothing, since there was no handshake yet."""
        error = ApiError(503, message, headers={"Retry-After": "1"}, reason="connections" if message == FULL else "")
        self.refusals.count(error.reason)
        try:
            sock.setblocking(False)
            if not self.tls:
                sock.send(encode_refusal(error))
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the client has left
        # If the client has sent its request, closing at once would reset the connection and lose the answer.
        self._refused.append((time.monotonic(), sock))
        self.service_actions()


class HttpServer:
    """The constructor binds and listens, so clients can connect and wait. They are answered from `start` to `stop`.

    `hosts` is one host or several: names, addresses (IPv6 with or without brackets) or paths of UNIX sockets
    (`*.sock`). Port 0 picks a free port. BindError if the server can't listen on one of them."""

    def __init__(
        self,
        hosts: str | Sequence[str],
        port: int,
        router: Router,
        *,
        limits: Limits | None = None,
        cors: CorsPolicy | None = None,
        auth: KeyRing | None = None,
        static: StaticFiles | None = None,
        access_log: Callable[[AccessRecord], None] | None = None,
        tls: ssl.SSLContext | None = None,
        allowed_hosts: Iterable[str] = (),
        rate: RateLimiter | None = None,
        refusals: Refusals | None = None,
        half_close: bool = False,
    ) -> None:
        self.hosts = tuple(host.strip("[]") for host in ([hosts] if isinstance(hosts, str) else hosts))
        limits = limits or Limits()
        listeners = listen_all(self.hosts, port, limits.n_backlog)
        self._server = WebServer(
            listeners,
            router,
            limits=limits,
            hosts=HostPolicy.make_for_bind(self.hosts, allowed_hosts),
            cors=cors or CorsPolicy(),
            auth=auth,
            static=static,
            rate=rate,
            tls=tls,
            access_log=access_log,
            refusals=refusals or Refusals(),
            half_close=half_close,
        )
        self._port = next((listener.getsockname()[1] for listener in listeners if not is_unix(listener)), 0)
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @property
    def port(self) -> int:
        """0 if there are only UNIX sockets."""
        return self._port

    @property
    def urls(self) -> list[str]:
        """For each host the URL by which a client on this machine reaches the server, without a slash at the end."""
        return [self._make_url(host) for host in self.hosts]

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def socket_paths(self) -> list[str]:
        return [host for host in self.hosts if host.endswith(".sock")]

    def _make_url(self, host: str) -> str:
        if host.endswith(".sock"):
            return f"unix:{host}"
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if self._server.tls else 'http'}://{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        return all(map(is_local, self.hosts))

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The TLS context (certificate) for new connections; None without TLS."""
        return self._server.tls

    @tls.setter
    def tls(self, context: ssl.SSLContext | None) -> None:
        self._server.tls = context

    @property
    def n_connections(self) -> int:
        return len(self._server.connections)

    def start(self) -> None:
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="http-accept", daemon=True
        )
        self._thread.start()

    def wind_down(self) -> None:
        """From now on close each connection after its next answer, so that keep-alive clients reconnect elsewhere."""
        self._server.is_winding_down = True

    def stop(self, deadline_s: float = 10.0, conclude: Callable[[], None] | None = None) -> int:
        """Stop accepting, end idle connections, and wait at most `deadline_s` for running requests. Then call
        `conclude`, which must end the answers of requests that still run. Cut the connections that are open `ANSWER_S`
        later. Returns the number of connections cut. Idempotent."""
        server = self._server
        with server.lock:
            server.is_stopping = server.is_winding_down = True
            for entry in server.connections.values():
                if entry.is_idle:
                    _end_reading(entry.sock)
        if self._thread:
            server.shutdown()
            self._thread.join()
            self._thread = None
        if not self._is_closed:
            self._is_closed = True
            server.server_close()
        self._join(time.monotonic() + deadline_s)
        if conclude is not None:
            conclude()
            self._join(time.monotonic() + ANSWER_S)
        with server.lock:
            left = list(server.connections.values())
        for entry in left:
            _cut(entry.sock)
        self._join(time.monotonic() + JOIN_S)
        server.watcher.stop()
        return len(left)

    def _join(self, deadline: float) -> None:
        with self._server.lock:
            threads = [entry.thread for entry in self._server.connections.values() if entry.thread]
        for thread in threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))


def get_client_name(address: object) -> str:
    """The peer's address without its port; "unix" for a UNIX socket. IPv4 addresses of IPv6 sockets lose their
    prefix."""
    if not isinstance(address, tuple):
        return "unix"
    return address[0].removeprefix("::ffff:")


def encode_refusal(error: ApiError) -> bytes:
    response = make_error_response(error)
    return (
        encode_head(
            503,
            {
                **response.headers,
                "Content-Length": str(len(response.body)),
                "Connection": "close",
                "Server": "llama_srv",
            },
        )
        + response.body
    )


def _cut(sock: socket.socket) -> None:
    """End a connection while its thread uses it. The thread wakes up with an end of file or an error."""
    _shut(sock)
    if os.name == "nt":
        _close_quietly(sock)  # on Windows, shutdown alone does not wake a waiting select


def _end_reading(sock: socket.socket) -> None:
    """End a connection that waits for a request. Except on Windows, a request that has arrived can still be
    answered."""
    if os.name == "nt":
        _cut(sock)
    else:
        _shut(sock, socket.SHUT_RD)


def _shut(sock: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    try:
        socket.socket.shutdown(sock, how)  # not SSLSocket.shutdown, see Wire.close
    except OSError:
        pass  # not connected (any more)


def _close_refused(sock: socket.socket) -> None:
    """Read what the client has sent, then close: closing with unread bytes would reset the connection."""
    try:
        sock.recv(REFUSED_DROP_BYTES)
    except OSError:
        pass  # the client sent nothing, or has left
    _close_quietly(sock)


def _close_quietly(sock: socket.socket) -> None:
    try:
        sock.close()
    except OSError:
        pass
