"""Earlier answers as a source of guesses: agents and people at work have the same lines written again and again.

Engine thread, pure Python, no clock. What was answered to one owner (a key, or without keys an address) is only ever
looked at for tasks of the same owner. Each has two parts with an index each: the younger grows, and once it is full the
older one is dropped as a whole. The owner that was used least recently goes when all together are too many.

Not taken: a suffix automaton (the last n tokens lead to the same places, at a third of the memory); prompts, too (what
they have in common with this prompt, the text's own index knows); files (what was answered is nobody's business once
the program ends).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from server.engine.speculation.copying import Changes
from server.engine.speculation.trust import Trust

LEAD = 24  # tokens of the prompt that are kept in front of an answer: they tell which answer begins
PART = 16384  # tokens, of about 120 bytes each with their index
ALL = 262144  # tokens of all owners together
OWNERS = 256
END = -1


class Part:
    """Answers, each with `END` behind it. `latest` has for (the hash of) each n tokens where they ended last, and
    `before` for each place the one before it of the same tokens, -1 for none. That two hashes are alike costs no more
    than a wrong guess."""

    __slots__ = ("tokens", "latest", "before")

    def __init__(self) -> None:
        self.tokens = array("i")
        self.latest: dict[int, int] = {}
        self.before = array("i")

    def add(self, tokens: Sequence[int], n: int) -> None:
        """One more answer."""
        start = len(self.tokens)
        self.tokens.extend((*tokens, END))
        self.before.extend([-1] * (len(tokens) + 1))
        latest, before = self.latest, self.before
        for i, key in enumerate(zip(*(tokens[k:] for k in range(n))), start + n - 1):
            before[i] = latest.get(hash(key), -1)
            latest[hash(key)] = i


class Past:
    """The earlier answers of one owner; the younger part comes first. And what they taught: how far guesses from a text
    itself, from earlier `answers` and from `copies` can be trusted, and what is changed in copies."""

    __slots__ = ("parts", "text", "answers", "copies", "changes", "_n")

    def __init__(self, n: int) -> None:
        self.parts = [Part(), Part()]
        self.text, self.answers, self.copies = Trust(), Trust(), Trust()
        self.changes = Changes()
        self._n = n

    def __len__(self) -> int:
        return sum(len(part.tokens) for part in self.parts)

    def add(self, tokens: Sequence[int]) -> None:
        """One more answer; of a very long one only its end."""
        tokens = tokens[-(PART - 1) :]
        if len(self.parts[0].tokens) + len(tokens) >= PART:
            self.parts = [Part(), self.parts[0]]
        self.parts[0].add(tokens, self._n)


class Pasts:
    """Those of all owners. An index has an entry for each `n` tokens."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._pasts: dict[str, Past] = {}  # the one used last is last
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def of(self, owner: str) -> Past:
        """What `owner` was answered so far, as far as it isn't forgotten."""
        past = self._pasts.pop(owner, None)
        if past is None:
            past = Past(self._n)
        self._pasts[owner] = past
        self._keep_bounds()
        return past

    def add(self, owner: str, tokens: Sequence[int]) -> None:
        """`owner` was answered these; the owners that were quiet the longest are forgotten for it."""
        past = self.of(owner)
        self._size -= len(past)
        past.add(tokens)
        self._size += len(past)
        self._keep_bounds()

    def _keep_bounds(self) -> None:
        while self._size > ALL or len(self._pasts) > OWNERS:
            self._size -= len(self._pasts.pop(next(iter(self._pasts))))
