"""Whether the client of one request is still there: asked by its handler, told by the watcher's thread.

One per request. A POST is watched from the moment its body has been read until its answer has been written, so a client
that leaves is known about in every phase, also while its handler computes something and waits for nobody. What can't be
interrupted (a tokenizer call in C) is not: its result is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Watch = Callable[[Callable[[], None]], AbstractContextManager[object]]
"""Given a callback, a context in which it is called once when the client leaves."""


class Presence:
    """`is_gone` once the client has left. `watch` None makes one that stays for ever."""

    __slots__ = ("is_gone", "_watch", "_watching", "_lock", "_callbacks")

    def __init__(self, watch: Watch | None = None) -> None:
        self.is_gone = False
        self._watch = watch
        self._watching: AbstractContextManager[object] | None = None
        self._lock = threading.Lock()  # protects is_gone and _callbacks
        self._callbacks: list[Callable[[], None]] = []

    def begin(self) -> None:
        """From now on watch; does nothing the second time."""
        if self._watch is not None and self._watching is None:
            self._watching = self._watch(self._leave)
            self._watching.__enter__()

    def end(self) -> None:
        """Watch no longer: the socket is going to be read again. Does nothing if it isn't watched."""
        if self._watching is not None:
            self._watching.__exit__(None, None, None)
            self._watching = self._watch = None

    @contextmanager
    def on_disconnect(self, callback: Callable[[], None]) -> Iterator[None]:
        """Inside the block `callback` is called once, at the latest now if the client has left already."""
        self.begin()
        with self._lock:
            was_gone = self.is_gone
            self._callbacks.append(callback)
        if was_gone:
            callback()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)

    def _leave(self) -> None:
        with self._lock:
            self.is_gone = True
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()
