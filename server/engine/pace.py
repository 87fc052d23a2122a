"""How many prompt rows fit into a step's time: learnt from the steps that were measured, no clock in here.

Engine thread. While somebody reads a stream, a step may take `--max-stall-ms`; how many rows of prompts that is
depends on model, machine, context and what else the machine does, so it is measured. A step's time is taken as that
of the generating rows (the latest steps without prompt rows tell) plus so much per prompt row. Medians over few
steps: one step that was held up by something else changes nothing, and growing contexts are followed. Steps with
streams and steps without are kept apart, because small mixed batches cost more per row than large pure ones.

Not taken: a least-squares fit of rows and context. The rows chosen hardly vary, so its terms can't be told apart.
"""

from __future__ import annotations

from collections import deque
from statistics import median

N_SAMPLES = 5
N_LATELY = 16
MIN_ROWS = 8
MIN_ROWS_SAMPLE = 16
FIRST_ROWS = 64
MIXED_COST = 1.5
"""How much more a row in a mixed batch costs, as long as no mixed batch was measured."""


class Pace:
    """Time per row on this machine, now."""

    def __init__(self) -> None:
        self._generating_ms: deque[float] = deque(maxlen=N_SAMPLES)
        self._mixed_row_ms: deque[float] = deque(maxlen=N_SAMPLES)
        self._prompt_row_ms: deque[float] = deque(maxlen=N_SAMPLES)
        self._lately_row_ms: deque[float] = deque(maxlen=N_LATELY)

    def observe(self, n_generating: int, n_prompt: int, ms: float) -> None:
        """A step of so many rows took `ms`."""
        if n_prompt >= MIN_ROWS_SAMPLE:
            self._lately_row_ms.append(ms / n_prompt)
        if n_prompt == 0:
            self._generating_ms.append(ms)
        elif n_prompt < MIN_ROWS_SAMPLE and self._mixed_row_ms:
            pass  # the end of a prompt: too few rows to tell time per row
        elif n_generating:
            self._mixed_row_ms.append(max(ms - self.base_ms, 0.0) / n_prompt)
        elif n_prompt >= MIN_ROWS_SAMPLE:
            self._prompt_row_ms.append(ms / n_prompt)

    @property
    def base_ms(self) -> float:
        """What a step takes without any prompt row."""
        return median(self._generating_ms) if self._generating_ms else 0.0

    def rows_beside_streams(self, limit_ms: float) -> int:
        """Prompt rows for a step of `limit_ms` with generating rows in it.

        Where the generating rows alone take longer than half of it, prompts still get as much time as they do. And
        never fewer rows than half of the limit was enough for in the best step lately: a step has costs that don't
        depend on its rows and grow with the context, and if rows were cut for them, each would seem to cost still more.
        """
        if self._mixed_row_ms:
            row_ms = median(self._mixed_row_ms)
        elif self._prompt_row_ms:
            row_ms = MIXED_COST * median(self._prompt_row_ms)
        else:
            return FIRST_ROWS
        rows = self._rows(max(limit_ms - self.base_ms, self.base_ms), row_ms)
        return max(rows, int(limit_ms / 2 / max(min(self._lately_row_ms), 1e-6))) if self._lately_row_ms else rows

    def rows_alone(self, limit_ms: float) -> int:
        """Prompt rows for a step of `limit_ms` without generating rows."""
        return self._rows(limit_ms, median(self._prompt_row_ms)) if self._prompt_row_ms else FIRST_ROWS

    def _rows(self, ms: float, row_ms: float) -> int:
        return max(int(ms / max(row_ms, 1e-6)), MIN_ROWS)
