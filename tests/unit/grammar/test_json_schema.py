"""JSON schema to GBNF: the table of cases, random texts, refusals and warnings, limits, and what clients rely on.

Three sources are compared: the converter's grammar (read by `gbnf_oracle`), the `jsonschema` package, and the table.
Random schemas come from hypothesis. The public test suite of JSON schema runs if JSON_SCHEMA_TEST_SUITE names its
folder.
"""

from __future__ import annotations

import json
import os
import random
import string
import warnings
from pathlib import Path

import pytest

from server.grammar.gbnf import check
from server.grammar.json_schema.convert import ANY_OBJECT, SchemaError, convert
from tests.support import need
from tests.unit.grammar.gbnf_oracle import Generator, Matcher
from tests.unit.grammar.json_schema_cases import CASES, CLIENTS, INT, NULL, NUM, STR, UNJUDGED, Case, obj

try:
    import jsonschema
except ImportError:
    jsonschema = None

RANDOM_TEXTS = 8
JUDGED = [case for case in CASES if case.name not in UNJUDGED]


@pytest.fixture(scope="module", autouse=True)
def oracle():
    need(jsonschema is not None, "the package jsonschema isn't installed (requirements-dev.txt)")


DRAFTS = {
    "draft2020-12": "Draft202012Validator",
    "draft2019-09": "Draft201909Validator",
    "draft7": "Draft7Validator",
    "draft6": "Draft6Validator",
    "draft4": "Draft4Validator",
}


def validator(schema: object, draft: str = "draft2020-12"):
    """jsonschema's validator for a schema, formats included."""
    kind = jsonschema.validators.validator_for(schema, default=getattr(jsonschema, DRAFTS[draft]))
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


def spellings(value: object) -> list[str]:
    """The usual ways to write a value: compact, Python's default, JavaScript's indented."""
    texts = [
        json.dumps(value, ensure_ascii=False, separators=(",", ":")),
        *(json.dumps(value, ensure_ascii=False, indent=indent) for indent in (None, 2, 4)),
    ]
    return list(dict.fromkeys(texts))


def random_texts(grammar: str, seed: object, count: int = RANDOM_TEXTS, size: int = 60) -> list[str]:
    rng = random.Random(str(seed))
    generator = Generator(grammar, size)
    return [generator.text(rng) for _ in range(count)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_table(case: Case):
    converted = convert(case.schema)
    check(converted.grammar)
    assert len(converted.warnings) == len(case.warns), converted.warnings
    for warning, wanted in zip(converted.warnings, case.warns):
        assert warning.startswith("#") and wanted in warning
    matcher = Matcher(converted.grammar)
    for value in case.fits:
        for text in spellings(value):
            assert matcher.accepts(text), text
    for value in [*case.fails, *case.kept_out]:
        for text in spellings(value):
            assert not matcher.accepts(text), text


@pytest.mark.parametrize("case", CLIENTS, ids=lambda case: case.name)
def test_what_clients_make_of_their_types_is_taken_under_strict_and_stays_small(case: Case):
    converted = convert(case.schema, strict=True)
    assert converted == convert(case.schema)
    assert len(converted.grammar) < 40_000


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", JUDGED, ids=lambda case: case.name)
def test_table_agrees_with_jsonschema(case: Case):
    judge = validator(case.schema)
    for value in [*case.fits, *case.kept_out]:
        assert judge.is_valid(value), value
    name = case.schema.get("format") if isinstance(case.schema, dict) else None
    if name is not None and name not in judge.format_checker.checkers:
        return  # jsonschema checks this format only beside other packages
    for value in case.fails:
        assert not judge.is_valid(value), value


@pytest.mark.parametrize("case", [case for case in JUDGED if not case.warns], ids=lambda case: case.name)
def test_random_texts_parse_and_validate(case: Case):
    grammar = convert(case.schema).grammar
    judge = validator(case.schema)
    for text in random_texts(grammar, case.name):
        value = json.loads(text)
        problems = [error.message for error in judge.iter_errors(value)]
        assert not problems or _is_float_trouble(case.schema), (text, problems)


def _is_float_trouble(schema: object) -> bool:
    """jsonschema divides floats, so it denies that 0.3 is a multiple of 0.1."""
    return isinstance(schema, dict) and isinstance(schema.get("multipleOf"), float)


# (schema, part of the message, pointer): what is refused whether strict or not
REFUSED = [
    (False, "no value fits", "#"),
    ({"enum": []}, "must not be empty", "#/enum"),
    ({"type": "strnig"}, "is not a JSON type", "#/type"),
    ({"type": []}, "must not be empty", "#/type"),
    ({"type": 5}, "'type' must be", "#/type"),
    ([], "a schema must be", "#"),
    ("x", "a schema must be", "#"),
    ({"properties": []}, "'properties' must be an object", "#/properties"),
    ({"properties": {"a": 5}}, "a schema must be", "#/properties/a"),
    ({"properties": {"a/b": {"minLength": "x"}}}, "whole number", "#/properties/a~1b/minLength"),
    ({"minLength": -1}, "whole number", "#/minLength"),
    ({"minItems": 1.5}, "whole number", "#/minItems"),
    ({"minimum": "1"}, "must be a number", "#/minimum"),
    ({"minimum": True}, "must be a number", "#/minimum"),
    ({"multipleOf": 0}, "above 0", "#/multipleOf"),
    ({"required": "a"}, "must be an array", "#/required"),
    ({"required": [1]}, "array of strings", "#/required"),
    ({"anyOf": []}, "must not be empty", "#/anyOf"),
    ({"anyOf": {}}, "must be an array", "#/anyOf"),
    ({"allOf": [5]}, "a schema must be", "#/allOf/0"),
    ({"pattern": 5}, "must be a string", "#/pattern"),
    ({"items": "x"}, "'items' must be", "#/items"),
    ({"$ref": 5}, "must be a string", "#/$ref"),
    ({"$ref": "#/nowhere"}, "has no target", "#/$ref"),
    ({"items": {"$ref": "https://example.com/schema"}}, "nothing is fetched", "#/items/$ref"),
    ({"$ref": "other.json#/x"}, "nothing is fetched", "#/$ref"),
    ({"$ref": "#"}, "no value fits", "#"),
    (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        "no value fits",
        "#/$defs/a",
    ),
    ({"type": "string", "minLength": 5, "maxLength": 2}, "above 'maxLength'", "#"),
    ({"type": "integer", "minimum": 5, "maximum": 2}, "no number", "#"),
    ({"type": "string", "enum": [1, 2]}, "no value of the enum", "#"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "no value fits", "#"),
    ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "no value fits", "#/properties/a"),
    ({"type": "object", "propertyNames": {"maxLength": 1}, "required": ["ab"]}, "'ab' can have no value", "#"),
    (
        {
            "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}},
            "$ref": "#/$defs/n",
        },
        "another one of the same schema",
        "#/$defs/n",
    ),
    ({"type": "array", "items": False, "minItems": 1}, "no value fits", "#/items"),
    ({"type": "array", "maxItems": 1, "minItems": 2}, "there are no values for 2 items", "#"),
    ({"not": {}}, "no value fits", "#"),
    ({"minimum": float("nan")}, "finite", "#"),
    ({"a": object()}, "is not a JSON value", "#"),
    ({1: 2}, "not a string", "#"),
]

# (schema, pointer): loosened with a warning, refused under strict
LOOSENED = [
    ({"type": "object", "properties": {"a": {"type": "string", "pattern": r"\bx"}}}, "#/properties/a/pattern"),
    ({"type": "string", "pattern": "(?i)x"}, "#/pattern"),
    ({"type": "string", "pattern": "(a(?=b)b)*c"}, "#/pattern"),
    ({"type": "string", "pattern": "a(?=^b)"}, "#/pattern"),
    ({"type": "string", "pattern": "a(?=b)b|" * 5}, "#/pattern"),
    ({"type": "string", "pattern": "[z-a]"}, "#/pattern"),
    ({"type": "string", "pattern": r"\p{L}"}, "#/pattern"),
    ({"type": "integer", "multipleOf": 86413}, "#/multipleOf"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf"),
    ({"type": "integer", "not": {"minimum": 3}}, "#/not"),
    ({"type": "array", "contains": {"const": 1}, "maxContains": 3}, "#/maxContains"),
    ({"type": "string", "pattern": "^(ab|c){0,900}$", "maxLength": 20}, "#"),
    ({"type": "string", "minLength": 10**9}, "#"),
    ({"type": "string", "pattern": "^(a|b)*a(a|b){6}$", "minLength": 2500, "maxLength": 5000}, "#"),
]

# (schema, pointer, values that the grammar accepts, values that it refuses): told, but nothing comes out wrong, or nobody
# could do better, so `strict` does not refuse
TOLD = [
    ({"type": "array", "uniqueItems": True}, "#/uniqueItems", [[1, 2]], [1]),
    (
        {"type": "array", "uniqueItems": True, "items": INT, "minItems": 1, "maxItems": 2},
        "#/uniqueItems",
        [[1, 2]],
        [[], [1, 2, 3]],
    ),
    ({"type": "string", "format": "iri"}, "#/format", ["x"], [1]),
    ({"type": "string", "format": "regex", "minLength": 2}, "#/format", ["^a"], ["a"]),
    ({"type": "string", "format": "idn-email", "maxLength": 5}, "#/format", ["a@b.c"], ["abcdef"]),
    ({"type": "string", "format": "date", "maxLength": 5}, "#/format", ["abc"], ["2024-01-01"]),
    ({"type": "string", "format": "ipv4", "pattern": "^[a-z]+$"}, "#/format", ["abc"], ["1.2.3.4"]),
    (
        {"type": "string", "format": "uri", "pattern": "^https://", "maxLength": 2000},
        "#/format",
        ["https://a/b"],
        ["http://a", "https://" + "a" * 2000],
    ),
    (
        {"type": "string", "format": "uuid", "allOf": [{"format": "ipv4"}]},
        "#/allOf/0/format",
        ["123e4567-e89b-12d3-a456-426614174000"],
        ["1.2.3.4"],
    ),
    (
        {"type": "object", "propertyNames": {"format": "date", "maxLength": 4}},
        "#/propertyNames/format",
        [{"abc": 1}],
        [{"2024-01-01": 1}],
    ),
    ({"type": "string", "maxLength": 2**31 - 1}, "#", ["x" * 3000], [1]),
    ({"type": "array", "items": NULL, "maxItems": 2**31 - 1}, "#", [[None] * 3000], [[1]]),
    ({"type": "object", "additionalProperties": INT, "maxProperties": 5000}, "#", [{"a": 1, "b": 2}], [[]]),
    (
        {"type": "string", "pattern": "^[a-z]+(-[a-z]+)*$", "maxLength": 5000, "not": {"const": "abc"}},
        "#",
        ["ab", "ab-cde" * 15],
        ["abc", "ab-", "a" * 5001],
    ),
]


@pytest.mark.parametrize("schema, message, pointer", REFUSED, ids=lambda value: None)
@pytest.mark.parametrize("strict", [False, True])
def test_nonsense_is_refused(schema: object, message: str, pointer: str, strict: bool):
    with pytest.raises(SchemaError) as caught:
        convert(schema, strict=strict)
    assert message in caught.value.message
    assert caught.value.pointer == pointer
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schema, pointer", LOOSENED, ids=lambda value: None)
def test_what_cannot_be_said_is_loosened_with_a_warning_or_refused_under_strict(schema: object, pointer: str):
    found = convert(schema).warnings
    assert any(line.startswith((f"{pointer}: ", f"{pointer}/")) for line in found), found
    with pytest.raises(SchemaError) as caught:
        convert(schema, strict=True)
    assert caught.value.pointer.startswith(pointer)
    assert "'strict'" in caught.value.message


@pytest.mark.parametrize("schema, pointer, fits, fails", TOLD, ids=lambda value: None)
def test_what_comes_out_right_all_the_same_is_told_and_not_refused_under_strict(
    schema: object, pointer: str, fits: list, fails: list
):
    converted = convert(schema, strict=True)
    check(converted.grammar)
    assert [line.partition(": ")[0] for line in converted.warnings] == [pointer]
    assert converted == convert(schema)
    matcher = Matcher(converted.grammar)
    assert [value for value in fits if not matcher.accepts(json.dumps(value))] == []
    assert [value for value in fails if matcher.accepts(json.dumps(value))] == []


def test_one_bad_pattern_does_not_spoil_thirty_tools():
    tools = [
        obj(
            {
                "name": {"const": f"tool{i}"},
                "arguments": obj({"q": {"type": "string", "pattern": r"(?<=x)y" if i == 7 else "^a"}}, ["q"]),
            },
            ["name", "arguments"],
        )
        for i in range(30)
    ]
    converted = convert({"anyOf": tools})
    assert len(converted.warnings) == 1
    assert converted.warnings[0].startswith("#/anyOf/7/properties/arguments/properties/q/pattern: ")
    matcher = Matcher(converted.grammar)
    assert matcher.accepts('{"name":"tool29","arguments":{"q":"abc"}}')
    assert not matcher.accepts('{"name":"tool29","arguments":{"q":"bc"}}')
    assert matcher.accepts('{"name":"tool7","arguments":{"q":"bc"}}')


def test_unknown_formats_do_not_fail_under_strict():
    assert convert({"type": "string", "format": "password"}, strict=True).warnings


def test_equal_schemas_give_equal_grammars_and_fresh_lists():
    schema = obj({"b": STR, "a": {"type": "array", "uniqueItems": True, "items": INT}}, ["a"])
    first, again = convert(schema), convert(json.loads(json.dumps(schema)))
    assert first == again
    first.warnings.clear()
    assert convert(schema).warnings == again.warnings != []


def test_order_of_properties_is_the_order_of_the_schema():
    there, back = obj({"a": INT, "b": INT}), obj({"b": INT, "a": INT})
    assert Matcher(convert(there).grammar).accepts('{"a":1,"b":2}')
    assert not Matcher(convert(back).grammar).accepts('{"a":1,"b":2}')


def test_any_object_is_for_json_mode():
    matcher = Matcher(convert(ANY_OBJECT).grammar)
    assert matcher.accepts('{"a": [1, {"b": null}]}') and not matcher.accepts("[]")


@pytest.mark.parametrize("text", [" 1", "1 ", "\n1", "1\n"])
def test_no_blanks_around_the_value(text: str):
    assert not Matcher(convert(INT).grammar).accepts(text)


@pytest.mark.parametrize(
    "blank, fine",
    [
        ("", True),
        (" ", True),
        ("\n", True),
        ("\n" + " " * 20, True),
        ("\n\t\t", True),
        ("  ", False),
        ("\n\n", False),
        ("\n" + " " * 21, False),
        ("\t", False),
    ],
)
def test_blanks_are_bounded(blank: str, fine: bool):
    matcher = Matcher(convert(obj({"a": {"type": "array", "items": INT}})).grammar)
    for text in ('{%s"a":[]}', '{"a":%s[]}', '{"a":[%s]}', '{"a":[1,%s2]}', '{"a":[1%s]}', '{"a":[]%s}'):
        assert matcher.accepts(text % blank) == fine, text


@pytest.mark.parametrize(
    "text, fine",
    [
        (r'"\u00e9\n\/\\"', True),
        (r'"\ud83d\ude00"', True),
        (r'"\ud83d"', False),
        (r'"\ude00"', False),
        (r'"\x41"', False),
        ('"\n"', False),
        ('"\x7f"', True),
        ('"a', False),
        (r'"\u00g0"', False),
        ('"\ufffe\U0010ffff"', True),
        ("'a'", False),
    ],
)
def test_escapes_in_free_strings(text: str, fine: bool):
    assert Matcher(convert(STR).grammar).accepts(text) == fine


def test_a_surrogate_pair_is_one_character():
    matcher = Matcher(convert({"type": "string", "minLength": 2, "maxLength": 2}).grammar)
    assert matcher.accepts(r'"\ud83d\ude00x"') and not matcher.accepts(r'"\ud83d\ude00"')


@pytest.mark.parametrize(
    "text, fine",
    [
        ("-0", False),
        ("01", False),
        ("1.", False),
        (".5", False),
        ("1e5", True),
        ("1E+05", True),
        ("-0.0", True),
        ("1e400", False),
        ("1e-290", True),
        ("+1", False),
        ("NaN", False),
        ("Infinity", False),
        ("0x1", False),
        ("1" * 20, True),
        ("1" * 40, False),
    ],
)
def test_numbers_are_json_and_finite(text: str, fine: bool):
    assert Matcher(convert(NUM).grammar).accepts(text) == (fine or text == "-0")
    if "e" not in text.lower() and "." not in text:
        assert Matcher(convert(INT).grammar).accepts(text) == fine


def test_half_surrogates_in_the_schema_stay_escapes():
    grammar = convert({"enum": ["\ud800x"], "title": "\udfff"}).grammar
    grammar.encode("utf-8")
    assert Matcher(grammar).accepts(r'"\ud800x"')


# Limits


def nest(levels: int) -> dict:
    schema: dict = INT
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def test_deep_schemas_are_refused_and_fairly_deep_ones_work():
    check(convert(nest(120)).grammar)
    for levels in (200, 1_000, 100_000):
        with pytest.raises(SchemaError, match="nested deeper"):
            convert(nest(levels))


@pytest.mark.parametrize("key", ["allOf", "anyOf", "oneOf"])
def test_deep_combinations_do_not_exhaust_the_stack(key: str):
    schema: dict = INT
    for _ in range(60):
        schema = {key: [schema]}
    assert Matcher(convert(schema).grammar).accepts("1")


def test_a_schema_that_is_too_long_is_refused():
    with pytest.raises(SchemaError, match="the limit is"):
        convert({"description": "x" * 600_000})


def test_wide_objects_work_up_to_the_limit():
    grammar = convert(obj({f"p{i}": INT for i in range(700)})).grammar
    check(grammar)
    assert Matcher(grammar).accepts('{"p3":1,"p699":2}')
    grammar = convert(obj({f"p{i}": INT for i in range(700)}, [f"p{i}" for i in range(700)])).grammar
    check(grammar)
    with pytest.raises(SchemaError, match="more than 800 properties"):
        convert(obj({f"p{i}": INT for i in range(900)}))


def test_exploding_alternatives_are_loosened():
    pairs = [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(20)]
    converted = convert({"type": "object", "properties": {"x": INT}, "allOf": pairs})
    check(converted.grammar)
    assert any("too many combinations" in line for line in converted.warnings)


def test_a_thousand_choices_are_loosened_in_one_pass_and_the_first_ones_are_enforced():
    needs = {f"a{i}": [f"b{i}"] for i in range(1500)}
    converted = convert({"type": "object", "properties": {"a0": INT, "b0": INT}, "dependentRequired": needs})
    matcher = Matcher(converted.grammar)
    assert matcher.accepts('{"a0":1,"b0":2}') and not Matcher(converted.grammar).accepts('{"a0":1}')
    assert sum("too many combinations" in line for line in converted.warnings) > 1400


def test_costly_patterns_end_in_an_error_and_not_in_a_hang(monkeypatch):
    monkeypatch.setattr("server.grammar.json_schema.shapes.SECONDS_MAX", 0.2)
    properties = {f"p{i}": {"type": "string", "pattern": f"(a|b)*a(a|b){{11}}{i}"} for i in range(500)}
    with pytest.raises(SchemaError, match="takes longer"):
        convert(obj(properties))


def test_many_long_strings_share_their_rule():
    properties = {f"p{i}": {"type": "string", "maxLength": 1000} for i in range(300)}
    check(convert(obj(properties)).grammar)
    properties = {f"p{i}": {"type": "string", "minLength": i, "maxLength": 2000} for i in range(300)}
    with pytest.raises(SchemaError, match="too large for llama.cpp"):
        convert(obj(properties))


def test_a_large_enum_is_fine():
    words = ["".join(random.Random(i).choices(string.ascii_letters, k=8)) for i in range(3000)]
    grammar = convert({"type": "string", "enum": words}).grammar
    check(grammar)
    matcher = Matcher(grammar)
    assert all(matcher.accepts(json.dumps(word)) for word in words[::100]) and not matcher.accepts('"nope"')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 1e300},
        {"type": "number", "maximum": -1e300},
        {"type": "number", "minimum": 1e-300},
        {"type": "number", "minimum": -1e300, "maximum": 1e300},
        {"type": "integer", "minimum": -(10**60), "maximum": 10**60},
        {"type": "number", "minimum": 10**39 + 0.5},
        {"type": "integer", "multipleOf": 10**50},
        {"multipleOf": 1e-300},
        {"minLength": 10**30},
        {"maxItems": 10**30, "type": "array"},
        {"minProperties": 10**9},
        {"type": "array", "minItems": 1e6},
    ],
)
def test_extreme_numbers_neither_crash_nor_hang(schema: dict):
    check(convert(schema).grammar)


# The public suite


def suite_folder() -> Path:
    folder = os.environ.get("JSON_SCHEMA_TEST_SUITE")
    if not folder:
        pytest.skip("only on machines where JSON_SCHEMA_TEST_SUITE names the folder of the public suite")
    return Path(folder) / "tests"


# Groups whose meaning depends on how floats are divided, or on `$id` beside a reference in old drafts.
SUITE_EXCEPTIONS = {
    "by small number",
    "small multiple of large integer",
    "$ref prevents a sibling $id from changing the base uri",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("draft", DRAFTS)
def test_public_suite(draft: str):
    """Nothing invalid is accepted and nothing invalid generated, unless a warning says so."""
    wrong, judged = [], 0
    for file in sorted((suite_folder() / draft).rglob("*.json")):
        is_note = "format" in file.parts or file.stem in ("format", "content")
        for entry in json.loads(file.read_text(encoding="utf-8")):
            if file.stem in ("refRemote", "vocabulary") or entry["description"] in SUITE_EXCEPTIONS:
                continue
            try:
                converted = convert(entry["schema"])
            except SchemaError:
                continue
            check(converted.grammar)
            matcher = Matcher(converted.grammar)
            for test in entry["tests"]:
                judged += 1
                accepted = any(matcher.accepts(text) for text in spellings(test["data"]))
                if accepted and not test["valid"] and not converted.warnings and not is_note:
                    wrong.append((file.stem, entry["description"], test["description"]))
            if not converted.warnings:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    wrong += [
                        (file.stem, entry["description"], text)
                        for text in random_texts(converted.grammar, entry["description"], 4)
                        if not validator(entry["schema"], draft).is_valid(json.loads(text))
                    ]
    assert wrong == [] and judged > 500
