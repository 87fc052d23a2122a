"""Finds the types that a tool's schema allows for an argument, and makes JSON of arguments that models write as plain
text or as nested elements. Pure.

The schema only serves to tell strings from other values, and lists from objects. Nested elements have a tag for each
key, in formats whose closing tags name the key. Elements that are all called `item` are a list, unless the schema
allows objects and no lists. In such formats, if the schema allows no string, blank text is an empty list or object, or
null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.chat.output.formats import KEY, ParameterCall
from server.chat.output.scanner import read_value

Schema = Mapping[str, Any]
DEPTH_MAX = 50  # levels of nested elements, and of schemas
ITEM = "item"
_KINDS = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean", "n": "null"}
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def read_tool_parameters(tools: Sequence[Mapping[str, Any]]) -> dict[str, Schema]:
    """The schema of each function's arguments, by the function's name; {} if there is none."""
    functions = [tool.get("function") for tool in tools]
    return {
        function["name"]: parameters if isinstance(parameters := function.get("parameters"), dict) else {}
        for function in functions
        if isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]
    }


def property_of(parameters: Schema, key: str) -> object:
    """The schema of one argument; {} if there is none."""
    properties = parameters.get("properties")
    if isinstance(properties, dict) and key in properties:
        return properties[key]
    return parameters.get("additionalProperties", {})


Kinds = frozenset[str] | None


def kinds_of(schema: object, root: Schema) -> Kinds:
    """The JSON types that a schema allows; None if it doesn't restrict them."""
    return _find_kinds(schema, root, {}, 0)


def _find_kinds(schema: object, root: Schema, known: dict[int, Kinds], depth: int) -> Kinds:
    if not isinstance(schema, dict) or depth > DEPTH_MAX:
        return None
    if id(schema) not in known:
        known[id(schema)] = None  # a reference to itself restricts nothing
        known[id(schema)] = _find_own_kinds(schema, root, known, depth + 1)
    return known[id(schema)]


def _find_own_kinds(schema: Schema, root: Schema, known: dict[int, Kinds], depth: int) -> Kinds:
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _find_kinds(_find_target(root, reference), root, known, depth)
    if isinstance(schema.get("enum"), list):
        return frozenset(map(_kind_of, schema["enum"]))
    if "const" in schema:
        return frozenset((_kind_of(schema["const"]),))
    kinds = schema.get("type")
    if isinstance(kinds, (str, list)):
        found = frozenset(kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if isinstance(kind, str))
        return found | {"null"} if schema.get("nullable") is True else found
    for keyword in ("anyOf", "oneOf", "allOf"):
        ways = schema.get(keyword)
        if isinstance(ways, list):
            each = [_find_kinds(way, root, known, depth) for way in ways]
            if keyword == "allOf":
                return next((kinds for kinds in each if kinds), None)
            return None if None in each else frozenset().union(*(kinds for kinds in each if kinds))
    return None


def _find_target(root: Schema, reference: str) -> object:
    """The target of a reference inside the same schema; None if it doesn't exist."""
    node: object = root
    for segment in reference.split("/")[1:] if reference.startswith("#") else [""]:
        key = segment.replace("~1", "/").replace("~0", "~")
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _kind_of(value: object) -> str:
    return _TYPES.get(type(value), "null")


def make_fitting_json(text: str, kinds: frozenset[str] | None, is_json: bool) -> str:
    """The JSON for an argument's plain text. JSON stays, other text becomes a JSON string. If the schema allows
    strings, JSON strings and JSON of types that it doesn't allow become one too, unless the model has marked them as
    JSON (`is_json`)."""
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


class NoElements(Exception):
    """The text isn't made of elements."""


def make_elements_json(text: str, call: ParameterCall, schema: object, root: Schema) -> str | None:
    """The JSON of a text that consists of elements or is empty; None for any other text."""
    if text.strip() and not text.lstrip().startswith(call.before_key.strip()):
        return None
    try:
        value, end = _Elements(text, call, root).parse_value(0, schema, 0)
    except NoElements:
        return None
    return None if text[end:].strip() else value


class _Elements:
    def __init__(self, text: str, call: ParameterCall, root: Schema) -> None:
        self.text = text
        self.open = call.before_key.strip()
        self.open_end = call.after_key.strip()
        self.close, _, self.close_end = (part.strip() for part in call.after_value.partition(KEY))
        self.root = root

    def parse_value(self, at: int, schema: object, depth: int) -> tuple[str, int]:
        """The value from `at` to the next closing tag or the end of the text: (JSON, end)."""
        start = self.skip(at)
        if depth == DEPTH_MAX:
            raise NoElements
        if self.text.startswith(self.open, start) and not self.text.startswith(self.close, start):
            return self.parse_elements(start, schema, depth)
        end = self.text.find(self.close, at)
        end = len(self.text) if end < 0 else end
        kinds = kinds_of(schema, self.root)
        raw = self.text[at:end]
        if not raw.strip() and kinds is not None and "string" not in kinds:
            return "[]" if "array" in kinds else "{}" if "object" in kinds else "null", end
        return make_fitting_json(raw, kinds, False), end

    def parse_elements(self, at: int, schema: object, depth: int) -> tuple[str, int]:
        """Consecutive elements, as an object or a list: (JSON, end)."""
        kinds = kinds_of(schema, self.root)
        found: list[tuple[str, str]] = []
        while self.text.startswith(self.open, at) and not self.text.startswith(self.close, at):
            end = self.text.find(self.open_end, at + len(self.open))
            if end < 0:
                raise NoElements
            key = self.text[at + len(self.open) : end]
            value, at = self.parse_value(end + len(self.open_end), _schema_of(schema, key), depth + 1)
            closing = f"{self.close}{key}{self.close_end}"
            if not self.text.startswith(closing, at):
                raise NoElements
            found.append((key, value))
            at = self.skip(at + len(closing))
        is_list = all(key == ITEM for key, _ in found) and (kinds is None or "object" not in kinds or "array" in kinds)
        if is_list:
            return f"[{', '.join(value for _, value in found)}]", at
        return f"{{{', '.join(f'{json.dumps(key, ensure_ascii=False)}: {value}' for key, value in found)}}}", at

    def skip(self, at: int) -> int:
        while at < len(self.text) and self.text[at].isspace():
            at += 1
        return at


def _schema_of(schema: object, key: str) -> object:
    """The schema of the element `key` inside a value that has `schema`."""
    if not isinstance(schema, dict):
        return {}
    return schema["items"] if key == ITEM and isinstance(schema.get("items"), dict) else property_of(schema, key)
