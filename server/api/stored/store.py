"""The store of responses and conversations, in memory or in a folder. An API key gets only things that were stored
with it.

Any thread, under a lock. The number, bytes and age of things are bounded. When the store is full, the API key with the
most bytes loses its least recently used thing. In a folder each thing is a file, written whole or not at all, readable
for this user only, and named after its id and its API key's hash. Checksums find damaged files, which count as deleted.

Way not taken: a database. All look-ups are by id.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from server import memory
from server.errors import StartError
from server.log import get_logger
from server.records import record
from server.web.message import parse_json, to_json

MAX_THINGS = 20_000
MAX_AGE_S = 30 * 86400
SWEEP_S = 3600  # seconds between two searches for things that are too old
THING_BYTES = 500  # bytes of memory for a thing besides its JSON
FILE = re.compile(r"((?:resp|conv)_[0-9a-f]{1,64})\.([0-9a-f]{0,64})\.json")
BINARY = getattr(os, "O_BINARY", 0)

log = get_logger("api")


@record
class Thing:
    n_bytes: int
    at: float
    """When it was stored, in seconds since the epoch."""
    data: bytes | None
    """Its JSON; None if a file has it."""


class Store:
    """A store of at most `n_max` bytes; 0 stores nothing. StartError if the folder can't be used."""

    def __init__(self, n_max: int, folder: str | None = None, now: Callable[[], float] = time.time) -> None:
        self.n_max = n_max
        self._folder = Path(folder) if folder and n_max else None
        self._now = now
        self._lock = threading.RLock()  # protects the fields below and the files
        self._by_key: dict[str, dict[str, Thing]] = {}  # within a key, the thing that was used longest ago comes first
        self._n_bytes: dict[str, int] = {}
        self._swept = now()
        if self._folder:
            self._open(self._folder)

    def put(self, id_: str, key_id: str, value: object) -> bool:
        """Store a value under an id made by this server. Returns False if there is no room, or its file can't
        be written."""
        data = to_json(value)
        with self._lock:
            if len(data) + THING_BYTES > self.n_max or not self._write(id_, key_id, data):
                return False
            self._drop(id_, key_id, keeps_file=True)
            self._add(id_, key_id, Thing(len(data) + THING_BYTES, self._now(), None if self._folder else data))
            self._make_room()
        return True

    def get(self, id_: str, key_id: str) -> Any:
        """A new copy of the value with this id and key; None if there is none."""
        with self._lock:
            thing = self._by_key.get(key_id, {}).get(id_)
            if thing is None:
                return None
            data = self._read(id_, key_id, thing)
            if data is None or self._now() - thing.at > MAX_AGE_S:
                self._drop(id_, key_id)
                return None
            self._by_key[key_id][id_] = self._by_key[key_id].pop(id_)
        return parse_json(data)

    def delete(self, id_: str, key_id: str) -> bool:
        """Delete a value. Returns whether it existed."""
        with self._lock:
            is_there = id_ in self._by_key.get(key_id, {})
            self._drop(id_, key_id)
        return is_there

    def change(self, id_: str, key_id: str, change: Callable[[Any], object]) -> bool:
        """Replace a value by what `change` returns for it, atomically. Returns False if it doesn't exist or
        can't be stored."""
        with self._lock:
            value = self.get(id_, key_id)
            return value is not None and self.put(id_, key_id, change(value))

    def extend(self, id_: str, key_id: str, items: Sequence[Any]) -> bool:
        """Add items to a conversation. Returns as `change` does."""
        return self.change(id_, key_id, lambda value: {**value, "items": [*value["items"], *items]})

    # ---- lists of things; callers hold the lock ------------------------------------------------------------------

    def _add(self, id_: str, key_id: str, thing: Thing) -> None:
        self._by_key.setdefault(key_id, {})[id_] = thing
        self._n_bytes[key_id] = self._n_bytes.get(key_id, 0) + thing.n_bytes

    def _drop(self, id_: str, key_id: str, keeps_file: bool = False) -> None:
        thing = self._by_key.get(key_id, {}).pop(id_, None)
        if thing is None:
            return
        self._n_bytes[key_id] -= thing.n_bytes
        if not self._by_key[key_id]:
            del self._by_key[key_id], self._n_bytes[key_id]
        if self._folder and not keeps_file:
            with contextlib.suppress(OSError):
                self._make_path(id_, key_id).unlink()

    def _make_room(self) -> None:
        """Drop what is too old (once an hour), then things until the bounds on number and bytes are kept."""
        now = self._now()
        if now - self._swept > SWEEP_S:
            self._swept = now
            for key_id, things in list(self._by_key.items()):
                for id_ in [id_ for id_, thing in things.items() if now - thing.at > MAX_AGE_S]:
                    self._drop(id_, key_id)
        while sum(self._n_bytes.values()) > self.n_max or sum(map(len, self._by_key.values())) > MAX_THINGS:
            largest = max(self._n_bytes, key=lambda key_id: self._n_bytes[key_id])
            self._drop(next(iter(self._by_key[largest])), largest)

    # ---- files; callers other than __init__ hold the lock --------------------------------------------------------

    def _open(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = []
            for path in folder.iterdir():
                name = FILE.fullmatch(path.name)
                if name is not None and path.is_file():
                    about = path.stat()
                    found.append((about.st_mtime, name[1], name[2], about.st_size))
                elif path.name.endswith(".json.tmp"):  # half written by a server that was killed
                    path.unlink()
        except OSError as error:
            raise StartError(f"--store-dir {folder} can't be used: {error.strerror}") from None
        for at, id_, key_id, n_bytes in sorted(found):
            self._add(id_, key_id, Thing(n_bytes + THING_BYTES, at, None))
        self._swept = self._now() - SWEEP_S - 1
        self._make_room()

    def _make_path(self, id_: str, key_id: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{id_}.{key_id}.json"

    def _write(self, id_: str, key_id: str, data: bytes) -> bool:
        if self._folder is None:
            return True
        path = self._make_path(id_, key_id)
        new = path.with_name(path.name + ".tmp")
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o600)
            with open(descriptor, "wb") as stream:
                stream.write(b"%08x\n%b" % (zlib.crc32(data), data))
            os.replace(new, path)
        except OSError as error:
            log.error("--store-dir: %s could not be stored: %s", id_, error)
            with contextlib.suppress(OSError):
                new.unlink()
            return False
        return True

    def _read(self, id_: str, key_id: str, thing: Thing) -> bytes | None:
        """The JSON of a thing; None if its file is missing or damaged."""
        if thing.data is not None:
            return thing.data
        memory.hold(thing.n_bytes)
        try:
            checksum, _, data = self._make_path(id_, key_id).read_bytes().partition(b"\n")
        except OSError as error:
            log.error("--store-dir: %s could not be read: %s", id_, error)
            return None
        if checksum != b"%08x" % zlib.crc32(data):
            log.error("--store-dir: %s is damaged and counts as deleted", id_)
            return None
        return data
