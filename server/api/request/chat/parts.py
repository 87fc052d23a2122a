"""Fields of blocks and items, as dialects other than OpenAI's chat have them in the place of messages: read with the
place that an error names, and made parts of a message. Connection thread; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from server.errors import ApiError

Part = dict[str, Any]


def required(block: Mapping[str, Any], name: str, where: str) -> str:
    """A text that a block must have."""
    if not isinstance(block.get(name), str):
        raise ApiError(400, f"{where}.{name} is not a string")
    return block[name]


def is_true(block: Mapping[str, Any], name: str, where: str) -> bool:
    """Whether a field says yes; absent, it says no."""
    value = block.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{where}.{name} is neither true nor false")
    return bool(value)


def one_of(known: Collection[str], value: object, where: str) -> str:
    """A word that has to be a known one."""
    if not isinstance(value, str) or value not in known:
        raise ApiError(400, f"{where}: {str(value)[:40]!r} is unknown; known are {', '.join(known)}")
    return value


def text_part(text: str) -> Part:
    """A part of a message."""
    return {"type": "text", "text": text}


def joined(parts: list[Part]) -> str | list[Part]:
    """Content of a message: of one text that text, which all templates read."""
    if len(parts) == 1 and not parts[0].get("is_media"):
        return parts[0]["text"]
    return parts or ""
