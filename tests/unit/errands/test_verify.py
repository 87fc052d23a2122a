"""`--verify`: changed files are named, whatever part of the program they belong to."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from server.errands import verify
from server.errors import StartError
from tests.support import build_script

one_file = build_script("one_file")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def libs(tmp_path):
    folder = tmp_path / "libs"
    folder.mkdir()
    for name in ("libllama.so", "libggml-cpu-x64.so"):
        (folder / name).write_bytes(name.encode() * 50)
    files = {path.name: {"sha256": digest(path), "size": 1} for path in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    return folder


@pytest.fixture
def executable(tmp_path, monkeypatch):
    """The one-file program that has unpacked itself into a folder with its bill of materials."""
    folder = tmp_path / "unpacked"
    (folder / "_internal").mkdir(parents=True)
    (folder / "llama-srv").write_text("program")
    (folder / "_internal" / "base_library.zip").write_text("library")
    names = ("llama-srv", "_internal/base_library.zip")
    rows = [{"name": name, "hashes": [{"content": digest(folder / name)}]} for name in names]
    (folder / verify.BILL).write_text(json.dumps({"components": [{"components": rows}]}))
    file = tmp_path / "my app"
    one_file.write_one_file(one_file.pack(folder, tmp_path / "x.tar.gz"), "t", file)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(folder / "llama-srv"))
    monkeypatch.setenv("LLAMA_SRV_FILE", str(file))
    return folder


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_what_is_whole_is_said_to_be(libs, executable):
    said = verify.report(libs, None)
    assert f"{libs}: 2 files are unchanged" in said and f"{executable}: 2 files" in said


@pytest.mark.parametrize("name", ["libs/libllama.so", "unpacked/llama-srv", "unpacked/_internal/base_library.zip"])
def test_a_changed_bit_or_a_missing_file_is_named(libs, executable, tmp_path, name):
    flip(tmp_path / name, 3)
    with pytest.raises(StartError, match=name):
        verify.report(libs, None)
    (tmp_path / name).unlink()
    with pytest.raises(StartError, match=name):
        verify.report(libs, None)


@pytest.mark.parametrize("place", [70, one_file.HEAD_SIZE - 2, one_file.HEAD_SIZE + 5, -1])
def test_a_changed_bit_in_the_one_file_program_is_found_after_it_was_unpacked(libs, executable, tmp_path, place):
    flip(tmp_path / "my app", place)
    with pytest.raises(StartError, match="my app"):
        verify.report(libs, None)
    flip(tmp_path / "my app", place)
    (tmp_path / "my app").write_bytes((tmp_path / "my app").read_bytes()[:-1])
    with pytest.raises(StartError, match="my app"):
        verify.report(libs, None)


def test_a_library_that_nobody_knows_is_named(libs):
    (libs / "libggml-other.so").write_text("llama.cpp would load it")
    with pytest.raises(StartError, match="libggml-other.so"):
        verify.report(libs, None)


def test_libraries_without_sums_are_said_to_have_none(tmp_path):
    assert "nothing to compare with" in verify.report(tmp_path, None)
    (tmp_path / "manifest.json").write_text("[")
    with pytest.raises(StartError, match="can't be read"):
        verify.report(tmp_path, None)
