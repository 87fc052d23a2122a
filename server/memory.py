"""What requests hold in memory, counted into one bound for all of them. A leaf.

Connection threads: the edge says for whose request a thread works (`use`), and whoever makes something large of that
request says how large it is (`hold`, `held`), before it is made where that can be known. All of it is given back when
the answer has been written.

Not taken: passing the request to all who allocate. JSON's reader and the tokenizer know no requests, and need not.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import ApiError

M_MMAP_THRESHOLD = -3
LARGE_BLOCK = 1 << 20

_here = threading.local()


class Budget:
    """Memory for all requests together."""

    def __init__(self, n_max: int) -> None:
        self._lock = threading.Lock()  # protects n_used
        self.n_used = 0
        self.n_max = n_max

    def take(self, n_bytes: int) -> None:
        """ApiError 503 when it is spent."""
        with self._lock:
            if n_bytes > 0 and self.n_used + n_bytes > self.n_max:
                raise ApiError(
                    503, "Too many large requests at once; try again.", headers={"Retry-After": "5"}, reason="memory"
                )
            self.n_used += n_bytes

    def give(self, n_bytes: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self.n_used -= n_bytes


class Share:
    """What one request holds. Several threads may work for it."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._lock = threading.Lock()  # protects the rest; held while the budget's is taken
        self._n_held = 0
        self._is_closed = False

    def another(self) -> Share:
        """An empty one of the same budget: for work that goes on when the request is over."""
        return Share(self._budget)

    def take(self, n_bytes: int) -> None:
        """So many more. ApiError 503 when they aren't there."""
        with self._lock:
            if not self._is_closed:
                self._budget.take(n_bytes)
                self._n_held += n_bytes

    def give(self, n_bytes: int) -> None:
        """So many less."""
        self.take(-n_bytes)

    def keep(self, n_bytes: int) -> None:
        """From now on just so many, whether they are there or not: they have been made."""
        with self._lock:
            self._budget.give(self._n_held - n_bytes)
            self._n_held = n_bytes

    def close(self) -> None:
        """Nothing any more; what is taken later isn't counted."""
        self.keep(0)
        self._is_closed = True


def return_large_blocks() -> None:
    """Have the C library give large blocks back to the system at once. glibc's own bound grows up to 32 MiB with the
    blocks that it has seen; what is smaller then stays with each thread that had it, half a gigabyte with some bodies.
    Others do so anyway."""
    if sys.platform == "linux":
        import ctypes  # here, because the engine is told what to load before this is needed

        with contextlib.suppress(OSError, AttributeError):  # another library than glibc
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def use(share: Share | None) -> None:
    """From now on this thread works for the request with this share."""
    _here.share = share


def current() -> Share | None:
    """The share of the request that this thread works for; None outside of requests."""
    return getattr(_here, "share", None)


def hold(n_bytes: int) -> None:
    """The request holds so many bytes more, until its answer has been written. ApiError 503 when they aren't there."""
    share = current()
    if share is not None:
        share.take(n_bytes)


@contextmanager
def held(n_bytes: int) -> Iterator[None]:
    """The request holds so many bytes more inside this block."""
    share = current()
    hold(n_bytes)
    try:
        yield
    finally:
        if share is not None:
            share.give(n_bytes)
