"""The memory of architectures that differ from a plain llama: estimate compared with llama.cpp's allocations.

The models are headers followed by zeros (sparse files). They are loaded but never evaluated.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest

from server.model_files import gguf
from server.model_files import memory_plan as fit
from server.model_files.shape_reader import shape_of
from tests.gguf_edit import Info, Parts, numbers, scalar, string, texts
from tests.native.test_memory_plan import allocated

WIDTH, N_VOCAB = 128, 600
ATTENTION = {
    "context_length": 8192,
    "embedding_length": WIDTH,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 32,
    "attention.value_length": 32,
}
MAMBA = {
    "context_length": 4096,
    "embedding_length": WIDTH,
    "attention.head_count": 0,
    "feed_forward_length": 0,
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 256,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 8,
}

QKV = {
    "attn_norm": (WIDTH,),
    "ffn_norm": (WIDTH,),
    "attn_q": (WIDTH, 128),
    "attn_k": (WIDTH, 64),
    "attn_v": (WIDTH, 64),
    "attn_output": (128, WIDTH),
}
HEAD_NORMS = {"attn_q_norm": (32,), "attn_k_norm": (32,)}
DENSE = {"ffn_gate": (WIDTH, 512), "ffn_up": (WIDTH, 512), "ffn_down": (512, WIDTH)}
# architecture -> (metadata, tensors of a layer)
KINDS = {
    "llama": ({**ATTENTION, "rope.dimension_count": 32, "feed_forward_length": 512}, {**QKV, **DENSE}),
    "gemma3": (
        {**ATTENTION, "feed_forward_length": 512, "attention.sliding_window": 512},
        {**QKV, **HEAD_NORMS, **DENSE, "post_attention_norm": (WIDTH,), "post_ffw_norm": (WIDTH,)},
    ),
    "qwen3moe": (
        {**ATTENTION, "expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 96},
        {
            **QKV,
            **HEAD_NORMS,
            "ffn_gate_inp": (WIDTH, 8),
            "ffn_gate_exps": (WIDTH, 96, 8),
            "ffn_up_exps": (WIDTH, 96, 8),
            "ffn_down_exps": (96, WIDTH, 8),
        },
    ),
    "mamba": (
        MAMBA,
        {
            "attn_norm": (WIDTH,),
            "ssm_in": (WIDTH, 512),
            "ssm_conv1d": (4, 256),
            "ssm_conv1d.bias": (256,),
            "ssm_x": (256, 40),
            "ssm_dt": (8, 256),
            "ssm_dt.bias": (256,),
            "ssm_a.": (16, 256),
            "ssm_d.": (256,),
            "ssm_out": (256, WIDTH),
        },
    ),
}
N_LAYERS = 6  # of gemma3's the last one sees everything


def write(path: Path, arch: str) -> Path:
    """A model of `arch` whose weights are all 0."""
    metadata, layer = KINDS[arch]
    parts = Parts()
    parts.set("general.architecture", string(arch))
    parts.set(f"{arch}.attention.layer_norm_rms_epsilon", scalar("f32", 1e-5))
    for key, value in {**metadata, "block_count": N_LAYERS}.items():
        parts.set(f"{arch}.{key}", scalar("u32", value))
    tokens = [
        b"<unk>",
        b"<s>",
        b"</s>",
        *(b"<0x%02X>" % i for i in range(256)),
        *(b"w%d" % i for i in range(N_VOCAB - 259)),
    ]
    parts.set("tokenizer.ggml.model", string("llama")).set("tokenizer.ggml.tokens", texts(tokens))
    parts.set("tokenizer.ggml.scores", numbers("f32", [0.0] * N_VOCAB))
    parts.set("tokenizer.ggml.token_type", numbers("i32", [2, 3, 3] + [6] * 256 + [1] * (N_VOCAB - 259)))
    rows = {"token_embd.weight": (WIDTH, N_VOCAB), "output.weight": (WIDTH, N_VOCAB), "output_norm.weight": (WIDTH,)}
    for i in range(N_LAYERS):
        for name, dims in layer.items():
            full = (
                name if name.endswith(".bias") else name.removesuffix(".") if name.endswith(".") else f"{name}.weight"
            )
            rows[f"blk.{i}.{full}"] = dims
    at = 0
    for name, dims in rows.items():
        parts.tensors.append(Info(name.encode(), dims, 0, at))
        at += -(-prod(dims) * 4 // 32) * 32
    with open(path, "wb") as stream:
        stream.write(parts.pack())
        stream.truncate(stream.tell() + at)
    return path


@pytest.mark.parametrize("n_slots", [1, 4])
@pytest.mark.parametrize("arch", KINDS)
def test_the_estimate_holds_for_other_architectures(libs_folder, tmp_path, arch, n_slots):
    path = write(tmp_path / "model.gguf", arch)
    shape, wish = shape_of(gguf.read_all(path)), fit.Wish(n_slots=n_slots)
    found = allocated(libs_folder, path, wish, 4096)
    assert shape.weights / fit.MIB == pytest.approx(found["model"], abs=0.02)
    cache = fit.count_cache_bytes(shape.layers, wish, 4096, shape.window) / fit.MIB
    assert cache == pytest.approx(found.get("KV", 0.0) + found.get("RS", 0.0), abs=0.02)
    compute = found["compute"] + found["output"]
    assert fit.compute_bytes(shape, wish, 4096) / fit.MIB == pytest.approx(compute, rel=0.1, abs=0.2)
