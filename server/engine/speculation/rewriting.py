"""Drafts from text of the prompt that the answer writes in another form.

Engine thread, pure Python. An agent is shown a file, perhaps with line numbers, and writes it again inside a JSON
string, in which each line end and quotation mark is escaped. Then the tokens differ at the end of each line, so
`lookup` loses its place there. A `Rewriting` compares bytes instead. Inside a JSON string, the string's meaning is
compared with the prompt, from which line numbers are removed. Outside of strings, the answer is compared with the
meaning of the prompt's JSON strings that have line ends, and with the prompt's numbered lines without the numbers.

Not taken: an index over the prompt, because `bytes.rfind` takes 30 to 130 us, and only while no place is followed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from server.engine.speculation.trust import MAX_MATCH, MIN_SURVIVAL, Trust

MOST_TOKENS = 65536  # only so many of a prompt's last tokens are compared
N_EQUAL = 10  # a place in the prompt is followed if so many bytes before it are equal
NEAR = 400  # after a miss, a place at most this many bytes further on is preferred
TOKEN = 4  # bytes that count as one matched token of `Trust`
LONGEST = 6  # bytes of the prompt that are read for each token of a draft
LEAST_LEFT = 16  # if fewer expected tokens are left, the prompt is read further
GAP = b"\0"  # between texts that don't belong together

ESCAPES = {b"\n": b"\\n", b'"': b'\\"', b"\\": b"\\\\", b"\t": b"\\t", b"\r": b"\\r"}
MEANINGS = {written: meant for meant, written in ESCAPES.items()} | {b"\\/": b"/"}
ESCAPED = re.compile(rb"\\.", re.DOTALL)
TO_ESCAPE = re.compile(rb'[\n"\\\t\r]')
STRING = re.compile(rb'"((?:[^"\\\n]+|\\.)*)("?)')  # the last group is empty if the string isn't closed
PART = re.compile(rb'["\n]|\\.?|[^"\\\n]+', re.DOTALL)
NUMBER = re.compile(rb"(?m)^ *\d+(?:\t|:|\| ?|\xe2\x86\x92)")  # before a line that a tool shows
# three or more such lines
NUMBERED = re.compile(rb"(?m)(?:^ *\d+(?:\t|:|\||\xe2\x86\x92)[^\n]*\n){3,}")


class Rewriting:
    """Follows the text of the prompt that the answer rewrites, and predicts the next tokens.

    `spell` returns the tokens of a text that follows other text, `piece` the bytes of a token. `trust` is the owner's.
    """

    __slots__ = (
        "_piece",
        "_spell",
        "_trust",
        "_plain",
        "_unpacked",
        "_is_string",
        "_half",
        "_written",
        "_place",
        "_n_matched",
        "_ahead",
        "_n_come",
    )

    def __init__(
        self, prompt: Sequence[int], spell: Callable[[str], Sequence[int]], piece: Callable[[int], bytes], trust: Trust
    ) -> None:
        self._spell, self._piece, self._trust = spell, piece, trust
        text = b"".join(piece(token) for token in prompt[-MOST_TOKENS:] if token >= 0)
        self._plain = NUMBERED.sub(lambda lines: NUMBER.sub(b"", lines[0]), text)
        self._unpacked = GAP.join(
            [_read_string(found[1]) for found in STRING.finditer(text) if found[2] and rb"\n" in found[1]]
            + [NUMBER.sub(b"", lines) for lines in NUMBERED.findall(text)]
        )
        self._is_string = False  # whether the answer is inside a JSON string
        self._half = b""  # a backslash whose other half is still to come
        self._written = b""  # the last bytes of the answer's meaning, since a string last began or ended
        self._place = -1  # index in the compared text of the next byte; -1 if there is none
        self._n_matched = 0  # equal bytes before it
        self._ahead: Sequence[int] = ()  # the expected tokens
        self._n_come = 0  # how many of them have come
        # An answer may go on inside of a string that the prompt begins.
        for found in STRING.finditer(text, text.rfind(b"\n") + 1):
            if found.end() == len(text) and not found[2]:
                self._is_string, self._written = True, _read_string(found[1])

    def append(self, token: int) -> None:
        """Add the next token of the answer."""
        self._judge(token)
        piece = self._piece(token) if token >= 0 else b""
        data, self._half = self._half + piece, b""
        meant = b""
        for part in PART.findall(data):
            if part == b'"' and self._is_expected(meant + part):
                meant += part  # the compared text has this quotation mark, too, so no string begins
            elif part == b'"' or (part == b"\n" and self._is_string):
                self._is_string = not self._is_string
                self._written, meant = b"", b""
                self._leave()
            elif part == b"\\" and self._is_string:
                self._half = part
            else:
                meant += MEANINGS.get(part, part) if self._is_string else part
        if meant:
            self._go_on(meant)

    def estimate_chances(self, n_max: int) -> list[float]:
        """The chances that the first, the first two, ... of the expected tokens come; [] if none is expected."""
        if self._place < 0:
            return []
        survival, n_matched, chances = 1.0, self._n_matched, []
        for token in self._read_ahead(n_max)[:n_max]:
            survival *= self._trust.estimate_chance(min(n_matched // TOKEN, MAX_MATCH))
            if survival < MIN_SURVIVAL:
                break
            chances.append(survival)
            n_matched += len(self._piece(token))
        return chances

    def draft(self, n: int) -> list[int]:
        """Up to `n` of the tokens that the latest `estimate_chances` has read."""
        return list(self._ahead[self._n_come : self._n_come + n])

    @property
    def _source(self) -> bytes:
        return self._plain if self._is_string else self._unpacked

    def _is_expected(self, meant: bytes) -> bool:
        """Whether the answer is outside of strings, and these bytes come next in the compared text."""
        return not self._is_string and self._place >= 0 and self._unpacked.startswith(meant, self._place)

    def _judge(self, token: int) -> None:
        """Learn whether the expected token came."""
        if self._n_come < len(self._ahead):
            is_hit = self._ahead[self._n_come] == token
            self._trust.note(min(self._n_matched // TOKEN, MAX_MATCH), is_hit)
            self._n_come += 1
            if not is_hit:
                self._ahead, self._n_come = (), 0

    def _leave(self) -> None:
        self._place, self._ahead, self._n_come = -1, (), 0

    def _go_on(self, meant: bytes) -> None:
        """Go on by these bytes, or find another place."""
        source, place = self._source, self._place
        self._written = (self._written + meant)[-MAX_MATCH * TOKEN :]
        if place >= 0 and source.startswith(meant, place):
            self._place += len(meant)
            self._n_matched += len(meant)
            return
        self._leave()
        end = self._written[-N_EQUAL:]
        if len(end) < N_EQUAL or not source:
            return
        found = source.find(end, max(place - N_EQUAL, 0), place + NEAR) if place >= 0 else -1
        if found < 0:
            found = source.rfind(end)
        if found >= 0:
            self._place = found + N_EQUAL
            self._n_matched = _count_equal(source, self._place, self._written)

    def _read_ahead(self, n: int) -> Sequence[int]:
        """The expected tokens: those that are known if they are enough, else those of the next `n * LONGEST` bytes."""
        if len(self._ahead) - self._n_come >= min(n, LEAST_LEFT):
            return self._ahead[self._n_come :]
        source, end = self._source, self._place + n * LONGEST
        text = source[self._place : end].partition(GAP)[0]
        if self._is_string:
            text = TO_ESCAPE.sub(lambda found: ESCAPES[found[0]], text)
        self._ahead, self._n_come = (), 0
        if text.startswith(self._half):
            tokens = self._spell(text[len(self._half) :].decode("utf-8", "ignore"))
            self._ahead = tokens[:-1] if end < len(source) else tokens  # the text may end within a token
        return self._ahead


def _read_string(written: bytes) -> bytes:
    """What the characters of a JSON string mean. Other escapes than those of `MEANINGS` stay as they are."""
    return ESCAPED.sub(lambda found: MEANINGS.get(found[0], found[0]), written)


def _count_equal(text: bytes, place: int, written: bytes) -> int:
    """How many bytes before `place` equal the end of `written`."""
    n, most = 0, min(place, len(written))
    while n < most and text[place - 1 - n] == written[-1 - n]:
        n += 1
    return n
