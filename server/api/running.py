"""Requests in work by their ids, so that POST /v1/abort can end them: for clients that can't just hang up.

Filled and read by connection threads. An id is what the client sees of a request: its X-Request-Id (a client may choose
it, and several may choose the same), or the id of an answer in OpenAI's form.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from server.api.request.fields import ABORT
from server.errors import ApiError
from server.records import record
from server.web.message import Request, Response


@record(eq=False)
class Entry:
    """One request in work; `finish` ends it and says whether there was something to end."""

    key_id: str
    finish: Callable[[], bool]


class RunningRequests:
    """The register."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects _entries
        self._entries: dict[str, list[Entry]] = {}

    @contextmanager
    def entry(self, ids: Iterable[str], key_id: str, finish: Callable[[], bool]) -> Iterator[None]:
        """Inside the block, `abort` finds the request under all of its `ids` ("" is none)."""
        entry = Entry(key_id, finish)
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
        """End what runs under this id and came with the same API key; whether there was anything."""
        with self._lock:
            entries = [entry for entry in self._entries.get(id_, ()) if entry.key_id == key_id]
        return any([entry.finish() for entry in entries])


class AbortHandler:
    """`handle` answers POST /v1/abort."""

    def __init__(self, running: RunningRequests) -> None:
        self._running = running

    def handle(self, request: Request) -> Response:
        """Whether something was stopped; another key's requests are as unknown as those that have ended."""
        body = request.json()
        id_ = body.get("id") if isinstance(body, dict) else None
        if not isinstance(id_, str) or not id_:
            raise ApiError(400, "id: give the X-Request-Id of a request, or the id of its answer")
        return ABORT.reply({"id": id_, "stopped": self._running.abort(id_, request.key_id)}, body)
