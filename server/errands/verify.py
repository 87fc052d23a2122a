"""`--verify`: are the files of this program, and llama.cpp's, what they were when they were made?

Runs on the main thread instead of a server. Sums come from where each part was made: the bill of materials in the
folder of an executable, the head of the one-file program, the manifest of the native libraries, a bundle's index.

Not taken: hashing at each start. It takes 40 to 80 ms for the libraries alone, a fifth of the time until the server
listens; a start compares their sizes, and the one-file program was compared as a whole before it was unpacked."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

from server import program
from server.errands.bundle import ONE_FILE_START, Bundle, program_size
from server.errands.bundle_make import check
from server.errors import StartError

BILL, MANIFEST = "sbom.cdx.json", "manifest.json"
HEAD_SUM = re.compile(rb"(?m)^sum=([0-9a-f]{64})\n")
HEAD_SIZE = re.compile(rb"(?m)^head=(\d+) ")
LIBRARY = re.compile(r"(?i)(?:lib)?(?:ggml|llama|mtmd)\b.*\.(?:so|dylib|dll)\b.*")


def report(libs: Path, own: Bundle | None) -> str:
    """What was compared, for people. StartError names each file that isn't what it was, BundleError for a bundle's."""
    wrong, lines = [], []
    for folder, sums in ((Path(sys.executable).parent, bill_sums()), (libs, library_sums(libs))):
        if sums:
            wrong += [str(folder / name) for name, digest in sums.items() if sha256_of(folder / name) != digest]
            lines.append(f"{folder}: {len(sums)} files are what they were")
    wrong += [str(path) for path in strange_libraries(libs)]
    if program.is_frozen() and not is_whole(program.own_file()):
        wrong.append(str(program.own_file()))
    if wrong:
        raise StartError(f"not what it was: {', '.join(dict.fromkeys(wrong))}. Remove its folder and get it again")
    if own:
        check(own)
        lines.append(f"{own.path}: all parts are what they were")
    return "\n".join(lines) or f"{libs} has no {MANIFEST}: nothing to compare with"


def sha256_of(path: Path) -> str:
    """The sum of a file; "" for one that can't be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def bill_sums() -> dict[str, str]:
    """File -> sum, of the folder that this executable is in."""
    bill = Path(sys.executable).parent / BILL
    if not program.is_frozen() or not bill.is_file():
        return {}
    rows = json.loads(bill.read_text(encoding="utf-8"))["components"]
    return {file["name"]: file["hashes"][0]["content"] for row in rows for file in row["components"]}


def library_sums(libs: Path) -> dict[str, str]:
    """File -> sum, of the native libraries."""
    try:
        files = json.loads((libs / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError) as error:
        raise StartError(f"{libs / MANIFEST} can't be read ({error}): get the libraries again") from None
    return {name: facts["sha256"] for name, facts in files.items()}


def strange_libraries(libs: Path) -> list[Path]:
    """Libraries that no manifest knows: llama.cpp would load them."""
    known = library_sums(libs)
    if not known:
        return []
    found = (path for path in sorted(libs.iterdir()) if path.is_file() and not path.is_symlink())
    return [path for path in found if LIBRARY.fullmatch(path.name) and path.name not in known]


def is_whole(file: Path) -> bool:
    """Whether a one-file program is what its head says, the way build_scripts/one_file.sh looks; True for others."""
    with open(file, "rb") as stream:
        start = stream.read(4096)
        size, found = program_size(start), HEAD_SUM.search(start)
        if not start.startswith(ONE_FILE_START) or not size:
            return True
        stream.seek(0)
        head = stream.read(int(HEAD_SIZE.search(start)[1]))  # type: ignore[index]
        digest, left = hashlib.sha256(HEAD_SUM.sub(b"", head)), size - len(head)
        while left > 0 and (block := stream.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return found is not None and left == 0 and digest.hexdigest().encode() == found[1]
