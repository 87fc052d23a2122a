"""What computes the answers of a model: the content of its files, its settings, the libraries and their CPU build.

Any thread of the web process. The engine knows it (`server/model_files/identity.py`), once it has read the files: that
takes about a second per gigabyte, once for a file. Asked again when the engine has been restarted, since another one
may have found other files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from server.evidence.case import sha256_of
from server.models.model import Engine, Model


class KnownModels:
    """What is known so far, by engine."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Engine, tuple[int, str, dict[str, Any]]] = WeakKeyDictionary()

    def get(self, model: Model) -> tuple[str, dict[str, Any]]:
        """The hash that names what computes, and what it is over. ApiError where the files can't be read."""
        n_restarts = model.engine.snapshot.n_restarts
        known = self._known.get(model.engine)
        if known is None or known[0] != n_restarts:
            about = {"name": model.name, **about_engine(model.engine)}
            known = self._known[model.engine] = n_restarts, hash_of(about), about
        return known[1:]


def about_engine(engine: Engine) -> dict[str, Any]:
    """The facts of the files, their CPU build, and the engine's configuration. ApiError where the files can't be
    read."""
    found, info = engine.command("identity"), engine.info
    return {**found, "variant": info.variant, "n_ctx_slot": info.n_ctx_slot}


def hash_of(about: Mapping[str, Any]) -> str:
    """The name of what computes: the same on two machines with the same files, settings and CPU build."""
    return sha256_of({"facts": about["facts"], "variant": about["variant"]})
