"""Checks the libraries of each variant (platform and backend), since most executables can't be built here.

Called by build_exe --check-platform on its main thread; imports the standard library, this folder, and from ctypes_api
the tables of C functions and the search for libraries. It fetches the libraries and checks:

- All files match the manifest.
- The load order has every library before those that need it.
- The server's search accepts the folder, and there is a CPU backend.
- Each C function that the server requires is in a library of the load order.

Nothing is loaded, because most files are for other machines.

The way not taken: emulators. Each would have to be downloaded, and cover one system.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

import fetch_libs
from common import Failure, Progress, format_megabytes, make_temp_folder
from native_files import find_changed_files, find_core_role, find_plugin_family, read_header, read_manifest


def check(name: str, cache: Path, progress: Progress, offline: bool) -> int:
    """Check the variant `name` (or `all`); prints a line for each. Returns 0; raises Failure if a check fails."""
    variants = [variant for variant in fetch_libs.VARIANTS if name in ("all", variant.name)]
    if not variants:
        raise Failure(f"there is no variant {name}: " + ", ".join(variant.name for variant in fetch_libs.VARIANTS))
    troubles = []
    for variant in variants:
        if variant.unusable:
            print(f"{variant.name}: not built ({variant.unusable})")
            continue
        with make_temp_folder(cache, "check") as temp:
            folder = fetch_libs.ensure(
                variant.platform,
                variant.backend,
                dest=temp,
                cache=cache,
                progress=progress,
                offline=offline,
                source="npm",
            )
            found = troubles_of(folder)
            troubles += [f"{variant.name}: {trouble}" for trouble in found]
            print(f"{variant.name}: {'; '.join(found) or make_summary(folder)}", flush=True)
    if troubles:
        raise Failure(f"{len(troubles)} problems, the first: {troubles[0]}")
    return 0


def troubles_of(folder: Path) -> list:
    manifest = read_manifest(folder)
    if manifest is None:
        return ["no manifest"]
    troubles = [f"{name} doesn't match the manifest" for name in find_changed_files(folder, manifest)]
    return (
        troubles
        + order_troubles(folder, manifest)
        + find_role_troubles(folder)
        + find_missing_functions(folder, manifest)
    )


def order_troubles(folder: Path, manifest: dict) -> list:
    """Files that are no libraries, and libraries that need one of llama.cpp's that is loaded later or not at all."""
    opened: set = set()
    troubles = []
    for name in manifest["load_order"] + manifest["cpu_plugins"] + manifest["backend_plugins"]:
        header = read_header(folder / name)
        if header is None:
            troubles.append(f"{name} is not a library")
            continue
        late = [needed for needed in header.needed if is_ours(needed) and needed.lower() not in opened]
        troubles += [f"{name} needs {needed}, which is loaded later or not at all" for needed in late]
        opened |= {name.lower(), header.name.lower()}
    return troubles


def find_role_troubles(folder: Path) -> list:
    """The error of the server's own search for libraries, or a missing CPU backend."""
    from ctypes_api.errors import LibsError
    from ctypes_api.folder import read_folder

    try:
        files = read_folder(folder)
    except LibsError as error:
        return [str(error)]
    has_cpu = any(name.startswith("cpu") for name in files.plugins) or any("cpu" in path.name for path in files.order)
    return [] if has_cpu else ["no CPU backend"]


def find_missing_functions(folder: Path, manifest: dict) -> list:
    """Required C functions that no library in the load order has."""
    from ctypes_api import ggml, llama

    data = b"".join((folder / name).read_bytes() for name in manifest["load_order"])
    rows = (*ggml.BASE_ROWS, *ggml.REGISTRY_ROWS, *llama.ROWS)
    # Longer names with this end count, too: ELF may store a common end once, and Mach-O puts `_` before names.
    return [f"no function {row.name}" for row in rows if row.required and row.name.encode() + b"\0" not in data]


def is_ours(name: str) -> bool:
    """Whether a library belongs to llama.cpp, not to the system."""
    return bool(find_core_role(name) or find_plugin_family(name))


def make_summary(folder: Path) -> str:
    manifest = read_manifest(folder)
    size = sum(facts["size"] for facts in manifest["files"].values())
    needed = {name for file in manifest["files"] for name in read_header(folder / file).needed if not is_ours(name)}
    return (
        f"llama.cpp {manifest['version']}, {len(manifest['files'])} files, {format_megabytes(size)}; load order: "
        f"{', '.join(map(posixpath.basename, manifest['load_order']))}; from the system: "
        f"{', '.join(sorted(needed, key=str.lower))}"
    )
