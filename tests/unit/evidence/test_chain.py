"""The file of --record: any change is detected; the file is bounded and survives kills."""

from __future__ import annotations

import os
import random
import stat
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from server.evidence import chain
from server.evidence.chain import Chain, RecordError, check, files_of, read_lines, report

POSIX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="not on Windows")
MUCH = 1 << 20


def written(path: Path, n: int = 4, most: int = MUCH) -> list[dict]:
    """The contents of a record of `n` lines."""
    record = Chain(path, most)
    contents = [{"kind": "request", "text": f"Zeile {i} é 😀 \n"} for i in range(n)]
    for content in contents:
        record.make_room()
        record.append(content)
    record.close()
    return contents


def test_lines_come_back_in_order_and_in_another_start(tmp_path):
    path = tmp_path / "record"
    contents = written(path) + written(path)
    lines = list(read_lines(path))
    assert [{"kind": "request", "text": line.content["text"]} for line in lines] == contents
    assert [line.content["n"] for line in lines] == list(range(8))
    assert report(path).splitlines() == [
        f"{path}: 8 lines, 8 requests; nothing was changed",
        f"the last line is number 7: {lines[-1].hash}",
    ]


@pytest.mark.covers("P02")
def test_every_single_byte_that_is_changed_is_found(tmp_path):
    path = tmp_path / "record"
    written(path, 2)
    data = path.read_bytes()
    rng = random.Random(5)
    for i in range(len(data)):
        for value in {data[i] ^ (32 if i % 2 else 1), 10 if i % 3 else rng.randrange(256)} - {data[i]}:
            path.write_bytes(data[:i] + bytes([value]) + data[i + 1 :])
            with pytest.raises(RecordError):
                check(path)


def test_a_line_that_is_taken_out_put_in_or_moved_is_found(tmp_path):
    path = tmp_path / "record"
    written(path, 5)
    lines = path.read_bytes().splitlines(keepends=True)
    for other in (lines[1:], lines[:2] + lines[3:], [lines[1], lines[0], *lines[2:]], [*lines, lines[-1]]):
        path.write_bytes(b"".join(other))
        if other != lines[1:]:
            with pytest.raises(RecordError, match="line"):
                check(path)
    path.write_bytes(b"".join(lines[1:]))
    assert "lines before number 1 were in older files" in report(path)


def test_a_last_line_that_is_cut_off_is_found_and_closed_by_the_next_start(tmp_path):
    path = tmp_path / "record"
    written(path, 3)
    data = path.read_bytes()
    start_of_last = data.rindex(b"\n", 0, -1) + 1
    for n in (1, 2, 70, 1000):
        path.write_bytes(data[:-n] if n < len(data) - start_of_last else data[: start_of_last + 1])
        with pytest.raises(RecordError, match="cut off"):
            check(path)
        written(path, 2)
        sums = check(path)
        assert (sums.n_torn, sums.n_requests) == ((0, 5) if n == 1 else (1, 4))
        at = data.rindex(b"{") + 1 if n == 1000 else data.index(b"Zeile 2")
        changed = bytearray(path.read_bytes())
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(RecordError):
            check(path)


def test_a_full_file_gives_way_to_the_next_and_the_chain_goes_on(tmp_path):
    path = tmp_path / "record"
    written(path, 200, 4 * 2000)
    assert [file.name for file in files_of(path)] == ["record.3", "record.2", "record.1", "record"]
    assert sum(file.stat().st_size for file in files_of(path)) < 4 * 2000 + 4 * 400
    sums = check(path)
    assert sums.last == 199 and sums.first == 200 - sums.n_lines > 0
    middle = path.with_name("record.2")
    middle.write_bytes(middle.read_bytes().replace(b"Zeile", b"zeile", 1))
    with pytest.raises(RecordError, match="record.2, line 1"):
        check(path)


def test_a_start_between_two_files_goes_on_with_the_chain(tmp_path):
    path = tmp_path / "record"
    written(path, 3)
    os.replace(path, path.with_name("record.1"))  # killed before the new file was made
    written(path, 1)
    assert check(path).n_lines == 4


def test_a_kill_in_the_very_first_line_is_no_end(tmp_path):
    path = tmp_path / "record"
    path.write_bytes(b'{"kind":"sta')
    written(path, 2)
    assert (check(path).n_torn, check(path).n_requests) == (1, 2)


@pytest.mark.parametrize("n", [0, 1])
def test_a_kill_between_two_writes_of_a_start_after_a_kill_is_no_end(tmp_path, monkeypatch, n):
    path = tmp_path / "record"
    written(path, 3)
    path.write_bytes(path.read_bytes()[:-70])
    real, left = os.write, [None] * n

    def write_until_killed(file: int, data: memoryview) -> int:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return real(file, data)

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(chain.os, "write", write_until_killed)
        Chain(path, MUCH).close()
    written(path, 2)
    assert (check(path).n_torn, check(path).n_requests) == (1, 4)


@POSIX_ONLY
def test_only_its_owner_may_read_it_and_one_server_write_it(tmp_path):
    path = tmp_path / "record"
    first = Chain(path, MUCH)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(RecordError, match="another server is writing this file"):
        Chain(path, MUCH)
    first.close()


@pytest.mark.parametrize("content", [b"# notes\n", b"{}\n", b"\n", b"x", b"{}\nhalf", b'{"a":1,"n":0}\nhalf'])
def test_a_file_that_is_no_record_is_left_alone(tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(RecordError, match="is not a record"):
        Chain(path, MUCH)
    assert path.read_bytes() == content
    with pytest.raises(RecordError):
        check(path)


def test_a_record_whose_last_line_was_changed_is_not_gone_on_with(tmp_path):
    path = tmp_path / "record"
    written(path, 3)
    path.write_bytes(path.read_bytes().replace(b"Zeile 2", b"Zeile 1"))
    with pytest.raises(RecordError, match="its last line was changed"):
        Chain(path, MUCH)


def test_no_file_and_an_empty_one_are_told(tmp_path):
    with pytest.raises(RecordError, match="doesn't exist"):
        report(tmp_path / "nothing")
    (tmp_path / "empty").touch()
    with pytest.raises(RecordError, match="no lines"):
        report(tmp_path / "empty")
    with pytest.raises(RecordError, match="--record"):
        Chain(tmp_path / "no" / "folder", MUCH)


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "record"
    record = Chain(path, MUCH)
    record.append({"kind": "start"})
    real = os.write

    def fail_halfway(file: int, data: memoryview) -> int:
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return real(file, data[:50])

    with monkeypatch.context() as patched:
        patched.setattr(chain.os, "write", fail_halfway)
        with pytest.raises(OSError, match="No space"):
            record.append({"kind": "request"})
    record.append({"kind": "stop"})
    record.close()
    assert [line.content["kind"] for line in read_lines(path)] == ["start", "stop"]


def test_a_line_beyond_all_bounds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "MAX_LINE", 1000)
    record = Chain(tmp_path / "record", MUCH)
    with pytest.raises(ValueError, match="bytes"):
        record.append({"text": "x" * 1000})
    record.append({"text": "x"})
    record.close()
    assert check(tmp_path / "record").n_lines == 1


def test_starts_without_a_stop_and_lost_requests_are_counted(tmp_path):
    path = tmp_path / "record"
    record = Chain(path, MUCH)
    for content in ({"kind": "start"}, {"kind": "start"}, {"kind": "lost", "requests": 3}, {"kind": "stop"}):
        record.append(content)
    record.close()
    text = report(path)
    assert "3 requests couldn't be recorded" in text and "the server was killed 1 times" in text
