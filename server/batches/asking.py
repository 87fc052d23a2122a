"""Runs one line of a batch through the handler of its route, like a client's request but without a connection.

Runs on the threads `batch`. The handler validates the request as usual. There are no streams, and a `Client` stands in
for the client.
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

MAX_HELD = 512 << 20  # memory for the requests of all running lines, in bytes
OWNER = "batch"
"""The owner of the requests on a server without keys."""
UNAVAILABLE = 503
MAX_WAIT_S = 5.0  # longest wait for the line before, so that a slow one doesn't hold up the others

log = get_logger("batches")


@record(frozen=True)
class Answer:
    """The answer to a line. With status `CLIENT_CLOSED` there is none, because the line was stopped."""

    status: int
    """The HTTP status."""
    body: bytes
    """JSON."""
    reason: str = ""
    """Why the request was refused: `ApiError.reason`; "" for an answer."""

    @property
    def is_left(self) -> bool:
        """Whether the line was stopped before it had an answer."""
        return self.status == CLIENT_CLOSED

    @property
    def has_given_way(self) -> bool:
        """Whether the line was stopped to make room for other requests."""
        return self.reason == GAVE_WAY


class Client(Presence):
    """Stands in for the client of a line: it stays connected until `leave` is called. Any thread may call its methods.

    A line waits at most `MAX_WAIT_S` for `before`, which is `is_in` of the line before, so that lines usually reach the
    engine in order. `is_in` is set when this line has been submitted to the engine, waits for its model to be loaded,
    or has ended. So lines that wait for the same load may reach the engine in any order.
    """

    __slots__ = ("before", "is_in")

    def __init__(self, before: threading.Event | None = None) -> None:
        super().__init__(half_close=True)
        self.before, self.is_in = before, threading.Event()

    def on_disconnect(self, on_gone: Callable[[], None], on_end: Callable[[], None] | None = None) -> Any:
        """See `Presence`. A handler calls it when it has submitted the request, or waits for the model's load."""
        self.is_in.set()
        return super().on_disconnect(on_gone, on_end)

    def leave(self) -> None:
        self._leave()


class Asking:
    def __init__(self, table: Iterable[Route]) -> None:
        self._routes = {route.path: route for route in table if route.method == "POST" and route.path in ENDPOINTS}
        self._budget = Budget(MAX_HELD)

    def ask(self, id_: str, url: str, body: dict[str, Any], key_id: str, client: Client) -> Answer:
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
            return Answer(500, to_json(route.error_shape(ApiError(500, "internal error; see the server's log"))))
        finally:
            client.is_in.set()
            use(None)
            share.close()


def as_batched(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body of a line, changed to fit a batch. ApiError 400 if `stream` or `background` is set."""
    for name in ("stream", "background"):
        if body.get(name):
            raise ApiError(400, f"{name}: not allowed in a batch, whose answers are read when it has ended")
    if url == "/v1/responses" and body.get("store") is None:
        return {**body, "store": False}  # thousands of stored responses would push out those of other requests
    return body


def line_of(id_: str, custom_id: str, answer: Answer | None, code: str = "", message: str = "") -> bytes:
    """A line for the file of answers or errors: with an answer, or the reason why there is none."""
    response = b"null"
    if answer is not None:
        response = b'{"status_code":%d,"request_id":%b,"body":%b}' % (answer.status, to_json(id_), answer.body)
    error = to_json(None if answer is not None else {"code": code, "message": message})
    return b'{"id":%b,"custom_id":%b,"response":%b,"error":%b}' % (to_json(id_), to_json(custom_id), response, error)
