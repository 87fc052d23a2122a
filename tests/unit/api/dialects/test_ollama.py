"""Ollama's messages in the common form of all dialects, its times, and the frames of its lines. Pure."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from server.api.admin.models import count_text, parse_quantization
from server.api.dialects.dialect import Call
from server.api.dialects.ollama import MAX_DURATION, call_json, is_zero, keep_alive, read_turns, seconds_of
from server.api.dialects.ollama_generate import fill_template
from server.api.ollama import parse_typed
from server.api.request.fields import MAX_HEADER, make_warning_header
from server.api.request.media import Files
from server.errors import ApiError

HI = {"role": "user", "content": "hi"}


def turns(*messages: dict) -> list[dict]:
    return read_turns(list(messages), Files(SimpleNamespace()))


def calls(*names: str, **more: str) -> dict:
    made = [{"function": {"name": name, "arguments": {}}, **more} for name in names]
    return {"role": "assistant", "content": "", "tool_calls": made}


def result(**named: str) -> dict:
    return {"role": "tool", "content": "r", **named}


def test_results_find_their_calls_by_name_and_order():
    found = turns(
        HI,
        calls("weather", "clock", "weather"),
        result(tool_name="weather"),
        result(name="weather"),
        result(),
        HI,
        calls("clock"),
        result(tool_call_id="own", tool_name="clock"),
        result(tool_name="clock"),
        result(tool_name="stranger"),
    )
    ids = [[call["id"] for call in turn["tool_calls"]] for turn in found if "tool_calls" in turn]
    assert ids == [["call00000", "call00001", "call00002"], ["call00003"]]
    assert [turn.get("tool_call_id") for turn in found if turn["role"] == "tool"] == [
        *("call00000", "call00002", "call00001"),
        *("own", "call00003", None),
    ]


def test_an_id_that_a_call_has_is_kept():
    assert turns(HI, calls("f", id="abc"), result())[2]["tool_call_id"] == "abc"


def test_what_a_message_does_not_say_is_not_there():
    assert turns(HI, {"role": "assistant", "content": None, "thinking": "", "tool_calls": [], "images": []}) == [
        HI,
        {"role": "assistant", "content": ""},
    ]


@pytest.mark.parametrize("value", [0, 0.0, "0", "0s", "0m0s", "-0", "0.0h"])
def test_no_time_is_the_end_of_the_model(value):
    assert is_zero(value) and seconds_of(value) == 0
    [line] = keep_alive(SimpleNamespace(keep=lambda seconds: False), value)
    assert "no effect" in line
    assert keep_alive(SimpleNamespace(keep=lambda seconds: True), value) == ()


@pytest.mark.parametrize("value", [1, -1, 0.5, "1", "-1", "5m", "10m30s", "1.5h", "100ms", "1µs"])
def test_some_time_is_not(value):
    kept: list[float] = []
    assert not is_zero(value) and keep_alive(SimpleNamespace(keep=kept.append), value) == ()
    assert kept == [seconds_of(value)]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (5, 5),
        (-1, -1),
        ("-1", -1),
        ("5m", 300),
        ("10m30s", 630),
        ("1.5h", 5400),
        ("-1m", -1),
        (10**400, -1),
        ("9" * 60 + "h", -1),
    ],
)
def test_times_become_seconds(value, seconds):
    assert seconds_of(value) == seconds


@pytest.mark.parametrize(
    "value", ["", " ", "m", "5 m", "5x", "1.m", "--1", "1m5", "1" * (MAX_DURATION + 1), "1m" * 50_000]
)
def test_what_is_no_time_is_refused(value):
    with pytest.raises(ApiError):
        keep_alive(SimpleNamespace(keep=pytest.fail), value)


@pytest.mark.parametrize("text", ['{"a": 1', "", "[" * 10_000, '{"a":' * 10_000])
def test_arguments_that_are_not_whole_make_no_call(text):
    made = call_json(Call("1", "f", [text]), 0)
    assert made is None


def test_a_template_keeps_apart_who_wrote_what():
    values = {".System": "s", ".Prompt": "{{ .System }}", ".Response": ""}
    assert fill_template("<{{ .System }}|{{ .Prompt }}>", values) == [
        ("<", False),
        ("s", True),
        ("|", False),
        ("{{ .System }}", True),
        (">", False),
    ]
    nested = "{{ if .System }}{{ if .Response }}no{{ else }}yes{{ end }}{{ end }}"
    assert "".join(text for text, _ in fill_template(nested, values)) == "yes"


@pytest.mark.parametrize(
    ("desc", "found"),
    [
        ("llama 256M Q4_1", "Q4_1"),
        ("llama 7B Q4_K - Medium", "Q4_K_M"),
        ("qwen2 1B all F32", "F32"),
        ("llama 7B IQ2_XXS - 2.0625 bpw", "IQ2_XXS"),
        ("fake", ""),
        ("", ""),
    ],
)
def test_the_type_of_the_weights_is_found_in_the_description(desc, found):
    assert parse_quantization(desc) == found


def test_warnings_in_a_head_are_cut():
    assert make_warning_header(()) == {} and len(make_warning_header(["x" * 1500] * 9)["X-Warnings"]) == MAX_HEADER


def test_numbers_of_the_metadata_are_numbers():
    assert [parse_typed(text) for text in ("12", "-1", "0.5", "1e5", "true", "x", "1" * 30)] == [
        *(12, -1, 0.5, "1e5", True, "x", "1" * 30)
    ]
    assert [count_text(n) for n in (1000, 134_515_008, 7_241_732_096)] == ["1.00K", "134.52M", "7.2B"]
    json.dumps(parse_typed("0.000010"))
