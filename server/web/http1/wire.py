"""One client's socket. Every read and write has a deadline; bytes after a request are kept for the next one.

Used by one connection thread (`direct.py` writes to the socket for it). Errors of the socket become `ClientGone` or
`ClientSlow`, so that an OSError of a handler isn't mistaken for the client's."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable

from server.errors import ApiError
from server.memory import Budget, Share
from server.web.http1.body import make_body_decoder
from server.web.http1.head import Framing, Head, HeadParser
from server.web.http1.multipart import FormParser
from server.web.limits import Limits

RECV_BYTES = 64 * 1024  # a larger buffer takes 10 us more to allocate, for each call
PLAIN_HTTP = ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST")
"""OpenSSL's names for the error when a client sends plain HTTP instead of TLS."""


class ClientGone(Exception):
    """The connection can't be used any more: it is closed or reset, or the client reads too slowly."""


class ClientSlow(Exception):
    """The client did not finish sending a head or a body in time."""


class Wire:
    """Reads requests from `sock` and writes answers to it. From `start_tls` on, `sock` is the TLS socket over the same
    descriptor."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self.sock = sock
        self._limits = limits
        self._rest = b""
        self._idle_s = limits.head_s  # for the first request; a keep-alive connection may wait longer

    def start_tls(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Wrap the socket in TLS, without the handshake. ClientGone."""
        try:
            self.sock = context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError) as error:
            raise ClientGone(str(error)) from None
        return self.sock

    def shake_hands(self) -> None:
        """Do the TLS handshake within `head_s`. ClientGone if it fails. If the client speaks plain HTTP, ApiError 400;
        the socket is then a plain one again, for the answer."""
        try:
            self.sock.settimeout(self._limits.head_s)
            self.sock.do_handshake()  # type: ignore[attr-defined]
        except ssl.SSLError as error:
            if error.reason not in PLAIN_HTTP:
                raise ClientGone(str(error)) from None
            self.sock = socket.socket(fileno=self.sock.detach())
            raise ApiError(400, "This port needs HTTPS: begin the address with https://.") from None
        except (OSError, ValueError) as error:
            raise ClientGone(str(error)) from None

    def read_head(self, on_first_byte: Callable[[], object]) -> Head | None:
        """The next request's head; None if the client closed the connection or stayed idle. ClientGone or ClientSlow if
        the head breaks off, ApiError if it is malformed."""
        data, self._rest = self._rest, b""
        if not data:
            try:
                data = self._receive(self._idle_s)
            except (ClientSlow, ClientGone):
                return None
            if not data:
                return None
        on_first_byte()
        self._idle_s = self._limits.idle_s
        deadline = time.monotonic() + self._limits.head_s
        parser = HeadParser(self._limits)
        while (head := parser.feed(data)) is None:
            data = self._receive_more(deadline)
        self._rest = parser.rest
        return head

    def read_body(self, framing: Framing, budget: Budget | Share, form: FormParser | None = None) -> bytearray:
        """The whole body. If there is a `form`, it is fed with the body instead, and the result is empty. The bytes are
        taken from `budget`; the caller gives them back, unless this raises."""
        decoder = make_body_decoder(framing, self._limits)
        n_taken = n_received = 0
        start = time.monotonic()
        try:
            data, self._rest = self._rest, b""
            while True:
                is_whole = decoder.feed(data)
                budget.take(decoder.n_bytes - n_taken)
                n_taken = decoder.n_bytes
                if form is not None:
                    form.feed(decoder.take())
                if is_whole:
                    break
                data = self._receive_more(start + self._limits.body_s + n_received / self._limits.body_rate)
                n_received += len(data)
        except BaseException:
            budget.give(n_taken)
            raise
        self._rest = decoder.rest
        return decoder.body

    def send(self, data: bytes) -> None:
        """Send all of `data`, in slices of `write_slice` bytes. ClientGone if the client has left or reads too
        slowly."""
        step = self._limits.write_slice
        try:
            if self.sock.gettimeout() != self._limits.write_s:  # setting it is a system call
                self.sock.settimeout(self._limits.write_s)
            if len(data) <= step:
                self.sock.sendall(data)
                return
            view = memoryview(data)
            for start in range(0, len(view), step):
                self.sock.sendall(view[start : start + step])
        except (OSError, ValueError) as error:
            raise ClientGone(str(error)) from None

    def close(self, linger: bool) -> None:
        """Close the connection gracefully. With `linger` the client may still be sending. Closing at once would then
        reset the connection and lose the answer, so incoming bytes are dropped first, for at most `linger_s`."""
        try:
            if isinstance(self.sock, ssl.SSLSocket) and not linger:
                self.sock.settimeout(0)
                _say_goodbye(self.sock)
            # Not SSLSocket.shutdown: it would change the object while another thread may be reading from it.
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
            if linger:
                self._drop_until(time.monotonic() + self._limits.linger_s)
        except (OSError, ValueError, ClientGone, ClientSlow):
            pass  # the client closed first
        finally:
            self.sock.close()

    def _drop_until(self, deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            self.sock.settimeout(left)
            if not socket.socket.recv(self.sock, RECV_BYTES):
                return

    def _receive_more(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ClientSlow
        data = self._receive(left)
        if not data:
            raise ClientGone("closed in the middle of a request")
        return data

    def _receive(self, timeout_s: float) -> bytes:
        try:
            self.sock.settimeout(timeout_s)
            return self.sock.recv(RECV_BYTES)
        except TimeoutError:
            raise ClientSlow from None
        except (OSError, ValueError) as error:
            raise ClientGone(str(error)) from None


def _say_goodbye(sock: ssl.SSLSocket) -> None:
    """Send TLS close_notify without waiting for the peer's."""
    try:
        sock.unwrap()
    except (OSError, ValueError):
        pass  # SSLWantRead once ours is sent, or the client has left
