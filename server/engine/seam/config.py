"""What the engine has to know to start: plain data, made of a model's options by `model_sources`.

Part of the seam: an engine in its own process gets exactly this. Imports leaves only, and what counts cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.model_files import host_cpus
from server.model_files.shape import Shape
from server.records import field, record


@record(frozen=True)
class SpecConfig:
    """Speculative decoding. Off unless `lookup` (drafts from the text itself) or `model` (a file with a small model).
    With `answers` the lookup knows what was answered to the same owner before.

    A draft has `n_min` to `n_max` tokens, one from the text at most `lookup_max`, found by `ngram` equal tokens. The
    small model stops where its token is less likely than `p_min`; `n_threads` and the params are its own.
    A draft is sent if it is expected to give `min_gain` times the tokens per time of the plain step; 0 sends all.
    """

    lookup: bool = False
    answers: bool = False
    ngram: int = 3
    lookup_max: int = 127
    n_max: int = 16
    n_min: int = 0
    p_min: float = 0.0
    min_gain: float = 1.05
    model: str = ""
    n_threads: int = -1
    n_threads_batch: int = -1
    model_params: dict[str, Any] = field(default_factory=dict)
    context_params: dict[str, Any] = field(default_factory=dict)


def pinned_patterns(model_params: Mapping[str, Any]) -> list[str]:
    """Regular expressions of the tensors that the user keeps on the CPU."""
    return [pattern for pattern, buffer in model_params.get("tensor_buft_overrides", ()) if buffer == "CPU"]


ROWS_PER_LIMIT = 256


def step_limit_s(limit_s: float, n_rows: int) -> float:
    """How long a step of `n_rows` rows may take before a busy engine counts as hanging: `limit_s` for each
    `ROWS_PER_LIMIT` of them that have begun, so that a long prompt on a slow machine isn't taken for a hang."""
    return limit_s * (1 + n_rows // ROWS_PER_LIMIT)


@record(frozen=True)
class EngineConfig:
    """One model on one set of libraries.

    `n_ctx` 0 is the model's own, None what fits into memory, at most that for each slot. Of one cache for all a slot
    may have `n_ctx_slot`, 0 for the whole. With `is_fitted` what can't fit is refused;
    `fit_target` in MiB to leave free, one value or one per GPU; `fit_ctx` tokens are enough of a
    context to prefer layers on the GPU. `rpc` are `host:port` of workers whose devices are used, too.
    `model_params` and `context_params` go by
    name into `llama_model_params` and `llama_context_params`; what is absent keeps llama.cpp's default. `pool_params`
    go into `ggml_threadpool_params`, where `cpumask` is a tuple of CPU numbers. `lora` are
    (path, scale) pairs. `numa` is a GGML_NUMA_STRATEGY_*, 0 for none. `mmproj` is the projector's file, "" for none;
    `mmproj_params` go by name into `mtmd_context_params`. `n_group` above 1 switches self-extend on. With `special`
    answers show special tokens. `exact` evaluates each task alone and from its beginning. With `kv_unified` all
    slots share one KV cache, None leaves that open (`is_split`). `max_stall_ms` is what a step
    may take while somebody reads a stream, 0 for no limit. `model_offset` and `model_size` say where the model lies
    in its file (a bundle); size 0 is to its end. `shape` is what its header says, None if that isn't known.
    `cache_ram` (MiB; None: a part of the free memory, -1: no limit) and `cache_disk` (a folder, of at most
    `cache_disk_mib`) take what leaves the KV cache. With `slot_files` slots may be saved to files. Models whose state
    can't be cut keep up to `n_checkpoints` copies of it for each slot, `checkpoint_step` tokens apart.
    `turns` is the file of the turns that engines on the same cores take (`seam.turns`), "" for an engine alone.
    `embeddings`: their context is made at start, not at the first request. Tokens of streams may wait for
    `stream_interval_s` seconds to be sent together.
    """

    model: str
    libs: str
    model_offset: int = 0
    model_size: int = 0
    shape: Shape | None = None
    cpu_variant: str | None = None
    n_slots: int = 1
    n_ctx: int | None = None
    n_ctx_slot: int = 0
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int = -1
    n_threads_batch: int = -1
    warmup: bool = True
    max_queue: int = 1024
    max_stall_ms: float = 100.0
    cache_ram: int | None = 0
    cache_disk: str = ""
    cache_disk_mib: int = 10240
    slot_files: bool = False
    n_checkpoints: int = 8
    checkpoint_step: int = 1024
    cont_batching: bool = True
    shift_context: bool = False
    n_group: int = 1
    group_width: int = 512
    lora: tuple[tuple[str, float], ...] = ()
    numa: int = 0
    embeddings: bool = False
    special: bool = False
    exact: bool = False
    kv_unified: bool | None = None
    stream_interval_s: float = 0.0
    is_fitted: bool = True
    fit_target: tuple[int, ...] = ()
    fit_ctx: int = 4096
    rpc: tuple[str, ...] = ()
    turns: str = ""
    spec: SpecConfig = field(default_factory=SpecConfig)
    mmproj: str = ""
    mmproj_params: dict[str, Any] = field(default_factory=dict)
    model_params: dict[str, Any] = field(default_factory=dict)
    context_params: dict[str, Any] = field(default_factory=dict)
    pool_params: dict[str, Any] = field(default_factory=dict)

    def is_split(self, has_window: bool) -> bool:
        """Whether each slot has a part of the KV cache that nobody else's attention looks at (a "stream").

        `has_window`: the model has sliding windows. Their cells can't be read out and put back in parts, so there
        sharing costs more than it saves as long as the layout is left open.
        """
        if self.exact:
            return True
        if self.kv_unified is not None:
            return not self.kv_unified
        return self.n_slots > 1 and not has_window


def thread_counts(config: EngineConfig) -> tuple[int, int]:
    """Threads for generating and for reading prompts."""
    n_threads = config.n_threads if config.n_threads > 0 else host_cpus.usable_cores()
    return n_threads, config.n_threads_batch if config.n_threads_batch > 0 else n_threads


def threads_and_cores(config: EngineConfig) -> tuple[int, float]:
    """Threads that compute at the same time, and the cores that there are for them."""
    cpus = config.pool_params.get("cpumask", ())
    n_threads = max(*thread_counts(config), config.spec.n_threads, config.spec.n_threads_batch)
    return n_threads, min(host_cpus.available(), len(cpus) or float("inf"))


def patience(config: EngineConfig) -> float:
    """How many times longer a step may take than one whose threads have a core each, before it counts as hanging: each
    of the many places where the threads meet waits for all that have no core, and there are more of both."""
    n_threads, n_cores = threads_and_cores(config)
    return max(n_threads / max(n_cores, 1.0), 1.0) ** 2
