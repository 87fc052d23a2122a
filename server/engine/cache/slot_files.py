"""Files with a slot's KV state. They get their name only when they are whole, and are checked when they are read.

Engine thread. A file has 8 bytes of magic, the header's length, a JSON header, llama.cpp's state of one sequence, and
the states of its checkpoints. The header has the identity, the adapters, the tokens, the sizes of the states, and a
CRC-32 of header and states. The identity (`model_files.identity`) covers whatever else keys and values depend on. So a
file fits the same model under another name, and no other model.

Where the file system allows it (Linux), a new file is unnamed until it is whole, so a killed engine leaves no partial
file behind.

Not taken: `llama_state_seq_save_file`. It can't tell models of the same shape apart, and leaves half a file on a full
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
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from server.errors import ApiError
from server.model_files.identity import NO_FILES, describe_difference
from server.records import field, record

MAGIC, OLD_MAGIC = b"llsrvkv2", b"llsrvkv1"
HEAD = struct.Struct("<8sQ")
CHECKED = ("identity", "tokens", "lora", "n_state", "checkpoints", "shifted_at")
OLD = (
    "was saved by an earlier version of this program, which didn't store everything that the slot depends on "
    "(adapters, further parts of the model): save it again"
)
MAX_HEADER = 1 << 28  # bytes
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
BINARY = getattr(os, "O_BINARY", 0)


@record
class SavedSlot:
    """The contents of a file."""

    tokens: list[int]
    lora: list[list[float]]
    state: memoryview
    size: int  # of the file, in bytes
    checkpoints: list[tuple[int, memoryview]] = field(default_factory=list)  # (number of tokens, state)
    shifted_at: int | None = None  # as in `Slot`


def write(
    path: Path,
    identity: Mapping[str, Any],
    tokens: list[int],
    lora: list[list[float]],
    state: memoryview,
    is_durable: bool = True,
    checkpoints: Sequence[tuple[int, memoryview]] = (),
    shifted_at: int | None = None,
) -> int:
    """Write the file at `path` and return its size in bytes. ApiError if that fails; `path` is unchanged then.

    `identity` are the facts of an `Identity`. `checkpoints` are (number of tokens, state) pairs. Without `is_durable` a
    power cut may damage the file, which `read` detects.
    """
    n_state = len(state) + sum(len(part) for _, part in checkpoints)
    about = {"identity": dict(identity), "tokens": tokens, "lora": lora, "n_state": n_state}
    if checkpoints:
        about["checkpoints"] = [[n, len(part)] for n, part in checkpoints]
        state = memoryview(b"".join((state, *(part for _, part in checkpoints))))
    if shifted_at is not None:
        about["shifted_at"] = shifted_at
    header = json.dumps({**about, "crc32": _compute_checksum(about, state)}).encode()
    try:
        with _open_new_file(path) as stream:
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
def _open_new_file(path: Path) -> Iterator[BinaryIO]:
    """A stream to write to. When the block ends, `path` has what was written, or is unchanged if the block fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    nameless = _open_nameless(path.parent)
    try:
        with open(temporary, "wb") if nameless is None else open(nameless, "wb") as stream:
            yield stream
            if nameless is not None:
                stream.flush()
                temporary.unlink(missing_ok=True)  # left by an earlier process with the same id
                _name(nameless, temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _open_nameless(folder: Path) -> int | None:
    """The descriptor of a new unnamed file in `folder`; None if there can't be one."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(folder, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o666)
    except OSError:
        return None  # the caller then opens a named file, and meets any lasting error there


def _name(nameless: int, path: Path) -> None:
    """Give an unnamed file the name `path`, or copy it there if that fails."""
    source = f"/proc/self/fd/{nameless}"
    try:
        os.link(source, path, src_dir_fd=nameless)  # any src_dir_fd makes Python follow the link in /proc
    except OSError:
        import shutil  # here, because `shutil` imports the modules for archives

        shutil.copyfile(source, path)


def read(path: Path, identity: Mapping[str, Any]) -> SavedSlot:
    """Read a file. ApiError 400 unless it is an undamaged slot with this identity (the facts of an `Identity`)."""
    with _open(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        header = _read_header(stream, path.name, size)
        if identity.get("mmproj") == NO_FILES and any(token < 0 for token in header["tokens"]):
            raise ApiError(
                400,
                f"{path.name} has images or sound, which need the projector that they were saved with: start the "
                "server with that --mmproj",
            )
        if found := describe_difference(header["identity"], identity):
            raise ApiError(400, f"{path.name} was saved with {found}")
        state = bytearray(header["n_state"])
        if stream.readinto(state) != len(state) or _compute_checksum(header, state) != header["crc32"]:
            raise ApiError(400, f"{path.name} is damaged: its checksum is wrong")
    parts, at = memoryview(state), len(state) - sum(n_bytes for _, n_bytes in header.get("checkpoints", ()))
    saved = SavedSlot(header["tokens"], header["lora"], parts[:at], size, shifted_at=header.get("shifted_at"))
    for n, n_bytes in header.get("checkpoints", ()):
        saved.checkpoints.append((n, parts[at : at + n_bytes]))
        at += n_bytes
    return saved


def read_header(path: Path) -> dict:
    """The header of a file: identity, tokens, lora, n_state, crc32, sometimes checkpoints and shifted_at. ApiError 400
    if it isn't a saved slot."""
    with _open(path) as stream:
        return _read_header(stream, path.name, os.fstat(stream.fileno()).st_size)


def _open(path: Path) -> BufferedReader:
    try:
        return open(os.open(path, os.O_RDONLY | NO_FOLLOW | BINARY), "rb")
    except FileNotFoundError:
        raise ApiError(400, f"there is no saved slot {path.name}") from None
    except OSError as error:
        raise ApiError(400, f"{path.name} can't be read: {error.strerror}") from None


def _compute_checksum(header: dict, state: memoryview | bytearray) -> int:
    about = json.dumps([header[name] for name in CHECKED if name in header])
    return zlib.crc32(state, zlib.crc32(about.encode()))


def _read_header(stream: BinaryIO, name: str, size: int) -> dict:
    head = stream.read(HEAD.size)
    if head[:8] == OLD_MAGIC:
        raise ApiError(400, f"{name} {OLD}")
    if len(head) < HEAD.size or head[:8] != MAGIC:
        raise ApiError(400, f"{name} is not a saved slot")
    n_header = HEAD.unpack(head)[1]
    if n_header > min(MAX_HEADER, size):
        raise ApiError(400, f"{name} is damaged: its header is too long")
    try:
        header = json.loads(stream.read(n_header))
        identity = header["identity"]
        is_sound = (
            isinstance(identity, dict)
            and isinstance(identity.get("settings", {}), dict)
            and type(header.get("shifted_at", 0)) is int
            and header.get("shifted_at", 0) >= 0
            and isinstance(header["lora"], list)
            and isinstance(header["crc32"], int)
            and all(type(token) is int for token in header["tokens"])
            and type(header["n_state"]) is int
            and header["n_state"] == size - HEAD.size - n_header
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
