"""Feeds a stream parser in every way a network can: whole, byte by byte, and split at each place.

Runs in the test process; imports no module of the server.
"""

from __future__ import annotations

from collections.abc import Iterator


def ways_to_cut(data: bytes) -> Iterator[list[bytes]]:
    """Lists of pieces that join to `data`."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for cut in range(1, len(data), max(1, len(data) // 40)):
        yield [data[:cut], b"", data[cut:]]
