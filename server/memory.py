"""One bound on the memory that the large objects of all requests take together. A leaf.

Used on connection threads. The HTTP edge tells for which request a thread works (`use`). Code counts the size of a
large object (`hold`, `keep_held`), if possible before making it. The request gives all bytes back when its answer has
been written.

Not taken: passing the request to all code that allocates. The JSON reader and the tokenizer don't know requests.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import ApiError

M_MMAP_THRESHOLD = -3  # a parameter of `mallopt`
LARGE_BLOCK = 1 << 20  # bytes

_here = threading.local()


class Budget:
    """`n_used` of `n_max` bytes are in use."""

    def __init__(self, n_max: int) -> None:
        self._lock = threading.Lock()  # protects n_used
        self.n_used = 0
        self.n_max = n_max

    def take(self, n_bytes: int) -> None:
        """Count these bytes. ApiError 503 if they are more than is left."""
        with self._lock:
            if n_bytes > 0 and self.n_used + n_bytes > self.n_max:
                raise ApiError(
                    503, "Too many large requests at once; try again.", headers={"Retry-After": "5"}, reason="memory"
                )
            self.n_used += n_bytes

    def give(self, n_bytes: int) -> None:
        with self._lock:
            self.n_used -= n_bytes


class Share:
    """The bytes that one request holds. Several threads may work for it."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._lock = threading.Lock()  # protects the fields below; the budget's lock is taken inside it
        self._n_held = 0
        self._is_closed = False

    def make_another(self) -> Share:
        """An empty share of the same budget, for work that goes on after the request."""
        return Share(self._budget)

    def take(self, n_bytes: int) -> None:
        """Hold so many more bytes. ApiError 503 if they are more than is left."""
        with self._lock:
            if not self._is_closed:
                self._budget.take(n_bytes)
                self._n_held += n_bytes

    def give(self, n_bytes: int) -> None:
        """Hold so many bytes less."""
        self.take(-n_bytes)

    def keep(self, n_bytes: int) -> None:
        """Hold exactly so many bytes, unchecked: the objects exist already."""
        with self._lock:
            self._budget.give(self._n_held - n_bytes)
            self._n_held = n_bytes

    def close(self) -> None:
        """Give all bytes back. Later calls of `take` count nothing."""
        with self._lock:
            self._is_closed = True
        self.keep(0)


def return_large_blocks() -> None:
    """Have the C library return freed blocks of 1 MiB or more to the system at once.

    By default, glibc raises this size when a program frees larger blocks, up to 32 MiB. It then keeps smaller blocks
    that threads have freed, up to half a gigabyte."""
    if sys.platform == "linux":
        import ctypes  # here, so that the engine starts first

        with contextlib.suppress(OSError, AttributeError):  # another library than glibc
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def use(share: Share | None) -> None:
    """Tell that this thread works for the request with this share, or for none."""
    _here.share = share


def get_current() -> Share | None:
    """The share of the request that this thread works for; None outside of requests."""
    return getattr(_here, "share", None)


def hold(n_bytes: int) -> None:
    """Count bytes that this thread's request holds until its answer has been written. ApiError 503 as for
    `Share.take`."""
    share = get_current()
    if share is not None:
        share.take(n_bytes)


@contextmanager
def keep_held(n_bytes: int) -> Iterator[None]:
    """Count bytes that this thread's request holds inside the `with`. ApiError 503 as for `hold`."""
    share = get_current()
    hold(n_bytes)
    try:
        yield
    finally:
        if share is not None:
            share.give(n_bytes)
