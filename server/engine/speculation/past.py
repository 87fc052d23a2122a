"""Earlier answers as a source of drafts.

Engine thread, pure Python. An owner's answers are used for its own tasks only. They are kept in two parts, each with an
index. New answers go into the younger part. When that is full, the older part is dropped and a new one begun. When
there are too many tokens or owners, the least recently used owner is dropped.

Not taken: a suffix automaton (three times the memory for the same places), earlier prompts (a new prompt's own index
has what it repeats of them), and files (answers are private and must not outlive the program).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from server.engine.speculation.copying import Changes
from server.engine.speculation.trust import Trust

LEAD = 24  # the prompt's last tokens, kept before each answer so that its beginning can be found
PART = 16384  # the most tokens of a part; each takes about 120 bytes with its index
ALL = 262144  # the most tokens of all owners together
OWNERS = 256  # the most owners
END = -1  # stands behind each answer


class Part:
    """Answers, each followed by `END`.

    `latest` maps the hash of n tokens to the last place where they end. `before` has for each place the previous place
    of the same n tokens, -1 for none. A hash collision only leads to a wrong draft.
    """

    __slots__ = ("tokens", "latest", "before")

    def __init__(self) -> None:
        self.tokens = array("i")
        self.latest: dict[int, int] = {}
        self.before = array("i")

    def add(self, tokens: Sequence[int], n: int) -> None:
        start = len(self.tokens)
        self.tokens.extend((*tokens, END))
        self.before.extend([-1] * (len(tokens) + 1))
        latest, before = self.latest, self.before
        for i, key in enumerate(zip(*(tokens[k:] for k in range(n))), start + n - 1):
            before[i] = latest.get(hash(key), -1)
            latest[hash(key)] = i


class Past:
    """The earlier answers of one owner, the younger part first, and what was learnt from the owner's texts.

    `text`, `answers`, `copies` and `rewritten` tell how far drafts from the text itself, from earlier answers, from
    copies with changes and from text in another form can be trusted. `changes` are the changes in copies.
    """

    __slots__ = ("parts", "text", "answers", "copies", "rewritten", "changes", "_n")

    def __init__(self, n: int) -> None:
        self.parts = [Part(), Part()]
        self.text, self.answers, self.copies, self.rewritten = Trust(), Trust(), Trust(), Trust()
        self.changes = Changes()
        self._n = n

    def __len__(self) -> int:
        return sum(len(part.tokens) for part in self.parts)

    def add(self, tokens: Sequence[int]) -> None:
        """Add an answer, or only the end of a very long one."""
        tokens = tokens[-(PART - 1) :]
        if len(self.parts[0].tokens) + len(tokens) >= PART:
            self.parts = [Part(), self.parts[0]]
        self.parts[0].add(tokens, self._n)


class Pasts:
    """The earlier answers of all owners, indexed by each `n` consecutive tokens."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._pasts: dict[str, Past] = {}  # the most recently used last
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def of(self, owner: str) -> Past:
        """The answers of an owner, who becomes the most recently used one."""
        past = self._pasts.pop(owner, None)
        if past is None:
            past = Past(self._n)
        self._pasts[owner] = past
        self._keep_bounds()
        return past

    def add(self, owner: str, tokens: Sequence[int]) -> None:
        past = self.of(owner)
        self._size -= len(past)
        past.add(tokens)
        self._size += len(past)
        self._keep_bounds()

    def _keep_bounds(self) -> None:
        while self._size > ALL or len(self._pasts) > OWNERS:
            self._size -= len(self._pasts.pop(next(iter(self._pasts))))
