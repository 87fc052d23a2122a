"""Converts records to dicts for JSON and back, for files that later versions of the program read.

Pure functions, for both processes. Fields with their default value are written, too, since defaults change. Not taken:
the form of messages in `wire`. It has no field names, so only the same version can read it.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Container
from typing import Any

from server.records import fields, is_record

FLOATS = {"inf": math.inf, "-inf": -math.inf}  # JSON has no infinities

encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, sort_keys=True).encode
"""Writes a plain value as canonical ASCII, so that texts or their hashes can be compared."""


def to_plain(value: Any, without: Container[str] = ()) -> Any:
    """The value for JSON: records as dicts, tuples as lists, infinities and the keys of dicts as strings. Fields that
    hold bytes are left out; of the record `value` also the fields in `without`."""
    if is_record(value):
        found = {field.name: getattr(value, field.name) for field in fields(value) if field.name not in without}
        return {name: to_plain(one) for name, one in found.items() if not isinstance(one, (bytes, bytearray))}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): to_plain(item) for name, item in value.items()}
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def from_plain(kind: Any, value: Any) -> Any:
    """Make a value of the type `kind` from what `to_plain` returned. Unknown fields are ignored, missing ones get their
    defaults. Keys of dicts stay strings. ValueError or TypeError if the value has another type, or lacks a field that
    has no default.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_record(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{kind.__name__} is not an object")
        hints = typing.get_type_hints(kind)
        make: Any = kind
        return make(**{name: from_plain(hints[name], one) for name, one in value.items() if name in hints})
    if origin in (typing.Union, types.UnionType):
        return None if value is None else from_plain(next(one for one in arguments if one is not types.NoneType), value)
    if origin is tuple and not isinstance(value, (list, tuple)) or origin is dict and not isinstance(value, dict):
        raise ValueError(f"{str(value)[:40]!r} is not of the type {origin.__name__}")
    if origin is tuple:
        kinds = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            raise ValueError(f"{len(value)} values instead of {len(kinds)}")
        return tuple(from_plain(one, item) for one, item in zip(kinds, value))
    if origin is dict:
        return {name: from_plain(arguments[1], item) for name, item in value.items()}
    if kind is float:
        if isinstance(value, str) and value not in FLOATS:
            raise ValueError(f"{value[:40]!r} is not a number")
        return FLOATS[value] if isinstance(value, str) else float(value)
    if kind is Any:
        return tuple(from_plain(Any, item) for item in value) if isinstance(value, list) else value
    if type(value) is not kind:
        raise ValueError(f"{str(value)[:40]!r} is not of the type {kind.__name__}")
    return value
