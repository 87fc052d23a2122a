"""ggml-rpc.h: uses the devices of other machines (workers), and lends this machine's devices to others.

Runs on the thread that loads; `serve` blocks its thread. The RPC backend is a plug-in; its functions are looked up by
name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_size_t
from pathlib import Path

from ctypes_api.binding import Functions, bind, call, from_addresses
from ctypes_api.devices import Device
from ctypes_api.errors import LibsError, LibsNotFound, choose_advice
from ctypes_api.ggml import ggml_backend_dev_t, ggml_backend_reg_t
from ctypes_api.loader import Libs

ROWS = (
    # ggml_backend_reg_t ggml_backend_rpc_add_server(const char *endpoint)
    call("ggml_backend_rpc_add_server", ggml_backend_reg_t, c_char_p),
    # void ggml_backend_rpc_start_server(const char *endpoint, const char *cache_dir, size_t n_threads,
    #                                    size_t n_devices, ggml_backend_dev_t *devices)
    call("ggml_backend_rpc_start_server", None, c_char_p, c_char_p, c_size_t, c_size_t, POINTER(ggml_backend_dev_t)),
)


def add_workers(libs: Libs, addresses: Sequence[str]) -> None:
    """Register the devices of the workers at `host:port` as `RPC0`, `RPC1`, ... LibsError for a worker without devices.

    The library ends the process if a worker can't be reached, so the caller must check that first.
    """
    functions = _find_functions(libs)
    known = {libs.ggml.ggml_backend_reg_get(i) for i in range(libs.ggml.ggml_backend_reg_count())}
    for address in addresses:
        registry = functions.ggml_backend_rpc_add_server(address.encode())
        if not registry:
            raise LibsError(f"the worker at {address} has no devices")
        if registry not in known:
            libs.ggml.ggml_backend_register(registry)


def serve(libs: Libs, address: str, cache: Path | None, n_threads: int, devices: Sequence[Device]) -> None:
    """Run a worker at `host:port`, for one client after the other. Returns only if the address can't be used.

    Tensors of more than 10 MB are kept in the folder `cache`, if it isn't None.
    """
    handles = (ggml_backend_dev_t * len(devices))(*(device.raw for device in devices))
    folder = os.fsencode(cache) + os.sep.encode() if cache else None
    _find_functions(libs).ggml_backend_rpc_start_server(address.encode(), folder, n_threads, len(devices), handles)


def _find_functions(libs: Libs) -> Functions:
    registry = libs.ggml.ggml_backend_reg_by_name(b"RPC")
    if not registry:
        raise LibsNotFound(
            f"{libs.folder} has no libggml-rpc, which workers need: "
            + choose_advice(
                "run `python build_scripts/fetch_libs.py --with-rpc`",
                "choose a folder of libraries that has it with --libs",
            )
        )
    functions = Functions(registry)
    bind(
        ROWS,
        from_addresses(lambda name: libs.ggml.ggml_backend_reg_get_proc_address(registry, name)),
        functions,
        version=libs.version,
        where=f"the RPC backend of {libs.folder}",
    )
    return functions
