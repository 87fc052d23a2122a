"""Request fields that constrain the answer, on all routes: the grammar that reaches the engine, and refusals.

The fake engine only records the grammar. `tests/native` and `tests/e2e` test that grammars constrain text.
"""

from __future__ import annotations

import json

import pytest

from server.grammar import gbnf_rewrite
from server.grammar.gbnf import parse
from server.grammar.gbnf_cost import compute_cost
from server.grammar.json_schema.convert import ANY_OBJECT, convert
from server.grammar.regex_gbnf import make_choice_grammar, make_regex_grammar
from tests.api.openai_wire import chunks
from tests.fakes import FakeBackend
from tests.hostile_grammars import FOUND

ROUTES = ("/completion", "/v1/completions", "/v1/chat/completions")
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}
LOOSE = {"type": "array", "uniqueItems": True}
GRAMMAR = 'root ::= "yes" | "no"'


def body(**fields: object) -> dict:
    """A request that every route takes."""
    return {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "n_predict": 2, **fields}


def grammar_of(api, path: str = ROUTES[2], **fields: object) -> str:
    """The grammar that the engine was given for a request that must succeed."""
    n_before = len(api.backend.samplers)
    answer = api.post(path, body(**fields))
    assert answer.status == 200, answer
    assert len(api.backend.samplers) == n_before + 1
    return api.backend.samplers[-1].grammar


def refuse(api, path: str = ROUTES[2], **fields: object) -> dict:
    """The error of a request of which the engine must not hear."""
    n_before = len(api.backend.samplers)
    answer = api.post(path, body(**fields))
    assert answer.status == 400, answer
    assert len(api.backend.samplers) == n_before, "the engine was bothered with it"
    assert answer.error["type"] == "invalid_request_error"
    return answer.error


def json_schema(schema: object, **more: object) -> dict:
    """OpenAI's form of a `response_format`."""
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


ANY, CITIES = convert(ANY_OBJECT).grammar, convert(CITY).grammar
FORMS = [
    ({"response_format": {"type": "json_object"}}, ANY),
    ({"response_format": {"type": "json_object", "schema": None}}, ANY),
    ({"response_format": {"type": "json_object", "schema": CITY}}, CITIES),
    ({"response_format": json_schema(CITY)}, CITIES),
    ({"response_format": json_schema(CITY, strict=True)}, CITIES),
    ({"response_format": json_schema(CITY, strict=None, description="a city")}, CITIES),
    ({"response_format": {"type": "json_schema", "schema": CITY}}, CITIES),
    (
        {"response_format": {"type": "json_object", "schema": {"type": "string", "minLength": 10, "maxLength": 100}}},
        convert({"type": "string", "minLength": 10, "maxLength": 100}).grammar,
    ),
    ({"json_schema": CITY}, CITIES),
    ({"json_schema": {}}, convert({}).grammar),
    ({"grammar": GRAMMAR}, GRAMMAR),
    ({"regex": "[a-z]+"}, make_regex_grammar("[a-z]+")),
    ({"choice": ["yes", "no"]}, make_choice_grammar(["yes", "no"])),
    ({"response_format": {"type": "text"}}, ""),
    ({"response_format": None}, ""),
    ({"grammar": ""}, ""),
    ({"grammar": None, "json_schema": None, "regex": None, "choice": None}, ""),
    ({"grammar": "", "response_format": {"type": "text"}, "json_schema": CITY}, CITIES),
]


@pytest.mark.covers("Q41")
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(("fields", "grammar"), FORMS, ids=lambda value: repr(value)[:70])
def test_each_form_becomes_this_grammar(api, path, fields, grammar):
    assert grammar_of(api, path, **fields) == grammar


STRUCTURED = [
    ({"json": CITY}, CITIES),
    ({"json": json.dumps(CITY)}, CITIES),
    ({"regex": "[a-z]+"}, make_regex_grammar("[a-z]+")),
    ({"choice": ["yes", "no"]}, make_choice_grammar(["yes", "no"])),
    ({"grammar": GRAMMAR}, GRAMMAR),
    ({"json_object": True}, ANY),
    ({"json_object": False, "regex": None}, ""),
    ({}, ""),
]


@pytest.mark.covers("V01")
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(("value", "grammar"), STRUCTURED, ids=lambda value: repr(value)[:70])
def test_clients_of_vllm_are_bound_by_their_names_of_the_forms(api, path, value, grammar):
    assert grammar_of(api, path, structured_outputs=value) == grammar
    for name, form in value.items():
        if name != "json_object" and form:
            assert grammar_of(api, path, **{f"guided_{name}": form}) == grammar


@pytest.mark.covers("V01")
def test_what_else_vllm_s_clients_say_about_forms_is_named(api):
    form = {"regex": "a", "whitespace_pattern": " ", "disable_any_whitespace": False}
    asked = {"prompt": "x", "structured_outputs": form, "guided_decoding_backend": "xgrammar"}
    warnings = api.post("/v1/completions", asked).json()["warnings"]
    assert warnings[0] == "structured_outputs: unknown and ignored: 'whitespace_pattern'"
    assert warnings[1].startswith("guided_decoding_backend has no effect")


def test_a_bound_request_binds_no_other(api):
    assert grammar_of(api, grammar=GRAMMAR) == GRAMMAR
    assert grammar_of(api) == ""


def test_every_answer_of_several_is_bound(api):
    n_before = len(api.backend.samplers)
    assert api.post(ROUTES[2], body(n=3, grammar=GRAMMAR)).status == 200
    assert [sampler.grammar for sampler in api.backend.samplers[n_before:]] == [GRAMMAR] * 3


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"grammar": GRAMMAR}, {"json_schema": CITY}),
        ({"grammar": GRAMMAR}, {"response_format": {"type": "json_object"}}),
        ({"json_schema": CITY}, {"response_format": json_schema(CITY)}),
        ({"regex": "a"}, {"choice": ["a"]}),
        ({"grammar": GRAMMAR}, {"regex": "a"}),
        ({"structured_outputs": {"regex": "a"}}, {"guided_json": CITY}),
        ({"guided_grammar": GRAMMAR}, {"guided_choice": ["a"]}),
    ],
    ids=repr,
)
def test_two_forms_at_once_are_refused(api, path, first, second):
    message = refuse(api, path, **first, **second)["message"]
    assert all(name in message for name in (*first, *second)) and "exclude" in message


BAD = [
    ({"grammar": 5}, "grammar"),
    ({"grammar": ["x"]}, "grammar"),
    ({"grammar": True}, "grammar"),
    ({"regex": 5}, "regex"),
    ({"regex": "("}, "regex"),
    ({"regex": "a{5,2}"}, "regex"),
    ({"regex": r"(a)\1"}, "regex"),
    ({"choice": []}, "choice"),
    ({"choice": "yes"}, "choice"),
    ({"choice": [5]}, "choice"),
    ({"choice": {}}, "choice"),
    ({"json_schema": 5}, "json_schema"),
    ({"json_schema": "x"}, "json_schema"),
    ({"json_schema": []}, "json_schema"),
    ({"json_schema": {"type": 5}}, "json_schema: #/type"),
    ({"json_schema": {"$ref": "#/nope"}}, "#/nope"),
    ({"json_schema": False}, "no value"),
    ({"response_format": "json_object"}, "response_format"),
    ({"response_format": []}, "response_format"),
    ({"response_format": {}}, "response_format"),
    ({"response_format": {"type": 5}}, "response_format"),
    ({"response_format": {"type": "xml"}}, "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "schema"),
    ({"response_format": {"type": "json_schema", "json_schema": None}}, "schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "schema is missing"),
    ({"response_format": json_schema(5)}, "response_format"),
    ({"response_format": json_schema({"type": 5})}, "#/type"),
    ({"response_format": json_schema(CITY, strict="yes")}, "strict"),
    ({"response_format": {"type": "json_object", "schema": 5}}, "response_format"),
    ({"response_format": {"type": "json_object", "schema": {"type": "nonsense"}}}, "response_format"),
    ({"structured_outputs": "json"}, "structured_outputs"),
    ({"structured_outputs": {"jsn": CITY}}, "structured_outputs has none of json, regex, choice, grammar, json_object"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json: Invalid JSON"),
    ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": "[" * 5000}}, "structured_outputs.json: Invalid JSON: nested deeper"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice exclude each other"),
    ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex: '5' is not a string"),
    ({"structured_outputs": {"grammar": {}}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag is not supported"),
    ({"guided_json": "{"}, "guided_json: Invalid JSON"),
    ({"guided_regex": "("}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(("fields", "words"), BAD, ids=lambda value: repr(value)[:70])
def test_a_bad_form_is_refused(api, path, fields, words):
    assert words in refuse(api, path, **fields)["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("root ::= (", "line 1, column 10"),
        ('x ::= "a"', "root"),
        ("root ::= nope", "nope"),
        ("root ::= root", "left-recursive"),
        ('root ::= ("")*', "endless"),
        ("root = 5", "line 1, column 6"),
        ('root ::= "a"\n\nother ::= [', "line 3"),
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "line 1"),
        ('root ::= "a"{1000000}', "line 1"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_bad_grammar_is_refused_with_its_place_and_never_seen_by_the_engine(api, stream, grammar, words):
    for path in ROUTES:
        error = refuse(api, path, grammar=grammar, stream=stream)
        assert words in error["message"] and error["message"].startswith("Failed to parse grammar: ")
        assert error["param"] == "grammar" and len(error["message"]) < 300


def test_what_cannot_be_kept_is_told_in_the_answer(api):
    warnings = list(convert(LOOSE).warnings)
    assert warnings

    def own(path: str, **fields: object) -> dict:
        unknown = "prompt" if "chat" in path else "messages"
        return {name: value for name, value in body(**fields).items() if name != unknown}

    for path in ROUTES:
        assert api.post(path, own(path, json_schema=LOOSE)).json()["warnings"] == warnings
        assert "warnings" not in api.post(path, own(path, json_schema=CITY)).json()
    for path in ROUTES[1:]:
        found = chunks(api.post(path, own(path, response_format=json_schema(LOOSE), stream=True)))
        assert [chunk.get("warnings") for chunk in found] == [None] * (len(found) - 1) + [warnings]


def test_what_cannot_be_kept_is_refused_if_strict(api):
    error = refuse(api, response_format=json_schema({"type": "integer", "not": {"minimum": 3}}, strict=True))
    assert "#/not" in error["message"] and "strict" in error["message"]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "uniqueItems": True, "items": {"type": "string"}},
        {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083},
        {"type": "string", "format": "duration"},
        {"type": "number", "minimum": -3.4028234663852886e38},
        {"type": "integer", "minimum": 0, "maximum": 10**300},
    ],
)
def test_what_clients_make_of_their_types_is_taken_if_strict(api, schema: dict):
    fields = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    answer = api.post("/v1/chat/completions", {**fields, "response_format": json_schema(schema, strict=True)})
    assert answer.status == 200
    assert answer.json().get("warnings", []) == convert(schema).warnings


@pytest.mark.parametrize("path", ROUTES)
def test_a_grammar_with_too_many_ways_is_refused_with_its_place(api, path):
    error = refuse(api, path, grammar=FOUND["recursion that may open or not"])
    assert "too many ways to read the same text" in error["message"] and "(line 1, column " in error["message"]


@pytest.mark.parametrize("name", ["nullable body under a count", "runs in a loop", "blanks and blanks"])
def test_a_costly_way_of_writing_is_written_anew(api, name):
    grammar = grammar_of(api, grammar=FOUND[name])
    assert grammar != FOUND[name] and compute_cost(parse(grammar))[0] < 50


def test_loops_of_loops_are_taken(api):
    assert grammar_of(api, grammar='root ::= ("a"*)* "b"') == 'root ::= "a"* "b"\n'


def test_the_same_form_twice_is_made_once(api, monkeypatch):
    checked: list[str] = []
    real = gbnf_rewrite.make_affordable
    monkeypatch.setattr(gbnf_rewrite, "make_affordable", lambda grammar: checked.append(grammar) or real(grammar))
    schema = {"type": "object", "properties": {f"only in this test {i}": {"type": "integer"} for i in range(5)}}
    for _ in range(3):
        grammar_of(api, response_format=json_schema(schema))
        grammar_of(api, grammar='root ::= "only in this test"')
    assert len(checked) == 2


def test_a_schema_is_not_changed_by_its_order_of_keys_being_sent(api):
    """Properties come in the order that the client gave."""
    names = ["zebra", "apple", "mango"]
    schema = {"type": "object", "properties": {name: {"type": "null"} for name in names}, "required": names}
    grammar = grammar_of(api, response_format=json_schema(schema))
    places = [grammar.index(json.dumps(name).strip('"')) for name in names]
    assert places == sorted(places)


def test_a_grammar_that_only_the_engine_refuses_is_a_400_too(make_api):
    class Picky(FakeBackend):
        """Refuses what passed all checks, as llama.cpp might."""

        def make_sampler(self, stages, grammar, waits=False):
            return super().make_sampler(stages, "bad" if grammar else "")

    api = make_api(Picky()).start()
    for stream in (False, True):
        answer = api.post(ROUTES[2], body(grammar=GRAMMAR, stream=stream))
        assert answer.status == 400 and "grammar" in answer.error["message"]
    assert api.complete("x", 1)["stop"] is True
