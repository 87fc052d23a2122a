"""Drafts from what was written: what followed the last time these tokens came, in the prompt, the answer, or an earlier
answer for the same key.

Engine thread, pure Python, no clock. A `Lookup` reads along with every token of one text. Its index (the last n tokens
-> where they occurred before, as chains through earlier places, the way LZ77 compressors do it) grows by one entry per
token; once it has found a place it follows that place and needs the index only after a miss. Whether a draft was sent
or not, each token shows if it would have been right, so how far drafts can be trusted is learnt without trying them.
Earlier answers have an index of their own (`past`), which is made once for all later texts. A place that was followed
for long is a copy, whose changes are learnt (`copying`).

Not taken: scanning the text for each draft (its cost grows with the text); one fixed length of draft.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice, repeat

from server.engine.speculation.copying import Copy
from server.engine.speculation.past import Past
from server.engine.speculation.trust import N_GRAM, Trust

MAX_PLACES = 8  # how many earlier places are compared...
MOST_COMPARED = 24  # ...by so many tokens before each
RESUME_WITHIN = 48  # a place so close behind the one that was left is likelier the right one...
RESUME_BONUS = 8  # ...as much as so many equal tokens
MIN_SURVIVAL = 0.05
COPIED = 12  # tokens as predicted, one after the other, are a copy


class Lookup:
    """The index over one text, and the place that the text now repeats: in itself, or in the earlier answers of `past`.

    `tokens` is the text so far. Negative ids (placeholders for what isn't text, ends of answers) are never predicted.
    """

    __slots__ = (
        "tokens",
        "_n",
        "_latest",
        "_before",
        "_past",
        "_copy",
        "_text",
        "_place",
        "_n_matched",
        "_n_hits",
        "_trusted",
    )

    def __init__(self, tokens: Sequence[int], n: int = N_GRAM, past: Past | None = None) -> None:
        """`past` was made with the same `n`; None if there is nothing earlier to learn from."""
        self.tokens = list(tokens)
        self._n = n
        self._past = past = Past(n) if past is None else past
        self._copy = Copy(past.changes, past.copies)
        self._text: Sequence[int] = self.tokens  # where the place is
        self._trusted = past.text  # what is known of predictions from there
        self._place = -1  # of the token that would come next if the text went on as there; -1: unknown
        self._n_matched = self._n_hits = 0
        self._latest: dict[tuple[int, ...], int] = {}
        self._before: list[int] = [-1] * min(n - 1, len(self.tokens))  # earlier end of the same n-gram
        latest, before = self._latest, self._before
        for i, key in enumerate(zip(*(self.tokens[k:] for k in range(n))), n - 1):
            before.append(latest.get(key, -1))
            latest[key] = i
        self._find(-1)

    def append(self, token: int) -> None:
        """The text goes on with `token`."""
        place = self._place
        is_hit = False
        if place >= 0:
            expected = self._text[place]
            is_hit = expected == token
            if expected >= 0:
                self._trusted.note(self._n_matched, is_hit)
        self.tokens.append(token)
        self._index()
        self._copy.append(self.tokens)
        if is_hit:
            self._place += 1
            self._n_matched += 1
            self._n_hits += 1
            if self._n_hits >= COPIED and self._copy.place < 0:
                self._copy.begin(self._text, self._place, self._n_matched)
        else:
            self._n_hits = 0
            self._find(place)

    def chances(self, n_max: int) -> list[float]:
        """How likely the first, the first two, ... of the next tokens are as predicted; [] if nothing is predicted."""
        if self._is_copying():
            copy = self._copy
            return falling(copy.trust, copy.n_matched, (factor for _, factor in islice(copy.ahead(), n_max)))
        return falling(self._trusted, self._n_matched, repeat(1.0, n_max)) if self._place >= 0 else []

    def draft(self, n: int) -> list[int]:
        """The next `n` tokens as predicted. Where the place reaches the end of the text, its repetition is repeated."""
        if self._is_copying():
            return [token for token, _ in islice(self._copy.ahead(), n)]
        text, place = self._text, self._place
        draft = list(text[place : place + n]) if place >= 0 else []
        period = len(text) - place
        while draft and len(draft) < n:
            draft.append(draft[len(draft) - period])
        for i, token in enumerate(draft):
            if token < 0:
                return draft[:i]
        return draft

    def _is_copying(self) -> bool:
        """Whether the copy knows better what comes next than the place."""
        copy = self._copy
        return copy.place >= 0 and (self._place < 0 or copy.chance() >= self._trusted.chance(self._n_matched))

    def _index(self) -> None:
        i = len(self.tokens) - 1
        if i < self._n - 1:
            self._before.append(-1)
            return
        key = tuple(self.tokens[-self._n :])
        self._before.append(self._latest.get(key, -1))
        self._latest[key] = i

    def _find(self, left: int) -> None:
        """Look for the place whose past is most like the end of the text; `left` is the one just left, -1 for none. Of
        places that are equally like it one in the text itself is taken."""
        text, end = self._text, len(self.tokens) - 1
        best, found = (0, 0, -1), text
        if end >= 0:
            found = self.tokens
            best = self._nearest(found, self._before, self._before[end], left if text is found else -1)
        for part in self._past.parts:
            place = part.latest.get(hash(tuple(self.tokens[-self._n :])), -1)
            if place >= 0:
                other = self._nearest(part.tokens, part.before, place, left if text is part.tokens else -1)
                if other[0] > best[0]:
                    best, found = other, part.tokens
        _, n_matched, place = best
        if place >= 0:
            self._place, self._n_matched = place + 1, n_matched
            self._text = found
            self._trusted = self._past.text if found is self.tokens else self._past.answers
        elif left >= 0 and self._n_matched >= self._n and left + 1 < len(text) - 1:
            self._place, self._n_matched = left + 1, 0  # perhaps one token was exchanged for another
        else:
            self._place, self._n_matched = -1, 0

    def _nearest(self, text: Sequence[int], before: Sequence[int], place: int, left: int) -> tuple[int, int, int]:
        """Of the places in `text` from `place` on backwards: (score, how many tokens are equal, the place), or -1."""
        tokens, end = self.tokens, len(self.tokens) - 1
        best = (0, 0, -1)
        for _ in range(MAX_PLACES):
            if place < 0:
                break
            n, most = self._n, min(MOST_COMPARED, place + 1, end + 1)
            while n < most and text[place - n] == tokens[end - n]:
                n += 1
            score = n + RESUME_BONUS * (0 <= place - left <= RESUME_WITHIN and left >= 0)
            if score > best[0]:
                best = (score, n, place)
            place = before[place]
        return best


def falling(trust: Trust, n_matched: int, factors: Iterable[float]) -> list[float]:
    """How likely the first, the first two, ... tokens behind `n_matched` equal ones come, each with its factor."""
    survival, chances = 1.0, []
    for i, factor in enumerate(factors):
        survival *= trust.chance(n_matched + i) * factor
        if survival < MIN_SURVIVAL:
            break
        chances.append(survival)
    return chances
