"""The devices of the loaded backends. Runs on the thread that loads."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from ctypes_api.ggml import ggml_backend_dev_props
from ctypes_api.loader import Libs

_TYPES = ("CPU", "GPU", "IGPU", "ACCEL", "META")  # by GGML_BACKEND_DEVICE_TYPE_*


class Device(NamedTuple):
    name: str
    description: str
    type: str  # one of _TYPES, or ggml's number
    memory_free: int  # bytes; the CPU's is the system's
    memory_total: int  # bytes
    backend: str
    id: str  # PCI bus id, or ""
    raw: int  # ggml_backend_dev_t, for Model(devices=[...])


def list_devices(libs: Libs) -> list[Device]:
    """The devices of all loaded backends, in ggml's order."""
    count = libs.ggml.ggml_backend_dev_count()
    return [_read_device(libs, libs.ggml.ggml_backend_dev_get(i)) for i in range(count)]


def _read_device(libs: Libs, raw: int) -> Device:
    props = ggml_backend_dev_props()
    libs.ggml.ggml_backend_dev_get_props(raw, ctypes.byref(props))
    backend = libs.ggml.ggml_backend_reg_name(libs.ggml.ggml_backend_dev_backend_reg(raw))
    kind = _TYPES[props.type] if props.type < len(_TYPES) else str(props.type)
    return Device(
        _decode_text(props.name),
        _decode_text(props.description),
        kind,
        props.memory_free,
        props.memory_total,
        _decode_text(backend),
        _decode_text(props.device_id),
        raw,
    )


def _decode_text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
