"""Checks what would go into the executables of other systems, which can't be built here.

Called by build_exe --check-platform; imports the standard library, this folder, and of the product the tables of C
functions. For each variant the libraries are fetched (or taken from the cache), laid out as an executable would hold
them, and asked: do all files match the manifest; does the server's own search find each role in that folder; does the
order of opening have every library before those that need it; does some library have each function that the server
needs; which libraries must the system have. Nothing is loaded: these are other machines' files.

The way not taken: emulators. They would show one start on one system, at the price of a download each.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

import fetch_libs
from common import Failure, Progress, megabytes, temp_folder
from native_files import changed_files, core_role, plugin_family, read_header, read_manifest


def check(name: str, cache: Path, progress: Progress, offline: bool) -> int:
    """Check the variant `name`, or all; prints a line for each. 0 if all are well, else Failure."""
    variants = [variant for variant in fetch_libs.VARIANTS if name in ("all", variant.name)]
    if not variants:
        raise Failure(f"there is no variant {name}: " + ", ".join(variant.name for variant in fetch_libs.VARIANTS))
    troubles = []
    for variant in variants:
        if variant.unusable:
            print(f"{variant.name}: not built ({variant.unusable})")
            continue
        with temp_folder(cache, "check") as temp:
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
            print(f"{variant.name}: {'; '.join(found) or summary(folder)}", flush=True)
    if troubles:
        raise Failure(f"{len(troubles)} troubles, the first: {troubles[0]}")
    return 0


def troubles_of(folder: Path) -> list:
    """What is wrong with a laid-out folder of libraries; an empty list if nothing is."""
    manifest = read_manifest(folder)
    if manifest is None:
        return ["no manifest"]
    troubles = [f"{name} isn't what the manifest says" for name in changed_files(folder, manifest)]
    return troubles + order_troubles(folder, manifest) + role_troubles(folder) + missing_functions(folder, manifest)


def order_troubles(folder: Path, manifest: dict) -> list:
    """Libraries that would be opened before one of the folder that they need."""
    opened: set = set()
    troubles = []
    for name in manifest["load_order"] + manifest["cpu_plugins"] + manifest["backend_plugins"]:
        header = read_header(folder / name)
        if header is None:
            troubles.append(f"{name} is no library")
            continue
        late = [needed for needed in header.needed if is_ours(needed) and needed.lower() not in opened]
        troubles += [f"{name} needs {needed}, which is opened later or not at all" for needed in late]
        opened |= {name.lower(), header.name.lower()}
    return troubles


def role_troubles(folder: Path) -> list:
    """What the server's own search says about the folder."""
    from ctypes_api.errors import LibsError
    from ctypes_api.folder import read_folder

    try:
        files = read_folder(folder)
    except LibsError as error:
        return [str(error)]
    has_cpu = any(name.startswith("cpu") for name in files.plugins) or any("cpu" in path.name for path in files.order)
    return [] if has_cpu else ["no CPU backend"]


def missing_functions(folder: Path, manifest: dict) -> list:
    """Functions that the server can't do without and that no library in the order of opening names."""
    from ctypes_api import ggml, llama

    data = b"".join((folder / name).read_bytes() for name in manifest["load_order"])
    rows = (*ggml.BASE_ROWS, *ggml.REGISTRY_ROWS, *llama.ROWS)
    # an ELF table lets names share their ends, and Mach-O puts a `_` before each: so only the end is looked at
    return [f"no function {row.name}" for row in rows if row.required and row.name.encode() + b"\0" not in data]


def is_ours(name: str) -> bool:
    """A library of llama.cpp, rather than of the system."""
    return bool(core_role(name) or plugin_family(name))


def summary(folder: Path) -> str:
    """What is in it, and what the system has to have."""
    manifest = read_manifest(folder)
    size = sum(facts["size"] for facts in manifest["files"].values())
    needed = {name for file in manifest["files"] for name in read_header(folder / file).needed if not is_ours(name)}
    return (
        f"llama.cpp {manifest['version']}, {len(manifest['files'])} files, {megabytes(size)}; opened in the order "
        f"{', '.join(map(posixpath.basename, manifest['load_order']))}; from the system: "
        f"{', '.join(sorted(needed, key=str.lower))}"
    )
