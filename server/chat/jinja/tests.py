"""The tests of the template language, which follow `is`.

Run on the thread that renders the template. Each is `call(run, value, *args)` and returns what jinja2's returns, even
where it is odd: `number` is true for booleans; `sequence`, `iterable` and `callable` are true for undefined values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .limits import Run
from .marked import is_safe
from .operators import COMPARE, is_in
from .text import to_text
from .values import CALLABLE_TYPES, Undefined

SEQUENCE_TYPES = (str, list, tuple, dict, range, Undefined)


def is_iterable(run: Run, value: Any, /) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True


def is_divisible(run: Run, value: Any, num: Any, /) -> bool:
    return value % num == 0


def is_same(run: Run, value: Any, other: Any, /) -> bool:
    return value is other


def _is(kinds: type | tuple[type, ...]) -> Callable[..., bool]:
    return lambda run, value, /: isinstance(value, kinds)


TESTS: dict[str, Callable[..., Any]] = {
    "boolean": _is(bool),
    "callable": _is(CALLABLE_TYPES),
    "defined": lambda run, value, /: type(value) is not Undefined,
    "divisibleby": is_divisible,
    "escaped": lambda run, value, /: is_safe(value),
    "even": lambda run, value, /: value % 2 == 0,
    "false": lambda run, value, /: value is False,
    "filter": lambda run, value, /: value in run.filters,
    "float": _is(float),
    "in": is_in,
    "integer": lambda run, value, /: isinstance(value, int) and not isinstance(value, bool),
    "iterable": is_iterable,
    "lower": lambda run, value, /: to_text(run, value).islower(),
    "mapping": _is(dict),
    "none": lambda run, value, /: value is None,
    "number": _is((int, float)),
    "odd": lambda run, value, /: value % 2 == 1,
    "sameas": is_same,
    "sequence": _is(SEQUENCE_TYPES),
    "string": _is(str),
    "test": lambda run, value, /: value in run.tests,
    "true": lambda run, value, /: value is True,
    "undefined": lambda run, value, /: type(value) is Undefined,
    "upper": lambda run, value, /: to_text(run, value).isupper(),
    **{
        name: COMPARE[symbol]
        for symbol, names in {
            "==": ("==", "eq", "equalto"),
            "!=": ("!=", "ne"),
            "<": ("<", "lt", "lessthan"),
            "<=": ("<=", "le"),
            ">": (">", "gt", "greaterthan"),
            ">=": (">=", "ge"),
        }.items()
        for name in names
    },
}
