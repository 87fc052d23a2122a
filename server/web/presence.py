"""Whether the client of one request still waits for its answer. The watcher's thread sets it, the handler reads it.

A POST, PUT or PATCH request is watched from the end of its body to the end of its answer.

A client that closes the connection and one that only ends its sending side look the same at first (`has_ended`). A
stream finds out by writing: a closed connection is then reset (`is_gone`). While a plain answer is computed, an end
counts as leaving, unless the server has `half_close`. Not taken: an interim answer (100) as a probe; old proxies can't
handle it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Callback = Callable[[], None]
Watch = Callable[[Callback, Callback], AbstractContextManager[object]]
"""Takes two callbacks and returns a context. Inside it, the first is called once for GONE, the second once for ENDED
(see `watcher.find_peer_state`)."""


class Presence:
    """`is_gone`: the connection was reset. `has_ended`: the client has closed it, or has only ended its sending side.
    If `watch` is None, the client never leaves. With `half_close`, a client that `has_ended` counts as waiting."""

    __slots__ = ("is_gone", "has_ended", "_half_close", "_watch", "_watching", "_lock", "_callbacks")

    def __init__(self, watch: Watch | None = None, half_close: bool = False) -> None:
        self.is_gone = self.has_ended = False
        self._half_close = half_close
        self._watch = watch
        self._watching: AbstractContextManager[object] | None = None
        self._lock = threading.Lock()  # protects is_gone, has_ended and _callbacks
        self._callbacks: list[tuple[Callback, Callback]] = []

    def begin(self) -> None:
        """Start to watch. Idempotent."""
        if self._watch is not None and self._watching is None:
            self._watching = self._watch(self._leave, self._end)
            self._watching.__enter__()

    def end(self) -> None:
        """Stop watching, before the socket is read again. Idempotent."""
        if self._watching is not None:
            self._watching.__exit__(None, None, None)
            self._watching = self._watch = None

    def is_lost(self, stream: bool) -> bool:
        """Whether the client counts as having left. `stream`: the answer is a stream."""
        return self.is_gone or (self.has_ended and not (stream or self._half_close))

    @contextmanager
    def on_disconnect(self, on_gone: Callback, on_end: Callback | None = None) -> Iterator[None]:
        """Inside the block, `on_gone` is called once when the client `is_gone`, `on_end` (which streams pass) once when
        it `has_ended`; at once if that is so already. Without `on_end`, `on_gone` is called for either, but with
        `half_close` only for `is_gone`."""
        self.begin()
        if on_end is None:
            on_end = _ignore if self._half_close else on_gone
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


def _ignore() -> None:
    """Ignore that the client has ended its sending side."""
