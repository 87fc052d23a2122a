"""Asks one line of a batch as a client would ask it: through the handler of its route, without a connection.

Threads of batches. What a request can be refused for, the handler says, as it does to everybody; here is only what is
special about nobody waiting at the other end: no streams, another try where the server was busy, and a `Client` that
leaves when the batch is cancelled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from server.batches.lines import ENDPOINTS
from server.engine.seam.task import GAVE_WAY
from server.errors import ApiError
from server.log import get_logger
from server.memory import Budget, Share, use
from server.records import record
from server.web.message import CLIENT_CLOSED, Request, Response, to_json
from server.web.presence import Presence
from server.web.router import Route

MAX_HELD = 512 << 20  # bytes that the requests of all lines hold in memory together
OWNER = "batch"
"""Whose requests they are where there are no keys."""
UNAVAILABLE = 503
MAX_WAIT_S = 5.0  # for the line before: one that takes long to read shall not hold up all others

log = get_logger("batches")


@record(frozen=True)
class Answer:
    """What came out: a status of HTTP and JSON, and why it was refused. With status `CLIENT_CLOSED` it isn't wanted any
    more."""

    status: int
    body: bytes
    reason: str = ""

    @property
    def is_left(self) -> bool:
        """Whether there is none, because the line's client has left."""
        return self.status == CLIENT_CLOSED

    @property
    def has_given_way(self) -> bool:
        """Whether there is none, because others' requests needed the room."""
        return self.reason == GAVE_WAY


class Client(Presence):
    """Stands where the client of a request would: it stays until it is told to `leave`. Any thread.

    Its request is read once the one before it has gone to the engine (`before`), so that they come there in their
    order; `is_in` says that it has."""

    __slots__ = ("before", "is_in")

    def __init__(self, before: threading.Event | None = None) -> None:
        super().__init__(half_close=True)
        self.before, self.is_in = before, threading.Event()

    def on_disconnect(self, on_gone: Callable[[], None], on_end: Callable[[], None] | None = None) -> Any:
        """See `Presence`. A handler calls it when the engine has the request."""
        self.is_in.set()
        return super().on_disconnect(on_gone, on_end)

    def leave(self) -> None:
        """End what is computed for it."""
        self._leave()


class Asking:
    """`ask` answers the body of a line, by the routes of a server."""

    def __init__(self, table: Iterable[Route]) -> None:
        self._routes = {route.path: route for route in table if route.method == "POST" and route.path in ENDPOINTS}
        self._budget = Budget(MAX_HELD)

    def ask(self, id_: str, url: str, body: dict[str, Any], key_id: str, client: Client) -> Answer:
        """The answer, whatever it is."""
        route, share = self._routes[url], Share(self._budget)
        if client.before is not None:
            client.before.wait(MAX_WAIT_S)
        use(share)
        try:
            data = to_json(as_batched(url, body))
            share.take(len(data))
            request = Request(
                "POST", url, body=data, client=OWNER, id=id_, key_id=key_id, presence=client, in_background=True
            )
            try:
                response = route.handler(request)
            finally:
                request.end()
            assert isinstance(response, Response)
            return Answer(response.status, response.body)
        except ApiError as error:
            return Answer(error.status, to_json(route.error_shape(error)), error.reason)
        except Exception:
            log.exception("a line of a batch failed (%s)", id_)
            return Answer(500, to_json(route.error_shape(ApiError(500, "the server has a fault, which its log shows"))))
        finally:
            client.is_in.set()
            use(None)
            share.close()


def as_batched(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body of a request that nobody reads a stream of. ApiError 400 if it wants that."""
    for name in ("stream", "background"):
        if body.get(name):
            raise ApiError(400, f"{name}: not in a batch, whose answers are read at its end")
    if url == "/v1/responses" and body.get("store") is None:
        return {**body, "store": False}  # thousands of them would drive out what others have stored
    return body


def line_of(id_: str, custom_id: str, answer: Answer | None, code: str = "", message: str = "") -> bytes:
    """A line of the file of answers, or of that of errors: with an answer, or why there is none."""
    response = b"null"
    if answer is not None:
        response = b'{"status_code":%d,"request_id":%b,"body":%b}' % (answer.status, to_json(id_), answer.body)
    error = to_json(None if answer is not None else {"code": code, "message": message})
    return b'{"id":%b,"custom_id":%b,"response":%b,"error":%b}' % (to_json(id_), to_json(custom_id), response, error)
