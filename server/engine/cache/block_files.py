"""Blocks of the prompt cache on disk: one file each, written by a thread of its own, checked before use.

A file is named by a hash of all it depends on: the identity (`identity`), the adapters' strengths, and every token
before and in it. Its bytes are `slot_files`' format (magic, JSON header, CRC-32, state), written beside and renamed, so
that it is whole or not there. What is damaged, or of an earlier format, is removed when it is found. Nothing else in
the folder is touched.

Several servers may use one folder. No lock is needed: a name says all about a file's content, a file appears at once,
and one that has gone is only computed again. What another server has written is found by its name (`find`). The
bound of bytes is that of the folder, whoever has written: each server removes what was unused for longest.

`scan` comes first, on any thread; the rest is the engine's. `put` never waits: when the disk can't keep up, blocks are
left out. Not taken: a database or an index file, which would be one more thing to be damaged, locked and repaired.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from server.engine.cache import slot_files
from server.engine.cache.block_tree import BLOCK, Lora
from server.errors import ApiError, StartError
from server.log import get_logger
from server.records import record

SUFFIX = ".kvblock"
MAX_PENDING = 256 << 20
CLOSE_S = 3.0
LEFTOVER_S = 3600.0  # a file without its last name that is so old is nobody's any more
YOUNG_S = 60.0  # what seems to have no parent may have got it while the folder was read
TRIM_PART = 32  # the folder is looked at whenever this part of its bound was written

log = get_logger("engine")


@record(frozen=True)
class StoredBlock:
    """A file as it was found: `key` of itself and of the block before it ("" for none)."""

    key: str
    parent: str
    tokens: tuple[int, ...]
    lora: Lora
    path: str
    size: int


def key_of(identity: str, lora: Lora, parent: str, tokens: tuple[int, ...]) -> str:
    """The name of a block: the same for the same tokens after the same beginning, on the same model and libraries."""
    about = f"{identity}\n{lora!r}\n{parent}\n".encode()
    import hashlib  # here, because only a cache on disk needs it

    return hashlib.sha256(about + array("q", tokens).tobytes()).hexdigest()[:32]


class BlockFiles:
    """The folder."""

    def __init__(self, folder: str, limit: int) -> None:
        self._folder = Path(folder)
        self._limit = limit
        self._n_written = 0  # bytes since the folder was looked at
        self._facts: dict[str, Any] = {}  # the identity of our blocks, and as a text
        self._identity = ""
        self._jobs: SimpleQueue = SimpleQueue()
        self._lock = threading.Lock()  # protects _n_pending
        self._n_pending = 0
        self._thread: threading.Thread | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(f"--cache-disk {folder}: {error.strerror}; name a folder that can be written") from None

    def scan(self, facts: Mapping[str, Any]) -> list[StoredBlock]:
        """Files of this identity, used longest ago first, each behind its parent. Damaged ones are removed."""
        self._facts, self._identity = dict(facts), json.dumps(facts, sort_keys=True)
        for leftover in self._folder.glob(f".*{SUFFIX}.*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > LEFTOVER_S:
                    leftover.unlink()
        found: dict[str, tuple[float, StoredBlock]] = {}
        removed: list[str] = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                block = self._look(path, stat.st_size, removed)
                if block is not None:
                    found[block.key] = stat.st_mtime, block
        if removed:
            log.info("prompt cache on disk: %d files were removed, the first since %s", len(removed), removed[0])
        self.trim()
        seen: set[str] = set()
        return [
            one
            for _, block in sorted(found.values(), key=lambda item: item[0])
            for one in self._with_parents(block, found, seen)
        ]

    def key(self, lora: Lora, parent: str, tokens: tuple[int, ...]) -> str:
        """The name of a block of ours."""
        return key_of(self._identity, lora, parent, tokens)

    def find(self, key: str, parent: str) -> tuple[str, int] | None:
        """The path and size of a block that this server hasn't written, if another one has."""
        path = str(self._path(key, parent))
        try:
            return path, os.stat(path).st_size
        except OSError:
            return None

    def put(self, key: str, parent: str, tokens: tuple[int, ...], lora: Lora, state: bytearray | memoryview) -> str:
        """Have a block written; the path it will have, or "" if the disk is behind."""
        with self._lock:
            if self._n_pending + len(state) > MAX_PENDING:
                return ""
            self._n_pending += len(state)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="cache-disk", daemon=True)
            self._thread.start()
        path = self._path(key, parent)
        self._jobs.put((path, tokens, lora, state))
        return str(path)

    def get(self, path: str) -> memoryview | None:
        """A block's state; None if the file is gone or damaged (then it is removed)."""
        try:
            state = slot_files.read(Path(path), self._facts).state
        except ApiError as error:
            log.debug("prompt cache: %s", error.message)
            self.remove(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return state

    def remove(self, path: str) -> None:
        """Delete a file, behind what is still to be written."""
        if self._thread is not None:
            self._jobs.put((Path(path), None, None, None))
        else:
            _unlink(Path(path))

    def close(self) -> None:
        """Write what is pending, for some seconds at most."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(CLOSE_S)

    def _path(self, key: str, parent: str) -> Path:
        return self._folder / f"{key}.{parent or 'first'}{SUFFIX}"

    def _look(self, path: Path, size: int, removed: list[str]) -> StoredBlock | None:
        """What a file is by its header; None if it is of another model. A damaged one is removed, and why is told."""
        try:
            header = slot_files.read_header(path)
            key, parent = path.name.removesuffix(SUFFIX).split(".")
            parent = "" if parent == "first" else parent
            tokens, lora = tuple(header["tokens"]), tuple((int(i), float(scale)) for i, scale in header["lora"])
            if header["identity"] != self._facts:
                return None
            if not 0 < len(tokens) <= BLOCK or self.key(lora, parent, tokens) != key:
                raise ValueError("its name doesn't fit")
        except (ApiError, ValueError, TypeError, OverflowError) as error:
            removed.append(str(error))
            _unlink(path)
            return None
        return StoredBlock(key, parent, tokens, lora, str(path), size)

    def _with_parents(
        self, block: StoredBlock, found: dict[str, tuple[float, StoredBlock]], seen: set[str]
    ) -> Iterator[StoredBlock]:
        """The blocks before it and itself, as far as they weren't given yet; a block without its parent is removed."""
        path = [block]
        while path[-1].parent and path[-1].parent not in seen:
            if path[-1].parent not in found:
                for orphan in path:
                    if time.time() - found[orphan.key][0] > YOUNG_S:
                        _unlink(Path(orphan.path))
                return
            path.append(found[path[-1].parent][1])
        for one in reversed(path):
            if one.key not in seen:
                seen.add(one.key)
                yield one

    def _run(self) -> None:
        """The writing thread."""
        while (job := self._jobs.get()) is not None:
            path, tokens, lora, state = job
            if tokens is None:
                _unlink(path)
                continue
            try:
                slot_files.write(
                    path, self._facts, list(tokens), [list(pair) for pair in lora], state, is_durable=False
                )
            except ApiError as error:
                log.warning("prompt cache on disk: %s", error.message)
            with self._lock:
                self._n_pending -= len(state)
            self._n_written += len(state)
            if self._n_written > self._limit // TRIM_PART and self._jobs.empty():  # else removals may be waiting there
                self.trim()

    def trim(self) -> None:
        """Remove files that were unused for longest, of whichever server, until the folder keeps its bound."""
        self._n_written = 0
        files = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.name.endswith(SUFFIX):
                        files.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
        excess = sum(size for _, size, _ in files) - self._limit
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            _unlink(Path(path))
            excess -= size


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
