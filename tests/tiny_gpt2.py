"""The recipe of a tiny GPT-2, whose positions are rows of a learned table with no spare rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.gguf_writer import GgufFile
from tests.tiny_models import WORDS, Weights, bpe_vocabulary


def tiny_gpt2(
    path: Path,
    *,
    n_positions: int = 64,
    seed: int = 7,
    words: Sequence[str] = (),
    rerank_template: str = "",
    pooling: int = -1,
) -> Path:
    """Write a text model with random weights, the BPE vocabulary with more `words`, and `n_positions` positions.

    A `rerank_template` makes it a reranker that answers in words; `pooling` is what its metadata says.
    """
    n_embd, n_head, n_ff, n_blocks = 32, 4, 64, 2
    gguf = GgufFile("gpt2", "tiny-gpt2")
    vocabulary = bpe_vocabulary(gguf, (*(" " + word for word in WORDS), *words), fim=False)
    if rerank_template:
        gguf.string("tokenizer.chat_template.rerank", rerank_template)
    if pooling >= 0:
        gguf.scalar("gpt2.pooling_type", "u32", pooling)
    gguf.scalars(
        "gpt2.",
        "u32",
        context_length=n_positions,
        embedding_length=n_embd,
        block_count=n_blocks,
        feed_forward_length=n_ff,
        attention__head_count=n_head,
    )
    gguf.scalar("gpt2.attention.layer_norm_epsilon", "f32", 1e-5)
    weights, n_vocab = Weights(gguf, seed), len(vocabulary.tokens)
    weights.matrix("token_embd.weight", n_embd, n_vocab, spread=1.0)
    weights.matrix("position_embd.weight", n_embd, n_positions, spread=0.5)
    weights.matrix("output.weight", n_embd, n_vocab, spread=1.0)
    weights.norm("output_norm", n_embd)
    for block in range(n_blocks):
        prefix = f"blk.{block}."
        for name in ("attn_norm", "ffn_norm"):
            weights.norm(prefix + name, n_embd)
        weights.linear(prefix + "attn_qkv", n_embd, 3 * n_embd)
        weights.linear(prefix + "attn_output", n_embd, n_embd)
        weights.linear(prefix + "ffn_up", n_embd, n_ff)
        weights.linear(prefix + "ffn_down", n_ff, n_embd)
    return gguf.write(path)
