"""Makes bundles, shows and checks them, and takes them apart: `--bundle` and the options that belong to it.

Main thread, instead of serving; `extract` where a model is loaded.

Way not taken: reflinks into the new file. Few file systems have them, and only for aligned parts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from server.errands.bundle import (
    ALIGN,
    MMPROJ,
    MODEL,
    ONE_FILE_START,
    Bundle,
    BundleError,
    Part,
    get_side_file,
    read,
    read_program_size,
    tail_of,
)
from server.program import can_show_progress, choose_advice

BLOCK = 8 << 20  # bytes
GGUF_MAGIC = b"GGUF"
WINDOWS_START = b"MZ"


def make(
    base: Path | None,
    output: Path,
    model: Path,
    mmproj: Path | None,
    defaults: tuple[tuple[str, str], ...],
    made_by: str,
) -> Bundle:
    """Write the bundle `output` from the one-file program `base` (None for a side file) and the parts. BundleError."""
    sources = [(MODEL, model)] + ([(MMPROJ, mmproj)] if mmproj else [])
    for _, path in sources:
        _check_gguf(path)
    head, program_sha256 = _read_program_size(base) if base else 0, ""
    needed = head + sum(path.stat().st_size + ALIGN for _, path in sources)
    with _open_whole(output, needed) as out:
        if base:
            with open(base, "rb") as stream:
                program_sha256 = _copy(stream, out, head)
        parts = []
        for role, path in sources:
            out.write(bytes(-out.tell() % ALIGN))
            offset, size = out.tell(), path.stat().st_size
            with open(path, "rb") as stream:
                parts.append(Part(role, path.name, offset, size, _copy(stream, out, size, path.name)))
        bundle = Bundle(output, head, made_by, defaults, tuple(parts), program_sha256)
        out.write(tail_of(bundle, out.tell()))
    if base:
        output.chmod(0o755)
    return bundle


def make_with_side_file(
    base: Path | None,
    output: Path,
    model: Path,
    mmproj: Path | None,
    defaults: tuple[tuple[str, str], ...],
    made_by: str,
) -> list[Path]:
    """Write the program and its side file; without `base` only the side file. Returns the paths."""
    side = get_side_file(output)
    make(None, side, model, mmproj, defaults, made_by)
    if base is None:
        return [side]
    size = _read_program_size(base)
    with _open_whole(output, size) as out, open(base, "rb") as stream:
        _copy(stream, out, size)
    output.chmod(0o755)
    return [output, side]


def describe_bundle(bundle: Bundle) -> str:
    lines = [f"{bundle.path}: made by {bundle.made_by}"]
    if bundle.program_size:
        lines.append(f"  program: {bundle.program_size} bytes")
    lines += [
        f"  {part.role}: {part.name}, {part.size} bytes at {part.offset}, sha256 {part.sha256}" for part in bundle.parts
    ]
    lines += [f"  starts with: {key} = {value}" for key, value in bundle.defaults]
    return "\n".join(lines)


def check(bundle: Bundle) -> None:
    """Hash the program and all parts again. BundleError names those that were changed."""
    wrong = []
    pieces = [(part.name, part.offset, part.size, part.sha256) for part in bundle.parts]
    if bundle.program_sha256:
        pieces.insert(0, ("the program", 0, bundle.program_size, bundle.program_sha256))
    with open(bundle.path, "rb") as stream:
        for name, offset, size, sha256 in pieces:
            stream.seek(offset)
            if _copy(stream, None, size, name) != sha256:
                wrong.append(name)
    if wrong:
        raise BundleError(f"{bundle.path} is damaged ({', '.join(wrong)}): download it again")


def take_apart(bundle: Bundle, folder: Path) -> list[Path]:
    """Write program and parts into `folder`, and return the paths. BundleError if one exists."""
    pieces = [(part.name, part.offset, part.size, part.sha256) for part in bundle.parts]
    if bundle.program_size:
        pieces.insert(0, ("llama-srv", 0, bundle.program_size, bundle.program_sha256))
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / Path(name).name for name, *_ in pieces]
    for path in paths:
        if path.exists():
            raise BundleError(f"{path} exists already: name another folder, or remove the file")
    with open(bundle.path, "rb") as stream:
        for path, (name, offset, size, sha256) in zip(paths, pieces):
            stream.seek(offset)
            with _open_whole(path, size) as out:
                if _copy(stream, out, size, name) != sha256 and sha256:
                    raise BundleError(f"{bundle.path} is damaged ({name}): download it again")
    if bundle.program_size:
        paths[0].chmod(0o755)
    return paths


def extract(bundle: Bundle, part: Part, cache: Path) -> Path:
    """The path of a part as a file in `cache`, written at the first call, for libraries that need one."""
    path = cache / "parts" / f"{part.sha256[:16]}-{Path(part.name).name}"
    try:
        if path.stat().st_size == part.size:
            return path
    except OSError:
        path.parent.mkdir(parents=True, exist_ok=True)
    with open(bundle.path, "rb") as stream, _open_whole(path, part.size) as out:
        stream.seek(part.offset)
        if _copy(stream, out, part.size, part.name) != part.sha256:
            raise BundleError(f"{bundle.path} is damaged ({part.name}): download it again")
    return path


def _read_program_size(base: Path) -> int:
    """The size in bytes of the program in `base`, perhaps a bundle."""
    try:
        with open(base, "rb") as stream:
            start = stream.read(4096)
    except OSError as error:
        raise BundleError(f"--base {base} can't be read: {error.strerror}") from None
    if not start.startswith((ONE_FILE_START, WINDOWS_START)):
        raise BundleError(
            f"{base} is not the one-file program: name one with --base (llama-srv-PLATFORM-BACKEND"
            + choose_advice(", made by build_scripts/build_exe.py)", ")")
        )
    bundle = read(base)
    size = base.stat().st_size
    if bundle is None and read_program_size(start) > size:
        raise BundleError(f"{base} is incomplete: download it again")
    return bundle.program_size if bundle else size


def _check_gguf(path: Path) -> None:
    try:
        with open(path, "rb") as stream:
            is_gguf = stream.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError as error:
        raise BundleError(f"{path} can't be read: {error.strerror}") from None
    if not is_gguf:
        raise BundleError(f"{path} is not a GGUF file")


@contextlib.contextmanager
def _open_whole(path: Path, needed: int) -> Iterator[BinaryIO]:
    """Open a new file that appears under its name only when it is complete."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise BundleError(f"{path.parent} has too little room: {needed >> 20} MiB needed, {free >> 20} MiB free")
        with open(temp, "wb") as out:
            yield out
        os.replace(temp, path)
    except OSError as error:
        raise BundleError(f"{path} can't be written: {error.strerror or error}") from None
    finally:
        temp.unlink(missing_ok=True)


def _copy(source: BinaryIO, target: BinaryIO | None, size: int, label: str = "") -> str:
    """Copy `size` bytes and return their sha256; without a target only hash. Shows progress on a terminal."""
    digest, left = hashlib.sha256(), size
    is_shown = bool(label) and can_show_progress() and size > 16 * BLOCK
    while left:
        block = source.read(min(BLOCK, left))
        if not block:
            raise BundleError(f"{getattr(source, 'name', 'the file')} ended {left} bytes early: download it again")
        digest.update(block)
        if target is not None:
            target.write(block)
        left -= len(block)
        if is_shown:
            print(f"\r{label}: {(size - left) / size:4.0%}", end="" if left else "\n", file=sys.stderr, flush=True)
    return digest.hexdigest()


def get_default_output(model: Path) -> Path:
    """The bundle's path without --output: `./NAME` for `.../NAME.gguf`, on Windows `./NAME.exe`."""
    return Path(model.stem + (".exe" if sys.platform == "win32" else ""))
