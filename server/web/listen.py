"""Opens the listening sockets for hosts and a port.

Main thread. Imports only `auth`. Not taken: binding as the standard library's servers do. They leave the choice between
IPv4 and IPv6 to the system, look up the machine's own name, and raise a bare `OSError`.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Sequence
from typing import Any

from server.web.auth import is_loopback


class BindError(OSError):
    """The server can't listen on an address; the message says why and what to do."""


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    return host.endswith(".sock") or is_loopback(host.strip("[]"))


def listen_all(hosts: Sequence[str], port: int, n_backlog: int) -> list[socket.socket]:
    """Open a listening socket for each host, all on the same port (0: a free one). If one fails, close the others and
    raise BindError."""
    found: list[socket.socket] = []
    try:
        for host in hosts:
            found.append(listen(host, port, n_backlog))
            if not port and not is_unix(found[-1]):
                port = found[-1].getsockname()[1]
    except BindError:
        close_all(found)
        raise
    return found


def close_all(listeners: Sequence[socket.socket]) -> None:
    """Close the sockets and remove the files of UNIX sockets."""
    for listener in listeners:
        path = listener.getsockname() if is_unix(listener) and listener.fileno() >= 0 else None
        listener.close()
        if path:
            _unlink_quietly(path)


def is_unix(sock: socket.socket) -> bool:
    return sock.family == getattr(socket, "AF_UNIX", None)


def listen(host: str, port: int, n_backlog: int) -> socket.socket:
    """Open one listening, non-blocking socket; BindError."""
    if host.endswith(".sock"):
        if not hasattr(socket, "AF_UNIX") or os.name == "nt":
            raise BindError("UNIX sockets are not available on this system: give --host an address instead.")
        _clear_stale_socket(host)
    family, address = (socket.AF_UNIX, host) if host.endswith(".sock") else resolve(host, port)
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            _set_options(sock)
            sock.bind(address)
            sock.listen(n_backlog)
            # A client may reset its connection before it is accepted; accept must not wait for the next client then.
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock
    except (OSError, OverflowError) as error:
        raise BindError(bind_advice(error, host, port)) from None


def _set_options(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if os.name != "nt":  # on Windows it would let two servers share a port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    elif hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)


def resolve(host: str, port: int) -> tuple[int, Any]:
    """The address family and address of a host name; IPv4 if it has both. BindError."""
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
    """One line that says why an address can't be bound and what to do."""
    where = f"{host or '0.0.0.0'}:{port}"
    number = getattr(error, "errno", None)
    if number in (errno.EADDRINUSE, 10048):
        return f"{where} is in use: stop the other program or choose another --port (0 picks a free one)."
    if number in (errno.EACCES, errno.EPERM, 10013):
        return f"{where} needs more rights: choose a --port from 1024 up."
    if number in (errno.EADDRNOTAVAIL, 10049):
        return f"{host} is not an address of this machine: choose another --host (127.0.0.1, 0.0.0.0)."
    return f"Can't listen on {where}: {error}."


def _clear_stale_socket(path: str) -> None:
    """Remove the socket file of a server that has ended. BindError if that server still runs, or the file is no
    socket."""
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


def _unlink_quietly(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
