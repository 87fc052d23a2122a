"""The register of running requests by id, and the routes that act on them: POST /v1/abort ends a request, and POST
/v1/chat/completions/control ends its reasoning.

Connection threads fill and read it, under a lock. A request's ids are its X-Request-Id, which clients may choose and
use twice, and its answer's id, if the dialect has one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from server.api.request.fields import ABORT, CONTROL
from server.errors import ApiError
from server.records import record
from server.web.message import Request, Response


@record(eq=False)
class Entry:
    """One running request. `finish` ends it, `end_thinking` ends its reasoning; both return whether they did."""

    key_id: str
    finish: Callable[[], bool]
    end_thinking: Callable[[], bool]


class RunningRequests:
    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects _entries
        self._entries: dict[str, list[Entry]] = {}

    @contextmanager
    def keep_entry(
        self,
        ids: Iterable[str],
        key_id: str,
        finish: Callable[[], bool],
        end_thinking: Callable[[], bool] = lambda: False,
    ) -> Iterator[None]:
        """Keep the request in the register under all of its `ids` while the block runs. Empty ids are skipped."""
        entry = Entry(key_id, finish, end_thinking)
        ids = [id_ for id_ in ids if id_]
        with self._lock:
            for id_ in ids:
                self._entries.setdefault(id_, []).append(entry)
        try:
            yield
        finally:
            with self._lock:
                for id_ in ids:
                    self._entries[id_].remove(entry)
                    if not self._entries[id_]:
                        del self._entries[id_]

    def abort(self, id_: str, key_id: str) -> bool:
        """End the requests with this id and API key. Returns whether it ended any."""
        return any([entry.finish() for entry in self._find(id_, key_id)])

    def end_thinking(self, id_: str, key_id: str) -> bool:
        """End the reasoning of the requests with this id and API key. Returns whether any was reasoning."""
        return any([entry.end_thinking() for entry in self._find(id_, key_id)])

    def _find(self, id_: str, key_id: str) -> list[Entry]:
        with self._lock:
            return [entry for entry in self._entries.get(id_, ()) if entry.key_id == key_id]


class RunningHandlers:
    """To a client, requests of another key don't exist."""

    def __init__(self, running: RunningRequests) -> None:
        self._running = running

    def control(self, request: Request) -> Response:
        """POST /v1/chat/completions/control. `success` is whether a request was reasoning."""
        body, id_ = _read_body(request)
        if body.get("action") != "reasoning_end":
            raise ApiError(400, "action: only 'reasoning_end' is supported")
        return CONTROL.reply({"id": id_, "success": self._running.end_thinking(id_, request.key_id)}, body)

    def abort(self, request: Request) -> Response:
        """POST /v1/abort. `stopped` is whether a request was ended."""
        body, id_ = _read_body(request)
        return ABORT.reply({"id": id_, "stopped": self._running.abort(id_, request.key_id)}, body)


def _read_body(request: Request) -> tuple[dict[str, Any], str]:
    body: Any = request.read_json()
    id_ = body.get("id") if isinstance(body, dict) else None
    if not isinstance(id_, str) or not id_:
        raise ApiError(400, "id: the X-Request-Id of a request, or the id of its answer, is required")
    return body, id_
