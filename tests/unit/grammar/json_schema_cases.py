"""Schemas with values that fit and values that don't: data for the tests of the JSON schema converter.

Imports no module of the server. `fits` and `fails` are as in JSON schema (the tests compare them with the `jsonschema`
package); `kept_out` fits as well, but the grammar excludes it on purpose. `warns` has a part of each expected warning,
in order.

Over 700 lines: a list of cases.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    name: str
    schema: object
    fits: list = field(default_factory=list)
    fails: list = field(default_factory=list)
    kept_out: list = field(default_factory=list)
    warns: list = field(default_factory=list)


def obj(properties: dict | None = None, required: list | None = None, **more: object) -> dict:
    """An object schema."""
    schema: dict = {"type": "object", **({"properties": properties} if properties is not None else {}), **more}
    return {**schema, "required": required} if required is not None else schema


INT, STR, NUM, BOOL, NULL = ({"type": t} for t in ("integer", "string", "number", "boolean", "null"))
POINT = obj({"x": INT, "y": INT}, ["x", "y"])

ANY = [
    Case("anything", {}, [None, True, 0, -1.5e-7, 'é\n"\\\u2028😀', [], {}, [[{"a": [1, {"b": None}]}]]]),
    Case("true", True, [1, "a", {}]),
    Case("annotations only", {"title": "t", "description": "d", "default": 1, "$comment": "c"}, [1, None]),
    Case("any object", {"type": "object"}, [{}, {"a": 1}, {"": {"b": [1]}}], [[], 1, None, "x"]),
    Case("any array", {"type": "array"}, [[], [1], [[], {}, None, "a"]], [{}, 1]),
    Case("any string", STR, ["", 'a"b\\c/d\b\f\n\r\t\x00\x1f', "日本語", "😀"], [1, None, []]),
    Case("any number", NUM, [0, -1, 1.5, 1e22, 1e-7, 1e100, 5e-200, -0.25, 12345678901234567890], ["1", None]),
    Case("any integer", INT, [0, -1, 7, 9007199254740993, -12345678901234567890], [1.5, "1", True], [1.0]),
    Case("boolean", BOOL, [True, False], [0, "true", None]),
    Case("null", NULL, [None], [0, False, ""]),
    Case("type list", {"type": ["string", "null"]}, ["a", None], [1, []]),
    Case("type list with both numbers", {"type": ["integer", "number"]}, [1, 1.5], ["a"]),
    Case("nullable", {"type": "string", "nullable": True}, ["a"], [1], []),
    Case("nullable enum", {"type": "string", "enum": ["a"], "nullable": True}, ["a"], ["b"]),
]

NUMBERS = [
    Case("minimum", {"type": "integer", "minimum": 10}, [10, 11, 99, 100, 10**15], [9, 0, -10]),
    Case("negative minimum", {"type": "integer", "minimum": -12}, [-12, -9, -1, 0, 5], [-13, -20, -100]),
    Case("maximum", {"type": "integer", "maximum": 12}, [12, 0, 9, -1, -(10**12)], [13, 20, 100]),
    Case("negative maximum", {"type": "integer", "maximum": -7}, [-7, -8, -10, -70], [-6, 0, 7]),
    Case(
        "both bounds",
        {"type": "integer", "minimum": 5, "maximum": 315},
        [5, 9, 10, 99, 100, 299, 315],
        [4, 316, 320, 400, 1000, -5],
    ),
    Case(
        "across zero",
        {"type": "integer", "minimum": -30, "maximum": 25},
        [-30, -29, -9, 0, 9, 19, 25],
        [-31, 26, 30, 100],
    ),
    Case("negative range", {"type": "integer", "minimum": -250, "maximum": -117}, [-250, -117, -199], [-116, -251, -9]),
    Case("one value", {"type": "integer", "minimum": 7, "maximum": 7}, [7], [6, 8, 77]),
    Case("exclusive", {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10}, [1, 9], [0, 10]),
    Case("draft 4 exclusive", {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 3}, [1, 3], [4]),
    Case("bounds of a byte", {"type": "integer", "minimum": 0, "maximum": 255}, [0, 25, 26, 255], [256, 260, -1]),
    Case(
        "64 bits",
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        [2**63 - 1, -(2**63), 0, 10**18],
        [2**63, -(2**63) - 1, 10**19],
    ),
    Case("fractional bounds of an integer", {"type": "integer", "minimum": 0.5, "maximum": 3.5}, [1, 3], [0, 4]),
    Case("number from zero", {"type": "number", "minimum": 0}, [0, 0.5, 3, 1e-7, 1e20], [-1, -0.5]),
    Case("positive number", {"type": "number", "exclusiveMinimum": 0}, [1, 0.001, 12.5], [0, -1, 0.0]),
    Case("number up to zero", {"type": "number", "maximum": 0}, [0, -1.5], [1, 0.1]),
    Case("negative number", {"type": "number", "exclusiveMaximum": 0}, [-0.5, -7], [0, 1]),
    Case("unit interval", {"type": "number", "minimum": 0, "maximum": 1}, [0, 1, 0.5, 0.999, 1.0], [1.01, 2, -0.1]),
    Case(
        "open unit interval",
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        [0.5, 0.001, 0.999],
        [0, 1, 1.0, 0.0, 2],
    ),
    Case(
        "decimal bounds",
        {"type": "number", "minimum": -1.5, "maximum": 2.25},
        [-1.5, -1.25, 0, 2, 2.25, 2.2],
        [-1.51, 2.251, 2.3, -2, 3],
    ),
    Case(
        "open decimal bounds",
        {"type": "number", "exclusiveMinimum": 1.5, "exclusiveMaximum": 1.75},
        [1.51, 1.7],
        [1.5, 1.75, 1.8, 1.4, 2],
    ),
    Case("number above", {"type": "number", "minimum": 19.99}, [19.99, 20, 100.5, 19.991], [19.98, 2, 19]),
    Case("number below", {"type": "number", "maximum": -0.125}, [-0.125, -1, -0.2], [-0.12, 0, 1]),
    Case("multiple of five", {"type": "integer", "multipleOf": 5}, [0, 5, -15, 100], [1, 7, 12]),
    Case("multiple of seven", {"type": "integer", "multipleOf": 7}, [0, 7, 700, -49], [1, 8, 10]),
    Case(
        "multiple in a range",
        {"type": "integer", "minimum": 1, "maximum": 3600, "multipleOf": 60},
        [60, 3600, 120],
        [0, 30, 61, 3660],
    ),
    Case("two multiples", {"allOf": [{"type": "integer", "multipleOf": 4}, {"multipleOf": 6}]}, [0, 12, 24], [4, 6, 8]),
    Case("halves", {"type": "number", "multipleOf": 0.5}, [0, 1, 1.5, -2.5], [0.25, 1.1]),
    Case(
        "quarters between",
        {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25},
        [0, 0.25, 0.75, 1],
        [0.3, 1.25, 0.125],
    ),
    Case("integer multiple of a fraction", {"type": "integer", "multipleOf": 2.5}, [0, 5, 10], [1, 2, 7]),
    Case("large multiple", {"type": "integer", "multipleOf": 86413}, [86413], [], [], ["multipleOf: not enforced"]),
    Case(
        "large multiple with zeros",
        {"type": "integer", "multipleOf": 86400},
        [0, 86400, -172800, 864000],
        [864, 8640, 86401, 86500, 1],
    ),
    Case(
        "bounds of a float",
        {"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38},
        [0, -1.5, 10**38, -34 * 10**37],
        [35 * 10**37, -(10**39)],
    ),
    Case(
        "128 bits",
        {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**128},
        [0, 7, 2**128 - 1],
        [2**128, -1, 4 * 10**38],
    ),
    Case("bounds without type", {"minimum": 3, "maximum": 5}, [3, 4.5], [2, 6], ["a"]),
]

STRINGS = [
    Case(
        "lengths",
        {"type": "string", "minLength": 2, "maxLength": 4},
        ["ab", "abcd", "é😀", '\n"', "\\\\\\\\"],
        ["", "a", "abcde"],
    ),
    Case("no text", {"type": "string", "maxLength": 0}, [""], ["a"]),
    Case("minimum length", {"type": "string", "minLength": 3}, ["abc", "abcdefgh"], ["ab", ""]),
    Case(
        "long", {"type": "string", "minLength": 1, "maxLength": 2500}, ["a", "b" * 2500, "c" * 1999], ["", "a" * 2501]
    ),
    Case(
        "very long",
        {"type": "string", "minLength": 2100, "maxLength": 6000},
        ["a" * 2100, "a" * 6000, "a" * 5001],
        ["a" * 2099, "a" * 6001],
    ),
    Case("pattern", {"type": "string", "pattern": "^[a-z]+$"}, ["a", "abc"], ["", "A", "ab1"]),
    Case("search", {"type": "string", "pattern": "b+"}, ["b", "abc", "xbbx"], ["", "ac"]),
    Case("start anchor", {"type": "string", "pattern": "^ab"}, ["ab", "abc"], ["cab", "a"]),
    Case("end anchor", {"type": "string", "pattern": "ab$"}, ["ab", "cab"], ["abc"]),
    Case("anchors in branches", {"type": "string", "pattern": "^a|b$"}, ["a", "ax", "xb", "b"], ["xa", "bx", ""]),
    Case("empty pattern", {"type": "string", "pattern": ""}, ["", "x"]),
    Case("classes", {"type": "string", "pattern": r"^\d{3}-\w\S\s$"}, ["123-a! ", "000-__\t"], ["12-aaa", "123-a  "]),
    Case("negated classes", {"type": "string", "pattern": r"^\D\W[^abc]$"}, ["a!d", '  "', ",\\\\"], ["1!d", "aad"]),
    Case("counts", {"type": "string", "pattern": r"^(ab){2,3}c{2}d{1,}$"}, ["ababccd", "abababccdd"], ["abccd"]),
    Case("lazy", {"type": "string", "pattern": r"^a+?b*?c??$"}, ["a", "aabc"], ["b"]),
    Case(
        "named group", {"type": "string", "pattern": r"^(?<year>\d{4})(?:-(?P<m>\d\d))?$"}, ["2024", "2024-01"], ["24"]
    ),
    Case("slash", {"type": "string", "pattern": r"^a\/b$"}, ["a/b"], ["a\\/b"]),
    Case("quote and backslash", {"type": "string", "pattern": r'^"[\\]\x22\u005c$'}, ['"\\"\\'], ["x"]),
    Case("line end", {"type": "string", "pattern": r"^a\nb\tc$"}, ["a\nb\tc"], ["anbtc"]),
    Case("control", {"type": "string", "pattern": "^\\x01\\u001f$"}, ["\x01\x1f"], ["\x1f\x01"]),
    Case("beyond the plane", {"type": "string", "pattern": "^[😀-😂]$"}, ["😁"], ["a", "😃"]),
    Case("dot", {"type": "string", "pattern": "^.{2}$"}, ["ab", '"\\'], ["a\n", "a"]),
    Case(
        "semantic version",
        {"type": "string", "pattern": r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$"},
        ["1.0.0", "10.20.3"],
        ["01.0.0", "1.0"],
    ),
    Case(
        "lookahead", {"type": "string", "pattern": r"^(?=.*\d)(?=.*[a-z])\S{4,}$"}, ["abc1", "1xyz!"], ["abcd", "a1 b"]
    ),
    Case("negative lookahead", {"type": "string", "pattern": "^(?!admin$)[a-z]+$"}, ["user", "admins"], ["admin"]),
    Case(
        "pattern and length",
        {"type": "string", "pattern": "^a*b$", "minLength": 3, "maxLength": 4},
        ["aab", "aaab"],
        ["ab", "aaaab", "aaa"],
    ),
    Case(
        "two patterns", {"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "z$"}]}, ["az", "a.z"], ["a", "z"]
    ),
    Case(
        "pattern with its own length",
        {"type": "string", "pattern": "^[a-f0-9]{64}$", "maxLength": 64},
        ["0a" * 32],
        ["0a" * 31],
    ),
    Case("large pattern", {"type": "string", "pattern": "^(ab|c){0,900}$"}, ["", "abc" * 3], ["b", "aab"]),
    Case(
        "ambiguous pattern",
        {"type": "string", "pattern": "^(a|b)*a(a|b){12}$"},
        ["a" * 13, "ba" + "b" * 12],
        ["b" * 13, "a" * 12],
    ),
    Case("pattern without type", {"pattern": "^x$"}, ["x"], ["y"], [3]),
    Case(
        "date",
        {"type": "string", "format": "date"},
        ["2024-02-29", "1999-12-31", "0001-01-01"],
        ["2023-02-29", "2024-13-01", "2024-00-10", "2024-04-31", "24-01-01", "0000-01-01"],
    ),
    Case(
        "time",
        {"type": "string", "format": "time"},
        ["23:59:59Z", "00:00:00.123+05:30"],
        ["24:00:00Z", "12:60:00Z", "1"],
    ),
    Case(
        "date-time",
        {"type": "string", "format": "date-time"},
        ["2024-02-29T12:00:00Z", "1985-04-12T23:20:50.52-08:00"],
        ["2024-02-30T12:00:00Z", "2024-02-29", "2024-02-29T25:00:00Z"],
    ),
    Case(
        "uuid", {"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567", "x" * 36]
    ),
    Case("email", {"type": "string", "format": "email"}, ["a@b.c", "first.last+tag@sub.example.com"], ["no at sign"]),
    Case(
        "ipv4",
        {"type": "string", "format": "ipv4"},
        ["0.0.0.0", "255.255.255.255", "10.1.20.199"],
        ["256.0.0.1", "1.2.3", "1.2.3.4.5", "01.2.3.4"],
    ),
    Case(
        "ipv6",
        {"type": "string", "format": "ipv6"},
        ["::", "::1", "fe80::1", "1:2:3:4:5:6:7:8", "2001:db8::8a2e:370:7334", "::ffff:192.168.0.1", "1::"],
        ["1:2:3:4:5:6:7", "1::2::3", "g::", "1:2:3:4:5:6:7:8:9"],
    ),
    Case("hostname", {"type": "string", "format": "hostname"}, ["localhost", "a.example.com", "x-1.y"]),
    Case(
        "uri",
        {"type": "string", "format": "uri"},
        ["https://example.com/a?b=c#d", "mailto:a@b.c", "urn:isbn:123", "file:///etc/hosts", "http://u@[::1]:80/%20"],
    ),
    Case("duration", {"type": "string", "format": "duration"}, ["P1Y2M3DT4H5M6S", "PT20M", "P3W", "P1D"]),
    Case(
        "format and length",
        {"type": "string", "format": "uuid", "minLength": 36},
        ["123e4567-e89b-12d3-a456-426614174000"],
    ),
    Case(
        "own format", {"type": "string", "format": "password"}, ["x"], [], [], ["the format 'password' is not enforced"]
    ),
    Case("unsupported pattern", {"type": "string", "pattern": r"^(a)\1$"}, ["aa"], [], [], ["back references"]),
    Case("bad pattern", {"type": "string", "pattern": "^(a"}, [], [], [], ["never closed"]),
]

ENUMS = [
    Case(
        "enum",
        {"enum": ["red", "green", "re", 1, None, 2.5, True]},
        ["red", "re", 1, None, 2.5, True],
        ["r", "gree", 2, False, "reda"],
    ),
    Case(
        "enum with structure",
        {"enum": [{"a": [1, {"b": "x"}]}, [], {}, [[]]]},
        [{"a": [1, {"b": "x"}]}, [], {}, [[]]],
        [[1], {"a": []}],
    ),
    Case(
        "enum of marks",
        {"enum": ['"', "\\", "\n", "é", "]", 'a"b', ""]},
        ['"', "\\", "\n", "é", "]", 'a"b', ""],
        ["n", "/"],
    ),
    Case("const text", {"const": "x y"}, ["x y"], ["x", "xy"]),
    Case("const number", {"const": -3.25}, [-3.25], [3.25, -3]),
    Case("const object", {"const": {"k": [True]}}, [{"k": [True]}], [{}, {"k": [False]}]),
    Case("const null", {"const": None}, [None], [0]),
    Case("enum by type", {"type": "string", "enum": ["a", 1, None]}, ["a"], [1, None]),
    Case("enum by bounds", {"enum": [1, 5, 10], "minimum": 4}, [5, 10], [1]),
    Case("enum by pattern", {"enum": ["ab", "cd"], "pattern": "^a"}, ["ab"], ["cd"]),
    Case("enum by allOf", {"allOf": [{"enum": ["a", "b", 1]}, {"enum": ["b", "c", 1.0]}]}, ["b"], ["a", "c"]),
    Case(
        "enum of arrays by what they contain",
        {"enum": [[], [1], [2, 3]], "contains": {"minimum": 2}},
        [[2, 3]],
        [[], [1]],
    ),
    Case(
        "enum of objects",
        {
            "enum": [{}, {"a": 1}, {"b": 1}, {"a": "x"}],
            "properties": {"a": INT},
            "minProperties": 1,
            "additionalProperties": False,
        },
        [{"a": 1}],
        [{}, {"b": 1}, {"a": "x"}],
    ),
    Case("true is not one", {"enum": [1]}, [1], [True]),
    Case(
        "many words",
        {"enum": [f"{a}{b}" for a in ("alpha", "al", "beta", "b") for b in ("", "x", "xy", "z")]},
        ["alpha", "alxy", "bz", "beta"],
        ["alph", "alxyz", "", "bet"],
    ),
    Case("nested beginnings", {"enum": ["a" * n for n in range(1, 40)]}, ["a", "a" * 39], ["", "a" * 40]),
    Case("not a value", {"type": "string", "not": {"enum": ["bad", "ba"]}}, ["b", "bade", "good", ""], ["bad", "ba"]),
    Case("not this boolean", {"type": "boolean", "not": {"const": False}}, [True], [False]),
    Case("not a type", {"not": {"type": "string"}}, [1, None, {}, [1]], ["a"]),
    Case(
        "not these types",
        {"type": ["string", "integer", "null"], "not": {"type": ["null", "integer"]}},
        ["a"],
        [1, None],
    ),
    Case("not a pattern", {"type": "string", "not": {"pattern": "^a"}}, ["", "ba"], ["a", "ab"]),
    Case(
        "not an integer value",
        {"type": "integer", "not": {"const": 5}},
        [4],
        [],
        [],
        ["does not exclude the integer 5"],
    ),
    Case("not anything else", {"type": "integer", "not": {"minimum": 5}}, [4], [], [], ["'not' is not enforced"]),
]

OBJECTS = [
    Case(
        "required and optional",
        obj({"a": INT, "b": STR, "c": BOOL}, ["b"]),
        [{"b": "x"}, {"a": 1, "b": "x"}, {"b": "x", "c": True}, {"a": 1, "b": "", "c": False}],
        [{}, {"a": 1}, {"a": 1, "c": True}, {"b": 1}],
        [{"b": "x", "z": 1}, {"b": "x", "a": 1}],
    ),
    Case(
        "all optional",
        obj({"a": INT, "b": INT, "c": INT}),
        [
            {},
            {"a": 1},
            {"b": 1},
            {"c": 1},
            {"a": 1, "b": 2},
            {"a": 1, "c": 3},
            {"b": 2, "c": 3},
            {"a": 1, "b": 2, "c": 3},
        ],
        [{"a": "x"}],
    ),
    Case("all required", obj({"a": INT, "b": INT}, ["a", "b"]), [{"a": 1, "b": 2}], [{"a": 1}, {"b": 1}, {}]),
    Case(
        "optional around required",
        obj({"a": INT, "b": INT, "c": INT, "d": INT, "e": INT}, ["b", "d"]),
        [
            {"b": 1, "d": 2},
            {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4},
            {"b": 1, "c": 1, "d": 1},
            {"b": 1, "d": 1, "e": 1},
        ],
        [{"b": 1}, {"d": 1}, {"a": 1, "b": 1, "c": 1, "e": 1}],
    ),
    Case("no properties", obj({}), [{}], [], [{"a": 1}]),
    Case("closed", obj({"a": INT}, additionalProperties=False), [{}, {"a": 1}], [{"b": 1}, {"a": 1, "b": 1}]),
    Case("closed without properties", obj(additionalProperties=False), [{}], [{"a": 1}]),
    Case(
        "open",
        obj({"a": INT}, additionalProperties=True),
        [{}, {"a": 1}, {"b": []}, {"a": 1, "b": 2, "c": None}, {"ab": "x"}, {"": 0}],
        [{"a": "x"}],
        [{"b": 1, "a": 1}],
    ),
    Case(
        "further of a type",
        obj({"ab": INT, "abc": STR}, ["ab"], additionalProperties=BOOL),
        [{"ab": 1}, {"ab": 1, "abc": "x"}, {"ab": 1, "a": True, "abcd": False}, {"ab": 1, "": True}],
        [{"ab": True}, {"ab": 1, "abc": True}, {"ab": 1, "x": 1}],
    ),
    Case("map", obj(additionalProperties={"type": "array", "items": INT}), [{}, {"x": [1], "y": []}], [{"x": 1}]),
    Case(
        "keys with marks",
        obj({'q"': INT, "b\\": INT, "n\n": INT, "é": INT, "": INT}, additionalProperties=STR),
        [{'q"': 1, "b\\": 2, "n\n": 3, "é": 4, "": 5}, {"q": "x", "\n": "y", 'x"': ""}],
        [{'q"': "x"}, {"q": 1}],
    ),
    Case("required but undeclared", obj({"a": INT}, ["a", "b"]), [{"a": 1, "b": []}], [{"a": 1}]),
    Case("required only", obj(None, ["k"]), [{"k": 1}, {"k": 1, "z": 2}], [{}]),
    Case(
        "patterns of keys",
        obj(patternProperties={"^n_": INT, "^s_": STR}, additionalProperties=False),
        [{}, {"n_a": 1}, {"s_": "x", "n_": 0}],
        [{"n_a": "x"}, {"x": 1}],
    ),
    Case(
        "overlapping patterns",
        obj(patternProperties={"a": {"minimum": 5}, "b": {"maximum": 8}}, additionalProperties=INT),
        [{"a": 6}, {"b": 3}, {"ab": 7}, {"c": 100}],
        [{"a": 4}, {"b": 9}, {"ab": 9}, {"ab": 4}, {"c": "x"}],
    ),
    Case(
        "patterns and properties",
        obj({"x1": STR}, patternProperties={"^x": {"minLength": 2}}),
        [{"x1": "ab"}, {"x2": "cd"}],
        [{"x1": "a"}, {"x2": "a"}],
    ),
    Case(
        "names of keys",
        obj(propertyNames={"pattern": "^[a-z]+$"}, additionalProperties=INT),
        [{}, {"ab": 1}],
        [{"A": 1}],
    ),
    Case("length of keys", obj(propertyNames={"maxLength": 2}), [{"ab": 1}], [{"abc": 1}]),
    Case(
        "keys from a list with what is no text",
        obj(propertyNames={"enum": [None, 5, "a"]}),
        [{"a": 1}, {}],
        [{"b": 1}, {"5": 1}],
    ),
    Case(
        "keys from a list",
        obj(propertyNames={"enum": ["a", "b"]}, additionalProperties=INT),
        [{"a": 1}, {"b": 1, "a": 2}],
        [{"c": 1}],
    ),
    Case(
        "names forbid a property",
        obj({"ok": INT, "NO": INT}, propertyNames={"pattern": "^[a-z]+$"}),
        [{"ok": 1}, {}],
        [{"NO": 1}],
    ),
    Case(
        "at least one",
        obj({"a": INT, "b": INT, "c": INT}, minProperties=1),
        [{"a": 1}, {"c": 1}, {"a": 1, "c": 2}],
        [{}],
    ),
    Case(
        "at most one",
        obj({"a": INT, "b": INT, "c": INT}, maxProperties=1),
        [{}, {"a": 1}, {"b": 1}],
        [{"a": 1, "b": 1}],
    ),
    Case(
        "two of three",
        obj({"a": INT, "b": INT, "c": INT}, minProperties=2, maxProperties=2),
        [{"a": 1, "b": 1}, {"a": 1, "c": 1}, {"b": 1, "c": 1}],
        [{"a": 1}, {}, {"a": 1, "b": 1, "c": 1}],
    ),
    Case(
        "count with required",
        obj({"a": INT, "b": INT, "c": INT}, ["c"], maxProperties=2),
        [{"c": 1}, {"a": 1, "c": 1}],
        [{"a": 1, "b": 1, "c": 1}, {"a": 1}],
    ),
    Case(
        "count of further keys",
        obj(additionalProperties=INT, minProperties=1, maxProperties=3),
        [{"a": 1}, {"a": 1, "b": 2, "c": 3}],
        [{}, {"a": 1, "b": 2, "c": 3, "d": 4}],
    ),
    Case(
        "many further keys",
        obj(additionalProperties=INT, minProperties=2),
        [{"a": 1, "b": 2}],
        [{"a": 1}],
        [],
        ["a key that the model writes twice"],
    ),
    Case("empty object only", obj(maxProperties=0), [{}], [{"a": 1}]),
    Case("forbidden property", obj({"a": INT, "b": False}), [{"a": 1}, {}], [{"b": 1}]),
    Case(
        "not required",
        {"type": "object", "properties": {"a": INT, "b": INT}, "not": {"required": ["a"]}},
        [{}, {"b": 1}],
        [{"a": 1}],
    ),
    Case(
        "unevaluated",
        {"allOf": [obj({"a": INT})], "properties": {"b": INT}, "unevaluatedProperties": False},
        [{"b": 1}, {"b": 1, "a": 2}],
        [{"c": 1}],
    ),
    Case("unevaluated of a type", obj({"b": INT}, unevaluatedProperties=STR), [{"b": 1, "z": "x"}], [{"z": 1}]),
    Case(
        "dependent keys",
        obj({"card": INT, "address": STR}, dependentRequired={"card": ["address"]}),
        [{}, {"address": "x"}, {"card": 1, "address": "x"}],
        [{"card": 1}],
    ),
    Case(
        "dependent schema",
        obj({"a": INT, "b": INT}, dependentSchemas={"a": {"properties": {"b": {"minimum": 10}}}}),
        [{"b": 1}, {"a": 1, "b": 10}, {"a": 1}],
        [{"a": 1, "b": 1}],
    ),
    Case(
        "old dependencies",
        {"$schema": "http://json-schema.org/draft-07/schema#", **obj({"a": INT, "b": INT}, dependencies={"a": ["b"]})},
        [{}, {"b": 1}, {"a": 1, "b": 1}],
        [{"a": 1}],
    ),
    Case("properties without type", {"properties": {"a": INT}}, [{"a": 1}, {}], [{"a": "x"}], [3]),
    Case(
        "nested",
        obj({"p": obj({"q": obj({"r": INT}, ["r"])}, ["q"])}, ["p"]),
        [{"p": {"q": {"r": 1}}}],
        [{"p": {"q": {}}}],
    ),
    Case(
        "repeated type",
        obj({"from": POINT, "to": POINT}, ["from", "to"]),
        [{"from": {"x": 1, "y": 2}, "to": {"x": 3, "y": 4}}],
        [{"from": {"x": 1}, "to": {"x": 3, "y": 4}}],
    ),
]

ARRAYS = [
    Case("items", {"type": "array", "items": INT}, [[], [1], [1, 2, 3]], [["a"], [1, None]]),
    Case(
        "counts",
        {"type": "array", "items": INT, "minItems": 2, "maxItems": 4},
        [[1, 2], [1, 2, 3, 4]],
        [[], [1], [1] * 5],
    ),
    Case("exactly one", {"type": "array", "items": INT, "minItems": 1, "maxItems": 1}, [[1]], [[], [1, 2]]),
    Case("at most one", {"type": "array", "items": INT, "maxItems": 1}, [[], [1]], [[1, 2]]),
    Case("no item", {"type": "array", "maxItems": 0}, [[]], [[1]]),
    Case("at least", {"type": "array", "items": BOOL, "minItems": 3}, [[True] * 3, [False] * 7], [[True] * 2]),
    Case(
        "many",
        {"type": "array", "items": INT, "minItems": 1200, "maxItems": 1201},
        [[1] * 1200, [1] * 1201],
        [[1] * 1199],
    ),
    Case(
        "tuple",
        {"type": "array", "prefixItems": [INT, STR], "minItems": 2, "items": False},
        [[1, "a"]],
        [[1], ["a", 1], [1, "a", 2]],
    ),
    Case(
        "tuple of any length",
        {"type": "array", "prefixItems": [INT, STR, BOOL]},
        [[], [1], [1, "a"], [1, "a", True]],
        [["a"]],
        [[1, "a", True, 4]],
    ),
    Case(
        "tuple and rest",
        {"prefixItems": [INT, STR], "items": BOOL, "type": "array"},
        [[1], [1, "a", True, False]],
        [[1, "a", 1], [True]],
    ),
    Case(
        "old tuple",
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "array",
            "items": [INT, STR],
            "additionalItems": BOOL,
        },
        [[1], [1, "a", True]],
        [[1, 2], [1, "a", "b"]],
    ),
    Case(
        "old closed tuple",
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "array",
            "items": [INT],
            "additionalItems": False,
            "minItems": 1,
        },
        [[1]],
        [[], [1, 2]],
    ),
    Case(
        "long minimum beyond tuple", {"type": "array", "prefixItems": [INT], "minItems": 3}, [[1, "a", None]], [[1, 2]]
    ),
    Case(
        "tuple with counts",
        {"type": "array", "prefixItems": [INT, INT, INT], "items": STR, "minItems": 2, "maxItems": 5},
        [[1, 2], [1, 2, 3, "a", "b"]],
        [[1], [1, 2, 3, "a", "b", "c"], [1, 2, "a"]],
    ),
    Case("impossible item", {"type": "array", "prefixItems": [INT, False, INT]}, [[], [1]], [[1, 2]]),
    Case("items false", {"type": "array", "items": False}, [[]], [[1]]),
    Case(
        "contains",
        {"type": "array", "items": INT, "contains": {"minimum": 10}},
        [[10], [1, 2, 30], [50, 1]],
        [[], [1, 2]],
    ),
    Case(
        "contains twice",
        {"type": "array", "items": INT, "contains": {"const": 5}, "minContains": 2},
        [[5, 5], [1, 5, 2, 5, 3]],
        [[5], [1, 5], []],
    ),
    Case(
        "contains in bounds",
        {"type": "array", "items": {"enum": ["a", "b"]}, "contains": {"const": "b"}, "maxItems": 3, "minItems": 2},
        [["b", "a"], ["a", "a", "b"]],
        [["b"], ["a", "a"], ["a", "a", "a"]],
    ),
    Case(
        "contains with tuple",
        {"type": "array", "prefixItems": [STR, INT], "contains": {"type": "integer"}},
        [["a", 1]],
        [["a"], []],
    ),
    Case(
        "contains none needed", {"type": "array", "items": INT, "contains": {"const": 1}, "minContains": 0}, [[], [2]]
    ),
    Case(
        "unique",
        {"type": "array", "items": INT, "uniqueItems": True},
        [[1, 2]],
        [],
        [],
        ["duplicate items are not prevented"],
    ),
    Case("trivially unique", {"type": "array", "items": INT, "uniqueItems": True, "maxItems": 1}, [[1]], [[1, 1]]),
    Case(
        "nested arrays",
        {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": INT}}},
        [[], [[]], [[[1], []], []]],
        [[1], [[1]]],
    ),
    Case("array of objects", {"type": "array", "items": POINT}, [[{"x": 1, "y": 2}]], [[{}]]),
    Case("items without type", {"items": INT}, [[1]], [["a"]], [3]),
]

COMBINED = [
    Case("anyOf", {"anyOf": [INT, STR]}, [1, "a"], [None, []]),
    Case("oneOf of types", {"oneOf": [INT, STR, NULL]}, [1, "a", None], [True]),
    Case(
        "oneOf by constant",
        {"oneOf": [obj({"k": {"const": "a"}, "x": INT}, ["k", "x"]), obj({"k": {"const": "b"}, "y": STR}, ["k", "y"])]},
        [{"k": "a", "x": 1}, {"k": "b", "y": "s"}],
        [{"k": "a", "y": "s"}, {"k": "b", "x": 1}, {}],
    ),
    Case(
        "oneOf with common base",
        {
            "type": "object",
            "properties": {"k": {"enum": ["a", "b"]}},
            "required": ["k"],
            "oneOf": [{"properties": {"k": {"const": "a"}, "x": INT}}, {"properties": {"k": {"const": "b"}, "y": INT}}],
        },
        [{"k": "a", "x": 1}, {"k": "b", "y": 1}, {"k": "a"}],
        [{"k": "a", "x": "s"}, {"k": "c"}, {}],
    ),
    Case(
        "oneOf of ranges",
        {"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 7}]},
        [3, 7],
        [5],
    ),
    Case(
        "oneOf of lengths",
        {"oneOf": [{"type": "string", "maxLength": 2}, {"type": "string", "minLength": 4}]},
        ["a", "abcd"],
        ["abc"],
    ),
    Case(
        "oneOf of patterns",
        {"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "^b"}]},
        ["a", "bc"],
        ["c"],
    ),
    Case(
        "oneOf of keys",
        {
            "oneOf": [
                obj({"a": INT}, ["a"], additionalProperties=False),
                obj({"b": INT}, ["b"], additionalProperties=False),
            ]
        },
        [{"a": 1}, {"b": 1}],
        [{}, {"a": 1, "b": 1}],
    ),
    Case(
        "overlapping oneOf",
        {"oneOf": [INT, {"type": "number", "minimum": 2}]},
        [1, 2.5],
        [],
        [],
        ["oneOf: a value may fit several branches"],
    ),
    Case(
        "allOf",
        {"allOf": [obj({"a": INT}, ["a"]), obj({"b": STR}, ["b"])]},
        [{"a": 1, "b": "x"}],
        [{"a": 1}, {"b": "x"}],
    ),
    Case(
        "allOf on one property",
        {"allOf": [obj({"a": {"minimum": 3}}), obj({"a": {"type": "integer", "maximum": 5}})]},
        [{"a": 3}, {"a": 5}, {}],
        [{"a": 2}, {"a": 6}, {"a": 3.5}],
    ),
    Case(
        "allOf with siblings",
        {"type": "object", "properties": {"a": INT}, "required": ["a"], "allOf": [{"properties": {"b": INT}}]},
        [{"a": 1}, {"a": 1, "b": 2}],
        [{"b": 2}],
    ),
    Case(
        "allOf of lengths",
        {"type": "string", "allOf": [{"minLength": 2}, {"maxLength": 3}]},
        ["ab", "abc"],
        ["a", "abcd"],
    ),
    Case(
        "allOf of types", {"allOf": [{"type": ["string", "integer"]}, {"type": ["integer", "null"]}]}, [1], ["a", None]
    ),
    Case("integer and number", {"allOf": [INT, NUM]}, [1], [1.5]),
    Case(
        "allOf of arrays",
        {"allOf": [{"type": "array", "items": INT}, {"minItems": 1}, {"items": {"maximum": 5}}]},
        [[5]],
        [[], [6]],
    ),
    Case(
        "anyOf beside properties",
        {
            "type": "object",
            "properties": {"t": STR},
            "anyOf": [{"properties": {"a": INT}, "required": ["a"]}, {"properties": {"b": INT}, "required": ["b"]}],
        },
        [{"a": 1}, {"t": "x", "b": 2}],
        [{}, {"t": "x"}],
    ),
    Case(
        "anyOf of required",
        {"type": "object", "properties": {"a": INT, "b": INT}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}],
        [{}],
    ),
    Case(
        "anyOf inside allOf",
        {"allOf": [{"anyOf": [{"const": 1}, {"const": 2}]}, {"anyOf": [{"const": 2}, {"const": 3}]}]},
        [2],
        [1, 3],
    ),
    Case(
        "branch that can't be", {"anyOf": [INT, {"type": "string", "minLength": 3, "maxLength": 2}, False]}, [1], ["ab"]
    ),
    Case("optional that can't be", obj({"a": {"type": "string", "enum": [1]}, "b": INT}), [{}, {"b": 1}], [{"a": 1}]),
    Case(
        "if then else",
        {
            "type": "object",
            "properties": {"k": {"enum": ["a", "b"]}},
            "required": ["k"],
            "if": {"properties": {"k": {"const": "a"}}},
            "then": {"properties": {"n": INT}, "required": ["n"]},
            "else": {"properties": {"s": STR}, "required": ["s"]},
        },
        [{"k": "a", "n": 1}, {"k": "b", "s": "x"}],
        [{"k": "a"}, {"k": "b"}, {"k": "a", "s": "x"}],
    ),
    Case(
        "if on a string",
        {
            "type": "object",
            "properties": {"k": STR, "n": INT},
            "required": ["k"],
            "if": {"properties": {"k": {"const": "a"}}, "required": ["k"]},
            "then": {"required": ["n"]},
        },
        [{"k": "a", "n": 1}, {"k": "b"}, {"k": "b", "n": 1}],
        [{"k": "a"}],
    ),
    Case(
        "hard if",
        {"type": "integer", "if": {"minimum": 5}, "then": {"multipleOf": 2}, "else": {"multipleOf": 3}},
        [6, 3],
        [1],
        [],
        ["not checked against 'if'"],
    ),
    Case("if true", {"type": "integer", "if": True, "then": {"minimum": 3}}, [3], [2]),
    Case("optional text", obj({"a": {"anyOf": [STR, NULL]}}, ["a"]), [{"a": None}, {"a": "x"}], [{"a": 1}, {}]),
]

REFERENCES = [
    Case(
        "$defs",
        {"$defs": {"p": POINT}, "type": "array", "items": {"$ref": "#/$defs/p"}},
        [[], [{"x": 1, "y": 2}]],
        [[{}]],
    ),
    Case(
        "definitions",
        {
            "definitions": {"n": {"type": "integer", "minimum": 1}},
            "properties": {"a": {"$ref": "#/definitions/n"}},
            "type": "object",
        },
        [{"a": 1}],
        [{"a": 0}],
    ),
    Case("reference at the root", {"$ref": "#/$defs/p", "$defs": {"p": POINT}}, [{"x": 1, "y": 2}], [{"x": 1}]),
    Case("siblings of a reference", {"$defs": {"s": STR}, "$ref": "#/$defs/s", "minLength": 2}, ["ab"], ["a"]),
    Case(
        "chain",
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": BOOL}, "$ref": "#/$defs/a"},
        [True],
        [1],
    ),
    Case(
        "list",
        {
            "$defs": {"n": obj({"v": INT, "next": {"anyOf": [{"$ref": "#/$defs/n"}, NULL]}}, ["v", "next"])},
            "$ref": "#/$defs/n",
        },
        [{"v": 1, "next": None}, {"v": 1, "next": {"v": 2, "next": {"v": 3, "next": None}}}],
        [{"v": 1}, {"v": 1, "next": 2}],
    ),
    Case(
        "tree through the root",
        obj({"v": INT, "kids": {"type": "array", "items": {"$ref": "#"}}}, ["v"]),
        [{"v": 1}, {"v": 1, "kids": [{"v": 2, "kids": []}, {"v": 3}]}],
        [{"kids": []}, {"v": 1, "kids": [1]}],
    ),
    Case(
        "mutual",
        {
            "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/b"}}, "b": obj({"a": {"$ref": "#/$defs/a"}})},
            "$ref": "#/$defs/a",
        },
        [[], [{}], [{"a": [{}]}]],
        [[1], [{"a": 1}]],
    ),
    Case(
        "pointer escapes",
        {
            "$defs": {"a/b": INT, "c~d": STR, "e f%": BOOL},
            "prefixItems": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/c~0d"}, {"$ref": "#/$defs/e%20f%25"}],
            "type": "array",
            "minItems": 3,
        },
        [[1, "a", True]],
        [["a", 1, True], [1, "a", 1]],
    ),
    Case(
        "pointer into properties",
        obj({"a": {"type": "integer", "minimum": 5}, "b": {"$ref": "#/properties/a"}}),
        [{"b": 5}],
        [{"b": 4}],
    ),
    Case(
        "pointer into a list",
        {"prefixItems": [STR, {"$ref": "#/prefixItems/0"}], "type": "array"},
        [["a", "b"]],
        [["a", 1]],
    ),
    Case("anchor", {"$defs": {"x": {"$anchor": "here", "type": "integer"}}, "$ref": "#here"}, [1], ["a"]),
    Case(
        "embedded id",
        {
            "$id": "https://example.com/root",
            "$defs": {"x": {"$id": "sub", "type": "integer", "$defs": {"y": STR}}},
            "prefixItems": [{"$ref": "sub"}, {"$ref": "https://example.com/sub#/$defs/y"}],
            "type": "array",
        },
        [[1, "a"]],
        [["a"]],
    ),
    Case(
        "recursion in anyOf",
        {"$defs": {"e": {"anyOf": [INT, {"type": "array", "items": {"$ref": "#/$defs/e"}}]}}, "$ref": "#/$defs/e"},
        [1, [], [1, [2, [3]]]],
        ["a", ["a"]],
    ),
    Case("branch that is itself", {"$defs": {"e": {"anyOf": [{"$ref": "#/$defs/e"}, INT]}}, "$ref": "#/$defs/e"}, [1]),
    Case(
        "recursion in allOf",
        {
            "$defs": {"n": obj({"id": INT, "sub": {"allOf": [{"$ref": "#/$defs/n"}, {"required": ["id"]}]}})},
            "$ref": "#/$defs/n",
        },
        [{}, {"sub": {"id": 1}}, {"id": 1, "sub": {"id": 2}}],
        [{"sub": {}}],
    ),
    Case(
        "needless endless branch",
        {"$defs": {"n": obj({"n": {"$ref": "#/$defs/n"}}, ["n"])}, "anyOf": [{"$ref": "#/$defs/n"}, INT]},
        [1],
        [{}],
    ),
    Case(
        "expression",
        {
            "$defs": {
                "x": {
                    "oneOf": [
                        NUM,
                        obj(
                            {"op": {"enum": ["+", "*"]}, "l": {"$ref": "#/$defs/x"}, "r": {"$ref": "#/$defs/x"}},
                            ["op", "l", "r"],
                            additionalProperties=False,
                        ),
                    ]
                }
            },
            "$ref": "#/$defs/x",
        },
        [1.5, {"op": "+", "l": 1, "r": {"op": "*", "l": 2, "r": 3}}],
        [{"op": "-", "l": 1, "r": 2}, {"op": "+"}],
    ),
]

REAL = [
    Case(
        "tool calls",
        {
            "anyOf": [
                obj(
                    {
                        "name": {"const": "get_weather"},
                        "arguments": obj({"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}}, ["city"]),
                    },
                    ["name", "arguments"],
                ),
                obj(
                    {
                        "name": {"const": "search"},
                        "arguments": obj(
                            {
                                "q": {"type": "string", "minLength": 1},
                                "n": {"type": "integer", "minimum": 1, "maximum": 50},
                            },
                            ["q"],
                        ),
                    },
                    ["name", "arguments"],
                ),
            ]
        },
        [
            {"name": "get_weather", "arguments": {"city": "Köln", "unit": "c"}},
            {"name": "search", "arguments": {"q": "x", "n": 50}},
        ],
        [
            {"name": "get_weather", "arguments": {"q": "x"}},
            {"name": "search", "arguments": {"q": "", "n": 5}},
            {"name": "x"},
        ],
    ),
    Case(
        "pydantic",
        {
            "$defs": {
                "Kind": {"enum": ["a", "b"], "title": "Kind", "type": "string"},
                "Item": {
                    "properties": {
                        "kind": {"$ref": "#/$defs/Kind"},
                        "tags": {"default": [], "items": STR, "title": "Tags", "type": "array"},
                        "note": {"anyOf": [STR, NULL], "default": None, "title": "Note"},
                    },
                    "required": ["kind"],
                    "title": "Item",
                    "type": "object",
                },
            },
            "properties": {
                "items": {"items": {"$ref": "#/$defs/Item"}, "title": "Items", "type": "array"},
                "total": {"exclusiveMinimum": 0, "title": "Total", "type": "number"},
            },
            "required": ["items", "total"],
            "title": "Order",
            "type": "object",
        },
        [
            {"items": [], "total": 0.5},
            {"items": [{"kind": "a"}, {"kind": "b", "tags": ["x"], "note": None}], "total": 12},
        ],
        [{"items": [{"kind": "c"}], "total": 1}, {"items": [], "total": 0}, {"total": 1}],
    ),
    Case(
        "openai strict",
        obj(
            {
                "steps": {
                    "type": "array",
                    "items": obj(
                        {"explanation": STR, "output": STR}, ["explanation", "output"], additionalProperties=False
                    ),
                },
                "final_answer": STR,
            },
            ["steps", "final_answer"],
            additionalProperties=False,
        ),
        [{"steps": [{"explanation": "e", "output": "o"}], "final_answer": "x"}],
        [{"steps": [{}], "final_answer": "x"}],
    ),
    Case(
        "package file",
        obj(
            {
                "name": {
                    "type": "string",
                    "pattern": r"^(?:@[a-z0-9-~][a-z0-9-._~]*/)?[a-z0-9-~][a-z0-9-._~]*$",
                    "maxLength": 214,
                },
                "version": STR,
                "scripts": obj(additionalProperties=STR),
                "dependencies": obj(additionalProperties={"type": "string", "minLength": 1}),
                "private": BOOL,
                "keywords": {"type": "array", "items": STR},
            },
            ["name", "version"],
        ),
        [{"name": "@a/b", "version": "1", "scripts": {"test": "x"}, "private": True}, {"name": "x", "version": "2"}],
        [{"name": "A", "version": "1"}, {"name": "x", "version": "1", "dependencies": {"a": ""}}],
    ),
    Case(
        "kubernetes names",
        obj(
            {
                "metadata": obj(
                    {
                        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
                        "labels": obj(additionalProperties=STR),
                    },
                    ["name"],
                ),
                "replicas": {"type": "integer", "minimum": 0, "format": "int32"},
            },
            ["metadata"],
        ),
        [{"metadata": {"name": "a-b", "labels": {"x": "y"}}, "replicas": 3}],
        [{"metadata": {"name": "-a"}}, {"metadata": {"name": "a" * 64}}],
    ),
    Case(
        "geo",
        obj(
            {
                "type": {"const": "Feature"},
                "geometry": {
                    "oneOf": [
                        obj(
                            {
                                "type": {"const": "Point"},
                                "coordinates": {"type": "array", "items": NUM, "minItems": 2, "maxItems": 3},
                            },
                            ["type", "coordinates"],
                        ),
                        obj(
                            {
                                "type": {"const": "LineString"},
                                "coordinates": {
                                    "type": "array",
                                    "items": {"type": "array", "items": NUM, "minItems": 2},
                                    "minItems": 2,
                                },
                            },
                            ["type", "coordinates"],
                        ),
                    ]
                },
            },
            ["type", "geometry"],
        ),
        [
            {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1.5, -2]}},
            {"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[0, 0], [1, 1.5]]}},
        ],
        [
            {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1]}},
            {"type": "Feature", "geometry": {"type": "X"}},
        ],
    ),
]

# What clients make of the types of their languages (here: as pydantic writes them). All of it is taken under `strict`.
LINK = {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083}
COLOR = {"type": "string", "title": "Color", "enum": ["red", "green", "blue"]}
DIGITS_BEFORE_AND_AFTER = r"^(?!^[-+.]*$)[+-]?0*(?:\d{0,3}|(?=[\d.]{1,6}0*$)\d{0,3}\.\d{0,2}0*$)"
CLIENTS = [
    Case(
        "link",
        LINK,
        ["https://example.com/a/b.html?q=1&r=%20#top", "mailto:a@b.c", "ftp://h:21/" + "x" * 300],
        ["", "no link", "https://a/" + "x" * 2083],
    ),
    Case(
        "short link",
        {"type": "string", "format": "uri", "maxLength": 100},
        ["https://example.com/a/b?c=d"],
        ["x", "https://a/" + "x" * 100],
    ),
    Case(
        "link of a scheme",
        {"type": "string", "format": "uri", "pattern": "^https://", "maxLength": 2000},
        ["https://example.com"],
        ["ftp://a"],
        [],
        ["format 'uri' is not enforced beside"],
    ),
    Case(
        "address of a person",
        {"type": "string", "format": "email", "maxLength": 254},
        ["first.last+tag@mail.example.com", "a@b.c"],
        ["x", "a@" + "b" * 254],
    ),
    Case(
        "set of texts",
        {"type": "array", "items": STR, "uniqueItems": True},
        [[], ["a", "b"]],
        [[1]],
        [],
        ["duplicate items are not prevented"],
    ),
    Case(
        "set of numbers with a size",
        {"type": "array", "items": INT, "uniqueItems": True, "minItems": 1, "maxItems": 3},
        [[1], [3, 2, 1]],
        [[], [1, 2, 3, 4]],
        [],
        ["duplicate items are not prevented"],
    ),
    Case(
        "set of links",
        {"type": "array", "items": LINK, "uniqueItems": True},
        [["https://a.b"]],
        [[1]],
        [],
        ["duplicate items are not prevented"],
    ),
    Case(
        "set of an enum",
        {"type": "array", "items": {"$ref": "#/$defs/Color"}, "uniqueItems": True, "$defs": {"Color": COLOR}},
        [[], ["blue"], ["blue", "red"], ["red", "blue", "green"]],
        [["red", "red"], ["red", "blue", "red"], ["red", "blue", "green", "red"], ["x"]],
    ),
    Case(
        "set with a size",
        {"type": "array", "items": {"enum": ["a", "b", "c", 1]}, "uniqueItems": True, "minItems": 2, "maxItems": 3},
        [["b", "a"], [1, "c", "b"]],
        [[], ["a"], ["a", "a"], ["a", "b", "c", 1], ["a", "b", "a"]],
    ),
    Case(
        "set of truth",
        {"type": "array", "items": BOOL, "uniqueItems": True},
        [[], [False], [True, False]],
        [[True, True], [True, False, True]],
    ),
    Case(
        "set of small numbers",
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "exclusiveMaximum": 5},
            "uniqueItems": True,
            "minItems": 1,
        },
        [[4, 1], [1, 2, 3, 4]],
        [[], [1, 1], [5]],
    ),
    Case(
        "set of what may be missing",
        {"type": "array", "items": {"anyOf": [{"enum": ["a", "b"]}, NULL]}, "uniqueItems": True},
        [[None, "a"], ["b", None]],
        [[None, None], ["a", "a"]],
    ),
    Case(
        "set of many",
        {"type": "array", "items": {"enum": [f"tag{i}" for i in range(40)]}, "uniqueItems": True},
        [[], ["tag7"], ["tag0", "tag9", "tag39"]],
        [["tag1", "tag1"], ["tag1", "tag2", "tag1"]],
        [["tag9", "tag0"]],
    ),
    Case(
        "set of many with a size",
        {"type": "array", "items": {"enum": list(range(30))}, "uniqueItems": True, "minItems": 2, "maxItems": 4},
        [[0, 29], [1, 2, 3, 4]],
        [[1], [1, 1], [1, 2, 3, 4, 5]],
        [[2, 1]],
    ),
    Case(
        "set of one thing", {"type": "array", "items": {"const": "x"}, "uniqueItems": True}, [[], ["x"]], [["x", "x"]]
    ),
    Case("time that passes", {"type": "string", "format": "duration"}, ["PT1H30M", "P3D"], ["1h"]),
    Case(
        "number in a text",
        {"anyOf": [NUM, {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}]},
        [1.5, "12.50", "-.5", "+3"],
        ["x", "", "-", "1.2.3"],
    ),
    Case(
        "number in a text with a size",
        {"type": "string", "pattern": DIGITS_BEFORE_AND_AFTER},
        ["123", "12.34", "-0.5", "0001.20", "1.500", "1234"],
        ["", ".", "-"],
    ),
    Case(
        "32 bits",
        {"type": "integer", "minimum": -(2**31), "exclusiveMaximum": 2**31},
        [-(2**31), 0, 2**31 - 1],
        [2**31, -(2**31) - 1],
    ),
    Case(
        "float of 64 bits",
        {"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308},
        [0, -1.5, 12345.678],
        ["x"],
    ),
    Case("cents", {"type": "number", "minimum": 0, "multipleOf": 0.01}, [0, 0.01, 12.3, 99.99], [0.001, -1]),
    Case(
        "name without blanks",
        {"type": "string", "pattern": r"^\S+$", "maxLength": 500},
        ["a", "b" * 500],
        ["", "a b", "b" * 501],
    ),
    Case(
        "name of some size",
        {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "minLength": 3, "maxLength": 1000},
        ["abc", "x" * 1000],
        ["ab", "a c", "x" * 1001],
    ),
    Case(
        "words with dashes",
        {"type": "string", "pattern": "^[a-z]+(-[a-z]+)*$", "maxLength": 2000},
        ["a", "ab-cd-ef", "x" * 900],
        ["-a", "a--b", "ab-" * 667 + "a"],
    ),
    Case(
        "text of a column",
        {"type": "string", "maxLength": 2**31 - 1},
        ["", "x" * 5000],
        [1],
        [],
        ["lengths beyond 1000000 are never generated"],
    ),
    Case(
        "words with a rule",
        {"type": "string", "pattern": r"[A-Z]", "minLength": 8, "maxLength": 128},
        ["aaaaaaaA", "A" * 128],
        ["aaaaaaaa", "A", "A" * 129],
    ),
    Case(
        "map by id",
        obj(additionalProperties=INT, propertyNames={"format": "uuid"}),
        [{"123e4567-e89b-12d3-a456-426614174000": 1}],
        [{"x": 1}],
    ),
    Case(
        "map of some size",
        obj(additionalProperties=INT, minProperties=1, maxProperties=3),
        [{"a": 1}, {"a": 1, "b": 2}],
        [{}, {"a": 1, "b": 2, "c": 3, "d": 4}],
    ),
    Case("bytes", {"type": "string", "format": "binary"}, ["x"], [1], [], ["format 'binary' is not enforced"]),
    Case("path", {"type": "string", "format": "path"}, ["/a"], [1], [], ["format 'path' is not enforced"]),
    Case(
        "expression of a pattern",
        {"type": "string", "format": "regex"},
        ["^a"],
        [1],
        [],
        ["format 'regex' is not enforced"],
    ),
    Case(
        "date in too few characters",
        {"type": "string", "format": "date", "maxLength": 5},
        [],
        ["2024-01-01", 1],
        [],
        ["format 'date' is not enforced beside"],
    ),
    Case(
        "one of two classes",
        {
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            "discriminator": {"propertyName": "kind"},
            "$defs": {
                "Cat": obj({"kind": {"type": "string", "const": "cat"}, "m": INT}, ["kind", "m"]),
                "Dog": obj({"kind": {"type": "string", "const": "dog"}, "b": NUM}, ["kind", "b"]),
            },
        },
        [{"kind": "cat", "m": 1}, {"kind": "dog", "b": 1.5}],
        [{"kind": "cat", "b": 1}],
    ),
    Case(
        "record",
        obj(
            {
                "url": LINK,
                "tags": {"type": "array", "items": {"$ref": "#/$defs/Color"}, "uniqueItems": True},
                "for": {"type": "string", "format": "duration"},
                "size": {"type": "number", "exclusiveMinimum": 0},
                "next": {"anyOf": [LINK, NULL], "default": None},
            },
            ["url", "tags", "for", "size"],
            additionalProperties=False,
            **{"$defs": {"Color": COLOR}},
        ),
        [{"url": "https://a.b/c", "tags": ["green", "red"], "for": "PT5M", "size": 1.5, "next": None}],
        [{"url": "https://a.b/c", "tags": ["red", "red"], "for": "PT5M", "size": 1.5}, {"url": "x"}],
    ),
]

CASES = [*ANY, *NUMBERS, *STRINGS, *ENUMS, *OBJECTS, *ARRAYS, *COMBINED, *REFERENCES, *REAL, *CLIENTS]

# Cases that jsonschema can't judge: other dialects, and a recursion it doesn't survive.
UNJUDGED = {
    "bad pattern",
    "named group",
    "draft 4 exclusive",
    "nullable",
    "nullable enum",
    "branch that is itself",
    "date in too few characters",
}
