"""Predicts how many prompt rows fit into a given time, from the steps measured so far. Engine thread; reads no clock.

How many rows fit depends on the model, the machine and its load, and on how many tokens lie before the rows (depth). A
row is assumed to cost `base * (1 + growth * depth)`. The base is a median of the latest steps, so one delayed step
changes little. The growth comes from a line through the medians of shallow and of deep steps.

Rows come in tiles of 64. With fewer rows, attention on a CPU goes row by row and a row costs up to twice as much. So
one tile may take `PATIENCE` times the limit. If it would take longer, a step has fewer rows, whose higher cost is
learnt separately.

Not taken: a least-squares fit, whose line one delayed step can bend.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from server.records import record

TILE = 64  # rows
FEW = 8
"""The fewest rows of a step, unless a prompt has no more."""

N_SAMPLES = 5  # latest steps that a median is made of
N_PLACES = 32  # latest steps of a tile or more that the growth is learnt from
MIN_APART = 128
"""Least distance in tokens between the median depths of shallow and deep steps, for a line through them."""

FIRST_GROWTH, MAX_GROWTH = 1 / 512, 1 / 128
"""How much a row's cost grows with each token before it, relative to its cost at depth 0: at first, and at most."""

MOST_SAVED_MS = 100.0
"""For background tasks, a higher `--max-stall-ms` counts as this."""

PATIENCE = 2.5
"""A step of one tile, or with drafts, may take `PATIENCE` times its limit."""

OVERTIME = 1.2
"""A step that ends a prompt may take `OVERTIME` times its limit."""

SMALL_ROW, MAX_SMALL_ROW, LEARN = 1.25, 2.0, 0.3
"""The cost of a row in a small step relative to one in a large step: at first, and at most. `LEARN` is the weight of a
new measurement."""

FIRST_ROW = 0.25
"""The cost of a prompt row relative to a generating step, before one was measured."""


@record
class Step:
    """A measured step of prompt rows. `depth` is the number of tokens before its middle row."""

    n_rows: int
    depth: float
    row_ms: float


class Pace:
    """What a row costs at present, in milliseconds."""

    def __init__(self) -> None:
        self._decode_ms: deque[float] = deque(maxlen=N_SAMPLES)
        self._lately: deque[Step] = deque(maxlen=N_SAMPLES)
        self._large: deque[Step] = deque(maxlen=N_PLACES)  # those of a tile or more
        self._growth = FIRST_GROWTH
        self._small_row = SMALL_ROW

    def observe_decode(self, ms: float) -> None:
        self._decode_ms.append(ms)

    def observe_prompt(self, n_rows: int, depth: int, ms: float) -> None:
        """Note that a step of `n_rows` prompt rows behind `depth` tokens took `ms`."""
        if n_rows < FEW and self._lately:
            return  # the end of a prompt: too few rows to measure
        step = Step(n_rows, depth + n_rows / 2, ms / n_rows)
        self._lately.append(step)
        if n_rows >= TILE:
            self._large.append(step)
            self._learn_growth()
        self._learn_small_row()

    @property
    def decode_ms(self) -> float:
        """The milliseconds of a generating step; 0 before one was measured."""
        return compute_median(self._decode_ms) if self._decode_ms else 0.0

    def estimate(self, n_rows: int, depth: int) -> float:
        """Milliseconds for a step of `n_rows` prompt rows behind `depth` tokens."""
        row_ms = self._compute_row_ms() * (1.0 if n_rows >= TILE else self._small_row)
        return n_rows * row_ms * (1 + self._growth * (depth + n_rows / 2))

    def count_rows(self, limit_ms: float, depth: int, n_left: int, patience: float = PATIENCE) -> int:
        """Rows for a step of about `limit_ms`, for a prompt with `n_left` rows left behind `depth` tokens. A tile may
        take `patience` times the limit.

        At most two tiles or twice the largest recent step, so that a wrong prediction costs only one step.
        """
        n_most = 2 * max([TILE, *(step.n_rows for step in self._lately)])
        if n_left <= n_most and self.estimate(n_left, depth) <= min(OVERTIME, patience) * limit_ms:
            return n_left
        n = self._count_tiles(limit_ms, depth, n_most)
        if n or self.estimate(TILE, depth) <= patience * limit_ms:
            return min(n or TILE, n_left)
        few = int(limit_ms * FEW / self.estimate(FEW, depth))
        return min(max(few - few % FEW, FEW), TILE - FEW, n_left)

    def count_rows_within(self, limit_ms: float, depth: int, n_left: int) -> int:
        """Rows for one more step before the generating slots go on: all rows, else the whole tiles that fit, else 0."""
        if not self._lately or self._compute_row_ms() <= 0.0:
            return 0  # nothing was measured
        if self.estimate(n_left, depth) <= limit_ms:
            return n_left
        return self._count_tiles(limit_ms, depth, n_left)

    def _count_tiles(self, limit_ms: float, depth: int, n_most: int) -> int:
        n = 0
        while n + TILE <= n_most and self.estimate(n + TILE, depth) <= limit_ms:
            n += TILE
        return n

    # ---- parts ------------------------------------------------------------------------------------------------

    def _compute_row_ms(self) -> float:
        """The cost of a row at depth 0 in a step of a tile or more."""
        return self._compute_median(self._lately) if self._lately else FIRST_ROW * self.decode_ms

    def _compute_median(self, steps: Iterable[Step]) -> float:
        return compute_median(
            step.row_ms / (1 + self._growth * step.depth) / (1.0 if step.n_rows >= TILE else self._small_row)
            for step in steps
        )

    def _learn_small_row(self) -> None:
        small = [step for step in self._lately if step.n_rows < TILE]
        large = [step for step in self._lately if step.n_rows >= TILE]
        if small and large:
            ratio = self._small_row * self._compute_median(small) / max(self._compute_median(large), 1e-9)
            self._small_row += LEARN * (min(max(ratio, 1.0), MAX_SMALL_ROW) - self._small_row)

    def _learn_growth(self) -> None:
        steps = sorted(self._large, key=lambda step: step.depth)
        half = len(steps) // 2
        if not half:
            return
        x0, x1 = (compute_median(step.depth for step in part) for part in (steps[:half], steps[half:]))
        y0, y1 = (compute_median(step.row_ms for step in part) for part in (steps[:half], steps[half:]))
        if x1 - x0 >= MIN_APART:
            slope = max(y1 - y0, 0.0) / (x1 - x0)
            self._growth = min(slope / max(y0 - slope * x0, 1e-9), MAX_GROWTH)


SHARE = 0.18
"""Seconds that background tasks may take for each second of other tasks."""


class Spare:
    """The time that background tasks may take beside others. It is saved up during the others' steps.

    Generating background tasks have rows in the others' steps (`note_beside`); such a row costs the time by which it
    makes the step longer. Background prompts have steps of their own.
    """

    def __init__(self, limit_ms: float) -> None:
        self.limit_ms = limit_ms or math.inf
        self._saved_ms = 0.0
        self._alone_ms: deque[float] = deque(maxlen=N_SAMPLES)
        self._row_ms: deque[float] = deque(maxlen=N_SAMPLES)

    @property
    def alone_ms(self) -> float:
        """The milliseconds of a generating step without background rows."""
        return compute_median(self._alone_ms) if self._alone_ms else 0.0

    @property
    def _most_ms(self) -> float:
        """The longest time that background tasks may add between two of the others' steps: what a generating step
        leaves of the limit, but at least its own time."""
        return max(min(self.limit_ms, MOST_SAVED_MS) - self.alone_ms, self.alone_ms)

    @property
    def _cost(self) -> float:
        """The milliseconds of a background row beside others; before one was measured, those of a whole step."""
        return compute_median(self._row_ms) if self._row_ms else self.alone_ms

    def note_others(self, ms: float, is_decode: bool) -> None:
        """Note that a step without background rows took `ms`; `is_decode`: it was a generating step."""
        if is_decode:
            self._alone_ms.append(ms)
        self._saved_ms = min(self._saved_ms + SHARE * ms, max(self._cost, self._most_ms))

    def note_beside(self, ms: float, n_rows: int) -> None:
        extra_ms = max(ms - self.alone_ms, 0.0)
        self._row_ms.append(extra_ms / n_rows)
        self._saved_ms += SHARE * (ms - extra_ms) - extra_ms

    def note_background(self, ms: float) -> None:
        self._saved_ms -= ms

    def count_rows_beside(self, n: int) -> int:
        """How many of `n` background rows the next generating step may have: as many as `_most_ms` allows, or 0 until
        the saved time suffices for them."""
        if not self._alone_ms:
            return 0
        cost = self._cost
        if cost > 0:
            n = min(n, max(int(self._most_ms / cost), 1))
        return n if n * cost <= self._saved_ms else 0

    def compute_prompt_ms(self) -> float:
        """How long a step of background prompts may take now; 0 if there may be none."""
        most = self._most_ms
        return most if self._alone_ms and self._saved_ms >= most / 2 else 0.0


def compute_median(values: Iterable[float]) -> float:
    """The median, without the slow import of `statistics`."""
    ordered = sorted(values)
    return (ordered[len(ordered) // 2] + ordered[(len(ordered) - 1) // 2]) / 2
