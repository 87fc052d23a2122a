"""How many prompt rows fit into a given time: learnt from the steps that were measured, no clock in here.

Engine thread. While somebody reads a stream, prompts get steps of a limited time between the stream's own. How many
rows that is depends on model, machine, how deep in its text the prompt is, and what else the machine does. So a row is
taken to cost `speed * (1 + growth * depth)`: the speed is the median of the latest steps (one that was held up by
something else changes nothing), the growth is a line through the medians of the shallow and of the deep steps.

Rows come in tiles of 64 where the time allows: below that, attention on a CPU goes row by row and a row costs up to
twice as much, most of all deep in a text. So one tile may take `PATIENCE` times its time; only where even that is too
long (large models, slow machines) steps have fewer rows. How much more such a step's row costs is learnt apart:
otherwise each cut would make rows look dearer, and the next cut deeper.

Not taken: a least-squares fit. One step that was held up bends its line.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from server.records import record

TILE = 64
FEW = 8
"""The fewest rows of a step, unless a prompt has no more."""

N_SAMPLES = 5
N_PLACES = 32
MIN_APART = 128
"""Positions between the middles of shallow and deep steps for a line through them."""

FIRST_GROWTH, MAX_GROWTH = 1 / 512, 1 / 128
"""By how much of itself a row's cost grows with each token before it, as long as nothing was measured, and at most."""

MOST_SAVED_MS = 100.0
"""As long as a step for the background at most, where streams may wait for longer."""

PATIENCE = 2.5
"""How many times its limit a step of one tile, or of one text's guesses, may take."""

OVERTIME = 1.2
"""How many times its limit a step may take that ends a prompt."""

SMALL_ROW, MAX_SMALL_ROW, LEARN = 1.25, 2.0, 0.3
"""What a row of a small step costs in rows of large ones, before both were measured, and at most."""

FIRST_ROW = 0.25
"""What a prompt's row costs in steps of one row, before one was measured."""


@record
class Step:
    """What was measured of a step of prompt rows; `depth` is that of its middle."""

    n_rows: int
    depth: float
    row_ms: float


class Pace:
    """Time per row on this machine, now."""

    def __init__(self) -> None:
        self._decode_ms: deque[float] = deque(maxlen=N_SAMPLES)
        self._lately: deque[Step] = deque(maxlen=N_SAMPLES)
        self._large: deque[Step] = deque(maxlen=N_PLACES)  # those of a tile or more
        self._growth = FIRST_GROWTH
        self._small_row = SMALL_ROW

    def observe_decode(self, ms: float) -> None:
        """A step of generating rows took `ms`."""
        self._decode_ms.append(ms)

    def observe_prompt(self, n_rows: int, depth: int, ms: float) -> None:
        """A step of `n_rows` prompt rows behind `depth` tokens took `ms`."""
        if n_rows < FEW and self._lately:
            return  # the end of a prompt: too few rows to tell time per row
        step = Step(n_rows, depth + n_rows / 2, ms / n_rows)
        self._lately.append(step)
        if n_rows >= TILE:
            self._large.append(step)
            self._learn_growth()
        self._learn_small_row()

    @property
    def decode_ms(self) -> float:
        """What a step without prompt rows takes."""
        return median(self._decode_ms) if self._decode_ms else 0.0

    def estimate(self, n_rows: int, depth: int) -> float:
        """Milliseconds for a step of `n_rows` prompt rows behind `depth` tokens."""
        row_ms = self._row_ms() * (1.0 if n_rows >= TILE else self._small_row)
        return n_rows * row_ms * (1 + self._growth * (depth + n_rows / 2))

    def rows(self, limit_ms: float, depth: int, n_left: int, patience: float = PATIENCE) -> int:
        """Rows for a step of about `limit_ms` for a prompt that has `n_left` rows to go behind `depth` tokens. With
        another `patience` than the usual one a tile, or the end of a prompt, takes so many times the limit at most.

        At most twice as many as a step had lately: a wrong guess about large steps costs one step, not a second.
        """
        n_most = 2 * max([TILE, *(step.n_rows for step in self._lately)])
        if n_left <= n_most and self.estimate(n_left, depth) <= min(OVERTIME, patience) * limit_ms:
            return n_left
        n = self._tiles(limit_ms, depth, n_most)
        if n or self.estimate(TILE, depth) <= patience * limit_ms:
            return min(n or TILE, n_left)
        few = int(limit_ms * FEW / self.estimate(FEW, depth))
        return min(max(few - few % FEW, FEW), TILE - FEW, n_left)

    def rows_within(self, limit_ms: float, depth: int, n_left: int) -> int:
        """The same for a further step in the same pause of the streams: whole tiles or all rows, else 0."""
        if not self._lately or self._row_ms() <= 0.0:
            return 0  # nothing can be said
        if self.estimate(n_left, depth) <= limit_ms:
            return n_left
        return self._tiles(limit_ms, depth, n_left)

    def _tiles(self, limit_ms: float, depth: int, n_most: int) -> int:
        n = 0
        while n + TILE <= n_most and self.estimate(n + TILE, depth) <= limit_ms:
            n += TILE
        return n

    # ---- parts ------------------------------------------------------------------------------------------------

    def _row_ms(self) -> float:
        """Of a large step at depth 0."""
        return self._median(self._lately) if self._lately else FIRST_ROW * self.decode_ms

    def _median(self, steps: Iterable[Step]) -> float:
        return median(
            step.row_ms / (1 + self._growth * step.depth) / (1.0 if step.n_rows >= TILE else self._small_row)
            for step in steps
        )

    def _learn_small_row(self) -> None:
        """From small and large steps of the same time."""
        small = [step for step in self._lately if step.n_rows < TILE]
        large = [step for step in self._lately if step.n_rows >= TILE]
        if small and large:
            ratio = self._small_row * self._median(small) / max(self._median(large), 1e-9)
            self._small_row += LEARN * (min(max(ratio, 1.0), MAX_SMALL_ROW) - self._small_row)

    def _learn_growth(self) -> None:
        steps = sorted(self._large, key=lambda step: step.depth)
        half = len(steps) // 2
        if not half:
            return
        x0, x1 = (median(step.depth for step in part) for part in (steps[:half], steps[half:]))
        y0, y1 = (median(step.row_ms for step in part) for part in (steps[:half], steps[half:]))
        if x1 - x0 >= MIN_APART:
            slope = max(y1 - y0, 0.0) / (x1 - x0)
            self._growth = min(slope / max(y0 - slope * x0, 1e-9), MAX_GROWTH)


SHARE = 0.18
"""What tasks in the background may take for each second that others have: then those keep five sixths of their rate."""


class Spare:
    """The time that tasks in the background may take beside others: saved up while those have their steps.

    Their next tokens come in steps that others have anyway (`beside`), where a row costs what it makes such a step
    longer; the rows of their prompts have steps of their own."""

    def __init__(self, limit_ms: float) -> None:
        self.limit_ms = limit_ms or math.inf
        self._saved_ms = 0.0
        self._alone_ms: deque[float] = deque(maxlen=N_SAMPLES)
        self._row_ms: deque[float] = deque(maxlen=N_SAMPLES)

    @property
    def alone_ms(self) -> float:
        """What a step of others' next tokens takes."""
        return median(self._alone_ms) if self._alone_ms else 0.0

    @property
    def _most_ms(self) -> float:
        """What a pause of others may take beside their own step; as long as that where it takes the whole limit."""
        return max(min(self.limit_ms, MOST_SAVED_MS) - self.alone_ms, self.alone_ms)

    @property
    def _cost(self) -> float:
        """Of a row beside others; before one was measured, that of a step without any."""
        return median(self._row_ms) if self._row_ms else self.alone_ms

    def others(self, ms: float, is_decode: bool) -> None:
        """A step without the background took `ms`."""
        if is_decode:
            self._alone_ms.append(ms)
        self._saved_ms = min(self._saved_ms + SHARE * ms, max(self._cost, self._most_ms))

    def beside(self, ms: float, n_rows: int) -> None:
        """A step of others' next tokens took `ms` with so many rows of the background."""
        extra_ms = max(ms - self.alone_ms, 0.0)
        self._row_ms.append(extra_ms / n_rows)
        self._saved_ms += SHARE * (ms - extra_ms) - extra_ms

    def background(self, ms: float) -> None:
        """A step for the background took `ms`."""
        self._saved_ms -= ms

    def rows_beside(self, n: int) -> int:
        """How many of `n` rows the next step of others may have besides: as many as it ever may, or none yet."""
        if not self._alone_ms:
            return 0
        cost = self._cost
        if cost > 0:
            n = min(n, max(int(self._most_ms / cost), 1))
        return n if n * cost <= self._saved_ms else 0

    def prompt_ms(self) -> float:
        """How long a step of their prompts may take now; 0 for not at all."""
        most = self._most_ms
        return most if self._alone_ms and self._saved_ms >= most / 2 else 0.0


def median(values: Iterable[float]) -> float:
    """Like that of `statistics`, whose import takes longer than most of the engine's."""
    ordered = sorted(values)
    return (ordered[len(ordered) // 2] + ordered[(len(ordered) - 1) // 2]) / 2
