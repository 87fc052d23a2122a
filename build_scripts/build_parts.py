"""Build a library that npm's packages lack, from the source of the installed libllama, and add it to libllama's folder.

Called by fetch_libs on its main thread, for libmtmd (images and audio) and libggml-rpc (workers). Builds on Linux only.
Imports the standard library and this folder. npm's node-llama-cpp has the source as a git bundle. Links in the folder
lead from the names that the new library needs (`libllama.so.0`) to the installed files.

The way not taken: building all of llama.cpp. That takes longer, and gives libraries that aren't tested.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from archives import extract_one
from common import (
    Failure,
    Progress,
    check_space,
    get_this_platform,
    make_temp_folder,
    replace_file,
    run_child,
    sha256_of,
)
from native_files import find_core_role, read_header, read_manifest, write_manifest
from packages import Fetcher

BUILD_BYTES = 700_000_000  # disk space for source and object files
TOOLS = (("git",), ("cmake",), ("c++", "g++", "clang++"), ("cc", "gcc", "clang"), ("ninja", "make"))
INSTALL_HINT = (
    "apt-get install git cmake g++ make (Debian, Ubuntu), dnf install git cmake gcc-c++ make (Fedora), "
    "apk add git cmake g++ make linux-headers (Alpine)"
)
CMAKE_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "CMAKE_SHARED_LINKER_FLAGS": "-s",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "CMAKE_INSTALL_RPATH": "$ORIGIN",
    "GGML_CPU": "OFF",
    "GGML_NATIVE": "OFF",
    "GGML_OPENMP": "OFF",
    "GGML_CCACHE": "OFF",
    "LLAMA_BUILD_COMMON": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_TOOLS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}
STEP = re.compile(r"^\[\s*(\d+)(?:/(\d+)\]|%\])", re.MULTILINE)  # ninja's [12/345], make's [ 12%]
SMOKE = """
import ctypes, json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
for name in json.loads(sys.argv[2]):
    library = ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
function = library[sys.argv[3]]
function.restype = ctypes.c_void_p
sys.exit(0 if function() else 'no answer')
"""


class Part(NamedTuple):
    """A library to build."""

    library: str  # file name
    target: str  # cmake's name of it
    flag: str  # option of fetch_libs
    options: dict  # of cmake
    function: str  # C function without parameters, called to test the library; returns a pointer
    role: str = ""  # key in the manifest; "" for a plug-in


MTMD = Part("libmtmd.so", "mtmd", "--with-mtmd", {"LLAMA_BUILD_MTMD": "ON"}, "mtmd_default_marker", "mtmd")
RPC = Part(
    "libggml-rpc.so", "ggml-rpc", "--with-rpc", {"GGML_RPC": "ON", "GGML_BACKEND_DL": "ON"}, "ggml_backend_rpc_reg"
)


def add_part(part: Part, folder: Path, cache: Path, fetcher: Fetcher, progress: Progress) -> bool:
    """Add a library to an installed folder; returns False if it is already there. Raises Failure."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise Failure(f"{folder} has no readable manifest: run fetch_libs.py --force first")
    if part.library in manifest["files"] or part.role and manifest[part.role]:
        return False
    if manifest["platform"] != get_this_platform() or sys.platform != "linux":
        raise Failure(
            f"{part.library} can only be built on Linux, for the same platform: run fetch_libs.py {part.flag} on a "
            f"{manifest['platform']} machine, if that is Linux"
        )
    source = fetcher.lock.get(f"npm:source-{manifest['version']}")
    if source is None:
        raise Failure(
            f"the source of llama.cpp {manifest['version']} isn't in the lock file: "
            f"build {part.library} with your own build and import both with --from"
        )
    built = cache / part.target / f"{manifest['version']}-{manifest['platform']}" / part.library
    if not built.is_file():
        require_tools()
        progress.say(f"  building {part.library} of llama.cpp {manifest['version']} from source (once, some minutes)")
        _build(part, built, fetcher.get(source), cache, progress)
    _install(part, folder, manifest, built)
    progress.say(f"  {part.library} added to {folder}")
    return True


def require_tools() -> None:
    missing = [names[0] for names in TOOLS if not any(shutil.which(name) for name in names)]
    if missing:
        raise Failure(f"the build needs {', '.join(missing)}: {INSTALL_HINT}, then run this again")


def _build(part: Part, target: Path, package: Path, cache: Path, progress: Progress) -> None:
    check_space(cache, BUILD_BYTES)
    with make_temp_folder(cache, part.target) as temp:
        bundle, tree, objects = temp / "source.bundle", temp / "source", temp / "build"
        extract_one(package, "package/llama/gitRelease.bundle", bundle)
        options = [f"-D{name}={value}" for name, value in {**CMAKE_OPTIONS, **part.options}.items()]
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        jobs = str(len(os.sched_getaffinity(0)))
        steps = (
            ("source", ["git", "clone", "--quiet", str(bundle), str(tree)]),
            ("configure", ["cmake", "-S", str(tree), "-B", str(objects), *generator, *options]),
            ("compile", ["cmake", "--build", str(objects), "--target", part.target, "--parallel", jobs]),
        )
        begun = time.monotonic()
        for number, (name, command) in enumerate(steps, start=1):
            result = run_child(
                command,
                folder=temp,
                progress=progress,
                describe=functools.partial(
                    _describe, f"  {part.target} {number}/{len(steps)} {name}", temp / "client.log"
                ),
            )
            if result.code != 0:
                raise Failure(
                    f"{part.library}: step {name} failed: {_find_complaint(result.output)}; "
                    f"check compiler and cmake ({INSTALL_HINT})"
                )
        real = next((path for path in objects.rglob(part.library + "*") if not path.is_symlink()), None)
        if real is None:
            raise Failure(f"the build ended without a {part.library}: update the checkout")
        replace_file(real, target)
        progress.say(f"  {part.library} built in {time.monotonic() - begun:.0f} s")


def _describe(label: str, log: Path, seconds: float) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4000))
        steps = STEP.findall(file.read().decode("utf-8", "replace"))
    done, total = steps[-1] if steps else ("", "")
    count = f" [{done}/{total}]" if total else f" [{done} %]" if done else ""
    return f"{label}{count}  {seconds:.0f} s"


def _find_complaint(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines[-1:] or ["no output"]
    return telling[0][:200]


def _install(part: Part, folder: Path, manifest: dict, built: Path) -> None:
    """Add links, library and manifest in this order: the manifest only names files that exist and load."""
    name = part.library
    links = find_wanted_links(manifest, read_header(built).needed)
    with make_temp_folder(folder, part.target) as temp:
        for link, end in links.items():
            (temp / link).symlink_to(end)
            os.replace(temp / link, folder / link)
        shutil.copyfile(built, temp / name)
        os.replace(temp / name, folder / name)
    try:
        _run_smoke(part, folder, manifest["load_order"] + [name])
    except Failure:
        for path in (folder / name, built, *(folder / link for link in links if link not in manifest["links"])):
            path.unlink()
        raise
    facts = {"sha256": sha256_of(folder / name), "size": (folder / name).stat().st_size}
    changes = {"links": {**manifest["links"], **links}, "files": {**manifest["files"], name: facts}}
    if part.role:
        changes[part.role] = name
    else:
        changes["backend_plugins"] = [*manifest["backend_plugins"], name]
    write_manifest(folder, {**manifest, **changes})


def find_wanted_links(manifest: dict, needed: tuple) -> dict:
    """Names that a library needs -> the names of the same libraries in the folder, where they differ."""
    by_role = {find_core_role(name): name for name in manifest["load_order"] if find_core_role(name)}
    return {
        name: by_role[find_core_role(name)]
        for name in needed
        if find_core_role(name) in by_role and name not in manifest["files"]
    }


def _run_smoke(part: Part, folder: Path, order: list) -> None:
    result = subprocess.run(
        [sys.executable, "-I", "-c", SMOKE, str(folder), json.dumps(order), part.function],
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise Failure(f"the built {part.library} doesn't load ({last}, {platform.platform()}): update the checkout")
