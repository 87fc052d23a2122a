"""The global functions of templates, and the conversion of the caller's values.

Run on the thread that renders the template. `raise_exception` and `strftime_now` are those of Hugging Face's
transformers; jinja2's `lipsum` is left out. Not taken: passing the caller's objects unchanged; a template could reach
their attributes.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any

from .errors import TemplateLimitError, TemplateRaised, TemplateRuntimeError
from .limits import Run
from .marked import Marked, mark_if
from .text import guard, to_text
from .values import Cycler, Function, Joiner, Namespace

MAX_RANGE = 100_000  # items; as in jinja2's sandbox
MAX_TIME_FORMAT = 1000  # characters


def import_value(value: Any, limit: int) -> Any:
    """Copy the caller's data into template values; TemplateLimitError beyond `limit` levels."""
    kind = type(value)
    if kind in (str, int, float, bool, Marked) or value is None:
        return value
    if limit < 0:
        raise TemplateLimitError("the conversation is nested too deeply")
    if isinstance(value, Mapping):
        return {_import_key(key): import_value(item, limit - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [import_value(item, limit - 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, (str, int, float)):
        return _import_plain(value)
    if callable(value):
        return Function(getattr(value, "__name__", "function"), _import_function(value, limit))
    raise TemplateRuntimeError(f"a template can't use a value of type {kind.__name__}")


def _import_plain(value: str | int | float) -> Any:
    """The plain value of a derived type, such as an enumeration."""
    if isinstance(value, str):
        return str.__str__(value)
    return int(value) if isinstance(value, int) else float(value)


def _import_key(key: Any) -> Any:
    if type(key) in (str, Marked, bool) or key is None:
        return key
    if isinstance(key, (str, int, float)):
        return _import_plain(key)
    raise TemplateRuntimeError(f"a template can't use a dictionary with keys of type {type(key).__name__}")


def _import_function(function: Callable[..., Any], limit: int) -> Callable[..., Any]:
    def call(run: Run, /, *args: Any, **kwargs: Any) -> Any:
        guard(run, args, kwargs)
        return import_value(function(*args, **kwargs), limit)

    return call


def make_range(run: Run, /, *bounds: int) -> range:
    made = range(*bounds)
    if len(made) > MAX_RANGE:
        raise TemplateLimitError(f"a range has more than {MAX_RANGE} items")
    return made


def make_dict(run: Run, /, *args: Any, **kwargs: Any) -> dict[Any, Any]:
    guard(run, *args)
    return dict(*args, **kwargs)


def make_namespace(run: Run, /, *args: Any, **kwargs: Any) -> Namespace:
    return Namespace(make_dict(run, *args, **kwargs))


def make_cycler(run: Run, /, *items: Any) -> Cycler:
    if not items:
        raise TypeError("at least one item has to be provided")
    return Cycler(items)


def make_joiner(run: Run, /, sep: Any = ", ") -> Joiner:
    return Joiner(sep)


def raise_exception(run: Run, message: Any = "", /) -> None:
    raise TemplateRaised(str.__str__(to_text(run, message)))


def strftime_now(run: Run, format: str, /) -> str:
    if len(format) > MAX_TIME_FORMAT:
        raise TemplateLimitError(f"a time format has more than {MAX_TIME_FORMAT} characters")
    return mark_if(datetime.datetime.now().strftime(format), format)


_CALLS: dict[str, Callable[..., Any]] = {
    "range": make_range,
    "dict": make_dict,
    "namespace": make_namespace,
    "cycler": make_cycler,
    "joiner": make_joiner,
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
}
GLOBALS = {name: Function(name, call) for name, call in _CALLS.items()}
