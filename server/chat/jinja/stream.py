"""The parser's view of the tokens: one current token, one of look-ahead, and error messages.

Pure data, any thread. Apart from `parser` only to keep each file at one idea.
"""

from __future__ import annotations

from typing import NoReturn

from .lexer import END, NAME, Source, Token, tokenize


class TokenStream:
    """Tokens with a current position. Words such as `if` are plain names, so they can be variables too."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._tokens = tokenize(source)
        self._position = 0
        self.current = self._tokens[0]

    def next(self) -> Token:
        """The current token; steps on."""
        token = self.current
        if token.type != END:
            self._position += 1
            self.current = self._tokens[self._position]
        return token

    def peek(self) -> Token:
        """The token after the current one."""
        return self._tokens[min(self._position + 1, len(self._tokens) - 1)]

    def at(self, *types: str) -> bool:
        """Has the current token one of these types?"""
        return self.current.type in types

    def at_word(self, *words: str) -> bool:
        """Is the current token one of these names?"""
        return self.current.type == NAME and self.current.value in words

    def skip(self, type_: str) -> bool:
        """Step over a token of this type, if it is there."""
        if self.current.type == type_:
            self.next()
            return True
        return False

    def skip_word(self, word: str) -> bool:
        """Step over this name, if it is there."""
        if self.at_word(word):
            self.next()
            return True
        return False

    def expect(self, type_: str) -> Token:
        """The current token, which must have this type; steps on."""
        if self.current.type != type_:
            self.fail(f"expected {_quoted(type_)}, got {describe(self.current)}")
        return self.next()

    def expect_word(self, word: str) -> Token:
        """The current token, which must be this name; steps on."""
        if not self.at_word(word):
            self.fail(f"expected {word!r}, got {describe(self.current)}")
        return self.next()

    def fail(self, message: str, offset: int | None = None) -> NoReturn:
        """Raise a syntax error, here unless another place is given."""
        raise self.source.error(message, self.current.offset if offset is None else offset)


def describe(token: Token) -> str:
    """A token as it is named in messages."""
    return repr(token.value) if token.type == NAME else _quoted(token.type)


def _quoted(type_: str) -> str:
    return f"'{type_}'"
