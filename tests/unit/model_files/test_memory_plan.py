"""Fitting a model into memory: choices for unset options, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.model_files.memory_plan import MIB, Place, Wish, compute_bytes, count_cache_bytes, plan
from server.model_files.shape_reader import Layer, Shape

GIB = 1024 * MIB
# as an 8B model at four bits: 32 layers of 130 MiB, 8 heads of 128 for keys and values
EIGHT_B = Shape(
    layers=(Layer(130 * MIB, 1024, 1024),) * 32,
    input=280 * MIB,
    output=410 * MIB,
    pinned=0,
    n_ctx_train=131072,
    n_embd=4096,
    n_ff=14336,
    n_head=32,
    n_query=4096,
    n_vocab=128256,
)
CELL = 32 * 2 * 1024 * 2  # bytes of its cache per token


def host(gib: float) -> Place:
    return Place("memory", int(gib * GIB))


def gpu(gib: float, name: str = "CUDA0", is_shared: bool = False) -> Place:
    return Place(name, int(gib * GIB), is_shared)


def test_the_models_own_context_if_there_is_room():
    found = plan(EIGHT_B, Wish(), host(64))
    assert (found.n_ctx, found.fault, found.notes) == (131072, "", ())
    assert found.rows[0].weights == EIGHT_B.weights and found.rows[0].cache == 131072 * CELL


def test_each_slot_has_the_models_own_context_if_there_is_room():
    assert plan(EIGHT_B, Wish(n_slots=2), host(128)).n_ctx == 2 * 131072


def test_an_open_context_takes_half_of_what_weights_leave():
    found = plan(EIGHT_B, Wish(), host(16))
    room = 15 * GIB - EIGHT_B.weights
    taken, more = (found.n_ctx * CELL + compute_bytes(EIGHT_B, Wish(), found.n_ctx), 256 * (CELL + 2 * 512))
    assert taken <= room / 2 < taken + more and found.n_ctx % 256 == 0
    assert "131072" in found.notes[0] and "--ctx-size" in found.notes[0]


TINY = Shape(
    layers=(Layer(MIB, 64, 64),),
    input=MIB,
    output=0,
    pinned=0,
    n_ctx_train=2**20,
    n_embd=64,
    n_ff=64,
    n_head=1,
    n_query=64,
    n_vocab=100,
)


def test_working_memory_counts_into_that_half():
    """A tiny model's mask takes more for each token of the context than its keys and values do."""
    found = plan(TINY, Wish(), host(1)).rows[0]
    assert 0 < found.cache < found.compute and found.cache + found.compute <= GIB * 7 // 8 // 2


@pytest.mark.parametrize(
    ("claimed", "n_slots", "n_ctx"),
    [
        (2**20, 1, 2**20),
        (2**20 + 1, 1, 2**20),
        (10 * 2**20, 1, 2**20),
        (2**24 + 1, 1, 16384),
        (2**31, 4, 4 * 16384),
        (2**32 - 1, 1, 16384),
    ],
)
def test_a_claim_beyond_use_is_cut_and_told(claimed, n_slots, n_ctx):
    found = plan(replace(TINY, n_ctx_train=claimed), Wish(n_slots=n_slots), host(1000))
    assert found.n_ctx == n_ctx and not found.fault
    assert [str(claimed) in note for note in found.notes] == [True] * (claimed > 2**20)


def test_who_asks_for_such_a_context_gets_it():
    assert plan(replace(TINY, n_ctx_train=2**31), Wish(n_ctx=2**25), host(1000)).n_ctx == 2**25


def test_a_small_context_may_take_more_than_half():
    tight = plan(EIGHT_B, Wish(), Place("memory", int(EIGHT_B.weights + 1.7 * GIB)))
    assert tight.n_ctx == 4096 and not tight.fault


def test_below_that_whatever_fits_rather_than_nothing():
    tight = plan(EIGHT_B, Wish(), Place("memory", int(EIGHT_B.weights + 1.25 * GIB)))
    assert 256 <= tight.n_ctx < 4096 and not tight.fault


def test_a_context_that_was_set_stays_and_needs_no_margin():
    need = EIGHT_B.weights + 20000 // 256 * 256 * CELL + 512 * MIB
    found = plan(EIGHT_B, Wish(n_ctx=20000), Place("memory", need + 100 * MIB))
    assert found.n_ctx == 20224 and not found.fault


def test_what_cannot_fit_is_refused_with_the_numbers_and_what_to_do():
    found = plan(EIGHT_B, Wish(n_ctx=100000), host(12))
    for words in ("doesn't fit", "100096 tokens", "12288 free", "--ctx-size", "--fit off"):
        assert words in found.fault
    assert "\n" not in found.fault


def test_a_model_that_is_larger_than_the_memory_is_refused():
    assert "doesn't fit" in plan(EIGHT_B, Wish(), host(4)).fault


def test_a_margin_is_left_free():
    asked = plan(EIGHT_B, Wish(margins=(8 * GIB,)), host(16)).rows[0]
    assert asked.left >= 8 * GIB
    assert plan(EIGHT_B, Wish(), host(16)).rows[0].left >= 1 * GIB
    small = Shape(
        layers=(Layer(MIB, 64, 64),),
        input=MIB,
        output=0,
        pinned=0,
        n_ctx_train=512,
        n_embd=64,
        n_ff=64,
        n_head=1,
        n_query=64,
        n_vocab=100,
    )
    assert not plan(small, Wish(), host(0.5)).fault  # an eighth is enough there


def test_everything_on_a_gpu_that_is_large_enough():
    found = plan(EIGHT_B, Wish(), host(16), (gpu(80),))
    assert (found.n_gpu_layers, found.n_ctx) == (33, 131072)
    assert found.rows[1].weights == EIGHT_B.weights - EIGHT_B.input and found.rows[0].weights == EIGHT_B.input


def test_the_context_shrinks_before_layers_leave_the_gpu():
    found = plan(EIGHT_B, Wish(), host(64), (gpu(12),))
    assert found.n_gpu_layers == 33 and 4096 <= found.n_ctx < 131072
    assert found.rows[1].left >= 1 * GIB


def test_layers_leave_the_gpu_when_the_smallest_context_does_not_fit():
    found = plan(EIGHT_B, Wish(), host(64), (gpu(5),))
    assert 0 < found.n_gpu_layers < 33 and found.n_ctx >= 4096
    assert found.rows[0].weights + found.rows[1].weights == EIGHT_B.weights


def test_layers_leave_the_gpu_at_once_for_a_context_that_was_set():
    found = plan(EIGHT_B, Wish(n_ctx=65536), host(64), (gpu(10),))
    assert found.n_ctx == 65536 and 0 < found.n_gpu_layers < 33 and not found.fault


def test_layers_that_were_set_stay():
    found = plan(EIGHT_B, Wish(n_gpu_layers=33), host(64), (gpu(5),))
    assert found.fault and "CUDA0" in found.fault and "--n-gpu-layers" in found.fault
    assert plan(EIGHT_B, Wish(n_gpu_layers=10), host(64), (gpu(5),)).n_gpu_layers == 10


def test_a_gpu_that_is_full_already_is_left_alone():
    found = plan(EIGHT_B, Wish(), host(64), (gpu(0.3),))
    assert found.n_gpu_layers == 0 and not found.fault and found.rows[0].weights == EIGHT_B.weights


def test_two_gpus_share_by_free_memory():
    found = plan(EIGHT_B, Wish(n_ctx=8192), host(64), (gpu(24, "CUDA0"), gpu(8, "CUDA1")))
    first, second = found.rows[1:]
    assert found.n_gpu_layers == 33 and 2.5 < first.cache / second.cache < 3.5
    assert first.weights + second.weights == EIGHT_B.weights - EIGHT_B.input


def test_memory_that_a_device_shares_with_the_host_is_counted_once():
    apart = plan(EIGHT_B, Wish(n_ctx=8192), host(7), (gpu(24),))
    shared = plan(EIGHT_B, Wish(n_ctx=8192, n_gpu_layers=33), host(7), (gpu(24, "MTL0", is_shared=True),))
    assert not apart.fault
    assert shared.rows[0].place.free == 7 * GIB - shared.rows[1].used


def test_tied_embeddings_are_copied_to_the_gpu_only():
    tied = replace(EIGHT_B, output=0)
    assert plan(tied, Wish(), host(64)).rows[0].weights == tied.weights
    on_gpu = plan(tied, Wish(), host(64), (gpu(80),)).rows
    assert on_gpu[0].weights == tied.input and on_gpu[1].weights == 32 * 130 * MIB + tied.input


def test_pinned_tensors_stay_on_the_host():
    found = plan(replace(EIGHT_B, pinned=GIB), Wish(), host(64), (gpu(80),))
    assert found.rows[0].weights == EIGHT_B.input + GIB


def test_a_cache_kept_on_the_host():
    found = plan(EIGHT_B, Wish(is_cache_on_gpu=False, n_ctx=4096), host(64), (gpu(80),))
    assert found.rows[1].cache == 0 and found.rows[0].cache == 4096 * CELL


@pytest.mark.parametrize("kind, part", [(0, 2.0), (1, 1.0), (8, 34 / 64), (2, 18 / 64)])
def test_the_cache_depends_on_its_types(kind, part):
    assert count_cache_bytes(EIGHT_B.layers, Wish(type_k=kind, type_v=kind), 1024) == 1024 * CELL * part


def test_a_cache_for_each_sequence_and_a_second_context():
    plain = count_cache_bytes(EIGHT_B.layers, Wish(n_slots=3), 3072)
    assert count_cache_bytes(EIGHT_B.layers, Wish(n_slots=3, is_split=True), 3072) == plain
    assert (
        count_cache_bytes(EIGHT_B.layers, Wish(n_slots=3, embeds=True, n_ubatch=512), 3072)
        == plain + (1024 + 512) * CELL
    )


def test_a_draft_model_and_a_context_for_embeddings_are_counted():
    host = Place("memory", 64 << 30)
    wish = Wish(n_slots=2, n_ctx=8192, is_split=True)
    plain, drafted, embedding = (
        plan(EIGHT_B, one, host).rows[0]
        for one in (wish, replace(wish, draft=EIGHT_B, draft_type_k=8, draft_type_v=8), replace(wish, embeds=True))
    )
    assert drafted.cache == plain.cache + 8192 * CELL * 34 / 64
    assert drafted.compute == 2 * plain.compute and drafted.weights == plain.weights
    assert embedding.cache == plain.cache + (4096 + 512) * CELL and embedding.compute > plain.compute


def test_windows_and_states():
    layers = (Layer(0, 64, 64, is_windowed=True), Layer(0, 64, 64), Layer(0, state=1000))
    assert count_cache_bytes(layers, Wish(n_slots=3), 8192, 512) == 2 * 8192 * 256 + 4000
    small = count_cache_bytes(layers, Wish(n_slots=3, is_window_full=False), 8192, 512)
    assert small == 8192 * 256 + (4 * 512 + 512) * 256 + 4000


def test_working_memory_of_the_logits_and_of_long_contexts():
    logits = 512 * 4 * 128256
    assert logits <= compute_bytes(EIGHT_B, Wish(), 4096) < 1.1 * logits
    long = compute_bytes(EIGHT_B, Wish(is_flash=False), 131072)
    assert long > 512 * 131072 * 4 * 32  # scores of every head
    assert compute_bytes(EIGHT_B, Wish(n_outputs=8), 4096) < logits / 2


def test_the_plan_as_lines():
    lines = plan(EIGHT_B, Wish(n_ctx=8192, n_slots=2), host(64), (gpu(80),)).render_lines()
    assert lines[0].split() == ["MiB", "weights", "cache", "compute", "sum", "free"]
    assert lines[1].startswith("memory") and lines[2].startswith("CUDA0") and "81920" in lines[2]
    assert "context: 8192 tokens for 2 slots" in lines and "33 of 33 layers on the GPU" in lines


@given(
    st.floats(0.5, 200),
    st.lists(st.floats(0.1, 100), max_size=3),
    st.integers(1, 16),
    st.none() | st.integers(1, 500_000),
    st.none() | st.integers(0, 40),
)
def test_a_plan_never_takes_more_than_there_is(free, gpus, n_slots, n_ctx, n_gpu_layers):
    found = plan(
        EIGHT_B,
        Wish(n_slots=n_slots, n_ctx=n_ctx, n_gpu_layers=n_gpu_layers),
        host(free),
        tuple(gpu(gib, f"CUDA{i}") for i, gib in enumerate(gpus)),
    )
    assert found.n_ctx >= (n_ctx or 1) and found.n_ctx % 256 == 0
    assert found.fault or all(row.left >= 0 for row in found.rows if row.used)
