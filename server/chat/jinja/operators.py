"""Operators of the template language, with limits where Python has none.

Runs on the thread of the `Run`. Python's operators do the work on Python's values; functions here stand
before those whose result or cost can explode: products of strings, powers, comparisons of deep values. Way
not taken: limiting only time, which can't interrupt one long operation inside CPython.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from .errors import TemplateLimitError
from .formatting import percent
from .limits import LARGE_TEXT, Run
from .text import CONTAINERS, guard

BinaryOperator = Callable[[Run, Any, Any], Any]

NUMBERS = (int, float)  # bool is one of them


def add(run: Run, left: Any, right: Any) -> Any:
    """`left + right`."""
    if isinstance(left, str) and isinstance(right, str):
        length = len(left) + len(right)
        if length > LARGE_TEXT:
            run.text(length)
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        run.items(len(left) + len(right))
    return left + right


def subtract(run: Run, left: Any, right: Any) -> Any:
    """`left - right`, for numbers."""
    if type(left) in CONTAINERS:
        raise TypeError("unsupported operand type(s) for -")
    return left - right


def multiply(run: Run, left: Any, right: Any) -> Any:
    """`left * right`; one of them may be a sequence to repeat."""
    if isinstance(left, NUMBERS) and not isinstance(right, NUMBERS):
        left, right = right, left
    if isinstance(right, int) and right > 0:
        if isinstance(left, str):
            run.text(len(left) * right)
        elif isinstance(left, (list, tuple)):
            run.items(len(left) * right)
        elif isinstance(left, int):
            _bound(run, left.bit_length() + right.bit_length())
    elif isinstance(left, int) and isinstance(right, int):
        _bound(run, left.bit_length() + right.bit_length())
    return left * right


def power(run: Run, left: Any, right: Any) -> Any:
    """`left ** right`."""
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        _bound(run, left.bit_length() * right)
    result = left**right
    if isinstance(result, complex):
        raise ValueError("the root of a negative number")
    return result


def _bound(run: Run, bits: int) -> None:
    if bits > run.limits.bits:
        raise TemplateLimitError(f"a number would have more than {run.limits.bits} bits")


def modulo(run: Run, left: Any, right: Any) -> Any:
    """`left % right`: the remainder, or a formatted string."""
    return percent(run, left, right) if isinstance(left, str) else left % right


def _compared(compare: Callable[[Any, Any], bool]) -> BinaryOperator:
    def compared(run: Run, left: Any, right: Any, /) -> bool:
        if type(left) in CONTAINERS and type(right) in CONTAINERS:
            guard(run, left, right)
        return compare(left, right)

    return compared


def contains(run: Run, item: Any, container: Any, /) -> bool:
    """`item in container`."""
    if type(item) in CONTAINERS:
        guard(run, item, container)
    return item in container


def not_contains(run: Run, item: Any, container: Any) -> bool:
    """`item not in container`."""
    return not contains(run, item, container)


def negative(run: Run, value: Any) -> Any:
    """`-value`."""
    return -value


def positive(run: Run, value: Any) -> Any:
    """`+value`."""
    return +value


BINARY: dict[str, BinaryOperator] = {
    "+": add,
    "-": subtract,
    "*": multiply,
    "/": lambda run, left, right: left / right,
    "//": lambda run, left, right: left // right,
    "%": modulo,
    "**": power,
}

COMPARE: dict[str, BinaryOperator] = {
    "==": _compared(operator.eq),
    "!=": _compared(operator.ne),
    "<": _compared(operator.lt),
    "<=": _compared(operator.le),
    ">": _compared(operator.gt),
    ">=": _compared(operator.ge),
    "in": contains,
    "not in": not_contains,
}

UNARY: dict[str, Callable[[Run, Any], Any]] = {"-": negative, "+": positive}
