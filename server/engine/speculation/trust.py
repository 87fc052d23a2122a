"""Estimates the chance that drafted tokens are right, from the outcomes of earlier predictions.

Engine thread, pure arithmetic. `Trust` is for drafts from text, `ModelTrust` for those of a small model. Recent
outcomes count more.
"""

from __future__ import annotations

N_GRAM = 3  # by default, a place in earlier text is followed if this many tokens before it are equal
MAX_MATCH = 80  # more equal tokens count as this many
MIN_SURVIVAL = 0.05  # a draft ends where the chance of all its tokens falls below this
PRIOR_WEIGHT = 2.0  # a first chance counts as much as the outcomes of this many tokens

# (number of matched tokens, first chance that the next one matches, weight that earlier outcomes keep at each new one).
# 0 matched tokens: one token is assumed to have been replaced. 1 or 2: a copy goes on after another kind of change.
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

FIRST_CHANCE, FIRST_WEIGHT, MODEL_DECAY = 0.85, 3.0, 0.95  # for a small model: first chance, its weight, weight kept
EXPLORE = 4  # tokens of a draft that is only sent to learn from it
FIRST_PAUSE, LAST_PAUSE = 128, 4096  # steps between two such drafts, at first and at last


class Trust:
    """How often predictions were right, by how many tokens had matched before them."""

    __slots__ = ("_hits", "_trials")

    def __init__(self) -> None:
        self._hits = [0.0] * len(CLASSES)
        self._trials = [0.0] * len(CLASSES)

    def note(self, n_matched: int, is_hit: bool) -> None:
        """Note whether a prediction behind `n_matched` equal tokens was right."""
        i = _CLASS_OF[min(n_matched, MAX_MATCH)]
        self._hits[i] = self._hits[i] * _DECAYS[i] + is_hit
        self._trials[i] = self._trials[i] * _DECAYS[i] + 1.0

    def estimate_chance(self, n_matched: int) -> float:
        """The chance that the next prediction is right."""
        i = _CLASS_OF[min(n_matched, MAX_MATCH)]
        return (self._hits[i] + _PRIORS[i] * PRIOR_WEIGHT) / (self._trials[i] + PRIOR_WEIGHT)


class ModelTrust:
    """How often the small model was right, and how many steps it pauses when its drafts don't pay."""

    __slots__ = ("_hits", "_trials", "_pause", "_n_idle")

    def __init__(self, chance: float = FIRST_CHANCE) -> None:
        """`chance` is the estimate before the first outcome."""
        self._hits, self._trials = chance * FIRST_WEIGHT, FIRST_WEIGHT
        self._pause, self._n_idle = FIRST_PAUSE, 0

    @property
    def chance(self) -> float:
        """The chance that a drafted token proves right if those before it did."""
        return self._hits / self._trials

    def note(self, n_drafted: int, n_accepted: int) -> None:
        """Note how many tokens of a draft proved right. The tokens behind the first wrong one don't count."""
        for is_hit in [1.0] * n_accepted + [0.0] * (n_accepted < n_drafted):
            self._hits = self._hits * MODEL_DECAY + is_hit
            self._trials = self._trials * MODEL_DECAY + 1.0

    def is_time_to_explore(self) -> bool:
        """Whether to send a draft in a step in which drafts don't look worth it. True ever more rarely."""
        self._n_idle += 1
        if self._n_idle < self._pause:
            return False
        self._pause, self._n_idle = min(self._pause * 2, LAST_PAUSE), 0
        return True
