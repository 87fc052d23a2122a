"""Packs the one-folder program as an archive, and the archive as a one-file program for Linux and macOS.

Called by build_exe on its main thread; imports the standard library and `common`. The one-file program is a shell
script (one_file.sh, padded to a fixed length) followed by the archive. The first start compares the file with the
sha256 in it (or with its POSIX `cksum` on systems without a tool for sha256), and unpacks the archive to a folder in
the user's cache, named after the sha256. Each start ends with `exec` of the program in that folder.

The way not taken: PyInstaller's own one-file mode (which is used on Windows). It unpacks 50 MB at every start, keeps a
second process to delete them, leaves them behind when killed, and fails if the temporary folder is mounted noexec.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from common import Failure

HEAD = Path(__file__).with_name("one_file.sh")
HEAD_SIZE = 8192  # bytes
FOLDER = "llama-srv"  # top folder of the archive; the program in it has the same name
STAMP = 315532800  # Unix time of all files: 1980-01-01, the first day that every archive format supports
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # each byte with its bits in reverse
GLIBC = re.compile(rb"(?<=\0)GLIBC_2\.(\d{1,3})(?:\.\d+)?\0")


class Packed(NamedTuple):
    """An archive of the one-folder program."""

    path: Path
    unpacked: int  # bytes
    glibc: int | None  # N of the newest glibc 2.N that a file requires; None: no file uses glibc


def pack(folder: Path, archive: Path) -> Packed:
    """Write `folder` as a .tar.gz whose bytes depend only on the files' names, contents, links and executable flags."""
    unpacked, glibc = 0, None
    with open(archive, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed, tarfile.open(
        fileobj=packed, mode="w", format=tarfile.PAX_FORMAT
    ) as tar:
        for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
            entry = tarfile.TarInfo(f"{FOLDER}/{path.relative_to(folder).as_posix()}")
            entry.mtime = STAMP
            if path.is_symlink():
                entry.type, entry.linkname = tarfile.SYMTYPE, str(path.readlink())
                tar.addfile(entry)
            elif path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            else:
                entry.size = path.stat().st_size
                entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                unpacked += entry.size
                glibc = max(filter(None, (glibc, find_newest_glibc(path))), default=None)
                with open(path, "rb") as file:
                    tar.addfile(entry, file)
    return Packed(archive, unpacked, glibc)


def find_newest_glibc(path: Path) -> int | None:
    """N of the newest GLIBC_2.N among the symbol versions of an ELF file; None for other files or without any."""
    data = path.read_bytes()
    if data[:4] != b"\x7fELF":
        return None
    return max((int(minor) for minor in GLIBC.findall(data)), default=None)


def write_one_file(packed: Packed, title: str, target: Path) -> None:
    values = {
        "TITLE": title,
        "HEAD": HEAD_SIZE,
        "SIZE": packed.path.stat().st_size,
        "GLIBC": "''" if packed.glibc is None else packed.glibc,
        "ROOM": packed.unpacked // 10**6 + 1,
        "ARCHIVE": packed.path.name,
        "CRC": "0" * 10,
        "SUM": "0" * 64,
    }
    head = re.sub(r"@(\w+)@", lambda found: str(values[found[1]]), HEAD.read_text(encoding="utf-8")).encode()
    if len(head) > HEAD_SIZE:
        raise Failure(f"{HEAD.name} has more than {HEAD_SIZE} bytes: raise HEAD_SIZE")
    head = with_sums(head.ljust(HEAD_SIZE, b"\n"), packed.path)
    with open(target, "wb") as out:
        out.writelines(read_content(head, None, packed.path))
    target.chmod(0o755)


def with_sums(head: bytes, archive: Path) -> bytes:
    """The head with both checksums; the sha256 covers the cksum."""
    head = fill_in(head, rb"crc='", f"{compute_cksum(read_content(head, rb'(?:crc|sum)=', archive)):<10}")
    return fill_in(head, rb"sum=", compute_sha256(read_content(head, rb"sum=", archive)))


def fill_in(head: bytes, name: bytes, value: str) -> bytes:
    """The head with a value in place of the zeros after `name`."""
    return re.sub(rb"(?m)^(" + name + rb")0+", lambda found: found[1] + value.encode(), head)


def read_content(head: bytes, left_out: bytes | None, archive: Path) -> Iterator[bytes]:
    """The bytes that a checksum covers: the head without lines that begin with `left_out`, and the archive."""
    yield re.sub(rb"(?m)^" + left_out + rb".*\n", b"", head) if left_out else head
    with open(archive, "rb") as file:
        while block := file.read(1 << 20):
            yield block


def compute_sha256(blocks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def compute_cksum(blocks: Iterable[bytes]) -> int:
    """The POSIX `cksum`: zlib's CRC of content and length, with the bits of each byte and of the result reversed."""
    register, length = 0xFFFFFFFF, 0
    for block in blocks:
        register, length = zlib.crc32(block.translate(REVERSED), register), length + len(block)
    count = length.to_bytes((length.bit_length() + 7) // 8, "little")
    return int(f"{zlib.crc32(count.translate(REVERSED), register):032b}"[::-1], 2)
