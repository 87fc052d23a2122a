"""Reading the input of a batch: errors name their line, and lines with the same beginning are grouped."""

from __future__ import annotations

import io
import json
import random

import pytest

from server.batches import lines as lines_module
from server.batches.lines import ENDPOINTS, answer_id, read_body, read_lines, sort_lines
from server.errors import ApiError

CHAT = "/v1/chat/completions"


def request(custom_id: object = "a", text: str = "hi", **fields: object) -> dict:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **fields}


def file_of(*requests: object) -> io.BytesIO:
    return io.BytesIO(b"".join(
        (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in requests
    ))  # fmt: skip


def faults_of(*requests: object, endpoint: str = "") -> list[tuple[int | None, str]]:
    return [(fault.line, fault.code) for fault in read_lines(file_of(*requests), endpoint)[1]]


def test_lines_are_found_again_where_they_are():
    stream = file_of(b"\xef\xbb\xbf" + json.dumps(request("a")).encode(), b"  ", request("b", "ü" * 400), b"")
    lines, faults = read_lines(stream, CHAT)
    assert faults == [] and [(line.number, line.custom_id) for line in lines] == [(1, "a"), (3, "b")]
    assert [read_body(stream, line)["messages"][0]["content"] for line in reversed(lines)] == ["ü" * 400, "hi"]
    assert len({line.id for line in lines}) == 2 and lines[0].model == "m"


def test_a_last_line_without_an_end_counts():
    lines, faults = read_lines(io.BytesIO(json.dumps(request()).encode()))
    assert len(lines) == 1 and not faults


def test_a_file_that_has_changed_meanwhile_is_noticed():
    stream = file_of(request("a", "one"))
    [line], _ = read_lines(stream)
    with pytest.raises(ApiError, match="line 1 of the file has changed"):
        read_body(file_of(request("a", "two")), line)


def test_the_id_of_an_answer_is_that_of_its_request():
    assert answer_id(b'{"a": 1}\n') == answer_id(b' {"a": 1}\r\n') != answer_id(b'{"a": 2}\n')


@pytest.mark.parametrize("data, code", [
    (b"hello", "invalid_json_line"), (b"[]", "invalid_json_line"), (b'{"custom_id": NaN}', "invalid_json_line"),
    (b'{"a": "\xff"}', "invalid_json_line"), (b"[" * 300, "invalid_json_line"), (b'{"custom_id"', "invalid_json_line"),
    (request(None), "invalid_custom_id"), (request(7), "invalid_custom_id"), (request(""), "invalid_custom_id"),
    (request("x" * 513), "invalid_custom_id"), (request(method="GET"), "invalid_method"),
    (request(url="/v1/files"), "invalid_url"), (request(url=["x"]), "invalid_url"), (request(url=None), "invalid_url"),
    (request(body="x"), "missing_required_parameter"), (request(body=None), "missing_required_parameter"),
])  # fmt: skip
def test_what_is_wrong_with_a_line_is_told(data, code):
    assert faults_of(request("first"), data, request("last")) == [(2, code)]


def test_a_batch_is_for_one_endpoint():
    both = request("a"), request("b", url="/v1/embeddings")
    assert faults_of(*both) == [] and faults_of(*both, endpoint=CHAT) == [(2, "invalid_url")]
    assert all(faults_of(request(url=url), endpoint=url) == [] for url in ENDPOINTS)


def test_a_custom_id_is_there_once():
    assert faults_of(request("a"), request("b"), request("a", "other")) == [(3, "duplicate_custom_id")]


@pytest.mark.parametrize("data", [b"", b"\n \n\r\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_no_batch(data):
    assert [(fault.line, fault.code) for fault in read_lines(io.BytesIO(data))[1]][:1] in (
        [(None, "empty_file")], [(1, "invalid_json_line")])  # fmt: skip


def test_bounds(monkeypatch):
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 300)
    monkeypatch.setattr(lines_module, "MAX_LINES", 2)
    stream = file_of(request("a"), request("b", "x" * 5000), request("c"))
    lines, faults = read_lines(stream)
    assert [(fault.line, fault.code) for fault in faults] == [(2, "line_too_long")]
    assert read_body(stream, lines[1])["messages"][0]["content"] == "hi", "what follows is where it is"
    assert faults_of(*(request(str(i)) for i in range(5))) == [(3, "too_many_lines")]
    assert len(faults_of(*[b"x"] * 500)) == lines_module.MAX_FAULTS


def test_lines_that_begin_alike_come_together_and_groups_as_their_first_lines_do():
    shared = {name: name * 3000 for name in "pqr"}
    names = [name for _ in range(5) for name in "qpr"]
    stream = file_of(*(request(f"{name}{i}", f"{shared[name]} {i}") for i, name in enumerate(names)))
    found = [line.custom_id[0] for line in sort_lines(read_lines(stream)[0])]
    assert "".join(found) == "qqqqqppppprrrrr"


def test_finer_groups_lie_in_coarser_ones():
    texts = {"a": "x" * 600 + "a" * 3000, "b": "x" * 600 + "b" * 3000, "c": "y" * 3000}
    names = list("acbacbbca")
    stream = file_of(*(request(f"{name}{i}", f"{texts[name]} {i}") for i, name in enumerate(names)))
    assert "".join(line.custom_id[0] for line in sort_lines(read_lines(stream)[0])) == "aaabbbccc"


def test_models_are_not_mixed():
    bodies = [{"model": model, "prompt": "x" * 900 + str(i)} for i, model in enumerate("ababab")]
    stream = file_of(*(request(str(i), body=body) for i, body in enumerate(bodies)))
    assert [line.model for line in sort_lines(read_lines(stream)[0])] == list("aaabbb")


def test_no_line_is_lost_in_the_order():
    random.seed(3)
    some = [request(str(i), random.choice("ab") * random.choice([1, 300, 5000]) + str(i % 7)) for i in range(60)]
    lines, _ = read_lines(file_of(*some))
    assert sorted(line.number for line in sort_lines(lines)) == list(range(1, 61))
