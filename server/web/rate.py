"""How many requests one client may make: a token bucket for each API key, else for each address. Connection threads.

Counted are requests that do something (POST and the like), before their body is read; and wrong keys, for their
address, so that guessing is slow. Memory is bounded: a bucket that is full again is forgotten, and beyond
`N_BUCKETS` the ones unused for longest are.

Not taken: sliding windows (they remember every request), and believing `X-Forwarded-For` (anybody can write it).
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from server.errors import ApiError

N_BUCKETS = 20_000


class RateLimiter:
    """`n` requests in `seconds`: so many at once, then one each time a share of `seconds` has passed."""

    def __init__(self, n: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._n = n
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()  # protects _full_at
        self._full_at: OrderedDict[str, float] = OrderedDict()  # when each bucket will be full again

    def take(self, owner: str) -> None:
        """Count one request of `owner`; ApiError 429 that says when the next one may come."""
        share = self._seconds / self._n
        with self._lock:
            now = self._clock()
            full_at = max(self._full_at.pop(owner, now), now) + share
            is_over = full_at - now > self._seconds + share * 1e-6
            self._full_at[owner] = full_at - share if is_over else full_at
            self._forget(now)
        if is_over:
            wait_s = full_at - now - self._seconds
            raise ApiError(
                429,
                f"Too many requests: {self._n} in {self._seconds:g} s are allowed; try again later.",
                headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
            )

    def _forget(self, now: float) -> None:
        """The oldest buckets, if they are full or too many: two at a time, so they never pile up."""
        for _ in range(2):
            owner = next(iter(self._full_at))
            if self._full_at[owner] > now and len(self._full_at) <= N_BUCKETS:
                return
            del self._full_at[owner]
            if not self._full_at:
                return


def network_of(client: str) -> str:
    """Who an address stands for: of IPv6 everybody has 2^64, so the first half counts."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client  # "unix"
    return client if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
