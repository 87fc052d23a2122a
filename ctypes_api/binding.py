"""Turns the rows of function tables into callables: the row type and `bind()`.

Runs once per library, at load, on the loading thread.

A row is one of three kinds, because releasing the GIL costs more than most of these calls (docs/architecture.md):
- `call` releases the GIL. It is for functions that may block, run long, or wait for a native thread, which may call
  Python to log a line. Examples: decode, load, free, tokenize.
- `quick` keeps the GIL. It is for functions that can't block and can't wait for another native thread.
- `both` is `quick` under the C name and `call` under `call_<name>`; the caller chooses per use.

The raw ctypes function is bound, without a Python wrapper, because many functions are called per token. Not taken:
binding at the first use, which would find a missing symbol in the middle of a request.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ctypes_api.errors import LibsBroken, LibsIncompatible, choose_advice

BASELINE = "v0.4.0"  # the oldest supported llama.cpp; it has all rows without `since`


class Row(NamedTuple):
    """One C function."""

    name: str
    result: Any  # its type; None: void
    arguments: tuple  # their types
    kind: str  # "call", "quick" or "both"
    required: bool = True  # a library without it is refused; if False, a stub replaces a missing function
    since: str = BASELINE  # the first llama.cpp version that has it


def call(name: str, result: Any, *arguments: Any, since: str = BASELINE) -> Row:
    """A row whose function releases the GIL."""
    return Row(name, result, arguments, "call", since == BASELINE, since)


def quick(name: str, result: Any, *arguments: Any, since: str = BASELINE) -> Row:
    """A row whose function keeps the GIL."""
    return Row(name, result, arguments, "quick", since == BASELINE, since)


def both(name: str, result: Any, *arguments: Any, since: str = BASELINE) -> Row:
    """A row bound twice: `name` keeps the GIL, `call_name` releases it."""
    return Row(name, result, arguments, "both", since == BASELINE, since)


class Functions:
    """Bound functions as attributes under their C names."""

    def __init__(self, handle: object) -> None:
        self.handle = handle

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


# A resolver turns (ctypes function type, symbol name) into a bound function, or raises AttributeError.
Resolver = Callable[[Any, str], Any]


def from_handle(handle: Any) -> Resolver:
    """A resolver for an opened library."""
    return lambda prototype, name: prototype((name, handle))


def from_addresses(address_of: Callable[[bytes], int | None]) -> Resolver:
    """A resolver that uses a C function such as ggml_backend_reg_get_proc_address."""

    def resolve(prototype: Any, name: str) -> Any:
        address = address_of(name.encode())
        if not address:
            raise AttributeError(name)
        return prototype(address)

    return resolve


def bind(rows: Iterable[Row], resolve: Resolver, into: Functions, *, version: str, where: str) -> None:
    """Bind the functions of the rows as attributes of `into`.

    `version` and `where` name the library in messages. LibsBroken names all missing required functions. A missing
    optional function becomes a stub that raises LibsIncompatible when it is called.
    """
    missing = []
    for row in rows:
        try:
            functions = _functions_of(row, resolve)
        except AttributeError:
            if row.required:
                missing.append(row.name)
                continue
            functions = dict.fromkeys(_names_of(row), _stub(row, version, where))
        vars(into).update(functions)
    if missing:
        raise LibsBroken(
            f"{where} ({version or 'version unknown'}) lacks {len(missing)} function(s) that llama.cpp "
            f"{BASELINE} and newer have: {', '.join(missing)}; "
            + choose_advice("run `python build_scripts/fetch_libs.py` or ", "")
            + "choose another folder with --libs"
        )


def is_stub(function: Any) -> bool:
    """Whether a bound function is a stub for a missing one."""
    return getattr(function, "is_stub", False)


def _names_of(row: Row) -> tuple[str, ...]:
    return (row.name, f"call_{row.name}") if row.kind == "both" else (row.name,)


def _functions_of(row: Row, resolve: Resolver) -> dict[str, Any]:
    factories = {
        "call": (ctypes.CFUNCTYPE,),
        "quick": (ctypes.PYFUNCTYPE,),
        "both": (ctypes.PYFUNCTYPE, ctypes.CFUNCTYPE),
    }[row.kind]
    return {
        name: resolve(factory(row.result, *row.arguments), row.name) for name, factory in zip(_names_of(row), factories)
    }


def _stub(row: Row, version: str, where: str) -> Callable:
    def raise_missing(*_arguments: Any) -> None:
        raise LibsIncompatible(f"`{row.name}` needs llama.cpp {row.since} or newer; loaded is {version} from {where}")

    raise_missing.__name__ = row.name
    raise_missing.is_stub = True  # type: ignore[attr-defined]
    return raise_missing
