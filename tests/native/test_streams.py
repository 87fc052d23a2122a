"""A KV stream for each slot, with the real library: copied, moved and read states are unchanged."""

from __future__ import annotations

import random
from array import array
from pathlib import Path

import pytest

from server.engine.llama import backend as native
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import CACHE_SHARED
from server.engine.slots.planner import Span
from tests.native import test_memory_architectures
from tests.native.engines import STEM, Engine

NAMES = ("the moon", "the star", "the cat", "the old house")
TEXTS = [f"{name} . " + STEM * 6 + name for name in NAMES]
F32 = {"type_k": 0, "type_v": 0}  # of a cache in F16 near ties fall differently
LAYOUTS = [(True, False), (False, True), (False, False)]


@pytest.fixture(scope="module")
def window_model(tmp_path_factory) -> Path:
    """A gemma3 with random weights whose layers but the last look at 140 tokens."""
    path = tmp_path_factory.mktemp("window") / "window.gguf"
    kinds = test_memory_architectures.KINDS
    metadata, layer = kinds["gemma3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kinds, "gemma3", ({**metadata, "attention.sliding_window": 140}, layer))
        test_memory_architectures.write(path, "gemma3")
    rng = random.Random(3)
    data = bytearray(path.read_bytes())
    n_weights = 4 * (
        2 * 128 * 600
        + 128
        + 6
        * sum(
            a * b
            for a, b in (
                (128, 1),
                (128, 1),
                (128, 128),
                (128, 64),
                (128, 64),
                (128, 128),
                (32, 2),
                (128, 1536),
                (128, 2),
            )
        )
    )
    weights = array("f", (rng.gauss(0.0, 0.3) for _ in range(n_weights // 4)))
    data[-len(weights) * 4 :] = weights.tobytes()
    path.write_bytes(data)
    return path


def alone(one: Engine, texts: list[str], n: int) -> list[list[int]]:
    return [one.say(text, n, cache_prompt=False).tokens for text in texts]


@pytest.mark.parametrize("n_slots", [3, 5])
def test_slots_that_are_moved_to_each_other_go_on_as_they_would_have(engine, tiny_model, n_slots):
    one = engine(tiny_model, n_slots=n_slots, n_ctx=1024 * n_slots)
    expected = alone(one, TEXTS[:2], 80)
    swaps = []
    swap = one.backend.swap
    one.backend.swap = lambda a, b: swaps.append((a, b)) or swap(a, b)
    one.say(TEXTS[2], 5, id_slot=1)
    for _ in range(2):
        tasks = [one.task(text, 80, id_slot=i) for text, i in zip(TEXTS, (0, n_slots - 1))]
        assert [said.tokens for said in one.say_all(tasks)] == expected
    assert swaps
    again = one.say(TEXTS[2], 5, id_slot=1)
    assert again.final.timings.prompt_n == 1 and again.tokens == alone(one, TEXTS[2:3], 5)[0]


@pytest.mark.parametrize(("before", "after"), LAYOUTS)
@pytest.mark.parametrize(
    ("model", "n_evaluated"), [("tiny_spm_model", 1), ("tiny_mamba_model", 4), ("tiny_jamba_model", 4)]
)
def test_a_saved_slot_fits_into_other_layouts_and_numbers_of_slots(
    engine, request, tmp_path, model, n_evaluated, before, after
):
    model = request.getfixturevalue(model)
    first = engine(model, n_slots=3, n_ctx=3072, kv_unified=before)
    expected = alone(first, TEXTS[:1], 20)[0]
    first.say(TEXTS[0], 1, id_slot=2)
    n = first.client.run_command("save", id_slot=2, path=str(tmp_path / "slot"))["n_saved"]
    for n_slots in (1, 2, 4):
        second = engine(model, n_slots=n_slots, n_ctx=1024 * n_slots, kv_unified=after)
        assert second.client.run_command("restore", id_slot=n_slots - 1, path=str(tmp_path / "slot"))["n_restored"] == n
        said = second.say(TEXTS[0], 20, id_slot=n_slots - 1)
        assert said.tokens == expected and said.final.timings.prompt_n == n_evaluated


@pytest.mark.parametrize(
    "context_params",
    [{}, {"flash_attn_type": 0}, {"type_k": 8, "type_v": 8}, {"type_k": 0, "type_v": 0}],
    ids=["f16", "transposed", "q8_0", "f32"],
)
def test_every_kind_of_cache_can_be_cut(engine, tiny_spm_model, context_params):
    one = engine(tiny_spm_model, n_slots=2, n_ctx=4096, cache_ram=64, context_params=context_params)
    expected = alone(one, TEXTS, 20)
    for _ in range(2):
        said = [one.say(text, 20) for text in TEXTS]
        assert [one_said.tokens for one_said in said] == expected
    assert {one_said.final.cache.source for one_said in said} <= {"ram", "slot"}
    assert all(one_said.final.timings.prompt_n == 1 for one_said in said)


@pytest.mark.parametrize(("before", "after"), LAYOUTS)
def test_blocks_on_disk_are_those_of_any_layout(engine, tiny_spm_model, tmp_path, before, after):
    first = engine(tiny_spm_model, n_slots=3, n_ctx=3072, kv_unified=before, cache_disk=str(tmp_path)).settled()
    expected = [first.say(text, 20).tokens for text in TEXTS[:3]]
    first.client.close()
    second = engine(tiny_spm_model, n_slots=2, n_ctx=2048, kv_unified=after, cache_disk=str(tmp_path)).settled()
    for text, tokens in zip(TEXTS, expected, strict=False):
        said = second.say(text, 20)
        assert said.tokens == tokens and said.final.cache.source == "disk"


@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_sequence_that_was_just_shifted_is_read_out_as_it_will_be(libs_folder, tiny_spm_model, kv_unified):
    config = EngineConfig(
        str(tiny_spm_model), str(libs_folder), n_slots=2, n_ctx=1024, n_threads=1, warmup=False, kv_unified=kv_unified
    )
    tokens = list(range(300, 340))
    states = []
    for is_read_at_once in (True, False):
        backend = native.open_backend(config, lambda _: True)
        assert backend.decode([Span(0, 0, 0, tokens, False)]) == 0
        backend.seq_rm(0, 4, 14)
        backend.seq_add(0, 14, 40, -10)
        if not is_read_at_once:
            assert backend.decode([Span(1, 1, 0, [5], False)]) == 0
        states.append(bytes(backend.read_state(0)))
        backend.close()
    assert states[0] == states[1]


@pytest.mark.parametrize("kv_unified", [True, False])
def test_windows_see_the_same_after_a_beginning_was_copied(engine, window_model, kv_unified):
    one = engine(
        window_model, n_slots=3, n_ctx=3072, n_batch=64, kv_unified=kv_unified, cache_ram=64, context_params=F32
    )
    prompts = [[(7 * i) % 500 + 50 for i in range(300)] + tail for tail in ([60, 61], [70, 71, 72], [80])]
    expected = [one.say(prompt, 25, cache_prompt=False).tokens for prompt in prompts]
    one.client.run_command("erase", id_slot=0)
    assert [one.say(prompt, 25, id_slot=i).tokens for i, prompt in enumerate(prompts)] == expected
    for i in range(3):
        one.client.run_command("erase", id_slot=i)
    said = one.say_all([one.task(prompt, 25) for prompt in prompts])
    assert [one_said.tokens for one_said in said] == expected
    assert [one_said.final.cache.source for one_said in said].count(CACHE_SHARED) == 2


@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_restored_slot_with_windows_goes_on_where_it_ended_and_nowhere_before(
    engine, window_model, tmp_path, kv_unified
):
    one = engine(window_model, n_slots=2, n_ctx=2048, n_batch=64, kv_unified=kv_unified, context_params=F32)
    stem = [(7 * i) % 500 + 50 for i in range(600)]
    prompts = stem, [*stem, 60, 61], [*stem[:300], 70, 71, 72]
    expected = [one.say(prompt, 25, cache_prompt=False).tokens for prompt in prompts]
    one.say(stem, 1, id_slot=0)
    one.client.run_command("save", id_slot=0, path=str(tmp_path / "slot"))
    for prompt, tokens, n_cached in zip(prompts, expected, (599, 600, 0), strict=True):
        one.client.run_command("erase", id_slot=1)
        one.client.run_command("restore", id_slot=0, path=str(tmp_path / "slot"))
        said = one.say(prompt, 25, id_slot=0)
        assert said.tokens == tokens and said.final.timings.cache_n == n_cached
        assert one.say(prompt, 25, id_slot=1).tokens == tokens


def test_the_layout_is_chosen_by_slots_and_model(engine, tiny_spm_model, window_model):
    assert engine(tiny_spm_model, n_slots=2).backend.is_split
    assert not engine(tiny_spm_model).backend.is_split
    assert not engine(window_model, n_slots=2).backend.is_split
    assert not engine(tiny_spm_model, n_slots=2, kv_unified=True).backend.is_split
    assert engine(tiny_spm_model, exact=True, n_slots=2).backend.is_split


def test_each_slot_has_its_share_of_what_was_asked_for_or_may_use_the_whole(engine, tiny_spm_model):
    for kv_unified, n in ((True, 1024), (False, 341)):
        info = engine(tiny_spm_model, n_slots=3, n_ctx=1024, kv_unified=kv_unified).client.info
        assert (info.n_ctx, info.n_ctx_slot) == (1024, n)
