"""The ABI guard: checks that these bindings fit the loaded libraries.

Structs are passed by value, so a moved field corrupts memory without an error. Before any other call, `loader` lets
this module check three things: the version is one that fits; our ctypes structures have the layout that a C compiler
computed; the default parameters have their known values. No option overrides a refusal. docs/building.md says how to
use another version: write its layout, change the structs that differ, and extend KNOWN_VERSIONS.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ctypes_api.errors import LibsIncompatible, choose_advice
from ctypes_api.folder import FETCH

EXPECTED = "llama.cpp v0.5.0"
# Builds from a tag have the version x.y.z, others (and the prebuilt packages) x.y.z-dev.
KNOWN_VERSIONS = ("0.5.0", "0.5.0-dev", "0.4.1-dev", "0.4.0", "0.4.0-dev")
LAYOUT_FILE = "abi.json"  # optional, beside the libraries: make_layout.py's output for their headers

# struct -> (size, {field: (offset, size)})
Layout = Mapping[str, tuple[int, Mapping[str, tuple[int, int]]]]

_EIGHT_GIB = 8 << 30
_F16, _TYPE_COUNT, _Q8_0 = 1, 43, 7  # GGML_TYPE_F16, GGML_TYPE_COUNT, LLAMA_FTYPE_MOSTLY_Q8_0
# The default parameters in every known version, by function. None: NULL.
Defaults = Mapping[str, Mapping[str, Any]]
LLAMA_DEFAULTS: Defaults = {
    "llama_model_default_params": {
        "devices": None,
        "tensor_buft_overrides": None,
        "n_gpu_layers": -1,
        "split_mode": 1,
        "load_mode": -1,
        "lazy_mode": 1,
        "main_gpu": 0,
        "tensor_split": None,
        "progress_callback": None,
        "progress_callback_user_data": None,
        "kv_overrides": None,
        "vocab_only": False,
        "check_tensors": False,
        "use_extra_bufts": True,
        "no_host": False,
        "no_alloc": False,
        "load_mtp": False,
    },
    "llama_context_default_params": {
        "n_ctx": 512,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_seq_max": 1,
        "n_rs_seq": 0,
        "n_outputs_max": 0,
        "n_outputs_max_per_seq": 1,
        "n_threads": 4,
        "n_threads_batch": 4,
        "ctx_type": 0,
        "rope_scaling_type": -1,
        "pooling_type": -1,
        "attention_type": -1,
        "flash_attn_type": -1,
        "rope_freq_base": 0.0,
        "rope_freq_scale": 0.0,
        "yarn_ext_factor": -1.0,
        "yarn_attn_factor": -1.0,
        "yarn_beta_fast": -1.0,
        "yarn_beta_slow": -1.0,
        "yarn_orig_ctx": 0,
        "defrag_thold": -1.0,
        "cb_eval": None,
        "cb_eval_user_data": None,
        "type_k": _F16,
        "type_v": _F16,
        "abort_callback": None,
        "abort_callback_data": None,
        "embeddings": False,
        "offload_kqv": True,
        "no_perf": True,
        "op_offload": True,
        "swa_full": True,
        "kv_unified": False,
        "samplers": None,
        "n_samplers": 0,
        "ctx_other": None,
    },
    "llama_sampler_chain_default_params": {"no_perf": True},
    "llama_model_quantize_default_params": {
        "nthread": 0,
        "ftype": _Q8_0,
        "output_tensor_type": _TYPE_COUNT,
        "token_embedding_type": _TYPE_COUNT,
        "allow_requantize": False,
        "quantize_output_tensor": True,
        "only_copy": False,
        "pure": False,
        "keep_split": False,
        "dry_run": False,
        "imatrix": None,
        "kv_overrides": None,
        "tt_overrides": None,
        "prune_layers": None,
        "max_buf_size": _EIGHT_GIB,
    },
}
MTMD_DEFAULTS: Defaults = {
    "mtmd_context_params_default": {
        "use_gpu": True,
        "device": None,
        "print_timings": True,
        "n_threads": 4,
        "image_marker": None,
        "media_marker": b"<__media__>",
        "flash_attn_type": -1,
        "warmup": True,
        "image_min_tokens": -1,
        "image_max_tokens": -1,
        "cb_eval": None,
        "cb_eval_user_data": None,
        "batch_max_tokens": 1024,
        "progress_callback": None,
        "progress_callback_user_data": None,
    },
    "mtmd_helper_video_init_params_default": {"fps_target": 4.0, "ffmpeg_bin_dir": None, "timestamp_interval_ms": 5000},
}


def check_platform(pointer_size: int = ctypes.sizeof(ctypes.c_void_p)) -> None:
    """LibsIncompatible for a 32-bit Python: the prebuilt libraries and the known layout are 64-bit."""
    if pointer_size != 8:
        raise LibsIncompatible(
            f"this Python is {8 * pointer_size}-bit, but the libraries need a 64-bit Python: install one"
        )


def check_version(version: str, where: str) -> None:
    """LibsIncompatible if the version isn't in `KNOWN_VERSIONS`."""
    if version not in KNOWN_VERSIONS:
        raise LibsIncompatible(
            f"{where} is llama.cpp {version or 'of unknown version'}, these bindings are for {EXPECTED} "
            f"(known to fit: {', '.join(KNOWN_VERSIONS)}): {FETCH} or choose another folder with --libs"
        )


def layout_of(structs: Iterable[type[ctypes.Structure]]) -> dict[str, tuple[int, dict[str, tuple[int, int]]]]:
    """The layout of ctypes structures as a `Layout`."""
    return {
        struct.__name__: (
            ctypes.sizeof(struct),
            {name: (getattr(struct, name).offset, getattr(struct, name).size) for name, *_ in struct._fields_},
        )
        for struct in structs
    }


def check_layout(ours: Layout, theirs: Layout, where: str) -> None:
    """LibsIncompatible if a struct that both have differs in its size or in a field. `where` names the source of
    `theirs`."""
    for struct, (size, fields) in theirs.items():
        if struct not in ours:
            continue
        our_size, our_fields = ours[struct]
        for field in fields.keys() | our_fields.keys():
            if fields.get(field) != our_fields.get(field):
                _refuse_layout(where, f"{struct}.{field}", _place(fields.get(field)), _place(our_fields.get(field)))
        if size != our_size:
            _refuse_layout(where, struct, f"{size} bytes", f"{our_size} bytes")


def read_layout(path: Path) -> Layout | None:
    """Read the layout file beside the libraries; None if there is none. LibsIncompatible if it is invalid."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {
            struct: (int(size), {field: (int(offset), int(width)) for field, (offset, width) in fields.items()})
            for struct, (size, fields) in data["structs"].items()
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LibsIncompatible(
            f"{path} is not a valid layout file ({error!r}): remove it"
            + choose_advice(" or create it again with build_scripts/make_layout.py", "")
        ) from None


def check_defaults(function: str, actual: ctypes.Structure, expected: Mapping[str, Any], where: str) -> None:
    """LibsIncompatible if a default parameter that `function` returned isn't as `expected`."""
    for field, value in expected.items():
        found = _make_plain(getattr(actual, field))
        if found != value:
            raise LibsIncompatible(
                f"{where}: {function}().{field} is {found!r}, in {EXPECTED} it is "
                f"{value!r}; the library doesn't fit these bindings: {FETCH}"
            )


def _make_plain(value: Any) -> Any:
    """A field's value; a pointer as its address, NULL as None."""
    if isinstance(value, (int, float, bytes, type(None))):
        return value
    return ctypes.cast(value, ctypes.c_void_p).value


def _place(field: tuple[int, int] | None) -> str:
    return f"{field[1]} bytes at offset {field[0]}" if field else "absent"


def _refuse_layout(where: str, what: str, theirs: str, ours: str) -> None:
    raise LibsIncompatible(
        f"{where}: {what} is {theirs}, these bindings (for {EXPECTED}) have {ours}; "
        f"a call would corrupt memory: {FETCH}"
    )
