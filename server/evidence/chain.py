"""The file of `--record`: lines of JSON, each with the hash of the line before.

A line ends with `,"prev":"<hash of the line before>","hash":"<SHA-256 of all before this field>"}`. Its number `n` is
one more than that of the line before. Changing any byte breaks a hash or the format. A full file is renamed to FILE.1,
FILE.1 to FILE.2, and FILE.2 replaces FILE.3. The chain continues in a new file. After a half-written line, the server's
next start adds one of the kind `torn`, with the fragment's hash.

Only one thread may use a `Chain`.

Way not taken: signing with a key. Whoever can write the file can usually read the key. To prove that the end of the
file wasn't replaced, keep the last hash elsewhere.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server.errors import StartError
from server.records import record

START = "0" * 64  # `prev` of the first line
N_FILES = 4  # the file that grows, and three older ones
MAX_LINE = 32 << 20  # bytes
TAIL = re.compile(rb',"prev":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"\}\n')
N_HASH = len(',"hash":""}\n') + 64  # bytes of a line from `hash` on
N_TAIL = len(',"prev":""') + 64 + N_HASH  # bytes of a line from `prev` on
BLOCK = 1 << 16  # bytes of the first read at a file's end

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class RecordError(StartError):
    """The file can't be used as a record. The text is one line for the user."""


@record(frozen=True)
class Line:
    path: Path
    """The file that has this line."""
    number: int
    """Its number in this file, from 1."""
    content: dict[str, Any]
    hash: str


@record
class Sums:
    """Counts of a whole record."""

    n_lines: int = 0
    n_requests: int = 0
    n_lost: int = 0
    """Requests that couldn't be recorded."""
    n_unclosed: int = 0
    """Starts of the server with no stop before the next start."""
    n_torn: int = 0
    """Half-written lines."""
    first: int = 0
    """The number of the first line."""
    last: int = -1
    """The number of the last line."""
    hash: str = START
    """The hash of the last line."""


def files_of(path: Path) -> list[Path]:
    """The files of a record, the oldest first."""
    older = (path.with_name(f"{path.name}.{i}") for i in range(N_FILES - 1, 0, -1))
    return [one for one in (*older, path) if one.is_file()]


def cut(line: bytes) -> tuple[dict[str, Any], str, str] | None:
    """The content, `prev` and hash of a line; None if it was changed or is no line of a record."""
    found = TAIL.fullmatch(line[-N_TAIL:])
    if found is None:
        return None
    if _compute_sha256(line[:-N_HASH]).encode() != found[2]:
        return None
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content, found[1].decode(), found[2].decode()


def join(content: dict[str, Any], prev: str) -> tuple[bytes, str]:
    """A line and its hash; the reverse of `cut`."""
    head = f'{_encode(content)[:-1]},"prev":"{prev}"'.encode()
    digest = _compute_sha256(head)
    return head + f',"hash":"{digest}"}}\n'.encode(), digest


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a record. RecordError at the first changed or missing line, or if there are none."""
    files = files_of(path)
    if not files:
        raise RecordError(f"{path}: this file doesn't exist")
    prev, is_first, torn, bad = START, True, b"", ""
    n: Any = 0
    for file in files:
        with open(file, "rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), 1):
                where, found = f"{file}, line {number}", cut(line)
                if torn:
                    if not (
                        found
                        and found[0].get("kind") == "torn"
                        and found[0].get("sha256") == _compute_sha256(torn[:-1])
                    ):
                        raise RecordError(f"{bad}: it was changed")
                    torn = b""
                elif found is None:
                    torn, bad = line, where
                    continue
                content, before, digest = found
                if is_first:
                    prev, n, is_first = (START if content.get("n") == 0 else before), content.get("n"), False
                if before != prev or content.get("n") != n or type(n) is not int:
                    raise RecordError(f"{where}: it doesn't follow the line before: lines are missing or were changed")
                yield Line(file, number, content, digest)
                prev, n = digest, n + 1
    if torn:
        raise RecordError(f"{bad}, the last one: it was changed or cut off")
    if is_first:
        raise RecordError(f"{path} has no lines")


def check(path: Path) -> Sums:
    """Read a whole record. RecordError as in `read_lines`."""
    sums, is_open = Sums(), False
    for line in read_lines(path):
        content, kind = line.content, line.content.get("kind")
        if not sums.n_lines:
            sums.first = content["n"]
        sums.n_lines += 1
        sums.n_requests += kind == "request"
        sums.n_torn += kind == "torn"
        sums.n_lost += content.get("requests", 0) if kind == "lost" else 0
        sums.n_unclosed += kind == "start" and is_open
        is_open = is_open if kind not in ("start", "stop") else kind == "start"
        sums.last, sums.hash = content["n"], line.hash
    return sums


def report(path: Path) -> str:
    """The output of `verify FILE`. RecordError as in `read_lines`."""
    sums = check(path)
    lines = [f"{path}: {sums.n_lines} lines, {sums.n_requests} requests; nothing was changed"]
    notes = (
        (sums.first, f"lines before number {sums.first} were in older files, which have been deleted"),
        (sums.n_lost, f"{sums.n_lost} requests couldn't be recorded; lines in their places say so"),
        (sums.n_torn, f"{sums.n_torn} lines are cut off, because the machine stopped while writing"),
        (
            sums.n_unclosed,
            f"the server was killed {sums.n_unclosed} times: the last requests before that may be missing",
        ),
    )
    lines += [text for is_so, text in notes if is_so]
    lines.append(f"the last line is number {sums.last}: {sums.hash}")
    return "\n".join(lines)


def _compute_sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- writing ---------------------------------------------------------------------------------------------------------


class Chain:
    """Appends to a record whose files have about `most` bytes together. RecordError if the file can't be used, is not a
    record, or is written by another server (not noticed on Windows)."""

    def __init__(self, path: Path, most: int) -> None:
        self._path = path
        self._most = most // N_FILES
        self.is_new = True  # this object has added no line to the file yet
        self._n, self._prev = 0, START
        self._file = self._size = -1
        try:
            self._open()
        except OSError as error:
            raise RecordError(f"--record {path}: {error.strerror or error}") from None

    def append(self, content: dict[str, Any], before: bytes = b"") -> None:
        """Write `before` and then a line. OSError if that fails; the file is then as before. ValueError if the line is
        too long."""
        line, digest = join({**content, "n": self._n}, self._prev)
        if len(line) > MAX_LINE:
            raise ValueError(f"a line of {len(line)} bytes")
        self._write(before + line)
        self._n, self._prev, self.is_new = self._n + 1, digest, False

    def make_room(self) -> None:
        """Continue in a new file if this one is full; then `is_new` is true."""
        if self._size < self._most:
            return
        os.close(self._file)  # an open file can't be renamed on Windows
        try:
            for i in range(N_FILES - 1, 0, -1):
                newer = self._path.with_name(f"{self._path.name}.{i - 1}") if i > 1 else self._path
                if newer.exists():
                    os.replace(newer, self._path.with_name(f"{self._path.name}.{i}"))
        finally:
            self._file = _open_locked(self._path)
            self._size = os.fstat(self._file).st_size
            self.is_new = not self._size

    def close(self) -> None:
        os.close(self._file)

    def _open(self) -> None:
        """Find the end of the chain, and end a half-written line."""
        self._file = _open_locked(self._path)
        try:
            self._size = os.fstat(self._file).st_size
            lines = _read_last_lines(self._path)
            torn = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
            if torn and cut(torn + b"\n"):  # only the line end is missing
                self._write(b"\n")
                lines, torn = [torn + b"\n"], b""
            older = files_of(self._path)[:-1]
            if not lines and older:  # the server was killed between two files
                lines = _read_last_lines(older[-1])
            last = cut(lines[-1]) if lines else None
            if last is None and (lines or not (torn or b"{").startswith(b"{")):
                raise RecordError(f"--record {self._path}: this file is not a record, or its last line was changed")
            if last is not None:
                self._n, self._prev = last[0]["n"] + 1, last[2]
            if torn:
                self.append({"kind": "torn", "sha256": _compute_sha256(torn)}, before=b"\n")
        except BaseException:
            os.close(self._file)
            raise

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)


def _read_last_lines(path: Path) -> list[bytes]:
    """The last two lines of a file, or fewer; the very last one may be cut off."""
    with open(path, "rb") as stream:
        end = at = stream.seek(0, os.SEEK_END)
        data = b""
        while at > 0 and data[:-1].count(b"\n") < 2 and end - at <= 2 * MAX_LINE:
            at = max(at - max(BLOCK, end - at), 0)
            stream.seek(at)
            data = stream.read(end - at)
    return data.splitlines(keepends=True)[-2:]


def _open_locked(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    file = os.open(path, flags, 0o600)
    try:
        import fcntl
    except ImportError:  # Windows
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            os.close(file)
            raise RecordError(f"--record {path}: another server is writing this file") from None
    return file
