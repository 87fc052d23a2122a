"""Drafts from the text itself: what followed the last time these tokens were written, in the prompt or the answer.

Engine thread, pure Python, no clock. A `Lookup` reads along with every token of one text. Its index (the last n tokens
-> where they occurred before, as chains through earlier places, the way LZ77 compressors do it) grows by one entry per
token; once it has found a place it follows that place and needs the index only after a miss. Whether a draft was sent
or not, each token shows if it would have been right, so how far drafts can be trusted is learnt without trying them.

Not taken: scanning the text for each draft (its cost grows with the text); one fixed length of draft.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.speculation.trust import N_GRAM, Trust

MAX_PLACES = 8  # how many earlier places are compared...
MOST_COMPARED = 24  # ...by so many tokens before each
RESUME_WITHIN = 48  # a place so close behind the one that was left is likelier the right one...
RESUME_BONUS = 8  # ...as much as so many equal tokens
MIN_SURVIVAL = 0.05


class Lookup:
    """The index over one text, and the place in it that the text now repeats.

    `tokens` is the text so far. Placeholders (negative ids, for what isn't text) are never predicted.
    """

    __slots__ = ("tokens", "trust", "_n", "_latest", "_before", "_place", "_n_matched")

    def __init__(self, tokens: Sequence[int], n: int = N_GRAM) -> None:
        self.tokens = list(tokens)
        self.trust = Trust()
        self._n = n
        self._place = -1  # of the token that would come next if the text went on as there; -1: unknown
        self._n_matched = 0
        self._latest: dict[tuple[int, ...], int] = {}
        self._before: list[int] = [-1] * min(n - 1, len(self.tokens))  # earlier end of the same n-gram
        latest, before = self._latest, self._before
        for i, key in enumerate(zip(*(self.tokens[k:] for k in range(n))), n - 1):
            before.append(latest.get(key, -1))
            latest[key] = i
        self._find(-1)

    def append(self, token: int) -> None:
        """The text goes on with `token`."""
        tokens, place = self.tokens, self._place
        is_hit = False
        if place >= 0:
            is_hit = tokens[place] == token
            self.trust.note(self._n_matched, is_hit)
        tokens.append(token)
        self._index()
        if is_hit:
            self._place += 1
            self._n_matched += 1
        else:
            self._find(place)

    def chances(self, n_max: int) -> list[float]:
        """How likely the first, the first two, ... of the next tokens are as predicted; [] if nothing is predicted."""
        if self._place < 0:
            return []
        chance, n_matched, survival, chances = self.trust.chance, self._n_matched, 1.0, []
        for i in range(n_max):
            survival *= chance(n_matched + i)
            if survival < MIN_SURVIVAL:
                break
            chances.append(survival)
        return chances

    def draft(self, n: int) -> list[int]:
        """The next `n` tokens as predicted. Where the place reaches the end of the text, its repetition is repeated."""
        tokens, place = self.tokens, self._place
        draft = tokens[place : place + n] if place >= 0 else []
        period = len(tokens) - place
        while draft and len(draft) < n:
            draft.append(draft[len(draft) - period])
        for i, token in enumerate(draft):
            if token < 0:
                return draft[:i]
        return draft

    def _index(self) -> None:
        i = len(self.tokens) - 1
        if i < self._n - 1:
            self._before.append(-1)
            return
        key = tuple(self.tokens[-self._n :])
        self._before.append(self._latest.get(key, -1))
        self._latest[key] = i

    def _find(self, left: int) -> None:
        """Look for the place whose past is most like the end of the text; `left` is the one just left, -1 for none."""
        tokens = self.tokens
        end = len(tokens) - 1
        place = self._before[end] if tokens else -1
        best = best_score = 0
        found = -1
        for _ in range(MAX_PLACES):
            if place < 0:
                break
            n = self._n
            while n < MOST_COMPARED and place >= n and tokens[place - n] == tokens[end - n]:
                n += 1
            score = n + RESUME_BONUS * (0 <= place - left <= RESUME_WITHIN and left >= 0)
            if score > best_score:
                best, best_score, found = n, score, place
            place = self._before[place]
        if found >= 0:
            self._place, self._n_matched = found + 1, best
        elif left >= 0 and self._n_matched >= self._n and left + 1 < end:
            self._place, self._n_matched = left + 1, 0  # perhaps one token was exchanged for another
        else:
            self._place, self._n_matched = -1, 0
