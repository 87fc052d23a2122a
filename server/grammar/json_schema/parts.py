"""The parts of a JSON schema: subschemas with their JSON pointers, references, and the types of keywords.

Runs on connection threads; imports only the standard library and `records`. Not taken: fetching schemas. References to
anything outside are errors.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any
from urllib.parse import unquote, urljoin

from server.records import field, record

SCHEMA = (dict, bool)
# Types of keywords' values.
KINDS: dict[str, tuple[type, ...]] = {
    "properties": (dict,),
    "patternProperties": (dict,),
    "$defs": (dict,),
    "definitions": (dict,),
    "dependentRequired": (dict,),
    "dependentSchemas": (dict,),
    "dependencies": (dict,),
    "allOf": (list,),
    "anyOf": (list,),
    "oneOf": (list,),
    "prefixItems": (list,),
    "enum": (list,),
    "items": (dict, bool, list),
    "additionalItems": SCHEMA,
    "additionalProperties": SCHEMA,
    "unevaluatedItems": SCHEMA,
    "unevaluatedProperties": SCHEMA,
    "propertyNames": SCHEMA,
    "contains": SCHEMA,
    "not": SCHEMA,
    "if": SCHEMA,
    "then": SCHEMA,
    "else": SCHEMA,
    "required": (list,),
    "pattern": (str,),
    "format": (str,),
    "$ref": (str,),
    "$dynamicRef": (str,),
    "$recursiveRef": (str,),
    "uniqueItems": (bool,),
    "nullable": (bool,),
    "type": (str, list),
    "minimum": (int, float),
    "maximum": (int, float),
    "multipleOf": (int, float),
    "exclusiveMinimum": (int, float, bool),
    "exclusiveMaximum": (int, float, bool),
}
# Keywords whose value is a whole number, 0 or more.
COUNTS = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minContains",
    "maxContains",
)


class SchemaError(Exception):
    """A refused schema: a one-line `message` and the JSON `pointer` of the place, such as #/properties/a."""

    def __init__(self, message: str, pointer: str) -> None:
        super().__init__(f"{pointer}: {message}")
        self.message = message
        self.pointer = pointer


@record(frozen=True)
class Part:
    """A subschema and its JSON pointer. Parts are equal if their pointers are."""

    pointer: str
    schema: Any = field(compare=False)

    def get_at(self, *keys: str | int) -> Part:
        """The subschema at a path of keys below this one. Raises `SchemaError`."""
        pointer, schema = self.pointer, self.schema
        for key in keys:
            pointer = f"{pointer}/{escape(key)}"
            schema = schema[key]
        if not isinstance(schema, SCHEMA):
            raise SchemaError("a schema must be an object or a boolean", pointer)
        return Part(pointer, schema)


Conjunction = tuple[Part, ...]
"""Schemas, all of which a value must fit."""


def escape(key: str | int) -> str:
    """A key as a segment of a JSON pointer."""
    return str(key).replace("~", "~0").replace("/", "~1")


def make_identity(value: Any) -> Hashable:
    """A key that is equal for equal JSON values: 1 equals 1.0 but not true, the order of keys doesn't matter."""
    if isinstance(value, list):
        return "array", tuple(map(make_identity, value))
    if isinstance(value, dict):
        return "object", frozenset((key, make_identity(item)) for key, item in value.items())
    return isinstance(value, bool), value


class Resources:
    """The possible targets of a document's references: schemas with an `$id`, anchors, and JSON pointers below them."""

    def __init__(self, root: Part) -> None:
        self.bases: dict[str, str] = {}
        self.parts: dict[str, Part] = {"": root}
        self.dynamic: dict[str, int] = {}
        is_old = isinstance(root.schema, dict) and "draft-04" in str(root.schema.get("$schema", ""))
        stack: list[tuple[Part, str, Any]] = [(root, "", root.schema)]
        while stack:
            part, base, node = stack.pop()
            if isinstance(node, dict):
                base = self.enter(part, base, node, "id" if is_old else "$id")
                stack.extend(
                    (Part(f"{part.pointer}/{escape(key)}", child), base, child)
                    for key, child in node.items()
                    if key not in ("const", "enum", "default", "examples")
                )
            elif isinstance(node, list):
                stack.extend((Part(f"{part.pointer}/{index}", child), base, child) for index, child in enumerate(node))

    def enter(self, part: Part, base: str, node: dict, keyword: str) -> str:
        """Registers the names of a schema; returns the base URI of the references inside it."""
        name = node.get(keyword)
        if isinstance(name, str) and not name.startswith("#"):
            base = urljoin(base, name).rstrip("#")
            self.bases[part.pointer] = base
            self.parts.setdefault(base, part)
        elif isinstance(name, str):
            self.parts.setdefault(base + name, part)
        for key in ("$anchor", "$dynamicAnchor"):
            if isinstance(node.get(key), str):
                self.parts.setdefault(f"{base}#{node[key]}", part)
        if isinstance(node.get("$dynamicAnchor"), str):
            self.dynamic[node["$dynamicAnchor"]] = self.dynamic.get(node["$dynamicAnchor"], 0) + 1
        return base

    def is_dynamic(self, reference: str) -> bool:
        """Whether a dynamic reference has more than one target."""
        return self.dynamic.get(reference.partition("#")[2], 0) > 1

    def find(self, part: Part, reference: str) -> Part | None:
        """The target of a reference in `part`; None if it isn't in this document."""
        where = part.pointer
        while where not in self.bases and where:
            where = where.rpartition("/")[0]
        base = self.bases.get(where, "")
        if reference.startswith("#"):
            address, fragment = base, reference[1:]
        else:
            address, _, fragment = urljoin(base, reference).partition("#")
        if not fragment.startswith("/"):
            return self.parts.get(f"{address}#{fragment}" if fragment else address)
        start = self.parts.get(address)
        return None if start is None else _follow(start, unquote(fragment))


def _follow(start: Part, fragment: str) -> Part | None:
    """The part at a JSON pointer below `start`; None if there is none."""
    node: Any = start.schema
    keys: list[str | int] = []
    for segment in fragment.split("/")[1:]:
        key: Any = segment.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list):
            if not key.isdigit() or len(key) > 9 or int(key) >= len(node):
                return None
            key = int(key)
        elif not isinstance(node, dict) or key not in node:
            return None
        keys.append(key)
        node = node[key]
    return start.get_at(*keys)


def check_kind(pointer: str, key: str, value: Any, kinds: tuple[type, ...]) -> None:
    wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
    if wrong or (isinstance(value, float) and value - value != 0):
        names = {dict: "an object", bool: "a boolean", list: "an array", str: "a string", int: "a number"}
        wanted = " or ".join(names[kind] for kind in kinds if kind is not float)
        raise SchemaError(f"'{key}' must be {wanted}", pointer)
    if key == "required":
        check_names(pointer, value)
    if key in ("allOf", "anyOf", "oneOf", "prefixItems") or (key == "items" and isinstance(value, list)):
        for index, child in enumerate(value):
            if not isinstance(child, SCHEMA):
                raise SchemaError("a schema must be an object or a boolean", f"{pointer}/{index}")


def check_names(pointer: str, names: list) -> None:
    if not all(isinstance(name, str) for name in names):
        raise SchemaError("must be an array of strings", pointer)
