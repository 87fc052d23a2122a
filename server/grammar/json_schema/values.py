"""Checks whether a value fits a merged shape, and whether two shapes share a value: for enums, fixed keys and oneOf.

Pure functions on connection threads; imports only grammar modules and `records`. This is no general validator: it
checks values that the schema itself contains. Not taken: Python's `re`, which a hostile pattern can stall; patterns are
matched by automaton.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

from server.grammar import automaton
from server.grammar.automaton import Dfa, TooLarge
from server.grammar.json_schema.parts import Conjunction, Part, make_identity
from server.grammar.json_schema.shapes import Document, Shape
from server.grammar.regex_gbnf import Unsupported, compile_pattern
from server.records import replace

_DEPTH_MAX = 3  # levels of objects that are compared
_PAIRS_MAX = 400  # pairs of shapes that are compared
_PRODUCT_MAX = 2000  # states of the intersection of two patterns
_FEW_MAX = 200  # values of a finite set


def kind_of(value: Any) -> str:
    """The JSON type of a value. A float without fraction is an integer."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    return {int: "integer", str: "string", list: "array", dict: "object"}[type(value)]


def make_pattern_dfa(pattern: str) -> Dfa | None:
    """The automaton of the texts that contain a match of a pattern; None if the pattern can't be converted."""
    try:
        return compile_pattern(pattern, search=True)
    except (Unsupported, TooLarge):
        return None


def can_fit(document: Document, value: Any, conjunction: Conjunction) -> bool:
    """Whether a value fits a conjunction. Conditions that can't be checked count as met."""
    return any(can_fit_shape(document, value, shape) for shape in document.make_shapes(conjunction))


def can_fit_shape(document: Document, value: Any, shape: Shape) -> bool:
    """Whether a value fits one merged alternative."""
    document.check_time()
    kind = kind_of(value)
    if kind not in shape.types and not (kind == "integer" and "number" in shape.types):
        return False
    key = make_identity(value) if shape.values is not None or shape.refused_ids else None
    if (shape.values is not None and key not in shape.value_ids) or key in shape.refused_ids:
        return False
    if kind in ("integer", "number"):
        return shape.numbers.can_hold(value)
    if kind == "string":
        return _can_string_fit(document, value, shape)
    if kind == "array":
        return _can_array_fit(document, value, shape)
    return kind != "object" or _can_object_fit(document, value, shape)


def _can_string_fit(document: Document, value: str, shape: Shape) -> bool:
    if len(value) < shape.min_length or (shape.max_length is not None and len(value) > shape.max_length):
        return False
    for pattern, _, is_negative in shape.patterns:
        document.check_time()
        dfa = make_pattern_dfa(pattern)
        if dfa is not None and dfa.can_accept(value, document.check_time) == is_negative:
            return False
    return True


def _can_array_fit(document: Document, value: list, shape: Shape) -> bool:
    most = shape.find_smallest("maxItems")
    if len(value) < shape.find_largest("minItems") or (most is not None and len(value) > most):
        return False
    if any(part.schema["uniqueItems"] for part in shape.list_having("uniqueItems")):
        if len(set(map(make_identity, value))) < len(value):
            return False
    for part in shape.list_having("contains"):
        found = sum(can_fit(document, item, (part.get_at("contains"),)) for item in value)
        if not part.schema.get("minContains", 1) <= found <= part.schema.get("maxContains", len(value)):
            return False
    return all(
        can_fit(document, item, make_item_conjunction(document, shape, index)) for index, item in enumerate(value)
    )


def _can_object_fit(document: Document, value: dict, shape: Shape) -> bool:
    most = shape.find_smallest("maxProperties")
    if len(value) < shape.find_largest("minProperties") or (most is not None and len(value) > most):
        return False
    if not list_required_keys(shape) <= value.keys() or shape.forbidden_keys & value.keys():
        return False
    for part in shape.list_having("propertyNames"):
        if not all(can_fit(document, key, (part.get_at("propertyNames"),)) for key in value):
            return False
    return all(can_fit(document, item, make_key_conjunction(document, shape, key)) for key, item in value.items())


def list_finite_values(document: Document, conjunction: Conjunction) -> list[Any] | None:
    """The values that fit a conjunction, without duplicates; None if they are unknown or more than _FEW_MAX."""
    found: dict[Hashable, Any] = {}
    for shape in document.make_shapes(conjunction):
        candidates = shape.values
        if candidates is None:
            candidates = []
            for kind in shape.types:
                few = _list_few_values(kind, shape)
                if few is None:
                    return None
                candidates += few
        for value in candidates:
            if can_fit_shape(document, value, shape):
                found.setdefault(make_identity(value), value)
    return list(found.values()) if len(found) <= _FEW_MAX else None


def _list_few_values(kind: str, shape: Shape) -> list[Any] | None:
    if kind in ("null", "boolean"):
        return [None] if kind == "null" else [True, False]
    low, high = shape.numbers.low, shape.numbers.high
    if kind == "integer" and low is not None and high is not None:
        first, last = math.ceil(low), math.floor(high)
        return list(range(first, last + 1)) if last - first < _FEW_MAX else None
    return None


def list_required_keys(shape: Shape) -> set[str]:
    return {name for part in shape.list_having("required") for name in part.schema["required"]}


def count_listed(part: Part) -> int:
    """The number of items that a part lists one by one, in `prefixItems` or an array of `items`."""
    first = part.schema.get("items")
    return len(first if isinstance(first, list) else part.schema.get("prefixItems", ()))


def find_item_part(part: Part, index: int) -> Part | None:
    """The schema in a part for the item at an index; None if there is none."""
    is_old = isinstance(part.schema.get("items"), list)
    if index < count_listed(part):
        return part.get_at("items" if is_old else "prefixItems", index)
    rest = "additionalItems" if is_old else "items"
    return part.get_at(rest) if rest in part.schema else None


def make_item_conjunction(document: Document, shape: Shape, index: int) -> Conjunction:
    document.check_time()
    found = [find_item_part(part, index) for part in shape.parts]
    if not any(found):
        found += [part.get_at("unevaluatedItems") for part in shape.list_having("unevaluatedItems")]
    return tuple(dict.fromkeys(document.follow_references(item) for item in found if item is not None))


def make_key_conjunction(document: Document, shape: Shape, key: str) -> Conjunction:
    found = []
    for part in shape.parts:
        schema = part.schema
        matched = []
        if key in schema.get("properties", ()):
            matched.append(part.get_at("properties", key))
        for pattern in schema.get("patternProperties", ()):
            document.check_time()
            dfa = make_pattern_dfa(pattern)
            if dfa is not None and dfa.can_accept(key, document.check_time):
                matched.append(part.get_at("patternProperties", pattern))
        if not matched and "additionalProperties" in schema:
            matched.append(part.get_at("additionalProperties"))
        found += [document.follow_references(match) for match in matched]
    return tuple(found) if len(found) < 2 else tuple(dict.fromkeys(found))


def are_disjoint(document: Document, first: Conjunction, second: Conjunction, depth: int = 0) -> bool:
    """Whether it is certain that no value fits both."""
    document.check_time()
    if len(document.make_shapes(first)) * len(document.make_shapes(second)) > _PAIRS_MAX:
        return False
    return all(
        _are_shapes_disjoint(document, one, two, depth)
        for one in document.make_shapes(first)
        for two in document.make_shapes(second)
    )


def _are_shapes_disjoint(document: Document, one: Shape, two: Shape, depth: int) -> bool:
    for here, other in ((one, two), (two, one)):
        if here.values is not None:
            return not any(
                can_fit_shape(document, value, other) and can_fit_shape(document, value, here) for value in here.values
            )
    tests = {
        "object": lambda: _are_objects_disjoint(document, one, two, depth),
        "string": lambda: _are_strings_disjoint(one, two),
        "number": lambda: _are_numbers_disjoint(one, two),
    }
    for kind in ("object", "array", "string", "number", "boolean", "null"):
        both = all(kind in shape.types or (kind == "number" and "integer" in shape.types) for shape in (one, two))
        if both and not (kind in tests and tests[kind]()):
            return False
    return True


def _are_objects_disjoint(document: Document, one: Shape, two: Shape, depth: int) -> bool:
    if depth >= _DEPTH_MAX:
        return False
    needed, also_needed = list_required_keys(one), list_required_keys(two)
    if needed & two.forbidden_keys or also_needed & one.forbidden_keys:
        return True
    for key in sorted(needed | also_needed):
        here, there = make_key_conjunction(document, one, key), make_key_conjunction(document, two, key)
        if any(part.schema is False for part in (*here, *there)):
            return True
        if key in needed and key in also_needed and are_disjoint(document, here, there, depth + 1):
            return True
    return False


def _are_strings_disjoint(one: Shape, two: Shape) -> bool:
    for here, other in ((one, two), (two, one)):
        if here.max_length is not None and here.max_length < other.min_length:
            return True
    found = [
        make_pattern_dfa(pattern)
        for shape in (one, two)
        for pattern, _, is_negative in shape.patterns
        if not is_negative
    ]
    dfas = [dfa for dfa in found if dfa is not None]
    if not one.patterns or not two.patterns or len(dfas) < max(len(found), 2):
        return False
    try:
        common = dfas[0]
        for dfa in dfas[1:]:
            common = automaton.minimise(automaton.intersect_dfas(common, dfa, _PRODUCT_MAX))
    except TooLarge:
        return False
    return common.is_empty()


def _are_numbers_disjoint(one: Shape, two: Shape) -> bool:
    for here, other in ((one.numbers, two.numbers), (two.numbers, one.numbers)):
        if here.high is not None and other.low is not None:
            if here.high < other.low or (here.high == other.low and (here.high_open or other.low_open)):
                return True
    return False


def without_one_of(part: Part) -> Part:
    """The part without its `oneOf`, as context for its branches."""
    rest = {key: value for key, value in part.schema.items() if key != "oneOf"}
    return replace(part, pointer=f"{part.pointer}#rest", schema=rest)
