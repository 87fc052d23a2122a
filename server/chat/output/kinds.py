"""Which types a tool's schema allows for an argument, and the JSON of an argument that came as plain text. Pure.

Only what tells texts from other values is read here; whether a value fits is the grammar's affair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.chat.output.scanner import read_value

Schema = Mapping[str, Any]
DEPTH_MAX = 8
_KINDS = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean", "n": "null"}
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def tool_parameters(tools: Sequence[Mapping[str, Any]]) -> dict[str, Schema]:
    """The schema of each function's arguments, by its name; {} where it has none."""
    functions = [tool.get("function") for tool in tools]
    return {
        function["name"]: parameters if isinstance(parameters := function.get("parameters"), dict) else {}
        for function in functions
        if isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]
    }


def property_of(parameters: Schema, key: str) -> object:
    """The schema of an argument; {} where there is none."""
    properties = parameters.get("properties")
    if isinstance(properties, dict) and key in properties:
        return properties[key]
    return parameters.get("additionalProperties", {})


def kinds_of(schema: object, root: Schema, depth: int = 0) -> frozenset[str] | None:
    """The types of JSON that a schema allows, None if it says nothing about that."""
    if not isinstance(schema, dict) or depth > DEPTH_MAX:
        return None
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return kinds_of(_target(root, reference), root, depth + 1)
    if isinstance(schema.get("enum"), list):
        return frozenset(map(_kind_of, schema["enum"]))
    if "const" in schema:
        return frozenset((_kind_of(schema["const"]),))
    kinds = schema.get("type")
    if isinstance(kinds, (str, list)):
        found = frozenset(kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if isinstance(kind, str))
        return found | {"null"} if schema.get("nullable") is True else found
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list):
            ways = [kinds_of(way, root, depth + 1) for way in schema[keyword]]
            return None if None in ways else frozenset().union(*(way for way in ways if way is not None))
    if isinstance(schema.get("allOf"), list):
        return next((kinds for way in schema["allOf"] if (kinds := kinds_of(way, root, depth + 1))), None)
    return None


def _target(root: Schema, reference: str) -> object:
    """What a reference within the same schema leads to; None if it isn't there."""
    node: object = root
    for segment in reference.split("/")[1:] if reference.startswith("#") else [""]:
        key = segment.replace("~1", "/").replace("~0", "~")
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _kind_of(value: object) -> str:
    return _TYPES.get(type(value), "null")


def fitting_json(text: str, kinds: frozenset[str] | None, is_json: bool) -> str:
    """The JSON for an argument's plain text: what it says as JSON where the schema allows that, else itself as a text.
    With `is_json` the model has said that it is no plain text."""
    value = read_value(text)
    if value is None:
        return json.dumps(text, ensure_ascii=False)
    if is_json:
        return value
    may_be_text = kinds is None or "string" in kinds
    kind = _KINDS.get(value[0], "number")
    if kind == "string":
        return json.dumps(text, ensure_ascii=False) if may_be_text else value
    fits = kinds is None or kind in kinds or kind == "number" and "integer" in kinds
    return json.dumps(text, ensure_ascii=False) if may_be_text and not fits else value
