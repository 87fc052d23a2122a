"""The composition root: what it passes to the server."""

from __future__ import annotations

import signal
import sys

import pytest

from server import app, serving
from server.engine.seam.config import EngineConfig
from server.errands.one_shot import ModelPlace
from server.errors import PassingError
from server.options.groups import group
from server.options.parser import OptionError, parse
from server.service.edge import KeyFiles


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

    def serve(options, engine, model, unpacked, stop, *_: object) -> int:
        found.append(serving.make_context(options, engine, model, stop, KeyFiles(options.http)).models.default.names)
        return 0

    monkeypatch.setattr(app, "set_up_logging", lambda *_: None)
    monkeypatch.setattr(app, "read_model", lambda *_, **__: (place, EngineConfig(place.path, ""), {}))
    monkeypatch.setattr(app, "make_transport", lambda *_: NoTransport())
    monkeypatch.setattr(serving, "serve", serve)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    assert app.serve(group(parse(["--engine", "thread", *argv], {})), None, (), None) == 0
    assert found == [names]


@pytest.fixture
def started(monkeypatch) -> dict[int, object]:
    """What handles the signals of a server that was started: it is none."""
    handlers: dict[int, object] = {}
    monkeypatch.setattr(app, "set_up_logging", lambda *_: None)
    monkeypatch.setattr(app, "read_model", lambda *_, **__: (ModelPlace("a.gguf"), EngineConfig("a.gguf", ""), {}))
    monkeypatch.setattr(app, "make_transport", lambda *_: NoTransport())
    monkeypatch.setattr(serving, "serve", lambda *_: 0)
    monkeypatch.setattr(signal, "SIGBREAK", 21, raising=False)
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    return handlers


def test_ctrl_break_stops_as_ctrl_c_does(started):
    assert app.serve(group(parse(["--engine", "thread", "-m", "a.gguf"], {})), None, (), None) == 0
    assert set(started) == {signal.SIGINT, signal.SIGTERM, signal.SIGBREAK}


@pytest.mark.parametrize(("error", "code"), [(OptionError("x"), 2), (PassingError("x"), 1)])
def test_the_exit_code_says_whether_trying_again_is_any_use(error, code, monkeypatch):
    said: list[str] = []

    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(app, "serve", fail)
    monkeypatch.setattr(app.logging_setup, "say", lambda text, *_: said.append(text))
    assert app.run(group(parse(["-m", "a.gguf"], {})), None, (), None) == code
    assert said == ["error: x"]
