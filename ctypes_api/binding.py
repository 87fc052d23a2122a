"""How one row of a function table becomes one callable: the row type and `bind()`.

Runs once per library, at load, on the loading thread. Imports the standard library and `errors` only.

Two calling kinds, because the GIL costs more than most of these calls do (measured: 3 ms to get it back with
four busy Python threads, against 0.2 us for the call itself):
- `call`  releases the GIL. For whatever may block, run long, or wait for a native thread that may itself call
  back into Python (every log line does): decode, load, free, state, tokenize.
- `quick` keeps the GIL. Only for calls that can't block and can't wait for another native thread.
- `both`  is `quick` under the C name and `call` under `call_<name>`; the caller picks per use.

What is bound is the raw ctypes function itself, with no Python wrapper around it: it sits on the per-token
path. Not taken: binding lazily on first use (saves 2 ms at start, but a missing symbol would show up in
mid-request).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ctypes_api.errors import LibsBroken, LibsIncompatible, advice

BASELINE = "v0.4.0"  # the oldest llama.cpp whose libraries we accept; rows without `since` are in it


class Row(NamedTuple):
    """One C function: name, result type (None = void), argument types, calling kind, and who has it."""

    name: str
    result: Any
    arguments: tuple
    kind: str  # "call", "quick" or "both"
    required: bool = True  # absent: refuse the library; otherwise a stub takes its place
    since: str = BASELINE  # first llama.cpp version that has it


def call(name: str, result: Any, *arguments: Any, since: str = BASELINE) -> Row:
    """A row whose function releases the GIL. Rows newer than the baseline are optional."""
    return Row(name, result, arguments, "call", since == BASELINE, since)


def quick(name: str, result: Any, *arguments: Any, since: str = BASELINE) -> Row:
    """A row whose function keeps the GIL. Rows newer than the baseline are optional."""
    return Row(name, result, arguments, "quick", since == BASELINE, since)


def both(name: str, result: Any, *arguments: Any, since: str = BASELINE) -> Row:
    """A row bound twice: `name` keeps the GIL, `call_name` releases it."""
    return Row(name, result, arguments, "both", since == BASELINE, since)


class Functions:
    """Bound functions as attributes under their C names. Holds the library handle so that it stays open."""

    def __init__(self, handle: object) -> None:
        self.handle = handle

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


# A resolver turns (ctypes function type, symbol name) into a bound function, or raises AttributeError.
Resolver = Callable[[Any, str], Any]


def from_handle(handle: Any) -> Resolver:
    """Resolves in an opened library."""
    return lambda prototype, name: prototype((name, handle))


def from_addresses(address_of: Callable[[bytes], int | None]) -> Resolver:
    """Resolves through a C look-up such as ggml_backend_reg_get_proc_address."""

    def resolve(prototype: Any, name: str) -> Any:
        address = address_of(name.encode())
        if not address:
            raise AttributeError(name)
        return prototype(address)

    return resolve


def bind(rows: Iterable[Row], resolve: Resolver, into: Functions, *, version: str, where: str) -> None:
    """Binds every row into `into`, after which each row's name is an attribute of it.

    `version` and `where` name the loaded side in messages. Raises LibsBroken naming all missing required
    symbols at once; a missing optional one becomes a stub that raises LibsIncompatible when called.
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
            + advice("run `python build_scripts/fetch_libs.py` or ", "")
            + "choose another folder with --libs"
        )


def is_stub(function: Any) -> bool:
    """Whether a bound attribute stands in for an optional symbol that the library lacks."""
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
    def missing_function(*_arguments: Any) -> None:
        raise LibsIncompatible(f"`{row.name}` needs llama.cpp {row.since} or newer; loaded is {version} from {where}")

    missing_function.__name__ = row.name
    missing_function.is_stub = True  # type: ignore[attr-defined]
    return missing_function
