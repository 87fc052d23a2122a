"""Fetch, import, list and verify the native libraries: `python build_scripts/fetch_libs.py --help`.

A command; other scripts call `ensure` and `ensure_with_media`; one thread; imports the standard library and this
folder. VARIANTS names the packages, libs.lock.json pins their content. A variant becomes libs/<platform>-<backend>/
with manifest.json. The folder is checked before it is renamed into place: even after a crash it is complete or absent.

The way not taken: committing the libraries, or a package manager of our own.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import sys
import time
from pathlib import Path
from typing import NamedTuple

import build_parts
from archives import unpack
from build_parts import MTMD, RPC, add_part
from common import (
    ROOT,
    Failure,
    Progress,
    check_space,
    find_cache_folder,
    format_megabytes,
    get_this_platform,
    make_temp_folder,
    parse_version,
    read_glibc_version,
    run_main,
    swap_in,
)
from native_files import PLATFORMS, arrange, find_changed_files, find_missing_files, read_manifest, write_folder
from packages import LOCK, Archive, Fetcher, find_npm, find_pip, load_lock, relock

LIBS = ROOT / "libs"
SOURCES = ("auto", "npm", "pip")
DESCRIPTION = "Fetch the native llama.cpp libraries into libs/<platform>-<backend>/."
EXAMPLES = (
    "Without options: the default variant for this machine. Examples: fetch_libs.py --backend cuda; "
    "fetch_libs.py --from llama-bin-ubuntu-x64.tar.gz; fetch_libs.py --platform windows-x64 --dest D"
)
CUDA_NOTE = (
    "needs an NVIDIA driver and the CUDA 13 runtime (cudart, cublas) on the library path; with CUDA 12 it uses "
    "the build in fallback/"
)
VULKAN_NOTE = "needs a Vulkan driver and loader (libvulkan.so.1 or vulkan-1.dll)"
ARMV7L_NOTE = (
    "the published package for linux-armv7l contains 64-bit libraries, which don't load on that platform: build "
    "llama.cpp on the device (-DBUILD_SHARED_LIBS=ON) and import it with --from"
)


class Variant(NamedTuple):
    """Libraries for a platform and backend. `npm` and `pip` are alternatives."""

    platform: str
    backend: str
    npm: tuple  # keys of the lock file
    pip: tuple = ()  # keys of the lock file
    note: str = ""  # printed after the fetching: what the variant needs
    unusable: str = ""  # why the variant can't be fetched

    @property
    def name(self) -> str:
        return f"{self.platform}-{self.backend}"


VARIANTS = (
    Variant("linux-x64", "cpu", ("npm:linux-x64",), ("pip:linux-x64",)),
    Variant("linux-x64", "cuda", ("npm:linux-x64-cuda", "npm:linux-x64-cuda-ext"), note=CUDA_NOTE),
    Variant("linux-x64", "vulkan", ("npm:linux-x64-vulkan",), note=VULKAN_NOTE),
    Variant("linux-arm64", "cpu", ("npm:linux-arm64",)),
    Variant("linux-armv7l", "cpu", ("npm:linux-armv7l",), unusable=ARMV7L_NOTE),
    Variant("macos-arm64", "metal", ("npm:mac-arm64-metal",), ("pip:macos-arm64",)),
    Variant("macos-x64", "cpu", ("npm:mac-x64",), ("pip:macos-x64",)),
    Variant("windows-x64", "cpu", ("npm:win-x64",), ("pip:windows-x64",)),
    Variant("windows-x64", "cuda", ("npm:win-x64-cuda", "npm:win-x64-cuda-ext"), note=CUDA_NOTE),
    Variant("windows-x64", "vulkan", ("npm:win-x64-vulkan",), note=VULKAN_NOTE),
    Variant("windows-arm64", "cpu", ("npm:win-arm64",)),
)


def choose_default_backend(platform: str) -> str:
    """The backend that every machine of a platform can use."""
    return "metal" if platform == "macos-arm64" else "cpu"


def find_variant(platform: str, backend: str | None) -> Variant:
    backend = backend or choose_default_backend(platform)
    for variant in VARIANTS:
        if (variant.platform, variant.backend) == (platform, backend):
            return variant
    known = ", ".join(variant.name for variant in VARIANTS)
    raise Failure(
        f"there are no ready-made libraries for {platform}-{backend} (known: {known}): build llama.cpp for it and "
        "import that with --from"
    )


# --- state --------------------------------------------------------------------------------------------------


def read_folder_state(folder: Path, variant: Variant | None, lock: dict) -> str:
    """`absent`, `damaged`, `imported`, `outdated` or `current`. Files are checked by size, not by hash."""
    if not folder.is_dir():
        return "absent"
    manifest = read_manifest(folder)
    if manifest is None or find_missing_files(folder, manifest):
        return "damaged"
    source = manifest.get("source", {})
    if source.get("kind") == "import" or variant is None:
        return "imported"
    pinned = [[lock[key].sha256 for key in rows] for rows in (variant.npm, variant.pip) if rows]
    return "current" if source.get("sha256") in pinned else "outdated"


# --- fetching -----------------------------------------------------------------------------------------------


def ensure(
    platform: str | None = None,
    backend: str | None = None,
    *,
    dest: Path = LIBS,
    cache: Path | None = None,
    lock: dict | None = None,
    progress: Progress | None = None,
    force: bool = False,
    offline: bool = False,
    source: str = "auto",
    with_mtmd: bool = False,
    with_rpc: bool = False,
) -> Path:
    """The folder of a variant. Fetches or builds what is missing, damaged or outdated. Raises Failure."""
    variant = find_variant(platform or get_this_platform(), backend)
    lock = load_lock() if lock is None else lock
    cache = find_cache_folder() if cache is None else cache
    progress = Progress() if progress is None else progress
    fetcher = Fetcher(cache, lock, progress, offline)
    folder = dest / variant.name
    builds_mtmd = (
        with_mtmd and variant.platform.startswith("linux") and not must_use_second_source(variant, folder, lock)
    )
    if with_mtmd and not builds_mtmd:
        if not variant.pip:
            raise Failure(
                f"no package contains libmtmd for {variant.name}: build llama.cpp with it and import that with --from"
            )
        source = "pip"
    state = read_folder_state(folder, variant, lock)
    lacks_mtmd = with_mtmd and not builds_mtmd and not (read_manifest(folder) or {}).get("mtmd")
    if lacks_mtmd and state == "imported" and not force:
        raise Failure(f"{folder} was imported without libmtmd: import a build that has it, or replace it with --force")
    if force or lacks_mtmd or state not in ("current", "imported"):
        if state not in ("absent", "current"):
            progress.say(f"  {folder} is {state}, fetching it again")
        _fetch(variant, folder, fetcher, source, with_mtmd)
    for part in [MTMD] * builds_mtmd + [RPC] * with_rpc:
        add_part(part, folder, cache, fetcher, progress)
    return folder


def must_use_second_source(variant: Variant, folder: Path, lock: dict) -> bool:
    """Whether libmtmd must come from pip's packages, because it can't be built here.

    Building is preferred: npm's libraries have code for each kind of CPU, pip's are one build."""
    if (read_manifest(folder) or {}).get("mtmd") or not variant.pip or variant.platform != get_this_platform():
        return False
    try:
        build_parts.require_tools()
    except Failure:
        return find_pip() is not None and load_trouble(variant, lock[variant.pip[0]]) is None
    return False


def ensure_with_media(platform: str | None, backend: str | None, *, progress: Progress, **options) -> Path:
    """`ensure` for libraries to distribute: with libmtmd on Linux and Apple silicon, unless that fails. For x64
    Windows and Macs only pip's packages contain it, and they need AVX2."""
    variant = find_variant(platform or get_this_platform(), backend)
    if variant.platform.startswith("linux") or variant.name == "macos-arm64-metal":
        try:
            return ensure(platform, backend, progress=progress, with_mtmd=True, **options)
        except Failure as failure:
            progress.say(f"  without libmtmd (images and audio): {failure}")
    return ensure(platform, backend, progress=progress, **options)


def _fetch(variant: Variant, folder: Path, fetcher: Fetcher, source: str, with_mtmd: bool = False) -> None:
    if variant.unusable:
        raise Failure(variant.unusable)
    begun = time.monotonic()
    require_writable(folder.parent)
    with contextlib.ExitStack() as stack:
        kind, rows, paths = _fetch_archives(variant, fetcher, source, stack)
    check_space(folder.parent, sum(row.unpacked for row in rows))
    _, manifest = install(
        paths,
        folder.parent,
        platform=variant.platform,
        backend=variant.backend,
        version=rows[0].llama_cpp,
        source={"kind": kind, "packages": [row.spec for row in rows], "sha256": [row.sha256 for row in rows]},
    )
    fetcher.progress.say(f"  {_make_summary(folder, manifest)}, {time.monotonic() - begun:.1f} s")
    if variant.note:
        fetcher.progress.say(f"  {variant.name} {variant.note}")
    if not manifest["mtmd"] and not with_mtmd:
        fetcher.progress.say("  without libmtmd (images and audio): --with-mtmd adds it")


def require_writable(parent: Path) -> None:
    """Raise OSError before the download if `parent` isn't writable."""
    with make_temp_folder(parent, "probe"):
        pass


def _fetch_archives(variant: Variant, fetcher: Fetcher, source: str, stack: contextlib.ExitStack) -> tuple:
    """(kind, rows, paths) of the first source that works. Raises Failure."""
    sets = [
        (kind, [fetcher.lock[key] for key in keys])
        for kind, keys in (("npm", variant.npm), ("pip", variant.pip))
        if keys and source in ("auto", kind)
    ]
    if not sets:
        raise Failure(f"{variant.name} isn't available from {source}: omit --source")
    fitting = [(kind, rows) for kind, rows in sets if load_trouble(variant, rows[0]) is None]
    if not fitting:
        raise Failure(
            f"{variant.name}: {load_trouble(variant, sets[0][1][0])}: build llama.cpp on this machine and "
            "import it with --from"
        )
    for kind, rows in fitting:
        if all(map(fetcher.has, rows)):
            return kind, rows, [fetcher.get(row) for row in rows]
    if fetcher.offline:
        wanted = " or ".join(" + ".join(row.file for row in rows) for _, rows in fitting)
        raise Failure(
            f"{variant.name} isn't in the cache: run this once with a network, or copy {wanted} to {fetcher.folder}"
        )
    troubles = ["npm isn't installed"] if find_npm() is None else []
    for kind, rows, private in _list_attempts(fitting):
        try:
            npm = _fetch_private_npm(fetcher, stack) if private else None
            total = format_megabytes(sum(row.size for row in rows))
            fetcher.progress.say(f"fetching {variant.name} with {kind}, {total}")
            return kind, rows, [fetcher.get(row, npm) for row in rows]
        except Failure as failure:
            if failure.final:
                raise
            troubles.append(f"{'npm from PyPI' if private else kind}: {failure}")
    raise Failure(
        f"{variant.name} could not be fetched ({'; '.join(troubles)}). Run this again with npm (Node.js) and a "
        "network, or import a llama.cpp archive with --from"
    )


def _list_attempts(sets: list) -> list:
    """(kind, rows, whether npm must come from PyPI) in the order to try."""
    without_npm = find_npm() is None
    plain = [(kind, rows, False) for kind, rows in sets if kind != "npm" or not without_npm]
    return plain + [(kind, rows, True) for kind, rows in sets if kind == "npm" and without_npm]


def _fetch_private_npm(fetcher: Fetcher, stack: contextlib.ExitStack) -> list:
    fetcher.progress.say("npm isn't installed: fetching one from PyPI, for this run only")
    temp = stack.enter_context(make_temp_folder(fetcher.folder, "npm"))
    return fetcher.unpack_private_npm(get_this_platform(), temp)


def load_trouble(variant: Variant, row: Archive) -> str | None:
    """Why these files wouldn't load on this machine; None if no reason is known, or they are for another platform."""
    if variant.platform != get_this_platform():
        return None
    ours = read_glibc_version()
    if row.glibc and (ours is None or parse_version(ours) < parse_version(row.glibc)):
        return f"its files need glibc {row.glibc}, this machine has {ours or 'another C library'}"
    if row.needs and not can_load(row.needs):
        return f"its files need {row.needs}, which isn't installed on this machine"
    return None


def can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def install(
    paths: list,
    dest: Path,
    *,
    platform: str | None = None,
    backend: str | None = None,
    version: str | None = None,
    source: dict,
) -> tuple:
    """Unpack archives or folders, check them, and put dest/<platform>-<backend> in place; returns (folder, manifest).

    Platform, backend and version default to those found in the files. Raises Failure.
    """
    with make_temp_folder(dest, "install") as temp:
        scratch, new = temp / "scratch", temp / "new"
        scratch.mkdir()
        new.mkdir()
        unpacked = unpack(paths, scratch)
        layout = arrange(unpacked, Path(paths[0]).name)
        form, machine = PLATFORMS.get(platform or layout.platform, (None, None))
        if layout.format != form or machine not in layout.machine.split("+"):
            raise Failure(
                f"these libraries are for {layout.platform or f'{layout.format} {layout.machine}'}, not for "
                f"{platform or 'a supported platform'}: get the archive for the right platform"
            )
        facts = {
            "platform": platform or layout.platform,
            "backend": backend or layout.backend,
            "version": version or layout.version,
            "source": source,
        }
        folder = dest / f"{facts['platform']}-{facts['backend']}"
        manifest = write_folder(new, layout, unpacked, facts)
        swap_in(new, folder, temp)
    return folder, manifest


def import_archives(
    paths: list,
    *,
    platform: str | None = None,
    backend: str | None = None,
    dest: Path = LIBS,
    progress: Progress | None = None,
) -> Path:
    """Install the user's own llama.cpp release archives or build; returns the folder. An older folder is replaced."""
    begun = time.monotonic()
    source = {"kind": "import", "packages": [Path(path).name for path in paths]}
    folder, manifest = install(paths, dest, platform=platform, backend=backend, source=source)
    if progress:
        progress.say(f"  {_make_summary(folder, manifest)}, {time.monotonic() - begun:.1f} s")
    return folder


def _make_summary(folder: Path, manifest: dict) -> str:
    size = sum(facts["size"] for facts in manifest["files"].values())
    extras = [f"{len(manifest['cpu_plugins'])} CPU plug-ins"] if manifest["cpu_plugins"] else []
    extras += manifest["backend_plugins"] + ([manifest["mtmd"]] if manifest["mtmd"] else [])
    version = manifest["version"] or "of unknown version"
    return ", ".join([f"{folder}: llama.cpp {version}", *extras, format_megabytes(size)])


# --- the command --------------------------------------------------------------------------------------------


def list_variants(dest: Path, fetcher: Fetcher) -> int:
    print(f"  {'variant':<22}{'llama.cpp':<11}{'download':>10}{'on disk':>10}  state")
    ours = f"{get_this_platform()}-{choose_default_backend(get_this_platform())}"
    for variant in VARIANTS:
        rows = [fetcher.lock[key] for key in variant.npm]
        folder = dest / variant.name
        state = read_folder_state(folder, variant, fetcher.lock)
        if state == "absent":
            state = "in the cache" if all(map(fetcher.has, rows)) else "-"
        elif (read_manifest(folder) or {}).get("mtmd"):
            state += " with libmtmd"
        if variant.unusable:
            state = "not usable (import your own)" if state == "-" else state
        mark = "*" if variant.name == ours else " "
        print(
            f"{mark} {variant.name:<22}{rows[0].llama_cpp:<11}{_format_total(rows, 'size'):>10}"
            f"{_format_total(rows, 'unpacked'):>10}  {state}"
        )
    known = {variant.name for variant in VARIANTS}
    for folder in sorted(path for path in dest.glob("*-*") if path.is_dir() and path.name not in known):
        manifest = read_manifest(folder)
        if manifest and not folder.name.startswith("."):
            print(f"  {folder.name:<22}{manifest['version'] or '?':<11}{'':>10}{'':>10}  imported")
    print(f"(* default for this machine; folders in {dest}, downloads in {fetcher.folder})")
    return 0


def _format_total(rows: list, field: str) -> str:
    return format_megabytes(sum(getattr(row, field) for row in rows))


def verify(dest: Path, only: str | None) -> int:
    """Hash the installed files again, of all folders or of the folder `only`. Returns 0; raises Failure if nothing is
    installed or something is damaged."""
    folders = [path for path in sorted(dest.glob("*-*")) if path.is_dir() and not path.name.startswith(".")]
    folders = [path for path in folders if only in (None, path.name)]
    if not folders:
        what = "nothing" if only is None else f"no {only}"
        raise Failure(f"{what} is installed in {dest}: run `python build_scripts/fetch_libs.py` first")
    bad = []
    for folder in folders:
        manifest = read_manifest(folder)
        wrong = ["manifest.json"] if manifest is None else find_changed_files(folder, manifest)
        finding = f"damaged ({', '.join(wrong)})" if wrong else f"{len(manifest['files'])} files ok"
        print(f"{folder.name}: {finding}")
        bad += [folder.name] if wrong else []
    if bad:
        raise Failure(
            f"damaged: {', '.join(bad)}: run fetch_libs.py --force with that --platform and --backend "
            "(or import the libraries again with --from)"
        )
    return 0


def parse(argv: list | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fetch_libs.py", description=DESCRIPTION, epilog=EXAMPLES)
    add = parser.add_argument
    add("--platform", choices=sorted(PLATFORMS), help="fetch for another machine (default: this one)")
    add("--backend", help="cpu, cuda, vulkan or metal (default: metal on Apple silicon, else cpu)")
    add(
        "--from",
        dest="sources",
        metavar="PATH",
        type=Path,
        action="append",
        default=[],
        help="import an archive (.zip, .whl, .tar.gz) or folder; may be repeated for several parts",
    )
    add("--list", action="store_true", help="show all variants with version, size and state")
    add("--verify", action="store_true", help="hash the installed files again and compare")
    add(
        "--with-mtmd",
        action="store_true",
        help="add libmtmd (images, audio). On Linux it is built, which needs git, cmake, a C++ compiler and some "
        "minutes. Without these tools all libraries come from pip's packages, if they run on this machine",
    )
    add(
        "--with-rpc",
        action="store_true",
        help="add libggml-rpc (computing on several machines). Linux only: it is built with the same tools",
    )
    add("--dest", type=Path, default=LIBS, metavar="DIR", help="output folder (default: libs)")
    add("--force", action="store_true", help="install again even if the folder is up to date")
    add("--offline", action="store_true", help="use only files in the cache")
    add("--source", choices=SOURCES, default="auto", help="client for downloads (default: npm, else pip)")
    add("--quiet", action="store_true", help="show no progress")
    add("--relock", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run_command(options: argparse.Namespace, lock_path: Path) -> int:
    progress = Progress(quiet=options.quiet)
    cache = find_cache_folder()
    if options.relock:
        return relock(lock_path, cache, progress)
    lock = load_lock(lock_path)
    only = None
    if options.platform:
        only = f"{options.platform}-{options.backend or choose_default_backend(options.platform)}"
    if options.verify:
        return verify(options.dest, only)
    if options.list:
        return list_variants(options.dest, Fetcher(cache, lock, progress, offline=True))
    if options.sources:
        folder = import_archives(
            options.sources, platform=options.platform, backend=options.backend, dest=options.dest, progress=progress
        )
        for part in [MTMD] * options.with_mtmd + [RPC] * options.with_rpc:
            add_part(part, folder, cache, Fetcher(cache, lock, progress, options.offline), progress)
    else:
        folder = ensure(
            options.platform,
            options.backend,
            dest=options.dest,
            cache=cache,
            lock=lock,
            progress=progress,
            force=options.force,
            offline=options.offline,
            source=options.source,
            with_mtmd=options.with_mtmd,
            with_rpc=options.with_rpc,
        )
    print(folder)
    return 0


def main(argv: list | None = None, lock_path: Path = LOCK) -> int:
    return run_main("fetch_libs", lambda: run_command(parse(argv), lock_path))


if __name__ == "__main__":
    sys.exit(main())
