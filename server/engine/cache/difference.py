"""Where a prompt leaves a cached text, and how much of what follows the cache would have had.

Pure functions on token lists, engine thread. Not taken: the best alignment of both texts, which costs their lengths
multiplied; here a prompt of 100,000 tokens costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.seam.task import Difference
from server.engine.slots.slot import common_prefix

N_BEFORE, N_BEHIND = 8, 6
"""Tokens shown around a difference."""
STRETCH = 16
"""Tokens; what is the same in both texts counts from twice as many on, and shorter stretches if they lie well."""
MAX_MISSES = 8192
"""A prompt with more new tokens than these has become another text."""


def first_difference(prompt: Sequence[int], cached: Sequence[int], counts: bool = True) -> Difference | None:
    """Where the prompt leaves the cached one; None if one of them ends first. `counts`: also what is lost by it."""
    n = common_prefix(prompt, cached)
    if n == min(len(prompt), len(cached)):
        return None
    end = n + N_BEHIND
    before, n_lost = tuple(prompt[max(n - N_BEFORE, 0) : n]), count_known(prompt, cached, n) if counts else 0
    return Difference(n, before, tuple(prompt[n:end]), tuple(cached[n:end]), n_lost)


def count_known(prompt: Sequence[int], cached: Sequence[int], start: int) -> int:
    """How many tokens of the prompt from `start` on are part of a stretch that `cached` has from there on, too."""
    starts = range(start, len(cached) - STRETCH + 1, STRETCH)
    places = {tuple(cached[j : j + STRETCH]): j for j in reversed(starts)}  # where it is first
    n_known, n_misses, i, end = 0, 0, start, start
    while i + STRETCH <= len(prompt) and n_misses < MAX_MISSES:
        j = places.get(tuple(prompt[i : i + STRETCH]))
        if j is None:
            i, n_misses = i + 1, n_misses + 1
            continue
        first = i
        while first > end and j - (i - first) > start and prompt[first - 1] == cached[j - (i - first) - 1]:
            first -= 1
        i = end = i + _common_run(prompt, i, cached, j)
        n_known += end - first
    return n_known


def _common_run(a: Sequence[int], i: int, b: Sequence[int], j: int) -> int:
    """How far both are the same from these places on. The steps of comparing grow and shrink with what is found."""
    n, step, end = 0, STRETCH, min(len(a) - i, len(b) - j)
    while step:
        is_same = n + step <= end and a[i + n : i + n + step] == b[j + n : j + n + step]
        n, step = (n + step, 2 * step) if is_same else (n, step // 2)
    return n
