"""Sampling settings in a model's file: used where options and requests set nothing, and never trusted."""

from __future__ import annotations

import logging
import math

import pytest

from server import app, model_sources
from server.model_files.gguf import Gguf
from server.options.advice import NAMES, PREFIX, read_advice
from server.options.groups import group
from server.options.parser import parse

GOOD = {
    "sequence": "penalties;top_k;top_p;temp",
    "top_k": 20,
    "top_p": 0.949999988079071,
    "min_p": 0.0,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.25,
    "temp": 0.6000000238418579,
    "penalty_last_n": 128,
    "penalty_repeat": 1.0499999523162842,
    "mirostat": 2,
    "mirostat_tau": 4.0,
    "mirostat_eta": 0.2,
}


def metadata(**values: object) -> dict[str, object]:
    return {"general.name": "x", **{PREFIX + key: value for key, value in values.items()}}


def test_every_key_of_llama_cpp_becomes_a_default_of_requests():
    assert set(GOOD) == set(NAMES)
    advice, faults = read_advice(metadata(**GOOD))
    assert faults == []
    assert advice == {
        "samplers": ("penalties", "top_k", "top_p", "temperature"),
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.0,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.25,
        "temperature": 0.6,
        "repeat_last_n": 128,
        "repeat_penalty": 1.05,
        "mirostat": 2,
        "mirostat_tau": 4.0,
        "mirostat_eta": 0.2,
    }


def test_a_file_without_advice_changes_nothing():
    assert read_advice({"general.name": "x", "general.sampling": 1, PREFIX + "new_thing": 3}) == ({}, [])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temp", "0.5"),
        ("temp", True),
        ("temp", (0.5, 0.6)),
        ("temp", math.nan),
        ("temp", math.inf),
        ("temp", 1e9),
        ("top_k", 20.5),
        ("top_k", -2),
        ("top_k", 2**63),
        ("top_p", 1.5),
        ("mirostat", 3),
        ("penalty_repeat", 0.0),
        ("sequence", 3),
        ("sequence", ""),
        ("sequence", "top_k;nonsense\x1b[2J"),
        ("sequence", "x" * 100_000),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_no_option_would_take_is_left_out(key, value):
    advice, faults = read_advice(metadata(**{"min_p": 0.1, key: value}))
    assert advice == {"min_p": 0.1} and len(faults) == 1 and PREFIX + key in faults[0]


def test_a_whole_number_may_be_written_as_a_float():
    assert read_advice(metadata(top_k=40.0, temp=1))[0] == {"top_k": 40, "temperature": 1.0}


def test_all_faults_make_one_line_without_control_characters(caplog):
    header = Gguf("m.gguf", 1, metadata=metadata(temp="\x1b[2J\nhot", top_k=-7, sequence="\x07" * 400))
    assert model_sources.collect_advice(header) == {}
    (line,) = caplog.messages
    assert (
        line.isprintable() and len(line) < 1000 and line.startswith("m.gguf recommends settings that can't be used: ")
    )
    assert PREFIX + "temp" in line and PREFIX + "top_k" in line


def test_options_count_more_than_the_file(caplog):
    model = group(parse(["-m", "a.gguf", "--temp", "0.9"], {})).model
    with caplog.at_level(logging.INFO, "llama_srv"):
        advised = app.with_advice(model, {"temperature": 0.6, "top_k": 20, "samplers": ("top_k", "temperature")})
    assert advised.requests.values == {"temperature": 0.9, "top_k": 20, "samplers": ("top_k", "temperature")}
    assert advised.requests.advised == {"top_k", "samplers"}
    (line,) = caplog.messages
    assert line.endswith("model's file: top_k 20, samplers top_k;temperature")
    caplog.clear()
    assert app.with_advice(model, {}).requests.values == model.requests.values and not caplog.messages
