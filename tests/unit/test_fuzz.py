"""Random input for all readers of untrusted input: a result or one documented error, never another exception, and never
for long.

HTTP is tested in `tests/api/test_fuzz_http.py`, templates in `jinja/test_jinja_fuzz.py`, model files in `test_gguf.py`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from server.api.request.constraints import read_constraint
from server.errors import ApiError
from server.grammar import gbnf
from server.grammar.gbnf_rewrite import make_affordable
from server.options.groups import group
from server.options.parser import OPTIONS, OptionError, parse
from server.service import edge
from server.web.auth import CorsPolicy, HostPolicy, read_key_file, split_host
from server.web.http1.head import Headers, split_target
from server.web.message import parse_json, to_json
from tests.fuzzing import fuzz

PATIENCE_S = 20.0  # for one example, however slow the machine: what hangs takes for ever


def pieces(*words: str, most: int = 30) -> st.SearchStrategy[str]:
    """Texts made of words that mean something to a parser, with random characters between them."""
    return st.lists(st.one_of(st.sampled_from(words), st.text(max_size=3)), max_size=most).map("".join)


def quick(call, *arguments: object, **options: object) -> object:
    """What the call returns; it may not take for ever."""
    started = time.monotonic()
    try:
        return call(*arguments, **options)
    finally:
        assert time.monotonic() - started < PATIENCE_S, "it took too long"


# ---- what answers must look like -----------------------------------------------------------------------------------


@fuzz(300)
@given(
    pieces(
        "root",
        "::=",
        " ",
        "\n",
        "|",
        "(",
        ")",
        "*",
        "+",
        "?",
        "{",
        "}",
        "{2,5}",
        "{1000}",
        '"',
        "a",
        "[",
        "]",
        "^",
        "-",
        "[a-z]",
        '[^"\\\\]',
        "\\",
        "\\x4",
        "\\u12",
        "\\U0010FFFF",
        "#",
        ".",
        "x ::= ",
        "root ::= ",
        "!<[1]>",
        "<",
        ">",
        'root ::= "a" root | "b"',
        "((((",
        "))))",
        '"\\"',
        "é",
        "\0",
    )
)
@example("root ::= " + "(" * 5000 + '"a"' + ")" * 5000)
@example("root ::= root")
@example('root ::= "a"{1000}{1000}{1000}')
@example("root ::= (" * 300 + '"a"' + "*)*" * 300)
def test_grammars(text):
    try:
        quick(make_affordable, text)
    except gbnf.GrammarError as error:
        assert "\n" not in str(error)


NAMES = st.sampled_from(("a", "b", "", 'é\n"', "$ref", "type"))
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null", "nonsense")
PATTERNS = pieces(
    "a",
    "(",
    ")",
    "|",
    "*",
    "+?",
    "{2}",
    "{1,9999}",
    "[a-z]",
    "[^",
    "]",
    "\\d",
    "\\b",
    "(?=",
    "^",
    "$",
    "\\1",
    ".",
    most=8,
)
KEYWORDS = {
    "type": st.one_of(st.sampled_from(TYPES), st.lists(st.sampled_from(TYPES), max_size=3)),
    "pattern": PATTERNS,
    "enum": st.lists(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just({"a": [1]})),
        max_size=4,
    ),
    "const": st.one_of(st.none(), st.integers(), st.text(max_size=5)),
    "minimum": st.one_of(st.integers(), st.floats(), st.text(max_size=2)),
    "maximum": st.one_of(st.integers(), st.floats()),
    "exclusiveMinimum": st.one_of(st.integers(), st.booleans()),
    "multipleOf": st.one_of(st.integers(-3, 100), st.floats()),
    "minLength": st.integers(-2, 10**6),
    "maxLength": st.integers(-2, 10**6),
    "minItems": st.integers(-2, 10**6),
    "maxItems": st.integers(-2, 10**6),
    "format": st.sampled_from(("date", "uuid", "email", "x")),
    "required": st.lists(NAMES, max_size=3),
    "$ref": st.sampled_from(("#", "#/$defs/a", "#/properties/a", "http://x/y", "#/nowhere", "")),
    "uniqueItems": st.booleans(),
    "minProperties": st.integers(-1, 5),
    "maxProperties": st.integers(-1, 5),
}


def nested(inner: st.SearchStrategy) -> st.SearchStrategy:
    """A schema whose keywords hold others."""
    holders = {
        "properties": st.dictionaries(NAMES, inner, max_size=3),
        "$defs": st.dictionaries(NAMES, inner, max_size=2),
        "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
        "additionalProperties": inner,
        "items": inner,
        "prefixItems": st.lists(inner, max_size=3),
        "anyOf": st.lists(inner, max_size=3),
        "oneOf": st.lists(inner, max_size=3),
        "allOf": st.lists(inner, max_size=3),
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
        "contains": inner,
        "propertyNames": inner,
    }
    return st.fixed_dictionaries({}, optional={**KEYWORDS, **holders})


SCHEMAS = st.recursive(
    st.one_of(st.booleans(), st.fixed_dictionaries({}, optional=KEYWORDS), st.none(), st.integers()),
    nested,
    max_leaves=8,
)


@fuzz(150)
@given(SCHEMAS, st.booleans())
@example({"$ref": "#"}, True)
@example({"allOf": [{"$ref": "#"}]}, False)
@example({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, False)
def test_schemas_become_grammars_or_are_refused(schema, strict):
    body = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema, "strict": strict}}}
    try:
        constraint = quick(read_constraint, body)
    except ApiError as error:
        assert error.status == 400 and "\n" not in error.message
        return
    if constraint.grammar:
        gbnf.check(constraint.grammar)


@fuzz(200)
@given(st.one_of(PATTERNS, st.text(max_size=20)))
@example("(a*)*b" * 20)
@example("(" * 2000 + ")" * 2000)
def test_regular_expressions_become_grammars_or_are_refused(pattern):
    try:
        constraint = quick(read_constraint, {"regex": pattern})
    except ApiError as error:
        assert error.status == 400 and "\n" not in error.message
        return
    if constraint.grammar:
        gbnf.check(constraint.grammar)


# ---- bodies and heads ----------------------------------------------------------------------------------------------


@fuzz(400)
@given(
    st.one_of(
        st.binary(max_size=60),
        pieces(
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            '"a"',
            '"',
            "1",
            "-",
            "e9",
            ".5",
            "null",
            "true",
            "NaN",
            "Infinity",
            "\\ud800",
            "\\udc00",
            "\\u0000",
            "\\",
            " ",
            "\ufeff",
        ).map(str.encode),
    )
)
def test_bodies_are_json_or_a_400_with_a_position(data):
    try:
        value = quick(parse_json, data)
    except ApiError as error:
        assert error.status == 400 and "\n" not in error.message
        return
    assert json.loads(to_json(value)) == value, "what was read can be sent"


@fuzz(300)
@given(
    pieces("/", "..", "%2e", "%2f", "%", "%00", "?", "&", "=", "+", "#", "*", "http://h", "a", "\\", ";").filter(
        str.isascii
    )
)
def test_targets_are_taken_apart_or_refused(target):
    try:
        _, path, query = quick(split_target, target)
    except ApiError as error:
        assert error.status == 400
        return
    for text in (path, *query, *query.values()):
        assert not any(ord(c) < 32 or ord(c) == 127 for c in text)


@fuzz(300)
@given(pieces("localhost", "127.0.0.1", "[::1]", ":", "8080", "evil", ".", "@", "/", "://", "http", "null", ",", " "))
def test_only_local_names_pass_a_local_server(text):
    try:
        HostPolicy.make_for_bind(["127.0.0.1"]).check(text)
    except ApiError as error:
        assert error.status == 403
    else:
        name = split_host(text)
        assert name == "localhost" or name.endswith(".localhost") or name.startswith("127.") or ":" in name, text
    quick(CorsPolicy().make_headers, text, "localhost")
    quick(CorsPolicy().make_preflight, Headers({"origin": text, "host": "x"}), ["GET"])


# ---- what the user writes ------------------------------------------------------------------------------------------

FLAGS = sorted(flag for option in OPTIONS for flag in (*option.flags, *option.off_flags))
VALUES = st.one_of(
    st.sampled_from(
        (
            "",
            "1",
            "-1",
            "0",
            "x",
            "on",
            "auto",
            "1e999",
            "nan",
            "9" * 40,
            "a=b",
            "a,b",
            "{}",
            "[",
            '"',
            "-",
            "--",
            "5/s",
            "*",
            "::1",
            "https://x",
            "K=int:5",
            "15043+1",
            "/no/such/file",
            "é",
            "\0",
        )
    ),
    st.text(max_size=8),
)


def read_options(argv: list[str], environ: dict[str, str]) -> None:
    try:
        quick(parse, argv, environ)
    except OptionError as error:
        assert str(error) and "\n" not in str(error)


@fuzz(400)
@given(
    st.lists(
        st.one_of(st.sampled_from(FLAGS), VALUES, st.tuples(st.sampled_from(FLAGS), VALUES).map("=".join)), max_size=6
    )
)
def test_command_lines(argv):
    read_options(argv, {})


@fuzz(200)
@given(st.dictionaries(st.sampled_from(sorted(option.env for option in OPTIONS if option.env)), VALUES, max_size=4))
def test_environments(environ):
    read_options([], environ)


@fuzz(200)
@given(
    st.one_of(
        st.binary(max_size=60),
        pieces(
            "[",
            "]",
            "=",
            "\n",
            ";",
            "#",
            "{",
            "}",
            '"',
            ":",
            ",",
            "model",
            "port",
            "8080",
            "true",
            "null",
            "ctx-size",
            "[server]",
            "\ufeff",
            "\r",
            "%(x)s",
            "\\",
        ).map(str.encode),
    )
)
def test_config_files(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.conf"
    path.write_bytes(data)
    read_options(["--config", str(path)], {})


@fuzz(200)
@given(
    st.one_of(
        st.binary(max_size=40), st.text("abcmodels=,#\r\n\x0b\x0c\x85\u2028\ufeff \t", max_size=40).map(str.encode)
    )
)
def test_key_files(tmp_path_factory, data):
    path: Path = tmp_path_factory.getbasetemp() / "fuzzed.keys"
    path.write_bytes(data)
    try:
        keys = [grant.key for grant in read_key_file(path)]
    except UnicodeDecodeError:
        keys = []
    assert all(key and key == key.strip() and "\n" not in key and "\r" not in key for key in keys)
    try:
        ring = edge.KeyFiles(group(parse(["--api-key-file", str(path)], {})).http).ring
    except OptionError:
        assert not keys
    else:
        assert len(ring) == len(set(keys)) > 0
