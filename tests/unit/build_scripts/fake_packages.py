"""Stand-ins for the unit tests of build_scripts: tiny libraries, archives of them, and clients that deliver them.

Imported by the test modules of this folder; nothing uses a network. The libraries are real ELF, Mach-O and PE headers
with a few bytes after them, so that the code reads them like true ones. The clients are real programs on PATH, so that
it also starts, watches and ends real processes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT, build_script

BUILD_SCRIPTS = ROOT / "build_scripts"

CLIENT = '''#!{python} -I
"""npm, pip or node as the test wants them: FAKE_MODE says how they behave."""
import json, os, pathlib, shutil, sys, time
arguments = sys.argv[1:]
if arguments and arguments[0].endswith("npm-cli.js"):
    arguments = arguments[1:]
store = pathlib.Path(os.environ["FAKE_STORE"])
spec = arguments[1]
with open(store / "calls.log", "a") as log:
    log.write(spec + "\\n")
own_mode = "FAKE_MODE_" + pathlib.Path(sys.argv[0]).name.upper()
mode = os.environ.get(own_mode, os.environ.get("FAKE_MODE", "ok"))
option = "--pack-destination" if arguments[0] == "pack" else "--dest"
target = pathlib.Path(arguments[arguments.index(option) + 1])
complaints = {{
    "offline": "npm error code EAI_AGAIN\\nnpm error getaddrinfo EAI_AGAIN registry",
    "full": "npm error code ENOSPC\\nnpm error nospc There appears to be insufficient space",
    "gone": "npm error code E404\\nnpm error 404 Not Found",
    "strange": "something\\nnpm error Cannot read properties of null",
}}
if mode in complaints:
    print(complaints[mode], file=sys.stderr)
    sys.exit(1)
if mode == "hang":
    gate = open(store / "gate", "w")
    gate.write("started")
    gate.flush()
    (target / "half").write_bytes(b"x" * 100)
    while True:
        time.sleep(60)
name = json.loads((store / "index.json").read_text())[spec]
if mode == "empty":
    sys.exit(0)
shutil.copyfile(store / name, target / name)
if mode == "tampered":
    with open(target / name, "r+b") as file:
        file.write(b"tampered")
print(name)
'''


# --- libraries ----------------------------------------------------------------------------------------------


def elf(name: str = "", needed: tuple = (), machine: int = 0x3E, payload: bytes = b"") -> bytes:
    """A 64-bit little-endian ELF shared library with SONAME and NEEDED entries."""
    strings = b"\0"
    offsets = []
    for text in (name, *needed):
        offsets.append(len(strings))
        strings += text.encode() + b"\0"
    dynamic_at = 64 + 2 * 56
    entries = [(14, offsets[0])] * bool(name) + [(1, offset) for offset in offsets[1:]]
    strings_at = dynamic_at + (len(entries) + 2) * 16
    entries += [(5, strings_at), (0, 0)]
    total = strings_at + len(strings)
    header = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    )
    load = struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, total, total, 4096)
    dynamic = struct.pack("<IIQQQQQQ", 2, 4, dynamic_at, dynamic_at, 0, len(entries) * 16, len(entries) * 16, 8)
    return header + load + dynamic + b"".join(struct.pack("<qQ", *entry) for entry in entries) + strings + payload


def elf32(name: str, needed: tuple = (), machine: int = 0x28) -> bytes:
    """The same for 32 bits."""
    strings = b"\0" + name.encode() + b"\0" + b"".join(text.encode() + b"\0" for text in needed)
    dynamic_at = 52 + 2 * 32
    entries = [(14, 1)]
    at = 2 + len(name)
    for text in needed:
        entries.append((1, at))
        at += len(text) + 1
    strings_at = dynamic_at + (len(entries) + 2) * 8
    entries += [(5, strings_at), (0, 0)]
    total = strings_at + len(strings)
    header = (
        b"\x7fELF\x01\x01\x01"
        + bytes(9)
        + struct.pack("<HHIIIIIHHHHHH", 3, machine, 1, 0, 52, 0, 0, 52, 32, 2, 0, 0, 0)
    )
    load = struct.pack("<IIIIIIII", 1, 0, 0, 0, total, total, 4, 4096)
    dynamic = struct.pack("<IIIIIIII", 2, dynamic_at, dynamic_at, 0, len(entries) * 8, len(entries) * 8, 4, 4)
    return header + load + dynamic + b"".join(struct.pack("<iI", *entry) for entry in entries) + strings


def macho(name: str = "", needed: tuple = (), machine: int = 0x0100000C, payload: bytes = b"") -> bytes:
    commands = b""
    for kind, text in [(0x0D, name)] * bool(name) + [(0x0C, library) for library in needed]:
        raw = ("@rpath/" + text).encode() + b"\0"
        raw += bytes(-len(raw) % 8)
        commands += struct.pack("<IIIIII", kind, 24 + len(raw), 24, 0, 0, 0) + raw
    count = bool(name) + len(needed)
    return struct.pack("<IIIIIIII", 0xFEEDFACF, machine, 0, 6, count, len(commands), 0, 0) + commands + payload


def fat_macho(*slices: bytes) -> bytes:
    """A universal file of thin ones."""
    head = struct.pack(">II", 0xCAFEBABE, len(slices))
    offset = 8 + 20 * len(slices)
    for content in slices:
        (cpu,) = struct.unpack_from("<I", content, 4)
        head += struct.pack(">IIIII", cpu, 0, offset, len(content), 0)
        offset += len(content)
    return head + b"".join(slices)


def pe(needed: tuple = (), machine: int = 0x8664, payload: bytes = b"") -> bytes:
    """A PE32+ library with an import table; its one section is at file offset 0x400, address 0x1000."""
    names = b""
    rows = b""
    table = (len(needed) + 1) * 20
    for text in needed:
        rows += struct.pack("<IIIII", 0, 0, 0, 0x1000 + table + len(names), 0)
        names += text.encode() + b"\0"
    section = rows + bytes(20) + names
    optional = struct.pack("<H", 0x20B) + bytes(110) + bytes(8)
    optional += struct.pack("<II", 0x1000 if needed else 0, len(section)) + bytes(14 * 8)
    head = b"MZ" + bytes(0x3A) + struct.pack("<I", 0x80) + bytes(0x40)
    head += b"PE\0\0" + struct.pack("<HHIIIHH", machine, 1, 0, 0, 0, len(optional), 0x2022) + optional
    head += b".rdata\0\0" + struct.pack("<IIII", len(section), 0x1000, len(section), 0x400) + bytes(16)
    return head.ljust(0x400, b"\0") + section + payload


def linux_build(version: str = "v0.5.0", mark: str = "", plugins: tuple = ("cpu-x64", "cpu-haswell")) -> dict:
    """File name -> content, named as the npm packages name them; `mark` as in `.cuda` builds."""
    ggml, llama = f"libggml{mark}.{version}.so", f"libllama{mark}.{version}.so"
    files = {
        "libggml-base.so": elf("libggml-base.so", ("libc.so.6",)),
        ggml: elf(ggml, ("libggml-base.so", "libc.so.6")),
        llama: elf(llama, (ggml, "libggml-base.so", "libc.so.6")),
        "libllama-common.so": elf("libllama-common.so", (llama, ggml)),
    }
    files.update({f"libggml-{name}.so": elf("", ("libggml-base.so",), payload=name.encode()) for name in plugins})
    return files


# --- archives -----------------------------------------------------------------------------------------------


def tar_bytes(files: dict, links: dict | None = None, hard: dict | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for kind, table in ((tarfile.SYMTYPE, links or {}), (tarfile.LNKTYPE, hard or {})):
            for name, end in table.items():
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, end
                archive.addfile(info)
    return out.getvalue()


def zip_bytes(files: dict, links: dict | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for name, end in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, end)
    return out.getvalue()


def npm_package(folder: str, files: dict, release: str = "v0.5.0") -> bytes:
    """An archive as `npm pack` brings it, with the parts we must leave out."""
    base = f"package/bins/{folder}/"
    members = {base + name: content for name, content in files.items()}
    members.update(
        {
            "package/LICENSE": b"MIT licence text",
            "package/package.json": b"{}",
            "package/dist/index.js": b"//",
            base + "llama-addon.node": elf("llama-addon.node"),
            base + "_nlcBuildMetadata.json": json.dumps({"buildOptions": {"llamaCpp": {"release": release}}}).encode(),
        }
    )
    return tar_bytes(members)


# --- the registry and its clients ---------------------------------------------------------------------------


class World:
    """Clients on a PATH of their own, the archives they serve, a lock, a cache and a libs folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin, self.store, self.cache, self.dest = (root / name for name in ("bin", "store", "cache", "libs"))
        for folder in (self.bin, self.store):
            folder.mkdir(parents=True)
        self.lock_path = root / "lock.json"
        self.rows: dict = {}
        self.write_lock()
        (self.store / "calls.log").touch()
        self.environ = {"PATH": str(self.bin), "FAKE_STORE": str(self.store), "LLAMA_SRV_CACHE": str(self.cache)}

    def install_client(self, name: str) -> Path:
        path = self.bin / name
        path.write_text(CLIENT.format(python=sys.executable))
        path.chmod(0o755)
        return path

    def publish(
        self, key: str, client: str, package: str, file: str, content: bytes, version: str = "1.0.0", **facts
    ) -> None:
        """Put a package into the registry and its row into the lock file."""
        (self.store / file).write_bytes(content)
        index = self.store / "index.json"
        known = json.loads(index.read_text()) if index.exists() else {}
        known[f"{package}{'@' if client == 'npm' else '=='}{version}"] = file
        index.write_text(json.dumps(known))
        self.rows[key] = {
            "client": client,
            "package": package,
            "version": version,
            "file": file,
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            **facts,
        }
        self.write_lock()

    def write_lock(self) -> None:
        self.lock_path.write_text(json.dumps({"format": 1, "archives": self.rows}))

    def fill(self) -> None:
        """The rows of VARIANTS: linux-x64 from both clients as they are, the others as empty files."""
        self.publish(
            "npm:linux-x64",
            "npm",
            "@node-llama-cpp/linux-x64",
            "linux-x64-1.0.0.tgz",
            npm_package("linux-x64", linux_build()),
            llama_cpp="v0.5.0",
            glibc="2.34",
        )
        wheel = zip_bytes(
            {
                "llama_cpp_py_sync/" + name: content
                for name, content in {
                    "libggml-base.so.0": elf("libggml-base.so.0"),
                    "libggml-cpu.so.0": elf("libggml-cpu.so.0", ("libggml-base.so.0",)),
                    "libggml.so.0": elf("libggml.so.0", ("libggml-cpu.so.0", "libggml-base.so.0")),
                    "libllama.so": elf("libllama.so.0", ("libggml.so.0", "libggml-base.so.0")),
                    "libllama.so.0": elf("libllama.so.0", ("libggml.so.0", "libggml-base.so.0")),
                    "libmtmd.so": elf("libmtmd.so.0", ("libllama.so.0", "libggml.so.0")),
                }.items()
            }
        )
        self.publish(
            "pip:linux-x64",
            "pip",
            "llama-cpp-py-sync",
            "sync-1.0.0-py3-none-manylinux2014_x86_64.whl",
            wheel,
            llama_cpp="b11067",
            tag="manylinux2014_x86_64",
            glibc="2.35",
        )
        for key in (
            "npm:linux-x64-cuda",
            "npm:linux-x64-cuda-ext",
            "npm:linux-x64-vulkan",
            "npm:linux-arm64",
            "npm:linux-armv7l",
            "npm:mac-arm64-metal",
            "npm:mac-x64",
            "npm:win-x64",
            "npm:win-x64-cuda",
            "npm:win-x64-cuda-ext",
            "npm:win-x64-vulkan",
            "npm:win-arm64",
            "pip:macos-arm64",
            "pip:macos-x64",
            "pip:windows-x64",
        ):
            name = key.partition(":")[2]
            self.publish(key, key[:3], f"empty-{name}", f"empty-{name}.tgz", b"", llama_cpp="v0.5.0")

    @property
    def calls(self) -> list:
        return (self.store / "calls.log").read_text().split()

    def leftovers(self) -> list:
        """Temporary folders that a run forgot."""
        return [path for parent in (self.cache, self.dest) if parent.is_dir() for path in parent.rglob(".tmp-*")]

    def run_environ(self) -> dict:
        """For real child processes: the little the interpreter itself needs besides ours."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "SYSTEMROOT") if name in os.environ}
        return {**kept, **self.environ}


# --- what the tests of the commands share -------------------------------------------------------------------

LINUX_FILES = {
    "LICENSE",
    "libggml-base.so",
    "libggml-cpu-haswell.so",
    "libggml-cpu-x64.so",
    "libggml.v0.5.0.so",
    "libllama.v0.5.0.so",
    "manifest.json",
}
posix_only = pytest.mark.skipif(os.name != "posix", reason="not on Windows: the fake clients start by a #! line")


def make_world(root: Path, monkeypatch) -> World:
    """A registry with the packages of linux-x64, npm on PATH; this machine poses as linux-x64, glibc 2.36."""
    fetch_libs, packages = build_script("fetch_libs"), build_script("packages")
    world = World(root)
    world.install_client("npm")
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    for name in ("FAKE_MODE", "FAKE_MODE_NPM", "FAKE_MODE_PIP3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetch_libs, "get_this_platform", lambda: "linux-x64")
    monkeypatch.setattr(fetch_libs, "read_glibc_version", lambda: "2.36")
    monkeypatch.setattr(packages, "has_pip_module", lambda: False)
    world.fill()
    return world


def run(world: World, capsys, *arguments: str) -> tuple:
    """Call fetch_libs and check what it must always keep to: (0, stdout) or (code, the one line)."""
    code = build_script("fetch_libs").main(["--dest", str(world.dest), *arguments], world.lock_path)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert world.leftovers() == []
    if code:
        complaint = err.strip().splitlines()[-1]
        assert complaint.startswith("fetch_libs: ")
        assert err.count("fetch_libs: ") == 1
        return code, complaint
    return code, out


def names(folder: Path) -> set:
    """Files below `folder`, links included."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())
