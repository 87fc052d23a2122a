"""Errors of the native layer: each is one line that says what is wrong and what to do next.

Raised on whatever thread calls into `ctypes_api`; imports nothing of the product. `server/` decides what a client gets
to see.
"""

from __future__ import annotations

import sys


class LibsError(Exception):
    """Something is wrong with the native libraries, or a native call failed."""


class LibsNotFound(LibsError):
    """No folder with a libllama was found; the message lists every path tried."""


class LibsBroken(LibsError):
    """A library file is there but can't be opened, or lacks a part it must have."""


class LibsIncompatible(LibsError):
    """The libraries opened, but aren't the ones these bindings were written for; names both sides."""


class ModelLoadError(LibsError):
    """A model, adapter or projector file could not be loaded; carries the last native error lines."""


def advice(source: str, frozen: str) -> str:
    """What to do: `source` may name the scripts of a checkout, which an executable doesn't bring along."""
    return frozen if getattr(sys, "frozen", False) else source
