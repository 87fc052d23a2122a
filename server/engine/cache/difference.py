"""Finds where a prompt differs from a cached text, and counts the cached tokens that are lost by it.

Pure functions on token lists; they run on the engine's thread. Not taken: the best alignment of both texts, whose time
is proportional to the product of their lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.seam.task import Difference
from server.engine.slots.slot import count_common_prefix

N_BEFORE, N_BEHIND = 8, 6
"""Tokens reported before a difference, and from it on."""
STRETCH = 16
"""Tokens. The search cuts the cached text into stretches of this length. It may miss common runs shorter than two
stretches."""
MAX_MISSES = 8192
"""The search ends after this many positions in the prompt where no stretch begins."""


def find_first_difference(prompt: Sequence[int], cached: Sequence[int], counts: bool = True) -> Difference | None:
    """Where the prompt differs from the cached text; None if one is a prefix of the other. `n_lost` is 0 without
    `counts`."""
    n = count_common_prefix(prompt, cached)
    if n == min(len(prompt), len(cached)):
        return None
    end = n + N_BEHIND
    before, n_lost = tuple(prompt[max(n - N_BEFORE, 0) : n]), count_known(prompt, cached, n) if counts else 0
    return Difference(n, before, tuple(prompt[n:end]), tuple(cached[n:end]), n_lost)


def count_known(prompt: Sequence[int], cached: Sequence[int], start: int) -> int:
    """How many tokens of `prompt[start:]` belong to runs that the search finds in `cached[start:]`."""
    starts = range(start, len(cached) - STRETCH + 1, STRETCH)
    places = {tuple(cached[j : j + STRETCH]): j for j in reversed(starts)}  # the first place of each stretch
    n_known, n_misses, i, end = 0, 0, start, start
    while i + STRETCH <= len(prompt) and n_misses < MAX_MISSES:
        j = places.get(tuple(prompt[i : i + STRETCH]))
        if j is None:
            i, n_misses = i + 1, n_misses + 1
            continue
        first = i
        while first > end and j - (i - first) > start and prompt[first - 1] == cached[j - (i - first) - 1]:
            first -= 1
        i = end = i + _count_common_run(prompt, i, cached, j)
        n_known += end - first
    return n_known


def _count_common_run(a: Sequence[int], i: int, b: Sequence[int], j: int) -> int:
    n, step, end = 0, STRETCH, min(len(a) - i, len(b) - j)
    while step:
        is_same = n + step <= end and a[i + n : i + n + step] == b[j + n : j + n + step]
        n, step = (n + step, 2 * step) if is_same else (n, step // 2)
    return n
