"""`--record FILE`: a thread of its own writes one line per request, with the request and its answers.

Any thread may call `add`, which never waits. If the bounded queue is full, or a line can't be written, the request is
not recorded, and a later line tells how many are missing. In each file, a line that identifies a model comes before the
model's first request. For that line the thread asks the engine, which may have to hash the model's files.

Way not taken: writing on connection threads. A slow disk would delay answers.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from server.errors import ApiError
from server.evidence.case import Case
from server.evidence.chain import Chain
from server.evidence.models import KnownModels
from server.log import get_logger

MOST_WAITING = 64 << 20  # bytes in the queue
CLOSE_S = 10.0  # longest wait for the queue when the server ends

log = get_logger("api")


class Recorder:
    """Writes the record at `path`, about `most` bytes. RecordError if the file can't be used."""

    def __init__(self, path: str, most: int, known: KnownModels, about: dict[str, Any]) -> None:
        """`about` describes the server in the line about its start."""
        self._chain = Chain(Path(path), most)
        self._known = known
        self._about = about
        self._queue: SimpleQueue = SimpleQueue()
        self._lock = threading.Lock()  # protects `_n_bytes` and `_n_lost`
        self._n_bytes = self._n_lost = 0
        self._is_troubled = False
        self._told: set[str] = set()  # hashes of models that this file identifies already
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def add(self, case: Case) -> None:
        """Record a request that has ended."""
        size = case.size
        with self._lock:
            if self._n_bytes + size > MOST_WAITING:
                self._n_lost += 1
                return
            self._n_bytes += size
        self._queue.put((case, size))

    def close(self) -> None:
        """Write what is in the queue, for at most CLOSE_S."""
        self._queue.put(None)
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        self._write({"kind": "start", "time": round(time.time(), 3), **self._about})
        while (item := self._queue.get()) is not None:
            case, size = item
            try:
                self._tell_lost()
                self._write_case(case)
            except Exception as error:
                self._lose(error)
            with self._lock:
                self._n_bytes -= size
        self._tell_lost()
        self._write({"kind": "stop", "time": round(time.time(), 3)})
        self._chain.close()

    def _write_case(self, case: Case) -> None:
        self._chain.make_room()
        if self._chain.is_new:
            self._told.clear()
        try:
            name, about = self._known.get(case.model)
        except ApiError as error:
            name, about = "", {"fault": error.message}
        if name not in self._told:
            self._chain.append({"kind": "model", "model": name, **about})
            self._told.add(name)
        line = case.make_line(name)
        try:
            self._chain.append(line)
        except ValueError:
            self._chain.append({**line, "body": None})

    def _tell_lost(self) -> None:
        """Write how many requests are missing at this place."""
        with self._lock:
            n, self._n_lost = self._n_lost, 0
        if n and not self._write({"kind": "lost", "time": round(time.time(), 3), "requests": n}):
            with self._lock:
                self._n_lost += n

    def _write(self, content: dict[str, Any]) -> bool:
        try:
            self._chain.append(content)
        except OSError as error:
            self._say(error)
            return False
        self._is_troubled = False
        return True

    def _lose(self, error: Exception) -> None:
        with self._lock:
            self._n_lost += 1
        self._say(error)

    def _say(self, error: Exception) -> None:
        """Log a fault, but not again until writing has succeeded."""
        if not self._is_troubled:
            log.error("--record: requests can't be written: %s", error, exc_info=not isinstance(error, OSError))
        self._is_troubled = True
