"""The server: listens, gives each connection a thread, counts them, and stops in order.

Threads: `http-accept` runs the accept loop; each connection has one thread `http-N` (`connection.py`) that
also runs the handler; `http-watcher` notices vanished clients. A thread per connection, bounded by
`Limits.n_connections`, is the shape the stdlib gives; the way not taken is an event loop, which would need a
second one for handlers. """

from __future__ import annotations

import errno
import os
import socket
import socketserver
import ssl
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Any

from server.errors import ApiError
from server.log import get_logger
from server.web.auth import CorsPolicy, HostPolicy, KeyRing, is_loopback
from server.web.connection import AccessRecord, ConnectionHandler
from server.web.limits import Limits
from server.web.message import encode_head, error_response
from server.web.rate import RateLimiter
from server.web.router import Router
from server.web.static import StaticFiles
from server.web.watcher import Watcher
from server.web.wire import BodyBudget

POLL_S = 0.25
"""Of the accept loop: how long `stop` may wait for it, and how often refused sockets are tidied up."""
REFUSED_KEEP_S = 1.0
REFUSED_MAX = 256
REFUSED_DROP_BYTES = 64 * 1024
JOIN_S = 2.0
"""Patience with threads whose sockets have been cut."""
FULL = "Too many connections; try again."
STOPPING = "The server is stopping."
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class BindError(OSError):
    """The address can't be listened on; the message says why and what to do."""


@dataclass(slots=True, eq=False)
class Connection:
    """The server's entry for one connection. `sock` is replaced by the connection's thread when TLS starts,
    `is_idle` (it waits for a request, since `t_idle`, so `stop` may cut it at once) is protected by the server's
    lock."""

    sock: socket.socket
    client: str
    is_idle: bool = False
    t_idle: float = 0.0
    thread: threading.Thread | None = None


class WebServer(ThreadingHTTPServer):
    """The stdlib server with its unsafe defaults overridden, and what all connections share."""

    daemon_threads = True
    block_on_close = False  # joined with a deadline by HttpServer.stop, not without one here
    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share a port
    allow_reuse_port = False

    def __init__(self, family: int, address: Any, limits: Limits) -> None:
        self.address_family = family
        self.request_queue_size = limits.n_backlog
        self.limits = limits
        self.is_unix = family == getattr(socket, "AF_UNIX", None)
        self.is_stopping = False
        self.budget = BodyBudget(limits.all_bodies_bytes)
        self.watcher = Watcher()
        self.lock = threading.Lock()  # protects connections, is_idle of each, is_stopping
        self.connections: dict[socket.socket, Connection] = {}
        self._n_started = 0  # accept thread only
        self._refused: deque[tuple[float, socket.socket]] = deque()  # accept thread only
        self.router = Router(())
        self.auth: KeyRing | None = None
        self.cors = CorsPolicy()
        self.hosts = HostPolicy(False)
        self.static: StaticFiles | None = None
        self.rate: RateLimiter | None = None
        self.tls: ssl.SSLContext | None = None
        self.access_log: Callable[[AccessRecord], None] | None = None
        super().__init__(address, ConnectionHandler)
        # A client may reset before it is accepted; accept must not wait for the next one then.
        self.socket.setblocking(False)

    def server_bind(self) -> None:
        """Without HTTPServer's reverse look-up of the own name: it can hang, and is a packet to the
        outside."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        socketserver.TCPServer.server_bind(self)

    def get_request(self) -> tuple[socket.socket, object]:
        """Accept; out of descriptors it waits a moment, since the listening socket stays readable."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in OUT_OF_DESCRIPTORS:
                get_logger("http").error("no connection can be accepted: %s", error.strerror)
                time.sleep(POLL_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Accept thread: a thread for the connection, or the refusal."""
        entry = Connection(request, client_name(client_address))
        with self.lock:
            is_welcome = not self.is_stopping and self._has_room()
            if is_welcome:
                self.connections[request] = entry
        if not is_welcome:
            self._refuse(request, STOPPING if self.is_stopping else FULL)
            return
        self._n_started += 1
        entry.thread = threading.Thread(target=self.process_request_thread, args=(request, client_address),
                                        name=f"http-{self._n_started}", daemon=True)
        try:
            if not self.is_unix:
                request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            entry.thread.start()
        except (OSError, RuntimeError):
            # The client left already, or the system gives no more threads.
            with self.lock:
                del self.connections[request]
            self._refuse(request, FULL)

    def _has_room(self) -> bool:
        """Whether one more connection is welcome, with the lock held. If all places are taken, who has been silent
        for longest has to go: otherwise idle connections would be the cheapest way to keep everybody out."""
        if len(self.connections) < self.limits.n_connections:
            return True
        idle = [entry for entry in self.connections.values() if entry.is_idle]
        oldest = min(idle, key=lambda entry: entry.t_idle, default=None)
        if oldest is None or time.monotonic() - oldest.t_idle < self.limits.spare_s:
            return False
        oldest.is_idle = False
        _cut(oldest.sock)
        return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Connection thread: everything, then sign off."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.lock:
                del self.connections[request]

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Connection thread: the handler does its work in its constructor, as stdlib handlers do."""
        ConnectionHandler(request, client_address, self, self.connections[request])

    def shutdown_request(self, request: Any) -> None:
        """The handler has closed the connection, with TLS under another object."""
        self.close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A bug of ours, since the handler catches what clients and API handlers do."""
        get_logger("http").exception("connection thread failed")

    def service_actions(self) -> None:
        """Accept thread, between connections: close refused ones that had time to read why."""
        while self._refused and (len(self._refused) > REFUSED_MAX
                                 or time.monotonic() - self._refused[0][0] > REFUSED_KEEP_S):
            _close_refused(self._refused.popleft()[1])

    def server_close(self) -> None:
        """Close the listening socket and what is left of refused ones."""
        super().server_close()
        while self._refused:
            _close_refused(self._refused.popleft()[1])

    def set_idle(self, entry: Connection, is_idle: bool) -> bool:
        """Note whether a connection waits for a request (then `stop` cuts it at once); False if it has to
        end."""
        with self.lock:
            entry.is_idle = is_idle
            entry.t_idle = time.monotonic()
            return not self.is_stopping

    def _refuse(self, sock: socket.socket, reason: str) -> None:
        """Say 503 without ever waiting. Under TLS there is nobody to say it to yet."""
        try:
            sock.setblocking(False)
            if not self.tls:
                sock.send(refusal_bytes(reason))
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it left
        # Closing at once would reset the connection if the client has sent its request, and lose the answer.
        self._refused.append((time.monotonic(), sock))
        self.service_actions()


class HttpServer:
    """Bound when constructed (clients may connect and wait), answering from `start()` to `stop()`.

    `host` is a name, an address (IPv6 with or without brackets) or the path of a UNIX socket (`*.sock`); port
    0 picks a free one. BindError if it can't be had. `router` may be replaced at any time. """

    def __init__(self, host: str, port: int, router: Router, *, limits: Limits | None = None,
                 cors: CorsPolicy | None = None, auth: KeyRing | None = None,
                 static: StaticFiles | None = None, access_log: Callable[[AccessRecord], None] | None = None,
                 tls: ssl.SSLContext | None = None, allowed_hosts: Iterable[str] = (),
                 rate: RateLimiter | None = None) -> None:
        self.host = host.strip("[]")
        self._server = bind(self.host, port, limits or Limits())
        self._server.router = router
        self._server.cors = cors or CorsPolicy()
        self._server.auth = auth
        self._server.static = static
        self._server.rate = rate
        self._server.access_log = access_log
        self._server.tls = tls
        self._server.hosts = HostPolicy.for_bind(self.host, allowed_hosts)
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @property
    def port(self) -> int:
        """The port really bound; 0 for a UNIX socket."""
        return 0 if self._server.is_unix else self._server.server_address[1]

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the server, without a slash at the end."""
        if self._server.is_unix:
            return f"unix:{self.host}"
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if self._server.tls else 'http'}://{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_local(self.host)

    @property
    def router(self) -> Router:
        """The routes in force."""
        return self._server.router

    @router.setter
    def router(self, router: Router) -> None:
        self._server.router = router

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The certificate for new connections, None without one."""
        return self._server.tls

    @tls.setter
    def tls(self, context: ssl.SSLContext | None) -> None:
        self._server.tls = context

    @property
    def n_connections(self) -> int:
        """Open connections now."""
        return len(self._server.connections)

    def start(self) -> None:
        """Begin to accept, on a thread of its own."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="http-accept",
                                        daemon=True)
        self._thread.start()

    def stop(self, deadline_s: float = 10.0) -> int:
        """Accept no more, end idle connections, give running requests `deadline_s`, then cut them. The number
        cut. Idempotent."""
        server = self._server
        with server.lock:
            server.is_stopping = True
            for entry in server.connections.values():
                if entry.is_idle:
                    _cut(entry.sock)
        if self._thread:
            # On Linux this wakes the accept loop at once; elsewhere it is an error and the loop looks up by
            # itself.
            _shut(server.socket)
            server.shutdown()
            self._thread.join()
            self._thread = None
        if not self._is_closed:
            self._is_closed = True
            server.server_close()
            if server.is_unix:
                _unlink_quietly(self.host)
        self._join(time.monotonic() + deadline_s)
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


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    return host.endswith(".sock") or is_loopback(host.strip("[]"))


def bind(host: str, port: int, limits: Limits) -> WebServer:
    """A listening server; BindError with what to do about it."""
    if host.endswith(".sock"):
        if not hasattr(socket, "AF_UNIX") or os.name == "nt":
            raise BindError("UNIX sockets are not available on this system: give --host an address instead.")
        _clear_stale_socket(host)
    try:
        family, address = (socket.AF_UNIX, host) if host.endswith(".sock") else resolve(host, port)
        return WebServer(family, address, limits)
    except BindError:
        raise
    except (OSError, OverflowError) as error:
        raise BindError(bind_advice(error, host, port)) from None


def resolve(host: str, port: int) -> tuple[int, Any]:
    """Address family and address of a host name; IPv4 first, as `localhost` is expected to mean 127.0.0.1."""
    if not 0 <= port <= 65535:
        raise BindError(f"Port {port} does not exist: choose a --port from 1 to 65535, or 0 for a free one.")
    if not host:
        return socket.AF_INET, ("0.0.0.0", port)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError):
        raise BindError(f"Host {host!r} is unknown: give --host a name or address of this machine.") from None
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address


def bind_advice(error: Exception, host: str, port: int) -> str:
    """One line for the usual reasons why an address can't be bound."""
    where = f"{host or '0.0.0.0'}:{port}"
    number = getattr(error, "errno", None)
    if number in (errno.EADDRINUSE, 10048):
        return f"{where} is in use: stop the other program or choose another --port (0 picks a free one)."
    if number in (errno.EACCES, errno.EPERM, 10013):
        return f"{where} may not be used without more rights: choose a --port from 1024 up."
    if number in (errno.EADDRNOTAVAIL, 10049):
        return f"{host} is not an address of this machine: choose another --host (127.0.0.1, 0.0.0.0)."
    return f"Can't listen on {where}: {error}."


def client_name(address: object) -> str:
    """The peer's address for logs and fairness: no port, IPv4 also when it came through an IPv6 socket."""
    if not isinstance(address, tuple):
        return "unix"
    return address[0].removeprefix("::ffff:")


def refusal_bytes(reason: str) -> bytes:
    """The answer to a connection that gets no thread."""
    response = error_response(ApiError(503, reason, headers={"Retry-After": "1"}))
    return encode_head(503, {**response.headers, "Content-Length": str(len(response.body)),
                             "Connection": "close", "Server": "llama_srv"}) + response.body


def _clear_stale_socket(path: str) -> None:
    """Remove the socket file of a server that is gone; BindError if it is alive or no socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise BindError(f"{path} exists and is not a socket: choose another --host path.")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError as error:
            raise BindError(f"Can't listen on {path}: {error.strerror}.") from None
        else:
            raise BindError(f"{path} is in use: stop the other program or choose another --host path.")


def _cut(sock: socket.socket) -> None:
    """End a connection under its thread, which wakes up with an end of file or an error."""
    _shut(sock)
    if os.name == "nt":
        _close_quietly(sock)  # there, shutdown alone does not wake a waiting select


def _shut(sock: socket.socket) -> None:
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # plain also for TLS, see Wire.close
    except OSError:
        pass  # not connected (any more)


def _close_refused(sock: socket.socket) -> None:
    """With nothing left unread, since closing over unread bytes resets the connection."""
    try:
        sock.recv(REFUSED_DROP_BYTES)
    except OSError:
        pass  # it sent nothing, or left
    _close_quietly(sock)


def _close_quietly(sock: socket.socket) -> None:
    try:
        sock.close()
    except OSError:
        pass


def _unlink_quietly(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
