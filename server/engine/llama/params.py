"""Turns option texts into C handles and structs for loading a model, and opens the thread pool.

Runs on the engine's thread. Part of the backend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ctypes import c_bool
from typing import Any

from ctypes_api.devices import list_devices
from ctypes_api.ggml import GGML_MAX_N_THREADS
from ctypes_api.llama_types import (
    LLAMA_KV_OVERRIDE_TYPE_BOOL,
    LLAMA_KV_OVERRIDE_TYPE_FLOAT,
    LLAMA_KV_OVERRIDE_TYPE_INT,
    LLAMA_KV_OVERRIDE_TYPE_STR,
    llama_model_kv_override,
    llama_model_tensor_buft_override,
)
from ctypes_api.loader import Libs
from ctypes_api.objects import Threadpool
from server.engine.seam.config import EngineConfig, count_threads
from server.errors import StartError
from server.log import get_logger

KV_TYPES = {
    "int": (LLAMA_KV_OVERRIDE_TYPE_INT, "val_i64"),
    "float": (LLAMA_KV_OVERRIDE_TYPE_FLOAT, "val_f64"),
    "bool": (LLAMA_KV_OVERRIDE_TYPE_BOOL, "val_bool"),
    "str": (LLAMA_KV_OVERRIDE_TYPE_STR, "val_str"),
}


log = get_logger("engine")


def add_workers(libs: Libs, addresses: Sequence[str]) -> None:
    """Add the devices of the RPC workers that answer; log and skip the other workers."""
    if not addresses:
        return
    from ctypes_api import rpc  # seldom needed
    from server.engine.seam.workers import find_reachable

    workers, faults = find_reachable(addresses)
    for fault in faults:
        log.warning("%s; going on without it", fault)
    if workers:
        rpc.add_workers(libs, [worker.address for worker in workers])


def make_model_fields(libs: Libs, params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with names and texts replaced by C handles and structs. StartError for a name or text that is wrong."""
    fields = dict(params)
    if "devices" in fields:
        fields["devices"] = find_devices(libs, fields["devices"])
    if "kv_overrides" in fields:
        fields["kv_overrides"] = [make_kv_override(*row) for row in fields["kv_overrides"]]
    if "tensor_buft_overrides" in fields:
        buffers = list_buffer_types(libs)
        fields["tensor_buft_overrides"] = [
            make_tensor_override(pattern, buffer, buffers) for pattern, buffer in fields["tensor_buft_overrides"]
        ]
    return fields


def find_devices(libs: Libs, names: tuple[str, ...], option: str = "--device") -> list[int]:
    """Handles of the named devices. `none` alone means the CPU only: an empty list. StartError for an unknown name."""
    if names == ("none",):
        return []
    known = {device.name: device.raw for device in list_devices(libs) if device.type != "CPU"}
    for name in names:
        if name not in known:
            raise StartError(f"{option} {name}: no such device; available: {', '.join(known) or 'none'}")
    return [known[name] for name in names]


def list_buffer_types(libs: Libs) -> dict[str, int]:
    """Handles of the buffer types that can hold tensors, by name."""
    found = {}
    for device in list_devices(libs):
        buffer = libs.ggml.ggml_backend_dev_buffer_type(device.raw)
        if buffer:
            found[libs.ggml.ggml_backend_buft_name(buffer).decode()] = buffer
    return found


def make_kv_override(key: str, kind: str, value: object) -> llama_model_kv_override:
    tag, field = KV_TYPES[kind]
    row = llama_model_kv_override(tag=tag, key=key.encode())
    setattr(row, field, value.encode() if isinstance(value, str) else value)
    return row


def make_tensor_override(pattern: str, buffer: str, known: Mapping[str, int]) -> llama_model_tensor_buft_override:
    """One buffer override. StartError for an unknown buffer, or a malformed pattern, which would make llama.cpp throw a
    C++ exception."""
    if buffer not in known:
        raise StartError(f"--override-tensor {pattern}={buffer}: no such buffer; available: {', '.join(known)}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise StartError(f"--override-tensor {pattern}: not a regular expression: {error}") from None
    return llama_model_tensor_buft_override(pattern.encode(), known[buffer])


# ---- the thread pool -------------------------------------------------------------------------------------------------

# The pool keeps compute threads alive between two graphs. Without it ggml starts threads for each graph, at least once
# per ubatch. A model's contexts share one pool, since they compute one after the other. Not taken: threads that poll
# between two steps by default, as llama-server's do. The web process needs those cores then.


def open_pool(libs: Libs, config: EngineConfig) -> Threadpool | None:
    """The thread pool; None if only the engine's own thread computes and no pool option is set."""
    n_threads = max(count_threads(config))
    if n_threads == 1 and not config.pool_params:
        return None
    fields = {"poll": 0, **config.pool_params}
    cpus = fields.get("cpumask", ())
    if cpus:
        fields["cpumask"] = (c_bool * GGML_MAX_N_THREADS)(*(cpu in cpus for cpu in range(GGML_MAX_N_THREADS)))
    return Threadpool(libs, n_threads, **fields)
