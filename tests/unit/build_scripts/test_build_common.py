"""The common code of the build scripts: platform, cache, progress, child processes, replacing folders."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support import build_script
from tests.unit.build_scripts import fake_packages as fake
from tests.unit.build_scripts.fake_packages import posix_only, run

common = build_script("common")
fetch_libs = build_script("fetch_libs")
packages = build_script("packages")


@pytest.fixture
def world(tmp_path, monkeypatch):
    return fake.make_world(tmp_path, monkeypatch)


# --- this machine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "system, tag, bits, expected",
    [
        ("linux", "linux-x86_64", 64, "linux-x64"),
        ("linux", "linux-aarch64", 64, "linux-arm64"),
        ("linux", "linux-aarch64", 32, "linux-armv7l"),  # 32-bit Raspberry Pi OS on its 64-bit kernel
        ("linux", "linux-armv7l", 32, "linux-armv7l"),
        ("linux", "linux-riscv64", 64, "linux-riscv64"),
        ("darwin", "macosx-14.0-arm64", 64, "macos-arm64"),
        ("darwin", "macosx-10.9-x86_64", 64, "macos-x64"),
        ("win32", "win-amd64", 64, "windows-x64"),
        ("win32", "win-arm64", 64, "windows-arm64"),
        ("win32", "win32", 32, "windows-x86"),
    ],
)
def test_platform_is_that_of_the_running_interpreter(system, tag, bits, expected):
    assert common.get_this_platform(system, tag, bits) == expected


@pytest.mark.parametrize(
    "system, environ, expected",
    [
        ("linux", {"HOME": "/h"}, "/h/.cache/llama_srv"),
        ("linux", {"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/llama_srv"),
        ("darwin", {"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/Library/Caches/llama_srv"),
        ("win32", {"HOME": "/h", "LOCALAPPDATA": "/l"}, "/l/llama_srv/cache"),
        ("win32", {"HOME": "/h", "LOCALAPPDATA": "/l", "LLAMA_SRV_CACHE": "/mine"}, "/mine"),
    ],
)
def test_cache_is_outside_the_tree_where_the_system_keeps_caches(system, environ, expected):
    assert common.find_cache_folder(environ, system).as_posix() == expected


def test_old_python_gets_one_line(capsys, monkeypatch):
    monkeypatch.setattr(common, "PYTHON_NEEDED", (99, 1))
    assert fetch_libs.main(["--list"]) == 1
    assert "Python 99.1 or newer is needed" in capsys.readouterr().err


# --- swapping folders ---------------------------------------------------------------------------------------
def folder_with(path, content):
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


def test_a_rival_that_appears_during_the_swap_is_replaced(tmp_path, monkeypatch):
    new, target, temp = folder_with(tmp_path / "new", "new"), tmp_path / "target", tmp_path / "temp"
    folder_with(target, "old")
    temp.mkdir()
    real, moves = os.rename, []

    def rename(source, end):
        real(source, end)
        moves.append(end)
        if Path(source) == target and len(moves) == 1:
            folder_with(target, "rival")

    monkeypatch.setattr(common.os, "rename", rename)
    common.swap_in(new, target, temp)
    assert (target / "file").read_text() == "new"


def test_a_failing_swap_brings_the_old_folder_back(tmp_path, monkeypatch):
    new, target, temp = folder_with(tmp_path / "new", "new"), tmp_path / "target", tmp_path / "temp"
    folder_with(target, "old")
    temp.mkdir()
    real = os.rename

    def rename(source, end):
        if Path(source) == new:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        real(source, end)

    monkeypatch.setattr(common.os, "rename", rename)
    with pytest.raises(OSError):
        common.swap_in(new, target, temp)
    assert (target / "file").read_text() == "old"


def test_a_folder_in_use_is_named(tmp_path, monkeypatch):
    new, target = folder_with(tmp_path / "new", "new"), folder_with(tmp_path / "target", "old")

    def rename(source, end):
        raise PermissionError(errno.EACCES, "Access is denied", str(source))

    monkeypatch.setattr(common.os, "rename", rename)
    with pytest.raises(common.Failure, match="in use.*stop the server"):
        common.swap_in(new, target, tmp_path)


def test_what_a_killed_run_left_is_removed_after_a_day_and_a_running_rivals_is_kept(tmp_path):
    old, fresh = tmp_path / ".tmp-get-old", tmp_path / ".tmp-get-new"
    for folder in (old, fresh, tmp_path / "linux-x64-cpu"):
        folder.mkdir()
    os.utime(old, (1, 1))
    common.remove_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".tmp-get-new", "linux-x64-cpu"}


# --- progress -----------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_progress_rewrites_one_line_and_leaves_it_clean():
    terminal = Terminal()
    progress = common.Progress(terminal)
    progress.show(common.render_bar("  package 1.0", 4_600_000, 10_800_000, 3))
    progress.show("short")
    progress.say("done")
    text = terminal.getvalue()
    assert " 42 %  4.6 MB of 10.8 MB  3 s" in text and text.count("\n") == 1 and text.endswith("\rdone\n")


def test_elsewhere_progress_says_a_line_now_and_then():
    stream, now = io.StringIO(), [0.0]
    progress = common.Progress(stream, every=10, clock=lambda: now[0])
    progress.start()
    for second in range(25):
        now[0] = float(second)
        progress.show(f"at {second} s")
    assert stream.getvalue().split("\n") == ["at 10 s", "at 20 s", ""]


def test_progress_never_claims_to_be_ready_before_the_client_is():
    assert " 99 %" in common.render_bar("x", 25, 10, 1) and "0.0 MB of 0.0 MB" in common.render_bar("x", 25, 10, 1)


@posix_only
def test_size_grows_while_the_client_writes(tmp_path):
    """The figure comes from the client's own folder, so it needs no cooperation."""
    seen, gate = [], tmp_path / "gate"
    os.mkfifo(gate)
    script = f"open('part', 'wb').write(b'x' * 1000); open({str(gate)!r}).read()"

    class Watcher(common.Progress):
        def show(self, text):
            seen.append(int(text))
            if seen[-1] >= 1000 and len(threads) == 0:
                threads.append(threading.Thread(target=lambda: open(gate, "w").close()))
                threads[0].start()

    threads: list = []
    result = common.run_child(
        [sys.executable, "-c", script],
        folder=tmp_path,
        progress=Watcher(quiet=True),
        describe=lambda seconds: str(common.compute_folder_size(tmp_path)),
    )
    threads[0].join()
    assert result.code == 0 and seen[-1] >= 1000


@posix_only
@pytest.mark.parametrize("number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, common.Terminated)])
def test_a_signal_that_comes_while_the_client_is_started_ends_it_too(tmp_path, monkeypatch, number, error):
    children, popen = [], subprocess.Popen

    def start(*arguments, **options):
        children.append(popen(*arguments, **options))
        signal.raise_signal(number)
        return children[0]

    monkeypatch.setattr(common.subprocess, "Popen", start)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(error), common.raise_on_signals():
            common.run_child(
                [sys.executable, "-c", "import time; time.sleep(600)"],
                folder=tmp_path,
                progress=common.Progress(quiet=True),
                describe=lambda seconds: "",
            )
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert children[0].returncode is not None, "the client runs on"


def test_a_client_that_cannot_be_started(tmp_path):
    with pytest.raises(common.Failure, match="can't be started"):
        common.run_child(
            [str(tmp_path / "none")], folder=tmp_path, progress=common.Progress(quiet=True), describe=lambda seconds: ""
        )


# --- clients ------------------------------------------------------------------------------------------------


def test_pip_is_this_pythons_else_one_on_path_else_uvs(monkeypatch):
    present = {"pip3": "/bin/pip3", "uv": "/bin/uv"}
    monkeypatch.setattr(packages.shutil, "which", present.get)
    monkeypatch.setattr(packages, "has_pip_module", lambda: True)
    assert packages.find_pip() == [sys.executable, "-m", "pip"]
    monkeypatch.setattr(packages, "has_pip_module", lambda: False)
    assert packages.find_pip() == ["/bin/pip3"]
    del present["pip3"]
    assert packages.find_pip() == ["/bin/uv", "tool", "run", "pip"]
    del present["uv"]
    assert packages.find_pip() is None


def test_a_lock_that_cannot_be_read_is_one_line(world, capsys):
    world.lock_path.write_text("{")
    code, complaint = run(world, capsys)
    assert code == 1 and "git checkout" in complaint
    world.lock_path.write_text('{"format": 2, "archives": {}}')
    assert "format 2" in run(world, capsys)[1]


@posix_only
def test_relock_writes_the_facts_of_what_the_registry_has(world, capsys):
    for key in [key for key in world.rows if key not in ("npm:linux-x64", "pip:linux-x64")]:
        del world.rows[key]
    world.install_client("pip3")
    right = json.loads(json.dumps(world.rows))
    for row in world.rows.values():
        row.update(sha256="", size=0)
    world.write_lock()
    assert run(world, capsys, "--relock")[0] == 0
    written = json.loads(world.lock_path.read_text())["archives"]
    assert {key: (row["sha256"], row["size"]) for key, row in written.items()} == {
        key: (row["sha256"], row["size"]) for key, row in right.items()
    }
    assert all(row["unpacked"] > 0 for row in written.values())
