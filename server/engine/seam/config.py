"""The configuration of an engine.

`model_sources` makes it from a model's options; `starter` sets context size, warm-up and turns. `wire.Start` takes it
to the engine's process. There `make_drafter_config` makes the draft model's configuration. Imports `host_cpus`, `shape`
and `server.records` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.model_files import host_cpus
from server.model_files.shape import Shape
from server.records import field, record


@record(frozen=True)
class SpecConfig:
    """Speculative decoding; off if neither `lookup` nor `model` is set."""

    lookup: bool = False  # copy drafts from the text so far
    answers: bool = False  # also from earlier answers to the same owner
    ngram: int = 3  # a draft is copied from where the last `ngram` tokens came before
    lookup_max: int = 127  # the most tokens of a copied draft
    n_max: int = 16  # the most tokens of the draft model's drafts
    n_min: int = 0  # the fewest tokens of a draft
    p_min: float = 0.0  # a draft ends before a token that the draft model finds less probable
    min_gain: float = 1.05  # a draft must multiply the expected tokens per second by more than this; 0: use all
    model: str = ""  # the draft model's file; the fields below are its own
    n_threads: int = -1  # this and the next: as in `EngineConfig`
    n_threads_batch: int = -1
    model_params: dict[str, Any] = field(default_factory=dict)
    context_params: dict[str, Any] = field(default_factory=dict)


def list_pinned_patterns(model_params: Mapping[str, Any]) -> list[str]:
    """Regular expressions of the tensors that options keep on the CPU."""
    return [pattern for pattern, buffer in model_params.get("tensor_buft_overrides", ()) if buffer == "CPU"]


ROWS_PER_LIMIT = 256  # see `step_limit_s`


def step_limit_s(limit_s: float, n_rows: int) -> float:
    """The seconds after which a step of `n_rows` rows counts as hanging: `limit_s`, plus `limit_s` per
    `ROWS_PER_LIMIT` rows."""
    return limit_s * (1 + n_rows // ROWS_PER_LIMIT)


@record(frozen=True)
class EngineConfig:
    """One model on one set of libraries. The `*_params` hold what the user has set, by names of C fields."""

    model: str  # path
    libs: str  # folder
    model_offset: int = 0  # where the model begins in its file (a bundle), in bytes
    model_size: int = 0  # bytes; 0: to the end of the file
    shape: Shape | None = None  # from the model's header; None: unknown
    cpu_variant: str | None = None
    n_slots: int = 1
    n_ctx: int | None = None  # tokens of the KV cache; 0: the model's own, None: with `is_fitted` what fits, else as 0
    n_ctx_slot: int = 0  # the most tokens of a slot; 0: only the limits of `LlamaBackend._compute_slot_context`
    n_batch: int = 2048  # rows
    n_ubatch: int = 512  # rows
    n_threads: int = -1  # compute threads while slots generate; -1: one for each usable core
    n_threads_batch: int = -1  # compute threads during prefill; -1: as `n_threads`
    warmup: bool = True
    max_queue: int = 1024  # tasks
    max_stall_ms: float = 100.0  # how long prompts may hold up generating slots (`loop.batching`); 0: no limit
    group_part: int = 2  # a step reads at most 1 / `group_part` of the short prompts that came together
    cache_ram: int | None = 0  # MiB for blocks that leave the KV cache; None: a part of the free memory, -1: no limit
    cache_disk: str = ""  # folder for such blocks
    cache_disk_mib: int = 10240
    slot_files: bool = False  # requests may save slots to files
    n_checkpoints: int = 8  # copies of the state per slot, for models that can't drop the end of a sequence
    checkpoint_step: int = 1024  # tokens between two copies
    cont_batching: bool = True
    shift_context: bool = False
    n_group: int = 1  # above 1: self-extend
    group_width: int = 512  # tokens
    lora: tuple[tuple[str, float], ...] = ()  # (path, scale)
    numa: int = 0  # a GGML_NUMA_STRATEGY_*; 0: none
    embeddings: bool = False  # open the context for embeddings at start, not at the first request
    special: bool = False  # answers show control tokens
    exact: bool = False  # evaluate each task alone and from its beginning
    kv_unified: bool | None = None  # one KV stream for all slots; None: see `is_split`
    stream_interval_s: float = 0.0  # how long tokens of streams may wait to be sent together
    is_fitted: bool = True  # choose `n_ctx` and `n_gpu_layers` where not set; refuse a model that can't fit
    fit_target: tuple[int, ...] = ()  # MiB to leave free, one value or one per GPU
    fit_ctx: int = 4096  # tokens of context per slot that take precedence over layers on GPUs
    rpc: tuple[str, ...] = ()  # host:port of workers whose devices are used
    turns: str = ""  # the file by which engines take turns on the same cores (`seam.turns`); "": no turns
    spec: SpecConfig = field(default_factory=SpecConfig)
    mmproj: str = ""  # the projector's file
    mmproj_params: dict[str, Any] = field(default_factory=dict)  # of mtmd_context_params
    model_params: dict[str, Any] = field(default_factory=dict)  # of llama_model_params
    context_params: dict[str, Any] = field(default_factory=dict)  # of llama_context_params
    pool_params: dict[str, Any] = field(default_factory=dict)  # of ggml_threadpool_params; `cpumask` has CPU numbers

    def is_split(self, has_window: bool) -> bool:
        """Whether each slot has a KV stream of its own, which other slots' attention skips.

        By default not with a single slot or sliding windows (`has_window`), whose cells can't be copied in parts.
        """
        if self.exact:
            return True
        if self.kv_unified is not None:
            return not self.kv_unified
        return self.n_slots > 1 and not has_window


def count_threads(config: EngineConfig) -> tuple[int, int]:
    """Numbers of threads while slots generate, and during prefill."""
    n_threads = config.n_threads if config.n_threads > 0 else host_cpus.count_usable_cores()
    return n_threads, config.n_threads_batch if config.n_threads_batch > 0 else n_threads


def count_threads_and_cores(config: EngineConfig) -> tuple[int, float]:
    """The number of threads that compute at once, and of cores that they may use."""
    cpus = config.pool_params.get("cpumask", ())
    n_threads = max(*count_threads(config), config.spec.n_threads, config.spec.n_threads_batch)
    return n_threads, min(host_cpus.count_available(), len(cpus) or float("inf"))


def compute_patience(config: EngineConfig) -> float:
    """The factor for a step's time limit: the square of threads per core, at least 1."""
    n_threads, n_cores = count_threads_and_cores(config)
    return max(n_threads / max(n_cores, 1.0), 1.0) ** 2
