"""A first look at the model file, before a server is started for it. Pure Python, no library."""

from __future__ import annotations

import struct
from pathlib import Path

from server.errors import ApiError

MAGIC = b"GGUF"
HEADER = struct.Struct("<4sIQQ")
VERSIONS = (2, 3)


def check_model_file(path: str) -> None:
    """ApiError with one line for the user unless `path` looks like a GGUF file that can be read."""
    file = Path(path)
    if not file.exists():
        raise ApiError(400, f"there is no model file {path}; -m takes the path of a .gguf file")
    if file.is_dir():
        raise ApiError(400, f"{path} is a folder; -m takes the path of a .gguf file")
    try:
        with open(file, "rb") as stream:
            head = stream.read(HEADER.size)
    except OSError as error:
        raise ApiError(400, f"{path} can't be read: {error.strerror}") from None
    if head[:4] != MAGIC:
        raise ApiError(400, f"{path} is not a GGUF file (it begins with {head[:4]!r})")
    if len(head) < HEADER.size:
        raise ApiError(400, f"{path} is truncated: {len(head)} bytes are less than a GGUF header")
    version = HEADER.unpack(head)[1]
    if version not in VERSIONS:
        raise ApiError(400, f"{path} is GGUF version {version}; this server reads versions 2 and 3 in little-endian")
