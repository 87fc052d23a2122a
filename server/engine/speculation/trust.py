"""How far the guesses of speculative decoding can be trusted in one text, learnt from how earlier ones came out.

Engine thread, pure arithmetic. `Trust` is for guesses from the text itself, `ModelTrust` for those of a small model.
Recent outcomes count more, so both follow a text that changes its nature.
"""

from __future__ import annotations

N_GRAM = 3  # tokens that must be equal before a place is followed
MAX_MATCH = 80  # more equal tokens than these aren't told apart
PRIOR_WEIGHT = 2.0

# How many tokens have matched so far -> how likely the next one does, before anything is known of this text, and how
# much of the weight of earlier hits and misses is left after each token. The first entry is a guess: one token was
# exchanged, and the text goes on as before. Behind other changes of a copy one token or two are equal. Where few misses
# are to be expected, more tokens tell how many.
CLASSES = (
    (0, 0.35, 0.9),
    (1, 0.4, 0.9),
    (2, 0.45, 0.9),
    (N_GRAM, 0.45, 0.9),
    (4, 0.55, 0.9),
    (6, 0.7, 0.9),
    (10, 0.8, 0.9),
    (20, 0.9, 0.95),
    (40, 0.96, 0.97),
    (MAX_MATCH, 0.98, 0.98),
)
_PRIORS, _DECAYS = [prior for _, prior, _ in CLASSES], [decay for _, _, decay in CLASSES]
_CLASS_OF = tuple(max(i for i, (n, _, _) in enumerate(CLASSES) if n <= length) for length in range(MAX_MATCH + 1))

FIRST_CHANCE, FIRST_WEIGHT, MODEL_DECAY = 0.85, 3.0, 0.95
EXPLORE = 4  # tokens of a draft that is only to learn from
FIRST_PAUSE, LAST_PAUSE = 128, 4096  # steps without drafts when they don't pay


class Trust:
    """How often the next token was as predicted, by how many had matched before; recent ones count more."""

    __slots__ = ("_hits", "_trials")

    def __init__(self) -> None:
        self._hits = [0.0] * len(CLASSES)
        self._trials = [0.0] * len(CLASSES)

    def note(self, n_matched: int, is_hit: bool) -> None:
        """One prediction behind `n_matched` equal tokens came true, or not."""
        i = _CLASS_OF[min(n_matched, MAX_MATCH)]
        self._hits[i] = self._hits[i] * _DECAYS[i] + is_hit
        self._trials[i] = self._trials[i] * _DECAYS[i] + 1.0

    def chance(self, n_matched: int) -> float:
        """How likely the next prediction comes true."""
        i = _CLASS_OF[min(n_matched, MAX_MATCH)]
        return (self._hits[i] + _PRIORS[i] * PRIOR_WEIGHT) / (self._trials[i] + PRIOR_WEIGHT)


class ModelTrust:
    """How often the small model was right about one text, and for how long it isn't asked after it did not pay."""

    __slots__ = ("_hits", "_trials", "_pause", "_n_idle")

    def __init__(self, chance: float = FIRST_CHANCE) -> None:
        """`chance` is what to expect of this text, before anything is known of it."""
        self._hits, self._trials = chance * FIRST_WEIGHT, FIRST_WEIGHT
        self._pause, self._n_idle = FIRST_PAUSE, 0

    @property
    def chance(self) -> float:
        """How likely a drafted token holds if those before it did."""
        return self._hits / self._trials

    def note(self, n_drafted: int, n_accepted: int) -> None:
        """Of a draft so many tokens held; behind the first that did not, nothing was learnt."""
        for is_hit in [1.0] * n_accepted + [0.0] * (n_accepted < n_drafted):
            self._hits = self._hits * MODEL_DECAY + is_hit
            self._trials = self._trials * MODEL_DECAY + 1.0

    def is_time_to_explore(self) -> bool:
        """Called for each step in which drafts don't look worth it; now and then True, ever more rarely."""
        self._n_idle += 1
        if self._n_idle < self._pause:
            return False
        self._pause, self._n_idle = min(self._pause * 2, LAST_PAUSE), 0
        return True
