"""Drafts from a grammar: tokens of the text that the grammar prescribes, as the sampler foresees them.

Engine thread. The text is certain except for white space, but its tokens aren't: the model may cut the same text in
another way. How often it does is learnt from each text, with or without drafts. If the first token, which may begin
with white space, is right, the others are nearly certain.

Not taken: accepting such tokens without asking the model. Another cut leads to another state of the model, so the
answer would differ.
"""

from __future__ import annotations

from collections.abc import Sequence

PRIORS = 0.8, 0.95
"""The chance that a token is the expected one if those before it were: for the first token, and for each later one. It
weighs as much as `PRIOR_WEIGHT` outcomes; each outcome multiplies the weight of earlier ones by `DECAY`."""

PRIOR_WEIGHT, DECAY = 4.0, 0.95


class Given:
    """The tokens foreseen for one text, and how often they prove right."""

    __slots__ = ("tokens", "_hits", "_trials")

    def __init__(self) -> None:
        self.tokens: Sequence[int] = ()
        self._hits = [prior * PRIOR_WEIGHT for prior in PRIORS]
        self._trials = [PRIOR_WEIGHT] * 2

    def foresee(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens

    def estimate_chances(self, n_max: int) -> list[float]:
        """The chances that the first, the first two, ... foreseen tokens come; [] if there are none."""
        first, later = (hits / trials for hits, trials in zip(self._hits, self._trials))
        return [first * later**i for i in range(min(len(self.tokens), n_max))]

    def draft(self, n: int) -> list[int]:
        return list(self.tokens[:n])

    def judge(self, drawn: Sequence[int]) -> None:
        """Learn from the drawn tokens, and forget the foreseen ones."""
        for i, (expected, token) in enumerate(zip(self.tokens, drawn)):
            kind, is_hit = i > 0, expected == token
            self._hits[kind] = self._hits[kind] * DECAY + is_hit
            self._trials[kind] = self._trials[kind] * DECAY + 1.0
            if not is_hit:
                break
        self.tokens = ()
