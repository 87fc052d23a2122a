"""Prompts that left the KV cache and were restored from memory or disk, and prompts that waited for another one: the
same text.
"""

from __future__ import annotations

import pytest

from server.engine.cache.block_tree import BLOCK
from tests.native.engines import STEM, in_both_layouts
from tests.support import wait_until

NAMES = ("the moon", "the star", "the cat", "the old house", "the river")
TEXTS = [f"{name} . " + STEM * 12 + name for name in NAMES]


@in_both_layouts
def test_conversations_on_too_few_slots_say_what_they_say_alone(engine, tiny_model):
    one = engine(tiny_model, n_slots=2, n_ctx=4096, cache_ram=64)
    alone = [one.say(text, 30, cache_prompt=False) for text in TEXTS]
    for text in TEXTS:
        one.say(text, 4)
    for text, expected in zip(TEXTS, alone, strict=True):
        said = one.say(text, 30)
        assert said.text == expected.text
        assert said.final.cache.source in ("ram", "slot") and said.final.timings.prompt_n == 1
    assert one.client.snapshot.kv_used <= 4096


@in_both_layouts
def test_several_at_once_fetch_while_others_speak(engine, tiny_model):
    one = engine(tiny_model, n_slots=3, n_ctx=4096, cache_ram=64, max_stall_ms=20.0)
    alone = [one.say(text, 40, cache_prompt=False).text for text in TEXTS]
    for _ in range(2):
        assert [said.text for said in one.say_all([one.task(text, 40) for text in TEXTS])] == alone


@in_both_layouts
def test_a_restart_finds_them_on_disk(engine, tiny_model, tmp_path):
    first = engine(tiny_model, n_ctx=2048, cache_disk=str(tmp_path), cache_ram=64)
    said = [first.say(text, 20) for text in TEXTS[:3]]
    n_blocks = sum(-(-(len(first.tokens(text)) + 19) // BLOCK) for text in TEXTS[:3])
    wait_until(
        lambda: len(list(tmp_path.glob("*.kvblock"))) == n_blocks, "all blocks to be written while nothing is to do"
    )
    first.client.close()
    second = engine(tiny_model, n_ctx=2048, cache_disk=str(tmp_path), cache_ram=64).settled()
    for text, before in zip(TEXTS, said, strict=False):
        again = second.say(text, 20)
        assert again.text == before.text and again.final.cache.source == "disk"


def test_another_shape_of_cache_does_not_use_them(engine, tiny_spm_model, tmp_path):
    first = engine(tiny_spm_model, n_ctx=2048, cache_disk=str(tmp_path)).settled()
    first.say(TEXTS[0], 5)
    first.client.close()
    second = engine(tiny_spm_model, n_ctx=2048, cache_disk=str(tmp_path), context_params={"rope_freq_base": 5000.0})
    assert second.settled().say(TEXTS[0], 5).final.timings.cache_n == 0


@in_both_layouts
@pytest.mark.parametrize("n_slots", [2, 4])
def test_who_waits_for_a_common_beginning_says_what_he_says_alone(engine, tiny_model, n_slots):
    one = engine(tiny_model, n_slots=n_slots, n_ctx=1024 * n_slots, n_batch=64)
    prompts = [STEM * 8 + name for name in NAMES]
    alone = [one.say(prompt, 25, cache_prompt=False).text for prompt in prompts]
    one.client.run_command("erase", id_slot=0)
    n_before = one.client.snapshot.n_prompt_tokens
    said = one.say_all([one.task(prompt, 25) for prompt in prompts])
    assert [one_said.text for one_said in said] == alone
    n_stem, n_all = len(one.tokens(STEM * 8)), sum(len(one.tokens(prompt)) for prompt in prompts)
    assert one.client.snapshot.n_prompt_tokens - n_before <= n_stem + (n_all - 5 * n_stem) + 5 * 4


@in_both_layouts
def test_a_text_in_tokens_that_no_tokenizer_chooses_is_reused_when_it_comes_back(engine, tiny_model):
    one = engine(tiny_model, n_slots=2, n_ctx=4096, cache_ram=64)
    vocab = one.client.vocab
    single = {vocab.piece(token): token for token in range(vocab.n_tokens)}
    answer = " the moon and the star"
    written = [*one.tokens(STEM), *(single[letter.encode()] for letter in answer)]
    prompt = STEM + answer + " . " + STEM
    one.say(written, 1, owner="me")
    plain = one.say(prompt, 8, owner="you", may_respell=True)
    said = one.say(prompt, 8, owner="me", may_respell=True)
    assert plain.final.timings.cache_n < len(written) <= said.final.timings.cache_n
    rest = one.tokens(prompt)[-(said.final.n_prompt - len(written)) :]
    assert one.say([*written, *rest], 8, cache_prompt=False).tokens == said.tokens
