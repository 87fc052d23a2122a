"""The first steps of the program: which command lines start an engine process, and that none is left over."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from ctypes_api import folder
from server import app, launch
from server.engine.client import spawn
from server.options.groups import ErrandOptions, group
from server.options.parser import parse
from server.options.table import OPTIONS

LIBS = "the folder"
SLEEPER = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def started(monkeypatch):
    """The commands of the processes that were started; they are no processes."""
    commands: list = []
    monkeypatch.setattr(launch, "find_folder", lambda root, explicit: explicit or LIBS)
    monkeypatch.setattr(spawn, "start_process", lambda command: commands.append(command) or object())
    return commands


@pytest.mark.parametrize(
    "argv",
    [["-m", "x.gguf"], ["-m", "x.gguf", "--port", "0", "-np", "4"], ["--model", "x.gguf", "--engine", "process"]],
    ids=" ".join,
)
def test_a_command_line_that_serves_starts_the_engine_at_once(argv: list[str], started: list):
    assert launch.start_engine(group(parse(argv, {})), None) is not None
    assert started == [spawn.make_engine_command(LIBS)]


def test_the_engine_loads_the_libraries_that_the_server_will_name(started: list):
    launch.start_engine(group(parse(["-m", "x.gguf", "--libs", "mine", "--cpu-variant", "haswell"], {})), None)
    assert started == [spawn.make_engine_command("mine", "haswell")]


def test_an_engine_is_started_without_hints_where_there_are_no_libraries(monkeypatch, started: list, tmp_path):
    monkeypatch.setattr(launch, "find_folder", folder.find_folder)
    launch.start_engine(group(parse(["-m", "x.gguf", "--libs", str(tmp_path)], {})), None)
    assert started == [spawn.make_engine_command()]


def test_a_bundle_serves_the_model_that_it_holds(started: list):
    assert launch.start_engine(group(parse([], {})), SimpleNamespace()) is not None


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["-m", "x.gguf", "--engine", "thread"],
        ["-hf", "a/b"],
        ["-m", "x.gguf", "--model-url", "http://a/x.gguf"],
        ["-m", "x.gguf", "--version"],
        ["-m", "x.gguf", "--list-devices"],
        ["-m", "x.gguf", "--dry-run"],
        ["-m", "x.gguf", "--bench"],
        ["-m", "x.gguf", "--tune"],
        ["-m", "x.gguf", "--bundle", "{file}"],
        ["-m", "x.gguf", "--bundle-info"],
        ["-m", "x.gguf", "--man"],
    ],
    ids=lambda argv: argv[-1] if argv else "nothing",
)
def test_no_engine_is_started_where_none_is_needed_or_not_yet(argv: list[str], started: list):
    argv = [word.replace("{file}", __file__) for word in argv]
    assert launch.start_engine(group(parse(argv, {})), None) is None
    assert started == []


def test_errands_are_options():
    assert set(ErrandOptions.__annotations__) <= {option.key for option in OPTIONS}


def test_an_engine_that_nobody_has_taken_over_is_ended(monkeypatch):
    processes: list = []
    monkeypatch.setattr(spawn, "make_engine_command", lambda *hints: SLEEPER)
    monkeypatch.setattr(app, "run", lambda options, own, argv, process: processes.append(process) or 1)
    assert launch.main(["-m", "x.gguf"]) == 1
    (process,) = processes
    assert process.returncode is not None and process.stdin.closed


def test_an_engine_that_cannot_be_started_early_is_left_to_the_supervisor(monkeypatch, tmp_path):
    monkeypatch.setattr(spawn, "make_engine_command", lambda *hints: [str(tmp_path / "nothing")])
    assert launch.start_engine(group(parse(["-m", "x.gguf"], {})), None) is None
