"""Records as JSON with names: written values are read back, including values that JSON has no notation for."""

from __future__ import annotations

import json
import math

import pytest

from server.engine.seam.config import EngineConfig, SpecConfig
from server.engine.seam.plain import encode, from_plain, to_plain
from server.engine.seam.task import IMAGE, TOKEN, Media, SamplingParams, Task, Thinking, Trigger

TASK = Task(
    3,
    (1, 2, 3),
    SamplingParams(
        seed=7,
        logit_bias=((5, -math.inf), (6, 1.5)),
        temperature=1,  # a whole number where a float is expected, as from JSON
        penalty_prompt=(9,),
        grammar_triggers=(Trigger(TOKEN, token=4, states=((1, 2), (3,))),),
    ),
    stop=("é",),
    lora=((0, 0.5),),
    reasoning=Thinking("<think>", "</think>", budget=4, end_tokens=(8, 9)),
)
CONFIG = EngineConfig(
    "m.gguf",
    "libs",
    n_ctx=None,
    lora=(("a.gguf", 1.0),),
    spec=SpecConfig(lookup=True),
    model_params={"tensor_buft_overrides": (("x", "CPU"),), "n_gpu_layers": 3},
)


@pytest.mark.parametrize("record", [TASK, CONFIG, Task(0, ())])
def test_what_is_written_comes_back(record):
    assert from_plain(type(record), json.loads(encode(to_plain(record)))) == record


def test_bytes_and_fields_that_are_not_wanted_are_left_out():
    plain = to_plain(Media(IMAGE, b"secret", "hash", "messages[0]"), ("where",))
    assert plain["hash"] == "hash" and "data" not in plain and "where" not in plain


def test_fields_of_a_later_version_are_left_out_and_missing_ones_have_their_defaults():
    assert from_plain(Task, {"id": 1, "prompt": [2], "colour": "red"}) == Task(1, (2,))


@pytest.mark.parametrize(
    "plain",
    [{"id": "1", "prompt": []}, {"id": 1}, {"id": 1, "prompt": ["x"]}, [], {"id": 1, "prompt": [], "lora": [[1]]}],
)
def test_what_is_no_such_record_is_refused(plain):
    with pytest.raises((ValueError, TypeError)):
        from_plain(Task, plain)


@pytest.mark.parametrize(
    ("kind", "value"), [(float, "abc"), (float, "5"), (float, [1]), (dict[str, int], [1]), (tuple[str, ...], "abc")]
)
def test_what_is_of_another_type_is_refused(kind, value):
    with pytest.raises((ValueError, TypeError)):
        from_plain(kind, value)
