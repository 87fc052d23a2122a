"""Counters and histograms of the engine: what `/metrics` shows and nobody else needs.

Engine thread only; the web side gets plain numbers with the snapshot. A value costs one bisection, there are no
labels and no locks. Not taken: summaries with quantiles (they can't be added up over servers, histograms can).
"""

from __future__ import annotations

from bisect import bisect_left

from server.engine.seam.task import HISTOGRAM_BOUNDS

STALL_S = 0.25


class Histogram:
    """Counts of values per bucket and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def values(self) -> tuple[float, ...]:
        """Counts per bucket, then the sum."""
        return (*self._counts, self._sum)


class Meter:
    """All counters of one engine. Times in ms where the name says so, in seconds in histograms."""

    def __init__(self) -> None:
        self.n_steps = self.n_prompt = self.n_predicted = self.n_reused = self.n_stalls = 0
        self.prompt_ms = self.predicted_ms = 0.0
        self._histograms = {name: Histogram(bounds) for name, bounds in HISTOGRAM_BOUNDS.items()}
        self.queue_wait = self._histograms["queue_wait_seconds"].observe
        self.first_token = self._histograms["time_to_first_token_seconds"].observe
        self.token_gap = self._histograms["time_between_tokens_seconds"].observe
        self._step = self._histograms["step_seconds"].observe
        self._prompt_rate = self._histograms["prompt_throughput_tokens_per_second"].observe
        self._predicted_rate = self._histograms["predicted_throughput_tokens_per_second"].observe

    def step(self, seconds: float, is_generating: bool) -> None:
        """One step of the engine; a long one while somebody reads a stream is a stall."""
        self.n_steps += 1
        self._step(seconds)
        self.n_stalls += is_generating and seconds > STALL_S

    def beside(self, seconds: float, is_generating: bool) -> None:
        """Work beside a step's batch (an image, vectors), which keeps streams waiting no less."""
        self.n_stalls += is_generating and seconds > STALL_S

    def prompt_done(self, n_tokens: int, seconds: float) -> None:
        """A prompt of `n_tokens` evaluated tokens has been read."""
        self.prompt_ms += seconds * 1e3
        if seconds > 0:
            self._prompt_rate(n_tokens / seconds)

    def tokens(self, n: int, seconds: float) -> None:
        """`n` tokens came together, `seconds` after the one before them in the same text."""
        self.predicted_ms += seconds * 1e3
        for _ in range(n):
            self.token_gap(seconds / n)

    def text_done(self, n_tokens: int, seconds: float) -> None:
        """A text of `n_tokens` tokens took `seconds` from its first token to its last."""
        if n_tokens > 1 and seconds > 0:
            self._predicted_rate((n_tokens - 1) / seconds)

    def histograms(self) -> dict[str, tuple[float, ...]]:
        """All histograms as plain numbers."""
        return {name: histogram.values() for name, histogram in self._histograms.items()}
