"""The estimate of a model's memory compared with the allocations that llama.cpp reports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ctypes_api import loader
from ctypes_api.objects import Context, Model
from server.model_files import gguf
from server.model_files import memory_plan as fit
from server.model_files.shape_reader import shape_of

BUFFER = re.compile(r"(model|KV|RS|output|compute) buffer size\s*=\s*([\d.]+)")


def allocated(folder: Path, path: Path, wish: fit.Wish, n_ctx: int) -> dict[str, float]:
    """MiB by kind of buffer, from the log."""
    lines: list[str] = []
    libs = loader.load(folder, log_callback=lambda level, line: lines.append(line))
    with (
        Model(libs, path, use_extra_bufts=False) as model,
        Context(
            model,
            n_ctx=n_ctx,
            n_batch=wish.n_batch,
            n_ubatch=wish.n_ubatch,
            n_threads=1,
            n_seq_max=wish.n_slots + (not wish.is_split),
            n_threads_batch=1,
            kv_unified=not wish.is_split,
            type_k=wish.type_k,
            type_v=wish.type_v,
            flash_attn_type=-1 if wish.is_flash else 0,
        ),
    ):
        pass
    found: dict[str, float] = {}
    for kind, size in BUFFER.findall("\n".join(lines)):
        found[kind] = found.get(kind, 0.0) + float(size)
    return found


WISHES = {
    "plain": (fit.Wish(), 4096),
    "long": (fit.Wish(), 32768),
    "small batches": (fit.Wish(n_ubatch=64), 4096),
    "slots": (fit.Wish(n_slots=8), 4096),
    "a cache for each slot": (fit.Wish(n_slots=8, is_split=True), 8192),
    "without flash attention": (fit.Wish(is_flash=False), 8192),
    "eight-bit cache": (fit.Wish(type_k=8, type_v=8), 8192),
}


@pytest.mark.parametrize("name", WISHES)
@pytest.mark.parametrize("model", ["tiny_spm_model", "tiny_bpe_model", "recite_model"])
def test_the_estimate_is_what_llama_cpp_allocates(request, libs_folder, model, name):
    path = request.getfixturevalue(model)
    wish, n_ctx = WISHES[name]
    shape = shape_of(gguf.read_all(path))
    found = allocated(libs_folder, path, wish, n_ctx)
    assert found["model"] == pytest.approx(shape.weights / fit.MIB, abs=0.02)
    assert found["KV"] == pytest.approx(fit.count_cache_bytes(shape.layers, wish, n_ctx) / fit.MIB, abs=0.02)
    compute = found["compute"] + found["output"]
    assert fit.compute_bytes(shape, wish, n_ctx) / fit.MIB == pytest.approx(compute, rel=0.1, abs=0.2)


def test_the_estimate_of_a_real_model(libs_folder, smollm2):
    wish = fit.Wish(n_slots=4)
    shape = shape_of(gguf.read_all(smollm2))
    found = allocated(libs_folder, smollm2, wish, 8192)
    together = (
        shape.weights + fit.count_cache_bytes(shape.layers, wish, 8192) + fit.compute_bytes(shape, wish, 8192)
    ) / fit.MIB
    assert together == pytest.approx(sum(found.values()), rel=0.03)


def test_an_open_context_is_the_models_own(engine, tiny_spm_model):
    assert engine(tiny_spm_model, n_ctx=None).client.info.n_ctx == 2048
    assert engine(tiny_spm_model, n_ctx=None, n_slots=3).client.info.n_ctx_slot == 2048


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(engine, tiny_spm_model):
    with pytest.raises(Exception, match="doesn't fit"):
        engine(tiny_spm_model, n_ctx=2**31 - 512)
