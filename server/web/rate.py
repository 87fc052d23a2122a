"""The rate limit: a token bucket for each API key, or without a key for each network. Connection threads.

POST, PUT and PATCH requests are counted before their body is read, unless their route `is_free`. Requests that are
refused for their key count for their network, so that guessing keys is slow. Memory is bounded: full buckets are
forgotten, and beyond `N_BUCKETS` the buckets that have been unused for longest.

Not taken: sliding windows (they store every request), and trusting `X-Forwarded-For` (any client can write it).
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
    """Allows `n` requests in `seconds`: `n` at once, then one more every `seconds / n`."""

    def __init__(self, n: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._n = n
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()  # protects _full_at
        self._full_at: OrderedDict[str, float] = OrderedDict()  # when each bucket will be full again

    def take(self, owner: str) -> None:
        """Count one request of `owner`. ApiError 429 with Retry-After if its bucket is empty."""
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
        """Remove the two oldest buckets if they are full or too many."""
        for _ in range(2):
            owner = next(iter(self._full_at))
            if self._full_at[owner] > now and len(self._full_at) <= N_BUCKETS:
                return
            del self._full_at[owner]
            if not self._full_at:
                return


def network_of(client: str) -> str:
    """The network that an address is counted for: an IPv4 address itself, but the /64 network of an IPv6 address,
    because one IPv6 client usually has 2^64 addresses."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client  # "unix"
    return client if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
