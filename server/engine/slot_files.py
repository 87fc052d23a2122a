"""Files that hold a slot's KV state: written whole or not at all, read only if every byte is what was written.

Engine thread. A file is: 8 bytes magic, a header length, a JSON header (model, adapters and tokens it belongs to, size
of the state, CRC-32 of all that and of the state), then llama.cpp's state of one sequence. The model is named by what
the state depends on, so that a renamed model file still fits and another one doesn't.

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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from server.errors import ApiError

MAGIC = b"llsrvkv1"
HEAD = struct.Struct("<8sQ")
CHECKED = ("model", "tokens", "lora", "n_state", "checkpoints")
MAX_HEADER = 1 << 28
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
BINARY = getattr(os, "O_BINARY", 0)


@dataclass(slots=True)
class SavedSlot:
    """What a file holds, and its size in bytes. `checkpoints` are (number of tokens, state) pairs."""

    tokens: list[int]
    lora: list[list[float]]
    state: memoryview
    size: int
    checkpoints: list[tuple[int, memoryview]] = field(default_factory=list)


def write(path: Path, model: str, tokens: list[int], lora: list[list[float]], state: memoryview,
          is_durable: bool = True, checkpoints: Sequence[tuple[int, memoryview]] = ()) -> int:
    """Write the file at `path` through a temporary neighbour; its size in bytes. ApiError names what went wrong.

    `checkpoints` are (number of tokens, state) pairs, written behind the state. Without `is_durable` a power cut may
    damage the file (which is noticed when it is read).
    """
    n_state = len(state) + sum(len(part) for _, part in checkpoints)
    about = {"model": model, "tokens": tokens, "lora": lora, "n_state": n_state}
    if checkpoints:
        about["checkpoints"] = [[n, len(part)] for n, part in checkpoints]
        state = memoryview(b"".join((state, *(part for _, part in checkpoints))))
    header = json.dumps({**about, "crc32": _checksum(about, state)}).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(HEAD.pack(MAGIC, len(header)))
            stream.write(header)
            stream.write(state)
            if is_durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise ApiError(500, f"the slot could not be saved to {path.name}: {reason}") from None
    return HEAD.size + len(header) + len(state)


def read(path: Path, model: str) -> SavedSlot:
    """All of a file. ApiError 400 if it is not a slot of this model."""
    with _open(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        header = _read_header(stream, path.name, size)
        if header["model"] != model:
            raise ApiError(400, f"{path.name} was saved with another model ({header['model']}); this is {model}")
        state = bytearray(header["n_state"])
        if stream.readinto(state) != len(state) or _checksum(header, state) != header["crc32"]:
            raise ApiError(400, f"{path.name} is damaged: it is not what was saved")
    parts, at = memoryview(state), len(state) - sum(n_bytes for _, n_bytes in header.get("checkpoints", ()))
    saved = SavedSlot(header["tokens"], header["lora"], parts[:at], size)
    for n, n_bytes in header.get("checkpoints", ()):
        saved.checkpoints.append((n, parts[at:at + n_bytes]))
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
        is_sound = (isinstance(header["model"], str) and isinstance(header["lora"], list)
                    and isinstance(header["crc32"], int) and all(type(token) is int for token in header["tokens"])
                    and type(header["n_state"]) is int and header["n_state"] == size - HEAD.size - n_header
                    and all(type(n) is int and type(n_bytes) is int and 0 <= n_bytes
                            for n, n_bytes in header.get("checkpoints", ()))
                    and sum(n_bytes for _, n_bytes in header.get("checkpoints", ())) <= header["n_state"])
    except (ValueError, KeyError, TypeError):
        is_sound = False
    if not is_sound:
        raise ApiError(400, f"{name} is damaged or truncated")
    return header
