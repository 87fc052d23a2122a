"""Converts the properties of an object one by one, for tool call formats whose arguments aren't a JSON object. Strings
get a grammar of plain text that ends at a closing text; other values get one of JSON.

Runs on connection threads; imports only grammar modules and `records`. Results are cached. Plain text with a length or
pattern never contains the first character of the closing text. Free strings inside JSON values contain that character
only as an escape. The caller decides on the order and number of properties.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from server.grammar import automaton
from server.grammar.automaton import ANY, Charset, Dfa, has_code, without
from server.grammar.gbnf_build import Builder, make_choice, make_factored, make_literal, print_dfa
from server.grammar.json_schema.containers import PROPERTIES_MAX, list_declared_keys
from server.grammar.json_schema.convert import Converter, make_checked_text, settle
from server.grammar.json_schema.parts import Conjunction, SchemaError
from server.grammar.json_schema.shapes import Document, Shape
from server.grammar.json_schema.strings import make_char_without, make_value_expression
from server.grammar.json_schema.values import can_fit, can_fit_shape, kind_of, list_required_keys, make_key_conjunction
from server.records import record

KINDS = ("string", "number", "boolean", "null", "object", "array")
FREE = "plain"
LEFT_OUT = "strings of this form can't be written in this format and are left out"
_WAYS_MAX = 20  # alternatives of the whole object
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_LIKE_JSON = '-0123456789tfnTFN{[" \t\r\n'  # first characters of texts that could be read as a value of another type


@record(frozen=True)
class Member:
    """A property. `text`: the rule for its strings as plain text, "" if there are none. `json`: (kind, rule) for its
    values as JSON."""

    key: str
    is_required: bool
    text: str
    json: tuple[tuple[str, str], ...]


@record(frozen=True)
class Members:
    """The alternatives of an object (`ways`), each as its properties, and the rules that these use."""

    ways: tuple[tuple[Member, ...], ...]
    rules: dict[str, str]
    warnings: tuple[str, ...]


def convert_members(schema: object, close: str, *, is_marked: bool, strict: bool) -> Members:
    """The properties of the objects that fit a schema. `close` ends plain text and is no part of it; if it is "",
    strings are JSON. With `is_marked` the format marks which values are strings; otherwise a string must not look like
    a value of another type that fits. Raises `SchemaError`."""
    return _convert_text(make_checked_text(schema), close, is_marked, strict)


@lru_cache(maxsize=64)
def _convert_text(text: str, close: str, is_marked: bool, strict: bool) -> Members:
    def make_converter(document: Document, dead: set[tuple[str, ...]]) -> _MemberConverter:
        return _MemberConverter(document, dead, close, is_marked)

    _, converter = settle(json.loads(text), strict, make_converter)
    rules = {name: body or '""' for name, body in converter.builder.rules.items()}
    if close and "char" in rules:
        rules["char"] = make_char_without(close[0])
    return Members(tuple(map(tuple, converter.ways)), rules, tuple(converter.document.warnings))


@lru_cache(maxsize=16)
def free_text(close: str) -> dict[str, str]:
    """The rules of any plain text that `close` ends; the first one is FREE."""
    builder = Builder()
    root = builder.reserve(FREE)
    builder.rules[root] = print_dfa(builder, automaton.make_avoiding(close), FREE, builder.make_char_class)
    return {name: body or '""' for name, body in builder.rules.items()}


def guess_kind(text: str) -> str:
    """The kind of value that a text looks like; "string" if like no other."""
    text = text.strip()
    if text[:1] in ("{", "["):
        return "object" if text[0] == "{" else "array"
    if text.lower() in ("true", "false"):
        return "boolean"
    if text.lower() in ("null", "none"):
        return "null"
    return "number" if _NUMBER.fullmatch(text) else "string"


class _MemberConverter(Converter):
    """A conversion whose root is the properties of an object."""

    def __init__(self, document: Document, dead: set[tuple[str, ...]], close: str, is_marked: bool) -> None:
        super().__init__(document, dead)
        self.builder.rules.update(free_text(close) if close else {})
        self.close = close
        self.is_marked = is_marked
        self.ways: list[list[Member]] = []

    def run(self) -> str | None:
        """Fills `ways`; returns None if there are none."""
        root = (self.document.follow_references(self.document.root),)
        needs = self.needs.setdefault(("members",), [])
        shapes = [shape for shape in self.document.make_shapes(root) if "object" in shape.types]
        if len(shapes) > _WAYS_MAX:
            raise SchemaError(f"more than {_WAYS_MAX} alternatives of the whole object", root[0].pointer)
        for shape in shapes:
            inside: list[tuple[str, ...]] = []
            members = self.make_members(shape, inside)
            if members is not None:
                self.ways.append(members)
                needs.append(inside)
        if not self.ways:
            self.note_contradiction(root[0].pointer, "no object fits this schema")
        self.write_queue()
        self.check_one_ofs()
        return "members" if self.ways else None

    def make_members(self, shape: Shape, needs: list[tuple[str, ...]]) -> list[Member] | None:
        """The properties of a shape's objects; None if a required one can have no value."""
        required = list_required_keys(shape)
        names = tuple(part.get_at("propertyNames") for part in shape.list_having("propertyNames"))
        found = []
        keys = list_declared_keys(shape)
        if len(keys) > PROPERTIES_MAX:
            raise SchemaError(f"more than {PROPERTIES_MAX} properties in one object", shape.pointer)
        for key in keys:
            conjunction = make_key_conjunction(self.document, shape, key)
            allowed = key not in shape.forbidden_keys and (not names or can_fit(self.document, key, names))
            member = self.make_member(key, key in required, conjunction) if allowed else None
            if member is None and key in required:
                self.note_contradiction(shape.pointer, f"the required property {key!r} can have no value")
                return None
            if member is not None:
                found.append(member)
                if key in required:
                    needs.append(tuple(part.pointer for part in conjunction))
        self.warn_of_counts(shape, len(required), len(found))
        return found

    def warn_of_counts(self, shape: Shape, least: int, most: int) -> None:
        """Warns that bounds of the number of properties aren't enforced, unless they always hold."""
        for keyword, is_kept in {
            "minProperties": shape.find_largest("minProperties") <= least,
            "maxProperties": most <= (shape.find_smallest("maxProperties") or 0),
        }.items():
            for part in [] if is_kept else shape.list_having(keyword):
                self.document.loosen(f"{part.pointer}/{keyword}", "not enforced in this format")

    def make_member(self, key: str, is_required: bool, conjunction: Conjunction) -> Member | None:
        """A property; None if it has no value."""
        pointers = tuple(part.pointer for part in conjunction)
        shapes = [] if pointers in self.dead else self.document.make_shapes(conjunction)
        found: dict[str, list[str]] = {kind: [] for kind in KINDS}
        named: list[tuple[str, str]] = []  # (text, pointer)
        for shape in shapes:
            if shape.values is not None:
                for value in shape.values:
                    if can_fit_shape(self.document, value, shape):
                        self.add_value(value, shape.pointer, named, found)
                continue
            for kind in shape.types:
                if kind == "string" and self.close:
                    continue
                inside: list[Conjunction] = []
                expression = self.make_typed_expression(kind, shape, key, inside)
                if expression is not None:
                    found["number" if kind == "integer" else kind].append(expression)
        strings = [shape for shape in shapes if self.close and shape.values is None and "string" in shape.types]
        others = [kind for kind, ways in found.items() if ways]
        is_free = any(shape.is_free() for shape in shapes)
        must_differ = not (self.is_marked or is_free or set(others) <= {"null"})
        texts: list[str] = []
        for word, pointer in named:
            if self.close not in word and (self.is_marked or guess_kind(word) not in others):
                texts.append(make_literal(word))
            else:
                self.document.loosen(pointer, LEFT_OUT, fatal=False)
        texts += [text for shape in strings if (text := self.make_plain_text(shape, must_differ, key))]
        rules = tuple((kind, self.builder.define(f"{key}-{kind}", make_factored(found[kind]))) for kind in others)
        if not texts and not rules:
            return None
        text = make_choice(texts)
        rule = text if text in ("", FREE) else self.builder.define(f"{key}-text", text)
        return Member(key, is_required, rule, rules)

    def add_value(self, value: object, pointer: str, texts: list[tuple[str, str]], found: dict[str, list[str]]) -> None:
        """Adds one value of an enum to `texts` or, as JSON, to `found`."""
        if not isinstance(value, str) or not self.close:
            kind = kind_of(value)
            found["number" if kind == "integer" else kind].append(make_value_expression(self.builder, value))
        elif all(has_code(ANY, ord(char)) for char in value):
            texts.append((value, pointer))

    def make_plain_text(self, shape: Shape, must_differ: bool, hint: str) -> str | None:
        """The rule or expression of a shape's strings as plain text; None if there are none."""
        refused = [value for value in shape.refused_values if isinstance(value, str)]
        least, most = self.limit_counts(shape.pointer, shape.min_length, shape.max_length, "lengths")
        allowed = without(ANY, automaton.collect_characters(self.close[0]))
        text = self.make_text(shape, refused, least, most, hint)
        if isinstance(text, str):
            self.document.loosen(shape.pointer, "the pattern is not enforced: it is too large for this format")
            text = None
        if text is None and (least or most is not None) and not must_differ:
            return self.builder.repeat(f"{hint}-text", self.class_of_text(allowed), least, most) or '""'
        if text is None and (least or most is not None):
            text = automaton.make_length_between(least, most)
        if text is None and not must_differ:
            return FREE
        dfa = (
            automaton.make_avoiding(self.close)
            if text is None
            else self.intersect_dfas(text, Dfa([True], [[(allowed, 0)]]), 10_000)
        )
        if dfa is not None and must_differ:
            other = without(ANY, automaton.collect_characters(_LIKE_JSON))
            dfa = self.intersect_dfas(dfa, Dfa([True, True], [[(other, 1)], [(ANY, 1)]]), 10_000)
        if dfa is None or dfa.is_empty():
            self.document.loosen(shape.pointer, LEFT_OUT, fatal=False)
            return None
        return print_dfa(self.builder, dfa, f"{hint}-text", self.class_of_text)

    def class_of_text(self, chars: Charset) -> str:
        return self.builder.make_char_class(chars)
