"""Blocks of the prompt cache on disk: one file each, written by the thread `cache-disk`, checked before use.

A file is named by a hash of what it depends on: the identity (`identity`), the adapters' scales, and every token up to
its end. Its format is that of `slot_files`, which writes a file whole or not at all. Damaged files and those of an
earlier format are removed when found. Files with other names aren't touched.

Several servers may use one folder without a lock: a name determines a file's content, a file appears whole, and a
missing block is computed again. Other servers' blocks are found by name (`find`). The limit of bytes is for the whole
folder; each server removes the least recently used files.

`scan` is called first, on any thread; then the engine's thread calls the other methods. `put` never waits: if the disk
can't keep up, blocks are left out. Not taken: a database or an index file, which would need locks and repairs.
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
MAX_PENDING = 256 << 20  # bytes that wait to be written
CLOSE_S = 3.0  # seconds to finish writing at the end
LEFTOVER_S = 3600.0  # seconds after which a temporary file is removed
YOUNG_S = 60.0  # seconds; younger files without a parent stay: the parent may have been written during the scan
TRIM_PART = 32  # the folder's size is checked whenever 1 / TRIM_PART of its limit was written

log = get_logger("engine")


@record(frozen=True)
class StoredBlock:
    """A file that was found. `parent` is the key of the block before it, "" for none."""

    key: str
    parent: str
    tokens: tuple[int, ...]
    lora: Lora

    path: str
    size: int  # of the file, in bytes


def key_of(identity: str, lora: Lora, parent: str, tokens: tuple[int, ...]) -> str:
    """The key of a block: the same for the same tokens after the same prefix, with the same identity and adapters."""
    about = f"{identity}\n{lora!r}\n{parent}\n".encode()
    import hashlib  # here, because only a cache on disk needs it

    return hashlib.sha256(about + array("q", tokens).tobytes()).hexdigest()[:32]


class BlockFiles:
    """The folder of a disk cache."""

    def __init__(self, folder: str, limit: int) -> None:
        self._folder = Path(folder)
        self._limit = limit
        self._n_written = 0  # bytes since the folder was checked
        self._facts: dict[str, Any] = {}  # the identity of this engine's blocks; `_identity` is the same as text
        self._identity = ""
        self._jobs: SimpleQueue = SimpleQueue()
        self._lock = threading.Lock()  # protects _n_pending
        self._n_pending = 0
        self._thread: threading.Thread | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(f"--cache-disk {folder}: {error.strerror}; name a folder that can be written to") from None

    def scan(self, facts: Mapping[str, Any]) -> list[StoredBlock]:
        """The blocks with this identity, the least recently used first, but each behind its parent. Damaged files are
        removed."""
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
            log.info("prompt cache on disk: %d files were removed; the first one: %s", len(removed), removed[0])
        self.trim()
        seen: set[str] = set()
        return [
            one
            for _, block in sorted(found.values(), key=lambda item: item[0])
            for one in self._with_parents(block, found, seen)
        ]

    def make_key(self, lora: Lora, parent: str, tokens: tuple[int, ...]) -> str:
        """The key of a block with this engine's identity."""
        return key_of(self._identity, lora, parent, tokens)

    def find(self, key: str, parent: str) -> tuple[str, int] | None:
        """The path and size of a block that another server has written; None if there is none."""
        path = str(self._make_path(key, parent))
        try:
            return path, os.stat(path).st_size
        except OSError:
            return None

    def put(self, key: str, parent: str, tokens: tuple[int, ...], lora: Lora, state: bytearray | memoryview) -> str:
        """Have a block written. Returns its path, or "" if the disk can't keep up."""
        with self._lock:
            if self._n_pending + len(state) > MAX_PENDING:
                return ""
            self._n_pending += len(state)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="cache-disk", daemon=True)
            self._thread.start()
        path = self._make_path(key, parent)
        self._jobs.put((path, tokens, lora, state))
        return str(path)

    def get(self, path: str) -> memoryview | None:
        """A block's state; None if the file is gone or damaged. A damaged file is removed."""
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
        """Delete a file, after the pending writes."""
        if self._thread is not None:
            self._jobs.put((Path(path), None, None, None))
        else:
            _unlink(Path(path))

    def close(self) -> None:
        """Finish the pending writes, for `CLOSE_S` at most."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(CLOSE_S)

    def _make_path(self, key: str, parent: str) -> Path:
        return self._folder / f"{key}.{parent or 'first'}{SUFFIX}"

    def _look(self, path: Path, size: int, removed: list[str]) -> StoredBlock | None:
        """The block that a file's header describes; None if it has another identity or is damaged. A damaged file is
        removed, and the reason added to `removed`."""
        try:
            header = slot_files.read_header(path)
            key, parent = path.name.removesuffix(SUFFIX).split(".")
            parent = "" if parent == "first" else parent
            tokens, lora = tuple(header["tokens"]), tuple((int(i), float(scale)) for i, scale in header["lora"])
            if header["identity"] != self._facts:
                return None
            if not 0 < len(tokens) <= BLOCK or self.make_key(lora, parent, tokens) != key:
                raise ValueError("its name doesn't fit")
        except (ApiError, ValueError, TypeError, OverflowError) as error:
            removed.append(str(error))
            _unlink(path)
            return None
        return StoredBlock(key, parent, tokens, lora, str(path), size)

    def _with_parents(
        self, block: StoredBlock, found: dict[str, tuple[float, StoredBlock]], seen: set[str]
    ) -> Iterator[StoredBlock]:
        """The block and those before it that aren't in `seen`, in order. If a parent is missing: none, and their files
        are removed, unless young."""
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
            if self._n_written > self._limit // TRIM_PART and self._jobs.empty():  # waiting removals come first
                self.trim()

    def trim(self) -> None:
        """Remove the least recently used files until the folder keeps its limit."""
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
