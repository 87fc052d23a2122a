"""Requests in work by their ids, so that others can have a say in them: POST /v1/abort ends one, for clients that can't
just hang up, and POST /v1/chat/completions/control its thinking.

Filled and read by connection threads. An id is what the client sees of a request: its X-Request-Id (a client may choose
it, and several may choose the same), or the id of an answer in OpenAI's form.
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
    """One request in work. `finish` ends it, `end_thinking` what the model thinks before it answers; both say whether
    there was something to end."""

    key_id: str
    finish: Callable[[], bool]
    end_thinking: Callable[[], bool]


class RunningRequests:
    """The register."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects _entries
        self._entries: dict[str, list[Entry]] = {}

    @contextmanager
    def entry(
        self,
        ids: Iterable[str],
        key_id: str,
        finish: Callable[[], bool],
        end_thinking: Callable[[], bool] = lambda: False,
    ) -> Iterator[None]:
        """Inside the block the request is found under all of its `ids` ("" is none)."""
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
        """End what runs under this id and came with the same API key; whether there was anything."""
        return any([entry.finish() for entry in self._found(id_, key_id)])

    def end_thinking(self, id_: str, key_id: str) -> bool:
        """Have the models come to their answers, of the same requests; whether one was thinking."""
        return any([entry.end_thinking() for entry in self._found(id_, key_id)])

    def _found(self, id_: str, key_id: str) -> list[Entry]:
        with self._lock:
            return [entry for entry in self._entries.get(id_, ()) if entry.key_id == key_id]


class RunningHandlers:
    """Answers what is asked of requests in work; another key's are as unknown as those that have ended."""

    def __init__(self, running: RunningRequests) -> None:
        self._running = running

    def control(self, request: Request) -> Response:
        """POST /v1/chat/completions/control: whether the model was thinking."""
        body, id_ = _body(request)
        if body.get("action") != "reasoning_end":
            raise ApiError(400, "action: the only one is 'reasoning_end'")
        return CONTROL.reply({"id": id_, "success": self._running.end_thinking(id_, request.key_id)}, body)

    def abort(self, request: Request) -> Response:
        """POST /v1/abort: whether something was stopped."""
        body, id_ = _body(request)
        return ABORT.reply({"id": id_, "stopped": self._running.abort(id_, request.key_id)}, body)


def _body(request: Request) -> tuple[dict[str, Any], str]:
    """A body, and the id of the request that it is about. ApiError 400 without one."""
    body: Any = request.json()
    id_ = body.get("id") if isinstance(body, dict) else None
    if not isinstance(id_, str) or not id_:
        raise ApiError(400, "id: give the X-Request-Id of a request, or the id of its answer")
    return body, id_
