"""Files that hold a slot's KV state: written whole or not at all, read only if every byte is what was written.

Engine thread. A file is: 8 bytes magic, a header length, a JSON header (model, settings, adapters and tokens it belongs
to, size of the state, CRC-32 of all that and of the state), then llama.cpp's state of one sequence. The model is named
by what the state depends on, so that a renamed model file still fits and another one doesn't; so are the settings that
keys and values are computed with.

Where the system has files without a name (Linux) the new file gets its name when it is whole: an engine that is killed
while it writes leaves nothing behind.

Not taken: `llama_state_seq_save_file`, which can't tell models of one shape apart and leaves half a file on a full
disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from server.errors import ApiError
from server.records import record

MAGIC = b"llsrvkv1"
HEAD = struct.Struct("<8sQ")
CHECKED = ("model", "tokens", "lora", "n_state", "checkpoints", "settings")
SHAPING = ("rope_", "yarn_", "type_k", "type_v")  # beginnings of the context's fields that states depend on
FLAGS = {"rope_scaling_type": "--rope-scaling", "type_k": "--cache-type-k", "type_v": "--cache-type-v"}
MAX_HEADER = 1 << 28
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
BINARY = getattr(os, "O_BINARY", 0)


@record
class SavedSlot:
    """What a file holds, and its size in bytes. `checkpoints` are (number of tokens, state) pairs."""

    tokens: list[int]
    lora: list[list[float]]
    state: memoryview
    size: int
    checkpoints: list[tuple[int, memoryview]] = field(default_factory=list)


def write(
    path: Path,
    model: str,
    tokens: list[int],
    lora: list[list[float]],
    state: memoryview,
    is_durable: bool = True,
    checkpoints: Sequence[tuple[int, memoryview]] = (),
    settings: Mapping[str, object] = MappingProxyType({}),
) -> int:
    """Write the file at `path`, whole or not at all; its size in bytes. ApiError names what went wrong.

    `checkpoints` are (number of tokens, state) pairs, written behind the state. Without `is_durable` a power cut may
    damage the file (which is noticed when it is read). `settings` are those of `settings_of`.
    """
    n_state = len(state) + sum(len(part) for _, part in checkpoints)
    about = {"model": model, "tokens": tokens, "lora": lora, "n_state": n_state}
    if checkpoints:
        about["checkpoints"] = [[n, len(part)] for n, part in checkpoints]
        state = memoryview(b"".join((state, *(part for _, part in checkpoints))))
    if settings:
        about["settings"] = dict(settings)
    header = json.dumps({**about, "crc32": _checksum(about, state)}).encode()
    try:
        with _new_file(path) as stream:
            stream.write(HEAD.pack(MAGIC, len(header)))
            stream.write(header)
            stream.write(state)
            if is_durable:
                stream.flush()
                os.fsync(stream.fileno())
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise ApiError(500, f"the slot could not be saved to {path.name}: {reason}") from None
    return HEAD.size + len(header) + len(state)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A stream; at the end of the block the file at `path` is what was written to it, or as it was if that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    nameless = _nameless(path.parent)
    try:
        with open(temporary, "wb") if nameless is None else open(nameless, "wb") as stream:
            yield stream
            if nameless is not None:
                stream.flush()
                temporary.unlink(missing_ok=True)  # of a process with our number that is long gone
                _name(nameless, temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _nameless(folder: Path) -> int | None:
    """The descriptor of a new file without a name in `folder`; None where there is no such thing."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(folder, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o666)
    except OSError:
        return None  # not every file system knows them; what is really wrong shows with a named one


def _name(nameless: int, path: Path) -> None:
    """Give a nameless file its name; a copy of it where links are not allowed."""
    source = f"/proc/self/fd/{nameless}"
    try:
        os.link(source, path, src_dir_fd=nameless)  # the folder doesn't matter, but only so Python follows the link
    except OSError:
        import shutil  # here, because it brings archives along

        shutil.copyfile(source, path)


def settings_of(context_params: Mapping[str, object], model_params: Mapping[str, object]) -> dict[str, object]:
    """What the user has set of what keys and values depend on, as plain JSON. By fields of llama.cpp's structs."""
    found = {name: value for name, value in context_params.items() if name.startswith(SHAPING)}
    if model_params.get("kv_overrides"):
        found["override_kv"] = repr(sorted(map(repr, model_params["kv_overrides"])))
    return dict(sorted(found.items()))


def _check_settings(name: str, saved: Mapping[str, object], ours: Mapping[str, object]) -> None:
    """ApiError 400 naming the first setting that differs."""
    for key in sorted({*saved, *ours}):
        if saved.get(key) != ours.get(key):
            flag = FLAGS.get(key, "--" + key.replace("_", "-"))
            was, has = [
                value if type(value) is float else "the default" if value is None else "one of its own"
                for value in (saved.get(key), ours.get(key))
            ]
            raise ApiError(
                400,
                f"{name} was saved with another {flag} ({was}; here {has}): start the server with the same settings",
            )


def read(path: Path, model: str, settings: Mapping[str, object] = MappingProxyType({})) -> SavedSlot:
    """All of a file. ApiError 400 if it is not a slot of this model with these settings (see `settings_of`)."""
    with _open(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        header = _read_header(stream, path.name, size)
        if header["model"] != model:
            raise ApiError(400, f"{path.name} was saved with another model ({header['model']}); this is {model}")
        _check_settings(path.name, header.get("settings", {}), settings)
        state = bytearray(header["n_state"])
        if stream.readinto(state) != len(state) or _checksum(header, state) != header["crc32"]:
            raise ApiError(400, f"{path.name} is damaged: it is not what was saved")
    parts, at = memoryview(state), len(state) - sum(n_bytes for _, n_bytes in header.get("checkpoints", ()))
    saved = SavedSlot(header["tokens"], header["lora"], parts[:at], size)
    for n, n_bytes in header.get("checkpoints", ()):
        saved.checkpoints.append((n, parts[at : at + n_bytes]))
        at += n_bytes
    return saved


def read_header(path: Path) -> dict:
    """What the file says of itself (model, tokens, lora, n_state, crc32), its state unread. ApiError 400 if it is
    none."""
    with _open(path) as stream:
        return _read_header(stream, path.name, os.fstat(stream.fileno()).st_size)


def _open(path: Path) -> BinaryIO:
    try:
        return open(os.open(path, os.O_RDONLY | NO_FOLLOW | BINARY), "rb")
    except FileNotFoundError:
        raise ApiError(400, f"there is no saved slot {path.name}") from None
    except OSError as error:
        raise ApiError(400, f"{path.name} can't be read: {error.strerror}") from None


def _checksum(header: dict, state: memoryview | bytearray) -> int:
    """Over the header's other fields too: a token that was changed would give texts that nobody asked for."""
    about = json.dumps([header[name] for name in CHECKED if name in header])
    return zlib.crc32(state, zlib.crc32(about.encode()))


def _read_header(stream, name: str, size: int) -> dict:
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size or head[:8] != MAGIC:
        raise ApiError(400, f"{name} is not a saved slot")
    n_header = HEAD.unpack(head)[1]
    if n_header > min(MAX_HEADER, size):
        raise ApiError(400, f"{name} is damaged: its header is too long")
    try:
        header = json.loads(stream.read(n_header))
        is_sound = (
            isinstance(header["model"], str)
            and isinstance(header["lora"], list)
            and isinstance(header["crc32"], int)
            and all(type(token) is int for token in header["tokens"])
            and type(header["n_state"]) is int
            and header["n_state"] == size - HEAD.size - n_header
            and isinstance(header.get("settings", {}), dict)
            and all(
                type(n) is int and type(n_bytes) is int and 0 <= n_bytes for n, n_bytes in header.get("checkpoints", ())
            )
            and sum(n_bytes for _, n_bytes in header.get("checkpoints", ())) <= header["n_state"]
        )
    except (ValueError, KeyError, TypeError):
        is_sound = False
    if not is_sound:
        raise ApiError(400, f"{name} is damaged or truncated")
    return header
