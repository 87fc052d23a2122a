"""Samplers that libllama no longer has: tail-free sampling, and penalties that leave the newline alone.

Engine thread. Each is a `llama_sampler_i` whose functions are Python; C calls them in the middle of a chain, with the
GIL held by the thread that samples. They touch a bounded number of rows: whoever wants tail-free sampling over the
whole vocabulary gets its first `TFS_ROWS` candidates sorted by C (the tail behind them weighs less than rounding).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

from ctypes_api.llama_types import (
    llama_sampler_apply_fn,
    llama_sampler_i,
    llama_sampler_name_fn,
    llama_token_data_array,
)

TFS_ROWS = 4096
FLAT = 1e-6


class CustomSamplers:
    """Makes the custom samplers of one chain, and holds what C points at: it must outlive the chain."""

    def __init__(self, llama: Any, newline: int) -> None:
        self._llama = llama
        self._newline = newline
        self._alive: list[object] = []

    @property
    def is_empty(self) -> bool:
        """Whether the chain is C's alone."""
        return not self._alive

    def tail_free(self, z: float, min_keep: int) -> int:
        """Tail-free sampling (2020, trentbrick.github.io/Tail-Free-Sampling): cut where the curve of the sorted
        probabilities has flattened out, at the share `z` of its whole bend."""

        def apply(candidates: llama_token_data_array) -> None:
            n_all = candidates.size
            if n_all <= 2:
                return
            self._sort(candidates, min(n_all, TFS_ROWS))
            n_kept = tail_free_length(_softmax(candidates), z, min_keep)
            candidates.size = n_all if n_kept is None else n_kept
            candidates.sorted = candidates.size <= TFS_ROWS

        return self.make(b"tfs_z", apply)

    def keep_newline(self) -> tuple[int, int]:
        """A pair to put around a penalties sampler: the second restores the logit that the first has seen."""
        seen: list[float | None] = [None]

        def remember(candidates: llama_token_data_array) -> None:
            row = self._newline_row(candidates)
            seen[0] = None if row is None else candidates.data[row].logit

        def restore(candidates: llama_token_data_array) -> None:
            row = self._newline_row(candidates)
            if row is not None and seen[0] is not None:
                candidates.data[row].logit = seen[0]
                candidates.sorted = False

        return self.make(b"newline-remember", remember), self.make(b"newline-restore", restore)

    def _newline_row(self, candidates: llama_token_data_array) -> int | None:
        """Where the newline token is: at its own id in an array that nobody has reordered, else searched for."""
        newline = self._newline
        if newline < 0:
            return None
        if newline < candidates.size and candidates.data[newline].id == newline:
            return newline
        address = ctypes.addressof(candidates.data.contents)
        rows = (ctypes.c_int32 * (3 * candidates.size)).from_address(address)
        ids = memoryview(rows).cast("B").cast("i")[::3].tolist()
        return ids.index(newline) if newline in ids else None

    def _sort(self, candidates: llama_token_data_array, n: int) -> None:
        sampler = self._llama.llama_sampler_init_top_k(n)
        self._llama.llama_sampler_apply(sampler, candidates)
        self._llama.llama_sampler_free(sampler)

    def make(self, name: bytes, apply: Callable[[llama_token_data_array], None]) -> int:
        """A C sampler around `apply`, to be freed with its chain."""
        label = ctypes.create_string_buffer(name)
        interface = llama_sampler_i(
            name=llama_sampler_name_fn(lambda _: ctypes.addressof(label)),
            apply=llama_sampler_apply_fn(lambda _, array: apply(array.contents)),
        )
        self._alive += (interface, label)
        return self._llama.llama_sampler_init(ctypes.byref(interface), None)


def _softmax(candidates: llama_token_data_array) -> list[float]:
    """Probabilities of the (sorted, bounded) candidates."""
    logits = [candidates.data[i].logit for i in range(candidates.size)]
    weights = [math.exp(logit - logits[0]) for logit in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def tail_free_length(probs: list[float], z: float, min_keep: int) -> int | None:
    """How many of the sorted `probs` tail-free sampling keeps; None for all of them.

    The second differences of the curve, normalised to sum 1, are added up until they exceed `z`.
    """
    first = [a - b for a, b in zip(probs, probs[1:])]
    second = [abs(a - b) for a, b in zip(first, first[1:])]
    total = sum(second)
    running = 0.0
    for i, bend in enumerate(second):
        running += bend / total if total > FLAT else 1 / len(second)
        if running > z and i >= max(min_keep, 1):
            return i
    return None
