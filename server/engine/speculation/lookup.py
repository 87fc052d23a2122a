"""Drafts from earlier text: the tokens that once followed the latest tokens of the text, in the prompt, the answer, or
an earlier answer to the same owner.

Engine thread, pure Python. A `Lookup` follows every token of one text. Its index maps each n-gram of tokens to the
places where it occurred before. Once a place is found, it is followed; the index is searched only after a miss. Each
token shows whether the prediction was right, even if no draft was sent. Earlier answers have an index of their own
(`past`). After COPIED right predictions in a row the text counts as a copy, whose changes are learnt (`copying`).

Not taken: scanning the text for each draft, whose cost grows with the text; and drafts of a fixed length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice, repeat

from server.engine.speculation.copying import Copy
from server.engine.speculation.past import Past
from server.engine.speculation.trust import MIN_SURVIVAL, N_GRAM, Trust

MAX_PLACES = 8  # earlier places that are compared with the end of the text
MOST_COMPARED = 24  # tokens compared before each place
RESUME_WITHIN = 48  # a place within this many tokens after the one just left gets a bonus
RESUME_BONUS = 8  # the bonus, in equal tokens
COPIED = 12  # right predictions in a row


class Lookup:
    """The index over one text, and the place that the text now repeats, in itself or in an earlier answer (`past`).

    `tokens` is the text so far. Negative ids (placeholders of media, ends of answers) are never predicted.
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
        """`past` was made with the same `n`; None if there are no earlier answers."""
        self.tokens = list(tokens)
        self._n = n
        self._past = past = Past(n) if past is None else past
        self._copy = Copy(past.changes, past.copies)
        self._text: Sequence[int] = self.tokens  # the text that has the place
        self._trusted = past.text  # how often predictions from this text were right
        self._place = -1  # index of the predicted token; -1 if there is none
        self._n_matched = self._n_hits = 0
        self._latest: dict[tuple[int, ...], int] = {}
        # for each place, the one before it with the same n-gram
        self._before: list[int] = [-1] * min(n - 1, len(self.tokens))
        latest, before = self._latest, self._before
        for i, key in enumerate(zip(*(self.tokens[k:] for k in range(n))), n - 1):
            before.append(latest.get(key, -1))
            latest[key] = i
        self._find(-1)

    def append(self, token: int) -> None:
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

    def estimate_chances(self, n_max: int) -> list[float]:
        """The chances that the first, the first two, ... of the predicted tokens come; [] if nothing is predicted."""
        if self._is_copying():
            copy = self._copy
            return compute_falling(
                copy.trust, copy.n_matched, (factor for _, factor in islice(copy.list_ahead(), n_max))
            )
        return compute_falling(self._trusted, self._n_matched, repeat(1.0, n_max)) if self._place >= 0 else []

    def draft(self, n: int) -> list[int]:
        """The next predicted tokens, `n` at most. Behind the end of the text they are repeated."""
        if self._is_copying():
            return [token for token, _ in islice(self._copy.list_ahead(), n)]
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
        """Whether the copy predicts the next token better than the place does."""
        copy = self._copy
        return copy.place >= 0 and (
            self._place < 0 or copy.estimate_chance() >= self._trusted.estimate_chance(self._n_matched)
        )

    def _index(self) -> None:
        i = len(self.tokens) - 1
        if i < self._n - 1:
            self._before.append(-1)
            return
        key = tuple(self.tokens[-self._n :])
        self._before.append(self._latest.get(key, -1))
        self._latest[key] = i

    def _find(self, left: int) -> None:
        """Find the place whose preceding tokens are most like the end of the text. `left` is the place just left, -1
        for none."""
        text, end = self._text, len(self.tokens) - 1
        best, found = (0, 0, -1), text
        if end >= 0:
            found = self.tokens
            best = self._find_nearest(found, self._before, self._before[end], left if text is found else -1)
        for part in self._past.parts:
            place = part.latest.get(hash(tuple(self.tokens[-self._n :])), -1)
            if place >= 0:
                other = self._find_nearest(part.tokens, part.before, place, left if text is part.tokens else -1)
                if other[0] > best[0]:
                    best, found = other, part.tokens
        _, n_matched, place = best
        if place >= 0:
            self._place, self._n_matched = place + 1, n_matched
            self._text = found
            self._trusted = self._past.text if found is self.tokens else self._past.answers
        elif left >= 0 and self._n_matched >= self._n and left + 1 < len(text) - 1:
            self._place, self._n_matched = left + 1, 0  # perhaps one token was replaced
        else:
            self._place, self._n_matched = -1, 0

    def _find_nearest(self, text: Sequence[int], before: Sequence[int], place: int, left: int) -> tuple[int, int, int]:
        """The best of the places in `text` from `place` backwards, as (score, number of equal tokens, place); the place
        is -1 if there is none."""
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


def compute_falling(trust: Trust, n_matched: int, factors: Iterable[float]) -> list[float]:
    """The chances that the first, the first two, ... tokens after `n_matched` equal ones come."""
    survival, chances = 1.0, []
    for i, factor in enumerate(factors):
        survival *= trust.estimate_chance(n_matched + i) * factor
        if survival < MIN_SURVIVAL:
            break
        chances.append(survival)
    return chances
