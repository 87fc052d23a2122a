"""Exceptions whose message is one line for the user. `ApiError` becomes an HTTP answer, the others stop a start or a
load.

The HTTP edge (`server.web.connection`) writes an `ApiError` in the format of the route's clients.
"""

from __future__ import annotations

import re

TYPE_BY_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
    504: "timeout_error",
}


REASON_BY_STATUS = {
    401: "auth",
    403: "forbidden",
    404: "not_found",
    405: "not_found",
    408: "slow",
    413: "too_large",
    414: "too_large",
    429: "rate_limit",
    431: "too_large",
    501: "unsupported",
    503: "unavailable",
    504: "time_limit",
}
REASON_BY_TYPE = {"exceed_context_size_error": "context"}
SAID_BY_TYPE = {
    "invalid_request_error": "invalid",
    "authentication_error": "auth",
    "permission_error": "forbidden",
    "not_found_error": "not_found",
    "rate_limit_error": "rate_limit",
    "not_supported_error": "unsupported",
    "unavailable_error": "unavailable",
    "timeout_error": "time_limit",
    "exceed_context_size_error": "context",
}
"""The reason that each error type implies. An answer names its reason only if it differs."""

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def make_one_line(message: str) -> str:
    """`message`, which may quote a client or a file, with control characters escaped."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], message)


class ApiError(Exception):
    """An error answer: HTTP `status` and `headers`, one-line `message`, error `type`, `extra` fields for its JSON.

    `reason` is the label under which `/metrics` counts the refusal (see `server.metrics.REASONS`). By default it
    follows from type or status. It is "" where no request was refused: the client has left, or the server failed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str | None = None,
        headers: dict[str, str] | None = None,
        *,
        reason: str = "",
        **extra: object,
    ) -> None:
        message = make_one_line(message)
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type or TYPE_BY_STATUS.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.headers = headers or {}
        by_status = REASON_BY_STATUS.get(status, "invalid" if status < 499 else "")
        self.reason = reason or REASON_BY_TYPE.get(self.type) or by_status
        self.extra = extra


class StartError(Exception):
    """Why the server can't start or a model can't be loaded: one line for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(make_one_line(message))


class PassingError(StartError):
    """The same start may succeed later, for example once a port is free."""


FAILED, MISCONFIGURED = 1, 2
"""Exit codes. FAILED: the same start may succeed later. MISCONFIGURED: options or files must be changed."""
