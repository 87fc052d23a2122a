"""The properties of an object one by one: plain text up to its closing text, and other values as JSON.

Pure: texts are drawn from the rules by `gbnf_oracle`.
"""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.grammar.automaton import make_avoiding
from server.grammar.json_schema.members import Member, Members, convert_members
from server.grammar.json_schema.parts import SchemaError
from tests.unit.grammar.gbnf_oracle import Generator

CLOSE = "</x>"


def members_of(schema: dict, close: str = CLOSE, is_marked: bool = False, strict: bool = False) -> Members:
    return convert_members({"type": "object", **schema}, close, is_marked=is_marked, strict=strict)


def only(found: Members) -> Member:
    ((member,),) = found.ways
    return member


def drawn(found: Members, rule: str, n: int = 40) -> list[str]:
    rules = "\n".join([f"root ::= {rule}", *(f"{name} ::= {body}" for name, body in found.rules.items())])
    generator = Generator(rules)
    rng = random.Random(5)
    return [generator.text(rng) for _ in range(n)]


@settings(max_examples=300, deadline=None)
@given(st.text("ab<", min_size=1, max_size=4), st.text("ab<c", max_size=12))
def test_the_automaton_that_avoids_a_text_accepts_all_texts_without_it(avoided: str, text: str):
    assert make_avoiding(avoided).can_accept(text) == (avoided not in text)


def test_properties_come_in_their_order_and_say_whether_they_are_required():
    found = members_of({"properties": {"b": {"type": "integer"}, "a": {"type": "string"}}, "required": ["a", "c"]})
    assert [(member.key, member.is_required) for member in found.ways[0]] == [("b", False), ("a", True), ("c", True)]


def test_free_text_is_all_text_that_does_not_contain_its_end():
    found = members_of({"properties": {"a": {"type": "string"}}})
    member = only(found)
    assert member.json == () and all(CLOSE not in text for text in drawn(found, member.text))


@pytest.mark.parametrize(
    "schema, fits",
    [
        ({"type": "string", "minLength": 3, "maxLength": 5}, lambda text: 3 <= len(text) <= 5),
        ({"type": "string", "pattern": "^[a-f<]{2}$"}, lambda text: len(text) == 2 and set(text) <= set("abcdef")),
        ({"enum": ["x", "y z"]}, lambda text: text in ("x", "y z")),
        ({"const": "x"}, lambda text: text == "x"),
        ({"type": "string", "not": {"const": "x"}}, lambda text: text != "x"),
        ({"type": "string", "format": "date"}, lambda text: len(text) == 10),
        ({"type": "string", "allOf": [{"maxLength": 2}]}, lambda text: len(text) <= 2),
    ],
)
def test_texts_keep_what_their_schema_says(schema: dict, fits):
    found = members_of({"properties": {"a": schema}})
    texts = drawn(found, only(found).text)
    assert all(fits(text) and CLOSE not in text for text in texts), texts
    assert not found.warnings


@pytest.mark.parametrize("values, kept", [(["x", "</x>"], "x"), (["x", "1", 2], "x")])
def test_named_texts_that_cannot_be_written_are_left_out_with_a_warning(values: list, kept: str):
    found = members_of({"properties": {"a": {"enum": values}}}, strict=True)
    assert set(drawn(found, only(found).text)) == {kept}
    (warning,) = found.warnings
    assert warning.startswith("#/properties/a: ") and warning.endswith("are left out")


def test_a_text_beside_bounded_numbers_does_not_look_like_one_unless_it_is_marked():
    schema = {"properties": {"a": {"type": ["string", "integer"], "minimum": 5}}}
    found = members_of(schema)
    assert {text[:1] for text in drawn(found, only(found).text, 300)}.isdisjoint("-0123456789tfn{[")
    assert dict(only(found).json).keys() == {"number"}
    marked = members_of(schema, is_marked=True)
    assert only(marked).text == only(members_of({"properties": {"a": {"type": "string"}}})).text


def test_texts_within_json_do_without_the_beginning_of_the_end():
    found = members_of({"properties": {"a": {"type": "array", "items": {"type": "string"}}}})
    (kind, rule) = only(found).json[0]
    texts = drawn(found, rule, 200)
    assert kind == "array" and not any("<" in text for text in texts)
    assert all(isinstance(json.loads(text), list) for text in texts)


def test_without_an_end_all_is_json():
    found = members_of({"properties": {"a": {"type": ["string", "boolean"]}}}, close="")
    assert only(found).text == "" and [kind for kind, _ in only(found).json] == ["string", "boolean"]


def test_alternatives_are_ways_with_their_own_properties():
    found = members_of(
        {"anyOf": [{"properties": {"a": {"type": "null"}}}, {"properties": {"b": {"type": "null"}}, "required": ["b"]}]}
    )
    assert [[member.key for member in way] for way in found.ways] == [["a"], ["b"]]


def test_counts_of_properties_are_warnings_where_the_rest_does_not_keep_them():
    properties = {"a": {"type": "null"}, "b": {"type": "null"}}
    assert not members_of({"properties": properties, "maxProperties": 2, "minProperties": 0}).warnings
    found = members_of({"properties": properties, "maxProperties": 1, "minProperties": 1})
    assert [warning.split(":")[0] for warning in found.warnings] == ["#/minProperties", "#/maxProperties"]
    with pytest.raises(SchemaError, match="#/minProperties"):
        members_of({"properties": properties, "minProperties": 1}, strict=True)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": False}, "required": ["a"]},
        {"properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "string"},
        {"properties": {"a": {"type": "string", "enum": ["</x>"]}}, "required": ["a"]},
    ],
)
def test_what_nothing_fits_is_refused(schema: dict):
    with pytest.raises(SchemaError):
        members_of(schema)
