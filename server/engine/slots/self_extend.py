"""Self-extend (group attention): more context than a model was trained for, by folding old positions together.

Pure arithmetic on positions; the scheduler applies the steps to the KV cache between two batches. When a sequence
reaches position `ga_i + width`, the `width` positions from there are divided by the factor n, and everything behind
them moves back, so that positions stay within what the model knows. The formula is that of llama.cpp's server of 2024
(paper: "LLM Maybe LongLM", arXiv 2401.01325).
"""

from __future__ import annotations

from server.records import record


@record(frozen=True)
class Fold:
    """Three operations on positions [start, end) of a sequence, in order: add, divide, add."""

    add_start: int
    add_end: int
    add_delta: int
    divide_start: int
    divide_end: int
    rest_start: int
    rest_end: int
    rest_delta: int


@record
class GroupAttention:
    """State of one sequence: `pos` is its next position, `ga_i` how far it has been folded."""

    factor: int
    width: int
    pos: int = 0
    ga_i: int = 0

    @property
    def room(self) -> int:
        """How many more positions may be used before the next fold is due."""
        return self.ga_i + self.width - self.pos

    def fold(self) -> Fold | None:
        """The next fold if it is due; the state is then the one after it."""
        if self.room > 0:
            return None
        n, w, start, pos = self.factor, self.width, self.ga_i, self.pos
        ib = n * start // w
        bd = w // n * (n - 1)
        dd = w // n - ib * bd - w
        self.pos -= bd
        self.ga_i += w // n
        return Fold(start, pos, ib * bd, start + ib * bd, start + ib * bd + w, start + ib * bd + w, pos + ib * bd, dd)
