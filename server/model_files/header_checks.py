"""Finds faults in a model's header that make libllama end the process instead of reporting an error.

Pure functions of `gguf.Gguf`. Web process, before anything is loaded. libllama reports most faults itself. But it
asserts some conditions, and its tokenizer throws C++ exceptions: both end the process. The tokenizer also runs in the
web process (`client.vocab`). Comments name the functions of llama.cpp v0.5.0 that assert.

Not taken: checking the tensors of all 130 architectures. For those not in `COMMON`, libllama's message about a missing
key or tensor is good enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from server.model_files.gguf import TEXT, TYPES, Array, Gguf, Tensor
from server.records import record

__all__ = ["KEPT", "find_adapter_faults", "find_model_faults"]

TOKENS, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
KEPT = (TOKENS,)
MAX_LAYERS, MAX_EXPERTS = 512, 1024
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
HELD_BACK = ("hunyuan_vl", "hunyuan-dense")  # libllama ignores their experts if there is only one
COMMON = (
    "llama",
    "llama4",
    "mistral3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "gemma",
    "gemma2",
    "gemma3",
    "phi2",
    "phi3",
    "stablelm",
    "starcoder2",
    "falcon",
    "gpt2",
    "gptneox",
    "command-r",
    "olmo2",
    "granite",
    "smollm3",
    "gpt-oss",
    "bert",
    "nomic-bert",
    "jina-bert-v2",
)
# types that llama.cpp doesn't support for weights: integers, f64, and types of intermediate results
NO_WEIGHTS = ("i8", "i16", "i32", "i64", "f64", "q8_1", "q8_K")
REQUIRED = ("context_length", "embedding_length", "block_count", "attention.head_count")


@record(frozen=True)
class Tokenizer:
    """libllama's defaults for a kind of vocabulary: ids of special tokens, and which of them it adds to texts."""

    bos: int | None
    eos: int | None
    sep: int | None = None
    unk: int | None = None
    adds_bos: bool = False
    adds_eos: bool = False


# tokenizer.ggml.model -> llama_vocab::impl::load
TOKENIZERS = {
    "llama": Tokenizer(bos=1, eos=2, unk=0, adds_bos=True),
    "bert": Tokenizer(bos=101, eos=None, sep=102, unk=100, adds_bos=True),
    "gpt2": Tokenizer(bos=11, eos=11),
    "t5": Tokenizer(bos=None, eos=1, unk=2, adds_eos=True),
}


def find_model_faults(parts: list[Gguf]) -> Iterator[str]:
    """The known faults of a model of one or more files, as texts that follow the path in a message."""
    first = parts[0]
    architecture = first.get_text("general.architecture")
    kind = first.get_text("general.type", "model")
    if kind == "adapter" or "adapter.type" in first.metadata:
        yield "is an adapter, not a model: use it with --lora, and its model with -m"
    elif architecture == "clip" or kind == "mmproj":
        yield "is the image or audio part of a model: use it with --mmproj, and the text model with -m"
    elif not architecture:
        yield "doesn't name its architecture (general.architecture)"
    elif not any(part.tensors for part in parts):
        yield "has no weights, only a vocabulary"
    else:
        yield from _find_shape_faults(first, architecture)
        yield from _find_tokenizer_faults(first)
        if architecture in COMMON:
            tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
            yield from _find_common_faults(first, architecture, tensors)


def find_adapter_faults(parts: list[Gguf]) -> Iterator[str]:
    """The known faults of a LoRA adapter."""
    if parts[0].get_text("general.type", "adapter") != "adapter" or not parts[0].get_text("adapter.type"):
        yield "is not an adapter: --lora takes files made by llama.cpp's convert_lora_to_gguf.py"
    elif not parts[0].tensors:
        yield "has no tensors"


# ---- sizes: llama_model_base::load_hparams ---------------------------------------------------------------------------


def _find_shape_faults(gguf: Gguf, architecture: str) -> Iterator[str]:
    n_layers = gguf.number(f"{architecture}.block_count")
    if n_layers is not None and not 1 <= n_layers <= MAX_LAYERS:
        yield f"says that it has {n_layers} layers; llama.cpp supports 1 to {MAX_LAYERS}"
    n_more = gguf.number(f"{architecture}.nextn_predict_layers", 0)
    if n_layers is not None and n_more > n_layers:
        yield f"says that {n_more} layers of its {n_layers} predict further tokens (nextn_predict_layers)"
    scaling = gguf.get_text(f"{architecture}.rope.scaling.type", "linear")
    if scaling not in ROPE_SCALINGS:
        yield f"needs the position scaling {scaling!r}; llama.cpp supports {', '.join(ROPE_SCALINGS)}"
    for key in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"):
        epsilon = gguf.metadata.get(f"{architecture}.{key}", 0.0)
        if isinstance(epsilon, float) and not 0 <= epsilon < inf:
            yield f"has {architecture}.{key} {epsilon}; it must be 0 or more"
    if architecture not in HELD_BACK:
        yield from _find_expert_faults(gguf, architecture)


def _find_expert_faults(gguf: Gguf, architecture: str) -> Iterator[str]:
    n_experts = gguf.number(f"{architecture}.expert_count", 0)
    used = gguf.metadata.get(f"{architecture}.expert_used_count", 0)
    n_used = max(used, default=0) if isinstance(used, tuple) else used
    n_groups = gguf.number(f"{architecture}.expert_group_count", 0)
    n_groups_used = gguf.number(f"{architecture}.expert_group_used_count", 0)
    if (
        not isinstance(n_used, int)
        or not 0 <= n_experts <= MAX_EXPERTS
        or n_used > n_experts
        or (n_experts > 0) != (n_used > 0)
    ):
        yield (
            f"says that it uses {n_used} of {n_experts} experts, which is impossible "
            f"(llama.cpp supports at most {MAX_EXPERTS})"
        )
    elif n_groups and (
        n_groups >= n_experts or n_groups > 1 and (n_experts % n_groups or not 0 < n_groups_used < n_groups)
    ):
        yield f"says that it uses {n_groups_used} of {n_groups} groups of {n_experts} experts, which is impossible"


# ---- vocabulary: llama_vocab::impl::load and ::tokenize --------------------------------------------------------------


def _find_tokenizer_faults(gguf: Gguf) -> Iterator[str]:
    model = gguf.get_text("tokenizer.ggml.model")
    tokens = gguf.metadata.get(TOKENS)
    if not model or model in ("none", "no_vocab"):
        return  # libllama reports a missing name; with "none" it needs no vocabulary
    if not isinstance(tokens, Array) or tokens.kind != TEXT or not tokens.count:
        yield f"has no vocabulary ({TOKENS})"
        return
    if tokens.repeated:
        yield f"has the token {tokens.repeated.decode('utf-8', 'replace')!r} twice in its vocabulary"
    for key in ("scores", "token_type"):
        values = gguf.metadata.get(f"tokenizer.ggml.{key}")
        n_values = values.count if isinstance(values, Array) else len(values) if isinstance(values, tuple) else None
        if n_values is not None and n_values < tokens.count:
            yield f"has {tokens.count} tokens, but only {n_values} entries in tokenizer.ggml.{key}"
    if model in TOKENIZERS:
        yield from _find_special_token_faults(gguf, TOKENIZERS[model], tokens.count)
    if model == "bert" and _choose_special_id(gguf, "unknown", TOKENIZERS[model].unk, tokens.count) is None:
        yield "has no token for unknown words (tokenizer.ggml.unknown_token_id)"
    if model == "llama":
        # llama_vocab::byte_to_token throws for a byte that has no token
        missing = [
            byte for byte in range(256) if b"<0x%02X>" % byte not in tokens.texts and bytes([byte]) not in tokens.texts
        ]
        if missing:
            yield (
                f"has no token for {len(missing)} of the 256 bytes (<0x{missing[0]:02X}> is missing): a text with such "
                "a byte would end the server"
            )


def _find_special_token_faults(gguf: Gguf, kind: Tokenizer, n_tokens: int) -> Iterator[str]:
    """Special tokens that the tokenizer adds to texts must exist: it asserts that."""
    # "seperator" is the format's own spelling.
    rows = (
        ("bos", kind.bos, _is_added(gguf, "bos", kind.adds_bos), "the beginning of a text"),
        ("eos", kind.eos, _is_added(gguf, "eos", kind.adds_eos), "the end of a text"),
        ("seperator", kind.sep, kind.sep is not None, "separating texts"),
    )
    for name, default, is_needed, what in rows:
        if is_needed and _choose_special_id(gguf, name, default, n_tokens) is None:
            yield (
                f"needs a token for {what}: tokenizer.ggml.{name}_token_id is "
                f"{gguf.metadata.get(f'tokenizer.ggml.{name}_token_id', 'missing')}, but it has {n_tokens} tokens"
            )


def _is_added(gguf: Gguf, name: str, default: bool) -> bool:
    return gguf.metadata.get(f"tokenizer.ggml.add_{name}_token", default) is True


def _choose_special_id(gguf: Gguf, name: str, default: int | None, n_tokens: int) -> int | None:
    """The id that libllama will use: the file's, else the default of this kind; None if no such token exists."""
    value = gguf.metadata.get(f"tokenizer.ggml.{name}_token_id")
    if isinstance(value, int) and 0 <= value < n_tokens:
        return value
    return default if default is not None and default < n_tokens else None


# ---- common architectures: clearer messages than libllama's ----------------------------------------------------------


def _find_common_faults(gguf: Gguf, architecture: str, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    missing = [key for key in REQUIRED if f"{architecture}.{key}" not in gguf.metadata]
    if missing:
        yield f"lacks {architecture}.{missing[0]} in its metadata"
        return
    n_layers = gguf.number(f"{architecture}.block_count", 0)
    if "token_embd.weight" not in tensors:
        yield "lacks the tensor token_embd.weight"
    elif not any(name.startswith(f"blk.{n_layers - 1}.") for name in tensors):
        yield f"says that it has {n_layers} layers, but lacks the last one's tensors"
    for tensor in tensors.values():
        type_name = TYPES[tensor.kind][0]
        if type_name in NO_WEIGHTS:
            yield f"has the tensor {tensor.name} as {type_name}, which llama.cpp can't compute with"
        elif len(tensor.dims) == 1 and type_name != "f32":
            yield f"has the vector {tensor.name} as {type_name}, which llama.cpp supports only as f32"
    table = tensors.get("token_embd.weight")
    if table is not None:
        yield from _find_embedding_faults(gguf, architecture, table, gguf.metadata.get(TOKENS))


def _find_embedding_faults(gguf: Gguf, architecture: str, table: Tensor, tokens: object) -> Iterator[str]:
    width = gguf.metadata[f"{architecture}.embedding_length"]
    if table.dims[0] != width:
        yield f"says that embeddings are {width} wide, but token_embd.weight is {table.dims[0]} wide"
    elif isinstance(tokens, Array) and len(table.dims) > 1 and table.dims[1] != tokens.count:
        yield f"has {tokens.count} tokens, but embeddings for {table.dims[1]}"


def override_metadata(gguf: Gguf, rows: Mapping[str, Any]) -> None:
    """Put the values of `--override-kv` into the metadata, as libllama will."""
    gguf.metadata.update(rows)
