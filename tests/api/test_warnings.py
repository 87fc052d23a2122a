"""Fields of a request without effect are named once in its answer, on every route that reads JSON, and no others are.

Real HTTP with the fake model. The table of fields is compared with the routes and with what the handlers read.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import server.api
from server.api.request.fields import BODIES, CHAT, COMPLETION, IDLE_FIELDS, LORA, MAX_NAMES, format_names
from server.api.routes import make_routes
from tests.api.openai_wire import DONE, chunks, events
from tests.fakes import FakeVocab

HI = [{"role": "user", "content": "hi"}]
CHAT_URL = "/v1/chat/completions"
FORMS = {
    "/completion": {"prompt": "x", "n_predict": 2},
    "/completions": {"prompt": "x", "n_predict": 2},
    CHAT_URL: {"messages": HI, "max_tokens": 2},
    CHAT_URL + "/input_tokens": {"messages": HI},
    "/apply-template": {"messages": HI},
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/embedding": {"content": "x"},
    "/v1/embeddings": {"input": "x"},
    "/tokenize": {"content": "x"},
    "/detokenize": {"tokens": [65]},
    "/abort": {"id": "x"},
}
STREAMS = ("/completion", "/v1/completions", CHAT_URL)
LISTS = {"/embedding": {"input": ["x", "y"]}, "/embeddings": {"input": "x"}}
OTHERS = {  # whose shapes have no place for it
    "/v1/messages": {"messages": HI, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": HI},
    "/api/chat": {"messages": HI, "options": {"num_predict": 2}},
    "/api/generate": {"prompt": "x", "options": {"num_predict": 2}},
    "/api/show": {},
    "/api/embed": {"input": "x"},
    "/api/embeddings": {"prompt": "x"},
}
NAMED = "unknown and ignored: 'temprature'"


@pytest.mark.covers("T17")
@pytest.mark.parametrize("path", FORMS)
def test_a_misspelt_field_is_named_once(api, path):
    told = api.post(path, {**FORMS[path], "temprature": 0})
    assert told.status == 200 and told.json()["warnings"] == [NAMED]
    assert "x-warnings" not in told.headers
    assert "warnings" not in api.post(path, FORMS[path]).json()


def test_a_misspelt_field_is_in_the_log_once(api, caplog):
    caplog.set_level("INFO", logger="llama_srv")
    for _ in range(2):
        assert api.post(CHAT_URL, {"messages": HI, "max_tokin": 2, "max_tokens": 2}).status == 200
    assert caplog.messages.count(f"{CHAT_URL}: unknown and ignored: 'max_tokin'") == 1


@pytest.mark.parametrize("path", STREAMS)
def test_a_streams_last_object_names_it(api, path):
    for fields, warnings in (({"temprature": 0}, [NAMED]), ({}, None)):
        found = [one for one in events(api.post(path, {**FORMS[path], **fields, "stream": True})) if one != DONE]
        assert [one.get("warnings") for one in found] == [None] * (len(found) - 1) + [warnings]


@pytest.mark.covers("T17")
@pytest.mark.parametrize("path", {**LISTS, **OTHERS})
def test_an_answer_without_a_place_has_it_in_its_head(api, path):
    form = {**LISTS, **OTHERS}[path]
    told = api.post(path, {**form, "temprature": 0})
    assert told.status == 200 and told.headers["x-warnings"] == NAMED and b"temprature" not in told.body
    assert "x-warnings" not in api.post(path, form).headers


@pytest.mark.covers("T17")
@pytest.mark.parametrize("path", ["/v1/messages", "/api/chat", "/api/generate"])
def test_a_stream_without_a_place_has_it_in_its_head(api, path):
    assert api.post(path, {**OTHERS[path], "stream": True, "temprature": 0}).headers["x-warnings"] == NAMED


def test_infill_names_it_too(make_api):
    api = make_api(vocab=FakeVocab({"pre": 1, "suf": 2, "mid": 3})).start()
    gap = {"input_prefix": "a", "input_suffix": "b", "stream": False, "n_predict": 1}
    assert api.post("/infill", {**gap, "temprature": 0}).json()["warnings"] == [NAMED]
    assert "warnings" not in api.post("/infill", gap).json()


def test_an_adapters_misspelt_field_is_named():
    assert LORA.list_unread([{"id": 0, "scal": 1}, {"id": 1, "scal": 1}]) == ("unknown and ignored: 'scal'",)
    assert LORA.list_unread([{"id": 0, "scale": 1}]) == ()


def test_what_is_known_and_does_nothing_says_so_unless_it_is_the_default(api):
    for field in IDLE_FIELDS:
        if field.name in CHAT.names:
            continue
        value = "x" if field.default is None else {"x": field.default}
        answer = api.post(CHAT_URL, {**FORMS[CHAT_URL], field.name: value}).json()
        assert answer["warnings"] == [f"{field.name} has no effect: {field.help}"]
        answer = api.post(CHAT_URL, {**FORMS[CHAT_URL], field.name: field.default}).json()
        assert "warnings" not in answer


def test_many_and_hostile_names_make_one_short_line(api):
    hostile = ["a\r\nX-Evil: 1", "\x00", "é" * 100, '"<script>', "😀", ""]
    fields = {**dict.fromkeys(hostile, 1), **{f"field {i}": 1 for i in range(20_000)}}
    (warning,) = api.post("/tokenize", {"content": "x", **fields}).json()["warnings"]
    assert warning.isascii() and warning.isprintable() and len(warning) < MAX_NAMES * 250
    assert f"and {len(fields) - MAX_NAMES:d} more" in warning
    head = api.post("/embeddings", {"input": "x", **fields}).headers
    assert head["x-warnings"] == warning and "x-evil" not in head
    assert format_names(["a"]) == "'a'" and format_names(["x" * 41]) == f"'{'x' * 40}...'"


def test_null_is_as_good_as_nothing(api):
    assert "warnings" not in api.post("/tokenize", {"content": "x", "nothing": None}).json()


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.routes[0])
def test_no_field_of_a_table_is_called_unknown(body):
    assert body.list_unread(dict.fromkeys(body.names, 1)) == ()


def test_every_route_with_a_body_has_a_table(api):
    reading = [route for route in make_routes(api.context) if route.handler.__name__ != "refuse"]
    without = {"/debug/stacks", "/responses/{id}/cancel", "/v1/responses/{id}/cancel", "/v1/batches/{id}/cancel"}
    without |= {"/v1/files"}  # a form, of which `files.FIELDS` are read and others refused
    posts = {route.path for route in reading if route.method == "POST" or route.path == "/api/delete"} - without
    named = {path for body in BODIES for path in body.routes}
    assert named <= posts
    assert {
        path
        for path in posts
        if path not in named and path.removeprefix("/v1") not in named and "/v1" + path not in named
    } == set()


def test_what_handlers_read_is_in_a_table():
    known = frozenset().union(*(body.names for body in BODIES)) | {field.name for field in IDLE_FIELDS}
    read = set()
    for file in Path(server.api.__file__).parent.rglob("*.py"):
        read |= set(re.findall(r"""\b(?:body|values)(?:\.get\(|\[)"([a-z_.]+)\"""", file.read_text("utf-8")))
    read -= {"error", "slots", "purpose"}  # of answers, and of a form
    assert read - known == set() and len(read) > 10


def test_requests_of_official_clients_name_nothing_unknown():
    for request in json.loads(Path(__file__).with_name("client_requests.json").read_text("utf-8")):
        body = next((body for body in BODIES if request["path"] in body.routes), COMPLETION)
        if isinstance(request.get("body"), dict):
            assert not [line for line in body.list_unread(request["body"]) if line.startswith("unknown")]


# ---- what the chat template has no place for ---------------------------------------------------------------------

READS_EFFORT = "{{ reasoning_effort }}|{% for m in messages %}{{ m.content }}{% endfor %}"


def test_reasoning_effort_reaches_templates_that_read_it_and_others_say_so(api, make_api):
    ask = {"messages": HI, "reasoning_effort": "low"}
    (warning,) = api.post("/apply-template", ask).json()["warnings"]
    assert warning.startswith("reasoning_effort has no effect")
    reads = make_api(None, ("--chat-template", READS_EFFORT)).start()
    assert reads.post("/apply-template", ask).json() == {"prompt": "low|hi"}
    thinks = make_api(None, ("--chat-template", "{{ enable_thinking }}|")).start()
    assert thinks.post("/apply-template", {**ask, "reasoning_effort": "none"}).json() == {"prompt": "False|"}
    assert api.post(CHAT_URL, {**ask, "reasoning_effort": 5}).status == 400


def test_variables_that_the_template_does_not_read_are_told(api):
    fields = {"messages": HI, "max_tokens": 1, "chat_template_kwargs": {"enable_thinkin": False, "é\n": 1}}
    whole, last = api.post(CHAT_URL, fields).json(), chunks(api.post(CHAT_URL, {**fields, "stream": True}))[-1]
    told = "chat_template_kwargs: this model's chat template doesn't read 'enable_thinkin', '\\xe9\\n'"
    assert whole["warnings"] == last["warnings"] == [told]


def test_too_many_arguments_are_refused_before_they_are_read_again(api):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[" * (3 << 19)}}
    refused = api.post(CHAT_URL, {"messages": [*HI, {"role": "assistant", "content": "", "tool_calls": [call, call]}]})
    assert refused.status == 400 and "arguments of tool calls" in refused.error["message"]
