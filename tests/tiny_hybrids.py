"""Recipes of tiny hybrid models whose states can be rolled back (`server.engine.cache.rollback`)."""

from __future__ import annotations

from pathlib import Path

from tests.gguf_writer import GgufFile
from tests.tiny_models import Weights, spm_vocabulary


def tiny_lfm2(path: Path, *, seed: int = 11) -> Path:
    """Write a model of three blocks with random weights and the SPM vocabulary: convolution, attention, convolution."""
    n_embd, n_ff, n_head, n_cache = 32, 48, 2, 3
    heads_kv = [0, 2, 0]
    gguf = GgufFile("lfm2", "tiny-lfm2")
    vocabulary = spm_vocabulary(gguf, fim=False)
    gguf.scalars(
        "lfm2.",
        "u32",
        context_length=2048,
        embedding_length=n_embd,
        block_count=len(heads_kv),
        feed_forward_length=n_ff,
        attention__head_count=n_head,
        shortconv__l_cache=n_cache,
        vocab_size=len(vocabulary.tokens),
    )
    gguf.array("lfm2.attention.head_count_kv", "i32", heads_kv)
    gguf.scalar("lfm2.attention.layer_norm_rms_epsilon", "f32", 1e-5)
    gguf.scalar("lfm2.rope.freq_base", "f32", 10000.0)
    weights = Weights(gguf, seed)
    weights.matrix("token_embd.weight", n_embd, len(vocabulary.tokens), spread=1.0)
    weights.fill("token_embd_norm.weight", 1.0, n_embd)
    weights.matrix("output.weight", n_embd, len(vocabulary.tokens), spread=2.0)
    for block, n_heads in enumerate(heads_kv):
        prefix = f"blk.{block}."
        weights.fill(prefix + "attn_norm.weight", 1.0, n_embd)
        weights.fill(prefix + "ffn_norm.weight", 1.0, n_embd)
        weights.matrix(prefix + "ffn_gate.weight", n_embd, n_ff)
        weights.matrix(prefix + "ffn_up.weight", n_embd, n_ff)
        weights.matrix(prefix + "ffn_down.weight", n_ff, n_embd)
        if n_heads:
            for part in ("q", "k", "v", "output"):
                weights.matrix(f"{prefix}attn_{part}.weight", n_embd, n_embd)
            for part in ("q", "k"):
                weights.fill(f"{prefix}attn_{part}_norm.weight", 1.0, n_embd // n_head)
        else:
            weights.matrix(prefix + "shortconv.conv.weight", n_cache, n_embd, spread=2.0)
            weights.matrix(prefix + "shortconv.in_proj.weight", n_embd, 3 * n_embd, spread=2.0)
            weights.matrix(prefix + "shortconv.out_proj.weight", n_embd, n_embd, spread=2.0)
    return gguf.write(path)


def tiny_qwen35(path: Path, *, seed: int = 12) -> Path:
    """Write a Qwen3.5 of four blocks with random weights and the SPM vocabulary: a gated delta net, attention, twice."""
    n_embd, n_ff, n_head, head, n_blocks = 32, 48, 2, 32, 4
    n_state, n_group, n_conv = 32, 2, 4
    n_inner = n_state * n_group
    gguf = GgufFile("qwen35", "tiny-qwen35")
    vocabulary = spm_vocabulary(gguf, fim=False)
    gguf.scalars(
        "qwen35.",
        "u32",
        context_length=2048,
        embedding_length=n_embd,
        block_count=n_blocks,
        feed_forward_length=n_ff,
        attention__head_count=n_head,
        attention__head_count_kv=1,
        attention__key_length=head,
        attention__value_length=head,
        rope__dimension_count=head,
        full_attention_interval=2,
        ssm__conv_kernel=n_conv,
        ssm__inner_size=n_inner,
        ssm__state_size=n_state,
        ssm__time_step_rank=n_group,
        ssm__group_count=n_group,
    )
    gguf.array("qwen35.rope.dimension_sections", "i32", [4, 4, 4, 4])
    gguf.scalar("qwen35.attention.layer_norm_rms_epsilon", "f32", 1e-5)
    weights = Weights(gguf, seed)
    weights.matrix("token_embd.weight", n_embd, len(vocabulary.tokens), spread=1.0)
    weights.fill("output_norm.weight", 1.0, n_embd)
    weights.matrix("output.weight", n_embd, len(vocabulary.tokens), spread=2.0)
    for block in range(n_blocks):
        prefix = f"blk.{block}."
        weights.fill(prefix + "attn_norm.weight", 1.0, n_embd)
        weights.fill(prefix + "post_attention_norm.weight", 1.0, n_embd)
        weights.matrix(prefix + "ffn_gate.weight", n_embd, n_ff)
        weights.matrix(prefix + "ffn_up.weight", n_embd, n_ff)
        weights.matrix(prefix + "ffn_down.weight", n_ff, n_embd)
        if block % 2:
            weights.matrix(prefix + "attn_q.weight", n_embd, 2 * head * n_head)
            weights.matrix(prefix + "attn_k.weight", n_embd, head)
            weights.matrix(prefix + "attn_v.weight", n_embd, head)
            weights.matrix(prefix + "attn_output.weight", head * n_head, n_embd)
            for part in ("q", "k"):
                weights.fill(f"{prefix}attn_{part}_norm.weight", 1.0, head)
            continue
        n_conv_in = n_inner + 2 * n_group * n_state
        weights.matrix(prefix + "attn_qkv.weight", n_embd, n_conv_in, spread=2.0)
        weights.matrix(prefix + "attn_gate.weight", n_embd, n_inner)
        weights.matrix(prefix + "ssm_conv1d.weight", n_conv, n_conv_in, spread=2.0)
        weights.fill(prefix + "ssm_dt.bias", 0.0, n_group)
        weights.fill(prefix + "ssm_a", -0.1, n_group)
        weights.matrix(prefix + "ssm_beta.weight", n_embd, n_group)
        weights.matrix(prefix + "ssm_alpha.weight", n_embd, n_group)
        weights.fill(prefix + "ssm_norm.weight", 1.0, n_state)
        weights.matrix(prefix + "ssm_out.weight", n_inner, n_embd, spread=2.0)
    return gguf.write(path)
