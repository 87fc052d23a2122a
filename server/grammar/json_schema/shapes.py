"""Analyses a JSON schema before any grammar is written: follows references, multiplies out combinations, merges
constraints.

Runs on connection threads; imports only its folder and `records`. The unit is a *conjunction*: a tuple of schema parts
that must all hold. `Document.list_alternatives` expands its combinators (such as allOf) into lists of parts; each
branch of anyOf becomes a list of its own. `Document.make_shapes` merges each list into a `Shape`. Even a recursive
schema has a finite number of conjunctions. Parts are expanded with an explicit stack, because a hostile schema could
exhaust Python's.

Not taken: rewriting the schema into another one first, because the JSON pointers would be lost.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from server.grammar.json_schema.numbers import Range, compute_common_multiple, make_exact_decimal
from server.grammar.json_schema.parts import (
    COUNTS,
    KINDS,
    Conjunction,
    Part,
    Resources,
    SchemaError,
    check_kind,
    check_names,
    escape,
    make_identity,
)
from server.records import field, record, replace

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_FREE = len(TYPES) - 1  # number of types if all are allowed: merging drops "integer" beside "number"
ALTERNATIVES_MAX = 300  # of one conjunction
SECONDS_MAX = 5  # of CPU time for a conversion
_STEPS_MAX = 6000  # to find the alternatives of one conjunction
_COPIED_MAX = 2_000_000  # parts copied to find them

# Keywords that don't restrict values.
ANNOTATIONS = {
    "title",
    "description",
    "default",
    "examples",
    "example",
    "$schema",
    "$id",
    "id",
    "$comment",
    "$anchor",
    "$dynamicAnchor",
    "$recursiveAnchor",
    "$vocabulary",
    "$defs",
    "definitions",
    "readOnly",
    "writeOnly",
    "deprecated",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "discriminator",
    "xml",
    "externalDocs",
    "strict",
}
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_COMBINATORS = (*_REFERENCES, "allOf", "anyOf", "oneOf", "if", "dependentRequired", "dependentSchemas", "dependencies")
_UNEVALUATED = {"unevaluatedItems", "unevaluatedProperties"}
_IFS = {"if", "dependentSchemas", "dependencies"}
_NO_COMBINATOR = frozenset(_COMBINATORS).isdisjoint
_INERT = {*ANNOTATIONS, *_COMBINATORS, "then", "else", "minContains", "maxContains", "nullable"}
KEYWORDS_BY_TYPE = {
    "object": (
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "unevaluatedProperties",
    ),
    "array": (
        "items",
        "prefixItems",
        "additionalItems",
        "minItems",
        "maxItems",
        "uniqueItems",
        "contains",
        "unevaluatedItems",
    ),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_NO_BOUND = frozenset(_BOUNDS).isdisjoint
# A keyword of this module for a schema that forbids some keys. JSON can't contain it.
FORBIDDEN_KEYS = object()


@record
class Shape:
    """The merged constraints of one alternative. Keywords of objects and arrays stay in `parts`, whose combinators are
    expanded; other keywords become the other fields. If `types` is empty, no value fits."""

    pointer: str
    parts: Conjunction
    types: tuple[str, ...] = TYPES
    values: list[Any] | None = None  # of enum and const; None: any
    value_ids: set[Hashable] = field(default_factory=set)
    refused_values: list[Any] = field(default_factory=list)  # of enum and const below `not`
    refused_ids: set[Hashable] = field(default_factory=set)
    forbidden_keys: set[str] = field(default_factory=set)
    numbers: Range = Range(False)
    min_length: int = 0  # characters
    max_length: int | None = None
    patterns: list[tuple[str, str, bool]] = field(default_factory=list)  # (pattern, pointer, is_negative)
    formats: list[tuple[str, str]] = field(default_factory=list)  # (format, pointer)

    def list_having(self, keyword: str) -> list[Part]:
        return [part for part in self.parts if keyword in part.schema]

    def find_smallest(self, keyword: str) -> int | None:
        """The smallest value of an upper limit such as maxItems; None if no part has it."""
        return min((int(part.schema[keyword]) for part in self.list_having(keyword)), default=None)

    def find_largest(self, keyword: str) -> int:
        """The largest value of a lower limit such as minItems; 0 if no part has it."""
        return max((int(part.schema[keyword]) for part in self.list_having(keyword)), default=0)

    def is_free(self) -> bool:
        """Whether every JSON value fits."""
        return (
            len(self.types) >= _FREE
            and self.values is None
            and not self.refused_values
            and not (self.forbidden_keys)
            and not any(key in part.schema for part in self.parts for keys in KEYWORDS_BY_TYPE.values() for key in keys)
        )


@record
class _Pending:
    """A partly expanded conjunction. `todo`: parts still to expand, each with the pointers that led to it; `flat`:
    parts of the alternative so far; `seen`: pointers of expanded parts."""

    todo: list[tuple[Part, tuple[str, ...]]]
    flat: list[Part]
    seen: set[str]

    def copy(self) -> _Pending:
        return _Pending(list(self.todo), list(self.flat), set(self.seen))


def compute_deadline() -> float:
    """The end of a conversion that begins now, as this thread's CPU time in seconds."""
    return time.thread_time() + SECONDS_MAX


class Document:
    """One schema with its references, warnings and merged shapes."""

    def __init__(self, root: Any, strict: bool, deadline: float) -> None:
        self.root = Part("#", root)
        self.strict = strict
        self.deadline = deadline
        self.warnings: dict[str, None] = {}
        self.one_ofs: dict[str, Part] = {}
        self.copied = 0
        self.merged: dict[tuple[str, ...], list[Shape]] = {}
        self.resources: Resources | None = None
        self.checked: set[str] = set()
        self.ignored: set[str] = set()

    def loosen(self, pointer: str, message: str, fatal: bool = True) -> None:
        """Warns that the grammar differs from the schema; raises `SchemaError` instead if `fatal` and `strict`."""
        if self.strict and fatal:
            raise SchemaError(message + ", and 'strict' is on", pointer)
        self.warnings[f"{pointer}: {message}"] = None

    # References

    def resolve(self, part: Part, keyword: str) -> Part | None:
        """The target of a reference; None, after `loosen`, for a dynamic reference with several targets. Raises
        `SchemaError` if the target isn't in this document."""
        reference = part.schema[keyword]
        pointer = f"{part.pointer}/{keyword}"
        if self.resources is None:
            self.resources = Resources(self.root)
        if keyword == "$dynamicRef" and self.resources.is_dynamic(reference):
            self.loosen(pointer, "a dynamic reference with several targets is not followed")
            return None
        target = self.resources.find(part, reference)
        if target is None:
            outside = "" if reference.startswith("#") else "; nothing is fetched"
            raise SchemaError(f"the reference {reference[:200]!r} has no target in this schema{outside}", pointer)
        return target

    def follow_references(self, part: Part) -> Part:
        """Follows references without siblings, so that a shared definition becomes one rule."""
        seen = set()
        while isinstance(part.schema, dict) and "$ref" in part.schema and part.pointer not in seen:
            self.check_keywords(part)
            if any(key not in ANNOTATIONS for key in part.schema if key != "$ref"):
                break
            seen.add(part.pointer)
            part = self.resolve(part, "$ref") or part
        return part

    # Checking

    def check_time(self) -> None:
        """Raises `SchemaError` when the conversion takes too long. Long loops call it, so that two calls are less than
        a second apart."""
        if time.thread_time() > self.deadline:
            raise SchemaError(f"the conversion takes longer than {SECONDS_MAX} s; simplify the schema", "#")

    def check_keywords(self, part: Part) -> None:
        """Raises `SchemaError` for a keyword whose value has the wrong type."""
        if part.pointer in self.checked or isinstance(part.schema, bool):
            return
        self.checked.add(part.pointer)
        for key, value in part.schema.items():
            kinds = KINDS.get(key)
            if key in COUNTS:
                if not _is_count(value):
                    raise SchemaError(f"'{key}' must be a whole number, 0 or more", f"{part.pointer}/{key}")
            elif kinds is not None:
                check_kind(f"{part.pointer}/{escape(key)}", key, value, kinds)
        if part.schema.get("multipleOf", 1) <= 0:
            raise SchemaError("'multipleOf' must be above 0", f"{part.pointer}/multipleOf")

    # Alternatives

    def list_alternatives(self, conjunction: Conjunction) -> list[Conjunction]:
        """The alternatives of a conjunction, with expanded combinators. Those that contain `false` or lead back to
        themselves are left out. Choices in `ignored` aren't expanded."""
        if all(isinstance(part.schema, dict) and _NO_COMBINATOR(part.schema) for part in conjunction):
            for part in conjunction:
                self.check_keywords(part)
            return [tuple(part for part in dict.fromkeys(conjunction) if not _INERT.issuperset(part.schema))]
        while True:
            result: list[Conjunction] = []
            pending = [_Pending([(part, ()) for part in reversed(conjunction)], [], set())]
            steps = 0
            last_choice = ""
            self.copied = 0
            while pending and len(result) <= ALTERNATIVES_MAX and steps <= _STEPS_MAX:
                steps += 1
                self.check_time()
                found = self._advance(pending.pop(), pending)
                if isinstance(found, str):
                    last_choice = found
                elif found is not None:
                    result.append(found)
            if not pending and len(result) <= ALTERNATIVES_MAX:
                return list(dict.fromkeys(result))
            if last_choice in self.ignored:
                raise SchemaError("too many combinations of alternatives", conjunction[0].pointer)
            self.ignored.add(last_choice)
            self.loosen(last_choice, "not enforced: too many combinations of alternatives")

    def _advance(self, state: _Pending, pending: list[_Pending]) -> Conjunction | str | None:
        """Expands one state until it is an alternative (returned), a choice (its branches are pushed, its pointer is
        returned) or a contradiction (None)."""
        while state.todo:
            part, chain = state.todo.pop()
            if part.schema is False or part.pointer in chain:
                return None
            if part.schema is True or part.pointer in state.seen:
                continue
            state.seen.add(part.pointer)
            self.check_keywords(part)
            if not _INERT.issuperset(part.schema):
                state.flat.append(part)
            if _NO_COMBINATOR(part.schema):
                continue
            chain = (*chain, part.pointer)
            choices = self.list_choices(part)
            targets = [self.resolve(part, key) for key in _REFERENCES if key in part.schema]
            musts = [target for target in targets if target is not None]
            musts += [part.get_at("allOf", index) for index in range(len(part.schema.get("allOf", ())))]
            state.todo += [(must, chain) for must in reversed(musts)]
            pointer = self._branch(state, choices, chain, pending)
            if pointer:
                return pointer
        return tuple(state.flat)

    def _branch(
        self,
        state: _Pending,
        choices: list[tuple[str, list[Conjunction]]],
        chain: tuple[str, ...],
        pending: list[_Pending],
    ) -> str:
        """Pushes one state for each combination that takes one branch of every choice. Choices that make too many
        combinations are ignored, with `loosen`. Returns the pointer of the last choice taken, '' without any."""
        choices = [(pointer, branches) for pointer, branches in choices if pointer not in self.ignored]
        if not choices:
            return ""
        states, n_fit = [state], 0
        for _, branches in choices:
            grown = []
            for current in states:
                for branch in branches:
                    copy = current.copy()
                    copy.todo += [(part, chain) for part in reversed(branch)]
                    grown.append(copy)
                    self.copied += len(copy.todo) + len(copy.flat) + len(copy.seen)
                if self.copied > _COPIED_MAX:
                    break
            if len(grown) > ALTERNATIVES_MAX * 4 or self.copied > _COPIED_MAX:
                break
            states, n_fit = grown, n_fit + 1
        for pointer, _ in choices[n_fit:]:
            self.ignored.add(pointer)
            self.loosen(pointer, "not enforced: too many combinations of alternatives")
        if not n_fit:
            return ""
        pending.extend(reversed(states))
        return choices[n_fit - 1][0]

    def list_choices(self, part: Part) -> list[tuple[str, list[Conjunction]]]:
        """The choices of a part: (pointer, branches). A branch is a conjunction."""
        schema = part.schema
        result: list[tuple[str, list[Conjunction]]] = []
        for key in ("anyOf", "oneOf"):
            if key in schema:
                branches = [self.follow_references(part.get_at(key, index)) for index in range(len(schema[key]))]
                if not branches:
                    raise SchemaError(f"'{key}' must not be empty", f"{part.pointer}/{key}")
                if key == "oneOf" and len(branches) > 1:
                    self.one_ofs[part.pointer] = part
                result.append((f"{part.pointer}/{key}", [(branch,) for branch in branches]))
        if "if" in schema and ("then" in schema or "else" in schema):
            result.append((f"{part.pointer}/if", self._expand_conditional(part)))
        for name, needs in self._list_dependencies(part):
            pointer = f"{part.pointer}/{name}"
            result.append((pointer, [(Part(pointer + "#without", {FORBIDDEN_KEYS: [name]}),), (needs,)]))
        return result

    def _list_dependencies(self, part: Part) -> list[tuple[str, Part]]:
        """All dependencies as pairs (key, schema): an object that has the key must fit the schema."""
        found = []
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            for key, value in part.schema.get(keyword, {}).items():
                pointer = f"{part.pointer}/{keyword}/{escape(key)}"
                if isinstance(value, list) and keyword != "dependentSchemas":
                    check_names(pointer, value)
                    found.append((key, Part(pointer, {"required": value})))
                elif keyword != "dependentRequired":
                    found.append((key, part.get_at(keyword, key)))
                else:
                    raise SchemaError("must be an array of strings", pointer)
        return found

    def _expand_conditional(self, part: Part) -> list[Conjunction]:
        condition = part.get_at("if")
        yes = [part.get_at("then")] if "then" in part.schema else []
        no = [part.get_at("else")] if "else" in part.schema else []
        if isinstance(condition.schema, bool):
            return [tuple(yes if condition.schema else no)]
        self.check_keywords(condition)
        opposites = _find_opposites(condition)
        if opposites is None:
            self.loosen(condition.pointer, "in the 'else' case, values are not checked against 'if'")
            opposites = [()]
        return [(condition, *yes), *((*opposite, *no) for opposite in opposites)]

    # Merging

    def make_shapes(self, conjunction: Conjunction) -> list[Shape]:
        """The merged alternatives of a conjunction, without those whose `types` are empty. Other contradictions stay:
        const 1 and const 2 give a shape with empty `values`."""
        key = tuple(part.pointer for part in conjunction)
        if key not in self.merged:
            self.check_time()
            shapes = [self._merge(conjunction, parts) for parts in self.list_alternatives(conjunction)]
            self.merged[key] = [shape for shape in shapes if shape.types]
        return self.merged[key]

    def _merge(self, conjunction: Conjunction, parts: Conjunction) -> Shape:
        shape = Shape(conjunction[0].pointer if conjunction else "#", parts)
        self._warn_unevaluated(conjunction, parts)
        explicit = False
        for part in parts:
            explicit |= self._absorb(shape, part)
        if not explicit:
            implied = tuple(
                kind
                for kind, keys in KEYWORDS_BY_TYPE.items()
                if any(key in part.schema for part in parts for key in keys)
            )
            if implied:
                shape.types = tuple(kind for kind in shape.types if kind in implied)
        if "number" in shape.types:
            shape.types = tuple(kind for kind in shape.types if kind != "integer")
        shape.value_ids.update(map(make_identity, shape.values or ()))
        shape.refused_ids.update(map(make_identity, shape.refused_values))
        return shape

    def _warn_unevaluated(self, conjunction: Conjunction, parts: Conjunction) -> None:
        """Warns where `unevaluated...` may not be exact. It should skip what its own schema evaluates, but skips what
        any merged part evaluates. Both are the same for a conjunction's only part, if it has no condition."""
        for part in parts:
            for keyword in sorted(_UNEVALUATED & part.schema.keys()):
                if len(conjunction) > 1 or part != conjunction[0] or _IFS & part.schema.keys():
                    self.loosen(f"{part.pointer}/{keyword}", "not exact in a combination of schemas")

    def _absorb(self, shape: Shape, part: Part) -> bool:
        """Merges one part into the shape; returns whether it says which types fit: by `type`, `const`, `enum` or a
        `not` that implies one."""
        schema = part.schema
        if FORBIDDEN_KEYS in schema:
            shape.forbidden_keys.update(schema[FORBIDDEN_KEYS])
            return False
        explicit = False
        if "type" in schema:
            shape.types = _find_common_types(shape.types, _read_types(part))
            explicit = True
        values = [schema["const"]] if "const" in schema else None
        if "enum" in schema:
            if not schema["enum"]:
                raise SchemaError("'enum' must not be empty", f"{part.pointer}/enum")
            enum = schema["enum"] + ([None] if schema.get("nullable") and "type" in schema else [])
            values = enum if values is None else _find_common_values(values, enum)
        if values is not None:
            shape.values = values if shape.values is None else _find_common_values(shape.values, values)
            explicit = True
        for keyword in () if _NO_BOUND(schema) else _BOUNDS:
            if keyword in schema:
                shape.numbers = _bound_range(shape.numbers, keyword, schema)
        if "minLength" in schema:
            shape.min_length = max(shape.min_length, int(schema["minLength"]))
        if "maxLength" in schema:
            most = int(schema["maxLength"])
            shape.max_length = most if shape.max_length is None else min(most, shape.max_length)
        if "pattern" in schema:
            shape.patterns.append((schema["pattern"], f"{part.pointer}/pattern", False))
        if "format" in schema:
            shape.formats.append((schema["format"], f"{part.pointer}/format"))
        return self._absorb_not(shape, part) or explicit if "not" in schema else explicit

    def _absorb_not(self, shape: Shape, part: Part) -> bool:
        """Merges `not`, in the forms that can be enforced; returns whether it implies a type."""
        inner = part.get_at("not")
        self.check_keywords(inner)
        schema = inner.schema
        if isinstance(schema, bool):
            shape.types = shape.types if schema is False else ()
            return False
        keys = {key for key in schema if key not in ANNOTATIONS}
        if not keys:
            shape.types = ()
        elif keys == {"type"} and not ("integer" in _read_types(inner) and "number" in shape.types):
            refused = _read_types(inner)
            refused += ("integer",) if "number" in refused else ()
            shape.types = tuple(kind for kind in shape.types if kind not in refused)
        elif keys in ({"const"}, {"enum"}):
            shape.refused_values += [schema["const"]] if "const" in schema else schema["enum"]
        elif keys == {"required"} and len(schema["required"]) == 1:
            shape.types = tuple(kind for kind in shape.types if kind == "object")
            shape.forbidden_keys.update(schema["required"])
            return True
        elif keys == {"pattern"}:
            shape.types = tuple(kind for kind in shape.types if kind == "string")
            shape.patterns.append((schema["pattern"], f"{inner.pointer}/pattern", True))
            return True
        else:
            self.loosen(inner.pointer, "'not' is not enforced")
        return False


def _is_count(value: Any) -> bool:
    """Whether a value is a whole number, 0 or more. 2.0 counts as 2."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and value >= 0 and value == int(value)


def _find_common_values(first: list[Any], second: list[Any]) -> list[Any]:
    known = set(map(make_identity, second))
    return [value for value in first if make_identity(value) in known]


def _read_types(part: Part) -> tuple[str, ...]:
    names = part.schema["type"]
    names = [names] if isinstance(names, str) else names
    for name in names:
        if name not in TYPES:
            raise SchemaError(f"{name!r} is not a JSON type; the types are {', '.join(TYPES)}", f"{part.pointer}/type")
    if not names:
        raise SchemaError("'type' must not be empty", f"{part.pointer}/type")
    return (*names, "null") if part.schema.get("nullable") else tuple(names)


def _find_common_types(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    if first is TYPES and len(second) == 1:
        return second
    return tuple(kind for kind in TYPES if _can_admit(first, kind) and _can_admit(second, kind))


def _can_admit(types: tuple[str, ...], kind: str) -> bool:
    return kind in types or (kind == "integer" and "number" in types)


def _bound_range(numbers: Range, keyword: str, schema: dict) -> Range:
    """The range with one more keyword. In draft 4 a boolean says that the bound is excluded."""
    value = schema[keyword]
    if isinstance(value, bool):
        return numbers
    if keyword == "multipleOf":
        return replace(numbers, multiple=compute_common_multiple(numbers.multiple, Fraction(make_exact_decimal(value))))
    bound = make_exact_decimal(value)
    is_low = keyword in ("minimum", "exclusiveMinimum")
    is_open = keyword.startswith("exclusive") or schema.get("exclusive" + keyword.capitalize()) is True
    if is_low and _is_tighter(bound, is_open, numbers.low, numbers.low_open, +1):
        return replace(numbers, low=bound, low_open=is_open)
    if not is_low and _is_tighter(bound, is_open, numbers.high, numbers.high_open, -1):
        return replace(numbers, high=bound, high_open=is_open)
    return numbers


def _is_tighter(bound: Decimal, is_open: bool, old: Decimal | None, old_open: bool, direction: int) -> bool:
    if old is None or bound == old:
        return old is None or (is_open and not old_open)
    return (bound > old) == (direction > 0)


def _find_opposites(condition: Part) -> list[Conjunction] | None:
    """The negation of an `if` that tests one property by `const`, `enum` or `type` alone; None for all others. It is
    exact for objects only."""
    schema = condition.schema
    keys = {key for key in schema if key not in ANNOTATIONS} - {"type"}
    names = list(schema.get("properties", ()))
    required = schema.get("required", [])
    if not keys <= {"properties", "required"} or len(names) != 1 or not set(required) <= set(names):
        return None
    if schema.get("type", "object") != "object" or not isinstance(schema["properties"][names[0]], dict):
        return None
    name = names[0]
    value = schema["properties"][name]
    said = {key for key in value if key not in ANNOTATIONS}
    if said not in ({"const"}, {"enum"}, {"type"}):
        return None
    base = condition.pointer
    differs = {"type": "object", "required": [name], "properties": {name: {"not": value}}}
    opposites: list[Conjunction] = [(Part(f"{base}#not", differs),)]
    if required:
        opposites.append((Part(f"{base}#without", {FORBIDDEN_KEYS: [name]}),))
    return opposites
