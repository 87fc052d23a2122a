"""One client connection on its own thread: read a request, check it, run its handler, write the answer, repeat.

Only the loop (`handle`) comes from `BaseHTTPRequestHandler`. Its reading and writing are not used: its parser is lax,
it ignores `Transfer-Encoding`, and it answers errors in HTML. Every check that needs only the head is done before the
body is read.
"""

from __future__ import annotations

import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from email.utils import formatdate
from functools import lru_cache, partial
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol

from server import memory
from server.errors import ApiError
from server.log import get_logger, set_subject
from server.memory import Budget, Share
from server.metrics import Refusals
from server.records import field, record
from server.web.auth import CorsPolicy, HostPolicy, KeyRing
from server.web.http1.direct import lend
from server.web.http1.head import (
    METHODS,
    METHODS_WITH_BODY,
    NO_BODY,
    UNKNOWN_BODY,
    Framing,
    Head,
    Headers,
    read_body_framing,
    split_target,
)
from server.web.http1.multipart import FormParser
from server.web.http1.wire import ClientGone, ClientSlow, Wire
from server.web.limits import Limits
from server.web.message import (
    CLIENT_CLOSED,
    EVENT_STREAM,
    EventStream,
    Request,
    Response,
    encode_head,
    make_error_response,
)
from server.web.presence import Presence
from server.web.rate import RateLimiter, network_of
from server.web.router import Route, Router
from server.web.static import StaticFiles
from server.web.watcher import Watcher

REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
STREAM_HEADERS = {"Content-Type": EVENT_STREAM, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
STOPPING = "The server is stopping."
STATUS_WITHOUT_BODY = frozenset((204, 304))
STATIC_METHODS = ("GET", "HEAD")
SMALL_ANSWER = 1 << 16  # bytes; answers up to this size aren't counted in the memory budget
LAST_CHUNK = b"0\r\n\r\n"


@record(frozen=True)
class AccessRecord:
    """One answered request, for the access log. `n_bytes` is the size of the answer, `seconds` the time since the
    request head was complete. `complete`: the whole answer was sent. `path` has no query, which may hold secrets.
    `method` and `path` are "" if they could not be read."""

    id: str
    client: str
    method: str
    path: str
    status: int
    n_bytes: int
    seconds: float
    complete: bool


@record
class Exchange:
    """One request and its answer."""

    head: Head
    id: str
    share: Share
    path: str = ""
    query: dict[str, str] = field(default_factory=dict)
    host: str | None = None
    framing: Framing = UNKNOWN_BODY
    """How the unread part of the request is delimited."""
    presence: Presence = field(default_factory=Presence)
    endings: list[Callable[[], None]] = field(default_factory=list)
    """Functions to call once the answer has been written or given up."""
    keep_alive: bool = False
    status: int = CLIENT_CLOSED
    n_bytes: int = 0  # bytes of the answer that have been sent
    complete: bool = False  # the whole answer has been sent
    start: float = field(default_factory=time.monotonic)  # seconds of the monotonic clock


@record
class StartedStream:
    """An `EventStream` whose first chunk has been fetched (b"" if the stream is empty)."""

    status: int
    headers: dict[str, str]
    first: bytes
    rest: Iterator[bytes]


@record(eq=False)
class Connection:
    """What the server knows about one connection. The connection thread replaces `sock` when TLS starts.

    `is_idle`: the connection waits for a request, so `stop` may end it at once. Since `t_silent` (None while a request
    is served) the client has sent no whole request head. The server's lock protects both."""

    sock: socket.socket
    client: str
    t_silent: float | None
    is_idle: bool = False
    thread: threading.Thread | None = None


class SharedState(Protocol):
    """What all connections share: the attributes of `httpd.WebServer`."""

    limits: Limits
    budget: Budget
    watcher: Watcher
    router: Router
    auth: KeyRing | None
    cors: CorsPolicy
    hosts: HostPolicy
    static: StaticFiles | None
    rate: RateLimiter | None
    tls: ssl.SSLContext | None
    access_log: Callable[[AccessRecord], None] | None
    half_close: bool
    refusals: Refusals
    is_stopping: bool
    is_winding_down: bool

    def set_idle(self, entry: Connection, is_idle: bool) -> bool:
        """Note whether a connection waits for a request. Returns False if the server is stopping: the connection must
        then read no further request."""

    def set_served(self, entry: Connection) -> None:
        """Note that a whole request head has come."""


NO_HEAD = Head("", "", (1, 1), Headers())


class ConnectionHandler(BaseHTTPRequestHandler):
    """Serves one connection. `server` holds what all connections share, `entry` is this one's `Connection`."""

    server: SharedState  # type: ignore[assignment]
    server_version = "llama_srv"

    def __init__(self, sock: Any, client_address: object, server: SharedState, entry: Connection) -> None:
        self.entry = entry
        super().__init__(sock, client_address, server)  # type: ignore[arg-type]

    def setup(self) -> None:
        """Replaces the standard library's `rfile` and `wfile`, which have buffers of their own."""
        self.wire = Wire(self.request, self.server.limits)
        self.must_linger = False

    def handle(self) -> None:
        """Serve all requests of this connection one after the other."""
        try:
            if self.server.tls:
                self.entry.sock = self.wire.start_tls(self.server.tls)
                self._shake_hands()
            super().handle()
        except (ClientGone, ClientSlow):
            pass

    def _shake_hands(self) -> None:
        try:
            self.wire.shake_hands()
        except ApiError as error:  # plain HTTP
            self.entry.sock = self.wire.sock
            self._refuse_head(error)
            raise ClientGone(error.message) from None

    def finish(self) -> None:
        """Close the socket. After a refusal, first give the client time to read the refusal."""
        self.wire.close(self.must_linger)

    def handle_one_request(self) -> None:
        """Read, answer and log one request. `close_connection` stays true unless another request may follow."""
        self.close_connection = True
        if not self.server.set_idle(self.entry, True):
            return
        try:
            head = self.wire.read_head(partial(self.server.set_idle, self.entry, False))
        except ClientSlow:
            self._refuse_head(ApiError(408, "The request head did not arrive in time."))
            return
        except ApiError as error:
            self._refuse_head(error)
            return
        if head:
            self.server.set_served(self.entry)
            exchange = Exchange(head, choose_request_id(head), Share(self.server.budget))
            self._serve(exchange)
            self.close_connection = not exchange.keep_alive

    def _refuse_head(self, error: ApiError) -> None:
        exchange = Exchange(NO_HEAD, choose_request_id(NO_HEAD), Share(self.server.budget))
        self.server.refusals.count(error.reason)
        try:
            self._write(exchange, make_error_response(error))
        finally:
            self._log(exchange)

    def _serve(self, exchange: Exchange) -> None:
        set_subject("")
        try:
            answer = self._answer(exchange)
            if isinstance(answer, Response):
                # The handler is done. (A stream may still read the request.)
                exchange.share.keep(len(answer.body) if len(answer.body) > SMALL_ANSWER else 0)
            self._write(exchange, answer)
        finally:
            exchange.presence.end()
            while exchange.endings:
                exchange.endings.pop()()
            memory.use(None)
            exchange.share.close()
            self._log(exchange)
        if exchange.keep_alive and exchange.framing.kind != "none":
            self._read_body(exchange)  # the body of a refused request: dropped to reach the next request

    # -- from the request to an answer

    def _answer(self, exchange: Exchange) -> Response | StartedStream:
        """The answer; an error has the route's shape. Raises only ClientGone."""
        try:
            self._check_head(exchange)
            if self.server.is_stopping:
                # The request came while `stop` was ending idle connections.
                raise ApiError(503, STOPPING, headers={"Retry-After": "1"})
            return self._dispatch(exchange)
        except ApiError as fault:
            if fault.status == CLIENT_CLOSED:
                raise ClientGone from None
            error = fault.with_traceback(None)  # a cycle with this frame would keep the whole request alive
        except ClientSlow:
            error = ApiError(408, "The request body did not arrive in time.")
        except ClientGone:
            raise
        except Exception:
            get_logger("http").exception("request %s failed", exchange.id)
            error = ApiError(500, f"Internal error; see request {exchange.id} in the server's log.")
        self.server.refusals.count(error.reason)
        path = exchange.path or exchange.head.target.partition("?")[0]  # the path is "" if the target is malformed
        return make_error_response(error, self.server.router.find_error_shape(path))

    def _check_head(self, exchange: Exchange) -> None:
        head = exchange.head
        exchange.framing = read_body_framing(head, self.server.limits)
        authority, exchange.path, exchange.query = split_target(head.target)
        exchange.host = authority or head.headers.get("host")
        if exchange.host is None and head.version >= (1, 1):
            raise ApiError(400, "An HTTP/1.1 request needs a Host header.")
        if head.method not in METHODS:
            raise ApiError(501, f"The method {head.method[:20]!r} is not supported.")
        self.server.hosts.check(exchange.host)
        self.server.cors.check(head.method, head.headers, exchange.host)

    def _dispatch(self, exchange: Exchange) -> Response | StartedStream:
        if exchange.head.method == "OPTIONS":
            return self._answer_options(exchange)
        try:
            route, params = self.server.router.match(exchange.head.method, exchange.path)
        except ApiError as error:
            page = self._answer_static(exchange) if error.status == 404 else None
            if page is None:
                raise
            return page
        head = exchange.head
        key_id = self._admit(head, route)
        self._check_length(exchange, route)
        form = FormParser(head.headers) if route.takes_form else None
        body = self._read_body(exchange, form)
        memory.use(exchange.share)
        exchange.presence = Presence(partial(self.server.watcher.watch, self.wire.sock), self.server.half_close)
        if head.method in METHODS_WITH_BODY:
            exchange.presence.begin()  # `on_disconnect` begins it for other methods
        request = Request(
            head.method,
            exchange.path,
            exchange.query,
            head.headers,
            body,
            self.entry.client,
            exchange.id,
            params,
            key_id,
            presence=exchange.presence,
            form=[] if form is None else form.finish(),
            endings=exchange.endings,
        )
        del body  # the handler lets go of it
        answer = route.handler(request)
        if isinstance(answer, EventStream):
            return start_stream(answer)
        if not (isinstance(answer, Response) and isinstance(answer.body, bytes)):
            raise TypeError(f"the handler of {route.method} {route.path} returned {type(answer).__name__}")
        return answer

    def _admit(self, head: Head, route: Route) -> str:
        """The id of the request's API key; "" if it has no accepted one and needs none; ApiError 401 or 429."""
        auth, rate = self.server.auth, self.server.rate
        try:
            find = None if auth is None else auth.find if route.public else auth.check
            key_id = "" if find is None else find(head.headers)
        except ApiError:
            if rate:
                rate.take(network_of(self.entry.client))
            raise
        if rate and not route.is_free and head.method in METHODS_WITH_BODY:
            rate.take(key_id or network_of(self.entry.client))
        return key_id

    def _answer_options(self, exchange: Exchange) -> Response:
        """OPTIONS needs no API key: browsers send preflights without one."""
        methods = list(METHODS) if exchange.path == "*" else self.server.router.list_allowed(exchange.path)
        methods = methods or [*STATIC_METHODS, "OPTIONS"]
        preflight = self.server.cors.make_preflight(exchange.head.headers, methods)
        return Response(200, b"", {"Allow": ", ".join(methods), **preflight})

    def _answer_static(self, exchange: Exchange) -> Response | None:
        if self.server.static is None or exchange.head.method not in STATIC_METHODS:
            return None
        return self.server.static.respond(exchange.path, exchange.head.headers)

    def _check_length(self, exchange: Exchange, route: Route) -> None:
        if exchange.framing.kind == "none" and exchange.head.method in METHODS_WITH_BODY and not route.body_optional:
            # The client may send a body without a Content-Length: don't read that as the next request.
            exchange.framing = UNKNOWN_BODY
            raise ApiError(411, "The request needs a Content-Length, or a body in the chunked coding.")

    def _read_body(self, exchange: Exchange, form: FormParser | None = None) -> bytes | bytearray:
        framing, exchange.framing = exchange.framing, UNKNOWN_BODY
        if framing.kind != "none" and "expect" in exchange.head.headers and exchange.head.version >= (1, 1):
            self.wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self.wire.read_body(framing, exchange.share, form)
        exchange.framing = NO_BODY
        return body

    # -- from the answer to bytes

    def _write(self, exchange: Exchange, answer: Response | StartedStream) -> None:
        exchange.status = answer.status
        exchange.keep_alive = self._may_keep(exchange)
        self.must_linger = not exchange.keep_alive and exchange.framing.kind != "none"
        if isinstance(answer, Response):
            self._write_response(exchange, answer)
        else:
            self._write_stream(exchange, answer)

    def _may_keep(self, exchange: Exchange) -> bool:
        framing = exchange.framing
        if not exchange.head.keep_alive or self.server.is_winding_down:
            return False
        if framing.kind == "none":
            return True
        # The body is unread. A client that expects 100-continue may or may not send it after a refusal.
        small = framing.kind == "length" and framing.n_bytes <= self.server.limits.drain_bytes
        return small and "expect" not in exchange.head.headers

    def _write_response(self, exchange: Exchange, response: Response) -> None:
        if response.status in STATUS_WITHOUT_BODY:
            self._send(exchange, self._encode_head(exchange, response, {}))
        else:
            data = self._encode_head(exchange, response, {"Content-Length": str(len(response.body))})
            self._send(exchange, data if exchange.head.method == "HEAD" else data + response.body)
        exchange.complete = True

    def _write_stream(self, exchange: Exchange, stream: StartedStream) -> None:
        is_chunked = exchange.head.version >= (1, 1)
        exchange.keep_alive = exchange.keep_alive and is_chunked  # without chunks, closing marks the end
        headers = STREAM_HEADERS | ({"Transfer-Encoding": "chunked"} if is_chunked else {})
        frame = frame_chunk if is_chunked else bytes
        writer = None
        try:
            data = self._encode_head(exchange, stream, headers)
            if exchange.head.method == "HEAD":
                self._send(exchange, data)
            else:
                self._send(exchange, data + frame(stream.first))
                writer = lend(stream.rest, self.wire, frame)
                for chunk in stream.rest:
                    if chunk:
                        self._send(exchange, frame(chunk))
                if is_chunked:
                    self._send(exchange, LAST_CHUNK)
            exchange.complete = True
        except ClientGone:
            raise
        except Exception as error:
            if isinstance(error, ApiError) and error.status == CLIENT_CLOSED:
                raise ClientGone from None
            # No last chunk is sent, so the client sees that the answer is cut off.
            exchange.keep_alive = False
            get_logger("http").exception("the stream of request %s failed", exchange.id)
        finally:
            close_chunks(stream.rest)
            if writer is not None:
                exchange.n_bytes += writer.n_bytes

    def _encode_head(self, exchange: Exchange, answer: Response | StartedStream, own: dict[str, str]) -> bytes:
        request_headers = exchange.head.headers
        common = {
            "Server": self.server_version,
            "Date": format_date(int(time.time())),
            "X-Request-Id": exchange.id,
            "Request-Id": exchange.id,  # the name that Anthropic's clients read
            **self.server.cors.make_headers(request_headers.get("origin"), exchange.host),
        }
        if not exchange.keep_alive:
            common["Connection"] = "close"
        else:
            # A client that knows the idle timeout doesn't send its next request into a closing connection.
            common["Keep-Alive"] = f"timeout={int(self.server.limits.idle_s)}"
            if exchange.head.version < (1, 1):
                common["Connection"] = "keep-alive"
        if "Vary" in common and "Vary" in answer.headers:
            common["Vary"] += ", " + answer.headers["Vary"]
        return encode_head(answer.status, own | answer.headers | common)

    def _send(self, exchange: Exchange, data: bytes) -> None:
        self.wire.send(data)
        exchange.n_bytes += len(data)

    def _log(self, exchange: Exchange) -> None:
        if self.server.access_log:
            self.server.access_log(
                AccessRecord(
                    exchange.id,
                    self.entry.client,
                    exchange.head.method,
                    exchange.path,
                    exchange.status,
                    exchange.n_bytes,
                    time.monotonic() - exchange.start,
                    exchange.complete,
                )
            )


@lru_cache(maxsize=1)
def format_date(second: int) -> str:
    return formatdate(second, usegmt=True)


def choose_request_id(head: Head) -> str:
    """The client's X-Request-Id if it is short and safe in logs and headers, else a new random id."""
    given = head.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def frame_chunk(data: bytes) -> bytes:
    """`data` as one chunk of the chunked coding; b"" for b"", since an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def start_stream(answer: EventStream) -> StartedStream:
    """Fetch the first chunk. If that raises, close the stream."""
    chunks = iter(answer.chunks)
    try:
        first = next(chunks, b"")
    except BaseException:
        close_chunks(chunks)
        raise
    return StartedStream(answer.status, answer.headers, first, chunks)


def close_chunks(chunks: Iterable[bytes]) -> None:
    """Run a generator's clean-up now, not when it is garbage-collected."""
    close = getattr(chunks, "close", None)
    if close:
        try:
            close()
        except Exception:
            get_logger("http").exception("a stream failed while it was closed")
