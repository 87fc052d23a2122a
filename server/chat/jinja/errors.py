"""The errors of templates: one family of exceptions.

Pure data, any thread. `Template(...)` and its `render` methods raise nothing but `TemplateError`. Not taken: letting
Python's own exceptions through, which have no position in the template.
"""

from __future__ import annotations


class TemplateError(Exception):
    """A template can't be compiled or rendered.

    `line` and `column` are positions in the template's source, from 1 (0: unknown). `message_index` is the index of the
    message that was being rendered, from 0, or None.
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
    """The source can't be compiled."""


class TemplateRuntimeError(TemplateError):
    """An operation of the template failed: wrong types, unknown names, division by zero, ..."""


class UndefinedError(TemplateRuntimeError):
    """The template used an undefined value in an operation that needs a value."""


class SecurityError(TemplateRuntimeError):
    """The template accessed something that templates may not access."""


class TemplateLimitError(TemplateRuntimeError):
    """The template exceeds a limit of time or memory."""


class TemplateRaised(TemplateRuntimeError):
    """The template refused the conversation by `raise_exception(message)`."""
