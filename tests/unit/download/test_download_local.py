"""Downloads on this machine: a full disk, two processes at once, the progress.

Runs in the test process; the state after a crash is tested with a real process that is killed.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from server.download import DownloadError, Progress, local, transfer
from server.program import find_cache_folder
from tests.support import ROOT, build_script
from tests.unit.download.fake_site import no_proxy, site, world  # noqa: F401

MODEL = b"GGUF" + bytes(range(256)) * 1200
HALF = len(MODEL) // 2


# -- folders and the disk


@pytest.mark.parametrize("system", ["linux", "darwin", "win32", "freebsd14"])
@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LLAMA_SRV_CACHE": "/c"},
        {"LLAMA_SRV_CACHE": "~/c"},
        {"XDG_CACHE_HOME": "/x"},
        {"LOCALAPPDATA": "/l"},
        {"LLAMA_SRV_CACHE": "", "XDG_CACHE_HOME": ""},
    ],
    ids=str,
)
def test_the_cache_is_where_the_build_scripts_have_it(system, environ):
    environ = {"HOME": "/home/anna"} | environ
    assert find_cache_folder(environ, system) == build_script("common").find_cache_folder(environ, system)


@pytest.mark.parametrize(
    "number, words",
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EFBIG, "the disk is full"),
        (errno.EROFS, "no permission"),
        (errno.EACCES, "no permission"),
        (errno.EIO, "fix this"),
    ],
)
@pytest.mark.parametrize("after", [0, 100_000])
def test_a_disk_that_fails_is_one_line_and_keeps_what_came(site, world, monkeypatch, number, words, after):
    class Failing(io.FileIO):
        def write(self, data):
            room = after - self.tell()
            if room <= 0:
                raise OSError(number, os.strerror(number))
            return super().write(data[:room])

    url = site.put("/x.gguf", MODEL)
    with monkeypatch.context() as patch:
        patch.setattr(transfer.io, "FileIO", Failing)
        message = world.refusal(url)
    assert words in message and "x.gguf.part" in message and len(site.seen) == 1 and world.waits == []
    assert world.files() == ({"x.gguf.part", "x.gguf.part.json"} if after else set())
    assert world.fetch(url).read_bytes() == MODEL
    assert site.seen[1].headers.get("range") == (f"bytes={after}-" if after else None)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end_is_one_line(site, world, monkeypatch, name):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    url = site.put("/x.gguf", MODEL)
    with monkeypatch.context() as patch:
        patch.setattr(transfer.os, name, fail)
        assert "the disk is full" in world.refusal(url)
    assert world.fetch(url).read_bytes() == MODEL and len(site.seen) == 1


def test_too_little_room_is_noticed_before_anything_comes(site, world, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=len(MODEL) - 1))
    message = world.refusal(site.put("/x.gguf", MODEL))
    assert "not enough space" in message and "LLAMA_SRV_CACHE" in message and world.files() == set()


def test_room_is_needed_for_the_rest_only(site, world, monkeypatch):
    url = site.put("/x.gguf", MODEL, cuts=[HALF])
    site.things["/x.gguf"].cuts += [0, 0, 0, 0]
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "check_space", lambda *args: None)
        world.refusal(url)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=HALF + 10))
    assert world.fetch(url).read_bytes() == MODEL


def test_a_file_system_that_does_not_tell_its_room_is_tried(site, world, monkeypatch):
    def fail(folder):
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    assert world.fetch(site.put("/x.gguf", MODEL)).read_bytes() == MODEL


def test_a_cache_that_is_no_folder_is_one_line(site, world):
    world.cache.write_text("in the way")
    assert str(world.cache) in world.refusal(site.put("/x.gguf", MODEL))
    assert "in the way" in world.cache.read_text()


def test_a_folder_at_the_place_of_the_file_is_one_line(site, world, tmp_path):
    assert "is a folder" in world.refusal(site.put("/x.gguf", MODEL), path=tmp_path)


# -- two at once


def test_two_at_once_download_it_once(site, world):
    url = site.put("/x.gguf", MODEL)
    is_waiting, results = threading.Event(), []
    second = threading.Thread(target=lambda: results.append(world.fetch(url)), daemon=True)

    def hold_until_the_second_waits(thing):
        second.start()
        assert is_waiting.wait(60)

    site.things["/x.gguf"].on_request = hold_until_the_second_waits
    world.on_say = lambda line: is_waiting.set() if "waiting for it" in line else None
    first = world.fetch(url)
    second.join(60)
    assert results == [first] and first.read_bytes() == MODEL
    assert len(site.seen) == 1 and world.files() == {"x.gguf", "x.gguf.sha256"}


def test_many_at_once_all_get_the_file(site, world):
    url = site.put("/x.gguf", MODEL, cuts=[HALF])
    results = []
    threads = [threading.Thread(target=lambda: results.append(world.fetch(url)), daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 8 and len(set(results)) == 1 and results[0].read_bytes() == MODEL
    assert len(site.seen) == 2 and world.files() == {"x.gguf", "x.gguf.sha256"}


def test_a_process_that_was_killed_leaves_no_lock(tmp_path):
    lock = tmp_path / "x.lock"
    program = (
        "import sys; from pathlib import Path; from server.download.local import hold_exclusive\n"
        "with hold_exclusive(Path(sys.argv[1]), print, print):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "held\n"
        waited = []

        def wait(seconds):
            waited.append(seconds)
            child.kill()
            child.wait(60)

        with local.hold_exclusive(lock, lambda: waited.append("told"), wait):
            assert waited[0] == "told" and local.LOCK_POLL_S in waited
    finally:
        child.kill()
        child.communicate(timeout=60)
    assert not lock.exists()


@pytest.mark.skipif(os.name == "nt", reason="not on Windows: an open file stays")
def test_a_lock_file_that_was_removed_meanwhile_is_not_taken_for_the_lock(tmp_path):
    lock, events = tmp_path / "x.lock", []

    def nothing(*args):
        pass

    first, third = (local.hold_exclusive(lock, nothing, nothing) for _ in range(2))
    first.__enter__()

    def wait(seconds):
        events.append("waits")
        if len(events) == 1:  # the first one goes, and a third one is quicker than us
            first.__exit__(None, None, None)
            third.__enter__()
        elif len(events) == 2:
            third.__exit__(None, None, None)

    with local.hold_exclusive(lock, nothing, wait):
        assert events == ["waits", "waits"]


def test_an_interrupt_while_waiting_for_the_lock_ends_the_waiting(tmp_path):
    def interrupt(seconds):
        raise KeyboardInterrupt

    with local.hold_exclusive(tmp_path / "x.lock", interrupt, interrupt):
        with pytest.raises(KeyboardInterrupt):
            with local.hold_exclusive(tmp_path / "x.lock", lambda: None, interrupt):
                raise AssertionError("two have it")


def test_without_locks_in_the_file_system_it_goes_on(site, world, monkeypatch):
    module = pytest.importorskip("fcntl", reason="not on Windows")

    def fail(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module, "flock", fail)
    assert world.fetch(site.put("/x.gguf", MODEL)).read_bytes() == MODEL


# -- progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Each look takes `step` seconds."""

    def __init__(self, step):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


def test_a_terminal_gets_a_bar_that_is_removed_at_the_end(site, world, monkeypatch):
    monkeypatch.setattr(transfer, "BLOCK", 30_000)
    monkeypatch.setenv("COLUMNS", "100")
    terminal = Terminal()
    world.progress = Progress(terminal, clock=Clock(0.2))
    path = world.fetch(site.put("/x.gguf", MODEL))
    first, *bars, last = terminal.getvalue().split("\r")
    assert first == "downloading x.gguf, 0.3 MB\n" and last == f"downloaded {path}\n"
    pattern = re.compile(r"x\.gguf \[#{1,19}\.{1,19}\] +\d+ %  0\.\d MB  \d+\.\d MB/s *")
    assert any(pattern.fullmatch(bar) for bar in bars)
    assert bars[-1].strip() == ""


def test_a_narrow_terminal_is_not_overrun(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    terminal = Terminal()
    progress = Progress(terminal, clock=Clock(1.0))
    progress.start("a-very-long-name-of-a-model.gguf", 0, 1000)
    terminal.seek(0)
    terminal.truncate()
    progress.show(500)
    assert len(terminal.getvalue().lstrip("\r")) <= 29


def test_elsewhere_there_is_a_line_every_ten_seconds():
    stream = io.StringIO()
    progress = Progress(stream, clock=Clock(1.0))
    progress.start("x.gguf", 250_000_000, 1_000_000_000)
    for n in range(25):
        progress.show(250_000_000 + n * 10_000_000)
    progress.clear()
    first, *rest = stream.getvalue().splitlines()
    assert first == "downloading x.gguf, 1.00 GB, continuing at 250.0 MB"
    assert len(rest) == 2 and rest[0].startswith("x.gguf [######..............]  34 %  340.0 MB  9.0 MB/s")


def test_without_a_size_there_is_no_share():
    stream = io.StringIO()
    progress = Progress(stream, clock=Clock(11.0))
    progress.start("x.gguf", 0, None)
    progress.show(5_000_000)
    assert stream.getvalue() == "downloading x.gguf\nx.gguf 5.0 MB  0.5 MB/s\n"


def test_lines_may_go_to_the_log(site, world):
    lines = []
    world.progress = Progress(say=lines.append)
    path = world.fetch(site.put("/x.gguf", MODEL, cuts=[HALF]))
    assert lines[0].startswith("downloading x.gguf") and "next try in 1 s" in lines[1]
    assert "continuing at" in lines[2] and lines[-1] == f"downloaded {path}"


@pytest.mark.parametrize("stream", [None, "closed", "broken"])
def test_a_closed_stderr_does_not_matter(site, world, monkeypatch, stream):
    closed = io.StringIO()
    closed.close()

    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", {"closed": closed, "broken": Broken()}.get(stream))
    world.progress = Progress()
    assert world.fetch(site.put("/x.gguf", MODEL)).read_bytes() == MODEL


@pytest.mark.parametrize("text", ["a\nb", "a\r\x1b[2Jb", "a\u2028b", "a\x9bb"])
def test_what_a_server_says_stays_on_one_line(text):
    message = str(DownloadError(text))
    assert message.startswith("a") and message.endswith("b") and message.isprintable()
