"""How long a model's steps take on one set of libraries: what `--tune` compares.

Main thread of a process of its own, which holds but one CPU plug-in. What is measured are the backend's steps, with
the options as they are: one row, one for each slot (or guesses, if there is but one), and rows of a prompt. Noise only
adds time, so the shortest counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from server.engine.backend import open_backend
from server.engine.backend_types import DECODE_OK, Backend
from server.engine.config import EngineConfig
from server.engine.planner import Span
from server.errors import ApiError

PROMPT_ROWS, DEPTH, MOST_SLOTS = 128, 64, 8
LEAST_TIMES, MOST_TIMES, ENOUGH_S = 3, 16, 0.4


def measure(config: EngineConfig) -> list[tuple[int, float]]:
    """(rows, seconds) of each kind of step. ApiError if the model can't be loaded, or doesn't write text."""
    backend = open_backend(config, lambda _: True)
    try:
        info, n_slots = backend.info, min(config.n_slots, MOST_SLOTS)
        if not info.is_generative:
            raise ApiError(400, "--tune is for models that write text")
        n_prompt = min(PROMPT_ROWS, info.n_ctx_slot, info.n_batch)
        depth, n_guesses = min(DEPTH, n_prompt // 2), min(MOST_SLOTS, n_prompt // 4) - 1
        most = (info.n_ctx_slot - depth) // (1 + n_guesses)
        for seq in range(n_slots):
            _read_prompt(backend, seq, depth)
        one_s = _shortest(lambda i: _decode(backend, [Span(0, 0, depth + i, [1], True)]), most)
        _read_prompt(backend, 0, depth)
        if n_slots > 1:
            few, few_s = n_slots, _shortest(lambda i: _decode(
                backend, [Span(seq, seq, depth + i, [1], True) for seq in range(n_slots)]), most)
        else:
            few = 1 + n_guesses
            few_s = _shortest(lambda i: _decode(
                backend, [Span(0, 0, depth + i * few, [1] * few, True, n_draft=n_guesses)]), most)
        prompt_s = _shortest(lambda _: _read_prompt(backend, 0, n_prompt))
        return [(1, one_s), (few, few_s), (n_prompt, prompt_s)]
    finally:
        backend.close()


def _shortest(step: Callable[[int], None], most: int = MOST_TIMES) -> float:
    """Seconds of the quickest of several runs of `step`, which is told the number of each."""
    begun = time.perf_counter()
    best = float("inf")
    for i in range(max(1, min(most, MOST_TIMES))):
        before = time.perf_counter()
        if i >= LEAST_TIMES and before - begun > ENOUGH_S:
            break
        step(i)
        best = min(best, time.perf_counter() - before)
    return best


def _read_prompt(backend: Backend, seq: int, n_rows: int) -> None:
    backend.seq_rm(seq, 0, -1)
    _decode(backend, [Span(seq, seq, 0, [(7919 * i) % backend.info.n_vocab for i in range(n_rows)], True)])


def _decode(backend: Backend, spans: list[Span]) -> None:
    if backend.decode(spans) != DECODE_OK:
        raise ApiError(500, f"a step of {sum(map(len, spans))} rows could not be computed")
