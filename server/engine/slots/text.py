"""Turns the bytes of tokens into text that may be sent. Characters and stop strings may extend over several tokens.

Runs on the engine's thread, because a stop string ends the task. The text ends before the stop string that is complete
first; of two that are complete at once, before the one that began first. So the result doesn't depend on how the bytes
are cut into tokens.

Not taken: searching the whole text after every token. Only what can still become a stop string is kept.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import AnyStr


class TextStream:
    """Holds back what may be the beginning of a stop string or of a character.

    While `looks` is False, stop strings are ordinary text. A stop string is found only if `looks` is True for all of
    it.
    """

    __slots__ = (
        "_decoder",
        "_stops",
        "_held",
        "_n_indent",
        "_indent",
        "looks",
        "stopping_word",
        "has_new_line",
        "is_outdented",
    )

    def __init__(self, stops: Sequence[str] = (), n_indent: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self._n_indent = n_indent
        self._indent = -1
        self.looks = True
        self.stopping_word = ""
        self.has_new_line = False
        self.is_outdented = False

    def feed(self, piece: bytes) -> str:
        """Take the bytes of the next token; return the text that is final now. Sets `stopping_word` at a stop
        string."""
        if self.stopping_word or self.is_outdented:
            return ""
        text = self._sift(self._decoder.decode(piece))
        if "\n" in text:
            self.has_new_line = True
        return self._cut_outdent(text) if self._n_indent else text

    def finish(self) -> str:
        """The text is complete: return what was held back. Broken UTF-8 becomes U+FFFD."""
        if self.stopping_word or self.is_outdented:
            return ""
        text = self._sift(self._decoder.decode(b"", True)) + self._held
        self._held = ""
        return self._cut_outdent(text) if self._n_indent else text

    @property
    def is_inside_character(self) -> bool:
        """Whether the bytes so far end inside a multibyte character."""
        return bool(self._decoder.getstate()[0])

    def _sift(self, text: str) -> str:
        if not self._stops:
            return text
        text = self._held + text
        if not self.looks:
            self._held = ""
            return text
        found = find_first_stop(text, self._stops)
        if found is not None:
            start, self.stopping_word = found
            self._held = ""
            return text[:start]
        keep = measure_partial_stop(text, self._stops)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]

    def _cut_outdent(self, text: str) -> str:
        """Cut the text before the first letter that follows a line break and fewer than `n_indent` blanks."""
        for i, letter in enumerate(text):
            if letter == "\n":
                self._indent = 0
            elif self._indent >= 0 and letter in " \t":
                self._indent += 1
            elif 0 <= self._indent < self._n_indent:
                self.is_outdented = True
                return text[:i]
            else:
                self._indent = -1
        return text


def find_first_stop(text: AnyStr, stops: Sequence[AnyStr]) -> tuple[int, AnyStr] | None:
    """The stop string whose end comes first in `text`, as (start, stop); None if there is none."""
    best: tuple[int, int, AnyStr] | None = None
    for stop in stops:
        start = text.find(stop)
        if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
            best = (start + len(stop), start, stop)
    return None if best is None else (best[1], best[2])


def measure_partial_stop(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `stops` and must be held back."""
    longest = 0
    for stop in stops:
        for n in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:n]):
                longest = n
                break
    return longest
