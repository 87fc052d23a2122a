"""Simplifies the schemas of tools for templates that fail with the original ones. Pure, any thread.

Some templates read `description`, `type` and `parameters` without checking that they exist, or recurse endlessly in a
schema without a type. OpenAI's API requires none of these fields. Only the schema shown to the model is simplified; the
arguments that it may generate follow the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_DEPTH = 20  # levels of a schema; deeper ones become a string
TYPES = ("string", "integer", "number", "boolean", "array", "object")
ANY: dict[str, Any] = {"type": "string", "description": ""}


def simplify_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tools with simplified schemas. Each function gets a description and parameters if it has none."""
    plain = []
    for tool in tools:
        function = tool.get("function")
        function = function if isinstance(function, dict) else {}
        parameters = {
            "properties": {},
            **simplify_schema({"type": "object", **_ensure_dict(function.get("parameters"))}),
        }
        plain.append({**tool, "function": {"description": "", **function, "parameters": parameters}})
    return plain


def simplify_schema(schema: object, depth: int = 0) -> dict[str, Any]:
    """The schema with a description and one type per level. Without a type, the first typed alternative (`anyOf` etc.)
    is merged in. Arrays get `items`, nested objects `additionalProperties`."""
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return dict(ANY)
    ways = [way for name in ("anyOf", "oneOf", "allOf") for way in _list(schema.get(name))]
    typed = [way for way in ways if isinstance(way, dict) and way.get("type") not in (None, "null")]
    found = {"description": "", **(typed[0] if typed and "type" not in schema else {}), **schema}
    kinds = found.get("type") if isinstance(found.get("type"), list) else [found.get("type")]
    likely = "object" if "$ref" in found or "properties" in found else "string"
    found["type"] = next((kind for kind in kinds if kind in TYPES), likely)
    if isinstance(found.get("properties"), dict):
        found["properties"] = {key: simplify_schema(value, depth + 1) for key, value in found["properties"].items()}
    if found["type"] == "array" or "items" in found:
        found["items"] = simplify_schema(found.get("items"), depth + 1)
    if found["type"] == "object" and depth:
        found["additionalProperties"] = simplify_schema(found.get("additionalProperties"), depth + 1)
    return found


def _ensure_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
