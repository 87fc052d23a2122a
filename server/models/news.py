"""Events about models, with a queue for each reader.

Any thread. `tell` never waits for a reader: a full queue is ended.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue

MOST = 1000  # events in a queue


class News:
    """The queues of all readers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _queues
        self._queues: list[Queue] = []

    @contextmanager
    def read(self) -> Iterator[Queue]:
        """A queue that gets all events during the block. None ends it."""
        queue: Queue = Queue(MOST)
        with self._lock:
            self._queues.append(queue)
        try:
            yield queue
        finally:
            with self._lock:
                if queue in self._queues:
                    self._queues.remove(queue)

    def tell(self, news: object) -> None:
        """Put an event into all queues; None ends them."""
        with self._lock:
            self._queues = [queue for queue in self._queues if _tell(queue, news)]


def _tell(queue: Queue, news: object) -> bool:
    """Put an event into a queue. If the queue is full, end it and return False."""
    try:
        queue.put_nowait(news)
        return True
    except Full:
        try:
            queue.get_nowait()
        except Empty:
            pass
        queue.put_nowait(None)
        return False
