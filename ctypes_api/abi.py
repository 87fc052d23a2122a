"""The ABI guard: may these libraries be called through these bindings? Pure checks; `loader` calls them.

Structs go by value through the C interface, so one moved field is silent corruption, not an error. Three
things are compared before the first real call: the version against a list of releases whose layout is known
to be the same, the layout of our ctypes structures against what a C compiler said, and the value of every
default parameter. Imports the standard library, `errors` and `folder` only. There is no switch to override a
refusal: who has another build adds its version here after running build_scripts/make_layout.py on its
headers.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ctypes_api.errors import LibsIncompatible, advice
from ctypes_api.folder import FETCH

EXPECTED = "llama.cpp v0.5.0"
# Builds from a tag call themselves x.y.z, others (the prebuilt packages among them) x.y.z-dev.
KNOWN_VERSIONS = ("0.5.0", "0.5.0-dev", "0.4.1-dev", "0.4.0", "0.4.0-dev")
LAYOUT_FILE = "abi.json"  # optional, beside the libraries: what make_layout.py said about their headers

# struct -> (size, {field: (offset, size)})
Layout = Mapping[str, tuple[int, Mapping[str, tuple[int, int]]]]

_EIGHT_GIB = 8 << 30
_F16, _TYPE_COUNT, _Q8_0 = 1, 43, 7
# What each function for default parameters returns, in every known version. None = NULL.
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
    """Refuses a 32-bit Python: every prebuilt library is 64-bit, and so is the layout we know."""
    if pointer_size != 8:
        raise LibsIncompatible(
            f"this Python is {8 * pointer_size}-bit, the libraries and these bindings are 64-bit: use a 64-bit Python"
        )


def check_version(version: str, where: str) -> None:
    """Refuses a libllama whose version isn't in the list."""
    if version not in KNOWN_VERSIONS:
        raise LibsIncompatible(
            f"{where} is llama.cpp {version or 'of unknown version'}, these bindings are for {EXPECTED} "
            f"(known to fit: {', '.join(KNOWN_VERSIONS)}): {FETCH} or choose another folder with --libs"
        )


def layout_of(structs: Iterable[type[ctypes.Structure]]) -> dict[str, tuple[int, dict[str, tuple[int, int]]]]:
    """The layout ctypes gives our structures, in the form of `Layout`."""
    return {
        struct.__name__: (
            ctypes.sizeof(struct),
            {name: (getattr(struct, name).offset, getattr(struct, name).size) for name, *_ in struct._fields_},
        )
        for struct in structs
    }


def check_layout(ours: Layout, theirs: Layout, where: str) -> None:
    """Refuses if a struct in `theirs` (of `where`) has another size, field, offset or width in `ours`."""
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
    """The layout file beside the libraries; None if there is none. Raises LibsIncompatible if broken."""
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
            f"{path} is no layout file ({error!r}): remove it"
            + advice(" or make it again with build_scripts/make_layout.py", "")
        ) from None


def check_defaults(function: str, actual: ctypes.Structure, expected: Mapping[str, Any], where: str) -> None:
    """Refuses if a field of what `function` returned has another value than the known versions give it."""
    for field, value in expected.items():
        found = _plain(getattr(actual, field))
        if found != value:
            raise LibsIncompatible(
                f"{where}: {function}().{field} is {found!r}, in {EXPECTED} it is "
                f"{value!r}; the library doesn't fit these bindings: {FETCH}"
            )


def _plain(value: Any) -> Any:
    """A field's value, with every kind of NULL pointer as None."""
    if isinstance(value, (int, float, bytes, type(None))):
        return value
    return ctypes.cast(value, ctypes.c_void_p).value


def _place(field: tuple[int, int] | None) -> str:
    return f"{field[1]} bytes at offset {field[0]}" if field else "absent"


def _refuse_layout(where: str, what: str, theirs: str, ours: str) -> None:
    raise LibsIncompatible(
        f"{where}: {what} is {theirs}, these bindings (for {EXPECTED}) have {ours}; "
        f"calling it would corrupt memory: {FETCH}"
    )
