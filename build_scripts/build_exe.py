"""Build executables for this machine's system: `python build_scripts/build_exe.py [--backend NAME]
[--check-platform]`.

A command; one thread; imports the standard library, this folder, and the server's manual page. If this interpreter
lacks PyInstaller, the script runs in the tests' environment. It freezes the interpreter and this program, and adds the
native libraries, the web page, the manual, the licences and the bill of materials. The resulting folder becomes an
archive (the one-folder program) and a one-file program. Except on Windows, the same inputs give the same bytes.

The way not taken: passing libs/ and public/ to PyInstaller. It scans all files and adds each of llama.cpp's libraries a
second time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import check_platform
import contents
import elf_versions
import fetch_libs
import one_file
import windows_resources
from common import (
    ROOT,
    Failure,
    Progress,
    find_cache_folder,
    format_megabytes,
    get_this_platform,
    make_temp_folder,
    run_child,
    run_main,
    sha256_of,
    swap_in,
)
from native_files import read_manifest

from server.options.shells import render_manual  # noqa: E402

SPEC = Path(__file__).with_name("llama_srv.spec")
PROGRAM = "llama-srv"
ALIASES = ("llama-server", "server")  # names of llama.cpp's server in launch scripts: today's, and that of 2024
MANUAL = "llama-srv.1"
INPUTS = "inputs.json"
SUMS = "SHA256SUMS"
SOURCES = ("llama_srv.py", "ctypes_api", "server", "public", "LICENSE")
OUR_SCRIPTS = (
    "build_exe.py",
    "contents.py",
    "elf_versions.py",
    "one_file.py",
    "one_file.sh",
    "llama_srv.spec",
    "windows_resources.py",
    "licences",
)
# Environment variables for reproducible builds.
REPRODUCIBLE = {
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": str(one_file.STAMP),
    "PYTHONDONTWRITEBYTECODE": "1",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
}


class Built(NamedTuple):
    """The results of a build. `one_file` and `archive` are for distribution, `folder` is the program unpacked."""

    folder: Path
    archive: Path
    one_file: Path


# --- sources ------------------------------------------------------------------------------------------------


def list_source_files() -> list:
    found = []
    for name in SOURCES:
        path = ROOT / name
        files = path.rglob("*") if path.is_dir() else [path]
        found += [file for file in files if file.is_file() and "__pycache__" not in file.parts]
    return sorted(found)


def inputs_of(libs: Path) -> dict:
    scripts = [Path(__file__).with_name(name) for name in OUR_SCRIPTS]
    scripts = [file for path in scripts for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    digest = hashlib.sha256()
    for file in [*list_source_files(), *scripts]:
        digest.update(f"{file.relative_to(ROOT).as_posix()} {sha256_of(file)}\n".encode())
    return {
        "sources": digest.hexdigest(),
        "libs": sha256_of(libs / "manifest.json"),
        "python": f"{sys.version} {sys.base_prefix}",
        "platform": get_this_platform(),
    }


# --- building -----------------------------------------------------------------------------------------------


def ensure(libs: Path, dest: Path, progress: Progress) -> Built:
    """Build the executables with the libraries in `libs`, unless those in `dest` are up to date. Raises Failure."""
    manifest = read_manifest(libs)
    if manifest is None or f"{manifest['platform']}" != get_this_platform():
        raise Failure(
            f"{libs} has no manifest, or no libraries for {get_this_platform()}: fetch or import them with "
            "fetch_libs.py"
        )
    name = f"{PROGRAM}-{manifest['platform']}-{manifest['backend']}"
    is_windows = sys.platform == "win32"
    built = Built(
        dest / "folders" / name,
        dest / f"{name}{'.zip' if is_windows else '.tar.gz'}",
        dest / f"{name}{'.exe' if is_windows else ''}",
    )
    inputs = inputs_of(libs)
    if is_current(built, inputs):
        progress.say(f"  {name} is up to date")
        return built
    begun = time.monotonic()
    with make_temp_folder(dest, "build") as temp:
        folder = freeze(temp, libs, name, progress)
        (folder.parent / INPUTS).write_text(json.dumps(inputs), encoding="utf-8")
        finish(folder, built, temp, name, libs, progress)
        (dest / "folders").mkdir(exist_ok=True)
        swap_in(folder, built.folder, temp)
        os.replace(temp / INPUTS, get_inputs_file(built))
    write_sums(dest)
    progress.say(
        f"  {built.one_file}: {format_megabytes(built.one_file.stat().st_size)}, unpacked "
        f"{format_megabytes(sum(file.stat().st_size for file in built.folder.rglob('*') if file.is_file()))}, "
        f"{time.monotonic() - begun:.0f} s"
    )
    return built


def get_inputs_file(built: Built) -> Path:
    return built.folder.with_name(built.folder.name + "." + INPUTS)


def is_current(built: Built, inputs: dict) -> bool:
    try:
        noted = json.loads(get_inputs_file(built).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return noted == inputs and all(path.exists() for path in built)


def freeze(temp: Path, libs: Path, name: str, progress: Progress) -> Path:
    """Build the complete one-folder program in `temp`; returns its folder."""
    tree = temp / "tree"
    for file in list_source_files():
        target = tree / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    run_pyinstaller(temp, tree, "", progress)
    folder = temp / "dist" / PROGRAM
    inner = folder / "_internal"
    strip(inner)
    for file in inner.rglob("*.so*") if sys.platform.startswith("linux") else ():
        elf_versions.lower(file)
    shutil.copytree(tree / "public", inner / "public")
    (folder / MANUAL).write_text(render_manual(contents.read_server_version()), encoding="utf-8", newline="\n")
    copy_libs(libs, inner / "libs" / libs.name)
    contents.write_documents(folder, libs, name)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.name in (PROGRAM, f"{PROGRAM}.exe") else 0o644)
    if sys.platform != "win32":  # on Windows most users may not create links
        for alias in ALIASES:
            (folder / alias).symlink_to(PROGRAM)
    shutil.move(str(folder), str(temp / PROGRAM))
    return temp / PROGRAM


def run_pyinstaller(temp: Path, tree: Path, one_file_of: str, progress: Progress) -> None:
    """Run PyInstaller on the spec. Raises Failure with the last line of its output."""
    environment = {
        **os.environ,
        **REPRODUCIBLE,
        "LLAMA_SRV_TREE": str(tree),
        "LLAMA_SRV_ONE_FILE": one_file_of,
        "PYINSTALLER_CONFIG_DIR": str(temp / "config"),
        **windows_resources.write(temp),
    }
    environment.pop("PYTHONPATH", None)
    command = [
        sys.executable,
        "-m",
        "PyInstaller",
        "--noconfirm",
        "--log-level",
        "WARN",
        "--distpath",
        str(temp / "dist"),
        "--workpath",
        str(temp / "work"),
        str(SPEC),
    ]
    outcome = run_child(
        command, folder=temp, env=environment, progress=progress, describe=lambda seconds: f"  freezing {seconds:.0f} s"
    )
    if outcome.code:
        lines = [line for line in outcome.output.splitlines() if line.strip()] or ["no output"]
        raise Failure(f"PyInstaller failed: {lines[-1]}")


def strip(inner: Path) -> None:
    """On Linux, remove debug information from Python's libraries if `strip` is installed. Other systems keep it in
    separate files."""
    program = shutil.which("strip")
    if program is None or not sys.platform.startswith("linux"):
        return
    files = [str(path) for path in sorted(inner.rglob("*.so*")) if path.is_file()]
    subprocess.run([program, "--strip-debug", *files], check=True, stdin=subprocess.DEVNULL)


def copy_libs(libs: Path, target: Path) -> None:
    """Copy the manifest, its files and links, abi.json and the licences."""
    target.mkdir(parents=True)
    manifest = read_manifest(libs)
    extras = ["manifest.json", "abi.json", *(path.name for path in libs.glob("LICENSE*"))]
    for name in [*manifest["files"], *(name for name in extras if (libs / name).is_file())]:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(libs / name, target / name)
    for name, to in manifest.get("links", {}).items():
        os.symlink(to, target / name)


def finish(folder: Path, built: Built, temp: Path, name: str, libs: Path, progress: Progress) -> None:
    """Make the archive and the one-file program; put the bill of materials beside them."""
    progress.say(f"  packing {name}")
    if sys.platform == "win32":
        archive = Path(shutil.make_archive(str(temp / name), "zip", folder.parent, folder.name))
        run_pyinstaller(temp, temp / "tree", str(folder / "_internal"), progress)
        single = temp / "dist" / f"{PROGRAM}.exe"
    else:
        archive, single = temp / built.archive.name, temp / name
        packed = one_file.pack(folder, archive)
        one_file.write_one_file(packed, name, single)
    shutil.copyfile(folder / contents.SBOM, built.one_file.parent / f"{name}.{contents.SBOM.partition('.')[2]}")
    os.replace(archive, built.archive)
    os.replace(single, built.one_file)


def write_sums(dest: Path) -> None:
    """Write SHA256SUMS of all files for distribution, in the format of `sha256sum -c`."""
    lines = [
        f"{sha256_of(path)}  {path.name}\n"
        for path in sorted(dest.iterdir())
        if path.is_file() and path.name.startswith(PROGRAM)
    ]
    (dest / SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


# --- the command --------------------------------------------------------------------------------------------


def run_in_environment(argv: list) -> int | None:
    """Run this script with the tests' interpreter and return its exit code; None if this interpreter has
    PyInstaller."""
    import importlib.util

    if importlib.util.find_spec("PyInstaller"):
        return None
    import test as test_command

    folder = test_command.get_environment_folder()
    python = test_command.get_python(folder)
    if Path(sys.executable) == python:
        raise Failure(f"PyInstaller isn't in the tests' environment: delete {folder} and run this again")
    test_command.prepare_packages(folder)
    return subprocess.run([str(python), __file__, *argv], check=False).returncode


def parse(argv: list) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="build_exe.py", description="Build executables for this system.")
    add = parser.add_argument
    add("--backend", help="libraries to include: cpu, cuda, vulkan, metal (default: metal on Apple silicon, else cpu)")
    add("--libs", type=Path, metavar="DIR", help="include the libraries of this folder instead")
    add("--dest", type=Path, default=ROOT / "dist", metavar="DIR", help="output folder (default: dist)")
    add("--offline", action="store_true", help="download nothing")
    add("--quiet", action="store_true", help="show no progress")
    add(
        "--check-platform",
        nargs="?",
        const="all",
        metavar="NAME",
        help="check the libraries of one variant (such as macos-arm64-metal) or all, without building",
    )
    return parser.parse_args(argv)


def run_command(argv: list) -> int:
    options = parse(argv)
    progress = Progress(quiet=options.quiet)
    if options.check_platform:
        return check_platform.check(options.check_platform, find_cache_folder(), progress, options.offline)
    code = run_in_environment(argv)
    if code is not None:
        return code
    libs = options.libs or fetch_libs.ensure_with_media(
        None, options.backend, progress=progress, offline=options.offline
    )
    built = ensure(libs.resolve(), options.dest, progress)
    print(built.one_file)
    return 0


def main(argv: list | None = None) -> int:
    return run_main("build_exe", lambda: run_command(list(sys.argv[1:] if argv is None else argv)))


if __name__ == "__main__":
    sys.exit(main())
