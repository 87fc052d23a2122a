"""`--record FILE`: what is asked and answered, a line for each request, written by a thread of its own.

`add` is called by connection threads and never waits. What is on its way is bounded; a request that finds no room, or
whose line can't be written, is missing then, and the next line says how many are. The first line about a model in each
file tells what computes it: the thread asks the engine, which may have to read the model's files first.

Not taken: writing on the connection's thread. A slow disk would keep answers waiting.
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

MOST_WAITING = 64 << 20  # bytes
CLOSE_S = 10.0

log = get_logger("api")


class Recorder:
    """Writes the record at `path`, at most `most` bytes. RecordError if there can be none."""

    def __init__(self, path: str, most: int, known: KnownModels, about: dict[str, Any]) -> None:
        """`about` goes into the line that tells of the start."""
        self._chain = Chain(Path(path), most)
        self._known = known
        self._about = about
        self._queue: SimpleQueue = SimpleQueue()
        self._lock = threading.Lock()  # protects the two below
        self._n_bytes = self._n_lost = 0
        self._is_troubled = False
        self._told: set[str] = set()  # hashes of models that this file has
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def add(self, case: Case) -> None:
        """Any thread: a request has ended."""
        size = case.size
        with self._lock:
            if self._n_bytes + size > MOST_WAITING:
                self._n_lost += 1
                return
            self._n_bytes += size
        self._queue.put((case, size))

    def close(self) -> None:
        """Write what is waiting, for some seconds at most."""
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
        line = case.line(name)
        try:
            self._chain.append(line)
        except ValueError:
            self._chain.append({**line, "body": None})

    def _tell_lost(self) -> None:
        """Say how many requests are missing at this place."""
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
        """Log what is wrong, once until it is right again."""
        if not self._is_troubled:
            log.error("--record: what is asked can't be written: %s", error, exc_info=not isinstance(error, OSError))
        self._is_troubled = True
