"""Lowers the glibc version that a library requires, where a function's old version is equivalent.

Called by build_exe on its main thread, on Linux; imports the standard library. glibc gives a function a new version
when its behaviour changes, and programs require the version that they were built with. `hypot` of glibc 2.35 differs
from that of 2.2.5 only in not calling `matherr`, a hook that programs can no longer install. Python's library requires
nothing else from glibc 2.35. This module changes the requirement to the older version.

The way not taken: building the interpreter on an old system. That is one more build to maintain.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SAME = {(b"hypot", b"GLIBC_2.35"), (b"hypotf", b"GLIBC_2.35")}  # behave as in the versions of FIRST
FIRST = (b"GLIBC_2.2.5", b"GLIBC_2.17")  # the oldest version: on x64, on arm64
ELF64 = b"\x7fELF\x02\x01"
SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
NEEDED, WANTED = struct.Struct("<HHIII"), struct.Struct("<IHHII")  # Verneed, Vernaux


class Version(NamedTuple):
    """A version that the file requires of a library."""

    place: int  # file offset of its Vernaux
    library: int  # file offset of its library's Verneed
    index: int  # by which symbols refer to it
    name: bytes


def lower(path: Path) -> list[bytes]:
    """Change the file in place; returns the versions that it no longer requires."""
    data = bytearray(path.read_bytes())
    if not data.startswith(ELF64):
        return []
    sections = {kind: (offset, size) for kind, offset, size in sections_of(data)}
    if not {11, 0x6FFFFFFE, 0x6FFFFFFF} <= sections.keys():  # dynamic symbols, Verneed, each symbol's version
        return []
    strings = sections[3][0]
    versions = list(versions_of(data, sections[0x6FFFFFFE][0], strings))
    gone = []
    for version in versions:
        old = next((other for other in versions if other.library == version.library and other.name in FIRST), None)
        users = users_of(data, sections, strings, version.index)
        if old is None or not users or not {(name, version.name) for name in users} <= SAME:
            continue
        data[version.place : version.place + 4] = data[old.place : old.place + 4]  # the hash of the name
        data[version.place + 8 : version.place + 12] = data[old.place + 8 : old.place + 12]  # the name
        if all(other.name != version.name or other is version for other in versions):
            place = data.index(version.name + b"\0", strings)
            data[place : place + len(version.name)] = version.name.lower()
        gone.append(version.name)
    if gone:
        path.write_bytes(data)
    return gone


def sections_of(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(type, offset, size) of each section, but of string tables (type 3) only the dynamic symbols'."""
    start, size, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    rows = [SECTION.unpack_from(data, start + number * size) for number in range(count)]
    for row in rows:
        kind, offset, length, link = row[1], row[4], row[5], row[6]
        if kind != 3:
            yield kind, offset, length
        if kind == 11:  # SHT_DYNSYM
            yield 3, rows[link][4], rows[link][5]


def versions_of(data: bytes, place: int, strings: int) -> Iterator[Version]:
    """All versions that the file requires."""
    while True:
        _, count, _, first, following = NEEDED.unpack_from(data, place)
        wanted = place + first
        for _ in range(count):
            _, _, index, name, step = WANTED.unpack_from(data, wanted)
            yield Version(wanted, place, index, read_text_at(data, strings + name))
            wanted += step
        if not following:
            return
        place += following


def users_of(data: bytes, sections: dict, strings: int, index: int) -> list[bytes]:
    """Names of the functions that the file requires in the version `index`."""
    symbols, size = sections[11]
    marks = sections[0x6FFFFFFF][0]
    return [
        read_text_at(data, strings + SYMBOL.unpack_from(data, symbols + number * SYMBOL.size)[0])
        for number in range(size // SYMBOL.size)
        if struct.unpack_from("<H", data, marks + 2 * number)[0] & 0x7FFF == index
    ]


def read_text_at(data: bytes, place: int) -> bytes:
    return bytes(data[place : data.index(b"\0", place)])
