"""The composition root: what it passes on to the server."""

from __future__ import annotations

import signal
import sys

import pytest

from server import app, serving
from server.engine.seam.config import EngineConfig
from server.errands.one_shot import ModelPlace
from server.options.groups import group
from server.options.parser import parse


class NoTransport:
    """An engine that is never asked for anything."""

    def start(self, *_: object) -> None:
        """Nothing."""

    def close(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("argv", "place", "names"),
    [
        (["-m", "a.gguf"], ModelPlace("a.gguf"), ["a.gguf"]),
        (["-m", "a.gguf", "-a", "b, c,"], ModelPlace("a.gguf"), ["b", "c"]),
        (["-hf", "user/a"], ModelPlace("cache/a.gguf"), ["cache/a.gguf"]),
        ([], ModelPlace("the program", 4096, 1000, "a.gguf"), ["a.gguf"]),
        (["-a", "b"], ModelPlace("the program", 4096, 1000, "a.gguf"), ["b"]),
    ],
)
def test_a_model_is_called_by_its_aliases_else_as_in_its_bundle_else_by_its_file(argv, place, names, monkeypatch):
    found: list[list[str]] = []

    def serve(options, engine, model, *_: object) -> int:
        found.append(serving.make_context(options, engine, model).models.default.names)
        return 0

    monkeypatch.setattr(app, "set_up_logging", lambda *_: None)
    monkeypatch.setattr(app, "read_model", lambda *_, **__: (place, EngineConfig(place.path, "")))
    monkeypatch.setattr(app, "make_transport", lambda *_: NoTransport())
    monkeypatch.setattr(serving, "serve", serve)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    assert app.serve(group(parse(["--engine", "thread", *argv], {})), None, (), None) == 0
    assert found == [names]
