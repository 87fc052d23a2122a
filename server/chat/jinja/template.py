"""`Template`: compiled once, rendered many times, on any thread.

Not taken: a cache of compiled templates; a template's owner keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from . import nodes
from .errors import TemplateError, TemplateRuntimeError
from .execute import compile_template
from .filters import EXTRA_FILTERS, FILTERS
from .globals import GLOBALS, import_value
from .lexer import Source
from .limits import Limits, Run
from .marked import make_segments
from .parser import parse
from .place import OUT, Place
from .scopes import Function, Scope
from .tests import TESTS
from .values import MISSING

DEFAULT_LIMITS = Limits()


class Template:
    """A compiled chat template. The constructor raises `TemplateSyntaxError`.

    `strict`: only the language of Hugging Face's transformers. Otherwise there are extensions that published templates
    need: methods that change lists and dictionaries, the tag `do`, the filter `from_json`, and `tojson` for the lazy
    results of filters. `names`: all variables that the template reads, even those it sets.
    """

    def __init__(self, source: str, name: str = "chat template", *, strict: bool = False) -> None:
        self.name = name
        self.source = source
        self.strict = strict
        self._source = Source(source)
        self._filters: Mapping[str, Any] = FILTERS if strict else {**FILTERS, **EXTRA_FILTERS}
        statements = parse(self._source, extras=not strict)
        self._function = Function()
        place = Place(self._source, self._filters, TESTS, Scope(self._function))
        try:
            self._render = compile_template(statements, place)
            self.names = frozenset(
                node.name for node in nodes.walk(statements) if isinstance(node, nodes.Name) and node.use == "load"
            )
        except RecursionError:
            raise self._source.make_error("the template is nested too deeply", 0) from None

    def render(self, context: Mapping[str, Any], *, limits: Limits = DEFAULT_LIMITS) -> str:
        """The prompt. `context` has JSON-like data and functions; it isn't changed.

        Raises `TemplateRuntimeError` with the position in the template and, if known, the index in `messages`.
        """
        return "".join(self._run(context, limits))

    def render_segments(self, context: Mapping[str, Any], *, limits: Limits = DEFAULT_LIMITS) -> list[tuple[str, bool]]:
        """The prompt in segments (text, whether it is user input). Their texts joined are the result of `render`.

        User input is text from the `Marked` strings of the context. Segments of both kinds alternate.
        """
        return make_segments(self._run(context, limits))

    def _run(self, context: Mapping[str, Any], limits: Limits) -> list[str]:
        run = Run(limits, self._filters, TESTS, mutable=not self.strict)
        variables: dict[str, Any] = dict(GLOBALS)
        try:
            for name, value in context.items():
                variables[name] = import_value(value, limits.depth)
            run.variables = variables
            frame: list[Any] = [run, [], None, *[MISSING] * len(self._function)]
            self._render(frame)
            return frame[OUT]
        except TemplateError as error:
            self._locate(error, variables)
            raise
        except Exception as error:
            raise self._make_error(error, variables) from error

    def _make_error(self, error: Exception, variables: Mapping[str, object]) -> TemplateRuntimeError:
        """A `TemplateRuntimeError` for a Python exception, with its position. `_run` has no variable for it: the
        error's traceback has `_run`'s frame, and this would make a reference cycle."""
        located = TemplateRuntimeError(_describe_error(error)).with_traceback(error.__traceback__)
        self._locate(located, variables)
        return located

    def _locate(self, error: TemplateError, variables: Mapping[str, Any]) -> None:
        """Set an error's position in the template and its message index, from its traceback."""
        messages = variables.get("messages")
        numbers: dict[int, int] = {}
        if type(messages) is list:
            numbers = {id(message): number for number, message in enumerate(messages)}
        offset = None
        traceback: TracebackType | None = error.__traceback__
        while traceback is not None:
            frame, code = traceback.tb_frame, traceback.tb_frame.f_code
            has_place = "at" in code.co_freevars or "at" in code.co_varnames
            # reading `f_locals` of a frame that has the error in a variable would make a reference cycle
            names = frame.f_locals if has_place and frame.f_globals.get("__package__") == __package__ else {}
            if "at" in names:
                offset = names["at"]  # a closure of the template; the innermost comes last
                error.message_index = numbers.get(id(names.get("item")), error.message_index)
            traceback = traceback.tb_next
        if offset is not None:
            error.line, error.column = self._source.place(offset)


def _describe_error(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the template calls itself too deeply"
    if isinstance(error, MemoryError):
        return "the template needs too much memory"
    if isinstance(error, KeyError):
        return f"there is no key {error}"
    return str(error) or type(error).__name__
