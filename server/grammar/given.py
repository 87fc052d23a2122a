"""The text that a grammar leaves no choice about: keys, signs, constants. For guesses of the next tokens.

Engine thread, pure. The stacks of `gbnf_cost` are followed along a text. What they lead to is kept for all texts of the
grammar (`Places`), so a character costs a look into a dict, and more only where none has been before. Blanks aren't
taken for a choice: where they may stand before a character that has to come, a text will have those that it had the
last time between the same two.

Nothing rests on it: a guess is checked by the model and the sampler's own grammar. So whatever takes too long, or isn't
understood, is given up. Not taken: to ask llama.cpp about each byte that could come, 30 us a character.
"""

from __future__ import annotations

import codecs

from server.grammar.gbnf import read
from server.grammar.gbnf_cost import END, Stacks, TooDear

MOST_BYTES = 16 << 10  # of a grammar: to read one takes 0.4 ms for each kilobyte
MOST_PLACES, MOST_STACKS, MOST_WORK = 10_000, 64, 5_000
MOST_AHEAD = 256  # characters
BLANKS = " \t\r\n"
SPACED = ":,"  # behind them a text has a space, or none if it had none the last time


class Place:
    """What may follow one text. `after` has the places behind the next character, as far as texts have come to them,
    None for one that may not come. `only` is the character that has to come, "" if there are several; with `is_gap`
    blanks may come before it."""

    __slots__ = ("stacks", "after", "only", "is_gap")

    def __init__(self, stacks: frozenset[int], only: str, is_gap: bool) -> None:
        self.stacks = stacks
        self.after: dict[str, Place | None] = {}
        self.only = only
        self.is_gap = is_gap


class Places:
    """All places of one grammar that texts have come to. GrammarError if it can't be read."""

    def __init__(self, text: str, root: str = "root") -> None:
        self._stacks = Stacks(read(text, root=root))
        self._known: dict[frozenset[int], Place] = {}
        self._limit()
        try:
            self.start = self._place(frozenset(self._stacks.start(self._stacks.grammar.root)))
        except TooDear:
            self.start = None

    def behind(self, place: Place, char: str) -> Place | None:
        """The place behind the next character; None if that may not come, or isn't to be found out."""
        try:
            return place.after[char]
        except KeyError:
            found = place.after[char] = self._follow(place, ord(char))
            return found

    def _follow(self, place: Place, code: int) -> Place | None:
        stacks = self._stacks
        self._limit()
        try:
            return self._place(
                frozenset(
                    following
                    for stack in place.stacks
                    if stack != END and any(low <= code <= high for low, high in stacks.ranges(stack))
                    for following in stacks.after(stack)
                )
            )
        except TooDear:
            return None

    def _limit(self) -> None:
        self._stacks.ends_at = self._stacks.work + MOST_WORK

    def _place(self, stacks: frozenset[int]) -> Place | None:
        found = self._known.get(stacks)
        if found is None and stacks and len(stacks) <= MOST_STACKS and len(self._known) < MOST_PLACES:
            found = self._known[stacks] = Place(stacks, *self._only(stacks))
        return found

    def _only(self, stacks: frozenset[int]) -> tuple[str, bool]:
        """The one character that has to come here, and whether blanks may come before it."""
        chars: set[str] = set()
        for stack in stacks:
            for low, high in self._stacks.ranges(stack) if stack != END else ((0, 0x10FFFF),):
                if high - low > len(BLANKS) or high > 0x10FFFF:  # those are tokens
                    return "", False
                chars.update(map(chr, range(low, high + 1)))
        signs = chars.difference(BLANKS)
        if len(signs) == 1:
            return signs.pop(), len(chars) > 1
        return (chars.pop() if len(chars) == 1 else ""), False


class GivenText:
    """Follows one text through a grammar's places."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._place = places.start
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._before = ""  # the latest character that was no blank of a gap
        self._blanks = ""  # of the gap that the text is in
        self._usual: dict[str, str] = {}
        self._space = " "

    def feed(self, data: bytes) -> None:
        """The text goes on."""
        try:
            text = self._decoder.decode(data)
        except UnicodeDecodeError:
            self._place = None
            return
        for char in text:
            place = self._place
            if place is None:
                return
            if place.is_gap and char in BLANKS:
                self._blanks += char
            else:
                if place.is_gap:
                    self._learn(self._before, place.only, self._blanks)
                self._before, self._blanks = char, ""
            self._place = self._places.behind(place, char)

    def _learn(self, before: str, only: str, blanks: str) -> None:
        """Between these two characters the text had these blanks."""
        self._usual[before + only] = blanks
        if before in SPACED and blanks in ("", " "):
            self._space = blanks

    def _expected(self, before: str, only: str) -> str:
        """The blanks that it will have there."""
        return self._usual.get(before + only, self._space if before in SPACED else "")

    def ahead(self) -> str:
        """The text that comes next, as far as there is no choice."""
        place, before, blanks, found = self._place, self._before, self._blanks, ""
        if place is None or not place.only or self._decoder.getstate()[0]:
            return ""
        while place is not None and place.only and len(found) < MOST_AHEAD:
            char, usual = place.only, self._expected(before, place.only) if place.is_gap else ""
            if len(usual) > len(blanks) and usual.startswith(blanks):
                char = usual[len(blanks)]
                blanks += char
            else:
                before, blanks = char, ""
            after = self._places.behind(place, char)
            if after is None:
                break
            found, place = found + char, after
        return found
