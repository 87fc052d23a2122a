"""Builds the executables once for all tests. They stay in the cache until an input changes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import ServerProcess, build_script, need, start_server


@pytest.fixture(scope="session")
def built(libs_folder):
    """What build_exe.py has made: folder, archive, one file."""
    build_exe, common = build_script("build_exe"), build_script("common")
    try:
        return build_exe.ensure(libs_folder, common.find_cache_folder() / "executables", common.Progress(quiet=True))
    except common.Failure as failure:
        reason = f"no executable can be built here: {failure}"
    need(False, reason)
    raise AssertionError("not reached")


@pytest.fixture(scope="session")
def one_file(built, tmp_path_factory) -> Path:
    """The program in one file, under a name and in a folder that nobody would choose."""
    if sys.platform == "win32":
        return built.one_file
    path = tmp_path_factory.mktemp("ein ordner mit ümläuten 文") / "my llama é"
    shutil.copy2(built.one_file, path)
    return path


@pytest.fixture
def home(tmp_path) -> Path:
    """A home folder with nothing in it, shared by nobody."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def bare(one_file, home) -> list[str]:
    """The command that runs the one file in an empty environment."""
    if sys.platform == "win32":
        return [str(one_file)]
    empty = home.parent / "bin"
    empty.mkdir()
    return ["env", "-i", f"HOME={home}", f"PATH={empty}", f"TMPDIR={home.parent}", str(one_file)]


@pytest.fixture
def serve_frozen(bare, tmp_path, monkeypatch) -> Iterator[Callable[..., ServerProcess]]:
    """`serve_frozen("-m", path, ...)` in an empty environment, from a folder of no meaning; stopped by the end."""
    servers: list[ServerProcess] = []
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def start(*arguments: object, program: list[str] | None = None, **options: object) -> ServerProcess:
        server = start_server([str(argument) for argument in arguments], program=program or bare, **options)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
        print(f"--- {' '.join(server.command)}\n{server.log}")
    left = sorted(path.name for path in Path.cwd().iterdir())
    monkeypatch.chdir(os.sep)
    assert left == []
