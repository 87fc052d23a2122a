"""The plan for this machine: what the config asks for, the model's header and the free memory, given to `memory_plan`.

A part of the backend (it knows `ctypes_api`); engine's thread, before the model is loaded, and `--dry-run`. Reads the
header only if nobody has done so before: that takes ten to a hundred milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ctypes_api.devices import Device, list_devices
from ctypes_api.loader import Libs
from server.engine.cache.rollback import n_back
from server.engine.seam.config import EngineConfig, pinned_patterns
from server.errors import StartError
from server.log import get_logger
from server.model_files import host_memory
from server.model_files import memory_plan as fit
from server.model_files.shape import Shape

AUTO_CTX = fit.UNKNOWN_CTX  # for an open context where nothing is known about the model or the machine
OFF = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
MAX_CTX = 2**31 - 1

log = get_logger("engine")


def find_shape(config: EngineConfig) -> Shape | None:
    """What the header says of the model; None if it can't be read."""
    if config.shape is not None:
        return config.shape
    from server.model_files.shape_reader import read_shape  # here, because nearly always it is known

    try:
        return read_shape(config.model, (config.model_offset, config.model_size), pinned_patterns(config.model_params))
    except (OSError, ValueError) as error:
        log.warning("the memory that the model takes can't be estimated: %s", error)
        return None


def make_plan(libs: Libs, config: EngineConfig, shape: Shape | None) -> fit.Plan | None:
    """What to load with; None if it can't be estimated. StartError with the figures if it can't fit."""
    if shape is None:
        return None
    room = host_memory.available()
    if room is None:
        log.info("this system doesn't tell how much memory is free")
        room = 1 << 62 if config.n_ctx is not None else _fallback_room(shape, config)
    memory = fit.Place("memory", room)
    plan = fit.plan(shape, wish_of(config, bool(shape.window)), memory, places_of(list_devices(libs), config))
    if plan.n_ctx > MAX_CTX:
        raise StartError(f"a context of {plan.n_ctx} tokens is more than llama.cpp can count")
    if plan.fault and config.is_fitted:
        raise StartError(plan.fault)
    return plan


def _fallback_room(shape: Shape, config: EngineConfig) -> int:
    """As if there were just enough for `AUTO_CTX` tokens."""
    wish = wish_of(config, bool(shape.window))
    n_ctx = min(AUTO_CTX, shape.n_ctx_train * config.n_slots)
    cache = fit.cache_bytes(shape.layers, wish, n_ctx, shape.window)
    return shape.weights + 2 * cache + fit.compute_bytes(shape, wish, n_ctx) + 2 * fit.DEFAULT_MARGIN


def wish_of(config: EngineConfig, has_window: bool = False) -> fit.Wish:
    """The config in the planner's words. Only what the user has set is in the `*_params`."""
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
        n_back=n_back(config, config.shape),
        embeds=config.embeddings,
        fit_ctx=config.fit_ctx,
        draft=_draft_shape(config),
        draft_type_k=config.spec.context_params.get("type_k", 1),
        draft_type_v=config.spec.context_params.get("type_v", 1),
        margins=tuple(mib * fit.MIB for mib in config.fit_target),
        extra=sum(map(_size_of, filter(None, [*(path for path, _ in config.lora), config.spec.model, config.mmproj]))),
    )


def _draft_shape(config: EngineConfig) -> Shape | None:
    """Of the draft model; None without one, or if loading it will say what is wrong with its file."""
    if not config.spec.model:
        return None
    from server.model_files.shape_reader import read_shape  # here, because hardly anybody has one

    try:
        return read_shape(config.spec.model)
    except (OSError, ValueError):
        return None


def places_of(devices: Iterable[Device], config: EngineConfig) -> tuple[fit.Place, ...]:
    """The devices that layers may go to: those named, or all GPUs (integrated ones only if there are no others)."""
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

# Most models have as many positions as one likes, those with a learned table no more than its rows. ggml reads the
# table's row for each token and ends the process where there is none, so a slot of such a model never gets more cells
# than the table has rows. llama.cpp doesn't say whether a model has one, so the file's header is read again, but only
# for architectures that may.
TABLE = "position_embd.weight"
ARCHITECTURES = ("bert", "gpt2", "mpt", "starcoder")  # of llama.cpp v0.5.0, with a table always or sometimes
PADDING = 256  # llama.cpp makes contexts a multiple of that


def learned_positions(architecture: str, config: EngineConfig) -> int:
    """The rows of the model's table of positions; 0 if it has none."""
    if architecture not in ARCHITECTURES:
        return 0
    from server.model_files import gguf  # here, because hardly any model gets here

    for part in gguf.read_all(config.model, span=(config.model_offset, config.model_size)):
        if TABLE in part.tensors:
            return part.tensors[TABLE].dims[1]
    return 0


def bounded_context(n_ctx: int, n_slots: int, n_positions: int) -> int:
    """The size of a context that was asked for, or what the slots can use of it."""
    most = n_positions * n_slots
    if not n_positions or n_ctx <= most:
        return n_ctx
    if n_ctx > -(-most // PADDING) * PADDING:
        log.warning(
            "the context is limited to %d tokens for each slot instead of %d: this model has learned "
            "positions, and no more of them",
            n_positions,
            n_ctx // n_slots,
        )
    return most
