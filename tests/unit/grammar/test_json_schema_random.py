"""Random JSON schemas, texts and values: the grammar of a schema accepts exactly what `jsonschema` accepts (for texts:
`re` and the length), with any combination of keywords.
"""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from server.grammar.gbnf import check
from server.grammar.json_schema.convert import SchemaError, convert
from server.grammar.json_schema.strings import FORMATS, format_dfa
from tests.fuzzing import fuzz
from tests.unit.grammar.gbnf_oracle import Matcher
from tests.unit.grammar.json_schema_cases import INT, NULL, NUM, STR
from tests.unit.grammar.test_json_schema import jsonschema, oracle, random_texts  # noqa: F401

NAMES = st.sampled_from(["a", "b", "ab", "c d", 'e"'])
SMALL = st.integers(-30, 30)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    SMALL,
    st.text(st.characters(exclude_characters="$"), max_size=4),
    st.floats(-10, 10).map(lambda x: round(x, 2)),
)
JSON_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2), max_leaves=4
)
PATTERNS = st.sampled_from(["^a", "b$", "^[a-c]*$", "x|y", r"^\d+$", "^(ab)+c?$", "[^a]"])


def keywords(**fields: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries({}, optional=fields)


def typed(name: str, fields: st.SearchStrategy) -> st.SearchStrategy:
    return fields.map(lambda found: {"type": name, **found})


def nested(inner: st.SearchStrategy) -> st.SearchStrategy:
    members = st.dictionaries(NAMES, inner, max_size=3)
    return st.one_of(
        typed(
            "object",
            keywords(
                properties=members,
                required=st.lists(NAMES, max_size=2),
                additionalProperties=inner | st.booleans(),
                minProperties=st.integers(0, 2),
                maxProperties=st.integers(1, 3),
                patternProperties=st.dictionaries(PATTERNS, inner, max_size=1),
            ),
        ),
        typed(
            "array",
            keywords(
                items=inner,
                prefixItems=st.lists(inner, min_size=1, max_size=2),
                minItems=st.integers(0, 2),
                maxItems=st.integers(1, 3),
                contains=inner,
            ),
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches}),
        st.lists(inner, min_size=1, max_size=2).map(lambda branches: {"allOf": branches}),
        st.tuples(members, inner).map(lambda both: {"properties": both[0], "anyOf": [both[1], {"required": ["a"]}]}),
    )


LEAVES = st.one_of(
    st.just({}),
    st.booleans(),
    st.sampled_from([INT, STR, NUM, NULL]),
    typed("integer", keywords(minimum=SMALL, maximum=SMALL, exclusiveMinimum=SMALL, multipleOf=st.integers(1, 12))),
    typed("number", keywords(minimum=SMALL, exclusiveMaximum=st.sampled_from([-0.5, 0.25, 3, 12.75]), maximum=SMALL)),
    typed(
        "string",
        keywords(
            minLength=st.integers(0, 3),
            maxLength=st.integers(1, 5),
            pattern=PATTERNS,
            format=st.sampled_from(["date", "ipv4", "uuid"]),
        ),
    ),
    st.lists(JSON_VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
)
SCHEMAS = st.recursive(LEAVES, nested, max_leaves=8)


def random_judge(schema: object):
    """The validator of a random schema. Python's '$' also matches before a line end, JSON schema's does not;
    and `format` is no reason for us to drop a value of an enum."""
    return jsonschema.Draft202012Validator(json.loads(json.dumps(schema).replace('$"', '\\\\Z"')))


@fuzz(150)
@given(SCHEMAS)
def test_random_schemas_give_valid_texts(schema: object):
    try:
        converted = convert(schema)
    except SchemaError:
        return
    check(converted.grammar)
    judge = random_judge(schema)
    for text in random_texts(converted.grammar, schema, 4):
        value = json.loads(text)
        assert converted.warnings or judge.is_valid(value), text


@fuzz(150)
@given(SCHEMAS, JSON_VALUES)
def test_random_values_are_judged_as_jsonschema_judges_them(schema: object, value: object):
    """One way only: what the grammar accepts is valid. (The other way has the order of keys and closed
    objects.)"""
    try:
        converted = convert(schema)
    except SchemaError:
        return
    if not converted.warnings and Matcher(converted.grammar).accepts(json.dumps(value)):
        assert random_judge(schema).is_valid(value)


TEXT_PATTERNS = st.sampled_from(
    [
        r"^\S+$",
        "^[a-z]+(-[a-z]+)*$",
        "^a*b{2,5}(c|de)*$",
        "[A-Z]",
        "x+y",
        r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$",
        "^(ab|c){0,900}$",
        "^((a|bc)*d)*$",
        r"^(?=.*\d)\w+$",
        "^(a(b(c(d)*)*)*)*$",
        "b$",
    ]
)
FORMAT_NAMES = st.sampled_from(["uri", "email", "hostname", "duration", "date-time", "ipv4", "uuid", "iri"])


@fuzz(80)
@given(
    st.none() | TEXT_PATTERNS,
    st.none() | FORMAT_NAMES,
    st.integers(0, 40) | st.integers(0, 3000),
    st.none() | st.integers(1, 60) | st.integers(60, 6000),
)
def test_a_text_keeps_its_length_and_pattern_whatever_its_format(
    pattern: str | None, name: str | None, least: int, most: int | None
):
    schema = {"type": "string", "minLength": least, "pattern": pattern, "format": name, "maxLength": most}
    schema = {key: value for key, value in schema.items() if value is not None}
    try:
        converted = convert(schema)
    except SchemaError:
        return
    check(converted.grammar)
    try:
        assert convert(schema, strict=True) == converted
    except SchemaError:
        assert any("#/format" not in line for line in converted.warnings)
        return
    for text in random_texts(converted.grammar, schema, 3, size=500):
        value = json.loads(text)
        assert least <= len(value) <= (len(value) if most is None else most)
        assert pattern is None or re.search(pattern.replace("$", r"\Z"), value, re.ASCII)
        if name in FORMATS and not converted.warnings:
            assert format_dfa(name).can_accept(value)


@fuzz(80)
@given(
    st.lists(st.sampled_from([1, 1.5, "a", "ab", True, None, "b", [1], {"k": 1}, 2, 0, "c"]), min_size=1, max_size=9),
    st.integers(0, 4),
    st.none() | st.integers(0, 6),
    st.data(),
)
def test_items_of_an_enum_are_different_if_they_have_to_be(
    values: list, least: int, most: int | None, data: st.DataObject
):
    schema = {
        "type": "array",
        "items": {"enum": values},
        "uniqueItems": True,
        "minItems": least,
        **({} if most is None else {"maxItems": most}),
    }
    judge = jsonschema.Draft202012Validator(schema)
    array = data.draw(st.lists(st.sampled_from(values), max_size=7))
    try:
        converted = convert(schema, strict=True)
    except SchemaError:
        assert not judge.is_valid(array)
        return
    check(converted.grammar)
    assert converted.warnings == []
    in_order = array == [value for value in values if value in array]
    accepted = Matcher(converted.grammar).accepts(json.dumps(array))
    assert judge.is_valid(array) or not accepted
    if judge.is_valid(array) and (in_order or len(values) <= 6):
        assert accepted
    for text in random_texts(converted.grammar, schema, 3):
        assert judge.is_valid(json.loads(text)), text


ODD_KEYS = st.sampled_from(
    [
        "type",
        "properties",
        "items",
        "anyOf",
        "allOf",
        "not",
        "$ref",
        "enum",
        "const",
        "pattern",
        "minLength",
        "required",
        "a",
        "if",
        "then",
        "additionalProperties",
        "prefixItems",
        "multipleOf",
        "minimum",
        "contains",
        "oneOf",
        "$defs",
        "propertyNames",
        "format",
    ]
)
ODD_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=True),
    st.text(max_size=5),
    PATTERNS,
    st.sampled_from(["object", "array", "string", "integer", "#", "#/a", "date"]),
)
ODD_VALUES = st.recursive(
    ODD_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_KEYS, inner, max_size=4), max_leaves=12
)


@fuzz(300)
@given(ODD_VALUES, st.booleans())
def test_garbage_gives_a_grammar_or_a_schema_error(schema: object, strict: bool):
    try:
        converted = convert(schema, strict=strict)
    except SchemaError as error:
        assert error.pointer.startswith("#")
    else:
        check(converted.grammar)
