"""Pack all that an offline machine with Python needs: `python build_scripts/pack_offline.py [--platform NAME]`.

A command; one thread; imports the standard library and this folder. It writes one archive with the source tree, the
libraries for the chosen platform, the small model, the packages of the tests as wheels (not with --no-tests), and
OFFLINE.md with the commands for that machine.

The way not taken: a container image, which needs a container engine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import fetch_libs
import fetch_model
from common import (
    ROOT,
    Failure,
    Progress,
    find_cache_folder,
    format_megabytes,
    get_this_platform,
    make_temp_folder,
    replace_file,
    run_child,
    run_main,
)
from one_file import STAMP
from packages import find_pip

TOP = "llama_srv-offline"
NOT_OURS = {".git", "__pycache__", ".pytest_cache", ".hypothesis", "build", "dist", "libs"}  # folders to leave out
# Platform -> tags of wheels that run on it.
WHEEL_TAGS = {
    "linux-x64": (
        "manylinux_2_34_x86_64",
        "manylinux_2_28_x86_64",
        "manylinux_2_17_x86_64",
        "manylinux2014_x86_64",
        "manylinux_2_5_x86_64",
        "manylinux1_x86_64",
    ),
    "linux-arm64": (
        "manylinux_2_34_aarch64",
        "manylinux_2_28_aarch64",
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
    ),
    "macos-arm64": ("macosx_14_0_arm64", "macosx_12_0_arm64", "macosx_11_0_arm64", "macosx_10_13_universal2"),
    "macos-x64": (
        "macosx_14_0_x86_64",
        "macosx_12_0_x86_64",
        "macosx_10_13_x86_64",
        "macosx_10_12_x86_64",
        "macosx_10_9_x86_64",
        "macosx_10_13_universal2",
    ),
    "windows-x64": ("win_amd64",),
    "windows-arm64": ("win_arm64",),
}
README = """\
# llama_srv without a network

This folder contains everything and may be anywhere. It is for {platform} and needs Python 3.10 or newer{tests_need}.

## Serve

    {python} llama_srv.py -m cache/models/{model}

Open the address that it prints in a browser. Any other GGUF file works as well.

## Test

{tests}
## What is where

    llama_srv.py, server/, ...   the program, as in its repository; begin with README.md
    libs/{variant}/   llama.cpp, for {platform}
    cache/models/     the small model SmolLM2-135M-Instruct
{wheels}"""
TESTS = """\
Unix:

    export LLAMA_SRV_CACHE="$PWD/cache" PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels
    {python} build_scripts/quickstart.py --offline
    {python} build_scripts/test.py

Windows (PowerShell):

    $env:LLAMA_SRV_CACHE = "$PWD\\cache"; $env:PIP_NO_INDEX = 1; $env:PIP_FIND_LINKS = "wheels"
    {python} build_scripts\\test.py

Run them in this folder. The first line sets paths. `quickstart.py` starts a server with the small model. `test.py`
installs the wheels into an environment in cache/ and runs the tests; tests that need a browser or packages for Node.js
are skipped.
"""
NO_TESTS = "The archive has no packages for the tests (it was packed with --no-tests).\n"


def list_repository_files() -> list:
    """The files that git tracks; without git all files except generated ones."""
    done = (
        subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False)
        if (ROOT / ".git").exists()
        else None
    )
    if done is not None and done.returncode == 0:
        paths = [ROOT / os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
        return [path for path in paths if path.is_file()]
    files = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(set(folders) - NOT_OURS)
        files += [Path(folder) / name for name in sorted(names)]
    return [*files, ROOT / "libs" / "README.md"]


def fetch_wheels(folder: Path, platform: str, python: str, offline: bool, progress: Progress) -> None:
    """Download the packages of requirements-dev.txt for a platform and Python version to `folder`."""
    pip = find_pip()
    if pip is None:
        raise Failure("pip isn't installed: install it, or omit the tests with --no-tests")
    folder.mkdir()
    command = [
        *pip,
        "download",
        "--requirement",
        str(ROOT / "requirements-dev.txt"),
        "--dest",
        str(folder),
        "--only-binary",
        ":all:",
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
    ]
    if platform != get_this_platform() or python != get_own_python():
        command += ["--python-version", python, "--implementation", "cp"]
        command += [word for tag in WHEEL_TAGS[platform] for word in ("--platform", tag)]
    if offline:
        command.append("--no-index")
    outcome = run_child(
        command,
        folder=folder,
        progress=progress,
        describe=lambda seconds: f"  fetching wheels for Python {python}, {seconds:.0f} s",
    )
    (folder / "client.log").unlink()
    if outcome.code:
        telling = [line for line in outcome.output.splitlines() if "ERROR" in line] or ["no output"]
        raise Failure(
            f"the tests' packages can't be fetched ({telling[-1].strip()}): fix that, or omit them with --no-tests"
        )


def get_own_python() -> str:
    """The version of this interpreter, such as `3.11`."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def render_readme(platform: str, variant: str, model: str, python: str, has_tests: bool) -> str:
    command = "python" if platform.startswith("windows") else "python3"
    return README.format(
        platform=platform,
        variant=variant,
        model=model,
        python=command,
        tests_need=f" (the tests: Python {python} with pip)" if has_tests else "",
        tests=TESTS.format(python=command) if has_tests else NO_TESTS,
        wheels="    wheels/           the packages of the tests\n" if has_tests else "",
    )


def add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a file with reproducible bytes. A link within a folder stays a link, because two copies of a library would
    both be loaded; other links are replaced by their targets."""
    entry = tarfile.TarInfo(f"{TOP}/{name}")
    entry.mtime = STAMP
    if path.is_symlink() and os.path.dirname(os.readlink(path)) == "":
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path)
        tar.addfile(entry)
        return
    entry.size = path.stat().st_size
    entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
    with open(path, "rb") as file:
        tar.addfile(entry, file)


def add_folder(tar: tarfile.TarFile, folder: Path, name: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            add(tar, path, f"{name}/{path.relative_to(folder).as_posix()}")


def pack(options: argparse.Namespace, progress: Progress) -> Path:
    """Fetch what is missing and write the archive, uncompressed; returns its path."""
    dest = fetch_libs.LIBS if options.platform == get_this_platform() else find_cache_folder() / "packed-libs"
    libs = fetch_libs.ensure_with_media(
        options.platform, options.backend, progress=progress, offline=options.offline, dest=dest
    )
    model = fetch_model.ensure(progress=progress, offline=options.offline)
    output = options.output or Path(f"{TOP}-{libs.name}.tar")
    with make_temp_folder(output.resolve().parent, "pack") as temp:
        if options.tests:
            fetch_wheels(temp / "wheels", options.platform, options.python, options.offline, progress)
        text = render_readme(options.platform, libs.name, model.name, options.python, options.tests)
        (temp / "OFFLINE.md").write_text(text, encoding="utf-8", newline="\n")
        with tarfile.open(temp / "archive", "w", format=tarfile.PAX_FORMAT) as tar:
            add(tar, temp / "OFFLINE.md", "OFFLINE.md")
            for path in list_repository_files():
                add(tar, path, path.relative_to(ROOT).as_posix())
            add_folder(tar, libs, f"libs/{libs.name}")
            add(tar, model, f"cache/models/{model.name}")
            if options.tests:
                add_folder(tar, temp / "wheels", "wheels")
        replace_file(temp / "archive", output)
    progress.say(f"  {output}: {format_megabytes(output.stat().st_size)}; unpack it and read {TOP}/OFFLINE.md")
    return output


def parse(argv: list | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pack_offline.py", description="Pack everything that a machine without a network needs into one archive."
    )
    add = parser.add_argument
    add(
        "--platform",
        choices=sorted(WHEEL_TAGS),
        default=get_this_platform(),
        help="target platform (default: this one)",
    )
    add("--backend", help="cpu, cuda, vulkan or metal (default: metal on Apple silicon, else cpu)")
    add(
        "--python", default=get_own_python(), metavar="3.N", help="target Python, for the tests (default: this version)"
    )
    add("--no-tests", dest="tests", action="store_false", help="omit the packages for the tests")
    add("--output", type=Path, metavar="FILE", help="output (default: llama_srv-offline-PLATFORM-BACKEND.tar)")
    add("--offline", action="store_true", help="download nothing: use only files in the cache")
    add("--quiet", action="store_true", help="show no progress")
    return parser.parse_args(argv)


def run_command(options: argparse.Namespace) -> int:
    print(pack(options, Progress(quiet=options.quiet)))
    return 0


def main(argv: list | None = None) -> int:
    return run_main("pack_offline", lambda: run_command(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
