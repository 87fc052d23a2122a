"""Writes GGUF version 3 files with the standard library only.

Tests make their own models (see `tiny_models.py`), so they need no download and no numpy. A `GgufFile` collects
metadata and tensors in memory and writes them at once; the same calls give the same bytes on every machine. It supports
only what the recipes need: no quantised tensor types, no nested arrays, no reading. Way not taken: the `gguf` package,
which needs numpy, and chooses names and defaults that a test wants to choose.

Layout of the container, all little endian:
    "GGUF", u32 version, u64 tensors, u64 pairs
    pairs:   string key, u32 type, value            (string = u64 length, UTF-8 bytes)
    tensors: string name, u32 n_dims, u64 dims, u32 type, u64 offset from the start of the data
    padding to 32, then the data of each tensor, each padded to 32
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path

ALIGNMENT = 32
TENSOR_TYPES = {"f32": 0, "f16": 1}
STRING, ARRAY = 8, 9

# name used by the recipes -> (type number in the file, struct code of one value)
SCALARS = {"u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "?")}


def _padding(n_bytes: int) -> bytes:
    return b"\0" * (-n_bytes % ALIGNMENT)


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


class GgufFile:
    """One GGUF file in the making: `string`, `scalar`, `array` add metadata, `tensor` adds weights."""

    def __init__(self, architecture: str, name: str) -> None:
        self._pairs: dict[str, bytes] = {}
        self._tensors: dict[str, tuple[tuple[int, ...], int, bytes]] = {}
        self.string("general.architecture", architecture)
        self.string("general.name", name)

    def string(self, key: str, text: str) -> None:
        """Metadata: one string."""
        self._pairs[key] = struct.pack("<I", STRING) + _string(text)

    def scalar(self, key: str, kind: str, value: float) -> None:
        """Metadata: one number or truth value; `kind` is a key of `SCALARS`."""
        number, code = SCALARS[kind]
        self._pairs[key] = struct.pack("<I" + code, number, value)

    def scalars(self, prefix: str, kind: str, **values: float) -> None:
        """Several scalars of one kind; `a__b=1` becomes the key `<prefix>a.b`."""
        for key, value in values.items():
            self.scalar(prefix + key.replace("__", "."), kind, value)

    def strings(self, key: str, texts: Sequence[str]) -> None:
        """Metadata: an array of strings."""
        self._pairs[key] = struct.pack("<IIQ", ARRAY, STRING, len(texts)) + b"".join(map(_string, texts))

    def array(self, key: str, kind: str, values: Sequence[float]) -> None:
        """Metadata: an array of numbers; `kind` is a key of `SCALARS`."""
        number, code = SCALARS[kind]
        self._pairs[key] = struct.pack(f"<IIQ{len(values)}{code}", ARRAY, number, len(values), *values)

    def tensor(self, name: str, dims: Sequence[int], values: Iterable[float]) -> None:
        """A float32 tensor; `dims` innermost first, so a matrix that maps n_in to n_out has dims (n_in,
        n_out) and its values are n_out rows of n_in."""
        numbers = array("f", values)
        if len(numbers) != prod(dims):
            raise ValueError(f"{name}: {len(numbers)} values for dims {tuple(dims)}")
        if sys.byteorder == "big":
            numbers.byteswap()
        self.raw(name, dims, "f32", numbers.tobytes())

    def raw(self, name: str, dims: Sequence[int], kind: str, data: bytes) -> None:
        """A tensor of a kind of `TENSOR_TYPES`, as little-endian bytes."""
        if name in self._tensors:
            raise ValueError(f"{name}: given twice")
        self._tensors[name] = (tuple(dims), TENSOR_TYPES[kind], data)

    def to_bytes(self) -> bytes:
        """The whole file."""
        head = [b"GGUF", struct.pack("<IQQ", 3, len(self._tensors), len(self._pairs))]
        head += [_string(key) + value for key, value in self._pairs.items()]
        data: list[bytes] = []
        offset = 0
        for name, (dims, kind, values) in self._tensors.items():
            head.append(_string(name))
            head.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset))
            block = values + _padding(len(values))
            data.append(block)
            offset += len(block)
        front = b"".join(head)
        return front + _padding(len(front)) + b"".join(data)

    def write(self, path: Path) -> Path:
        """Write the file and return its path."""
        path.write_bytes(self.to_bytes())
        return path
