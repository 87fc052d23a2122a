"""Follows an answer that copies an earlier text with changes: the place in that text, and what the copy changes.

Engine thread, pure Python. An agent that writes a file again writes it as a JSON string, in which each line end and
quotation mark has other tokens. `Changes` learns which tokens replace which, so that drafts go on behind them.

Not taken: rules about JSON, because the tokens of escapes differ between vocabularies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from server.engine.speculation.trust import Trust

REACH = 16  # the copy is searched for within this many tokens behind a change
AWAY = 48  # a copy ends after this many tokens without being found again
SURE = 2  # equal tokens behind a change that confirm it
LONGEST = 8  # tokens on either side of a change, at most
MAX_KNOWN = 256  # entries of each dict in `Changes`, at most
MAX_ALIKE = 4  # changes that begin with the same old token, at most
DECAY = 0.9  # weight that earlier trials keep at each new one
NEW_DOUBT, DOUBTS_FOLLOW = 0.3, 0.3  # first chance of a doubted token, and the weight of each new outcome
LIKELY = 0.5  # least chance of a change that is expected


class Change:
    """`new` tokens that come in the place of `old` ones."""

    __slots__ = ("old", "new", "_hits", "_trials")

    def __init__(self, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        self.old, self.new = old, new
        self._hits = self._trials = 0.0

    def note(self, is_hit: bool) -> None:
        """Note whether the change came when it was expected."""
        self._hits = self._hits * DECAY + is_hit
        self._trials = self._trials * DECAY + 1.0

    @property
    def chance(self) -> float:
        """The chance that the change comes where its old tokens are."""
        return self._hits / (self._trials + 0.5)


class Changes:
    """What was learnt from one owner's copies: the latest changes, and the latest doubted tokens, which once didn't
    come where the copied text has them."""

    __slots__ = ("doubts", "_known")

    def __init__(self) -> None:
        self.doubts: dict[int, float] = {}  # doubted token -> its chance to come
        self._known: dict[int, list[Change]] = {}  # changes by their first old token; in each list, the longest first

    def learn(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Learn that `new` was written where the copied text has `old`. Neither is empty."""
        first, change = old[0], Change(tuple(old), tuple(new))
        known = self._known.pop(first, [])
        self._known[first] = known  # moved to the end, as the latest
        same = next((one for one in known if one.old == change.old), None)
        if same is not None and same.new == change.new:
            change = same
        elif same is not None:
            change.note(False)  # the new kind isn't expected until it has come twice
        change.note(True)
        others = [one for one in known if one.old != change.old][: MAX_ALIKE - 1]
        self._known[first] = sorted([change, *others], key=lambda one: -len(one.old))
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def note(self, token: int, is_hit: bool) -> bool:
        """Note whether the expected `token` came. Returns whether it was a doubted token before."""
        chance = self.doubts.get(token)
        if chance is None and not is_hit:
            self.doubts[token] = NEW_DOUBT
            if len(self.doubts) > MAX_KNOWN:
                del self.doubts[next(iter(self.doubts))]
        elif chance is not None:
            self.doubts[token] = chance + (is_hit - chance) * DOUBTS_FOLLOW
        return chance is not None

    def find(self, text: Sequence[int], place: int) -> Change | None:
        """The change that is likely to come at `place` of `text`; None if none is."""
        for change in self._known.get(text[place], ()):
            if change.chance >= LIKELY and tuple(text[place : place + len(change.old)]) == change.old:
                return change
        return None


class Copy:
    """A text that is being copied with changes.

    `place` is the index in `text` of the next token; within an expected change, that of the change's first old token;
    -1 while no place is known at which the copy goes on. `n_matched` tokens before the next one came as expected.
    `changes` and `trust` are those of the owner.
    """

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
        self._change: Change | None = None  # the change that is expected at `place`
        self._n_changed = 0  # how many of its tokens have come
        self._at = 0  # where the latest unexpected change began in `text`
        self._since = -1  # where it began in the written text; -1 once it is over
        self._n_old = self._n_new = 0  # how many tokens it has in `text` and in the written text
        self._n_before = 0  # `n_matched` before it

    def begin(self, text: Sequence[int], place: int, n_matched: int) -> None:
        self.text, self._since = text, -1
        self._go(place, n_matched)

    def append(self, tokens: Sequence[int]) -> None:
        """Go on by one token: the last of the written `tokens`."""
        if not self.text:
            return
        if self.place >= 0:
            expected, token = self._get_expected(), tokens[-1]
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

    def estimate_chance(self) -> float:
        """The chance that the next token is the expected one."""
        if self._change is None:
            return self.trust.estimate_chance(self.n_matched) * self.changes.doubts.get(self.text[self.place], 1.0)
        return self.trust.estimate_chance(self.n_matched) * (1.0 if self._n_changed else self._change.chance)

    def list_ahead(self) -> Iterator[tuple[int, float]]:
        """The expected tokens, each with a factor for its chance. Behind the end of `text` they are repeated."""
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

    def _get_expected(self) -> int:
        return self.text[self.place] if self._change is None else self._change.new[self._n_changed]

    def _go(self, place: int, n_matched: int) -> None:
        self.place, self.n_matched, self._n_changed = place, n_matched, 0
        self._change = self.changes.find(self.text, place) if place >= 0 else None

    def _take(self, token: int) -> bool:
        """Step over `token`; False if it is neither the text's next token nor that of the expected change."""
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
        """Find the place in `text` at which the copy goes on after the unexpected tokens. If there is none, one
        unexpected token is assumed to replace one token; after several, no place is known. After `AWAY` tokens the
        copy ends."""
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
        """Learn the change that is over: the tokens written since it began replace the skipped tokens of `text`. If
        nothing was skipped, the change includes the token behind it; if nothing was written, the token before it."""
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
