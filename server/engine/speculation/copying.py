"""A text that is written once more: where it is by now, and what is written differently each time.

Engine thread, pure Python, no clock. An agent that writes a file again writes it as a JSON string: each line end is two
other tokens there, and each quotation mark. So what stands in place of what is learnt (`Changes`), and a copy goes on
behind it without a miss. Renamed names and other indentation come out likewise.

Not taken: rules about JSON. What escapes look like as tokens differs with each vocabulary, and this finds out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from server.engine.speculation.trust import Trust

REACH = 16  # after a change a copy goes on within so many tokens of where it was left...
AWAY = 48  # ...unless it has been left for so many
SURE = 2  # equal tokens behind a change that tell that it was one
LONGEST = 8  # tokens on either side of a change
MAX_KNOWN, MAX_ALIKE = 256, 4  # tokens that changes begin with, and changes that begin with one
DECAY = 0.9
NEW_DOUBT, DOUBTS_FOLLOW = 0.3, 0.3
LIKELY = 0.5  # what is rarer isn't expected


class Change:
    """`new` tokens came in the place of `old` ones."""

    __slots__ = ("old", "new", "_hits", "_trials")

    def __init__(self, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        self.old, self.new = old, new
        self._hits = self._trials = 0.0

    def note(self, is_hit: bool) -> None:
        """It was expected and came, or not."""
        self._hits = self._hits * DECAY + is_hit
        self._trials = self._trials * DECAY + 1.0

    @property
    def chance(self) -> float:
        """How likely it comes where its old tokens are."""
        return self._hits / (self._trials + 0.5)


class Changes:
    """The changes of one writer, and the tokens that didn't come where a copied text has them. Of either those that
    were learnt last."""

    __slots__ = ("doubts", "_known")

    def __init__(self) -> None:
        self.doubts: dict[int, float] = {}  # token -> how likely it comes
        self._known: dict[int, list[Change]] = {}  # by the first token, the longest first

    def learn(self, old: Sequence[int], new: Sequence[int]) -> None:
        """`new` was written where a copied text has `old`; neither is empty."""
        first, change = old[0], Change(tuple(old), tuple(new))
        known = self._known.pop(first, [])
        self._known[first] = known  # now the latest
        same = next((one for one in known if one.old == change.old), None)
        if same is not None and same.new == change.new:
            change = same
        elif same is not None:
            change.note(False)  # the second kind isn't expected before it has come again
        change.note(True)
        others = [one for one in known if one.old != change.old][: MAX_ALIKE - 1]
        self._known[first] = sorted([change, *others], key=lambda one: -len(one.old))
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def note(self, token: int, is_hit: bool) -> bool:
        """`token` was expected and came, or not; whether it is one that is doubted."""
        chance = self.doubts.get(token)
        if chance is None and not is_hit:
            self.doubts[token] = NEW_DOUBT
            if len(self.doubts) > MAX_KNOWN:
                del self.doubts[next(iter(self.doubts))]
        elif chance is not None:
            self.doubts[token] = chance + (is_hit - chance) * DOUBTS_FOLLOW
        return chance is not None

    def find(self, text: Sequence[int], place: int) -> Change | None:
        """What is likely to be written instead of `text` from `place` on; None if that itself."""
        for change in self._known.get(text[place], ()):
            if change.chance >= LIKELY and tuple(text[place : place + len(change.old)]) == change.old:
                return change
        return None


class Copy:
    """A text that is copied with changes. `place` of it comes next, after `n_matched` tokens that came as expected; -1:
    not known, a change is going on. `trust` is what is known of copies, as `changes` is."""

    __slots__ = (
        "text",
        "place",
        "n_matched",
        "changes",
        "trust",
        "_change",
        "_n_changed",
        "_at",
        "_since",
        "_n_old",
        "_n_new",
        "_n_before",
    )

    def __init__(self, changes: Changes, trust: Trust) -> None:
        self.changes, self.trust = changes, trust
        self.text: Sequence[int] = ()  # empty: nothing is copied
        self.place = -1
        self.n_matched = 0
        self._change: Change | None = None  # what is expected instead of the text at the place...
        self._n_changed = 0  # ...and how much of it has come
        self._at = 0  # where the latest change began in the text...
        self._since = -1  # ...and in what is written; -1: the copy is past it
        self._n_old = self._n_new = 0  # its tokens in either, as far as is known
        self._n_before = 0  # tokens that had come as expected before it

    def begin(self, text: Sequence[int], place: int, n_matched: int) -> None:
        """`text` is copied from `place` on."""
        self.text, self._since = text, -1
        self._go(place, n_matched)

    def append(self, tokens: Sequence[int]) -> None:
        """The last of `tokens` was written."""
        if not self.text:
            return
        if self.place >= 0:
            expected, token = self._expected(), tokens[-1]
            if self._change is not None or (expected >= 0 and not self.changes.note(expected, expected == token)):
                self.trust.note(self.n_matched, expected == token)
            if self._take(token):
                if self._since >= 0 and self.n_matched >= SURE:
                    self._learn(tokens)
                return
            if self._since < 0:
                self._n_before = self.n_matched
                self._at, self._since = self.place, len(tokens) - 1 - self._n_changed
        self._resume(tokens)

    def chance(self) -> float:
        """How likely the next token is as expected."""
        if self._change is None:
            return self.trust.chance(self.n_matched) * self.changes.doubts.get(self.text[self.place], 1.0)
        return self.trust.chance(self.n_matched) * (1.0 if self._n_changed else self._change.chance)

    def ahead(self) -> Iterator[tuple[int, float]]:
        """The next tokens, each with a factor to how likely it comes. Where the place reaches the end of the text,
        which these tokens continue, its repetition is repeated."""
        text, place, change, n_come = self.text, self.place, self._change, self._n_changed
        size, doubts = len(text), self.changes.doubts
        tokens: list[int] = []
        while True:
            if change is not None:
                part, factor = change.new[n_come:], 1.0 if n_come else change.chance
                place, n_come = place + len(change.old), 0
            else:
                token = text[place] if place < size else tokens[place - size]
                if token < 0:
                    return
                part, factor = (token,), doubts.get(token, 1.0)
                place += 1
            for token in part:
                tokens.append(token)
                yield token, factor
                factor = 1.0
            change = self.changes.find(text, place) if place < size else None

    def _expected(self) -> int:
        return self.text[self.place] if self._change is None else self._change.new[self._n_changed]

    def _go(self, place: int, n_matched: int) -> None:
        self.place, self.n_matched, self._n_changed = place, n_matched, 0
        self._change = self.changes.find(self.text, place) if place >= 0 else None

    def _take(self, token: int) -> bool:
        """Go past `token`; False if the text doesn't go on with it, as it is or changed."""
        change = self._change
        if change is not None:
            is_hit = change.new[self._n_changed] == token
            if is_hit and self._n_changed + 1 < len(change.new):
                self._n_changed += 1
                self.n_matched += 1
                return True
            change.note(is_hit)
            if is_hit:
                self._go(self.place + len(change.old), self.n_matched + 1)
                return True
            if self._n_changed:
                return False
        if self.text[self.place] != token:
            return False
        self._go(self.place + 1, self.n_matched + 1)
        return True

    def _resume(self, tokens: Sequence[int]) -> None:
        """Find the latest token again behind the change; if it isn't there, one token was perhaps exchanged."""
        text, at, end = self.text, self._at, len(tokens) - 1
        if end - self._since > AWAY:
            self.text, self.place = (), -1
            return
        best = found = 0
        for place in range(at, min(at + REACH, end if text is tokens else len(text) - 1)):
            n = 0
            while n <= place - at and n <= end - self._since and text[place - n] == tokens[end - n]:
                n += 1
            if n > best:
                best, found = n, place
        if best:
            self._n_old, self._n_new = found + 1 - best - at, end + 1 - best - self._since
            self._go(found + 1, best)
        elif end == self._since and at + 1 < len(text) - 1:
            self._n_old = self._n_new = 1
            self._go(at + 1, 0)
        else:
            self._go(-1, 0)

    def _learn(self, tokens: Sequence[int]) -> None:
        """The copy goes on: what was written meanwhile came in the place of what was left out. If that was nothing, the
        token behind is part of the change, and if nothing was written, the one before."""
        at, since, n_old, n_new = self._at, self._since, self._n_old, self._n_new
        self._since = -1
        self.n_matched += self._n_before
        if not n_new:
            at, since = at - 1, since - 1
            if at < 0 or since < 0 or self.text[at] != tokens[since]:
                return
        if not n_old or not n_new:
            n_old, n_new = n_old + 1, n_new + 1
        if n_old <= LONGEST and n_new <= LONGEST:
            self.changes.learn(self.text[at : at + n_old], tokens[since : since + n_new])
