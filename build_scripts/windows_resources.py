"""Writes the icon and the version resource of the Windows executables at build time.

Called by build_exe on its main thread; imports the standard library and `contents`. Does nothing on other systems.

The way not taken: binary files in the repository.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import contents

SIZE = 32  # pixels
BLUE, WHITE, NOTHING = (0xD0, 0x5F, 0x2F, 0xFF), (0xFF, 0xFF, 0xFF, 0xFF), (0, 0, 0, 0)  # blue, green, red, alpha
# The picture of public/icon.svg as a grid of 16 by 16.
FACE = """
.##############.
################
####.######.####
####..####..####
####.######.####
####.#....#.####
#####.####.#####
#####.####.#####
#####.#..#.#####
#####.####.#####
#####.####.#####
#####.#..#.#####
#####.####.#####
#####.####.#####
################
.##############.
"""
VERSION_TEXT = """VSVersionInfo(
  ffi=FixedFileInfo(filevers={numbers}, prodvers={numbers}, mask=0x3f, flags=0x0, OS=0x40004, fileType=0x1),
  kids=[StringFileInfo([StringTable('040904B0', [
    StringStruct('FileDescription', 'Serves language models over HTTP'),
    StringStruct('FileVersion', '{version}'), StringStruct('InternalName', 'llama-srv'),
    StringStruct('LegalCopyright', 'the llama_srv authors, MIT licence'),
    StringStruct('OriginalFilename', 'llama-srv.exe'), StringStruct('ProductName', 'llama_srv'),
    StringStruct('ProductVersion', '{version}')])]), VarFileInfo([VarStruct('Translation', [0x409, 1200])])])
"""


def write(folder: Path, system: str = sys.platform) -> dict:
    """Write icon and version resource to `folder`; returns environment variables that tell the spec their paths."""
    if system != "win32":
        return {}
    icon, version = folder / "llama-srv.ico", folder / "version.txt"
    icon.write_bytes(make_icon_bytes())
    version.write_text(render_version_text(contents.read_server_version()), encoding="utf-8")
    return {"LLAMA_SRV_ICON": str(icon), "LLAMA_SRV_VERSION_FILE": str(version)}


def render_version_text(version: str) -> str:
    """The version resource in PyInstaller's notation."""
    numbers = tuple(int(part) for part in version.split("."))
    return VERSION_TEXT.format(version=version, numbers=(*numbers, 0, 0, 0, 0)[:4])


def make_icon_bytes() -> bytes:
    """The content of an .ico file with one picture."""
    rows = FACE.strip().splitlines()
    pixels = bytearray()
    for y in reversed(range(SIZE)):
        for x in range(SIZE):
            is_set = rows[y // 2][x // 2] == "#"
            corner = y // 2 in (0, 15) and x // 2 in (0, 15)
            pixels += bytes(BLUE if is_set else NOTHING if corner else WHITE)
    mask = bytes(SIZE * SIZE // 8)
    header = struct.pack("<IiiHHIIiiII", 40, SIZE, 2 * SIZE, 1, 32, 0, len(pixels) + len(mask), 0, 0, 0, 0)
    picture = header + pixels + mask
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, SIZE, SIZE, 0, 0, 1, 32, len(picture), 22) + picture
