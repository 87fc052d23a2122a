"""Extract the libraries, licences and build notes of an untrusted archive, or of the user's folder.

Called by the fetching scripts on their main thread; imports the standard library and `common`. Each extracted file
gets a number as its name in a scratch folder. The links of an archive become entries of a table. Paths from the archive
are never written to, and links are never created.

The way not taken: `extractall` with filters, which differ between Python versions.
"""

from __future__ import annotations

import gzip
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

try:
    from lzma import LZMAError
except ImportError:  # this Python can't read .tar.xz
    LZMAError = EOFError

LIBRARY_NAME = re.compile(r"^[^/\\]+\.(?:dll|dylib|so(?:\.\d+)*)$", re.IGNORECASE)
LICENCE_NAME = re.compile(r"^(?:LICEN[CS]E|COPYING|NOTICE|THIRD_PARTY_NOTICES)(?:[.-]\w+)?$", re.IGNORECASE)
BUILD_NOTE = "_nlcBuildMetadata.json"  # in node-llama-cpp's packages: names the llama.cpp release
MAX_FILES = 2000  # extracted from one source
MAX_BYTES = 16 << 30  # extracted from one source
MAX_LINK_HOPS = 8
WALK_DEPTH = 4  # levels of subfolders that are searched
READ_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    gzip.BadGzipFile,
    LZMAError,
    EOFError,
    UnicodeError,
    NotImplementedError,
    RuntimeError,
)


class Unpacked(NamedTuple):
    """Relative POSIX paths in the sources -> files on disk. A link maps to the file that it leads to."""

    libraries: dict
    licences: dict
    notes: dict


class _Collector:
    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.files: dict = {}
        self.links: dict = {}
        self.bytes = 0

    def is_wanted(self, path: str) -> bool:
        name = posixpath.basename(path)
        return bool(LIBRARY_NAME.match(name) or LICENCE_NAME.match(name) or name == BUILD_NOTE)

    def add(self, path: str, source: IO[bytes], size: int) -> None:
        self.bytes += size
        if len(self.files) >= MAX_FILES or self.bytes > MAX_BYTES:
            raise Failure(
                f"the archive has more than {MAX_FILES} libraries, or more than {MAX_BYTES >> 30} GiB of them: "
                "use one with llama.cpp's libraries only"
            )
        target = self.scratch / str(len(self.files))
        with open(target, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        self.files[path] = target

    def resolve_links(self) -> dict:
        """All files, and the links that lead to one of them within MAX_LINK_HOPS hops."""
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
    """Read archives (.zip, .whl, .tar, .tar.gz, .tar.xz) and folders. Raises Failure if one is missing, damaged,
    unsafe or too large."""
    found: dict = {}
    for number, source in enumerate(sources):
        folder = scratch / str(number)
        folder.mkdir()
        collector = _Collector(folder)
        _read(Path(source), collector)
        found.update(collector.resolve_links())
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
        raise Failure(f"{source} doesn't exist: pass the path of a llama.cpp archive (.zip, .tar.gz) or folder")
    try:
        if zipfile.is_zipfile(source):
            _read_zip(source, collector)
        else:
            _read_tar(source, collector)
    except tarfile.ReadError as error:
        raise Failure(
            f"{source} is not a complete archive (.zip, .whl, .tar, .tar.gz or .tar.xz): download it again"
        ) from error
    except READ_ERRORS as error:
        raise Failure(f"{source} is damaged ({error}): download it again") from error


def _read_tar(source: Path, collector: _Collector) -> None:
    with tarfile.open(source, "r:*") as archive:
        for member in archive:
            path = make_safe_path(member.name, source)
            if not collector.is_wanted(path):
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
            path = make_safe_path(info.filename, source)
            if info.is_dir() or not collector.is_wanted(path):
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                collector.links[path] = _link_end(path, archive.read(info).decode("utf-8", "replace"))
                continue
            with archive.open(info) as member:
                collector.add(path, member, info.file_size)


def _read_folder(source: Path, collector: _Collector) -> None:
    """Copy the files of the user's own folder. Links to files are followed. Licences in subfolders are left out."""
    for folder, names, files in os.walk(source):
        depth = len(Path(folder).relative_to(source).parts)
        if depth >= WALK_DEPTH:
            names.clear()
        for name in sorted(files):
            path = Path(folder, name)
            inside = path.relative_to(source).as_posix()
            if collector.is_wanted(inside) and path.is_file() and not (depth and LICENCE_NAME.match(name)):
                with open(path, "rb") as file:
                    collector.add(inside, file, path.stat().st_size)


def make_safe_path(name: str, source: Path) -> str:
    """The member's path, normalised. Raises Failure if it is absolute or leads out of the archive."""
    path = posixpath.normpath(name.replace("\\", "/"))
    if path.startswith(("/", "../")) or path == ".." or re.match(r"^[A-Za-z]:", path):
        raise Failure(f"{source} contains the unsafe path {name!r}: don't use it, download it from its publisher")
    return path


def _link_end(path: str, target: str) -> str:
    """The target of a symlink at `path` as a path in the archive. Absolute and escaping targets match no member."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target.replace("\\", "/")))


def extract_one(source: Path, member: str, target: Path) -> None:
    """Copy the regular file `member` out of a trusted archive. Raises Failure if it can't be read."""
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
        raise Failure(f"{source} has no readable {member} ({error}): delete it and run this again") from error
