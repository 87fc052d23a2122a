"""Errors of the native layer. Each message is one line; most say what to do.

Raised on any thread that calls `ctypes_api`.
"""

from __future__ import annotations

import sys


class LibsError(Exception):
    """Something is wrong with the native libraries, or a native call failed."""


class LibsNotFound(LibsError):
    """A folder of libraries, or a library in it, was not found."""


class LibsBroken(LibsError):
    """A library or a manifest is there but can't be used, or lacks a part it must have."""


class LibsIncompatible(LibsError):
    """The libraries don't fit these bindings or this Python."""


class ModelLoadError(LibsError):
    """A model, adapter or projector file could not be loaded, or a context not created. The message has the last
    native error lines, if there are any."""


def choose_advice(source: str, frozen: str) -> str:
    """`source` in a checkout, where it may name scripts; `frozen` in an executable, which lacks them."""
    return frozen if getattr(sys, "frozen", False) else source
