"""One more recipe of a tiny model: LFM2, a hybrid whose states can be gone back to (`server.engine.cache.rollback`)."""

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
