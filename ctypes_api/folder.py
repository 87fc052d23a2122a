"""Finds the folder with the native libraries, and the role of each file in it (llama, ggml, ...). Opens no library.

Runs on any thread. Files are recognised by patterns, because each packager names them differently (`libllama.so`,
`libllama.so.0.5.0`, `libllama.cuda.v0.5.0.so`, `llama.v0.4.0.dll`, `libllama.0.dylib`). Folders made by
build_scripts/fetch_libs.py have a manifest.json with the load order. Not taken: the system's search path, which may
have a libllama of another version.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ctypes_api.errors import LibsBroken, LibsNotFound, choose_advice

ENVIRONMENT = "LLAMA_SRV_LIBS"
FETCH = choose_advice(
    "run `python build_scripts/fetch_libs.py`", "download this program again (its libraries are missing or damaged)"
)
FALLBACK = "fallback"  # subfolder with second builds of a backend
BACKENDS = ("cuda", "metal", "vulkan", "hip", "sycl", "musa", "cann", "opencl", "cpu")  # best first
SYSTEMS = {"darwin": "macos", "win32": "windows"}
# end of sysconfig.get_platform() -> our names for a 64-bit and a 32-bit Python
MACHINES = {
    "x86_64": ("x64", "x86"),
    "amd64": ("x64", "x86"),
    "arm64": ("arm64", "armv7l"),
    "aarch64": ("arm64", "armv7l"),
}
NEEDED = ("ggml-base", "ggml", "llama")

_EXTENSION = r"(?:\.dylib|\.dll|\.so(?:\.\d+)*)"
# for names in lower case
_LIBRARY = re.compile(r"(?:lib)?(?P<role>llama|mtmd|ggml|ggml-base)(?:\.[a-z]+)?(?:\.v?\d+(?:\.\d+)*)?" + _EXTENSION)
_PLUGIN = re.compile(r"(?:lib)?ggml-(?P<name>(?!base\b)[a-z0-9]+(?:-[\w.]+?)?)(?:\.\d+)*" + _EXTENSION)


class LibraryFiles(NamedTuple):
    """The files of one folder by role."""

    folder: Path
    ggml_base: Path
    ggml: Path
    llama: Path
    mtmd: Path | None
    order: tuple[Path, ...]  # the files to open, in this order; includes ggml_base, ggml and llama
    plugins: dict[str, Path]  # by backend (`cpu-haswell`, `cuda`); empty if the backends are linked in
    fallbacks: dict[str, Path]  # second builds, by backend
    release: str  # llama.cpp version in the manifest; "" without one

    @property
    def cpu_variants(self) -> dict[str, Path]:
        """The CPU plug-ins by name without `cpu-`."""
        return {name[4:]: path for name, path in self.plugins.items() if name.startswith("cpu-")}


def find_folder(root: Path, explicit: str | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of libraries: `explicit`, else LLAMA_SRV_LIBS, else the best root/libs/<platform>-<backend>. Raises
    LibsNotFound."""
    chosen = explicit or environment.get(ENVIRONMENT)
    tried = [Path(chosen)] if chosen else list_candidates(root)
    for folder in tried:
        if _has_libllama(folder):
            return folder.resolve()
    if chosen:
        source = "--libs" if explicit else ENVIRONMENT
        raise LibsNotFound(f"no libllama in {chosen}, the folder set by {source}: {FETCH} or choose another folder")
    names = ", ".join(folder.name for folder in tried)
    raise LibsNotFound(f"no native libraries for this machine in {root / 'libs'}: {FETCH} (looked for {names})")


def list_candidates(root: Path) -> list[Path]:
    """The possible folders of this machine's libraries, the best first."""
    return [root / "libs" / f"{get_platform_name()}-{backend}" for backend in BACKENDS]


def get_platform_name(system: str | None = None, tag: str | None = None, bits: int | None = None) -> str:
    """This process's platform as in the names of libs/ folders: linux-x64, macos-arm64, windows-x64 ...

    Python decides, not the machine: an x64 Python on an arm64 Windows needs x64 libraries.
    """
    import sysconfig  # here, because the engine's process doesn't need it

    system = system or sys.platform
    tag = (tag or sysconfig.get_platform()).lower()
    bits = bits or 8 * struct.calcsize("P")
    if tag.endswith("universal2"):
        tag = os.uname().machine
    name = SYSTEMS.get(system, system)
    for ending, (wide, narrow) in MACHINES.items():
        if tag.endswith(ending):
            return f"{name}-{wide if bits == 64 else narrow}"
    return f"{name}-{tag.rpartition('-')[2]}"


def read_folder(folder: Path) -> LibraryFiles:
    """Sort the folder's files by role. LibsBroken if a needed library is missing, damaged or there in two builds."""
    manifest = _read_manifest(folder)
    order = [folder / str(name) for name in manifest.get("load_order", ())]
    try:
        roles, plugins = _sort_out(folder.iterdir())
        _, fallbacks = _sort_out((folder / FALLBACK).iterdir() if (folder / FALLBACK).is_dir() else ())
    except OSError as error:
        raise LibsBroken(f"{folder} can't be read ({error.strerror}): {FETCH}") from None
    roles.update(_sort_out(order)[0])
    missing = [role for role in NEEDED if role not in roles]
    if missing:
        raise LibsBroken(f"{folder} has no library for {', '.join(missing)}: {FETCH}")
    found = {role: _resolve_one(paths) for role, paths in roles.items()}
    ggml_base, ggml, llama = needed = [found[role] for role in NEEDED]
    _check_sizes(folder, manifest)
    to_open = dict.fromkeys([*(path.resolve() for path in order), *needed])
    return LibraryFiles(
        folder,
        ggml_base,
        ggml,
        llama,
        found.get("mtmd"),
        tuple(to_open),
        {name: paths[0] for name, paths in plugins.items()},
        {name: paths[0] for name, paths in fallbacks.items()},
        str(manifest.get("version") or ""),
    )


def _check_sizes(folder: Path, manifest: dict) -> None:
    """LibsBroken for a file of another size than in the manifest: a truncated file might crash the system's loader."""
    for name, facts in manifest.get("files", {}).items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            continue  # reported where the file is needed
        if size != facts.get("size", size):
            raise LibsBroken(f"{folder / name} is damaged ({size} bytes instead of {facts['size']}): {FETCH}")


def _sort_out(paths: Iterable[Path]) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Libraries by role, and plug-ins by backend, each with all paths found for it."""
    roles: dict[str, list[Path]] = {}
    plugins: dict[str, list[Path]] = {}
    for path in sorted(paths):
        name = path.name.lower()
        if match := _LIBRARY.fullmatch(name):
            roles.setdefault(match["role"], []).append(path)
        elif match := _PLUGIN.fullmatch(name):
            plugins.setdefault(match["name"], []).append(path)
    return roles, plugins


def _resolve_one(paths: list[Path]) -> Path:
    """The file of a library with several names. LibsBroken unless the names are symlinks, or copies of equal size."""
    try:
        real = {path.resolve(strict=True): path.stat().st_size for path in paths}
    except OSError as error:
        raise LibsBroken(f"{error.filename} can't be read ({error.strerror}): {FETCH}") from None
    if len(set(real.values())) > 1:
        names = ", ".join(path.name for path in real)
        raise LibsBroken(
            f"{paths[0].parent} has different builds of one library ({names}): keep one"
            + choose_advice(", or import the folder with fetch_libs.py --from", "")
        )
    return next(iter(real))


def _has_libllama(folder: Path) -> bool:
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    return any((match := _LIBRARY.fullmatch(name.lower())) and match["role"] == "llama" for name in names)


def _read_manifest(folder: Path) -> dict:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LibsBroken(f"{path} can't be read ({error}): {FETCH}") from None
    is_known = (
        isinstance(manifest, dict)
        and isinstance(manifest.get("load_order", []), list)
        and isinstance(manifest.get("files", {}), dict)
        and all(isinstance(facts, dict) for facts in manifest.get("files", {}).values())
    )
    if not is_known:
        raise LibsBroken(f"{path} is not a valid manifest: {FETCH}")
    return manifest
