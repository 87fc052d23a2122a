"""Finds text that a grammar forces, such as keys, punctuation and constants, to draft the next tokens.

Engine thread; pure. It follows the stacks of `gbnf_cost` along a text. `Places` shares the results between all texts of
a grammar, so a character usually costs one dictionary look-up. White space before a forced character doesn't count as a
choice: the draft repeats the white space that the text had the last time between the same two characters.

The model and the sampler's grammar check every draft, so a wrong one does no harm. A search that takes too long drafts
nothing. Not taken: asking llama.cpp about each possible next byte, which is far slower.
"""

from __future__ import annotations

import codecs

from server.grammar.gbnf import read
from server.grammar.gbnf_cost import END, Stacks, TooDear

MOST_BYTES = 16 << 10  # of a grammar; larger ones draft nothing
MOST_PLACES, MOST_STACKS, MOST_WORK = 10_000, 64, 5_000  # places of a grammar, stacks and steps of one place
MOST_AHEAD = 256  # characters
BLANKS = " \t\r\n"
SPACED = ":,"  # a space is expected after these, or none if the text had none the last time


class Place:
    """What may follow a text. `after`: the results of `Places.find_behind`, by character. `only`: the forced next
    character, "" if none is. `is_gap`: white space may come before `only`."""

    __slots__ = ("stacks", "after", "only", "is_gap")

    def __init__(self, stacks: frozenset[int], only: str, is_gap: bool) -> None:
        self.stacks = stacks
        self.after: dict[str, Place | None] = {}
        self.only = only
        self.is_gap = is_gap


class Places:
    """All places of a grammar that texts have reached. Raises `GrammarError` if the grammar can't be read."""

    def __init__(self, text: str, root: str = "root") -> None:
        self._stacks = Stacks(read(text, root=root))
        self._known: dict[frozenset[int], Place] = {}
        self._limit()
        try:
            self.start = self._place(frozenset(self._stacks.start(self._stacks.grammar.root)))
        except TooDear:
            self.start = None

    def find_behind(self, place: Place, char: str) -> Place | None:
        """The place after the next character; None if the character may not come, or a limit is reached."""
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
                    if stack != END and any(low <= code <= high for low, high in stacks.list_ranges(stack))
                    for following in stacks.list_after(stack)
                )
            )
        except TooDear:
            return None

    def _limit(self) -> None:
        self._stacks.ends_at = self._stacks.work + MOST_WORK

    def _place(self, stacks: frozenset[int]) -> Place | None:
        found = self._known.get(stacks)
        if found is None and stacks and len(stacks) <= MOST_STACKS and len(self._known) < MOST_PLACES:
            found = self._known[stacks] = Place(stacks, *self._find_only(stacks))
        return found

    def _find_only(self, stacks: frozenset[int]) -> tuple[str, bool]:
        """(the forced next character or "", whether white space may come before it)."""
        chars: set[str] = set()
        for stack in stacks:
            for low, high in self._stacks.list_ranges(stack) if stack != END else ((0, 0x10FFFF),):
                if high - low > len(BLANKS) or high > 0x10FFFF:  # above U+10FFFF are tokens
                    return "", False
                chars.update(map(chr, range(low, high + 1)))
        signs = chars.difference(BLANKS)
        if len(signs) == 1:
            return signs.pop(), len(chars) > 1
        return (chars.pop() if len(chars) == 1 else ""), False


class GivenText:
    """Follows one text through the places of a grammar."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._place = places.start
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._before = ""  # the latest character that isn't white space of a gap
        self._blanks = ""  # white space so far in the present gap
        self._usual: dict[str, str] = {}  # two characters -> the latest white space between them
        self._space = " "  # the latest white space after a character of SPACED

    def feed(self, data: bytes) -> None:
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
            self._place = self._places.find_behind(place, char)

    def _learn(self, before: str, only: str, blanks: str) -> None:
        self._usual[before + only] = blanks
        if before in SPACED and blanks in ("", " "):
            self._space = blanks

    def _choose_expected(self, before: str, only: str) -> str:
        return self._usual.get(before + only, self._space if before in SPACED else "")

    def find_ahead(self) -> str:
        """The text that the grammar forces next; "" if it leaves a choice."""
        place, before, blanks, found = self._place, self._before, self._blanks, ""
        if place is None or not place.only or self._decoder.getstate()[0]:
            return ""
        while place is not None and place.only and len(found) < MOST_AHEAD:
            char, usual = place.only, self._choose_expected(before, place.only) if place.is_gap else ""
            if len(usual) > len(blanks) and usual.startswith(blanks):
                char = usual[len(blanks)]
                blanks += char
            else:
                before, blanks = char, ""
            after = self._places.find_behind(place, char)
            if after is None:
                break
            found, place = found + char, after
        return found
