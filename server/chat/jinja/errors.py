"""What can go wrong in a template: one family of exceptions, each with a place in the source.

Pure data, any thread. Everything that escapes from `Template(...)` and its `render` methods is a
`TemplateError`; the caller turns it into a 400. Way not taken: Python's own exceptions for type errors in
templates, which would leave the caller to guess whether the template or the interpreter is at fault.
"""

from __future__ import annotations


class TemplateError(Exception):
    """A template that can't be compiled or rendered.

    `line` and `column` count from 1 in the template's source (0: unknown). `message_index` is the place in
    the context's `messages` list that was being rendered, counted from 0, or None.
    """

    def __init__(self, message: str, line: int = 0, column: int = 0, message_index: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column
        self.message_index = message_index

    def __str__(self) -> str:
        place = f" (line {self.line}, column {self.column})" if self.line else ""
        which = f", in messages[{self.message_index}]" if self.message_index is not None else ""
        return f"{self.message}{place}{which}"


class TemplateSyntaxError(TemplateError):
    """The source isn't a template."""


class TemplateRuntimeError(TemplateError):
    """An operation of the template failed: wrong types, unknown names, division by zero..."""


class UndefinedError(TemplateRuntimeError):
    """The template used a value that isn't there for more than printing or testing it."""


class SecurityError(TemplateRuntimeError):
    """The template reached for something that templates may not touch."""


class TemplateLimitError(TemplateRuntimeError):
    """The template needs more steps, time, depth or text than it may have."""


class TemplateRaised(TemplateRuntimeError):
    """The template itself refused the conversation with `raise_exception(message)`."""
