"""GET /slots/timeline: what each slot did in the last minute, how many tasks waited, and the owners of the tasks.

Runs on a connection thread. A span is a time in which a slot was in one phase of one task. Owners are shown as short
hashes, salted per process.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from typing import Any

from server.api.context import Context
from server.errors import ApiError
from server.web.message import Request, Response, make_json_response

SECONDS = 60.0  # the length of the timeline
JUST_NOW = 0.01  # seconds; the least `to` of a span that has ended, because 0 means that the span goes on


class TimelineHandler:
    """Answers 501 where slots are hidden."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._salt = os.urandom(16)

    def show(self, request: Request) -> Response:
        """The timeline. Times are seconds before now; a span that goes on has `to` 0."""
        if not self._context.options.slots:
            raise ApiError(501, "This server does not support slots endpoint. Start it with `--slots`")
        engine = self._context.models.get_known(request.query.get("model"), request.key_id).engine
        now, spans, waits = engine.timeline.list_since(SECONDS)
        shown = [
            {
                "id_slot": span.id_slot,
                "id_task": span.id_task,
                "owner": self._make_name(span.owner),
                "state": span.phase,
                "from": round(min(SECONDS, now - span.start), 2),
                "to": 0.0 if span.end is None else max(round(now - span.end, 2), JUST_NOW),
            }
            for span in spans
        ]
        return make_json_response(
            {
                "seconds": SECONDS,
                "slots": len(engine.snapshot.slots),
                "spans": shown,
                "waiting": [{"from": round(min(SECONDS, now - time), 2), "n": n} for time, n in waits],
                "owners": self._list_owners(shown, engine.list_waiting_owners(), self._make_name(request.owner)),
            }
        )

    def _list_owners(self, spans: list[dict[str, Any]], waiting: list[str], mine: str) -> list[dict[str, Any]]:
        """For each owner, the busiest first: `seconds` in slots, and the number of tasks `working` and `waiting`."""
        seconds: Counter[str] = Counter()
        for span in spans:
            seconds[span["owner"]] += span["from"] - span["to"]
        working = Counter(span["owner"] for span in spans if span["to"] == 0.0)
        queued = Counter(map(self._make_name, waiting))
        names = sorted({*seconds, *queued}, key=lambda name: -seconds[name])
        return [
            {
                "owner": name,
                "is_you": name == mine,
                "seconds": round(seconds[name], 2),
                "working": working[name],
                "waiting": queued[name],
            }
            for name in names
        ]

    def _make_name(self, owner: str) -> str:
        return hashlib.sha256(self._salt + owner.encode()).hexdigest()[:6]
