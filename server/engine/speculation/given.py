"""Drafts from a grammar: the tokens of the text that it leaves no choice about, as the sampler foresees them.

Engine thread, no clock. The text is sure but for its blanks, its tokens aren't: a model may cut the same text in
another way. How often that happens is learnt from each text, whether its drafts are sent or not. If it does, then
mostly with the first token, where blanks may stand; what follows a right one is nearly sure.

Not taken: to accept such tokens without asking the model. Another cut is another state of the model, so the answer
would no longer be the one without guesses.
"""

from __future__ import annotations

from collections.abc import Sequence

PRIORS = 0.8, 0.95
"""How likely a token is the expected one if those before it were: the first one, and each later one."""

PRIOR_WEIGHT, DECAY = 4.0, 0.95


class Given:
    """What is foreseen of one text (`tokens`), and how far that is to be trusted."""

    __slots__ = ("tokens", "_hits", "_trials")

    def __init__(self) -> None:
        self.tokens: Sequence[int] = ()
        self._hits = [prior * PRIOR_WEIGHT for prior in PRIORS]
        self._trials = [PRIOR_WEIGHT] * 2

    def foresee(self, tokens: Sequence[int]) -> None:
        """These come next, if all goes as expected."""
        self.tokens = tokens

    def chances(self, n_max: int) -> list[float]:
        """How likely the first, the first two, ... of them come; [] if nothing is foreseen."""
        first, later = (hits / trials for hits, trials in zip(self._hits, self._trials))
        return [first * later**i for i in range(min(len(self.tokens), n_max))]

    def draft(self, n: int) -> list[int]:
        """The first `n` of them."""
        return list(self.tokens[:n])

    def judge(self, drawn: Sequence[int]) -> None:
        """The text goes on with these."""
        for i, (expected, token) in enumerate(zip(self.tokens, drawn)):
            kind, is_hit = i > 0, expected == token
            self._hits[kind] = self._hits[kind] * DECAY + is_hit
            self._trials[kind] = self._trials[kind] * DECAY + 1.0
            if not is_hit:
                break
        self.tokens = ()
