"""Going back in models whose state can't be cut: copies of it, made while a prompt is read.

A recurrent model's state is about all tokens so far; there is no dropping the last few. So at every `step` tokens of a
prompt, and shortly before its end, the state is copied (`Slot.checkpoints`), and where others cut a sequence,
`prompt_cache.trim` goes back to the last copy before that place. Reading stops at those places, which costs a step of
the engine each. Hybrid models keep their attention cells; only their recurrent part is copied.

Engine thread. Not taken: copies while text is generated. The next request seldom goes back to there.
"""

from __future__ import annotations

from server.engine.slots.backend import Backend
from server.engine.slots.slot import Checkpoint, Slot

END_MARGIN = 4
"""Tokens before a prompt's end. The next request may have other ones in the very last places: templates end with a
beginning of the answer, and its first characters may melt into them."""

MIN_TOKENS = 32
"""A shorter prompt is read again in no time."""


class Checkpoints:
    """Makes them: at most `limit` for each slot."""

    def __init__(self, backend: Backend, limit: int, step: int) -> None:
        self._backend = backend
        self._limit = limit
        self._step = step
        self.is_on = not backend.can_share and limit > 0

    def rows(self, slot: Slot) -> int:
        """How far a slot's prompt may be read in one go; a copy is made if it is due right here."""
        n, end = len(slot.tokens), len(slot.run.prompt) - END_MARGIN
        end = end if end >= MIN_TOKENS else 0
        if slot.run.layout.chunks or slot.positions is not None:
            return len(slot.run.prompt)
        if 0 < n and (n % self._step == 0 or n == end) and not any(one.n == n for one in slot.checkpoints):
            slot.checkpoints.append(Checkpoint(n, self._backend.checkpoint(slot.seq)))
            self._thin_out(slot)
        stop = n - n % self._step + self._step
        return (end if n < end < stop else min(stop, len(slot.run.prompt))) - n

    def _thin_out(self, slot: Slot) -> None:
        """Too many: the one goes that leaves the smallest gap, the first and the latest stay."""
        while len(slot.checkpoints) > self._limit:
            places = [0, *(one.n for one in slot.checkpoints)]
            gaps = [places[i + 1] - places[i - 1] for i in range(1, len(places) - 1)]
            del slot.checkpoints[gaps.index(min(gaps))]
