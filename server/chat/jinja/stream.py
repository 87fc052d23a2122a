"""The tokens as the parser reads them: a current token, one token of look-ahead, and error messages.

Pure data, any thread.
"""

from __future__ import annotations

from typing import NoReturn

from .lexer import END, NAME, Source, Token, tokenize


class TokenStream:
    """Tokens with a current position. Words such as `if` are names, so they can be variables."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._tokens = tokenize(source)
        self._position = 0
        self.current = self._tokens[0]

    def next(self) -> Token:
        """Return the current token and advance."""
        token = self.current
        if token.type != END:
            self._position += 1
            self.current = self._tokens[self._position]
        return token

    def peek(self) -> Token:
        return self._tokens[min(self._position + 1, len(self._tokens) - 1)]

    def is_at(self, *types: str) -> bool:
        return self.current.type in types

    def is_at_word(self, *words: str) -> bool:
        return self.current.type == NAME and self.current.value in words

    def skip(self, type_: str) -> bool:
        """Whether the current token has this type; if so, advance."""
        if self.current.type == type_:
            self.next()
            return True
        return False

    def skip_word(self, word: str) -> bool:
        if self.is_at_word(word):
            self.next()
            return True
        return False

    def expect(self, type_: str) -> Token:
        """Return the current token, which must have this type, and advance."""
        if self.current.type != type_:
            self.fail(f"expected {_quote(type_)}, got {describe(self.current)}")
        return self.next()

    def expect_word(self, word: str) -> Token:
        if not self.is_at_word(word):
            self.fail(f"expected {word!r}, got {describe(self.current)}")
        return self.next()

    def fail(self, message: str, offset: int | None = None) -> NoReturn:
        """Raise a syntax error at `offset`, by default at the current token."""
        raise self.source.make_error(message, self.current.offset if offset is None else offset)


def describe(token: Token) -> str:
    return repr(token.value) if token.type == NAME else _quote(token.type)


def _quote(type_: str) -> str:
    return f"'{type_}'"
