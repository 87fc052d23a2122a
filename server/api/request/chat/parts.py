"""Reads fields of the blocks and items that some dialects have instead of messages, and makes parts of messages. Pure;
any thread. An error names the place of the field in the request."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from server.errors import ApiError

Part = dict[str, Any]


def require_text(block: Mapping[str, Any], name: str, where: str) -> str:
    """A required text of a block. ApiError 400."""
    if not isinstance(block.get(name), str):
        raise ApiError(400, f"{where}.{name} is not a string")
    return block[name]


def is_true(block: Mapping[str, Any], name: str, where: str) -> bool:
    """The value of an optional boolean field; False if it is absent. ApiError 400."""
    value = block.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{where}.{name} is neither true nor false")
    return bool(value)


def one_of(known: Collection[str], value: object, where: str) -> str:
    """A word that must be one of `known`. ApiError 400."""
    if not isinstance(value, str) or value not in known:
        raise ApiError(400, f"{where}: {str(value)[:40]!r} is unknown; use one of {', '.join(known)}")
    return value


def make_text_part(text: str) -> Part:
    return {"type": "text", "text": text}


def join_parts(parts: list[Part]) -> str | list[Part]:
    """The content of a message with these parts. A single text becomes a string, which all templates accept."""
    if len(parts) == 1 and not parts[0].get("is_media"):
        return parts[0]["text"]
    return parts or ""
