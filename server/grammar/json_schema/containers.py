"""Writes the objects and arrays of a JSON schema as grammar.

Runs on connection threads. Keys come in the order of the schema, additional keys after them. If a schema lists
properties and doesn't mention others, objects get others only if minProperties requires it, because models invent keys.
The same holds for arrays that list their first items, with minItems.

The rules are written from the last member or item to the first, so that long lists need no recursion. In lists such as
`some`, the index is the number of members before, counted as far as minProperties and maxProperties need it. Not taken:
members in any order, because n members would need 2^n rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from server.grammar import automaton
from server.grammar.automaton import Dfa
from server.grammar.gbnf_build import (
    BLOCK,
    Builder,
    exclude_words,
    make_choice,
    make_literal,
    make_optional,
    make_sequence,
    print_dfa,
)
from server.grammar.json_schema.parts import Conjunction, Part, SchemaError, escape
from server.grammar.json_schema.shapes import KEYWORDS_BY_TYPE, Document, Shape
from server.grammar.json_schema.strings import add_core, make_json_text, make_text_class, make_value_expression
from server.grammar.json_schema.values import (
    can_fit,
    count_listed,
    find_item_part,
    list_finite_values,
    list_required_keys,
    make_item_conjunction,
    make_key_conjunction,
    make_pattern_dfa,
)
from server.records import record

_NO_OBJECT = frozenset(KEYWORDS_BY_TYPE["object"]).isdisjoint
_NO_ARRAY = frozenset(KEYWORDS_BY_TYPE["array"]).isdisjoint
PROPERTIES_MAX = 800  # declared keys of one object
PREFIX_MAX = 500  # items of an array that a schema lists one by one
_STATES_MAX = 2000  # rules of one object or array that counts its members
_ANY_ORDER_MAX = 6  # distinct values that may come in any order
_PATTERNS_MAX = 4  # patterns of keys; every subset of them is a case of its own
_KEY_STATES_MAX = 1000  # states of the automaton of additional keys


class Converter(Protocol):
    """The part of `convert.Converter` that this module uses."""

    builder: Builder
    document: Document

    def make_expression(self, conjunction: Conjunction, hint: str) -> str | None:
        """The expression of a schema; None if no value fits."""

    def make_key_dfa(self, part: Part) -> Dfa | None:
        """The automaton of the keys that fit a schema; None if keys aren't restricted."""

    def make_common_dfa(self, dfas: list[Dfa], pointer: str, limit: int) -> Dfa | None:
        """The intersection of the automata; None if there are none."""

    def limit_counts(self, pointer: str, least: int, most: int | None, what: str) -> tuple[int, int | None]:
        """Two bounds, limited to what can be written."""

    def note_contradiction(self, pointer: str, message: str) -> None:
        """Remembers the first reason why no value fits."""


@record
class _Member:
    """A declared property. `text` is the expression of key and value, without the opening quote."""

    text: str
    is_required: bool


def make_object_expression(converter: Converter, shape: Shape, needs: list[Conjunction]) -> str | None:
    """A shape's objects; None if there are none. Adds to `needs` the schemas of what every object contains."""
    if not shape.forbidden_keys and all(_NO_OBJECT(part.schema) for part in shape.parts):
        return add_core(converter.builder, "object")
    members = _make_members(converter, shape, needs)
    if members is None:
        return None
    return _lay_out_members(converter, shape, members, _make_further_members(converter, shape))


def list_declared_keys(shape: Shape) -> list[str]:
    """The keys that `properties` or `required` name, in the order of the schema."""
    keys: dict[str, None] = {}
    for part in shape.list_having("properties"):
        keys.update(dict.fromkeys(part.schema["properties"]))
    for part in shape.list_having("required"):
        keys.update(dict.fromkeys(part.schema["required"]))
    return list(keys)


def _make_members(converter: Converter, shape: Shape, needs: list[Conjunction]) -> list[_Member] | None:
    """The declared properties that can have a value; None if a required one can't."""
    keys = list_declared_keys(shape)
    if len(keys) > PROPERTIES_MAX:
        raise SchemaError(f"more than {PROPERTIES_MAX} properties in one object", shape.pointer)
    required = list_required_keys(shape)
    names = tuple(part.get_at("propertyNames") for part in shape.list_having("propertyNames"))
    gap = add_core(converter.builder, "gap")
    members = []
    for key in keys:
        conjunction = make_key_conjunction(converter.document, shape, key)
        allowed = key not in shape.forbidden_keys and (not names or can_fit(converter.document, key, names))
        value = converter.make_expression(conjunction, key) if allowed else None
        if value is None and key in required:
            converter.note_contradiction(shape.pointer, f"the required property {key!r} can have no value")
            return None
        if value is not None:
            if key in required:
                needs.append(conjunction)
            text = make_sequence(make_literal(make_json_text(key)[1:] + ":"), gap, value)
            members.append(_Member(text, key in required))
    return members


def _is_open(shape: Shape) -> bool:
    """Whether keys may appear that the schema doesn't name. The schema of their values may still be false."""
    for keyword in ("additionalProperties", "unevaluatedProperties"):
        if shape.list_having(keyword):
            return True
    listed = [part for part in shape.parts if "properties" in part.schema or "patternProperties" in part.schema]
    return not listed or shape.find_largest("minProperties") > len(list_declared_keys(shape))


def _make_further_members(converter: Converter, shape: Shape) -> str | None:
    """A member with an additional key, without the opening quote; None if no such key is allowed."""
    patterns = _list_key_patterns(converter, shape)
    is_open = _is_open(shape)
    if not patterns and not is_open:
        return None
    gap = add_core(converter.builder, "gap")
    ways = []
    for mask in range(1 << len(patterns)):
        matched = [pattern for bit, pattern in enumerate(patterns) if mask >> bit & 1]
        if not matched and not is_open:
            continue
        value = converter.make_expression(_make_further_values(converter, shape, matched), "extra")
        key = None if value is None else _make_further_key(converter, shape, patterns, matched)
        if key is not None and value is not None:
            ways.append(make_sequence(key, make_literal('":'), gap, value))
    return make_choice(ways) or None


def _list_key_patterns(converter: Converter, shape: Shape) -> list[str]:
    """The first _PATTERNS_MAX patterns of patternProperties that have an automaton. Warns of the others."""
    found: dict[str, None] = {}
    for part in shape.list_having("patternProperties"):
        for pattern in part.schema["patternProperties"]:
            pointer = f"{part.pointer}/patternProperties/{escape(pattern)}"
            if make_pattern_dfa(pattern) is None:
                converter.document.loosen(pointer, "this pattern of keys is not enforced: it can't be converted")
            elif len(found) >= _PATTERNS_MAX and pattern not in found:
                converter.document.loosen(pointer, f"not enforced: more than {_PATTERNS_MAX} patterns of keys")
            else:
                found[pattern] = None
    return list(found)


def _make_further_values(converter: Converter, shape: Shape, matched: list[str]) -> Conjunction:
    """The schemas of the value under an additional key that matches exactly these patterns."""
    found: list[Part] = []
    for part in shape.parts:
        here = [
            part.get_at("patternProperties", pattern)
            for pattern in matched
            if pattern in part.schema.get("patternProperties", ())
        ]
        if not here and "additionalProperties" in part.schema:
            here.append(part.get_at("additionalProperties"))
        elif not (matched or shape.list_having("additionalProperties")) and "unevaluatedProperties" in part.schema:
            here.append(part.get_at("unevaluatedProperties"))
        found += [converter.document.follow_references(part) for part in here]
    return tuple(dict.fromkeys(found))


def _make_further_key(converter: Converter, shape: Shape, patterns: list[str], matched: list[str]) -> str | None:
    """The text of an additional key between its quotes; None if no key is left."""
    builder = converter.builder
    taken = list(dict.fromkeys([*list_declared_keys(shape), *sorted(shape.forbidden_keys)]))
    names = [part.get_at("propertyNames") for part in shape.list_having("propertyNames")]

    def class_of(chars: automaton.Charset) -> str:
        return make_text_class(builder, chars)

    if not patterns and not names:
        char = add_core(builder, "char")
        return exclude_words(builder, taken, char, class_of) if taken else f"{char}*"
    dfas = [automaton.negate(automaton.make_words(taken))] if taken else []
    for pattern in patterns:
        dfa: Any = make_pattern_dfa(pattern)
        dfas.append(dfa if pattern in matched else automaton.negate(dfa))
    dfas += [dfa for name in names if (dfa := converter.make_key_dfa(name)) is not None]
    key = converter.make_common_dfa(dfas, shape.pointer, _KEY_STATES_MAX)
    if key is None:
        return f"{add_core(builder, 'char')}*"
    return None if key.is_empty() else print_dfa(builder, key, "key", class_of)


def _lay_out_members(converter: Converter, shape: Shape, members: list[_Member], further: str | None) -> str | None:
    """The whole object; None if none fits. `some[c]`: at least one more member, after `c` members."""
    builder = converter.builder
    least, most = _compute_member_counts(converter, shape, members, further)
    cap = least if most is None else most
    blank = add_core(builder, "ws")
    comma = make_sequence(make_literal(","), add_core(builder, "gap"), make_literal('"'))
    if further is not None and len(further) > 20:
        further = builder.define("member-more", further)
    some = [_make_further_run(converter, further, comma, count, least, most) for count in range(cap + 1)]
    needed = sum(member.is_required for member in members)
    return _wrap_in_braces(
        _join_in_order(builder, members, some, comma, least, most), needed == 0 and least == 0, blank
    )


def _join_in_order(
    builder: Builder, members: list[_Member], some: list[str | None], comma: str, least: int, most: int | None
) -> str | None:
    """At least one member: `members`, each at most once and in this order, then `some`; None if that is impossible."""
    cap = least if most is None else most
    needed = 0
    for index in range(len(members) - 1, -1, -1):
        member = members[index]
        shared = index > 0 and (not members[index - 1].is_required or cap > 0)
        current = []
        for count in range(cap + 1):
            after = min(count + 1, cap)
            rest = None if count == most else _rest(some[after], comma, needed == 0 and count + 1 >= least)
            ways = [] if rest is None else [make_sequence(member.text, rest)]
            here = some[count]
            if not member.is_required and here is not None:
                ways.append(here)
            expression = make_choice(ways) or None
            if shared and expression is not None and len(ways) + len(expression) > 30:
                expression = builder.define("members", expression)
            current.append(expression)
        some = current
        needed += member.is_required
    return some[0]


def _wrap_in_braces(some: str | None, may_be_empty: bool, blank: str) -> str | None:
    if some is None:
        return make_sequence(make_literal("{"), blank, make_literal("}")) if may_be_empty else None
    inside = make_sequence(make_literal('"'), some, blank)
    return make_sequence(make_literal("{"), blank, make_optional(inside) if may_be_empty else inside, make_literal("}"))


def _rest(some: str | None, comma: str, may_end: bool) -> str | None:
    """What follows a member: a comma and more members, or nothing; None if the object can neither end nor go on."""
    if some is None:
        return "" if may_end else None
    more = make_sequence(comma, some)
    return make_optional(more) if may_end else more


def _make_further_run(
    converter: Converter, further: str | None, comma: str, count: int, least: int, most: int | None
) -> str | None:
    """At least one additional member after `count` members; None if that is impossible."""
    fewest = max(least - count, 1)
    largest = None if most is None else most - count
    if further is None or (largest is not None and largest < fewest):
        return None
    again = converter.builder.repeat(
        "member-next", make_sequence(comma, further), fewest - 1, None if largest is None else largest - 1
    )
    return make_sequence(further, again)


def _compute_member_counts(
    converter: Converter, shape: Shape, members: list[_Member], further: str | None
) -> tuple[int, int | None]:
    """minProperties (0 if the members ensure it) and maxProperties (None if they do). Warns of bounds it can't keep."""
    least, most = shape.find_largest("minProperties"), shape.find_smallest("maxProperties")
    if least <= sum(member.is_required for member in members):
        least = 0
    if most is not None and most >= len(members) and further is None:
        most = None
    room = _compute_room(members)
    if most is not None and most > room >= max(least, sum(member.is_required for member in members)):
        converter.document.loosen(
            shape.pointer, f"objects get at most {room} properties: too many combinations", fatal=False
        )
        most = room
    if (least if most is None else most) > room:
        converter.document.loosen(shape.pointer, "the number of properties is not limited: too many combinations")
        return 0, None
    if least > 1 and further is not None:
        converter.document.loosen(
            shape.pointer, "a key that the model writes twice counts twice for 'minProperties'", fatal=False
        )
    return least, most


def _compute_room(members: list) -> int:
    """The highest number of members that can be counted."""
    return min(BLOCK, _STATES_MAX // (len(members) + 1) - 1)


# Arrays


def make_array_expression(converter: Converter, shape: Shape, needs: list[Conjunction]) -> str | None:
    """A shape's arrays; None if there are none. Adds to `needs` the schemas of what every array contains."""
    if all(_NO_ARRAY(part.schema) for part in shape.parts):
        return add_core(converter.builder, "array")
    least, most = shape.find_largest("minItems"), shape.find_smallest("maxItems")
    least, most = converter.limit_counts(shape.pointer, least, most, "counts of items")
    size = max(map(count_listed, shape.parts))
    if size > PREFIX_MAX:
        raise SchemaError(f"more than {PREFIX_MAX} items in 'prefixItems' or in an array of 'items'", shape.pointer)
    is_open = bool(shape.list_having("unevaluatedItems")) or any(find_item_part(part, size) for part in shape.parts)
    if size and least <= size and not is_open:
        most = size if most is None else min(most, size)
    items: list[str] = []
    for index in range(size + 1 if most is None or most > size else most):
        conjunction = make_item_conjunction(converter.document, shape, index)
        item = converter.make_expression(conjunction, "item")
        if item is None:
            most = index
            break
        items.append(item)
        if index < least:
            needs.append(conjunction)
    if most is not None and least > most:
        converter.note_contradiction(shape.pointer, f"there are no values for {least} items")
        return None
    values = None
    unique = [part for part in shape.list_having("uniqueItems") if part.schema["uniqueItems"]]
    if unique and (most is None or most > 1):
        if not size and not shape.list_having("contains"):
            values = list_finite_values(converter.document, make_item_conjunction(converter.document, shape, 0))
        if values is None:
            converter.document.loosen(
                f"{unique[0].pointer}/uniqueItems", "duplicate items are not prevented", fatal=False
            )
    if values is None:
        inside = _lay_out_items(converter, shape, items, least, most)
    elif len(values) < least:
        converter.note_contradiction(shape.pointer, f"there are no {least} different items")
        return None
    else:
        inside = _lay_out_distinct(converter, shape, values, least, most)
    blank = add_core(converter.builder, "ws")
    if inside is None:
        return None
    filled = make_sequence(inside, blank) if inside else ""
    return make_sequence(
        make_literal("["), blank, filled if least or _must_contain(shape) else make_optional(filled), make_literal("]")
    )


def _lay_out_distinct(
    converter: Converter, shape: Shape, values: list[object], least: int, most: int | None
) -> str | None:
    """Distinct items: up to _ANY_ORDER_MAX values in any order, more of them in the order of the schema."""
    builder = converter.builder
    most = len(values) if most is None else min(most, len(values))
    comma = make_sequence(make_literal(","), add_core(builder, "gap"))
    texts = [make_value_expression(builder, value) for value in values]
    if len(texts) <= _ANY_ORDER_MAX:
        return _join_in_any_order(builder, texts, comma, least, most)
    room = _compute_room(texts)
    if least > room:
        converter.document.loosen(f"{shape.pointer}/minItems", "not enforced: too many combinations")
        least = 0
    most = None if most == len(texts) else min(most, room)
    some: list[str | None] = [None] * ((least if most is None else most) + 1)
    return _join_in_order(builder, [_Member(text, False) for text in texts], some, comma, least, most)


def _join_in_any_order(builder: Builder, texts: list[str], comma: str, least: int, most: int) -> str:
    """Distinct items in any order: one rule for each set of texts that are still unused."""
    after = {0: ""}
    for left in sorted(range(1, 1 << len(texts)), key=int.bit_count):
        count = len(texts) - left.bit_count()
        ways = [
            make_sequence(text, after[left & ~(1 << index)]) for index, text in enumerate(texts) if left >> index & 1
        ]
        more = make_sequence(comma, make_choice(ways)) if count else make_choice(ways)
        after[left] = (
            "" if count == most else builder.define("distinct", make_optional(more) if count >= max(least, 1) else more)
        )
    return after[(1 << len(texts)) - 1]


def _must_contain(shape: Shape) -> bool:
    return any(part.schema.get("minContains", 1) > 0 for part in shape.list_having("contains"))


def _lay_out_items(converter: Converter, shape: Shape, items: list[str], least: int, most: int | None) -> str | None:
    """The items and commas of a non-empty array; '' if only the empty array is possible, None if none is.

    If `most` allows more items than `items` has, the last of `items` stands for all further ones.
    """
    for part in shape.list_having("contains"):
        if "maxContains" in part.schema:
            converter.document.loosen(f"{part.pointer}/maxContains", "not enforced")
    wanted = [part for part in shape.list_having("contains") if part.schema.get("minContains", 1) > 0]
    for part in wanted[1:]:
        converter.document.loosen(f"{part.pointer}/contains", "only the first of several 'contains' is enforced")
    if wanted:
        states = (max(len(items), least) if most is None else most) + 1
        count = int(wanted[0].schema.get("minContains", 1))
        if states * (count + 1) <= _STATES_MAX // 2:
            return _ContainsLayout(converter, shape, wanted[0], items, least, most).run(count)
        converter.document.loosen(f"{wanted[0].pointer}/contains", "not enforced: too many combinations")
    if not items or most == 0:
        return ""
    builder = converter.builder
    comma = make_sequence(make_literal(","), add_core(builder, "gap"))
    fixed = len(items) - 1 if most is None or most > len(items) else len(items)
    rest = ""
    if fixed < len(items):
        more = make_sequence(comma, items[fixed])
        before = max(fixed, 1)
        rest = builder.repeat("item-next", more, max(least - before, 0), None if most is None else most - before)
    for index in range(fixed - 1, 0, -1):
        rest = make_sequence(comma, items[index], rest)
        if index >= least:
            rest = make_optional(builder.define("items", rest) if len(rest) > 60 else rest)
    return make_sequence(items[0], rest)


class _ContainsLayout:
    """Arrays with at least `count` items that fit `contains`: a rule for each (items so far, found so far)."""

    def __init__(
        self, converter: Converter, shape: Shape, part: Part, items: list[str], least: int, most: int | None
    ) -> None:
        self.converter = converter
        self.items = items
        self.least = least
        self.most = most
        self.size = max(len(items), least) if most is None else most
        wanted = converter.document.follow_references(part.get_at("contains"))
        self.found = []
        for index in range(len(items)):
            both = (*make_item_conjunction(converter.document, shape, index), wanted)
            self.found.append(converter.make_expression(tuple(dict.fromkeys(both)), "contained"))

    def run(self, count: int) -> str | None:
        """The non-empty arrays; None if there are none."""
        if not any(self.found):
            return None
        table: list[str | None] = [None] * (count + 1)
        for index in range(self.size, -1, -1):
            row: list[str | None] = [None] * (count + 1)
            for found in range(count, -1, -1):
                row[found] = self.make_cell(index, found, count, table, row)
            table = row
        return table[0]

    def make_cell(self, index: int, found: int, count: int, after: list[Any], row: list[Any]) -> str | None:
        """What may follow `index` items of which `found` were written to fit `contains`. `row` is the row of `index`,
        `after` that of index + 1. The last row of an unbounded array repeats itself."""
        may_end = index >= self.least and found == count
        builder = self.converter.builder
        item, both = self.pick(self.items, index), self.pick(self.found, index)
        comma = make_sequence(make_literal(","), add_core(builder, "gap")) if index else ""
        if index == self.size:
            if self.most is not None:
                return "" if may_end else None
            if found == count:
                return builder.repeat("item-next", make_sequence(comma, item), 0, None)
            if both is None:
                return None
            name = builder.reserve("contains")
            ways = [make_sequence(item, name)] + [make_sequence(both, row[found + 1])]
            builder.rules[name] = make_sequence(comma, make_choice(ways))
            return name
        ways = [] if after[found] is None else [make_sequence(item, after[found])]
        if found < count and both is not None and after[found + 1] is not None:
            ways.append(make_sequence(both, after[found + 1]))
        if not ways:
            return "" if may_end and index else None
        expression = make_sequence(comma, make_choice(ways))
        if may_end and index:
            expression = make_optional(expression)
        return builder.define("contains", expression) if len(expression) > 40 else expression

    def pick(self, items: Sequence[str | None], index: int) -> Any:
        return items[min(index, len(items) - 1)] if items else None
