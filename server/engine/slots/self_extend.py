"""Self-extend (group attention): a longer context than the model was trained for, by merging old positions.

Pure arithmetic on positions; `prompt_cache.fold` applies it to the KV cache between two batches. When a sequence
reaches position `ga_i + width`, the `width` positions from `ga_i` on are divided by `factor`, and later ones move back.
The formula is that of llama.cpp's server of 2024 (paper: "LLM Maybe LongLM", arXiv 2401.01325).
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
    """The positions of one sequence."""

    factor: int  # old positions per new one
    width: int  # positions merged at once
    pos: int = 0  # the next position
    ga_i: int = 0  # positions before this one are merged

    @property
    def room(self) -> int:
        """How many more positions may be used before the next fold."""
        return self.ga_i + self.width - self.pos

    def fold(self) -> Fold | None:
        """The next fold, already applied to `pos` and `ga_i`; None if it isn't due."""
        if self.room > 0:
            return None
        n, w, start, pos = self.factor, self.width, self.ga_i, self.pos
        ib = n * start // w
        bd = w // n * (n - 1)
        dd = w // n - ib * bd - w
        self.pos -= bd
        self.ga_i += w // n
        return Fold(start, pos, ib * bd, start + ib * bd, start + ib * bd + w, start + ib * bd + w, pos + ib * bd, dd)
