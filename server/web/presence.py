"""Whether the client of one request is still there: asked by its handler, told by the watcher's thread.

One per request. A POST is watched from the moment its body has been read until its answer has been written, so a client
that leaves is known about in every phase, also while its handler computes something and waits for nobody. What can't be
interrupted (a tokenizer call in C) is not: its result is dropped.

A client that ends its sending side may have closed, or may wait for its answer (HTTP allows that). Who streams finds
out by writing. A plain answer is written only when it is complete, so there the end counts as leaving, unless the
server was told otherwise (`half_close`). Not taken: an interim answer (100) to find out; old proxies stumble over it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Callback = Callable[[], None]
Watch = Callable[[Callback, Callback], AbstractContextManager[object]]
"""Given two callbacks, a context in which the first is called once when the connection is no more, the second once when
the client has sent its last byte."""


class Presence:
    """`is_gone` once the connection is no more, `has_ended` once the client can't send any more. `watch` None makes one
    that stays for ever. With `half_close` a client that has ended waits for its answer, whatever that is."""

    __slots__ = ("is_gone", "has_ended", "_half_close", "_watch", "_watching", "_lock", "_callbacks")

    def __init__(self, watch: Watch | None = None, half_close: bool = False) -> None:
        self.is_gone = self.has_ended = False
        self._half_close = half_close
        self._watch = watch
        self._watching: AbstractContextManager[object] | None = None
        self._lock = threading.Lock()  # protects is_gone, has_ended and _callbacks
        self._callbacks: list[tuple[Callback, Callback]] = []

    def begin(self) -> None:
        """From now on watch; does nothing the second time."""
        if self._watch is not None and self._watching is None:
            self._watching = self._watch(self._leave, self._end)
            self._watching.__enter__()

    def end(self) -> None:
        """Watch no longer: the socket is going to be read again. Does nothing if it isn't watched."""
        if self._watching is not None:
            self._watching.__exit__(None, None, None)
            self._watching = self._watch = None

    def is_lost(self, stream: bool) -> bool:
        """Whether nobody waits for the answer, as far as can be known; `stream` if it will be written bit by bit."""
        return self.is_gone or (self.has_ended and not (stream or self._half_close))

    @contextmanager
    def on_disconnect(self, on_gone: Callback, on_end: Callback | None = None) -> Iterator[None]:
        """Inside the block `on_gone` is called once when the client leaves, at the latest now if it has left already.
        For a stream `on_end` is called once if the client only ends its sending side."""
        self.begin()
        if on_end is None:
            on_end = _stay if self._half_close else on_gone
        with self._lock:
            was_gone, had_ended = self.is_gone, self.has_ended
            self._callbacks.append((on_gone, on_end))
        if had_ended:
            on_end()
        if was_gone and not (had_ended and on_end is on_gone):
            on_gone()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove((on_gone, on_end))

    def _leave(self) -> None:
        with self._lock:
            self.is_gone = True
            callbacks = [gone for gone, end in self._callbacks if not (self.has_ended and end is gone)]
        for callback in callbacks:
            callback()

    def _end(self) -> None:
        with self._lock:
            self.has_ended = True
            callbacks = [end for _, end in self._callbacks]
        for callback in callbacks:
            callback()


def _stay() -> None:
    """The client has ended its sending side, and its answer is made."""
