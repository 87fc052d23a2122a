"""Slot files, adapters, the shared system prompt and self-extend with the real libraries and the tiny models."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.engine.seam.task import SamplingParams
from server.errors import ApiError
from tests.native.engines import PROMPTS, STEM, in_both_layouts

# ---- slot files --------------------------------------------------------------------------------------------------


@in_both_layouts
def test_a_saved_slot_is_the_same_in_another_slot_and_another_engine(engine, tiny_model, tmp_path):
    one = engine(tiny_model, n_slots=2)
    alone = one.say(STEM + "the moon", 30, cache_prompt=False).text
    one.say(STEM, 10, id_slot=0)
    saved = one.client.run_command("save", id_slot=0, path=str(tmp_path / "slot"))
    assert saved["n_written"] == (tmp_path / "slot").stat().st_size > 1000
    one.client.run_command("erase", id_slot=0)
    other = engine(tiny_model)
    for where, id_slot in ((one, 1), (other, 0)):
        restored = where.client.run_command("restore", id_slot=id_slot, path=str(tmp_path / "slot"))
        assert restored["n_restored"] == saved["n_saved"]
        said = where.say(STEM + "the moon", 30, id_slot=id_slot)
        assert said.text == alone and said.final.timings.cache_n > 15


def test_a_slot_of_another_model_or_cache_type_is_refused(engine, tiny_spm_model, tiny_bpe_model, tmp_path):
    one = engine(tiny_spm_model)
    one.say(STEM, 5)
    one.client.run_command("save", id_slot=0, path=str(tmp_path / "slot"))
    for other in (engine(tiny_bpe_model), engine(tiny_spm_model, context_params={"type_k": 0, "type_v": 0})):
        alone = other.say(STEM, 10).text
        with pytest.raises(ApiError) as caught:
            other.client.run_command("restore", id_slot=0, path=str(tmp_path / "slot"))
        assert caught.value.status == 400
        assert other.say(STEM, 10).text == alone


def test_a_slot_that_shares_cells_can_be_saved_and_the_neighbour_is_not_touched(engine, tiny_spm_model, tmp_path):
    one = engine(tiny_spm_model, n_slots=2)
    alone = [one.say(STEM + name, 30, cache_prompt=False).text for name in ("the moon", "the star")]
    one.say(STEM + "the moon", 5, id_slot=0)
    one.say(STEM + "the star", 5, id_slot=1)
    one.client.run_command("save", id_slot=1, path=str(tmp_path / "slot"))
    one.client.run_command("restore", id_slot=0, path=str(tmp_path / "slot"))
    assert one.say(STEM + "the star", 30, id_slot=0).text == alone[1]
    assert one.say(STEM + "the moon", 30, id_slot=1).text == alone[0]


# ---- adapters ----------------------------------------------------------------------------------------------------


def test_an_adapter_changes_the_text_where_it_is_switched_on(engine, tiny_spm_model, tiny_lora):
    plain = engine(tiny_spm_model).say(STEM, 30).text
    one = engine(tiny_spm_model, n_slots=2, lora=((str(tiny_lora), 1.0),))
    adapted = one.say(STEM, 30).text
    assert adapted != plain
    assert one.say(STEM, 30, lora=()).text == plain
    assert one.say(STEM, 30, lora=((0, 0.0),)).text == plain
    assert one.say(STEM, 30).text == adapted
    one.client.run_command("set_lora", scales=())
    assert one.say(STEM, 30).text == plain
    assert one.say(STEM, 30, lora=((0, 1.0),)).text == adapted


def test_requests_with_and_without_the_adapter_at_the_same_time(engine, tiny_spm_model, tiny_lora):
    one = engine(tiny_spm_model, n_slots=4, lora=((str(tiny_lora), 0.0),))
    shapes = [(prompt, lora) for prompt in PROMPTS[:4] for lora in ((), ((0, 1.0),))]
    alone = [one.say(prompt, 30, lora=lora, cache_prompt=False).text for prompt, lora in shapes]
    assert len(set(alone)) == len(alone)
    tasks = [one.task(prompt, 30, lora=lora) for prompt, lora in shapes]
    assert [said.text for said in one.say_all(tasks)] == alone


# ---- the shared system prompt ------------------------------------------------------------------------------------


def test_a_shared_system_prompt_is_as_if_it_stood_in_every_prompt(engine, tiny_model):
    one = engine(tiny_model, n_slots=3)
    system, questions = one.tokens(STEM), ["the moon", "a cat", "the star sang and then"]
    tails = [tuple(one.client.vocab.tokenize(question, False, False)) for question in questions]
    alone = [one.say((*system, *tail), 25, cache_prompt=False).text for tail in tails]
    one.client.run_command("system_prompt", tokens=system)
    assert one.client.snapshot.kv_used == len(system)
    for _ in range(2):
        tasks = [one.task(tail, 25) for tail in tails]
        assert [said.text for said in one.say_all(tasks)] == alone
    for tail, text in zip(tails, alone):
        said = one.say(tail, 25, cache_prompt=False)
        assert said.text == text and said.final.timings.prompt_n == len(tail)
    one.client.run_command("system_prompt", tokens=())
    assert one.client.snapshot.kv_used == 0


def test_a_shift_behind_a_shared_system_prompt_leaves_the_others_alone(engine, tiny_spm_model):
    one = engine(tiny_spm_model, n_slots=2, n_ctx=256, shift_context=True)
    system = one.tokens(STEM)
    one.client.run_command("system_prompt", tokens=system)
    alone = one.say(one.client.vocab.tokenize("the moon", False, False), 40).text
    long = one.task(one.client.vocab.tokenize("the star", False, False), 300)
    short = one.task(one.client.vocab.tokenize("the moon", False, False), 40)
    said = one.say_all([replace(long, n_discard=100), short])
    assert said[0].final.truncated and said[1].text == alone
    assert one.say(one.client.vocab.tokenize("the moon", False, False), 40).text == alone


# ---- self-extend -------------------------------------------------------------------------------------------------


def test_self_extend_goes_far_beyond_the_trained_context(engine, tiny_spm_model):
    one = engine(tiny_spm_model, n_slots=2, n_ctx=2048, n_group=4, group_width=64)
    tasks = [one.task(prompt * 4, 300) for prompt in PROMPTS[:2]]
    alone = [one.ask(task).text for task in [replace(task, id=one.client.make_id()) for task in tasks]]
    both = one.say_all(tasks)
    assert [said.text for said in both] == alone
    assert all(said.final.n_predicted == 300 and not said.final.truncated for said in both)


# ---- samplers that libllama no longer has ------------------------------------------------------------------------


def test_tail_free_sampling_leaves_only_the_likeliest_where_it_cuts_hard(engine, tiny_spm_model):
    one = engine(tiny_spm_model)
    greedy = one.say(STEM, 30).tokens
    free = SamplingParams(seed=4, temperature=1.5, top_k=0, top_p=1.0, min_p=0.0)
    assert one.say(STEM, 30, free).tokens != greedy
    cut = replace(free, samplers=("tfs_z", "temperature"), tfs_z=0.01)
    assert one.say(STEM, 30, cut).tokens == greedy


def test_a_newline_is_penalised_only_if_that_is_wanted(engine, tiny_spm_model):
    one = engine(tiny_spm_model)
    newline, other = (one.client.vocab.tokenize(text, False, False)[-1] for text in ("\n", "!"))
    # both are far ahead of everything else, the newline by less; once said, each is penalised if it may be
    params = SamplingParams(
        temperature=0, logit_bias=((newline, 1100.0), (other, 1000.0)), frequency_penalty=20.0, repeat_last_n=64
    )
    said = one.say("x", 30, params).tokens
    assert set(said) == {newline, other}
    assert set(one.say("x", 30, replace(params, penalize_nl=False)).tokens) == {newline}
