"""Models with one fault each and the expected refusals, for the tests of the reader and of the loader.

`FAULTS` is a table of (name, base model, a function that changes its `Parts`, words of the refusal). Bases are names of
fixtures. Unit tests check that each is refused with these words; a native test loads in libllama what isn't refused.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import NamedTuple

from tests.gguf_edit import Info, Parts, numbers, scalar, string, text, texts


class Fault(NamedTuple):
    """A row: `words` have to be in the refusal."""

    name: str
    base: str
    spoil: Callable[[Parts], object]
    words: str


def _u32(key: str, value: int) -> Callable[[Parts], object]:
    return lambda parts: parts.set(key, scalar("u32", value))


def _without(key: str) -> Callable[[Parts], object]:
    return lambda parts: parts.set(key, None)


def _raw(key: str, value: bytes) -> Callable[[Parts], object]:
    return lambda parts: parts.set(key, value)


def _info(tensor: str, /, **fields: object) -> Callable[[Parts], object]:
    def spoil(parts: Parts) -> None:
        for field, value in fields.items():
            setattr(parts.tensor(tensor), field, value)

    return spoil


def _field(**fields: object) -> Callable[[Parts], object]:
    def spoil(parts: Parts) -> None:
        for field, value in fields.items():
            setattr(parts, field, value)

    return spoil


def _repeat_token(parts: Parts) -> None:
    tokens = parts.get("tokenizer.ggml.tokens")
    parts.set("tokenizer.ggml.tokens", tokens.replace(text("<unk>"), text("<s>"), 1))


def _rename_bytes(parts: Parts) -> None:
    tokens = parts.get("tokenizer.ggml.tokens")
    parts.set("tokenizer.ggml.tokens", tokens.replace(b"<0xE4>", b"<0xQQ>"))


def _repeat_tensor(parts: Parts) -> None:
    parts.tensors[1].name = parts.tensors[0].name


def _repeat_pair(parts: Parts) -> None:
    parts.pairs.append(parts.pairs[0])


def _cut_data(parts: Parts) -> None:
    parts.data = parts.data[: len(parts.data) // 2]


def _overlap(parts: Parts) -> None:
    parts.tensors[2].offset = parts.tensors[1].offset


def _half_norm(parts: Parts) -> None:
    info = parts.tensor("blk.1.ffn_norm.weight")
    half = struct.pack("<64e", *([1.0] * 64))
    parts.data = parts.data[: info.offset] + half + parts.data[info.offset + 2 * len(half) :]
    for later in parts.tensors[parts.tensors.index(info) + 1 :]:
        later.offset -= len(half)
    info.kind = 1


def _empty_vocabulary(parts: Parts) -> None:
    parts.set("tokenizer.ggml.tokens", texts([]))


def _experts(**counts: int) -> Callable[[Parts], object]:
    def spoil(parts: Parts) -> None:
        for key, value in counts.items():
            parts.set(f"llama.{key}", scalar("u32", value))

    return spoil


SPM, BPE, BERT = "tiny_spm_model", "tiny_bpe_model", "bert_embed_model"
LLAMA_WIDTH = "llama.embedding_length"

FAULTS = (
    Fault("version 1", SPM, _field(head=b"GGUF" + struct.pack("<I", 1)), "version 1"),
    Fault("version 4", SPM, _field(head=b"GGUF" + struct.pack("<I", 4)), "version 4"),
    Fault("big endian", SPM, _field(head=b"GGUF" + struct.pack(">I", 3)), "big-endian"),
    Fault("other magic", SPM, _field(head=b"GGML" + struct.pack("<I", 3)), "not a GGUF file"),
    Fault("too many pairs", SPM, _field(n_pairs=2**62), "metadata entries"),
    Fault("too many tensors", SPM, _field(n_tensors=2**63), "tensors"),
    Fault("one pair more", SPM, lambda parts: _field(n_pairs=len(parts.pairs) + 1)(parts), "bytes long"),
    Fault("one tensor more", SPM, lambda parts: _field(n_tensors=len(parts.tensors) + 1)(parts), "tensor"),
    Fault("endless key", SPM, lambda parts: parts.pairs.insert(0, (b"x" * 70000, scalar("u32", 1))), "70000 bytes"),
    Fault("empty key", SPM, lambda parts: parts.pairs.insert(0, (b"", scalar("u32", 1))), "empty key"),
    Fault("unknown type", SPM, _raw("x", struct.pack("<II", 13, 0)), "unknown type 13"),
    Fault("array of arrays", SPM, _raw("x", struct.pack("<IIQ", 9, 9, 1) + bytes(16)), "array of arrays"),
    Fault("array of unknown", SPM, _raw("x", struct.pack("<IIQ", 9, 77, 1) + bytes(16)), "unknown type 77"),
    Fault("endless array", SPM, _raw("x", struct.pack("<IIQ", 9, 4, 2**61)), "claims"),
    Fault("endless texts", SPM, _raw("x", struct.pack("<IIQ", 9, 8, 2**60)), "claims"),
    Fault("endless text", SPM, _raw("x", struct.pack("<IQ", 8, 2**63)), "bytes long"),
    Fault("text in array beyond the end", SPM, _raw("x", struct.pack("<IIQQ", 9, 8, 1, 2**64 - 1)), "incomplete"),
    Fault("key twice", SPM, _repeat_pair, "twice"),
    Fault("tensor twice", SPM, _repeat_tensor, "name of another"),
    Fault("nameless tensor", SPM, _info("output_norm.weight", name=b""), "no name"),
    Fault("long tensor name", SPM, _info("output_norm.weight", name=b"x" * 64), "64 bytes"),
    Fault("no dimension", SPM, _info("output_norm.weight", dims=()), "0 dimensions"),
    Fault("five dimensions", SPM, _info("output_norm.weight", dims=(1, 1, 1, 1, 64)), "5 dimensions"),
    Fault("dimension of 0", SPM, _info("output_norm.weight", dims=(0,)), "impossible shape"),
    Fault("overflowing shape", SPM, _info("output_norm.weight", dims=(2**32, 2**32)), "impossible shape"),
    Fault("huge dimension", SPM, _info("output_norm.weight", dims=(2**64 - 1,)), "impossible shape"),
    Fault("larger than the file", SPM, _info("blk.1.ffn_down.weight", dims=(2**40, 64)), "should begin|incomplete"),
    Fault("removed tensor type", SPM, _info("output_norm.weight", kind=4), "type 4"),
    Fault("unknown tensor type", SPM, _info("output_norm.weight", kind=2**31), "type"),
    Fault("rows that don't fill blocks", SPM, _info("output_norm.weight", kind=12), "needs a multiple of"),
    Fault("overlapping tensors", SPM, _overlap, "should begin"),
    Fault("offset far away", SPM, _info("output_norm.weight", offset=2**63), "should begin"),
    Fault("half of the data", SPM, _cut_data, "download is incomplete"),
    Fault("alignment 0", SPM, _u32("general.alignment", 0), "general.alignment"),
    Fault("alignment 3", SPM, _u32("general.alignment", 3), "general.alignment"),
    Fault("alignment as text", SPM, _raw("general.alignment", string("32")), "general.alignment"),
    Fault("huge alignment", SPM, _u32("general.alignment", 2**31), "general.alignment"),
    Fault("no architecture", SPM, _without("general.architecture"), "architecture"),
    Fault("architecture as number", SPM, _u32("general.architecture", 7), "general.architecture"),
    Fault("no weights", SPM, lambda parts: parts.drop(""), "no weights"),
    Fault("an adapter", "tiny_lora", lambda parts: None, "--lora"),
    Fault("a projector", "mmproj_mlp", lambda parts: None, "--mmproj"),
    Fault("no layers", SPM, _u32("llama.block_count", 0), "0 layers"),
    Fault("513 layers", SPM, _u32("llama.block_count", 513), "513 layers"),
    Fault("2**32-1 layers", SPM, _u32("llama.block_count", 2**32 - 1), "layers"),
    Fault("more layers than tensors", SPM, _u32("llama.block_count", 3), "lacks the last"),
    Fault("layer count missing", SPM, _without("llama.block_count"), "block_count"),
    Fault("layer count as text", SPM, _raw("llama.block_count", string("2")), "block_count"),
    Fault("next-token layers", SPM, _u32("llama.nextn_predict_layers", 9), "9 layers"),
    Fault("unknown rope scaling", SPM, _raw("llama.rope.scaling.type", string("elastic")), "elastic"),
    Fault("context length missing", SPM, _without("llama.context_length"), "context_length"),
    Fault("integer weights", SPM, _info("blk.0.ffn_up.weight", kind=26), "as i32"),
    Fault("an f16 norm", SPM, _half_norm, "as f16"),
    Fault(
        "epsilon that is no number",
        SPM,
        _raw("llama.attention.layer_norm_rms_epsilon", scalar("f32", math.nan)),
        "epsilon nan",
    ),
    Fault("negative epsilon", SPM, _raw("llama.attention.layer_norm_rms_epsilon", scalar("f32", -1.0)), "epsilon -1"),
    Fault("other width", SPM, _u32(LLAMA_WIDTH, 128), "128 wide"),
    Fault("no embeddings", SPM, lambda parts: parts.drop("token_embd"), "token_embd"),
    Fault("too many experts", SPM, _experts(expert_count=1025, expert_used_count=2), "experts"),
    Fault("more used than there", SPM, _experts(expert_count=2, expert_used_count=3), "experts"),
    Fault("experts that nobody uses", SPM, _experts(expert_count=2), "experts"),
    Fault("used without experts", SPM, _experts(expert_used_count=2), "experts"),
    Fault(
        "groups of experts",
        SPM,
        _experts(expert_count=4, expert_used_count=2, expert_group_count=3, expert_group_used_count=1),
        "groups",
    ),
    Fault(
        "as many groups as experts", SPM, _experts(expert_count=4, expert_used_count=2, expert_group_count=4), "groups"
    ),
    Fault("no vocabulary", SPM, _without("tokenizer.ggml.tokens"), "no vocabulary"),
    Fault("vocabulary of numbers", SPM, _raw("tokenizer.ggml.tokens", numbers("u32", [1, 2])), "no vocabulary"),
    Fault("empty vocabulary", SPM, _empty_vocabulary, "no vocabulary"),
    Fault("a token twice", SPM, _repeat_token, "twice"),
    Fault("a byte without token", SPM, _rename_bytes, "<0xE4>"),
    Fault("few scores", SPM, _raw("tokenizer.ggml.scores", numbers("f32", [0.0] * 5)), "5 entries"),
    Fault("few types", SPM, _raw("tokenizer.ggml.token_type", numbers("i32", [1] * 5)), "5 entries"),
    Fault("few tokens", BPE, _raw("tokenizer.ggml.tokens", texts([b"t%d" % i for i in range(40)])), "40 tokens"),
    Fault(
        "begins with nothing",
        BPE,
        lambda parts: (
            parts.set("tokenizer.ggml.add_bos_token", scalar("bool", True))
            .set("tokenizer.ggml.bos_token_id", None)
            .set("tokenizer.ggml.tokens", texts([b"a", b"b"]))
        ),
        "beginning",
    ),
    Fault(
        "ends with nothing",
        BPE,
        lambda parts: (
            parts.set("tokenizer.ggml.add_eos_token", scalar("bool", True))
            .set("tokenizer.ggml.eos_token_id", None)
            .set("tokenizer.ggml.tokens", texts([b"a", b"b"]))
        ),
        "end of a text",
    ),
    Fault("no separator", BERT, _without("tokenizer.ggml.seperator_token_id"), "separating"),
    Fault("separator out of range", BERT, _u32("tokenizer.ggml.seperator_token_id", 5000), "separating"),
    Fault("no beginning", BERT, _without("tokenizer.ggml.bos_token_id"), "beginning"),
    Fault("no unknown token", BERT, _without("tokenizer.ggml.unknown_token_id"), "unknown words"),
)

# Faults that a header doesn't show, or that our check leaves to libllama: it has to refuse them without dying.
LEFT_TO_LIBLLAMA = (
    Fault("unknown architecture", SPM, _raw("general.architecture", string("nonesuch")), ""),
    Fault("unknown tokenizer", SPM, _raw("tokenizer.ggml.model", string("nonesuch")), ""),
    Fault("unknown pre-tokenizer", BPE, _raw("tokenizer.ggml.pre", string("nonesuch")), ""),
    Fault("no merges", BPE, _without("tokenizer.ggml.merges"), ""),
    Fault("merges of numbers", BPE, _raw("tokenizer.ggml.merges", numbers("u32", [1])), ""),
    Fault("odd merges", BPE, _raw("tokenizer.ggml.merges", texts([b"", b" ", b"\xff\xfe", b"a"])), ""),
    Fault("special ids out of range", SPM, _u32("tokenizer.ggml.eos_token_id", 10**6), ""),
    Fault("a norm of another size", SPM, _info("output_norm.weight", dims=(32, 2)), ""),
    Fault("a missing matrix", SPM, lambda parts: parts.drop("blk.0.ffn_up"), ""),
    Fault(
        "a tensor too many",
        SPM,
        lambda parts: (
            parts.tensors.append(Info(b"blk.0.more.weight", (32,), 0, len(parts.data)))
            or _field(data=parts.data + bytes(128))(parts)
        ),
        "",
    ),
    Fault("no heads", SPM, _u32("llama.attention.head_count", 0), ""),
    Fault("three heads", SPM, _u32("llama.attention.head_count", 3), ""),
    Fault("no shared heads", SPM, _u32("llama.attention.head_count_kv", 0), ""),
    Fault("more shared heads than heads", SPM, _u32("llama.attention.head_count_kv", 64), ""),
    Fault("heads in a short list", SPM, _raw("llama.attention.head_count_kv", numbers("u32", [2])), ""),
    Fault("huge head size", SPM, _u32("llama.attention.key_length", 2**31), ""),
    Fault("odd rope", SPM, _u32("llama.rope.dimension_count", 31), ""),
    Fault("no epsilon", SPM, _without("llama.attention.layer_norm_rms_epsilon"), ""),
    Fault("epsilon of text", SPM, _raw("llama.attention.layer_norm_rms_epsilon", string("x")), ""),
    Fault("context of 0", SPM, _u32("llama.context_length", 0), ""),
    Fault("context of 4 billion", SPM, _u32("llama.context_length", 2**32 - 1), ""),
    Fault("pooling 77", BERT, _u32("bert.pooling_type", 77), ""),
    Fault(
        "tokens that aren't UTF-8",
        BPE,
        lambda parts: parts.set(
            "tokenizer.ggml.tokens", parts.get("tokenizer.ggml.tokens").replace(text("!"), text(b"\xff"))
        ),
        "",
    ),
)
