"""From the options to the engine's configuration."""

from __future__ import annotations

import pytest

from server.errands.one_shot import ModelPlace
from server.model_sources import make_engine_config
from server.options.groups import group
from server.options.parser import parse


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", (200.0, 2)),
        ("--prefer balance", (200.0, 2)),
        ("--prefer latency", (100.0, 8)),
        ("--prefer throughput", (1000.0, 1)),
        ("--prefer throughput --max-stall-ms 20", (20.0, 1)),
        ("--max-stall-ms 0", (0.0, 2)),
    ],
)
def test_a_preference_sets_the_stall_and_the_size_of_groups_unless_the_stall_is_given(words, expected, tmp_path):
    options = group(parse(["-m", "model.gguf", *words.split()], {}))
    config = make_engine_config(options.model, str(tmp_path), ModelPlace("model.gguf"), must_recall=False)
    assert (config.max_stall_ms, config.group_part) == expected
