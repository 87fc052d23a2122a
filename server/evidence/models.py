"""Identifies what computes a model's answers: the content of its files, settings, libraries and their CPU build.

Any thread may call it. The engine hashes the files (`model_files.identity`). A restarted engine is asked again: the
files may have changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from server.evidence.case import sha256_of
from server.models.model import Engine, Model


class KnownModels:
    """The identities found so far, by engine."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Engine, tuple[int, str, dict[str, Any]]] = WeakKeyDictionary()

    def get(self, model: Model) -> tuple[str, dict[str, Any]]:
        """The hash of a model's identity, and its line in the record. ApiError as for `describe_engine`."""
        n_restarts = model.engine.snapshot.n_restarts
        known = self._known.get(model.engine)
        if known is None or known[0] != n_restarts:
            about = {"name": model.name, **describe_engine(model.engine)}
            known = self._known[model.engine] = n_restarts, hash_of(about), about
        return known[1:]


def describe_engine(engine: Engine) -> dict[str, Any]:
    """An engine's files, configuration, CPU build and tokens per slot. ApiError if it can't answer."""
    found, info = engine.run_command("identity"), engine.info
    return {**found, "variant": info.variant, "n_ctx_slot": info.n_ctx_slot}


def hash_of(about: Mapping[str, Any]) -> str:
    """The hash of an identity: of its facts and the CPU build."""
    return sha256_of({"facts": about["facts"], "variant": about["variant"]})
