"""A bundle: one file that holds this program, a model and the options to start it with. Finding and reading it.

A leaf, used at start by `app` on the main thread. The parts lie behind the program, the index behind the parts and a
trailer of fixed size at the very end, so a bundle is found by reading 56 bytes. The model begins at a multiple of
ALIGN: llama.cpp maps it where it lies (`llama_model_load_from_file_ptr`), nothing is unpacked. A side file
(`my-app.bundle` beside `my-app.exe`) is the same without a program, and its model is at its very beginning.

    program | padding | model | padding | mmproj ... | index (JSON) | trailer: magic, index's offset, size, sha256

Not taken: a zip file. Its directory would do as an index, but nothing keeps the next zip program from moving the
model off its alignment."""

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
ALIGN = 65536  # the largest page size of machines that this runs on
SUFFIX = ".bundle"
MAX_INDEX = 1 << 20
MODEL, MMPROJ = "model", "mmproj"
ONE_FILE_START = b"#!/bin/sh\n"
ONE_FILE_SIZE = re.compile(rb"(?m)^head=(\d+) size=(\d+) ")  # in the first lines of build_scripts/one_file.sh


class BundleError(Exception):
    """What is wrong with a bundle, or why one can't be made: one line for the user."""


@record(frozen=True)
class Part:
    """One file in a bundle. `role` is MODEL or MMPROJ, `name` the file's own, offset and size are in bytes."""

    role: str
    name: str
    offset: int
    size: int
    sha256: str


@record(frozen=True)
class Bundle:
    """What the index says. `program_size` is 0 for a side file; `defaults` are (option, text) pairs."""

    path: Path
    program_size: int
    made_by: str
    defaults: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]
    program_sha256: str = ""

    def part(self, role: str) -> Part | None:
        """The part with that role."""
        return next((part for part in self.parts if part.role == role), None)


def find(own_file: Path) -> Bundle | None:
    """The bundle that the program's own file is, or that lies beside it; None if there is none. BundleError."""
    for path in (own_file, side_file(own_file)):
        bundle = read(path)
        if bundle is not None:
            return bundle
    if path.exists():
        raise BundleError(f"{path} is incomplete: get it again")
    return None


def side_file(program: Path) -> Path:
    """Where the side file of a program is: `my-app.bundle` for `my-app` and `my-app.exe`."""
    return program.with_name((program.stem if program.suffix == ".exe" else program.name) + SUFFIX)


def read(path: Path) -> Bundle | None:
    """The bundle in `path`; None where there is no such file, or it is no bundle. BundleError for a damaged one."""
    if not path.is_file():
        return None  # nor is a pipe one, which would have to be waited for
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
                raise BundleError(f"{path} was cut off or changed behind its model: get it again")
            stream.seek(offset)
            data = stream.read(size)
    except OSError:
        return None
    import hashlib  # here, because most models are no bundles

    if hashlib.sha256(data).digest() != digest:
        raise BundleError(f"{path} has a damaged index: get it again")
    return _from_index(path, json.loads(data))


def _refuse_cut_off(path: Path, stream: BinaryIO, end: int) -> None:
    """BundleError for a one-file program with something behind it that isn't a bundle's end."""
    stream.seek(0)
    if stream.read(len(ONE_FILE_START)) == ONE_FILE_START:
        size = program_size(stream.read(4096))
        if size and end > size:
            raise BundleError(f"{path} is incomplete, a part of its model is missing: get it again")


def program_size(start: bytes) -> int:
    """Bytes of the one-file program that begins with `start`; 0 if it is none that says so."""
    found = ONE_FILE_SIZE.search(start)
    return int(found[1]) + int(found[2]) if found else 0


def _from_index(path: Path, index: dict) -> Bundle:
    if index.get("format") != FORMAT:
        raise BundleError(f"{path} was made by a newer version of this program ({index.get('made_by')}): use that one")
    return Bundle(
        path,
        index["program_size"],
        index["made_by"],
        tuple(map(tuple, index["defaults"])),
        tuple(Part(**part) for part in index["parts"]),
        index.get("program_sha256", ""),
    )


def tail_of(bundle: Bundle, offset: int) -> bytes:
    """Index and trailer, which begin at `offset`: the end of the file."""
    from dataclasses import asdict  # here, because nearly all starts come without

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
