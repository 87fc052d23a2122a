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
from pathlib import Path

from server.errors import ApiError

MAGIC = b"llsrvkv1"
HEAD = struct.Struct("<8sQ")
MAX_HEADER = 1 << 28
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
BINARY = getattr(os, "O_BINARY", 0)


def write(path: Path, model: str, tokens: list[int], lora: list[list[float]], state: memoryview) -> int:
    """Write the file at `path` through a temporary neighbour; its size in bytes. ApiError names what went wrong."""
    about = {"model": model, "tokens": tokens, "lora": lora, "n_state": len(state)}
    header = json.dumps({**about, "crc32": _checksum(about, state)}).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(HEAD.pack(MAGIC, len(header)))
            stream.write(header)
            stream.write(state)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise ApiError(500, f"the slot could not be saved to {path.name}: {reason}") from None
    return HEAD.size + len(header) + len(state)


def read(path: Path, model: str) -> tuple[list[int], list[list[float]], bytearray, int]:
    """Tokens, LoRA setting, state and file size. ApiError 400 for a file that is not a slot of this model."""
    try:
        descriptor = os.open(path, os.O_RDONLY | NO_FOLLOW | BINARY)
    except FileNotFoundError:
        raise ApiError(400, f"there is no saved slot {path.name}") from None
    except OSError as error:
        raise ApiError(400, f"{path.name} can't be read: {error.strerror}") from None
    with open(descriptor, "rb") as stream:
        size = os.fstat(descriptor).st_size
        header = _read_header(stream, path.name, size)
        if header["model"] != model:
            raise ApiError(400, f"{path.name} was saved with another model ({header['model']}); this is {model}")
        state = bytearray(header["n_state"])
        if stream.readinto(state) != len(state) or _checksum(header, state) != header["crc32"]:
            raise ApiError(400, f"{path.name} is damaged: it is not what was saved")
    return header["tokens"], header["lora"], state, size


def _checksum(header: dict, state: memoryview | bytearray) -> int:
    """Over the header's other fields too: a token that was changed would give texts that nobody asked for."""
    about = json.dumps([header[name] for name in ("model", "tokens", "lora", "n_state")])
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
                    and type(header["n_state"]) is int and header["n_state"] == size - HEAD.size - n_header)
    except (ValueError, KeyError, TypeError):
        is_sound = False
    if not is_sound:
        raise ApiError(400, f"{name} is damaged or truncated")
    return header
