"""Owners of native objects: each holds a pointer, keeps alive what C points at, and frees in the right order.

An owner has `.raw` (the address) and an idempotent `close()`, is a context manager, and can be an argument of a raw
call (`libs.llama.llama_n_ctx(context)`). Closing a parent closes its children first. Not thread-safe: one thread owns a
context and its children; several may read a model. Finalizers only warn, because the garbage collector would free on
any thread, in any order.

A constructor's `fields` are those of the C parameter struct; an unknown one is a TypeError. A list for a pointer field
becomes a zero-terminated C array that lives as long as the owner.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from ctypes import POINTER, c_char, c_float, c_int8, c_int32
from typing import Any

from ctypes_api.errors import LibsError, ModelLoadError
from ctypes_api.ggml import ggml_abort_callback
from ctypes_api.llama_types import (
    llama_batch,
    llama_progress_callback,
    llama_sampler_accept_fn,
    llama_sampler_apply_fn,
    llama_sampler_i,
    llama_sampler_name_fn,
    llama_sampler_reset_fn,
)
from ctypes_api.loader import Libs
from ctypes_api.stdio import CFile

Progress = Callable[[float], bool]
_NO_SAMPLER = "the native library refused to make a sampler: a grammar that doesn't parse, or a bad argument"


class Owner(ABC):
    """A native pointer, its children, and objects that must live as long."""

    raw: int | None = None  # on the class, so that a failed constructor is harmless

    def __init__(self, libs: Libs) -> None:
        self.libs = libs
        self.parent: Owner | None = None
        self._children: list[Owner] = []
        self._keep: list[Any] = []  # callbacks and arrays that C holds pointers to

    def _own(self, raw: int | None, parent: Owner | None = None) -> None:
        """Take over the C constructor's result as a child of `parent`. The caller raises for NULL."""
        self.raw, self.parent = raw, parent
        if raw is not None and parent is not None:
            parent._children.append(self)

    @property
    def _as_parameter_(self) -> int:
        if self.raw is None:
            raise LibsError(f"{type(self).__name__} is closed")
        return self.raw

    def close(self) -> None:
        """Free the children (newest first), then this object. Further calls do nothing."""
        if self.raw is None:
            return
        while self._children:
            self._children[-1].close()
        raw, self.raw = self.raw, None
        self._free(raw)
        self._keep.clear()
        if self.parent is not None:
            self.parent._children.remove(self)

    @abstractmethod
    def _free(self, raw: int) -> None:
        """Give `raw` back to C."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self.raw is not None and not sys.is_finalizing():
            warnings.warn(f"{type(self).__name__} was never closed", ResourceWarning, stacklevel=2, source=self)


class Model(Owner):
    """A loaded model file. Fields: llama_model_params (n_gpu_layers, vocab_only, devices=[...], ...)."""

    def __init__(
        self,
        libs: Libs,
        path: str | os.PathLike[str],
        *,
        offset: int = 0,
        progress: Progress | None = None,
        **fields: Any,
    ) -> None:
        """Load `path`. `progress` is called with 0.0 to 1.0 on this thread; False stops the load.

        `offset` is where the GGUF begins within a larger file (a multiple of 32, else it can't be mapped). Raises
        ModelLoadError with the last native error lines, or the exception that `progress` raised.
        """
        super().__init__(libs)
        self._file: CFile | None = None
        params = libs.llama.llama_model_default_params()
        _set_fields(params, fields, self._keep, {"tensor_split": libs.llama.llama_max_devices()})
        watch = _ProgressWatch(progress, params, llama_progress_callback)
        mark = libs.log.mark()
        if offset:
            self._file = _open_at(path, offset)
            self._own(libs.llama.llama_model_load_from_file_ptr(self._file.raw, params))
        else:
            self._own(libs.llama.llama_model_load_from_file(_encode_c_path(path), params))
        if self.raw is None:
            self._close_file()
        watch.check(self)
        if self.raw is None:
            raise ModelLoadError(_describe_failure(f"can't load model {os.fspath(path)}", libs, mark))
        self.vocab: int = libs.llama.llama_model_get_vocab(self)  # lives as long as the model

    @property
    def desc(self) -> str:
        """A description such as `llama 1B Q4_1`."""
        return _read_string(self.libs.llama.llama_model_desc, self)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return self.libs.llama.llama_model_size(self)

    @property
    def n_params(self) -> int:
        return self.libs.llama.llama_model_n_params(self)

    def read_meta(self) -> dict[str, str]:
        """The GGUF metadata: scalars and strings as text (the C interface omits arrays)."""
        return _read_metadata(self, "llama_model_meta")

    def get_chat_template(self, name: str | None = None) -> str | None:
        """The model's default or named chat template; None if it has none."""
        text = self.libs.llama.llama_model_chat_template(self, None if name is None else name.encode())
        return None if text is None else text.decode("utf-8", "replace")

    def _free(self, raw: int) -> None:
        self.libs.llama.llama_model_free(raw)
        self._close_file()

    def _close_file(self) -> None:
        """Close the stream, from which llama.cpp may read tensors until the model is freed."""
        if self._file is not None:
            self._file.close()


class AbortFlag:
    """A flag by which any thread stops llama_decode. Pass it as `Context(..., abort=flag)`.

    The compute threads call an abort callback before every graph node. A Python function would wait for the GIL
    hundreds of times per step, so the callback is libc's `strlen` of a one-byte text: 0 goes on, 1 aborts. Works on the
    CPU backend only (llama.h).
    """

    def __init__(self) -> None:
        self._text = (c_char * 2)()
        libc = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
        self.callback = ctypes.cast(libc.strlen, ggml_abort_callback)
        self.address = ctypes.addressof(self._text)

    def set(self) -> None:
        """Make the running and every later llama_decode return 2, until `clear`."""
        self._text[0] = b"\x01"

    def clear(self) -> None:
        self._text[0] = b"\x00"

    def is_set(self) -> bool:
        return self._text[0] != b"\x00"


class Context(Owner):
    """A llama_context on a model. Fields: llama_context_params (n_ctx, n_seq_max, kv_unified, ...)."""

    def __init__(
        self, model: Model, *, abort: AbortFlag | None = None, pool: Threadpool | None = None, **fields: Any
    ) -> None:
        """ModelLoadError with the last native error lines (usually: not enough memory).

        Without a `pool` ggml starts threads for each graph.
        """
        super().__init__(model.libs)
        params = self.libs.llama.llama_context_default_params()
        _set_fields(params, fields, self._keep)
        if abort is not None:
            params.abort_callback, params.abort_callback_data = abort.callback, abort.address
            self._keep.append(abort)
        mark = self.libs.log.mark()
        self._own(self.libs.llama.llama_init_from_model(model, params), model)
        if self.raw is None:
            raise ModelLoadError(_describe_failure("can't create a context", self.libs, mark))
        self.memory: int | None = self.libs.llama.llama_get_memory(self)  # None: an encoder-only model
        if pool is not None:
            self._keep.append(pool)
            self.libs.llama.llama_attach_threadpool(self, pool, pool)

    def _free(self, raw: int) -> None:
        self.libs.llama.llama_free(raw)


class Threadpool(Owner):
    """A ggml thread pool for llama_attach_threadpool. Fields: ggml_threadpool_params (prio, poll, ...).

    Close or detach its contexts before the pool. The thread that creates the pool computes, too, so `cpumask` and
    `prio` also apply to it.
    """

    def __init__(self, libs: Libs, n_threads: int, **fields: Any) -> None:
        super().__init__(libs)
        params = libs.ggml.ggml_threadpool_params_default(n_threads)
        _set_fields(params, fields, self._keep)
        self._own(libs.ggml.ggml_threadpool_new(ctypes.byref(params)))
        if self.raw is None:
            raise LibsError(f"can't create a pool of {n_threads} threads")

    def _free(self, raw: int) -> None:
        self.libs.ggml.ggml_threadpool_free(raw)


class Batch:
    """Input rows for llama_decode in ctypes arrays, to which the llama_batch in `struct` points.

    Fill `token`, `pos`, `logits` and either `seq` (row i uses seq[i * n_seq_max ...]) or `seq_id[i][k]`, by index or
    slice; set `n_tokens`; call `llama_decode(context, batch.struct)`. `n_seq_id` is 1 in each row at first. With
    `n_embd` fill `embd` instead of `token`. With `n_pos` > 1 (M-RoPE) there are n_pos * n_tokens positions, grouped by
    dimension. A batch owns no native memory, but must outlive the decode call.
    """

    __slots__ = ("capacity", "embd", "logits", "n_seq_id", "n_seq_max", "pos", "seq", "seq_id", "struct", "token")

    def __init__(self, _libs: Libs, n_tokens: int, n_seq_max: int = 1, *, n_embd: int = 0, n_pos: int = 1) -> None:
        self.capacity, self.n_seq_max = n_tokens, n_seq_max
        self.token: Any = None if n_embd else (c_int32 * n_tokens)()
        self.embd: Any = (c_float * (n_tokens * n_embd))() if n_embd else None
        self.pos: Any = (c_int32 * (n_tokens * n_pos))()
        self.n_seq_id = (c_int32 * n_tokens)(*([1] * n_tokens))
        self.logits: Any = (c_int8 * n_tokens)()
        self.seq: Any = (c_int32 * (n_tokens * n_seq_max))()
        self.seq_id = _make_rows(self.seq, n_tokens, n_seq_max)
        self.struct = llama_batch(
            0,
            _point_to_first(self.token, c_int32),
            _point_to_first(self.embd, c_float),
            _point_to_first(self.pos, c_int32),
            _point_to_first(self.n_seq_id, c_int32),
            _point_to_first(self.seq_id, POINTER(c_int32)),
            _point_to_first(self.logits, c_int8),
        )

    @property
    def n_tokens(self) -> int:
        """Rows in use."""
        return self.struct.n_tokens

    @n_tokens.setter
    def n_tokens(self, count: int) -> None:
        if not 0 <= count <= self.capacity:
            raise ValueError(f"a batch of {self.capacity} rows can't hold {count}")
        self.struct.n_tokens = count

    def close(self) -> None:
        """Empty the batch."""
        self.struct.n_tokens = 0

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Sampler(Owner):
    """Owns one llama_sampler. `Sampler(libs, libs.llama.llama_sampler_init_greedy())`."""

    def __init__(self, libs: Libs, raw: int | None) -> None:
        """Take over `raw`. LibsError if it is NULL: the C constructor refused its arguments."""
        super().__init__(libs)
        if raw is None:
            raise LibsError(_NO_SAMPLER)
        self._own(raw)

    @classmethod
    def make_chain(cls, libs: Libs, *parts: Sampler | int | None, no_perf: bool = True) -> Sampler:
        """A chain that applies `parts` in order, and owns them. Each is an owner or a new C pointer.

        LibsError if one is NULL; then all are freed.
        """
        params = libs.llama.llama_sampler_chain_default_params()
        params.no_perf = no_perf
        made = cls(libs, libs.llama.llama_sampler_chain_init(params))
        for part in parts:
            if part is not None:
                made.add(part)
        if None in parts:
            made.close()  # frees all parts
            raise LibsError(_NO_SAMPLER)
        return made

    @classmethod
    def make_custom(
        cls,
        libs: Libs,
        name: str,
        apply: Callable[[Any], None],
        *,
        accept: Callable[[int], None] | None = None,
        reset: Callable[[], None] | None = None,
    ) -> Sampler:
        """A sampler in Python. `apply(candidates)` changes a llama_token_data_array in place.

        For tests and experiments: over a whole vocabulary it takes milliseconds per token. The callbacks run on the
        thread that samples. Their exceptions can't cross C; Python reports them as unraisable.
        """
        label = ctypes.create_string_buffer(name.encode())
        interface = llama_sampler_i(
            name=llama_sampler_name_fn(lambda _raw: ctypes.addressof(label)),
            apply=llama_sampler_apply_fn(lambda _raw, array: apply(array.contents)),
        )
        if accept is not None:
            interface.accept = llama_sampler_accept_fn(lambda _raw, token: accept(token))
        if reset is not None:
            interface.reset = llama_sampler_reset_fn(lambda _raw: reset())
        made = cls(libs, libs.llama.llama_sampler_init(ctypes.byref(interface), None))
        made._keep += [interface, label]
        return made

    def add(self, part: Sampler | int | None) -> Sampler:
        """Append `part` to this chain, which owns it from now on. Returns the chain."""
        if not isinstance(part, Sampler):
            part = Sampler(self.libs, part)
        self.libs.llama.llama_sampler_chain_add(self, part)
        self._keep += part._keep
        part.raw = None
        return self

    def clone(self) -> Sampler:
        """A copy with the same state."""
        made = Sampler(self.libs, self.libs.llama.llama_sampler_clone(self))
        made._keep += self._keep
        return made

    def _free(self, raw: int) -> None:
        self.libs.llama.llama_sampler_free(raw)


class Adapter(Owner):
    """A LoRA adapter loaded for a model; llama_set_adapters_lora uses it in a context."""

    def __init__(self, model: Model, path: str | os.PathLike[str]) -> None:
        """Raises ModelLoadError with the last native error lines."""
        super().__init__(model.libs)
        mark = self.libs.log.mark()
        self._own(self.libs.llama.llama_adapter_lora_init(model, _encode_c_path(path)), model)
        if self.raw is None:
            raise ModelLoadError(_describe_failure(f"can't load adapter {os.fspath(path)}", self.libs, mark))

    def read_meta(self) -> dict[str, str]:
        """The adapter's GGUF metadata as text."""
        return _read_metadata(self, "llama_adapter_meta")

    def _free(self, raw: int) -> None:
        self.libs.llama.llama_adapter_lora_free(raw)


class MtmdContext(Owner):
    """A projector (mmproj) file for a model. Fields: mtmd_context_params. Needs load(..., with_mtmd=True)."""

    def __init__(
        self, model: Model, path: str | os.PathLike[str], *, progress: Progress | None = None, **fields: Any
    ) -> None:
        """Raises ModelLoadError with the last native error lines."""
        from ctypes_api.mtmd import mtmd_progress_callback  # here, because most models come without

        super().__init__(model.libs)
        if self.libs.mtmd is None:
            raise LibsError("libmtmd isn't loaded: load the libraries with with_mtmd=True")
        params = self.libs.mtmd.mtmd_context_params_default()
        _set_fields(params, fields, self._keep)
        watch = _ProgressWatch(progress, params, mtmd_progress_callback)
        mark = self.libs.log.mark()
        self._own(self.libs.mtmd.mtmd_init_from_file(_encode_c_path(path), model, params), model)
        watch.check(self)
        if self.raw is None:
            raise ModelLoadError(_describe_failure(f"can't load projector {os.fspath(path)}", self.libs, mark))

    def _free(self, raw: int) -> None:
        self.libs.mtmd.mtmd_free(raw)


class _ProgressWatch:
    """Sets a progress callback for one load. An exception in the callback can't cross C frames: it stops the load, and
    `check` raises it."""

    def __init__(self, progress: Progress | None, params: ctypes.Structure, callback_type: Any) -> None:
        self._progress: Any = progress
        self._error: BaseException | None = None
        self._stopped = False
        if progress is not None:
            self._c_callback = params.progress_callback = callback_type(self._on_progress)

    def _on_progress(self, value: float, _user_data: object) -> bool:
        try:
            self._stopped = not self._progress(value)
        except BaseException as error:  # KeyboardInterrupt must stop the load, too
            self._error, self._stopped = error, True
        return not self._stopped

    def check(self, owner: Owner) -> None:
        """If the callback stopped the load: free the owner and raise the callback's exception, or ModelLoadError."""
        if self._stopped:
            owner.close()
            raise self._error or ModelLoadError("loading was stopped by its progress callback")


def _open_at(path: str | os.PathLike[str], offset: int) -> CFile:
    try:
        return CFile(path, offset)
    except OSError as error:
        raise ModelLoadError(f"can't load model {os.fspath(path)}: {error.strerror}") from None


def _encode_c_path(path: str | os.PathLike[str]) -> bytes:
    """A path for C: UTF-8 on Windows, the file system's encoding elsewhere."""
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ModelLoadError("a path can't have a NUL character")
    return encoded


def _set_fields(
    params: ctypes.Structure, fields: Mapping[str, Any], keep: list[Any], lengths: Mapping[str, int] | None = None
) -> None:
    keep.append(params)
    types: dict[str, Any] = {name: kind for name, kind, *_ in params._fields_}
    for name, value in fields.items():
        if name not in types:
            raise TypeError(f"{type(params).__name__} has no field {name!r}")
        if isinstance(value, (list, tuple)) and hasattr(types[name], "contents"):
            element = types[name]._type_
            value = (element * max(len(value) + 1, (lengths or {}).get(name, 0)))(*value)
            keep.append(value)
            value = ctypes.cast(value, types[name])
        setattr(params, name, value)


def _point_to_first(array: Any, element: Any) -> Any:
    """A pointer to an array's first element; NULL for no array."""
    return ctypes.cast(array, POINTER(element)) if array is not None else POINTER(element)()


def _make_rows(flat: Any, count: int, width: int) -> Any:
    """`count` pointers, `width` elements apart, into a flat int32 array, and a NULL after them."""
    base = ctypes.addressof(flat)
    rows = (POINTER(c_int32) * (count + 1))()
    for i in range(count):
        rows[i] = ctypes.cast(base + 4 * width * i, POINTER(c_int32))
    return rows


def _read_string(function: Callable, *arguments: Any) -> str:
    """The text that a C function writes to (char *buf, size_t size), its last parameters; it returns the length."""
    buffer = ctypes.create_string_buffer(256)
    length = function(*arguments, buffer, len(buffer))
    if length >= len(buffer):
        buffer = ctypes.create_string_buffer(length + 1)
        function(*arguments, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")


def _read_metadata(owner: Owner, prefix: str) -> dict[str, str]:
    functions = vars(owner.libs.llama)
    key_at, value_at = functions[f"{prefix}_key_by_index"], functions[f"{prefix}_val_str_by_index"]
    return {
        _read_string(key_at, owner, i): _read_string(value_at, owner, i)
        for i in range(functions[f"{prefix}_count"](owner))
    }


def _describe_failure(what: str, libs: Libs, mark: int) -> str:
    """One printable line: `what`, then the last three native error lines (they may quote a broken file)."""
    lines = [line.strip() for line in libs.log.list_errors_since(mark) if line.strip()]
    text = f"{what}: {'; '.join(lines[-3:]) or 'the native library gave no reason'}"
    return "".join(char if char.isprintable() else "?" for char in text)
