"""Reads the values that models write in calls (JSON, Python's syntax, or objects without quotes) piece by piece, and
writes them as JSON.

Pure; imports only the standard library. JSON is passed on unchanged. Common deviations are corrected: single quotes,
True and None, keys without quotes, raw line ends in strings, escapes that JSON doesn't have, a comma too many. So one
scanner serves all kinds of calls, and models that mix them. Only a comma and an unfinished word, escape or quote wait
for the next piece.

Not taken: Python's `json` and `ast`, which need the whole text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

DEPTH_MAX = 200  # levels of nested values
WORD_MAX = 1000  # characters of a word, a number or a name

WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_SPACE = re.compile(r"[ \t\r\n]+")
_MAYBE_SPACE = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r"""[^\s"',:=\[\]{}()]+""")
_KEY_BEFORE_EQUALS = re.compile(_WORD.pattern.join("()") + r"[ \t\r\n]*(=)?")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_PLAIN = {'"': re.compile(r'[^"\\\x00-\x1f]+'), "'": re.compile(r"[^'\"\\\x00-\x1f]+")}
_KEPT_ESCAPES = '"\\/bfnrt'
_CHANGED_ESCAPES = {"'": "'", "a": "\\u0007", "v": "\\u000b", "0": "\\u0000", "\n": ""}
_HEX_LENGTH = {"u": 4, "x": 2, "U": 8}
_HEX = re.compile("[0-9a-fA-F]+")


_Step = Callable[[str, int], int]


class _Container(NamedTuple):
    end: str
    json_end: str
    has_keys: bool


_OBJECT = _Container("}", "}", True)
_LIST = _Container("]", "]", False)
_TUPLE = _Container(")", "]", False)
_CALL = _Container(")", "}", True)
_OPEN = {"{": _OBJECT, "[": _LIST, "(": _TUPLE}


def escape_text(text: str) -> str:
    """The text escaped as in a JSON string, without the quotes around it."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class Scanner:
    """Reads one value. `feed` returns JSON and how far it has read. Then either the value has ended (`is_done`), or the
    next text can't be read (`is_broken`), or more text is needed.

    `quote` is the text around strings, if it isn't a quote character; such strings have no escapes.
    """

    def __init__(self, quote: str = "") -> None:
        self.quote = quote
        self.is_done = False
        self.is_broken = False
        self._names: Sequence[str] = ()
        self._odd_names: list[str] = []  # names that aren't one word, the longest first
        self._n_unnamed = 0  # arguments without a name so far
        self._stack: list[_Container] = []
        self._step: _Step = self._read_value
        self._after_text: _Step | None = None
        self._mark = ""  # the text that ends the current string
        self._comma = ""  # a comma and the white space after it; written once another value follows
        self._out: list[str] = []

    def feed(self, text: str, at: int = 0) -> tuple[str, int]:
        """Read from `at` on: (JSON, where it stopped)."""
        while at < len(text) and not self.is_done and not self.is_broken:
            new = self._step(text, at)
            if new == at:
                break
            at = new
        out = "".join(self._out)
        self._out.clear()
        return out, at

    def end(self, rest: str) -> str | None:
        """At the end of the answer: the JSON of `rest` (the text that `feed` hasn't read) with all open brackets
        closed. None if more than brackets is missing."""
        part, _ = self.feed(f"{rest} ")
        if self._step != self._read_after or not self._stack:
            return None
        return part.rstrip() + "".join(container.json_end for container in reversed(self._stack))

    def start_call(self, names: Sequence[str]) -> str:
        """Begin to read the arguments of a Python call, after its `(`, as an object. `names`: the names for arguments
        that are written without one. Returns the JSON's beginning."""
        self._names = names
        self._odd_names = sorted((name for name in names if not _WORD.fullmatch(name)), key=len, reverse=True)
        self._stack = [_CALL]
        self._step = self._read_key
        return "{"

    def start_object(self) -> str:
        """Begin to read an object after its `{`. Returns the JSON's beginning."""
        self._stack = [_OBJECT]
        self._step = self._read_key
        return "{"

    # Steps: each reads one item at `at` and returns its end, or `at` if it needs more text.

    def _read_value(self, text: str, at: int) -> int:
        """Read the beginning of a value, or the end of a list."""
        char = text[at]
        if char in " \t\r\n":
            return self._read_space(text, at)
        container = _OPEN.get(char)
        if container is not None:
            return self._open(container, at)
        if self._stack and char == self._stack[-1].end and not self._stack[-1].has_keys:
            return self._close(at)
        begun = self._begin_text(text, at)
        if begun >= 0:
            return begun
        end = self._find_word_end(text, at)
        if end > at:
            word = text[at:end]
            self._write(WORDS.get(word) or (word if _NUMBER.fullmatch(word) else json.dumps(word, ensure_ascii=False)))
            self._end_value()
        return end

    def _read_key(self, text: str, at: int) -> int:
        """Read the beginning of a key, or the end of its object."""
        char = text[at]
        if char in " \t\r\n":
            return self._read_space(text, at)
        container = self._stack[-1]
        if char == container.end:
            return self._close(at)
        if container is _CALL:
            return self._read_argument(text, at)
        begun = self._begin_text(text, at)
        if begun >= 0:
            return begun
        end = self._find_word_end(text, at)
        if end > at:
            self._write(json.dumps(text[at:end], ensure_ascii=False))
            self._step = self._read_colon
        return end

    def _read_argument(self, text: str, at: int) -> int:
        """Read the name of an argument of a Python call. An argument without a name gets one by its position."""
        for name in self._odd_names:
            if name.startswith(text[at : at + len(name)]):
                end = _MAYBE_SPACE.match(text, at + len(name)).end()
                if end >= len(text):
                    return at
                if text[end] == "=":
                    return self._begin_argument_value(name, end + 1)
        match = _KEY_BEFORE_EQUALS.match(text, at)
        if match is not None and match.end() - at > WORD_MAX:
            self.is_broken = True
            return at
        if match is not None and match.end() == len(text) and not match.group(2):
            return at
        if match is not None and match.group(2):
            return self._begin_argument_value(match.group(1), match.end())
        n = self._n_unnamed
        self._n_unnamed += 1
        self._write(json.dumps(self._names[n] if n < len(self._names) else f"argument_{n + 1}") + ": ")
        self._step = self._read_value
        return self._read_value(text, at)

    def _begin_argument_value(self, name: str, at: int) -> int:
        self._write(f"{json.dumps(name, ensure_ascii=False)}: ")
        self._step = self._read_value
        return at

    def _read_colon(self, text: str, at: int) -> int:
        char = text[at]
        if char in " \t\r\n":
            return self._read_space(text, at)
        if char != ":":
            self.is_broken = True
            return at
        self._out.append(":")
        self._step = self._read_value
        return at + 1

    def _read_after(self, text: str, at: int) -> int:
        """Read what follows a value in a container: a comma or the end."""
        char = text[at]
        if char in " \t\r\n":
            return self._read_space(text, at)
        container = self._stack[-1]
        if char == container.end:
            return self._close(at)
        if char != ",":
            self.is_broken = True
            return at
        self._comma = ","
        self._step = self._read_key if container.has_keys else self._read_value
        return at + 1

    def _read_text(self, text: str, at: int) -> int:
        """Read the inside of a string, which `_mark` ends."""
        mark = self._mark
        if mark not in _PLAIN:
            return self._read_marked_text(text, at)
        char = text[at]
        if char == mark:
            self._end_text()
            return at + 1
        if char == "\\":
            return self._escape(text, at)
        match = _PLAIN[mark].match(text, at)
        if match is None:  # a character that JSON requires to be escaped
            self._out.append(escape_text(char))
            return at + 1
        self._out.append(match.group())
        return match.end()

    def _read_marked_text(self, text: str, at: int) -> int:
        """Read the inside of a string without escapes, up to `quote`."""
        end = text.find(self.quote, at)
        if end >= 0:
            self._out.append(escape_text(text[at:end]))
            self._end_text()
            return end + len(self.quote)
        longest = min(len(self.quote) - 1, len(text) - at)
        end = len(text) - next((n for n in range(longest, 0, -1) if self.quote.startswith(text[-n:])), 0)
        self._out.append(escape_text(text[at:end]))
        return end

    def _escape(self, text: str, at: int) -> int:
        if at + 1 == len(text):
            return at
        char = text[at + 1]
        if char in _KEPT_ESCAPES:
            self._out.append(text[at : at + 2])
            return at + 2
        length = _HEX_LENGTH.get(char, 0)
        if length:
            digits = text[at + 2 : at + 2 + length]
            if len(digits) < length and (not digits or _HEX.fullmatch(digits)):
                return at
            if _HEX.fullmatch(digits):
                code = int(digits, 16)
                if char == "U" and code > 0xFFFF:
                    self._out.append(chr(code) if code <= 0x10FFFF else "\\ufffd")
                else:
                    self._out.append(f"\\u{digits[-4:]:0>4}")
                return at + 2 + length
        if char in _CHANGED_ESCAPES:
            self._out.append(_CHANGED_ESCAPES[char])
            return at + 2
        self._out.append("\\\\")
        return at + 1

    # Helpers of the steps

    def _write(self, json_text: str) -> None:
        if self._comma:
            self._out.append(self._comma)
            self._comma = ""
        self._out.append(json_text)

    def _read_space(self, text: str, at: int) -> int:
        match = _SPACE.match(text, at)
        assert match is not None
        if self._comma:
            self._comma += match.group() if len(self._comma) < WORD_MAX else ""
        else:
            self._out.append(match.group())
        return match.end()

    def _find_word_end(self, text: str, at: int) -> int:
        """The end of a word; `at` if it isn't known yet or there is no word."""
        match = _WORD.match(text, at)
        if match is None or match.end() - at > WORD_MAX:
            self.is_broken = True
            return at
        return at if match.end() == len(text) else match.end()

    def _begin_text(self, text: str, at: int) -> int:
        """The offset after a string's opening mark; `at` if more text is needed, -1 if no string begins here."""
        mark = text[at] if text[at] in _PLAIN else ""
        if self.quote and text.startswith(self.quote, at):
            mark = self.quote
        elif len(text) - at < len(self.quote) and self.quote.startswith(text[at:]):
            return at
        if not mark:
            return -1
        self._write('"')
        self._mark = mark
        self._after_text = self._read_colon if self._step == self._read_key else None
        self._step = self._read_text
        return at + len(mark)

    def _end_text(self) -> None:
        self._out.append('"')
        if self._after_text is not None:
            self._step = self._after_text
        else:
            self._end_value()

    def _open(self, container: _Container, at: int) -> int:
        if len(self._stack) == DEPTH_MAX:
            self.is_broken = True
            return at
        self._write("{" if container.has_keys else "[")
        self._stack.append(container)
        self._step = self._read_key if container.has_keys else self._read_value
        return at + 1

    def _close(self, at: int) -> int:
        self._out.append(self._comma[1:] + self._stack.pop().json_end)
        self._comma = ""
        self._end_value()
        return at + 1

    def _end_value(self) -> None:
        self.is_done = not self._stack
        self._step = self._read_after


def read_value(text: str) -> str | None:
    """The JSON of a text that is one value; None for any other text. Of words without quotes, only WORDS are values."""
    text = text.strip()
    try:
        json.loads(text, parse_constant=_refuse)
        return text
    except (ValueError, RecursionError):
        pass
    if text[:1] not in ("{", "[") and text not in WORDS:
        return None
    scanner = Scanner()
    out, end = scanner.feed(f"{text}\n")
    return out.strip() if scanner.is_done and not text[end:].strip() else None


def _refuse(name: str) -> None:
    raise ValueError(name)
