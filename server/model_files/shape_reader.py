"""Reads a model's `Shape` from its header: bytes of weights and numbers per KV cell of each layer, for `memory_plan`.

Pure, except `read_shape`. Runs in the web process, which sends the shape in `EngineConfig`; in the engine for draft
models and missing shapes. Names and formulas are those of llama.cpp v0.5.0: llama_hparams, llama_model::create_memory.

Not taken: a simulated load (`no_alloc`). It is exact, but reads the vocabulary each time, and must be repeated for each
candidate size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import prod

from server.errors import StartError
from server.model_files.gguf import Gguf, GgufError, Tensor, read_all
from server.model_files.shape import Layer, Shape

__all__ = ["Layer", "Shape", "read_shape", "shape_of"]

TABLE = "token_embd.weight"
BLOCK = re.compile(r"blk\.(\d+)\.")
# architectures for which tests have shown that llama.cpp keeps older recurrent states correctly
GOES_BACK = ("lfm2", "lfm2moe", "qwen35", "qwen35moe")
# architectures without a KV cache
WITHOUT_CACHE = (
    "bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "eurobert",
    "modern-bert",
    "gemma-embedding",
    "wavtokenizer-dec",
    "dream",
    "llada",
    "llada-moe",
    "rnd1",
    "t5encoder",
)
# every nth layer has full attention, the others a sliding window; used if the file has no list of them
WINDOW_PERIODS = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "cohere2": 4,
    "olmo2": 4,
    "exaone4": 4,
    "llama4": 4,
    "smallthinker": 4,
}
STATE_TENSORS = ("ssm_", "time_mix_", "shortconv.")
ATTENTION_TENSORS = ("attn_k.", "attn_k_b.", "attn_kv_a_mqa.")


def read_shape(path: str, span: tuple[int, int] = (0, 0), pinned: Iterable[str] = ()) -> Shape:
    """Read the shape of the model in these files; see `shape_of` and `gguf.read_all`. OSError, GgufError."""
    return shape_of(read_all(path, span=span), pinned)


def shape_of(parts: Sequence[Gguf], pinned: Iterable[str] = ()) -> Shape:
    """The shape of a model in one or more files. `pinned` are regular expressions of tensors kept on the CPU.

    GgufError if the header lacks a needed field, StartError for an invalid regular expression.
    """
    gguf = parts[0]
    arch = gguf.get_text("general.architecture")
    reader = _Reader(gguf, arch)
    n_layers = reader.require_number("block_count")
    groups = _group_tensors(parts, n_layers, _compile_patterns(pinned))
    names = [[tensor.name for tensor in group] for group in groups["layers"]]
    table = next((part.tensors[TABLE] for part in parts if TABLE in part.tensors), None)
    has_cache = arch not in WITHOUT_CACHE
    layers = tuple(
        Layer(_count_bytes(group), *(reader.read_cache(i, names[i]) if has_cache else ()))
        for i, group in enumerate(groups["layers"])
    )
    return Shape(
        layers=layers,
        input=_count_bytes(groups["input"]),
        output=_count_bytes(groups["output"]),
        pinned=_count_bytes(groups["pinned"]),
        n_ctx_train=reader.require_number("context_length"),
        n_embd=reader.require_number("embedding_length"),
        n_ff=reader.feed_forward(),
        n_head=reader.n_head,
        n_query=reader.n_head * reader.head_size,
        n_vocab=table.dims[1] if table and len(table.dims) > 1 and has_cache else 0,
        window=reader.number("attention.sliding_window") if arch in WINDOW_PERIODS or reader.pattern else 0,
        can_go_back=arch in GOES_BACK,
    )


def _compile_patterns(patterns: Iterable[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise StartError(f"--override-tensor: not a regular expression: {error}") from None


def _group_tensors(parts: Sequence[Gguf], n_layers: int, pinned: list[re.Pattern[str]]) -> dict[str, list]:
    groups: dict[str, list] = {"layers": [[] for _ in range(n_layers)], "input": [], "output": [], "pinned": []}
    for part in parts:
        for tensor in part.tensors.values():
            found = BLOCK.match(tensor.name)
            if any(pattern.search(tensor.name) for pattern in pinned):
                groups["pinned"].append(tensor)
            elif found and int(found[1]) < n_layers:
                groups["layers"][int(found[1])].append(tensor)
            else:
                groups["output" if tensor.name.startswith("output") else "input"].append(tensor)
    if not any(tensor.name == "output.weight" for tensor in groups["output"]):
        groups["input"] += groups["output"]  # only a norm: the model has no head of its own
        groups["output"] = []
    return groups


def _count_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.n_bytes for tensor in tensors)


class _Reader:
    """The metadata of one architecture."""

    def __init__(self, gguf: Gguf, arch: str) -> None:
        self._gguf, self._arch = gguf, arch
        self.n_layers = self.require_number("block_count")
        pattern = gguf.metadata.get(f"{arch}.attention.sliding_window_pattern")
        self.pattern = pattern if isinstance(pattern, tuple) else ()
        self._period = pattern if isinstance(pattern, int) else WINDOW_PERIODS.get(arch, 0)
        self._n_head = self.read_per_layer("attention.head_count", self.n_layers)
        self._n_head_kv = self.read_per_layer("attention.head_count_kv", self.n_layers) or self._n_head
        # later layers predict further tokens, or use the KV cache of other layers
        self._n_cached = self.n_layers - self.number("nextn_predict_layers")
        self._n_own = 20 if arch == "gemma3n" else self.n_layers - self.number("attention.shared_kv_layers")

    @property
    def n_head(self) -> int:
        return max(self._n_head, default=0)

    @property
    def head_size(self) -> int:
        return self.number("attention.key_length", self.number("embedding_length") // max(self.n_head, 1))

    def number(self, key: str, default: int = 0) -> int:
        value = self._gguf.metadata.get(f"{self._arch}.{key}", default)
        return value if isinstance(value, int) else default

    def require_number(self, key: str) -> int:
        value = self._gguf.number(f"{self._arch}.{key}")
        if value is None:
            raise GgufError(f"{self._gguf.path} lacks {self._arch}.{key}")
        return value

    def read_per_layer(self, key: str, n_layers: int) -> tuple[int, ...]:
        """A value per layer, from a list or a single number; empty if the key is missing."""
        value = self._gguf.metadata.get(f"{self._arch}.{key}")
        if isinstance(value, tuple):
            return (*value, *(0,) * n_layers)[:n_layers]
        return (value,) * n_layers if isinstance(value, int) else ()

    def feed_forward(self) -> int:
        """The width of a token's widest hidden row: of the dense network, of all experts of a token, or 1.5 times the
        inner size of a recurrent block."""
        experts = max(self.read_per_layer("expert_used_count", self.n_layers), default=0) * max(
            self.read_per_layer("expert_feed_forward_length", self.n_layers), default=0
        )
        dense = max(self.read_per_layer("feed_forward_length", self.n_layers), default=0)
        shared = self.number("expert_shared_feed_forward_length")
        return max(dense, experts + shared, self.number("ssm.inner_size") * 3 // 2)

    def read_cache(self, i: int, names: list[str]) -> tuple[int, int, int, bool]:
        """The fields `k`, `v`, `state` and `is_windowed` of layer `i`."""
        prefix = f"blk.{i}."
        kinds = [name.removeprefix(prefix) for name in names]
        has_state = any(kind.startswith(STATE_TENSORS) for kind in kinds)
        state = self._count_state() if has_state else 0
        attends = not has_state or any(kind.startswith(ATTENTION_TENSORS) for kind in kinds)
        if i >= min(self._n_cached, self._n_own) or not attends or not self._n_head_kv:
            return 0, 0, state if i < self._n_cached else 0, False
        is_windowed = (
            bool(self.pattern[i])
            if i < len(self.pattern)
            else bool(self._period and i % self._period < self._period - 1)
        )
        k, v = self._read_head_sizes(i, is_windowed)
        if self.number("attention.key_length_mla"):
            v = 0  # multi-head latent attention keeps one compressed row
        return k * self._n_head_kv[i], v * self._n_head_kv[i], state, is_windowed

    def _read_head_sizes(self, i: int, is_windowed: bool) -> tuple[int, int]:
        own = self.number("embedding_length") // max(self._n_head[i], 1)
        k, v = self.number("attention.key_length", own), self.number("attention.value_length", own)
        if is_windowed:
            k, v = self.number("attention.key_length_swa", k), self.number("attention.value_length_swa", v)
        return k, v

    def _count_state(self) -> int:
        """Bytes of a recurrent layer's state per sequence: llama_hparams::n_embd_r and n_embd_s, as f32."""
        n_embd, head = self.number("embedding_length"), self.number("wkv.head_size")
        conv, inner = self.number("ssm.conv_kernel"), self.number("ssm.inner_size")
        states, groups = self.number("ssm.state_size"), self.number("ssm.group_count")
        if head:
            return 4 * n_embd * (self.number("token_shift_count", 2) + head)
        if self.number("shortconv.l_cache"):
            return 4 * n_embd * (self.number("shortconv.l_cache") - 1)
        if size := self.number("kda.head_dim"):
            n_heads = max(self._n_head, default=0)
            return 4 * (3 * max(conv - 1, 0) * n_heads * size + prod((size, size, n_heads)))
        return 4 * (max(conv - 1, 0) * (inner + 2 * groups * states) + states * inner)
