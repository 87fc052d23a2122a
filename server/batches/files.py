"""Uploaded files and the files that batches write, in a folder. A key gets back only its own files.

Runs on connection threads and the threads `batch`, under a lock. A file is its content (`ID.jsonl`) and its description
(`ID.json`), which is written last and deleted first. Number, bytes and age of files are bounded. If there is no room,
uploads are refused and batches fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO

from server.errors import ApiError, StartError
from server.log import get_logger
from server.records import record

MAX_FILES = 10_000
MAX_AGE_S = 30 * 86400
SWEEP_S = 600.0  # seconds between two searches for expired files
N_ID = 16  # random bytes in an id
UPLOADED, WRITTEN = "batch", "batch_output"
"""Values of OpenAI's `purpose`: of uploads, and of files that batches write."""
CONTENT = re.compile(r"(file-[0-9a-f]{32})\.jsonl")
BINARY = getattr(os, "O_BINARY", 0)

log = get_logger("api")


@record(frozen=True)
class File:
    """The description of a file. Times are in seconds since the epoch."""

    id: str
    key_id: str
    filename: str
    purpose: str
    n_bytes: int
    created_at: int
    expires_at: int

    def as_json(self) -> dict[str, Any]:
        """The file in OpenAI's form."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.n_bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class Files:
    """The files in `folder`, at most `n_max` bytes together. StartError if the folder can't be used."""

    def __init__(self, folder: Path, n_max: int, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self.n_max = n_max
        self._now = now
        self._lock = threading.Lock()  # protects the fields below
        self._files: dict[str, File] = {}
        self._used: dict[str, int] = {}  # files that can't be deleted, with the number of batches that need each
        self._n_growing: dict[str, int] = {}  # bytes of content that isn't a file yet
        self._n_bytes = 0  # of all files together
        self._t_swept = now()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in folder.glob("*.json"):
                file = _read(path)
                if file is not None:
                    self._put(file)
        except OSError as error:
            raise StartError(f"--store-dir {folder} can't be used: {error.strerror}") from None

    def tidy(self, growing: Collection[str]) -> None:
        """Delete content without a description, left by interrupted uploads, unless a batch is writing it
        (`growing`)."""
        for path in self._folder.iterdir():
            found = CONTENT.fullmatch(path.name)
            if path.suffix == ".tmp" or found is not None and found[1] not in self._files and found[1] not in growing:
                with contextlib.suppress(OSError):
                    path.unlink()

    def add(self, key_id: str, filename: str, data: bytes | bytearray, age_s: int = MAX_AGE_S) -> File:
        """Store an upload. ApiError 413 if no room is left."""
        id_ = make_id()
        with self._lock:
            self._sweep()
            self._take(id_, len(data))
        try:
            write_whole(self.make_path(id_), data)
            return self.finish(id_, key_id, filename, UPLOADED, age_s)
        except OSError as error:
            log.error("--store-dir: a file could not be written: %s", error)
            with contextlib.suppress(OSError):
                self.make_path(id_).unlink()
            raise ApiError(500, "the file could not be written; see the server's log") from None
        finally:
            with self._lock:
                self._n_growing.pop(id_, None)

    def grow(self, id_: str, n_bytes: int) -> None:
        """Note the size of content that a batch is writing. ApiError 413 if no room is left."""
        with self._lock:
            self._take(id_, n_bytes)

    def finish(self, id_: str, key_id: str, filename: str, purpose: str, age_s: int = MAX_AGE_S) -> File:
        """Make a file of the content at `make_path(id_)`. OSError if its description can't be written."""
        now = int(self._now())
        size = self.make_path(id_).stat().st_size
        file = File(id_, key_id, filename, purpose, size, now, now + age_s)
        write_whole(self._make_about_path(id_), json.dumps(_list_fields(file)).encode())
        with self._lock:
            self._put(file)
            self._n_growing.pop(id_, None)
        return file

    def drop(self, id_: str) -> None:
        """Delete content that didn't become a file."""
        with self._lock:
            self._n_growing.pop(id_, None)
        with contextlib.suppress(OSError):
            self.make_path(id_).unlink()

    def get(self, id_: str, key_id: str) -> File | None:
        """The file with this id, if it belongs to this key."""
        with self._lock:
            self._sweep()
            file = self._files.get(id_)
        return file if file is not None and file.key_id == key_id else None

    def list_of_key(self, key_id: str) -> list[File]:
        """All files of a key, the oldest first."""
        with self._lock:
            self._sweep()
            found = [file for file in self._files.values() if file.key_id == key_id]
        return sorted(found, key=lambda file: (file.created_at, file.id))

    def use(self, id_: str) -> None:
        """A batch needs the file from now on."""
        with self._lock:
            self._used[id_] = self._used.get(id_, 0) + 1

    def release(self, id_: str) -> None:
        with self._lock:
            self._used[id_] = self._used.get(id_, 1) - 1
            if self._used[id_] <= 0:
                del self._used[id_]

    def delete(self, id_: str, key_id: str) -> bool:
        """Delete a file. Returns False if there is none. ApiError 409 while a batch needs it."""
        with self._lock:
            file = self._files.get(id_)
            if file is None or file.key_id != key_id:
                return False
            if id_ in self._used:
                raise ApiError(409, f"{id_} is the input of a running batch; cancel that first")
            self._remove(id_)
        return True

    def open(self, id_: str) -> BinaryIO:
        """ApiError 404 if the content was deleted."""
        try:
            return open(self.make_path(id_), "rb")
        except OSError:
            raise ApiError(404, f"the content of {id_} was deleted") from None

    def make_path(self, id_: str) -> Path:
        return self._folder / f"{id_}.jsonl"

    def _make_about_path(self, id_: str) -> Path:
        return self._folder / f"{id_}.json"

    # ---- with the lock held -------------------------------------------------------------------------------------

    def _take(self, id_: str, n_bytes: int) -> None:
        others = sum(n for other, n in self._n_growing.items() if other != id_)
        if len(self._files) + len(self._n_growing) >= MAX_FILES and id_ not in self._n_growing:
            raise ApiError(413, f"the server has {MAX_FILES:,} files already; delete some")
        if self._n_bytes + others + n_bytes > self.n_max:
            raise ApiError(
                413, f"no room is left: all files together may have {self.n_max >> 20} MiB (--store-size); delete some"
            )
        self._n_growing[id_] = n_bytes

    def _sweep(self) -> None:
        now = self._now()
        if now - self._t_swept >= SWEEP_S:
            self._t_swept = now
            for id_ in [id_ for id_, file in self._files.items() if file.expires_at <= now and id_ not in self._used]:
                self._remove(id_)

    def _put(self, file: File) -> None:
        before = self._files.get(file.id)
        self._n_bytes += file.n_bytes - (0 if before is None else before.n_bytes)
        self._files[file.id] = file

    def _remove(self, id_: str) -> None:
        self._n_bytes -= self._files.pop(id_).n_bytes
        for path in (self._make_about_path(id_), self.make_path(id_)):
            with contextlib.suppress(OSError):
                path.unlink()


def make_id() -> str:
    return "file-" + secrets.token_hex(N_ID)


def write_whole(path: Path, data: bytes | bytearray) -> None:
    """Write a file whole or not at all, and wait until it is on the disk. OSError."""
    new = path.with_name(path.name + ".tmp")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _list_fields(file: File) -> dict[str, Any]:
    return {name: getattr(file, name) for name in File.__match_args__}


def _read(path: Path) -> File | None:
    """The description of a file; None if it is damaged or the content isn't whole."""
    try:
        said = json.loads(path.read_bytes())
        file = File(**{name: said[name] for name in File.__match_args__})
        is_whole = path.stem == file.id and path.with_suffix(".jsonl").stat().st_size == file.n_bytes
        is_right = all(type(getattr(file, name)) is int for name in ("n_bytes", "created_at", "expires_at"))
        if is_whole and is_right and all(isinstance(text, str) for text in (file.key_id, file.filename, file.purpose)):
            return file
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    log.error("--store-dir: %s is damaged and counts as deleted", path.name)
    return None
