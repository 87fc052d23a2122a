"""Recipes of tiny media models: a text model with M-RoPE (positions in three dimensions), its image projector, and an
audio projector.

    tiny_qwen2vl     text model, BPE vocabulary, random weights
    tiny_merger      image projector for it: an image of W x H pixels takes W/28 * H/28 tokens and the larger of the
                     two as positions
    tiny_whisper     audio projector for `tiny_llama`: 30 seconds take 750 tokens

The weights are random, unlike those of `tiny_models.tiny_llama`: the text only has to equal that of libmtmd's own
evaluation.
"""

from __future__ import annotations

import struct
from pathlib import Path

from tests.gguf_writer import GgufFile
from tests.tiny_models import CHATML, N_EMBD, WORDS, Weights, bpe_vocabulary

WIDTH, N_HEAD, N_FF = 32, 4, 64  # of the encoders


def tiny_qwen2vl(path: Path, *, seed: int = 3) -> Path:
    """Write a text model whose positions have a time, a row and a column."""
    n_embd, n_head, n_ff, n_blocks = N_EMBD, 4, 96, 2
    gguf = GgufFile("qwen2vl", "tiny-qwen2vl")
    vocabulary = bpe_vocabulary(gguf, (" " + word for word in WORDS), fim=False)
    gguf.string("tokenizer.chat_template", CHATML)
    gguf.scalars(
        "qwen2vl.",
        "u32",
        context_length=2048,
        embedding_length=n_embd,
        block_count=n_blocks,
        feed_forward_length=n_ff,
        attention__head_count=n_head,
        attention__head_count_kv=n_head,
    )
    gguf.scalar("qwen2vl.attention.layer_norm_rms_epsilon", "f32", 1e-5)
    gguf.scalar("qwen2vl.rope.freq_base", "f32", 1e4)
    gguf.array("qwen2vl.rope.dimension_sections", "i32", [2, 3, 3, 0])
    weights = Weights(gguf, seed)
    n_vocab = len(vocabulary.tokens)
    weights.matrix("token_embd.weight", n_embd, n_vocab, spread=1.0)
    weights.matrix("output.weight", n_embd, n_vocab, spread=1.0)
    weights.fill("output_norm.weight", 1.0, n_embd)
    for block in range(n_blocks):
        prefix = f"blk.{block}."
        for name in ("attn_norm", "ffn_norm"):
            weights.fill(prefix + name + ".weight", 1.0, n_embd)
        for name in ("attn_q", "attn_k", "attn_v"):
            weights.linear(prefix + name, n_embd, n_embd, spread=0.5)
        weights.matrix(prefix + "attn_output.weight", n_embd, n_embd, spread=0.5)
        weights.matrix(prefix + "ffn_gate.weight", n_embd, n_ff)
        weights.matrix(prefix + "ffn_up.weight", n_embd, n_ff)
        weights.matrix(prefix + "ffn_down.weight", n_ff, n_embd)
    return gguf.write(path)


def tiny_merger(path: Path, *, seed: int = 9) -> Path:
    """Write the image projector of `tiny_qwen2vl`: images of any size, four patches of 14 x 14 pixels to a token."""
    patch = 14
    gguf = GgufFile("clip", "tiny-mmproj-merger")
    gguf.string("general.type", "mmproj")
    gguf.string("clip.projector_type", "qwen2vl_merger")
    gguf.scalar("clip.has_vision_encoder", "bool", True)
    _encoder_shape(gguf, "vision", image_size=56, patch_size=patch)
    gguf.array("clip.vision.image_mean", "f32", [0.5] * 3)
    gguf.array("clip.vision.image_std", "f32", [0.5] * 3)
    weights = Weights(gguf, seed)
    for end in ("", ".1"):
        weights.matrix("v.patch_embd.weight" + end, patch, patch, 3, WIDTH, spread=0.07)
    _encoder_block(weights, "v.blk.0.", ("attn_q", "attn_k", "attn_v", "attn_out"))
    weights.norm("v.post_ln", WIDTH)
    weights.linear("mm.0", 4 * WIDTH, 4 * WIDTH)
    weights.linear("mm.2", 4 * WIDTH, N_EMBD)
    return gguf.write(path)


def tiny_whisper(path: Path, *, seed: int = 11) -> Path:
    """Write the audio projector of a text model that is N_EMBD wide."""
    n_mel, n_positions = 80, 1500
    gguf = GgufFile("clip", "tiny-mmproj-whisper")
    gguf.string("general.type", "mmproj")
    gguf.string("clip.projector_type", "qwen2a")
    gguf.scalar("clip.has_audio_encoder", "bool", True)
    _encoder_shape(gguf, "audio", num_mel_bins=n_mel)
    weights = Weights(gguf, seed)
    for i, n_in in ((1, n_mel), (2, WIDTH)):
        n = 3 * n_in * WIDTH
        values = struct.pack(f"<{n}e", *(weights.uniform(0.3) for _ in range(n)))
        gguf.raw(f"a.conv1d.{i}.weight", (3, n_in, WIDTH), "f16", values)
        weights.fill(f"a.conv1d.{i}.bias", 0.0, 1, WIDTH)
    weights.matrix("a.position_embd.weight", WIDTH, n_positions, spread=0.3)
    _encoder_block(weights, "a.blk.0.", ("attn_q", "attn_v", "attn_out"))
    weights.matrix("a.blk.0.attn_k.weight", WIDTH, WIDTH)
    weights.norm("a.post_ln", WIDTH)
    weights.linear("mm.a.fc", WIDTH, N_EMBD)
    return gguf.write(path)


def _encoder_shape(gguf: GgufFile, kind: str, **more: int) -> None:
    gguf.scalars(
        f"clip.{kind}.",
        "u32",
        embedding_length=WIDTH,
        feed_forward_length=N_FF,
        block_count=1,
        projection_dim=N_EMBD,
        attention__head_count=N_HEAD,
        **more,
    )
    gguf.scalar(f"clip.{kind}.attention.layer_norm_epsilon", "f32", 1e-6)


def _encoder_block(weights: Weights, prefix: str, with_bias: tuple[str, ...]) -> None:
    for name in ("ln1", "ln2"):
        weights.norm(prefix + name, WIDTH)
    for name in with_bias:
        weights.linear(prefix + name, WIDTH, WIDTH)
    weights.linear(prefix + "ffn_up", WIDTH, N_FF)
    weights.linear(prefix + "ffn_down", N_FF, WIDTH)
