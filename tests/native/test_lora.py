"""Adapters with the real libraries: scales, combinations, and caches that are never mixed.

`test_engine_commands.py` tests requests with different adapters at once.
"""

from __future__ import annotations

import pytest

from tests import tiny_models
from tests.native.engines import PROMPTS, STEM


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> tuple[tuple[str, float], ...]:
    """Two adapters that turn different bits around, both switched off."""
    folder = tmp_path_factory.mktemp("adapters")
    return tuple(
        (str(tiny_models.tiny_lora(folder / f"{i}.gguf", bits=range(8 * i, 8 * i + 8))), 0.0) for i in range(2)
    )


SETS = {"none": (), "first": ((0, 1.0),), "second": ((1, 1.0),), "both": ((0, 1.0), (1, 1.0))}


@pytest.mark.covers("C20")
def test_strength_nought_is_the_model_itself_and_each_combination_says_something_else(engine, tiny_spm_model, adapters):
    plain = engine(tiny_spm_model).say(STEM, 40).text
    one = engine(tiny_spm_model, lora=adapters)
    texts = {name: one.say(STEM, 40, lora=scales).text for name, scales in SETS.items()}
    assert texts["none"] == plain and len(set(texts.values())) == 4
    assert one.say(STEM, 40, lora=((0, 0.0), (1, 0.0))).text == plain
    assert one.say(STEM, 40).text == plain, "loaded and not applied"
    switched_on = engine(tiny_spm_model, lora=tuple((path, 1.0) for path, _ in adapters))
    assert switched_on.say(STEM, 40).text == texts["both"]


def test_requests_with_every_combination_at_once_equal_each_alone(engine, tiny_spm_model, adapters):
    one = engine(tiny_spm_model, n_slots=4, lora=adapters, n_batch=32)
    shapes = [(prompt, scales) for prompt in PROMPTS[:2] for scales in SETS.values()]
    alone = [one.say(prompt, 25, lora=scales, cache_prompt=False).text for prompt, scales in shapes]
    for _ in range(2):
        tasks = [one.task(prompt, 25, lora=scales) for prompt, scales in shapes]
        assert [said.text for said in one.say_all(tasks)] == alone


def test_no_cache_is_shared_between_different_adapters(engine, tiny_spm_model, adapters):
    """On one slot as between slots; equal sets share as usual."""
    one = engine(tiny_spm_model, n_slots=2, lora=adapters)
    alone = {name: one.say(STEM, 20, lora=scales, cache_prompt=False).text for name, scales in SETS.items()}
    one.client.run_command("erase", id_slot=0)
    one.client.run_command("erase", id_slot=1)
    before = None
    for id_slot in (0, 1):
        for name in ("first", "second", "none", "both", "both", "first"):
            said = one.say(STEM, 20, lora=SETS[name], id_slot=id_slot)
            assert said.text == alone[name]
            is_known = name == before or id_slot == 1 and name == "first"  # slot 0 was left with the first
            assert (said.final.timings.cache_n > 0) is is_known, (id_slot, name)
            before = name


def test_a_change_of_the_server_s_strengths_invalidates_what_was_computed(engine, tiny_spm_model, adapters):
    one = engine(tiny_spm_model, lora=adapters)
    plain = one.say(STEM, 20)
    one.client.run_command("set_lora", scales=((1, 1.0),))
    changed = one.say(STEM, 20)
    assert changed.text != plain.text and changed.final.timings.cache_n == 0
    assert one.say(STEM, 20).final.timings.prompt_n == 1
    one.client.run_command("set_lora", scales=())
    assert one.say(STEM, 20).text == plain.text


def test_a_restored_slot_knows_the_adapters_it_was_computed_with(engine, tiny_spm_model, adapters, tmp_path):
    one = engine(tiny_spm_model, n_slots=2, lora=adapters)
    text = one.say(STEM, 20, lora=SETS["first"], id_slot=0).text
    path = str(tmp_path / "slot")
    one.client.run_command("save", id_slot=0, path=path)
    one.client.run_command("erase", id_slot=0)
    one.client.run_command("restore", id_slot=1, path=path)
    other = one.say(STEM, 20, id_slot=1)
    assert other.final.timings.cache_n == 0, "it must not be taken for the model's own"
    one.client.run_command("restore", id_slot=1, path=path)
    again = one.say(STEM, 20, lora=SETS["first"], id_slot=1)
    assert again.text == text and again.final.timings.prompt_n == 1
