"""Calls `memory_plan` with the config, the model's header, and the free memory of this machine's devices.

Part of the backend. Runs on the engine's thread before the model is loaded, and for `--dry-run`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ctypes_api.devices import Device, list_devices
from ctypes_api.loader import Libs
from server.engine.cache.rollback import count_back
from server.engine.seam.config import EngineConfig, list_pinned_patterns
from server.errors import StartError
from server.log import get_logger
from server.model_files import host_memory
from server.model_files import memory_plan as fit
from server.model_files.shape import Shape

AUTO_CTX = fit.UNKNOWN_CTX  # tokens of the context if --ctx-size is not set and nothing can be estimated
OFF = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
MAX_CTX = 2**31 - 1  # tokens: llama.cpp counts them in an int32

log = get_logger("engine")


def find_shape(config: EngineConfig) -> Shape | None:
    """The model's shape, from the config or the header; None if that can't be read."""
    if config.shape is not None:
        return config.shape
    from server.model_files.shape_reader import read_shape  # seldom needed

    try:
        return read_shape(
            config.model, (config.model_offset, config.model_size), list_pinned_patterns(config.model_params)
        )
    except (OSError, ValueError) as error:
        log.warning("can't estimate the model's memory: %s", error)
        return None


def make_plan(libs: Libs, config: EngineConfig, shape: Shape | None) -> fit.Plan | None:
    """The context size and layers on GPUs to load with; None without a shape. StartError if the context is too large,
    or with `is_fitted` if the model can't fit."""
    if shape is None:
        return None
    room = host_memory.read_available()
    if room is None:
        log.info("the amount of free memory is unknown on this system")
        room = 1 << 62 if config.n_ctx is not None else _estimate_fallback_room(shape, config)
    memory = fit.Place("memory", room)
    plan = fit.plan(shape, wish_of(config, bool(shape.window)), memory, places_of(list_devices(libs), config))
    if plan.n_ctx > MAX_CTX:
        raise StartError(f"a context of {plan.n_ctx} tokens is too large: llama.cpp allows at most {MAX_CTX}")
    if plan.fault and config.is_fitted:
        raise StartError(plan.fault)
    return plan


def _estimate_fallback_room(shape: Shape, config: EngineConfig) -> int:
    """Bytes that suffice for a context of `AUTO_CTX` tokens: assumed where the free memory is unknown."""
    wish = wish_of(config, bool(shape.window))
    n_ctx = min(AUTO_CTX, shape.n_ctx_train * config.n_slots)
    cache = fit.count_cache_bytes(shape.layers, wish, n_ctx, shape.window)
    return shape.weights + 2 * cache + fit.compute_bytes(shape, wish, n_ctx) + 2 * fit.DEFAULT_MARGIN


def wish_of(config: EngineConfig, has_window: bool = False) -> fit.Wish:
    """The config as the planner's input. The `*_params` hold only what the user has set."""
    model, context = config.model_params, config.context_params
    n_gpu_layers = model.get("n_gpu_layers", -1)
    return fit.Wish(
        n_slots=config.n_slots,
        n_ctx=config.n_ctx,
        n_gpu_layers=n_gpu_layers if n_gpu_layers >= 0 else None,
        n_batch=config.n_batch,
        n_ubatch=config.n_ubatch,
        n_outputs=context.get("n_outputs_max", 0),
        type_k=context.get("type_k", 1),
        type_v=context.get("type_v", 1),
        is_flash=context.get("flash_attn_type", -1) != OFF,
        is_window_full=context.get("swa_full", True),
        is_cache_on_gpu=context.get("offload_kqv", True),
        is_split=config.is_split(has_window),
        n_back=count_back(config, config.shape),
        embeds=config.embeddings,
        fit_ctx=config.fit_ctx,
        draft=_draft_shape(config),
        draft_type_k=config.spec.context_params.get("type_k", 1),
        draft_type_v=config.spec.context_params.get("type_v", 1),
        margins=tuple(mib * fit.MIB for mib in config.fit_target),
        extra=sum(map(_size_of, filter(None, [*(path for path, _ in config.lora), config.spec.model, config.mmproj]))),
    )


def _draft_shape(config: EngineConfig) -> Shape | None:
    """The draft model's shape; None without one, or for a bad file, which its load will report."""
    if not config.spec.model:
        return None
    from server.model_files.shape_reader import read_shape  # seldom needed

    try:
        return read_shape(config.spec.model)
    except (OSError, ValueError):
        return None


def places_of(devices: Iterable[Device], config: EngineConfig) -> tuple[fit.Place, ...]:
    """The devices for layers: the named ones, else all discrete GPUs, else integrated ones."""
    named = config.model_params.get("devices")
    found = [device for device in devices if device.type in ("GPU", "IGPU") and device.memory_total]
    if named is not None:
        found = [device for device in found if device.name in named]
    elif any(device.type == "GPU" for device in found):
        found = [device for device in found if device.type == "GPU"]
    return tuple(
        fit.Place(device.name, device.memory_free, device.type == "IGPU" or device.backend in ("MTL", "Metal"))
        for device in found
    )


def _size_of(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


# ---- models with a table of positions --------------------------------------------------------------------------------

# A model with learned positions has a table with a row for each position. ggml ends the process at a position without a
# row, so a slot of such a model gets at most as many KV cells as the table has rows. llama.cpp doesn't tell whether a
# model has a table, so the header of a file whose architecture may have one is read again.
TABLE = "position_embd.weight"
ARCHITECTURES = ("bert", "gpt2", "mpt", "starcoder")  # those of llama.cpp v0.5.0 that may have the table
PADDING = 256  # tokens: llama.cpp rounds a context up to a multiple


def count_learned_positions(architecture: str, config: EngineConfig) -> int:
    """The rows of the model's table of positions; 0 if it has none."""
    if architecture not in ARCHITECTURES:
        return 0
    from server.model_files import gguf  # seldom needed

    for part in gguf.read_all(config.model, span=(config.model_offset, config.model_size)):
        if TABLE in part.tensors:
            return part.tensors[TABLE].dims[1]
    return 0


def bound_context(n_ctx: int, n_slots: int, n_positions: int) -> int:
    """The part of `n_ctx` that the slots can use. Warns if more is lost than llama.cpp's rounding."""
    most = n_positions * n_slots
    if not n_positions or n_ctx <= most:
        return n_ctx
    if n_ctx > -(-most // PADDING) * PADDING:
        log.warning(
            "each slot's context has %d tokens instead of %d: the model has no more learned positions",
            n_positions,
            n_ctx // n_slots,
        )
    return most
