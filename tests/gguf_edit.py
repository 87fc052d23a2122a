"""Edits the parts of a GGUF file: makes faulty files for tests of readers.

`Parts` has the header's entries as raw bytes, so that each can be changed, dropped or duplicated; nothing is checked.
It supports only what `gguf_writer` writes: version 3, float32 tensors. Way not taken: the server's reader, because that
is what is tested.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from tests.gguf_writer import ALIGNMENT, SCALARS

SIZES = {2: 2, 4: 4, 5: 4, 6: 4, 7: 1}


def text(data: str | bytes) -> bytes:
    """A text as the format has it."""
    data = data.encode() if isinstance(data, str) else data
    return struct.pack("<Q", len(data)) + data


def scalar(kind: str, value: float) -> bytes:
    """Type and value of a number; `kind` is a key of `gguf_writer.SCALARS`."""
    number, code = SCALARS[kind]
    return struct.pack("<I" + code, number, value)


def string(value: str) -> bytes:
    """Type and value of a text."""
    return struct.pack("<I", 8) + text(value)


def texts(values: list[bytes]) -> bytes:
    """Type and value of an array of texts."""
    return struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(text, values))


def numbers(kind: str, values: list[float]) -> bytes:
    """Type and value of an array of numbers."""
    number, code = SCALARS[kind]
    return struct.pack(f"<IIQ{len(values)}{code}", 9, number, len(values), *values)


@dataclass
class Info:
    """A tensor's row in the header."""

    name: bytes
    dims: tuple[int, ...]
    kind: int
    offset: int

    def pack(self) -> bytes:
        """As in the file."""
        return text(self.name) + struct.pack(
            f"<I{len(self.dims)}QIQ", len(self.dims), *self.dims, self.kind, self.offset
        )


@dataclass
class Parts:
    """A file: `pairs` are (key, type and value), `data` what follows the header; `counts` overrides those written."""

    pairs: list[tuple[bytes, bytes]] = field(default_factory=list)
    tensors: list[Info] = field(default_factory=list)
    data: bytes = b""
    head: bytes = b"GGUF\x03\x00\x00\x00"
    n_tensors: int | None = None
    n_pairs: int | None = None
    boundaries: list[int] = field(default_factory=list)

    def set(self, key: str, value: bytes | None) -> Parts:
        """Replace, add or (None) drop an entry."""
        at = next((i for i, (name, _) in enumerate(self.pairs) if name == key.encode()), len(self.pairs))
        self.pairs[at : at + 1] = [(key.encode(), value)] if value is not None else []
        return self

    def get(self, key: str) -> bytes:
        """Type and value of an entry."""
        return dict(self.pairs)[key.encode()]

    def tensor(self, name: str) -> Info:
        """A tensor's row."""
        return next(info for info in self.tensors if info.name == name.encode())

    def drop(self, prefix: str) -> Parts:
        """Leave tensors out, their data too."""
        kept, data = [], b""
        for info in self.tensors:
            if not info.name.startswith(prefix.encode()):
                width = 2 if info.kind == 1 else 4  # f16, else f32: tests write nothing else
                block = self.data[info.offset : info.offset + width * prod(info.dims)]
                info.offset = len(data)
                data += block + b"\0" * (-len(block) % ALIGNMENT)
                kept.append(info)
        self.tensors, self.data = kept, data
        return self

    def pack(self) -> bytes:
        """The file; `boundaries` are then the places where one structure ends and the next begins."""
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_pairs = len(self.pairs) if self.n_pairs is None else self.n_pairs
        out = self.head + struct.pack("<QQ", n_tensors, n_pairs)
        self.boundaries = [4, 8, 16, 24]
        for block in (*(text(key) + value for key, value in self.pairs), *(info.pack() for info in self.tensors)):
            out += block
            self.boundaries.append(len(out))
        return out + b"\0" * (-len(out) % ALIGNMENT) + self.data

    def write(self, path: Path) -> Path:
        """To a file; its path."""
        path.write_bytes(self.pack())
        return path


def take_apart(path: Path) -> Parts:
    """The parts of a file that `gguf_writer` has written."""
    data = path.read_bytes()
    n_tensors, n_pairs = struct.unpack_from("<QQ", data, 8)
    parts, at = Parts(), 24
    for _ in range(n_pairs):
        key, at = _text(data, at)
        end = _value_end(data, at)
        parts.pairs.append((key, data[at:end]))
        at = end
    for _ in range(n_tensors):
        name, at = _text(data, at)
        (n_dims,) = struct.unpack_from("<I", data, at)
        *dims, kind, offset = struct.unpack_from(f"<{n_dims}QIQ", data, at + 4)
        parts.tensors.append(Info(name, tuple(dims), kind, offset))
        at += 4 + 8 * n_dims + 12
    parts.data = data[at + -at % ALIGNMENT :]
    return parts


def split(path: Path, folder: Path, **changes: bytes) -> list[Path]:
    """Two files of a split model: the first has the metadata, the second the last tensors."""
    first, second = take_apart(path), take_apart(path)
    n = len(first.tensors)
    cut = first.tensors[n // 2].offset
    second.pairs, second.tensors = [], second.tensors[n // 2 :]
    second.data, first.data, first.tensors = second.data[cut:], first.data[:cut], first.tensors[: n // 2]
    for info in second.tensors:
        info.offset -= cut
    for no, part in enumerate((first, second)):
        part.set("split.no", struct.pack("<IH", 2, no)).set("split.count", struct.pack("<IH", 2, 2))
        part.set("split.tensors.count", scalar("i32", n))
    for key, value in changes.items():
        second.set(key.replace("__", "."), value)
    return [part.write(folder / f"m-0000{no}-of-00002.gguf") for no, part in enumerate((first, second), 1)]


def _text(data: bytes, at: int) -> tuple[bytes, int]:
    (n,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + n], at + 8 + n


def _value_end(data: bytes, at: int) -> int:
    (kind,) = struct.unpack_from("<I", data, at)
    if kind == 8:
        return _text(data, at + 4)[1]
    if kind != 9:
        return at + 4 + SIZES[kind]
    item, count = struct.unpack_from("<IQ", data, at + 4)
    at += 16
    if item != 8:
        return at + count * SIZES[item]
    for _ in range(count):
        at = _text(data, at)[1]
    return at
