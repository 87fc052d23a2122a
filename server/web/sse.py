"""Server-sent events: pure functions from objects to bytes."""

from __future__ import annotations

from server.web.message import to_json

DONE = b"data: [DONE]\n\n"


def encode_event(obj: object) -> bytes:
    """`data: {json}` and an empty line."""
    return b"data: " + to_json(obj) + b"\n\n"


def encode_named_event(name: str, obj: object) -> bytes:
    """`event: name` before the data line. `name` is a constant of ours, never a client's text."""
    return f"event: {name}\n".encode("ascii") + encode_event(obj)


def comment(text: str) -> bytes:
    """A line that clients ignore, to keep a quiet stream open."""
    return b": " + " ".join(text.split()).encode("utf-8", "replace") + b"\n\n"


PING = comment("ping")
