"""The folder of the one-file program: locked while in use, removed after a long time without use."""

from __future__ import annotations

import os
import sys

import pytest

from server import program, serving
from server.program import HALF_DONE_S, UNUSED_S, UnpackedFolder

pytest.importorskip("fcntl", reason="not on Windows: there nothing is unpacked by us")
NOW = 2_000_000_000.0


def folder(parent, name, age, complete=True):
    path = parent / name
    path.mkdir()
    if complete:
        (path / "llama-srv").write_text("")
    os.utime(path, (NOW - age, NOW - age))
    return path


def test_versions_that_nobody_has_used_for_two_weeks_are_removed(tmp_path):
    own = folder(tmp_path, "own", 3 * UNUSED_S)
    folder(tmp_path, "recent", UNUSED_S - 60)
    folder(tmp_path, "old", UNUSED_S + 60)
    folder(tmp_path, "not ours", 10 * UNUSED_S, complete=False)
    folder(tmp_path, ".new-a", HALF_DONE_S + 60, complete=False)
    folder(tmp_path, ".new-b", 60, complete=False)
    (tmp_path / "file").write_text("")
    UnpackedFolder(own).remove_unused(NOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new-b", "file", "not ours", "own", "recent"]
    assert own.stat().st_mtime == NOW


def test_a_folder_in_use_stays_however_old_it_is(tmp_path):
    own, other = folder(tmp_path, "own", 0), folder(tmp_path, "other", 0)
    running = UnpackedFolder(other)
    os.utime(other, (NOW - 2 * UNUSED_S,) * 2)
    UnpackedFolder(own).remove_unused(NOW)
    assert other.is_dir()
    running.close()
    UnpackedFolder(own).remove_unused(NOW)
    assert not other.exists()


def test_two_programs_may_run_from_one_folder(tmp_path):
    own, other = folder(tmp_path, "own", 0), folder(tmp_path, "other", 2 * UNUSED_S)
    first, second = UnpackedFolder(own), UnpackedFolder(own)
    second.remove_unused(NOW)
    assert not other.exists() and own.is_dir()
    first.close()
    second.close()
    second.close()


@pytest.mark.parametrize(
    "is_writable, has_bytecode, is_unwanted, is_moved",
    [(False, False, False, True), (True, False, False, False), (False, True, False, False), (True, True, True, True)],
)
def test_bytecode_that_does_not_go_into_the_program_s_folder_goes_into_the_cache(
    is_writable, has_bytecode, is_unwanted, is_moved, tmp_path, monkeypatch
):
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: is_writable)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", is_unwanted)
    monkeypatch.setenv("LLAMA_SRV_CACHE", str(tmp_path / "cache"))
    if has_bytecode:
        (tmp_path / "server" / "__pycache__").mkdir(parents=True)
    program.keep_bytecode()
    assert not sys.dont_write_bytecode
    assert sys.pycache_prefix == (str(tmp_path / "cache" / "bytecode") if is_moved else None)


def test_from_a_checkout_nothing_happens(tmp_path):
    assert program.find_unpacked_folder() is None
    UnpackedFolder(None).remove_unused(NOW)
    UnpackedFolder(tmp_path / "gone").remove_unused(NOW)


def test_a_program_without_a_console_shows_no_progress(monkeypatch):
    monkeypatch.setattr(program.sys, "stderr", None)
    serving._show_progress(0.5)
    assert not program.can_show_progress()
