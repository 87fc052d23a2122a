"""Finds and reads bundles. A bundle is one file with this program, a model and default options.

Used by `launch` on the main thread, and where a model is loaded. A file that ends with the trailer of 56 bytes is a
bundle. The model's offset is a multiple of ALIGN, so that llama.cpp can map it in place
(`llama_model_load_from_file_ptr`). A side file (`my-app.bundle` next to `my-app.exe`) is a bundle without a program.

    program | padding | model | padding | mmproj ... | index (JSON) | trailer: magic, index's offset, size, sha256

Way not taken: a zip file. A zip program could rewrite it and change the model's alignment.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import BinaryIO

from server.records import record

MAGIC = b"LLSRVBDL"
TRAILER = struct.Struct("<8sQQ32s")
FORMAT = 1
ALIGN = 65536  # bytes: the largest page size of supported machines
SUFFIX = ".bundle"
MAX_INDEX = 1 << 20  # bytes
MODEL, MMPROJ = "model", "mmproj"
ONE_FILE_START = b"#!/bin/sh\n"
ONE_FILE_SIZE = re.compile(rb"(?m)^head=(\d+) size=(\d+) ")  # from the first lines of build_scripts/one_file.sh


class BundleError(Exception):
    """A bundle is damaged or can't be made. The text is one line for the user."""


@record(frozen=True)
class Part:
    """One file in a bundle. `role` is MODEL or MMPROJ; offset and size are in bytes."""

    role: str
    name: str
    offset: int
    size: int
    sha256: str


@record(frozen=True)
class Bundle:
    """The index of a bundle. `program_size` is 0 for a side file; `defaults` are (option, text) pairs."""

    path: Path
    program_size: int
    made_by: str
    defaults: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]
    program_sha256: str = ""

    def find_part(self, role: str) -> Part | None:
        return next((part for part in self.parts if part.role == role), None)


def find(own_file: Path) -> Bundle | None:
    """The bundle in the program's own file, else its side file; None without one. BundleError if it is damaged."""
    for path in (own_file, get_side_file(own_file)):
        bundle = read(path)
        if bundle is not None:
            return bundle
    if path.exists():
        raise BundleError(f"{path} is incomplete: download it again")
    return None


def get_side_file(program: Path) -> Path:
    """The path of a program's side file: `my-app.bundle` for `my-app` and `my-app.exe`."""
    return program.with_name((program.stem if program.suffix == ".exe" else program.name) + SUFFIX)


def read(path: Path) -> Bundle | None:
    """The bundle in `path`; None if that can't be read or isn't a bundle. BundleError if it is damaged."""
    if not path.is_file():
        return None  # this also skips pipes, which would block
    try:
        with open(path, "rb") as stream:
            end = stream.seek(0, 2)
            stream.seek(max(end - TRAILER.size, 0))
            tail = stream.read(TRAILER.size)
            if len(tail) < TRAILER.size or not tail.startswith(MAGIC):
                _refuse_cut_off(path, stream, end)
                return None
            _, offset, size, digest = TRAILER.unpack(tail)
            if size > MAX_INDEX or offset + size + TRAILER.size != end:
                raise BundleError(f"{path} was cut off or changed after its model: download it again")
            stream.seek(offset)
            data = stream.read(size)
    except OSError:
        return None
    import hashlib  # imported here: most models are not bundles

    if hashlib.sha256(data).digest() != digest:
        raise BundleError(f"{path} has a damaged index: download it again")
    return _from_index(path, json.loads(data))


def _refuse_cut_off(path: Path, stream: BinaryIO, end: int) -> None:
    """BundleError if data follows a one-file program but isn't a complete bundle."""
    stream.seek(0)
    if stream.read(len(ONE_FILE_START)) == ONE_FILE_START:
        size = read_program_size(stream.read(4096))
        if size and end > size:
            raise BundleError(f"{path} is incomplete, a part of its model is missing: download it again")


def read_program_size(start: bytes) -> int:
    """The size in bytes that the one-file program beginning with `start` states; 0 if it states none."""
    found = ONE_FILE_SIZE.search(start)
    return int(found[1]) + int(found[2]) if found else 0


def _from_index(path: Path, index: dict) -> Bundle:
    if index.get("format") != FORMAT:
        raise BundleError(f"{path} needs a newer version of this program ({index.get('made_by')})")
    return Bundle(
        path,
        index["program_size"],
        index["made_by"],
        tuple(map(tuple, index["defaults"])),
        tuple(Part(**part) for part in index["parts"]),
        index.get("program_sha256", ""),
    )


def tail_of(bundle: Bundle, offset: int) -> bytes:
    """Index and trailer as the end of a file; the index begins at `offset`."""
    from dataclasses import asdict  # imported here: few starts need it

    index = {
        "format": FORMAT,
        "made_by": bundle.made_by,
        "program_size": bundle.program_size,
        "program_sha256": bundle.program_sha256,
        "defaults": bundle.defaults,
        "parts": [asdict(part) for part in bundle.parts],
    }
    data = json.dumps(index).encode()
    import hashlib

    return data + TRAILER.pack(MAGIC, offset, len(data), hashlib.sha256(data).digest())
