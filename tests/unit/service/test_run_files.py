"""Files that report a running server: complete at every moment, and removed only by the process that wrote them."""

from __future__ import annotations

import json
import os

import pytest

from server.service.run_files import RunFile, RunFileError, RunFiles


def test_both_files_say_who_runs_and_how(tmp_path):
    files = RunFiles(str(tmp_path / "pid"), str(tmp_path / "state.json"))
    files.write("loading", url="http://127.0.0.1:1", model="é.gguf")
    assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"
    state = json.loads((tmp_path / "state.json").read_text("utf-8"))
    assert state == {"state": "loading", "pid": os.getpid(), "url": "http://127.0.0.1:1", "model": "é.gguf"}
    files.write("ready", url="http://127.0.0.1:1")
    assert json.loads((tmp_path / "state.json").read_text())["state"] == "ready"
    assert sorted(os.listdir(tmp_path)) == ["pid", "state.json"], "no temporary file is left"
    files.remove()
    assert os.listdir(tmp_path) == []
    files.remove()


def test_without_names_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = RunFiles(None, None)
    files.write("ready")
    files.remove()
    assert os.listdir(tmp_path) == []


def test_a_file_of_a_later_server_is_left_alone(tmp_path):
    file = RunFile("--pid-file", str(tmp_path / "pid"))
    file.write("1\n")
    (tmp_path / "pid").write_text("2\n")
    file.remove()
    assert (tmp_path / "pid").read_text() == "2\n"


def test_an_earlier_server_s_file_is_replaced(tmp_path):
    (tmp_path / "pid").write_text("the rest of a killed server")
    file = RunFile("--pid-file", str(tmp_path / "pid"))
    file.write("1\n")
    assert (tmp_path / "pid").read_text() == "1\n"


def test_the_same_again_is_not_written(tmp_path):
    file = RunFile("--pid-file", str(tmp_path / "pid"))
    file.write("1\n")
    (tmp_path / "pid").unlink()
    file.write("1\n")
    assert not (tmp_path / "pid").exists()


def test_a_file_that_cannot_be_written_is_one_line_with_its_option(tmp_path):
    with pytest.raises(RunFileError, match=r"^--state-file .*can't be written \(.+\): name another file$"):
        RunFile("--state-file", str(tmp_path / "no" / "such" / "folder")).write("x")
    assert os.listdir(tmp_path) == []
