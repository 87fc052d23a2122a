"""Take the shared libraries and licences out of an archive or folder, whoever made it, without trusting it.

Called by fetch_libs on its main thread; imports the standard library and `common`. One pass: every regular
member that looks like a shared library is written under a number of our own into a scratch folder, links
become entries of a table. No path from an archive is ever used to write, and no link from one is ever
created.

The way not taken: `extractall` with filters, which differ between Python versions and write hundreds of files
we don't want (headers, executables, JavaScript).
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple

from common import Failure

LIBRARY_NAME = re.compile(r"^[^/\\]+\.(?:dll|dylib|so(?:\.\d+)*)$", re.IGNORECASE)
LICENCE_NAME = re.compile(r"^(?:LICEN[CS]E|COPYING|NOTICE|THIRD_PARTY_NOTICES)(?:[.-]\w+)?$", re.IGNORECASE)
BUILD_NOTE = "_nlcBuildMetadata.json"  # node-llama-cpp's note of the llama.cpp release inside
MAX_FILES = 2000
MAX_BYTES = 16 << 30
MAX_LINK_HOPS = 8
WALK_DEPTH = 4
READ_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    UnicodeError,
    NotImplementedError,
    RuntimeError,
)


class Unpacked(NamedTuple):
    """Paths inside the sources (posix, relative) -> files on disk. Links are resolved to the same file."""

    libraries: dict
    licences: dict
    notes: dict


class _Collector:
    """Gathers members of one or more sources; numbers the files it writes."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.files: dict = {}
        self.links: dict = {}
        self.bytes = 0

    def wants(self, path: str) -> bool:
        name = posixpath.basename(path)
        return bool(LIBRARY_NAME.match(name) or LICENCE_NAME.match(name) or name == BUILD_NOTE)

    def add(self, path: str, source: IO[bytes], size: int) -> None:
        self.bytes += size
        if len(self.files) >= MAX_FILES or self.bytes > MAX_BYTES:
            raise Failure(
                f"more than {MAX_FILES} libraries or {MAX_BYTES >> 30} GiB of them in the archive: "
                "give one with llama.cpp's libraries only"
            )
        target = self.scratch / str(len(self.files))
        with open(target, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        self.files[path] = target

    def resolved(self) -> dict:
        """All files plus every link whose end is one of them; a link that leads elsewhere is left out."""
        found = dict(self.files)
        for path in self.links:
            end = path
            for _ in range(MAX_LINK_HOPS):
                if end not in self.links:
                    break
                end = self.links[end]
            if end in self.files:
                found[path] = self.files[end]
        return found


def unpack(sources: list, scratch: Path) -> Unpacked:
    """Read archives (.zip, .whl, .tar, .tar.gz, .tar.xz) and folders; raises Failure on anything odd."""
    found: dict = {}
    for number, source in enumerate(sources):
        folder = scratch / str(number)
        folder.mkdir()
        collector = _Collector(folder)
        _read(Path(source), collector)
        found.update(collector.resolved())
    by_name = {path: posixpath.basename(path) for path in found}
    return Unpacked(
        libraries={path: found[path] for path, name in by_name.items() if LIBRARY_NAME.match(name)},
        licences={path: found[path] for path, name in by_name.items() if LICENCE_NAME.match(name)},
        notes={path: found[path] for path, name in by_name.items() if name == BUILD_NOTE},
    )


def _read(source: Path, collector: _Collector) -> None:
    if source.is_dir():
        _read_folder(source, collector)
        return
    if not source.is_file():
        raise Failure(f"{source} doesn't exist: give the path of a llama.cpp archive (.zip, .tar.gz) or folder")
    try:
        if zipfile.is_zipfile(source):
            _read_zip(source, collector)
        else:
            _read_tar(source, collector)
    except tarfile.ReadError as error:
        raise Failure(
            f"{source} is no complete archive (.zip, .whl, .tar, .tar.gz, .tar.xz are known): download it again"
        ) from error
    except READ_ERRORS as error:
        raise Failure(f"{source} is damaged ({error}): download it again") from error


def _read_tar(source: Path, collector: _Collector) -> None:
    with tarfile.open(source, "r:*") as archive:
        for member in archive:
            path = safe_path(member.name, source)
            if not collector.wants(path):
                continue
            if member.issym():
                collector.links[path] = _link_end(path, member.linkname)
            elif member.islnk():
                collector.links[path] = posixpath.normpath(member.linkname)
            elif member.isreg():
                collector.add(path, archive.extractfile(member), member.size)


def _read_zip(source: Path, collector: _Collector) -> None:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            path = safe_path(info.filename, source)
            if info.is_dir() or not collector.wants(path):
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                collector.links[path] = _link_end(path, archive.read(info).decode("utf-8", "replace"))
                continue
            with archive.open(info) as member:
                collector.add(path, member, info.file_size)


def _read_folder(source: Path, collector: _Collector) -> None:
    """A folder is the user's own, so links in it are followed; copies are made, nothing there is changed."""
    for folder, names, files in os.walk(source):
        depth = len(Path(folder).relative_to(source).parts)
        if depth >= WALK_DEPTH:
            names.clear()
        for name in sorted(files):
            path = Path(folder, name)
            inside = path.relative_to(source).as_posix()
            if collector.wants(inside) and path.is_file() and not (depth and LICENCE_NAME.match(name)):
                with open(path, "rb") as file:
                    collector.add(inside, file, path.stat().st_size)


def safe_path(name: str, source: Path) -> str:
    """The member's path, normalised. An archive that tries to leave its folder is refused as a whole."""
    path = posixpath.normpath(name.replace("\\", "/"))
    if path.startswith(("/", "../")) or path == ".." or re.match(r"^[A-Za-z]:", path):
        raise Failure(f"{source} holds the unsafe path {name!r}: don't use this archive, get it from its maker")
    return path


def _link_end(path: str, target: str) -> str:
    """Where a symlink at `path` points, as an archive path; absolute and escaping ones match no member."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target.replace("\\", "/")))


def extract_one(source: Path, member: str, target: Path) -> None:
    """Copy the one regular file called `member` out of an archive of ours (its sha256 was checked)."""
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive, archive.open(member) as content, open(target, "wb") as out:
                shutil.copyfileobj(content, out, 1 << 20)
        else:
            with tarfile.open(source, "r:*") as archive, archive.extractfile(member) as content, open(
                target, "wb"
            ) as out:
                shutil.copyfileobj(content, out, 1 << 20)
    except (KeyError, *READ_ERRORS) as error:
        raise Failure(f"{source} holds no readable {member} ({error}): delete it and run this again") from error
