"""The identity of a model's KV cache: hashes of all files that keys and values depend on, and the settings.

Saved slots and blocks on disk contain the identity, so that no other model loads them; records name it. Each part of
the model, each adapter, the projector and the native libraries are hashed as a whole. That takes about a second per
gigabyte, so it is done only on demand, on the thread `identity`. The cache folder keeps the hashes by each file's mark
(device, inode, size, times). A mark is taken before the model is loaded and after the file has been hashed. If the two
differ, there is no identity.

All else runs on the engine's thread; the web process only takes marks, and `replay` calls `describe_difference`. Not
taken: hashing samples, which misses changes between them; size and times alone, which differ in a copy of a model.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from server.log import get_logger
from server.program import find_cache_folder
from server.records import record

MIB = 1 << 20
READ_BYTES = 4 * MIB
REST = 10  # while tasks run: the pause after each read, as a multiple of the time that the read took
SETTLED_S = 2.0  # a file that was changed so recently may change again with the same time
MOST_REMEMBERED = 256  # hashes in the cache folder
NO_FILES = "none"
MOST_SHOWN = 200  # characters of a saved identity in a message
NOTHING: Mapping[str, Any] = MappingProxyType({})
# fields of llama.cpp's structs that don't change what is computed, only where and how fast
NEUTRAL = frozenset(
    (
        "check_tensors",
        "device",
        "devices",
        "load_mode",
        "lazy_mode",
        "main_gpu",
        "n_gpu_layers",
        "no_host",
        "offload_kqv",
        "op_offload",
        "pooling_type",
        "split_mode",
        "tensor_buft_overrides",
        "tensor_split",
        "use_extra_bufts",
        "use_gpu",
        "warmup",
    )
)
FLAGS = {
    "rope_scaling_type": "--rope-scaling",
    "type_k": "--cache-type-k",
    "type_v": "--cache-type-v",
    "flash_attn_type": "--flash-attn",
    "kv_overrides": "--override-kv",
    "context": "--ctx-size",
}
NAMES = {
    "model": "another model",
    "lora": "other adapters (--lora)",
    "mmproj": "another projector (--mmproj)",
    "libraries": "another build of llama.cpp",
}

log = get_logger("engine")


@record(frozen=True)
class Source:
    """A file, or a part of it."""

    path: str
    mark: str  # the system's facts about the file (`_mark`); "": there is no such file
    offset: int = 0  # bytes
    size: int = 0  # bytes; 0: to the end


def make_source(path: str | os.PathLike[str], offset: int = 0, size: int = 0) -> Source:
    """A file with its current mark."""
    return Source(str(path), _mark(path, offset, size), offset, size)


def list_model_sources(path: str, offset: int = 0, size: int = 0) -> list[Source]:
    """The files of a model's parts, as far as they exist."""
    if offset or size or "-of-" not in path:
        return [make_source(path, offset, size)]
    from server.model_files.gguf import SPLIT_NAME  # here, because few models have parts

    found = SPLIT_NAME.fullmatch(Path(path).name)
    if not found:
        return [make_source(path)]
    names = (f"{found['prefix']}-{no:05}-of-{found['count']}.gguf" for no in range(1, int(found["count"]) + 1))
    paths = [Path(path).with_name(name) for name in names]
    return [make_source(part) for part in paths if part.is_file()]


def settings_of(
    context_params: Mapping[str, Any], model_params: Mapping[str, Any], mmproj_params: Mapping[str, Any] = NOTHING
) -> dict[str, Any]:
    """The user's settings on which keys and values depend, as plain JSON by fields of llama.cpp's structs."""
    found = {**model_params, **context_params, **mmproj_params}
    return {
        name: value if isinstance(value, (bool, int, float, str)) else repr(value)
        for name, value in sorted(found.items())
        if name not in NEUTRAL
    }


def reach_of(meta: Mapping[str, str], model_params: Mapping[str, Any], n_ctx: int) -> dict[str, str]:
    """For models with scaled positions: whether the context is longer than the original training context. Some models
    then rotate all keys differently (`rope_factors_long` in llama.cpp)."""
    arch = meta.get("general.architecture", "")
    facts = {**meta, **{key: value for key, _, value in model_params.get("kv_overrides", ())}}
    if not any(key.startswith(f"{arch}.rope.scaling.") for key in facts):
        return {}
    n = int(facts.get(f"{arch}.rope.scaling.original_context_length", facts.get(f"{arch}.context_length", 0)))
    return {"context": f"more than {n} tokens" if n_ctx > n else f"{n} tokens or less"}


def describe_difference(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The first difference of two identities, such as `another model (...); this is ...`; "" if they are equal."""
    for name, what in NAMES.items():
        if saved.get(name) != ours.get(name):
            return f"{what} ({str(saved.get(name))[:MOST_SHOWN]}); this is {ours.get(name)}"
    before, now = saved.get("settings", NOTHING), ours.get("settings", NOTHING)
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            flag = FLAGS.get(key, "--" + key.replace("_", "-"))
            was, has = (
                value
                if type(value) is float or key == "context"
                else "the default"
                if value is None
                else "not the default"
                for value in (before.get(key), now.get(key))
            )
            return f"another {flag} (saved: {was}; here: {has}): start the server with the same settings"
    return "" if saved == ours else "something else"


class Identity:
    """`facts` are plain JSON, None until they are known; `fault` says why they can't be computed."""

    def __init__(self, files: Mapping[str, Sequence[Source]] = NOTHING, about: Mapping[str, Any] = NOTHING) -> None:
        """`files` are the files to hash by their names in `facts`; `about` are facts known without reading them."""
        self.facts: dict[str, Any] | None = None
        self.fault = ""
        self._files = files
        self._about = about

    @property
    def is_open(self) -> bool:
        """Whether neither `facts` nor `fault` is known yet."""
        return self.facts is None and not self.fault

    def recall(self) -> bool:
        """Compute the facts if all hashes are in the cache folder. Returns whether they are known."""
        if self.facts is None and not self.fault:
            known = _read_remembered() if self._files else {}
            with contextlib.suppress(KeyError):
                self._conclude({one: known[one.mark] for one in self._list_sources()})
        return self.facts is not None

    def find(self, is_busy: Callable[[], bool] = lambda: False) -> None:
        """Compute the facts, or set `fault`. Files without a kept hash are read, slowly while `is_busy()`."""
        started, known, n_bytes = time.monotonic(), _read_remembered(), 0
        digests: dict[Source, str] = {}
        try:
            for one in self._list_sources():
                digests[one] = known.get(one.mark, "")
                if not digests[one]:
                    digests[one], n = _compute_digest(one, is_busy)
                    n_bytes += n
                    if _mark(one.path, one.offset, one.size) != one.mark:
                        self.fault = f"{Path(one.path).name} has changed since it was loaded"
                        return
                    _remember(one, digests[one])
        except OSError as error:
            self.fault = f"{Path(one.path).name} can't be read: {error.strerror or error}"
            return
        self._conclude(digests)
        log.info(
            "the identity for saved states is known: %d MiB read in %.1f s", n_bytes // MIB, time.monotonic() - started
        )

    def _list_sources(self) -> list[Source]:
        return [one for sources in self._files.values() for one in sources]

    def _conclude(self, digests: Mapping[Source, str]) -> None:
        facts = dict(self._about)
        for name, sources in self._files.items():
            told = [facts[name]] if name in facts else []
            facts[name] = ", ".join((*told, _join_digests([digests[one] for one in sources])))
        self.facts = facts


def _join_digests(digests: Sequence[str]) -> str:
    """One hash of several hashes in order."""
    if not digests:
        return NO_FILES
    import hashlib  # here, because most servers save nothing

    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:32]


def _mark(path: str | os.PathLike[str], offset: int, size: int) -> str:
    """The system's facts about a file; they differ once it has changed. "" if it isn't there."""
    try:
        stat = os.stat(path)
    except OSError:
        return ""
    return "-".join(
        map(str, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, offset, size))
    )


def _compute_digest(one: Source, is_busy: Callable[[], bool]) -> tuple[str, int]:
    """The SHA-256 of a file, and the number of bytes read."""
    import hashlib

    digest, buffer, n = hashlib.sha256(), memoryview(bytearray(READ_BYTES)), 0
    with open(one.path, "rb", buffering=0) as stream:
        stream.seek(one.offset)
        started = time.perf_counter()
        while n_read := stream.readinto(buffer[: min(READ_BYTES, one.size - n)] if one.size else buffer):
            digest.update(buffer[:n_read])
            n += n_read
            if is_busy():
                time.sleep(REST * (time.perf_counter() - started))
            started = time.perf_counter()
    return digest.hexdigest(), n


def _get_memory() -> Path:
    return find_cache_folder(os.environ) / "hashes"


def _read_remembered() -> dict[str, str]:
    """The hashes in the cache folder, by mark."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        lines = _get_memory().read_text("ascii").splitlines()
        return {
            mark: digest for mark, _, digest in (line.partition(" ") for line in lines) if mark and len(digest) == 64
        }
    return {}


def _remember(one: Source, digest: str) -> None:
    """Keep a hash in the cache folder, if that can be written and the file hasn't just changed."""
    with contextlib.suppress(OSError, RuntimeError):
        stat = os.stat(one.path)
        if not stat.st_ino or time.time() - max(stat.st_mtime, stat.st_ctime) < SETTLED_S:
            return
        known = _read_remembered()
        known.pop(one.mark, None)
        lines = [f"{mark} {text}\n" for mark, text in (*known.items(), (one.mark, digest))][-MOST_REMEMBERED:]
        path = _get_memory()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text("".join(lines), "ascii")
        os.replace(temporary, path)
