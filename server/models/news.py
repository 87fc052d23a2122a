"""What happens to models, for those who listen: a queue for each reader, which whoever has news fills.

A leaf; any thread. Who tells never waits for a reader: one that is too far behind finds the end of its queue instead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue

MOST = 1000  # that a reader may be behind


class News:
    """All readers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the list
        self._queues: list[Queue] = []

    @contextmanager
    def read(self) -> Iterator[Queue]:
        """A queue of what is told while the block lasts; None when it is over."""
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
        """Give it to all readers; None says that it is over."""
        with self._lock:
            self._queues = [queue for queue in self._queues if _told(queue, news)]


def _told(queue: Queue, news: object) -> bool:
    """Whether there was room for it; the reader of a full queue finds its end instead."""
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
