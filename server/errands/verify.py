"""`--verify`: checks that the files of this program and of llama.cpp are unchanged.

Main thread, instead of serving. Each part has its checksums: an executable's folder has a bill of materials, the
one-file program has them in its head, the native libraries have a manifest, a bundle has its index.

Way not taken: hashing at each start, which would take 40 to 80 ms. A start compares the libraries' sizes, and a
one-file program is checked when it is unpacked.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

from server import program
from server.errands.bundle import ONE_FILE_START, Bundle, read_program_size
from server.errands.bundle_make import check
from server.errors import StartError

BILL, MANIFEST = "sbom.cdx.json", "manifest.json"
HEAD_SUM = re.compile(rb"(?m)^sum=([0-9a-f]{64})\n")
HEAD_SIZE = re.compile(rb"(?m)^head=(\d+) ")
LIBRARY = re.compile(r"(?i)(?:lib)?(?:ggml|llama|mtmd)\b.*\.(?:so|dylib|dll)\b.*")


def report(libs: Path, own: Bundle | None) -> str:
    """The result as text. StartError names each changed or unlisted file of the program or the libraries, BundleError
    those of a bundle."""
    wrong, lines = [], []
    for folder, sums in ((Path(sys.executable).parent, bill_sums()), (libs, read_library_sums(libs))):
        if sums:
            wrong += [str(folder / name) for name, digest in sums.items() if sha256_of(folder / name) != digest]
            lines.append(f"{folder}: {len(sums)} files are unchanged")
    wrong += [str(path) for path in find_strange_libraries(libs)]
    if program.is_frozen() and not is_whole(program.find_own_file()):
        wrong.append(str(program.find_own_file()))
    if wrong:
        raise StartError(
            f"changed, or not part of the program: {', '.join(dict.fromkeys(wrong))}. "
            "Remove the folder and download it again"
        )
    if own:
        check(own)
        lines.append(f"{own.path}: all parts are unchanged")
    return "\n".join(lines) or f"{libs} has no {MANIFEST}: nothing to compare with"


def sha256_of(path: Path) -> str:
    """The checksum of a file; "" if it can't be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def bill_sums() -> dict[str, str]:
    """Checksums by file, for this executable's folder."""
    bill = Path(sys.executable).parent / BILL
    if not program.is_frozen() or not bill.is_file():
        return {}
    rows = json.loads(bill.read_text(encoding="utf-8"))["components"]
    return {file["name"]: file["hashes"][0]["content"] for row in rows for file in row["components"]}


def read_library_sums(libs: Path) -> dict[str, str]:
    """Checksums by file, for native libraries. StartError."""
    try:
        files = json.loads((libs / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError) as error:
        raise StartError(f"{libs / MANIFEST} can't be read ({error}): download the libraries again") from None
    return {name: facts["sha256"] for name, facts in files.items()}


def find_strange_libraries(libs: Path) -> list[Path]:
    """Libraries that the manifest doesn't list; llama.cpp would load them."""
    known = read_library_sums(libs)
    if not known:
        return []
    found = (path for path in sorted(libs.iterdir()) if path.is_file() and not path.is_symlink())
    return [path for path in found if LIBRARY.fullmatch(path.name) and path.name not in known]


def is_whole(file: Path) -> bool:
    """Whether a one-file program matches its head, as in build_scripts/one_file.sh. True for other files."""
    with open(file, "rb") as stream:
        start = stream.read(4096)
        size, found = read_program_size(start), HEAD_SUM.search(start)
        if not start.startswith(ONE_FILE_START) or not size:
            return True
        stream.seek(0)
        head = stream.read(int(HEAD_SIZE.search(start)[1]))  # type: ignore[index]
        digest, left = hashlib.sha256(HEAD_SUM.sub(b"", head)), size - len(head)
        while left > 0 and (block := stream.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return found is not None and left == 0 and digest.hexdigest().encode() == found[1]
