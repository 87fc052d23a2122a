"""The destinations of log lines, and that writing them never fails the server: full disks, closed pipes, incomplete
lines.

Runs in the test process; tests of real stdout and stderr and of the program's end use a child process.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import types

import pytest

from server import log, log_output
from tests.support import ROOT, wait_until
from tests.unit.test_log import untouched_logging  # noqa: F401

PATIENCE_S = 60.0
posix_only = pytest.mark.skipif(os.name == "nt", reason="not on Windows")
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: /dev/full")


def info(*args):
    """Logs that and has it written."""
    return lambda: (log.get_logger("engine").info(*args), log.flush())


# -- when lines are written


class Noting:
    """A sink that notes what each write had."""

    def __init__(self):
        self.written = []

    def write(self, text):
        self.written.append(text)

    def close(self):
        pass


def test_lines_that_come_soon_after_each_other_are_written_together(monkeypatch):
    monkeypatch.setattr(log_output, "GATHER_S", 3600.0)
    sink = Noting()
    output = log_output.Output(sink, lambda n, why: "")
    for i in range(50):
        output.put(f"{i}\n")
    output.flush(PATIENCE_S)
    assert sink.written == ["".join(f"{i}\n" for i in range(50))], "and a flush doesn't wait for more of them"
    output.put("last\n")
    output.close()
    assert sink.written[1:] == ["last\n"]


def test_a_line_alone_is_written_soon():
    sink = Noting()
    output = log_output.Output(sink, lambda n, why: "")
    for i in range(3):
        output.put(f"{i}\n")
        wait_until(lambda: "".join(sink.written) == "".join(f"{j}\n" for j in range(i + 1)), "the line")
    output.close()


# -- where lines go


@pytest.mark.covers("C40", "C41")
@pytest.mark.parametrize(
    "profile, given, on_stdout, file, format",
    [
        ("2024", {}, True, "llama.log", "json"),
        ("2024", {"disable": True}, True, None, "json"),
        ("2024", {"format": "text", "file": "a.log"}, True, "a.log", "text"),
        ("2024", {"disable": True, "file": "a.log"}, True, None, "json"),
        ("modern", {}, False, None, "text"),
        ("modern", {"file": "a.log"}, False, "a.log", "text"),
        ("modern", {"format": "json"}, False, None, "json"),
    ],
)
def test_the_profile_decides_where_lines_go(profile, given, on_stdout, file, format, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    log.set_up(**log.make_profile_settings(profile, **given))
    info("where am I")()
    out, err = capsys.readouterr()
    assert ("where am I" in out) is on_stdout and ("where am I" in err) is not on_stdout
    assert os.listdir() == ([file] if file else [])
    for text in [out or err, *([open(file).read()] if file else [])]:
        assert text.startswith("{") is (format == "json") and "where am I" in text


def test_today_log_disable_means_no_log(capsys):
    log.set_up(**log.make_profile_settings("modern", disable=True))
    log.get_logger("app").error("x")
    log.flush()
    assert capsys.readouterr() == ("", "")


def test_a_file_is_appended_to_and_not_open_for_everybody(tmp_path):
    path = tmp_path / "x.log"
    for word in ("first", "second"):
        log.set_up(file=path, quiet=True)
        info(word)()
    assert [line.rpartition(" ")[2] for line in path.read_text().splitlines()] == ["first", "second"]
    if os.name == "posix":
        assert path.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize("name", ["missing/x.log", ".", "nul\0byte"])
def test_a_log_file_asked_for_that_can_not_be_written_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(log.LogFileError) as caught:
        log.set_up(file=name)
    assert "--log-file" in str(caught.value) and "\n" not in str(caught.value)


def test_the_default_log_file_may_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama.log").mkdir()
    log.set_up(**log.make_profile_settings("2024"))
    info("goes on")()
    warning, line = map(json.loads, capsys.readouterr().out.splitlines())
    assert warning["level"] == "WARN" and "llama.log" in warning["msg"] and line["msg"] == "goes on"


@posix_only
def test_after_a_rotation_lines_go_to_the_new_file(tmp_path):
    path, moved = tmp_path / "x.log", tmp_path / "x.log.1"
    log.set_up(file=path, quiet=True)
    info("before")()
    path.rename(moved)
    info("still the old one")()
    log.reopen()
    info("after")()
    assert moved.read_text().count("\n") == 2
    assert "reopened" in path.read_text() and path.read_text().endswith("after\n")


@posix_only
def test_a_failed_rotation_keeps_the_old_file(tmp_path):
    path = tmp_path / "folder" / "x.log"
    path.parent.mkdir()
    log.set_up(file=path, quiet=True)
    path.parent.rename(tmp_path / "moved")
    log.reopen()
    info("after")()
    text = (tmp_path / "moved" / "x.log").read_text()
    assert "stays in use" in text and text.endswith("after\n")


def test_reopening_without_a_file_is_nothing():
    stream = io.StringIO()
    log.set_up(stream=stream)
    log.reopen()
    assert stream.getvalue() == ""


def test_lines_of_many_threads_do_not_mix(tmp_path):
    path = tmp_path / "x.log"
    log.set_up("VERBOSE", file=path, quiet=True, format="json")

    def write(number):
        for i in range(50):
            log.log_verbose("x", n=number, i=i, text="y" * 3000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.flush()
    seen = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((entry["n"], entry["i"]) for entry in seen) == [(n, i) for n in range(4) for i in range(50)]


def test_the_root_logger_of_the_program_gets_nothing():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    try:
        log.set_up(stream=io.StringIO())
        log.get_logger("app").error("x")
        log.flush()
    finally:
        logging.getLogger().removeHandler(handler)
    assert stream.getvalue() == ""


# -- writing never hurts


class Raw(io.RawIOBase):
    """A file that does what a script says: a number: takes so many bytes; None: would block; an error."""

    def __init__(self, *script):
        self.script = list(script)
        self.data = b""

    def writable(self):
        return True

    def write(self, data):
        step = self.script.pop(0) if self.script else len(data)
        if isinstance(step, Exception):
            raise step
        if step is None:
            return None
        self.data += bytes(data[:step])
        return min(step, len(data))


def stream_on(raw):
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_what_was_lost_on_a_full_disk_is_told_once_there_is_room():
    raw = Raw(FULL, FULL, OSError(errno.EIO, "I/O error"))
    log.set_up(stream=stream_on(raw))
    for number in range(5):
        info("line %d", number)()
    lines = raw.data.decode().splitlines()
    assert len(lines) == 3
    assert "3 log lines were lost" in lines[0] and "I/O error" in lines[0]
    assert lines[1].endswith("line 3") and lines[2].endswith("line 4")


def test_the_loss_is_told_in_the_format_of_the_log():
    raw = Raw(FULL)
    log.set_up(stream=stream_on(raw), format="json")
    info("lost")()
    info("seen")()
    assert [json.loads(line)["level"] for line in raw.data.decode().splitlines()] == ["ERR", "INFO"]


def test_a_line_that_was_cut_off_does_not_spoil_the_next_one():
    raw = Raw(7, FULL)
    log.set_up(stream=stream_on(raw))
    info("cut")()
    info("whole")()
    lines = raw.data.decode().splitlines()
    assert len(lines[0]) == 7 and "1 log lines" in lines[1] and lines[2].endswith("whole")


def test_partial_writes_are_continued(monkeypatch):
    monkeypatch.setattr(log_output.time, "sleep", lambda seconds: None)
    raw = Raw(3, None, 1, None, 2)
    log.set_up(stream=stream_on(raw))
    info("in pieces")()
    assert raw.data.decode().endswith("in pieces\n") and raw.data.count(b"\n") == 1


class Stuck(io.RawIOBase):
    """A pipe that nobody reads until `reader` is set."""

    def __init__(self):
        self.reader, self.is_asked = threading.Event(), threading.Event()
        self.data = b""

    def writable(self):
        return True

    def write(self, data):
        self.is_asked.set()
        self.reader.wait(PATIENCE_S)
        self.data += bytes(data)
        return len(data)


def fill(raw, monkeypatch, n_waiting):
    """Set up a log to `raw`; one line is being written, then so many characters may wait."""
    monkeypatch.setattr(log_output, "MAX_WAITING", n_waiting)
    monkeypatch.setattr(log_output, "FLUSH_S", 0.01)
    log.set_up(stream=stream_on(raw))
    log.get_logger("app").info("the first")
    assert raw.is_asked.wait(PATIENCE_S)


def test_a_reader_that_never_reads_costs_lines_and_nobody_waits(monkeypatch):
    fill(raw := Stuck(), monkeypatch, 4000)
    for number in range(1000):
        log.get_logger("app").info("line %04d", number)  # by the thread that would wait
    n_lost = log.count_lost()
    assert 0 < n_lost < 1000 and raw.data == b""
    raw.reader.set()
    log.flush(PATIENCE_S)
    *lines, last = raw.data.decode().splitlines()
    assert [line.rpartition(" ")[2] for line in lines[1:]] == [f"{i:04d}" for i in range(1000 - n_lost)]
    assert f"{n_lost} log lines were lost" in last and " E log: " in last


def test_what_was_lost_is_told_where_it_is_missing(monkeypatch):
    fill(raw := Stuck(), monkeypatch, 200)
    log.get_logger("app").info("kept %s", "x" * 100)
    log.get_logger("app").info("lost %s", "x" * 300)
    log.get_logger("app").info("kept, too")
    raw.reader.set()
    log.flush(PATIENCE_S)
    words = [line.split(": ", 1)[1].split(" ")[0] for line in raw.data.decode().splitlines()]
    assert words == ["the", "kept", "1", "kept,"]


def test_a_line_longer_than_what_may_wait_is_written_when_none_waits(monkeypatch):
    monkeypatch.setattr(log_output, "MAX_WAITING", 100)
    log.set_up(stream=stream_on(raw := Raw()))
    info("x" * 10_000)()
    assert len(raw.data) > 10_000 and log.count_lost() == 0


def test_a_stuck_stream_keeps_no_line_from_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(log_output, "FLUSH_S", 0.01)
    log.set_up(stream=stream_on(raw := Stuck()), file=tmp_path / "x.log")
    log.get_logger("app").info("one")
    assert raw.is_asked.wait(PATIENCE_S)
    log.get_logger("app").info("two")
    wait_until(lambda: (tmp_path / "x.log").read_text().endswith("two\n"), "the file to have its lines", PATIENCE_S)
    assert raw.data == b""
    raw.reader.set()


def test_a_terminal_that_would_block_is_asked_again():
    raw = Raw(None, None)
    log.set_up(stream=stream_on(raw))
    info("patient")()
    assert raw.data.endswith(b"patient\n")


def test_a_file_that_takes_no_line_is_opened_anew_when_it_does(monkeypatch, tmp_path):
    monkeypatch.setattr(log, "REOPEN_S", 0.01)
    log.set_up(file=tmp_path / "x.log", quiet=True)
    [handler] = log._list_handlers()
    monkeypatch.setattr(handler.sink, "_raw", raw := Stuck())
    log.get_logger("app").info("one")
    assert raw.is_asked.wait(PATIENCE_S)
    log.reopen()
    raw.reader.set()
    log.flush(PATIENCE_S)
    assert raw.data.endswith(b"one\n")
    assert "is blocked" in (tmp_path / "x.log").read_text()


def test_what_is_said_comes_after_the_lines_before_it_and_waits_for_nobody(monkeypatch):
    raw, other = Raw(), Stuck()
    stream, stuck = stream_on(raw), stream_on(other)
    log.set_up(stream=stream)
    info("one")()
    log.say("two", stream)
    log.say("nobody reads this", stuck)
    log.say("nor this, which there may be no stream for", None)
    log.flush(0.01)
    assert [line.split()[-1] for line in raw.data.decode().splitlines()] == ["one", "two"]
    other.reader.set()
    log.flush(PATIENCE_S)
    assert other.data == b"nobody reads this\n"


def test_a_terminal_that_knows_few_characters_gets_escapes():
    raw = Raw()
    log.set_up(stream=io.TextIOWrapper(io.BufferedWriter(raw), encoding="latin-1"))
    info("größe \u4f60")()
    assert raw.data.decode("latin-1").endswith("größe \\u4f60\n")
    log.set_up(stream=io.TextIOWrapper(io.BufferedWriter(raw := Raw()), encoding="latin-1"), format="json")
    info("größe \u4f60")()
    assert json.loads(raw.data.decode("utf-8"))["msg"] == "größe \u4f60"


def test_a_closed_stream_is_no_trouble():
    stream = io.StringIO()
    log.set_up(stream=stream)
    stream.close()
    info("x")()


@linux_only
def test_a_full_disk_under_the_file_is_no_trouble(capsys):
    log.set_up(file="/dev/full")
    info("still on stderr")()
    log.get_logger("app").error("again")
    log.flush()
    assert capsys.readouterr().err.count("\n") == 2


def in_child(code, **options):
    program = "import sys\nfrom server import log\n" + textwrap.dedent(code)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environ, timeout=60, **options)


def test_without_a_stderr_the_file_still_gets_its_lines(tmp_path):
    done = in_child(f"""
        sys.stderr = sys.stdout = None
        log.set_up(file={str(tmp_path / "x.log")!r})
        log.get_logger("app").error("hello")
        """)
    assert done.returncode == 0 and (tmp_path / "x.log").read_text().endswith("hello\n")


@posix_only
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_that_left_changes_neither_output_nor_exit_code(name):
    read, write = os.pipe()
    os.close(read)
    other = "stderr" if name == "stdout" else "stdout"
    try:
        done = in_child(
            f"""
            log.set_up(stream=sys.{name}, format="json")
            for number in range(3000):
                log.get_logger("app").error("hello %d", number)
            """,
            **{name: write, other: subprocess.PIPE},
        )
    finally:
        os.close(write)
    assert done.returncode == 0 and getattr(done, other) == b""


@linux_only
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_full_disk_changes_neither_output_nor_exit_code(name):
    other = "stderr" if name == "stdout" else "stdout"
    with open("/dev/full", "wb") as full:
        done = in_child(
            f"""
            log.set_up(stream=sys.{name})
            log.get_logger("app").error("hello")
            """,
            **{name: full, other: subprocess.PIPE},
        )
    assert done.returncode == 0 and getattr(done, other) == b""


def test_log_lines_and_printed_lines_keep_their_order():
    done = in_child(
        """
        print("one")
        log.set_up(stream=sys.stdout)
        log.get_logger("app").info("two")
        log.say("three", sys.stdout)
        """,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["one", "two", "three"]


@posix_only
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_that_sleeps_does_not_keep_the_program_from_ending(name):
    read, write = os.pipe()
    try:
        done = in_child(
            f"""
            log.set_up(stream=sys.{name})
            for _ in range(300):
                log.get_logger("app").error("x" * 1000)
            """,
            **{name: write},
        )
        assert done.returncode == 0
        assert os.read(read, 4096)
    finally:
        os.close(read)
        os.close(write)


def test_all_lines_are_there_when_the_program_ends():
    done = in_child(
        """
        log.set_up(stream=sys.stdout)
        for number in range(5000):
            log.get_logger("app").error("line %d", number)
        """,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert [int(line.split()[-1]) for line in done.stdout.splitlines()] == list(range(5000))


def test_importing_the_module_sets_nothing_up():
    done = in_child(
        """
        import logging
        print(logging.getLogger(log.ROOT).handlers, logging.raiseExceptions)
        """,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout.split("\n")[0] == "[] True"


def test_a_moved_file_is_followed_by_a_new_one_where_no_signal_tells(tmp_path):
    sink = log_output.FileSink(tmp_path / "log", is_followed=True)
    sink.write("a\n")
    for name, line in (("log.1", "b\n"), ("log.2", "c\n")):
        os.rename(tmp_path / "log", tmp_path / name)
        sink.write(line)
    sink.close()
    assert [(tmp_path / name).read_text() for name in ("log.1", "log.2", "log")] == ["a\n", "b\n", "c\n"]


def test_a_log_whose_folder_has_gone_goes_on_in_the_moved_file(tmp_path):
    (tmp_path / "old").mkdir()
    sink = log_output.FileSink(tmp_path / "old" / "log", is_followed=True)
    os.rename(tmp_path / "old", tmp_path / "new")
    sink.write("a\n")
    sink.close()
    assert (tmp_path / "new" / "log").read_text() == "a\n"


def test_on_windows_the_open_log_may_be_moved(tmp_path, monkeypatch):
    asked: list[tuple] = []

    def create(name: str, access: int, share: int, security: int, how: int, flags: int, template: int) -> int:
        asked.append((access & log_output.APPEND, share, how))
        return os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    monkeypatch.setitem(sys.modules, "_winapi", types.SimpleNamespace(CreateFile=create))
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(open_osfhandle=lambda handle, flags: handle))
    monkeypatch.setattr(log_output, "opener", log_output.open_shared)
    sink = log_output.FileSink(tmp_path / "log")
    sink.write("a\n")
    sink.close()
    assert (tmp_path / "log").read_text() == "a\n"
    assert asked == [(log_output.APPEND, 1 | 2 | 4, 4)]  # readers, writers, who moves it; made if need be
