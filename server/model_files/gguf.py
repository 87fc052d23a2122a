"""Reads and checks the header of a GGUF file.

Imports the standard library, `tensor_types` and `server.records`. The web process runs it before libllama reads the
file, the engine only for a few models.

It doesn't read the tensors' data. It skips long arrays of numbers, and arrays of texts that the caller doesn't keep (a
vocabulary has up to half a million texts). It checks counts, lengths, types, offsets and alignment, compares sizes with
the file's size, and refuses duplicate names. A fault raises `GgufError`.

Layout, little endian, after https://github.com/ggml-org/ggml/blob/master/docs/gguf.md:
    "GGUF", u32 version, u64 tensors, u64 pairs
    pairs:   text key, u32 type, value              text = u64 length, bytes; array = u32 type, u64 count, items
    tensors: text name, u32 n_dims, u64 dims, u32 type, u64 offset from the start of the data
    padding to the alignment, then the data of each tensor, each padded likewise

Not taken: mapping the file. A file that shrinks while it is mapped ends the process with a signal.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Container
from math import prod
from pathlib import Path
from typing import Any, overload

from server.model_files.tensor_types import TYPES
from server.records import field, record

__all__ = ["Array", "Gguf", "GgufError", "Tensor", "TYPES", "make_printable", "read", "read_all"]

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_NAME, MAX_KEY = 64, 65535  # bytes of a tensor's name with a final NUL, and of a key
MAX_ALIGNMENT = 1 << 20  # bytes
SMALL_ARRAY = 2048  # items: longer arrays of numbers are skipped
CHUNK = 1 << 20  # bytes read at once
TEXT, ARRAY = 8, 9
SPLIT_NAME = re.compile(r"(?P<prefix>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf")
INCOMPLETE = "the file is truncated or its download incomplete"
CONVERT = "convert the model with llama.cpp's convert_hf_to_gguf.py, or get it as GGUF"
OTHER_FILES = (
    (rb"$", "it is empty; download it again"),
    (rb"version ", "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (rb"(?i)<!doctype|<html", "it is a web page; download the file itself"),
    (rb"(?s).{8}\{", f"it is a safetensors file; {CONVERT}"),
    (rb"PK\x03\x04|\x80\x02", f"it is a PyTorch file or an archive; {CONVERT}"),
    (rb"lmgg|fmgg|tjgg|algg", "its format is older than GGUF; get the model as GGUF"),
)
"""Files that users mistake for a model: (pattern of the beginning, explanation)."""

# type of a value -> struct code; texts and arrays are handled separately
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class GgufError(ValueError):
    """A fault in a file. One line with the file, the fault and its place."""

    def __init__(self, message: str) -> None:
        super().__init__(make_printable(message))


def make_printable(text: str) -> str:
    """The text, which may quote a file, with control characters escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


@record(frozen=True)
class Array:
    """An array of texts, or a long one of numbers. Items were skipped, except texts that `read` had to keep."""

    kind: int  # the type of its items: a key of `SCALARS`, or `TEXT`
    count: int  # items
    texts: frozenset[bytes] = frozenset()  # the items, if they were kept
    repeated: bytes = b""  # a non-empty text that occurs twice among the kept items


@record(frozen=True)
class Tensor:
    name: str
    dims: tuple[int, ...]  # innermost first
    kind: int  # a key of `TYPES`
    offset: int  # bytes from the start of the data
    n_bytes: int  # without padding


@record
class Gguf:
    """The header of one file."""

    path: str
    size: int  # bytes of the file
    version: int = 3
    metadata: dict[str, Any] = field(default_factory=dict)  # short arrays of numbers as tuples, others as `Array`
    tensors: dict[str, Tensor] = field(default_factory=dict)
    alignment: int = DEFAULT_ALIGNMENT  # bytes
    data_start: int = 0  # the byte at which the tensors' data begins

    def get_text(self, key: str, default: str = "") -> str:
        """The text at `key`; `default` if there is none. GgufError if it is something else."""
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise GgufError(f"{self.path}: {key} is not a text")
        return value

    @overload
    def number(self, key: str, default: int) -> int: ...
    @overload
    def number(self, key: str, default: None = None) -> int | None: ...
    def number(self, key: str, default: int | None = None) -> int | None:
        """The integer at `key`; `default` if there is none. GgufError if it is something else."""
        value = self.metadata.get(key, default)
        if value is not default and (not isinstance(value, int) or isinstance(value, bool)):
            raise GgufError(f"{self.path}: {key} is not an integer")
        return value


def read(path: str | os.PathLike, keep: Container[str] = (), span: tuple[int, int] = (0, 0)) -> Gguf:
    """Read and check the header of one file. GgufError for a fault, OSError as `open` raises it.

    `keep` has the keys of arrays of texts whose items are to be kept. `span` is the offset and size of a GGUF file in a
    larger file; size 0: to the end.
    """
    with open(path, "rb") as stream:
        size = span[1] or os.fstat(stream.fileno()).st_size - span[0]
        stream.seek(span[0])
        gguf = Gguf(str(path), size)
        source = _Source(stream, str(path), size, span[0])
        n_tensors, n_pairs = _read_head(gguf, source)
        for i in range(n_pairs):
            _read_pair(gguf, source, i, keep)
        gguf.alignment = _read_alignment(gguf)
        for i in range(n_tensors):
            _read_tensor(gguf, source, i)
        gguf.data_start = -(-source.position // gguf.alignment) * gguf.alignment
    _check_offsets(gguf)
    return gguf


def read_all(path: str | os.PathLike, keep: Container[str] = (), span: tuple[int, int] = (0, 0)) -> list[Gguf]:
    """The headers of a file and, if it is the first of a split model, of all parts. GgufError if a part is missing or
    the file is a later part."""
    first = read(path, keep, span)
    count = first.number("split.count", 0)
    if count <= 1:
        return [first]
    found = SPLIT_NAME.fullmatch(Path(path).name)
    if first.number("split.no", 0) != 0:
        name = f"{found['prefix']}-00001-of-{count:05}.gguf" if found else "the one with 00001 in its name"
        raise GgufError(
            f"{path} is part {first.number('split.no', 0) + 1} of {count} of a model: use the first part, {name}"
        )
    if not found or int(found["no"]) != 1 or int(found["count"]) != count:
        raise GgufError(f"{path} is the first of {count} parts; its name has to end in -00001-of-{count:05}.gguf")
    names = [f"{found['prefix']}-{no:05}-of-{count:05}.gguf" for no in range(2, count + 1)]
    return [first, *_read_other_parts(first, [Path(path).with_name(name) for name in names], count)]


def _read_other_parts(first: Gguf, paths: list[Path], count: int) -> list[Gguf]:
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise GgufError(
            f"{first.path} is the first of {count} parts, and {missing[0]}{more} isn't there: "
            "put all parts into one folder"
        )
    parts = []
    names = set(first.tensors)
    for no, path in enumerate(paths, 1):
        part = read(path)
        if part.number("split.no") != no:
            raise GgufError(f"{path} has the header of part {part.number('split.no', -1) + 1}, not {no + 1}")
        for name in part.tensors:
            if name in names:
                raise GgufError(f"{path}: tensor {name} is in another part, too")
        names.update(part.tensors)
        parts.append(part)
    wanted = first.number("split.tensors.count", len(names))
    if wanted != len(names):
        raise GgufError(f"{first.path}: its parts should have {wanted} tensors, but have {len(names)}")
    return parts


class _Source:
    """Reads the file's bytes in order, in chunks. `position` is that of the next byte, counted from `origin`."""

    def __init__(self, stream: Any, path: str, size: int, origin: int = 0) -> None:
        self._stream, self._path, self._size, self._origin = stream, path, size, origin
        self._data, self._at, self._base = b"", 0, 0

    @property
    def position(self) -> int:
        return self._base + self._at

    @property
    def rest(self) -> int:
        """Bytes from here to the end of the file."""
        return self._size - self.position

    def fail(self, what: str) -> GgufError:
        return GgufError(f"{self._path}: {what}")

    def _require_bytes(self, n: int, what: str) -> None:
        """Make sure that `n` bytes are in the buffer. GgufError if the file ends before."""
        if n > self.rest:
            raise self.fail(
                f"{what} needs {n} bytes at byte {self.position}, but the file ends at byte {self._size}: {INCOMPLETE}"
            )
        missing = n - (len(self._data) - self._at)
        if missing > 0:
            self._data, self._base, self._at = self._data[self._at :], self.position, 0
            self._data += self._stream.read(max(missing, CHUNK))
            if len(self._data) < n:
                raise self.fail(f"{what} at byte {self.position} can't be read: the file has become shorter")

    def unpack(self, code: str, what: str) -> tuple:
        n = struct.calcsize("<" + code)
        self._require_bytes(n, what)
        values = struct.unpack_from("<" + code, self._data, self._at)
        self._at += n
        return values

    def skip(self, n: int, what: str) -> None:
        if n > self.rest or n <= len(self._data) - self._at:
            self._require_bytes(n, what)
            self._at += n
        else:
            self._base = self.position + n
            self._data, self._at = b"", 0
            self._stream.seek(self._origin + self._base)

    def read_text(self, what: str, longest: int) -> str:
        """Read a text of at most `longest` bytes; invalid UTF-8 is replaced."""
        (n,) = self.unpack("Q", f"the length of {what}")
        if n > longest:
            raise self.fail(
                f"{what} at byte {self.position} would be {n} bytes long, but at most {longest} are possible"
            )
        self._require_bytes(n, what)
        self._at += n
        return self._data[self._at - n : self._at].decode("utf-8", "replace")

    def skip_texts(self, count: int, what: str, is_kept: bool) -> tuple[frozenset[bytes], bytes]:
        """Skip `count` texts. Returns the set of the texts, and one that occurs twice; both are empty unless `is_kept`.

        Written for speed: reading a header spends most of its time here.
        """
        kept: list[bytes] = []
        unpack = struct.Struct("<Q").unpack_from
        data, at = self._data, self._at
        for _ in range(count):
            if at + 8 > len(data) or (end := at + 8 + unpack(data, at)[0]) > len(data):
                self._at = at
                self._require_bytes(8, what)
                self._require_bytes(8 + unpack(self._data, self._at)[0], what)
                data, at = self._data, self._at
                end = at + 8 + unpack(data, at)[0]
            if is_kept:
                kept.append(data[at + 8 : end])
            at = end
        self._at = at
        different = frozenset(kept)
        return different, _find_repeated(kept) if len(different) < len(kept) else b""


def _find_repeated(texts: list[bytes]) -> bytes:
    """A text that occurs more than once; empty ones don't count."""
    seen: set[bytes] = {b""}
    for text in texts:
        if text in seen and text:
            return text
        seen.add(text)
    return b""


def _hint(source: _Source, magic: bytes) -> str:
    """What the file seems to be, and what to do about it; "" if unknown."""
    beginning = magic + bytes(source.unpack(f"{min(source.rest, 8)}B", "the header"))
    return next((f": {words}" for start, words in OTHER_FILES if re.match(start, beginning)), "")


def _read_head(gguf: Gguf, source: _Source) -> tuple[int, int]:
    """Read magic, version and counts. Returns the numbers of tensors and metadata entries."""
    magic = bytes(source.unpack(f"{min(source.rest, 4)}B", "the header"))
    if magic != MAGIC:
        raise source.fail(f"is not a GGUF file (it begins with {magic!r}){_hint(source, magic)}")
    (gguf.version,) = source.unpack("I", "the version")
    if gguf.version & 0xFFFF == 0 and gguf.version:
        raise source.fail("is a big-endian GGUF file; convert it with llama.cpp's gguf_convert_endian.py")
    if gguf.version not in (2, 3):
        old = "; convert the model again with a current llama.cpp" if gguf.version < 2 else ""
        raise source.fail(f"is GGUF version {gguf.version}; this server reads versions 2 and 3{old}")
    n_tensors, n_pairs = source.unpack("QQ", "the header")
    for n, what, least in ((n_pairs, "metadata entries", 13), (n_tensors, "tensors", 24)):
        if n * least > source.rest:
            raise source.fail(f"claims {n} {what}, more than its {gguf.size} bytes can hold: {INCOMPLETE}")
    return n_tensors, n_pairs


def _read_pair(gguf: Gguf, source: _Source, i: int, keep: Container[str]) -> None:
    at = source.position
    key = source.read_text(f"the key of metadata entry {i}", MAX_KEY)
    if not key:
        raise source.fail(f"metadata entry {i} at byte {at} has an empty key")
    if key in gguf.metadata:
        raise source.fail(f"the metadata entry {key!r} occurs twice, again at byte {at}")
    what = f"the value of {key!r}"
    (kind,) = source.unpack("I", what)
    if kind == TEXT:
        gguf.metadata[key] = source.read_text(what, source.rest)
    elif kind == ARRAY:
        gguf.metadata[key] = _read_array(source, key, what, keep)
    elif kind in SCALARS:
        (gguf.metadata[key],) = source.unpack(SCALARS[kind], what)
    else:
        raise source.fail(f"{what} has the unknown type {kind} at byte {source.position - 4}")


def _read_array(source: _Source, key: str, what: str, keep: Container[str]) -> Array | tuple:
    kind, count = source.unpack("IQ", what)
    least = 8 if kind == TEXT else struct.calcsize("<" + SCALARS.get(kind, "B"))
    if kind != TEXT and kind not in SCALARS:
        of = "arrays" if kind == ARRAY else f"the unknown type {kind}"
        raise source.fail(f"{what} is an array of {of}, at byte {source.position - 12}")
    if count * least > source.rest:
        raise source.fail(f"{what} claims {count} items, more than the {source.rest} bytes left can hold: {INCOMPLETE}")
    if kind == TEXT:
        return Array(kind, count, *source.skip_texts(count, what, key in keep))
    if count <= SMALL_ARRAY:
        return source.unpack(f"{count}{SCALARS[kind]}", what)
    source.skip(count * least, what)
    return Array(kind, count)


def _read_alignment(gguf: Gguf) -> int:
    value = gguf.number("general.alignment", DEFAULT_ALIGNMENT)
    if not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise GgufError(f"{gguf.path}: general.alignment {value} is not a power of two up to {MAX_ALIGNMENT}")
    return value


def _read_tensor(gguf: Gguf, source: _Source, i: int) -> None:
    at = source.position
    name = source.read_text(f"the name of tensor {i}", MAX_NAME - 1)
    if not name or name in gguf.tensors:
        raise source.fail(f"tensor {i} at byte {at} has " + (f"the name of another, {name}" if name else "no name"))
    what = f"tensor {name}"
    (n_dims,) = source.unpack("I", what)
    if not 1 <= n_dims <= MAX_DIMS:
        raise source.fail(f"{what} has {n_dims} dimensions at byte {source.position - 4}")
    *dims, kind, offset = source.unpack(f"{n_dims}QIQ", what)
    if kind not in TYPES:
        raise source.fail(f"{what} has the type {kind}, which llama.cpp doesn't support")
    type_name, block, n_block_bytes = TYPES[kind]
    n_elements = prod(dims)
    if not 0 < n_elements < 2**63 or max(dims) >= 2**63:
        raise source.fail(f"{what} has the impossible shape {'x'.join(map(str, dims))}")
    if dims[0] % block:
        raise source.fail(f"{what} has rows of {dims[0]} elements, but {type_name} needs a multiple of {block}")
    gguf.tensors[name] = Tensor(name, tuple(dims), kind, offset, n_elements // block * n_block_bytes)


def _check_offsets(gguf: Gguf) -> None:
    """Check that all tensors are within the file, with only padding between them, as libllama requires."""
    expected = 0
    for tensor in gguf.tensors.values():
        if tensor.offset != expected:
            raise GgufError(
                f"{gguf.path}: tensor {tensor.name} should begin at byte {gguf.data_start + expected}, but the header "
                f"says {gguf.data_start + tensor.offset}"
            )
        end = gguf.data_start + expected + tensor.n_bytes
        if end > gguf.size:
            raise GgufError(
                f"{gguf.path}: tensor {tensor.name} ends at byte {end}, but the file has {gguf.size} bytes: the "
                "download is incomplete"
            )
        expected += -(-tensor.n_bytes // gguf.alignment) * gguf.alignment
