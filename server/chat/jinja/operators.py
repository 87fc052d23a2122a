"""The operators of the template language, with limits that Python's don't have.

Run on the thread that renders the template. Python's operators compute the results. The functions here first check
operations whose result or cost can be huge, such as string products, powers, comparisons of nested values. Not taken:
limiting only time, since one long operation inside CPython can't be interrupted.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from .errors import TemplateLimitError
from .formatting import format_percent
from .limits import LARGE_TEXT, Run
from .text import CONTAINERS, guard

BinaryOperator = Callable[[Run, Any, Any], Any]

NUMBERS = (int, float)  # bool is a subclass of int


def add(run: Run, left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        length = len(left) + len(right)
        if length > LARGE_TEXT:
            run.count_text(length)
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        run.count_items(len(left) + len(right))
    return left + right


def subtract(run: Run, left: Any, right: Any) -> Any:
    if type(left) in CONTAINERS:
        raise TypeError("unsupported operand type(s) for -")
    return left - right


def multiply(run: Run, left: Any, right: Any) -> Any:
    """`left * right`. One of them may be a sequence, which is repeated."""
    if isinstance(left, NUMBERS) and not isinstance(right, NUMBERS):
        left, right = right, left
    if isinstance(right, int) and right > 0:
        if isinstance(left, str):
            run.count_text(len(left) * right)
        elif isinstance(left, (list, tuple)):
            run.count_items(len(left) * right)
        elif isinstance(left, int):
            _bound(run, left.bit_length() + right.bit_length())
    elif isinstance(left, int) and isinstance(right, int):
        _bound(run, left.bit_length() + right.bit_length())
    return left * right


def power(run: Run, left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        _bound(run, left.bit_length() * right)
    result = left**right
    if isinstance(result, complex):
        raise ValueError("a negative number has no root")
    return result


def _bound(run: Run, bits: int) -> None:
    if bits > run.limits.bits:
        raise TemplateLimitError(f"a number would have more than {run.limits.bits} bits")


def compute_modulo(run: Run, left: Any, right: Any) -> Any:
    """`left % right`: the remainder, or a formatted string."""
    return format_percent(run, left, right) if isinstance(left, str) else left % right


def _make_comparison(compare: Callable[[Any, Any], bool]) -> BinaryOperator:
    def compare_values(run: Run, left: Any, right: Any, /) -> bool:
        if type(left) in CONTAINERS and type(right) in CONTAINERS:
            guard(run, left, right)
        return compare(left, right)

    return compare_values


def is_in(run: Run, item: Any, container: Any, /) -> bool:
    if type(item) in CONTAINERS:
        guard(run, item, container)
    return item in container


def is_not_in(run: Run, item: Any, container: Any) -> bool:
    return not is_in(run, item, container)


def negate(run: Run, value: Any) -> Any:
    return -value


def apply_plus(run: Run, value: Any) -> Any:
    return +value


BINARY: dict[str, BinaryOperator] = {
    "+": add,
    "-": subtract,
    "*": multiply,
    "/": lambda run, left, right: left / right,
    "//": lambda run, left, right: left // right,
    "%": compute_modulo,
    "**": power,
}

COMPARE: dict[str, BinaryOperator] = {
    "==": _make_comparison(operator.eq),
    "!=": _make_comparison(operator.ne),
    "<": _make_comparison(operator.lt),
    "<=": _make_comparison(operator.le),
    ">": _make_comparison(operator.gt),
    ">=": _make_comparison(operator.ge),
    "in": is_in,
    "not in": is_not_in,
}

UNARY: dict[str, Callable[[Run, Any], Any]] = {"-": negate, "+": apply_plus}
