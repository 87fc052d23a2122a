"""Counters of the web process for `/metrics`, beside the engine's own. A leaf, used by any thread.

The label of a refused request is `ApiError.reason`, one of `REASONS`, so the metric always has the same lines. Not
taken: a label with the route or the API key, because the number of lines would grow.
"""

from __future__ import annotations

import threading

REASONS = {
    "invalid": "a field, a file or JSON that is wrong",
    "auth": "no key, or a wrong one",
    "forbidden": "a page of another site, or a foreign host name",
    "not_found": "no such route, method or thing",
    "slow": "a head or a body that did not arrive in time",
    "too_large": "a body, a head or a text that is too long",
    "too_many": "more tasks, inputs or answers in one request than this server takes",
    "context": "a prompt that does not fit the context",
    "rate_limit": "more requests than --rate-limit allows",
    "unsupported": "what this model, or the server as it was started, can't do",
    "queue_full": "all slots are busy and too many requests wait",
    "memory": "all requests together would hold too much memory",
    "connections": "too many connections",
    "unavailable": "the model is loading, or the server is stopping",
    "time_limit": "the request's own time limit",
}


class Refusals:
    """How often a request was refused, by reason."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the numbers
        self._numbers = dict.fromkeys(REASONS, 0)

    def count(self, reason: str) -> None:
        """Count one refusal; "" counts none."""
        if reason:
            with self._lock:
                self._numbers[reason] += 1

    def get_numbers(self) -> dict[str, int]:
        with self._lock:
            return dict(self._numbers)
