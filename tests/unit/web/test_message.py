"""Reading and writing JSON, and the bytes of an answer's head."""

from __future__ import annotations

import json
import re
import time

import pytest

from server.errors import ApiError
from server.web import sse
from server.web.http1.head import Headers
from server.web.message import (
    JSON_DEPTH,
    JSON_PARTS,
    JSON_VALUES,
    LARGE,
    Request,
    encode_head,
    make_error_response,
    make_json_response,
    parse_json,
    to_json,
)


def fault(body: bytes) -> str:
    """The message of the 400."""
    with pytest.raises(ApiError) as caught:
        parse_json(body)
    assert caught.value.status == 400
    return caught.value.message


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, 2.5, null, true, "\xc3\xa4"]}', {"a": [1, 2.5, None, True, "ä"]}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b" \n[]\t", []),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\\\ud800"', "\\ud800"),
        (b'"\\u0000"', "\0"),
        (b"1e308", 1e308),
        (b"-0", 0),
        (b'"NaN"', "NaN"),
    ],
)
def test_json_is_read(body, value):
    assert Request("POST", "/", body=body, headers={"Content-Type": "text/plain"}).read_json() == value


@pytest.mark.parametrize(
    ("body", "position"),
    [
        (b'{"a": }', 6),
        (b'{"a": 1} x', 9),
        (b'{"a": NaN}', 6),
        (b'["NaN", NaN]', 8),
        (b'{"a": Infinity}', 6),
        (b"[-Infinity]", 1),
        (b"[1, 1e999]", 4),
        (b'["1e999", -1e999]', 10),
        (b'"\\ud800"', 1),
        (b'["\\ud83d\\ude00", "\\ude00\\ud83d"]', 18),
        (b'{"\\uDBFF": 1}', 2),
        (b'"\\ud800\\u0041"', 1),
        (b"{'a': 1}", 1),
        (b'"\t"', 1),
        (b"[" * (JSON_DEPTH + 1) + b"]" * (JSON_DEPTH + 1), JSON_DEPTH),
        (b'{"a":' * (JSON_DEPTH + 1) + b"1" + b"}" * (JSON_DEPTH + 1), JSON_DEPTH * 5),
        (b"[" * 1_000_000, JSON_DEPTH),
        (b'["[[", ' + b"[" * 1000, JSON_DEPTH - 1 + 7),
    ],
)
def test_faulty_json_is_refused_with_its_position(body, position):
    assert int(re.search(r"\(char (\d+)\)", fault(body))[1]) == position


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{'prompt': 'x'}", "double quotes, not single ones"),
        (b"'{prompt: x}'", "double quotes, not single ones"),
        (b"{\"prompt\": 'x'}", "double quotes, not single ones"),
        (b"{prompt: x}", "a name in double quotes is expected at line 1 column 2"),
        (b'{"a": }', "a value is expected at line 1 column 7"),
        (b'{"a": ', "a value is expected, but the body ends"),
        (b'{"a" 1}', "a colon is expected"),
        (b"[1 2]", "a comma or the end of the list"),
        (b"[1", "a comma or the end of the list or object is expected, but the body ends"),
        (b"{} {}", "unexpected text after the JSON value"),
        (b'{"a": "x', "no closing quote"),
        (b'"a\nb"', "a line break as \\n"),
        (b'"\\u12"', "four hexadecimal digits"),
        (b'"\\x"', "unknown escape sequence"),
        (b"prompt=x", "a value is expected"),
        (b'{"a": 1,}', ""),
        (b"[1,]", ""),
    ],
)
def test_faulty_json_is_explained_in_our_words(body, words):
    message = fault(body)
    assert words in message and re.search(r" at line \d+ column \d+ \(char \d+\)\.$", message)
    for theirs in (
        "Expecting",
        "Extra data",
        "Unterminated",
        "Invalid control",
        "Invalid \\",
        "Illegal",
        "no JSON",
        "enclosed",
    ):
        assert theirs not in message


def test_position_counts_lines_and_columns():
    assert "at line 3 column 2 (char 4)" in fault(b"{\n\n\tx}")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  \r\n",
        b"\xff{}",
        b'{"a": "\xed\xa0\x80"}',
        "{}".encode("utf-16"),
        b"\x00",
        b"{\x00}",
        b'{"a": ' + b"9" * 10_000 + b"}",
        b"[" * 100_000 + b"x",
    ],
)
def test_hostile_bodies_are_a_400_with_one_line(body):
    assert "\n" not in fault(body)


def test_brackets_in_strings_do_not_count_as_depth():
    text = "[{" * 500 + '\\"]'
    assert parse_json(json.dumps([text] * 10).encode()) == [text] * 10
    assert parse_json(json.dumps([[]] * 1000).encode()) == [[]] * 1000


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * 300 + b'"' + b'\\"' * 400_000,  # a string without an end, full of quotes
        b'{"a": [' + b"[]," * 300 + b'"' + b'\\\\",' * 200_000,
        b"[" + (b"9" * 999 + b",") * 5000 + b"1" * 5000 + b"]",  # many long numbers and one that is too long
        b"[" * 300 + b"]" * 3_000_000,
        b"[" * 200 + b"]" * 200 + b"[]" * 3_000_000,
    ],
    ids=range(5),
)
def test_no_body_takes_more_than_linear_time(body):
    started = time.monotonic()
    fault(body)
    assert time.monotonic() - started < 30, "hours, if it were quadratic"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" + b"1," * JSON_VALUES + b"1,1]", "more than 2,000,000 values"),
        (b"[" + b"{}," * JSON_PARTS + b"1]", "arrays, objects and keys"),
        (b"{" + b'"a":1,' * JSON_PARTS + b'"b":1}', "arrays, objects and keys"),
    ],
)
def test_bodies_of_endless_small_things_are_refused(body, words):
    assert words in fault(body)


def test_what_stands_in_strings_is_not_counted():
    text = ",[{:" * JSON_VALUES
    assert parse_json(json.dumps([text, 1.5, 7]).encode()) == [text, 1.5, 7]


def test_numbers_of_large_bodies_are_the_same():
    numbers = [*range(-30_000, 30_000), 2.5, 10**30]
    assert parse_json(json.dumps(numbers).encode()) == numbers and len(json.dumps(numbers)) > LARGE


def test_the_greatest_depth_is_accepted():
    parse_json(b"[" * JSON_DEPTH + b"]" * JSON_DEPTH)


def test_what_is_sent_is_strict_json_on_one_line():
    data = to_json({"a": [float("nan"), -float("inf"), 1.5, ("x",)], "b": "ä\u2028\r\n\ud800"})
    assert b"\n" not in data and b"\r" not in data
    assert json.loads(data.decode("utf-8")) == {"a": [None, None, 1.5, ["x"]], "b": "ä\u2028\r\n?"}
    assert make_json_response({"a": 1}, 201, {"X": "y"}).headers == {
        "Content-Type": "application/json; charset=utf-8",
        "X": "y",
    }


def test_an_error_becomes_the_openai_shape_and_keeps_its_headers():
    response = make_error_response(ApiError(404, "gone", headers={"Allow": "GET"}, extra_field=3))
    assert response.status == 404 and response.headers["Allow"] == "GET"
    assert json.loads(response.body) == {
        "error": {"code": 404, "message": "gone", "type": "not_found_error", "extra_field": 3}
    }


def test_an_error_names_its_reason_where_its_type_does_not_say_it():
    def reason(error: ApiError) -> object:
        return json.loads(make_error_response(error).body)["error"].get("reason")

    assert reason(ApiError(503, "wait", reason="queue_full")) == "queue_full"
    assert reason(ApiError(413, "cut it")) == "too_large"
    said = [ApiError(status, "no") for status in (400, 401, 403, 404, 429, 500, 501, 503, 504)]
    assert [reason(error) for error in said] == [None] * len(said)
    assert reason(ApiError(400, "too long", "exceed_context_size_error")) is None


def test_nobody_can_smuggle_a_header_into_an_answer():
    head = encode_head(200, {"X-Id": "a\r\nSet-Cookie: b\n\x00c", "X-Text": "\u4e2d"})
    assert head.count(b"\r\n") == 4 and head.endswith(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nX-Id: a  Set-Cookie: b  c\r\n")
    assert encode_head(299, {}).startswith(b"HTTP/1.1 299 ")


def test_a_request_shows_no_secrets_when_printed():
    request = Request("POST", "/", {"api_key": "s3cret"}, Headers({"Authorization": "s3cret"}), b"s3cret")
    assert "s3cret" not in repr(request)


def test_events_are_one_data_line_each():
    assert sse.encode_event({"content": "a\nb ä"}) == 'data: {"content":"a\\nb ä"}\n\n'.encode()
    assert sse.encode_named_event("message_stop", {}) == b"event: message_stop\ndata: {}\n\n"
    assert sse.comment("queue\n\ndata: x") == b": queue data: x\n\n"
    assert sse.DONE == b"data: [DONE]\n\n"


def test_an_error_message_is_one_line_whatever_it_quotes():
    error = ApiError(400, "field 'a\r\nb\x1b\x85\u2028' is é")
    assert error.message == str(error) == "field 'a\\r\\nb\\x1b\\x85\\u2028' is é"
