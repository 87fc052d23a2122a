"""Turns template source into tokens, with jinja2's rules for white space (`trim_blocks` and `lstrip_blocks` on).

Pure functions, any thread. The rules are regular expressions, tried in a fixed order as in jinja2. For example,
`{{-1}}` prints 1, because the minus sign belongs to the brackets. Each token has its offset in the normalized source;
lines and columns are computed only for errors. Not taken: a hand-written scanner, which would differ from jinja2 more
often.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from .errors import TemplateSyntaxError

# token types; the type of an operator is its own text
DATA, PRINT, PRINT_END, TAG, TAG_END = "data", "print", "print end", "tag", "tag end"
NAME, STRING, INTEGER, FLOAT, END = "name", "string", "integer", "float", "end of template"

NEWLINES = re.compile(r"\r\n|\r|\n")
OPENING = re.compile(
    r"(?P<text>.*?)(?:(?P<raw>\{%(?P<raw_sign>[-+]?)\s*raw\s*(?:-%\}\s*|%\}))"
    r"|(?P<kind>\{\{|\{%|\{#)(?P<sign>[-+]?))",
    re.S,
)
RAW_END = re.compile(r"(?P<text>.*?)\{%(?P<sign>[-+]?)\s*endraw\s*(?:\+%\}|-%\}\s*|%\}\n?)", re.S)
COMMENT_END = re.compile(r".*?(?:\+#\}|-#\}\s*|#\}\n?)", re.S)
CLOSING = {"{{": (PRINT_END, re.compile(r"-\}\}\s*|\}\}")), "{%": (TAG_END, re.compile(r"\+%\}|-%\}\s*|%\}\n?"))}
SPACE = re.compile(r"\s+")
PIECE = re.compile(
    r"""
    (?P<float>(?<!\.)(?:\d+_)*\d+(?:(?:\.(?:\d+_)*\d+)?e[+-]?(?:\d+_)*\d+|\.(?:\d+_)*\d+))
    |(?P<integer>0b(?:_?[0-1])+|0o(?:_?[0-7])+|0x(?:_?[\da-f])+|[1-9](?:_?\d)*|0(?:_?0)*)
    |(?P<name>\w+)
    |(?P<string>'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*")
    |(?P<operator>//|\*\*|==|!=|>=|<=|[-+/*%~\[\](){}<>=.:|,;])
    """,
    re.X | re.S | re.I,
)
PARTNER = {"(": ")", "[": "]", "{": "}"}


class Token(NamedTuple):
    """`type`, value (text, number or name), and offset in the source."""

    type: str
    value: Any
    offset: int


class Source:
    """A template's text with normalized line ends. If it ends with a line end, that is removed, as in jinja2."""

    def __init__(self, text: str) -> None:
        text = NEWLINES.sub("\n", text)
        self.text = text[:-1] if text.endswith("\n") else text

    def place(self, offset: int) -> tuple[int, int]:
        """(line, column) of an offset, from 1."""
        return self.text.count("\n", 0, offset) + 1, offset - self.text.rfind("\n", 0, offset)

    def make_error(self, message: str, offset: int) -> TemplateSyntaxError:
        return TemplateSyntaxError(message, *self.place(offset))


def tokenize(source: Source) -> list[Token]:
    """All tokens of a template, ending with one of type `END`."""
    return [*_Lexer(source).read_tokens(), Token(END, "", len(source.text))]


class _Lexer:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.text = source.text
        self.position = 0
        self.at_line_start = True  # the text before the current position ends with a line end

    def read_tokens(self) -> Iterator[Token]:
        while match := OPENING.match(self.text, self.position):
            kind, sign = match["kind"] or "{%", match["raw_sign"] if match["raw"] else match["sign"]
            yield from self._read_data(match["text"], sign, may_strip=kind != "{{")
            start = match.start("raw") if match["raw"] else match.start("kind")
            self._advance(match.end())
            if match["raw"]:
                yield from self._read_raw(start)
            elif kind == "{#":
                self._skip_comment(start)
            else:
                yield Token(PRINT if kind == "{{" else TAG, kind, start)
                yield from self._read_expression(kind)
        rest = self.text[self.position :]
        if rest:
            yield Token(DATA, rest, self.position)

    def _advance(self, end: int) -> None:
        self.at_line_start = self.text[end - 1 : end] == "\n" if end > self.position else False
        self.position = end

    def _read_data(self, text: str, sign: str, may_strip: bool) -> Iterator[Token]:
        """The text before an opening bracket, without the white space that the bracket removes."""
        if sign == "-":
            text = text.rstrip()
        elif sign != "+" and may_strip:
            line = text.rfind("\n") + 1
            if (line > 0 or self.at_line_start) and SPACE.fullmatch(text, line):
                text = text[:line]
        if text:
            yield Token(DATA, text, self.position)

    def _read_raw(self, start: int) -> Iterator[Token]:
        match = RAW_END.match(self.text, self.position)
        if match:
            yield from self._read_data(match["text"], match["sign"], may_strip=True)
        self._close(match, "Missing end of raw directive", start)

    def _skip_comment(self, start: int) -> None:
        self._close(COMMENT_END.match(self.text, self.position), "Missing end of comment tag", start)

    def _close(self, match: re.Match[str] | None, complaint: str, start: int) -> None:
        if match:
            self._advance(match.end())
        elif self.position < len(self.text):  # an opening at the very end isn't an error, as in jinja2
            raise self.source.make_error(complaint, start)

    def _read_expression(self, kind: str) -> Iterator[Token]:
        """The tokens up to and including the closing bracket, or up to the end of the source."""
        end_type, end_pattern = CLOSING[kind]
        open_brackets: list[str] = []
        while self.position < len(self.text):
            match = None if open_brackets else end_pattern.match(self.text, self.position)
            if match:
                yield Token(end_type, match.group(), self.position)
                self._advance(match.end())
                return
            match = SPACE.match(self.text, self.position)
            if not match:
                match = PIECE.match(self.text, self.position)
                if not match:
                    raise self.source.make_error(f"unexpected char {self.text[self.position]!r}", self.position)
                yield self._read_piece(match, open_brackets)
            self._advance(match.end())

    def _read_piece(self, match: re.Match[str], open_brackets: list[str]) -> Token:
        kind, text, offset = match.lastgroup, match.group(), match.start()
        if kind == "operator":
            self._balance(text, open_brackets, offset)
            return Token(text, text, offset)
        if kind == "string":
            return Token(STRING, self._unescape(text[1:-1], offset), offset)
        if kind == "name":
            if not text.isidentifier():
                raise self.source.make_error("Invalid character in identifier", offset)
            return Token(NAME, text, offset)
        try:
            digits = text.replace("_", "")
            if kind == "float":
                return Token(FLOAT, float(digits), offset)
            return Token(INTEGER, int(digits, 0), offset)
        except ValueError as error:
            raise self.source.make_error(str(error), offset) from error

    def _balance(self, text: str, open_brackets: list[str], offset: int) -> None:
        if text in PARTNER:
            open_brackets.append(PARTNER[text])
        elif text in (")", "]", "}"):
            if not open_brackets:
                raise self.source.make_error(f"unexpected '{text}'", offset)
            expected = open_brackets.pop()
            if expected != text:
                raise self.source.make_error(f"unexpected '{text}', expected '{expected}'", offset)

    def _unescape(self, text: str, offset: int) -> str:
        try:
            return text.encode("ascii", "backslashreplace").decode("unicode-escape")
        except UnicodeDecodeError as error:
            raise self.source.make_error(str(error).split(":")[-1].strip(), offset) from error
