"""Analyses the files of a llama.cpp build: platform, names, dependencies and roles; writes the folder and its manifest.

Called by other scripts on their main thread; imports the standard library, `archives` for its result type, and
`common`. From ELF, Mach-O and PE headers it reads the machine, the library's name (not in PE) and the names of the
libraries that it needs.

Packagers name the files differently: `libllama.so.0`, `libllama.v0.5.0.so`, or both `libllama.0.dylib` and
`libllama.dylib`. If a library is loaded under another name than its neighbours need, the process has two copies of it.
So a file is installed under the name by which others need it, and the load order follows from the headers.

The way not taken: a table with each packager's file names.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import struct
from pathlib import Path
from typing import NamedTuple

from archives import Unpacked
from common import Failure, sha256_of

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
FALLBACK = "fallback"  # subfolder with second builds of a backend

PLATFORMS = {  # platform -> (file format, machine)
    "linux-x64": ("elf", "x64"),
    "linux-arm64": ("elf", "arm64"),
    "linux-armv7l": ("elf", "armv7l"),
    "macos-arm64": ("macho", "arm64"),
    "macos-x64": ("macho", "x64"),
    "windows-x64": ("pe", "x64"),
    "windows-arm64": ("pe", "arm64"),
}
ELF_MACHINES = {0x03: "x86", 0x28: "armv7l", 0x3E: "x64", 0xB7: "arm64", 0xF3: "riscv64"}
MACHO_MACHINES = {0x01000007: "x64", 0x0100000C: "arm64"}
PE_MACHINES = {0x014C: "x86", 0x8664: "x64", 0xAA64: "arm64"}
# A build with several of these backends is named after the first of them in this row.
GPU_BACKENDS = ("cuda", "metal", "vulkan", "hip", "sycl", "musa", "cann", "opencl")

MAX_ROWS = 10_000  # most rows that are read of a table in a header

_EXTENSION = r"\.(?:dll|dylib|so(?:\.\d+)*)$"
_CORE = re.compile(r"^(?:lib)?(llama|ggml|ggml-base|mtmd)(?:\.[a-z]\w*)?(?:\.v?\d+(?:\.\d+)*)?" + _EXTENSION, re.I)
_PLUGIN = re.compile(r"^(?:lib)?(ggml-(?!base\b)[\w+-]+?(?:\.\d+_\d+)?)(?:\.\d+)*" + _EXTENSION, re.I)
_VERSION = re.compile(r"\.v?(\d+\.\d+\.\d+)(?:\.|$)")
_TAG = re.compile(r"(?:^|[-_/])(v\d+\.\d+\.\d+|b\d{3,6})(?=[-_./]|$)")


# --- headers ------------------------------------------------------------------------------------------------


class Header(NamedTuple):
    format: str  # elf, macho, pe
    machine: str
    name: str  # SONAME or install name without folder, "" if none
    needed: tuple  # names of other libraries, without folders


def read_header(path: Path) -> Header | None:
    """The header of a shared library; None for other files, unknown formats and truncated headers."""
    readers = {b"\x7fELF": _read_elf, b"\xcf\xfa\xed\xfe": _read_macho, b"\xca\xfe\xba\xbe": _read_fat_macho}
    with open(path, "rb") as file:
        magic = file.read(4)
        reader = readers.get(magic, _read_pe if magic[:2] == b"MZ" else None)
        try:
            return reader(_Bytes(file)) if reader else None
        except (struct.error, ValueError, IndexError, OverflowError):
            return None


class _Bytes:
    """Reads numbers and strings at offsets of a file, counted from `start`."""

    def __init__(self, file, start: int = 0, order: str = "<") -> None:
        self.file = file
        self.start = start
        self.order = order

    def read_numbers(self, layout: str, offset: int) -> tuple:
        self.file.seek(self.start + offset)
        return struct.unpack(self.order + layout, self.file.read(struct.calcsize(self.order + layout)))

    def read_text(self, offset: int, limit: int = 512) -> str:
        self.file.seek(self.start + offset)
        return self.file.read(limit).split(b"\0")[0].decode("utf-8", "replace")


def _to_offset(address: int, ranges: list) -> int:
    """The file offset of a virtual address, according to (address, size, offset) ranges."""
    for base, size, offset in ranges:
        if base <= address < base + size:
            return address - base + offset
    raise ValueError("address outside the file")


def _read_elf(data: _Bytes) -> Header:
    wide, little = data.read_numbers("BB", 4)
    data.order = "<" if little == 1 else ">"
    (machine,) = data.read_numbers("H", 18)
    if wide == 2:
        (table,) = data.read_numbers("Q", 32)
        size, count = data.read_numbers("HH", 54)
        layout, pick, entry = "IIQQQQ", (0, 2, 3, 5), "qQ"
    else:
        (table,) = data.read_numbers("I", 28)
        size, count = data.read_numbers("HH", 42)
        layout, pick, entry = "IIIIII", (0, 1, 2, 4), "iI"
    ranges, dynamic = [], None
    for index in range(count):
        fields = data.read_numbers(layout, table + index * size)
        kind, offset, address, length = (fields[number] for number in pick)
        if kind == 1:  # PT_LOAD
            ranges.append((address, length, offset))
        elif kind == 2:  # PT_DYNAMIC
            dynamic = offset
    entries = []
    step = struct.calcsize("<" + entry)
    while dynamic is not None and (not entries or entries[-1][0] != 0):
        if len(entries) > MAX_ROWS:
            raise ValueError("endless dynamic section")
        entries.append(data.read_numbers(entry, dynamic + len(entries) * step))
    strings = next((_to_offset(value, ranges) for tag, value in entries if tag == 5), 0)  # DT_STRTAB
    name = next((data.read_text(strings + value) for tag, value in entries if tag == 14), "")  # DT_SONAME
    needed = tuple(data.read_text(strings + value) for tag, value in entries if tag == 1)  # DT_NEEDED
    return Header("elf", ELF_MACHINES.get(machine, hex(machine)), posixpath.basename(name), needed)


def _read_macho(data: _Bytes) -> Header:
    (cpu,) = data.read_numbers("I", 4)
    (count,) = data.read_numbers("I", 16)
    offset, name, needed = 32, "", []
    for _ in range(count):
        command, size = data.read_numbers("II", offset)
        if command & 0xFF in (0x0C, 0x0D, 0x18, 0x1F):  # load, id, weak load, re-export of a library
            (at,) = data.read_numbers("I", offset + 8)
            text = posixpath.basename(data.read_text(offset + at, size - at))
            if command & 0xFF == 0x0D:
                name = text
            else:
                needed.append(text)
        offset += max(size, 8)
    return Header("macho", MACHO_MACHINES.get(cpu, hex(cpu)), name, tuple(needed))


def _read_fat_macho(data: _Bytes) -> Header:
    """The header of a universal file: names from the first slice, the machines of all slices joined by `+`."""
    data.order = ">"
    (count,) = data.read_numbers("I", 4)
    slices = [data.read_numbers("IIIII", 8 + index * 20) for index in range(min(count, 8))]
    first = _read_macho(_Bytes(data.file, slices[0][2]))
    return first._replace(machine="+".join(MACHO_MACHINES.get(cut[0], hex(cut[0])) for cut in slices))


def _read_pe(data: _Bytes) -> Header:
    (start,) = data.read_numbers("I", 0x3C)
    machine, sections = data.read_numbers("HH", start + 4)
    (optional_size,) = data.read_numbers("H", start + 20)
    (magic,) = data.read_numbers("H", start + 24)
    directories = start + 24 + (112 if magic == 0x20B else 96)
    imports, _ = data.read_numbers("II", directories + 8)
    ranges = []
    for index in range(sections):
        size, address, raw_size, offset = data.read_numbers("IIII", start + 24 + optional_size + index * 40 + 8)
        ranges.append((address, max(size, raw_size), offset))
    needed = []
    while imports and len(needed) < MAX_ROWS:
        row = data.read_numbers("IIIII", _to_offset(imports, ranges) + len(needed) * 20)
        if row[3] == 0:
            break
        needed.append(data.read_text(_to_offset(row[3], ranges)))
    return Header("pe", PE_MACHINES.get(machine, hex(machine)), "", tuple(needed))


# --- roles --------------------------------------------------------------------------------------------------


def find_core_role(name: str) -> str | None:
    """`llama`, `ggml`, `ggml-base`, `mtmd`, or None for any other file name."""
    match = _CORE.match(name)
    return match[1].lower() if match else None


def find_plugin_family(name: str) -> str | None:
    """The name of a backend: `ggml-metal` for the file `libggml-metal.0.dylib`; None for any other file name."""
    match = _PLUGIN.match(name)
    return match[1].lower() if match else None


class Layout(NamedTuple):
    """The files to install (name in the folder -> file on disk) and their roles."""

    files: dict
    load_order: list
    cpu_plugins: list
    backend_plugins: list
    fallback_plugins: list
    mtmd: str | None
    format: str
    machine: str
    version: str | None

    @property
    def backend(self) -> str:
        families = {find_plugin_family(posixpath.basename(name)) or "" for name in self.files}
        kinds = {family.split("-")[1] for family in families if family}
        return next((kind for kind in GPU_BACKENDS if kind in kinds), "cpu")

    @property
    def platform(self) -> str | None:
        machines = self.machine.split("+")
        return next(
            (name for name, (form, machine) in PLATFORMS.items() if form == self.format and machine in machines), None
        )


class _Shelf:
    """The libraries of one format: `files` beside libllama, `elsewhere` in other folders, and their headers."""

    def __init__(self, unpacked: Unpacked, base: str, form: str) -> None:
        self.fold = str.lower if form == "pe" else str
        self.files: dict = {}
        self.elsewhere: dict = {}
        self.headers: dict = {}
        for path, file in sorted(unpacked.libraries.items()):
            header = read_header(file)
            if header is None or header.format != form:
                continue
            folder, name = posixpath.split(path)
            shelf = self.files if folder == base else self.elsewhere
            shelf.setdefault(self.fold(name), (name, file))
            self.headers[file] = header

    def get_header(self, name: str) -> Header:
        return self.headers[self.find(name)[1]]

    def find(self, name: str) -> tuple | None:
        return self.files.get(self.fold(name)) or self.elsewhere.get(self.fold(name))

    def list_names(self, test) -> list:
        return [name for name, _ in self.files.values() if test(name)]

    def choose(self, candidates: list) -> str | None:
        """Of a library's names the one that others need, else the one in its header, else the shortest; None if
        there are no names."""
        asked = {self.fold(needed) for _, file in self.files.values() for needed in self.headers[file].needed}
        rules = (
            lambda name: self.fold(name) in asked,
            lambda name: name == self.get_header(name).name,
            lambda name: True,
        )
        for rule in rules:
            fitting = sorted(filter(rule, candidates), key=lambda name: (len(name), name))
            if fitting:
                return fitting[0]
        return None

    def with_needs(self, name: str, order: list) -> list:
        """Append `name` to `order`, unless it is there, after the archive's libraries that it needs. Raises Failure if
        one of llama.cpp's is missing."""
        if name not in order:
            order.append(name)  # marks it as visited, in case of a cycle
            for needed in self.get_header(name).needed:
                held = self.find(needed)
                if held:
                    self.with_needs(held[0], order)
                elif find_core_role(needed) or find_plugin_family(needed):
                    raise Failure(
                        f"{needed}, which {name} needs, isn't in the archive: "
                        "use a complete one, or several by repeating --from"
                    )
            order.remove(name)
            order.append(name)
        return order


def arrange(unpacked: Unpacked, origin: str = "") -> Layout:
    """Choose the files to install from an archive. `origin`: the archive's name, which may contain the version. Raises
    Failure if a library is missing."""
    base = _find_base_folder(unpacked)
    form = next(
        header.format
        for path, file in unpacked.libraries.items()
        if posixpath.dirname(path) == base
        and find_core_role(posixpath.basename(path)) == "llama"
        and (header := read_header(file))
    )
    shelf = _Shelf(unpacked, base, form)
    roots = {
        role: shelf.choose(shelf.list_names(lambda name, role=role: find_core_role(name) == role))
        for role in ("ggml-base", "ggml", "llama", "mtmd")
    }
    missing = [role for role in ("ggml-base", "ggml", "llama") if not roots[role]]
    if missing:
        raise Failure(
            f"no {' and no '.join(missing)} library beside libllama: use a complete shared-library "
            "build (-DBUILD_SHARED_LIBS=ON)"
        )
    load_order: list = []
    for role in ("ggml-base", "ggml", "llama"):
        shelf.with_needs(roots[role], load_order)
    kept = list(load_order)
    plugins = _find_plugins(shelf, load_order)
    for name in plugins + [roots["mtmd"]] * bool(roots["mtmd"]):
        shelf.with_needs(name, kept)
    files = {name: shelf.find(name)[1] for name in kept}
    fallback = _find_fallback(unpacked, base)
    files.update(fallback)
    cpu = [name for name in plugins if find_plugin_family(name).startswith("ggml-cpu")]
    if not cpu and not any((find_plugin_family(name) or "").startswith("ggml-cpu") for name in load_order):
        raise Failure(
            "the libraries have no CPU backend (ggml-cpu), which llama.cpp needs: "
            "add the archive that contains it with a second --from"
        )
    if form == "pe":  # Windows loads the others itself, so that there is only one C++ runtime
        load_order = [name for name in load_order if find_core_role(name) or find_plugin_family(name)]
    header = shelf.get_header(roots["llama"])
    return Layout(
        files,
        load_order,
        cpu,
        [name for name in plugins if name not in cpu],
        list(fallback),
        roots["mtmd"],
        form,
        header.machine,
        _find_version(unpacked, base, origin),
    )


def _find_base_folder(unpacked: Unpacked) -> str:
    """The archive's outermost folder with libllama. Raises Failure if there is none, or more than one at that depth."""
    folders = {
        posixpath.dirname(path)
        for path, file in unpacked.libraries.items()
        if find_core_role(posixpath.basename(path)) == "llama" and read_header(file)
    }
    if not folders:
        raise Failure(
            "it contains no libllama (libllama.so, libllama.dylib, llama.dll): use a llama.cpp release archive "
            "or the folder with the built libraries"
        )
    ordered = sorted(folders, key=lambda folder: (folder.count("/") if folder else -1, folder))
    if len(ordered) > 1 and ordered[0].count("/") == ordered[1].count("/") and ordered[0]:
        raise Failure(f"it contains several builds ({', '.join(ordered)}): use the folder of one of them")
    return ordered[0]


def _find_plugins(shelf: _Shelf, load_order: list) -> list:
    """Backends that ggml loads by itself: one file per family, without those in the load order."""
    linked = {find_plugin_family(name) for name in load_order}
    families: dict = {}
    for name in shelf.list_names(find_plugin_family):
        families.setdefault(find_plugin_family(name), []).append(name)
    return [
        min(names, key=lambda name: (len(name), name))
        for family, names in sorted(families.items())
        if family not in linked
    ]


def _find_fallback(unpacked: Unpacked, base: str) -> dict:
    """Other builds of a backend (CUDA 12 beside CUDA 13), in a subfolder that ggml doesn't search."""
    folder = posixpath.join(base, FALLBACK)
    split = {posixpath.split(path): file for path, file in sorted(unpacked.libraries.items())}
    return {
        f"{FALLBACK}/{name}": file
        for (where, name), file in split.items()
        if where == folder and find_plugin_family(name)
    }


def _find_version(unpacked: Unpacked, base: str, origin: str) -> str | None:
    for path, file in unpacked.notes.items():
        if posixpath.dirname(path) == base:
            try:
                return json.loads(file.read_text(encoding="utf-8"))["buildOptions"]["llamaCpp"]["release"]
            except (ValueError, KeyError, TypeError):
                break
    for path in sorted(unpacked.libraries):
        name = posixpath.basename(path)
        match = _VERSION.search(name)
        if match and find_core_role(name) == "llama":
            return f"v{match[1]}"
    match = _TAG.search(base) or _TAG.search(origin)
    return match[1] if match else None


# --- the installed folder -----------------------------------------------------------------------------------


def write_folder(folder: Path, layout: Layout, unpacked: Unpacked, facts: dict) -> dict:
    """Put the files, licences and manifest.json into the empty `folder`; returns the manifest.

    `facts`: platform, backend, version (llama.cpp's tag), source.
    """
    written = {}
    for name, file in layout.files.items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        _place(file, target)
        written[name] = {"sha256": sha256_of(target), "size": target.stat().st_size}
    for name, file in _make_licence_names(unpacked).items():
        shutil.copyfile(file, folder / name)
    manifest = {
        "format": MANIFEST_FORMAT,
        **facts,
        "load_order": layout.load_order,
        "cpu_plugins": layout.cpu_plugins,
        "backend_plugins": layout.backend_plugins,
        "fallback_plugins": layout.fallback_plugins,
        "mtmd": layout.mtmd,
        "links": {},
        "files": dict(sorted(written.items())),
    }
    write_manifest(folder, manifest)
    return manifest


def _place(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _make_licence_names(unpacked: Unpacked) -> dict:
    """LICENSE, LICENSE-2, ... -> file: each different text once, outermost first."""
    texts: dict = {}
    for path in sorted(unpacked.licences, key=lambda path: (path.count("/"), path)):
        texts.setdefault(unpacked.licences[path].read_bytes(), unpacked.licences[path])
    return {
        "LICENSE" if number == 1 else f"LICENSE-{number}": file for number, file in enumerate(texts.values(), start=1)
    }


def write_manifest(folder: Path, manifest: dict) -> None:
    new = folder / (MANIFEST + ".new")
    new.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    new.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> dict | None:
    """The manifest of a folder; None if it is missing, damaged or of an unknown format."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(manifest, dict) and manifest.get("format") == MANIFEST_FORMAT
    return manifest if known and isinstance(manifest.get("files"), dict) else None


def find_missing_files(folder: Path, manifest: dict) -> list:
    """Names of files that are missing or have another size, and of links without a target. Hashes nothing."""
    wrong = []
    for name, facts in manifest["files"].items():
        try:
            same = (folder / name).stat().st_size == facts["size"]
        except OSError:
            same = False
        if not same:
            wrong.append(name)
    return wrong + [name for name in manifest.get("links", {}) if not (folder / name).exists()]


def find_changed_files(folder: Path, manifest: dict) -> list:
    """Names of files that are missing or changed, and of llama.cpp's libraries that aren't in the manifest: ggml could
    load them. Hashes all files."""
    wrong = set(find_missing_files(folder, manifest))
    for name, facts in manifest["files"].items():
        if name not in wrong and sha256_of(folder / name) != facts["sha256"]:
            wrong.add(name)
    known = {*manifest["files"], *manifest.get("links", {})}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in known and (find_core_role(path.name) or find_plugin_family(path.name)):
            wrong.add(name)
    return sorted(wrong)
