"""Measures how long a model's steps take with one CPU plug-in. `--tune` compares plug-ins and numbers of threads.

Runs on the main thread of a process of its own, which loads a single plug-in. It measures three kinds of steps with the
user's options: one row; one row for each of up to `MOST_SLOTS` slots (with a single slot: a token and its draft); rows
of a prompt. Unless the model is recurrent, each is measured again with a longer context, because plug-ins also differ
in the speed of attention. Of several runs the shortest counts, because other load only adds time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from server.engine.llama.backend import open_backend
from server.engine.seam.config import EngineConfig
from server.engine.slots.backend import DECODE_OK, Backend
from server.engine.slots.planner import Span
from server.errors import StartError

PROMPT_ROWS, MOST_SLOTS = 128, 8  # rows of a prompt, and slots, in a step at most
SHALLOW = 64  # tokens before the first measurement
DEEP = ((1 << 30, 512), (1 << 32, 256))  # (bytes, tokens before the second measurement of a model with fewer bytes)
LEAST_DEEP = 128  # tokens before the second measurement, for larger models
LEAST_TIMES, MOST_TIMES, ENOUGH_S = 3, 16, 0.4  # least, most runs of a step; after `ENOUGH_S` seconds the least suffice


def measure(config: EngineConfig) -> list[tuple[str, float]]:
    """(kind of step, seconds) pairs. StartError if the model can't be loaded, or doesn't generate text."""
    backend = open_backend(config, lambda _: True)
    try:
        info = backend.info
        if not info.is_generative:
            raise StartError("--tune is for models that generate text")
        n_ctx = info.n_ctx // config.n_slots  # also in a unified cache, because the steps fill all slots
        steps = Steps(backend, min(config.n_slots, MOST_SLOTS), min(PROMPT_ROWS, n_ctx // 4, info.n_batch), n_ctx)
        deep = next((depth for size, depth in DEEP if info.size < size), LEAST_DEEP)
        figures = steps.measure(min(SHALLOW, n_ctx // 4), "")
        if backend.can_share:  # in recurrent models, depth changes little or nothing
            deep = min(deep, n_ctx // 2)
            figures += steps.measure(deep, f" behind {deep}")
        return figures
    finally:
        backend.close()


class Steps:
    """Steps of one backend, with `n_slots` sequences of at most `n_ctx` tokens and prompts of `n_prompt` rows."""

    def __init__(self, backend: Backend, n_slots: int, n_prompt: int, n_ctx: int) -> None:
        self._backend = backend
        self._n_slots, self._n_prompt, self._n_ctx = n_slots, n_prompt, n_ctx
        self._n_guesses = MOST_SLOTS - 1 if n_slots == 1 else 0
        self._depth = 0

    def measure(self, depth: int, place: str) -> list[tuple[str, float]]:
        """(kind of step, seconds) after `depth` tokens. `place` is appended to the kinds' names."""
        self._depth = depth
        room = self._n_ctx - depth
        for seq in range(self._n_slots):
            self._fill(seq)
        prompt_s = _measure_shortest(self._read_prompt, MOST_TIMES)
        self._cut(0)
        row_s = _measure_shortest(lambda i: self._decode([Span(0, 0, depth + i, [1], True)]), room)
        self._cut(0)
        n_few = 1 + self._n_guesses
        few_s = _measure_shortest(
            lambda i: self._decode(
                [Span(seq, seq, depth + i * n_few, [1] * n_few, True, self._n_guesses) for seq in range(self._n_slots)]
            ),
            room // n_few,
        )
        return [
            (f"1 row{place}", row_s),
            (f"{self._n_slots * n_few} rows{place}", few_s),
            (f"{self._n_prompt} rows of a prompt{place}", prompt_s),
        ]

    def _fill(self, seq: int) -> None:
        self._backend.seq_rm(seq, 0, -1)
        if seq and self._backend.can_share:
            self._backend.seq_cp(0, seq, 0, self._depth)
        else:
            self._decode([Span(seq, seq, 0, self._make_tokens(self._depth), False)])

    def _cut(self, seq: int) -> None:
        if not self._backend.seq_rm(seq, self._depth, -1):
            self._fill(seq)

    def _read_prompt(self, _: int) -> None:
        self._cut(0)
        self._decode([Span(0, 0, self._depth, self._make_tokens(self._n_prompt), True)])

    def _make_tokens(self, n: int) -> list[int]:
        return [(7919 * i) % self._backend.info.n_vocab for i in range(n)]

    def _decode(self, spans: list[Span]) -> None:
        if self._backend.decode(spans) != DECODE_OK:
            raise StartError(f"could not compute a step of {sum(map(len, spans))} rows")


def _measure_shortest(step: Callable[[int], None], most: int) -> float:
    """The seconds of the fastest of several runs of `step`. `step` gets the run's number."""
    begun = time.perf_counter()
    best = float("inf")
    for i in range(max(1, min(most, MOST_TIMES))):
        before = time.perf_counter()
        if i >= LEAST_TIMES and before - begun > ENOUGH_S:
            break
        step(i)
        best = min(best, time.perf_counter() - before)
    return best
