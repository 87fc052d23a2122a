"""Whether the client of one request is still connected. The watcher's thread sets it, the handler reads it.

A request with a body is watched from the end of its body to the end of its answer, also while the handler computes. A
call that can't be interrupted (the tokenizer in C) runs on; its result is dropped.

A client that ends its sending side may have closed the connection, or may still wait for its answer. A stream finds out
by writing. While a plain answer is computed, such a client counts as gone, unless the server has `half_close`. Not
taken: an interim answer (100) as a probe; old proxies can't handle it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Callback = Callable[[], None]
Watch = Callable[[Callback, Callback], AbstractContextManager[object]]
"""Takes two callbacks and returns a context. Inside it, the first is called once when the connection is closed or
reset, the second once when the client has ended its sending side."""


class Presence:
    """`is_gone`: the connection is closed or reset. `has_ended`: the client has ended its sending side. If `watch` is
    None, the client never leaves. With `half_close`, a client that has ended its sending side still waits for any kind
    of answer."""

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
        """Whether the client no longer waits for the answer, as far as can be known. `stream`: the answer is a
        stream."""
        return self.is_gone or (self.has_ended and not (stream or self._half_close))

    @contextmanager
    def on_disconnect(self, on_gone: Callback, on_end: Callback | None = None) -> Iterator[None]:
        """Inside the block, `on_gone` is called once when the client leaves, or at once if it has left already.
        `on_end`, which streams pass, is called once if the client ends its sending side; without it, an end counts as
        leaving unless the server has `half_close`."""
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
